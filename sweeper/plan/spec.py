"""A sweep file (YAML) -> a validated `Sweep`; all its mistakes at once, each with its line."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from sweeper.core import options
from sweeper.core.errors import SweepError, together, unknown
from sweeper.plan import document, source
from sweeper.plan.document import Loc
from sweeper.plan.source import Source
from sweeper.plan.sweep import Problem, Resources, Shape, Sweep, entry_fields
from sweeper.plan.view import View


def load(spec: str, overrides: Sequence[str] = ()) -> Sweep:
    """Read and validate a sweep.

    Args:
        spec: A path, or the name of a shipped sweep.
        overrides: `key=value` each, dots for nested keys; the value is YAML. `scale=NAME` applies
            the file's own `scales: {NAME: {...}}`. In a list of attacks, defenses, datasets or
            models a label of the file stands for its entry.

    Raises:
        SweepError: Every mistake of the file, one line each.
    """
    return loaded(source.read(spec), overrides)


def loaded(file: Source, overrides: Sequence[str] = ()) -> Sweep:
    """Validate a sweep file that was read; for the rest see `load`."""
    values, origin, problems = _stated(file, overrides)
    sweep, value_problems = _validate(values)
    problems += value_problems
    if sweep is not None and not problems:
        return sweep
    sentences = {_sentence(file, origin, loc, text) for loc, text in problems}
    raise SweepError(together([text for _, text in sorted(sentences)]))


def form(file: Source, overrides: Sequence[str] = ()) -> Sweep | None:
    """What a sweep file states, its form alone validated; None where that is wrong.

    No method is asked, so it waits for torch only where `all` methods are named.

    Raises:
        SweepError: One of `overrides` cannot be applied.
    """
    values, _, problems = _stated(file, overrides)
    try:
        return None if problems else Sweep.model_validate(values)
    except ValidationError:
        return None


def _stated(
    file: Source, overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[Loc, str], list[Problem]]:
    """The values of a file after --set, which of them came from it, and what its scales lack."""
    values = dict(file.values)
    scales = values.pop("scales", {})
    problems = _check_scales(scales, values)
    origin: dict[Loc, str] = {}
    for override in overrides if not problems else ():
        _apply(override, values, scales, origin)
    return values, origin, problems


def parse(values: Mapping[str, Any]) -> Sweep:
    """Validate a sweep given as values, without a file.

    Raises:
        SweepError: Every mistake, one line each.
    """
    sweep, problems = _validate(values)
    if sweep is None or problems:
        raise SweepError(together(sorted({text for _, text in problems})))
    return sweep


def _check_scales(scales: Any, values: Mapping[str, Any]) -> list[Problem]:
    if not isinstance(scales, dict) or not all(isinstance(k, str) for k in scales):
        return [(("scales",), f"scales: needs {{NAME: {{seeds: 1, ...}}}}, not {scales!r}")]
    problems: list[Problem] = []
    for name, changes in scales.items():
        if not isinstance(changes, dict):
            text = f"scales.{name}: needs a mapping such as {{seeds: 1}}, not {changes!r}"
            problems.append((("scales", name), text))
            continue
        for key in changes:
            if key not in Sweep.model_fields:
                text = _elsewhere(str(key), {**values, **changes})
                text = text or unknown("key", key, Sweep.model_fields)
                problems.append((("scales", name, str(key)), f"scales.{name}: {text}"))
    return problems


def _apply(
    override: str, values: dict[str, Any], scales: Mapping[str, Any], origin: dict[Loc, str]
) -> None:
    """Change `values` as one --set asks, and note in `origin` what was changed by it."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise SweepError(f"--set {override}: write key=value, such as seeds=1")
    if key == "scale":
        if text not in scales:
            raise SweepError(f"--set {override}: {unknown('scale', text, scales)}")
        values |= scales[text]
        origin |= {(changed,): f"scale={text}" for changed in scales[text]}
        return
    if key not in (*Sweep.model_fields, "scales"):
        from sweeper.plan import misplaced  # waits for torch

        if place := misplaced.within(key):
            where = ".".join(place)
            raise SweepError(f"--set {override}: belongs into the {place[0]}: write {where}={text}")
    value = document.parse(text, f"--set {override}").values
    *path, last = key.split(".")
    mapping = values
    for part in path:
        inner = mapping.setdefault(part, {})
        if part == "recipe" and isinstance(inner, str):
            inner = {"base": inner}
        if not isinstance(inner, dict):
            raise SweepError(f"--set {override}: {part} holds {inner!r}, no keys below it")
        mapping[part] = mapping = dict(inner)
    mapping[last] = _pick(override, key, values, value)
    origin[tuple(key.split("."))] = override


def _pick(override: str, key: str, values: dict[str, Any], value: Any) -> Any:
    """Put the file's own entries for their labels, so that `attacks=[sig]` keeps its options.

    Exclusions of labels that are no longer there go with them. A name the file has under other
    labels alone is refused: who writes it may mean one of those, or the method without options.
    """
    listed = values.get(key)
    if key not in _SPARE or not isinstance(value, list) or not isinstance(listed, list):
        return value
    by_label: dict[str, Any] = {}
    labels: dict[str, list[str]] = defaultdict(list)
    for item in listed:
        with contextlib.suppress(ValueError):  # an entry that is wrong is named later
            entry = entry_fields(key[:-1], item)
            by_label[entry["label"]] = item
            labels[entry["name"]].append(entry["label"])
    names = {item for item in value if isinstance(item, str)}
    for name in sorted(names & set(labels) - set(by_label)):
        raise SweepError(
            f"--set {override}: the file has {name} as {', '.join(labels[name])}: write that, or "
            f"{{{key[:-1]}: {name}}} for one without the options of the file"
        )
    removed = set(by_label) - names
    if isinstance(values.get("exclude"), list):
        values["exclude"] = [
            pattern
            for pattern in values["exclude"]
            if not (isinstance(pattern, dict) and pattern.get(key[:-1]) in removed)
        ]
    return [by_label.get(item, item) if isinstance(item, str) else item for item in value]


def _validate(values: Mapping[str, Any]) -> tuple[Sweep | None, list[Problem]]:
    """Validate the form, then what only the methods know of those parts whose form is right."""
    from sweeper.plan.check import check  # waits for torch

    try:
        sweep = Sweep.model_validate(values)
        return sweep, check(sweep)
    except ValidationError as error:
        problems = [_problem(item, values) for item in error.errors()]
    bad = {loc[:2] for loc, _ in problems}
    spare = {key: value for key, value in values.items() if key in Sweep.model_fields}
    for loc in sorted(bad, key=len, reverse=True):
        key = str(loc[0])
        if key in _SPARE and len(loc) == 2:
            kept = list(spare[key])
            kept[int(loc[1])] = _SPARE[key]
            spare[key] = kept
        elif key in _SPARE:
            spare[key] = [_SPARE[key]]
        else:
            spare.pop(key, None)
    return None, problems + check(Sweep.model_validate({**spare, "name": "spare"}), bad)


_SPARE = {"datasets": "digits", "models": "tiny", "attacks": "none", "defenses": "none"}
"""What stands for an entry whose form is wrong while the others are checked."""


def _problem(item: Any, values: Mapping[str, Any]) -> Problem:
    """Put one of pydantic's errors on a file's values into our words."""
    loc, name = tuple(item["loc"]), ".".join(part for part in item["loc"] if isinstance(part, str))
    strange = item["type"] == "extra_forbidden" and len(loc) == 1 and isinstance(loc[0], str)
    if strange and (text := _elsewhere(loc[0], values)):
        return loc, text
    if item["type"] in ("extra_forbidden", "invalid_key"):
        inner: dict[Loc, type[BaseModel]] = {("resources",): Resources, ("table",): View}
        within = inner.get(loc[:-1], Shape).model_fields  # the deepest are the shapes of resources
        known = within if len(loc) > 1 else [*Sweep.model_fields, "scales"]
        name, text = name.rpartition(".")[0], unknown("key", loc[-1], known)
    else:
        text = options.wording(item)
    return loc, f"{name}: {text}" if name else text


def _elsewhere(key: str, values: Mapping[str, Any]) -> str:
    """What to write for a key that belongs elsewhere; empty where nobody knows."""
    from sweeper.plan import misplaced  # waits for torch

    return misplaced.sentence(key, values[key], values)


def _sentence(file: Source, origin: Mapping[Loc, str], loc: Loc, text: str) -> tuple[int, str]:
    """Put before a problem the line, or the --set, it comes from."""
    for end in range(len(loc), 0, -1):
        override = origin.get(loc[:end])
        if override and override.startswith("scale="):
            loc = ("scales", override.removeprefix("scale="), *loc)
            break
        if override:
            return 0, f"--set {override}: {text}"
    line = file.line(loc)
    return line, f"{file.path}:{line}: {text}"
