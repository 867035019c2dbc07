"""What `sweeper describe` says of a name, on a screen and as a page: read from its class."""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sweeper.core import catalog, names, options
from sweeper.core.errors import SweepError, unknown
from sweeper.plan.document import flow

KEYS: dict[str, str] = {
    "attack": "attacks",
    "defense": "defenses",
    "dataset": "datasets",
    "model": "models",
    "recipe": "recipe",
    "analysis": "",
}
"""Kind of name -> the key of a sweep file it stands below; methods are meant before others."""


@dataclass(frozen=True)
class Option:
    """An option, as people are told of it."""

    name: str
    """As a sweep file has it."""
    default: Any
    """JSON."""
    range: str
    """Its type and range in words."""
    sentence: str
    """What it is."""


@dataclass(frozen=True)
class Description:
    """All there is to say of a name."""

    kind: str
    """One of `KEYS`."""
    name: str
    """As a sweep file has it."""
    title: str
    """Its name in the literature."""
    head: str
    """The head of its module: source, equation, deviations."""
    facts: dict[str, str]
    """What a list has of it, and what it asks of a victim."""
    options: tuple[Option, ...]
    """In the order of its class."""
    presets: dict[str, dict[str, Any]]
    """A variant by name -> the options it sets; of a recipe, data set and model -> likewise."""
    example: dict[str, Any]
    """What a sweep file has of it; empty of an analysis."""


def known(kind: str) -> list[str]:
    """Return the names there are of a kind."""
    if kind in names.KINDS:
        return names.names(kind)
    if kind == "analysis":
        from sweeper.analyses import looks

        return looks.names()
    if kind == "recipe":
        from sweeper.engine import recipes

        return sorted(recipes.RECIPES)
    from sweeper import data, models

    return sorted(data.known() if kind == "dataset" else models.families())


def kinds_of(name: str) -> list[str]:
    """Return the kinds that have this name, methods first.

    Raises:
        SweepError: None has.
    """
    if ":" in name:  # a class of one's own: no method of the one contract or of the other
        try:
            catalog.method("attack", name)
        except SweepError:
            catalog.method("defense", name)
            return ["defense"]
        return ["attack"]
    found = [kind for kind in KEYS if name in known(kind)]
    if not found:
        every = sorted({name for kind in KEYS for name in known(kind)})
        raise SweepError(f"describe: {unknown('name', name, every)}")
    return found


def describe(kind: str, name: str) -> Description:
    """Return what there is to say of a name.

    Args:
        kind: One of `KEYS`.
        name: One of `known(kind)`, or `module:Class` of an attack or a defense.

    Raises:
        SweepError: There is none of that name.
    """
    if kind in names.KINDS:
        return _method(kind, name)
    if name not in known(kind):
        raise SweepError(f"describe: {unknown(kind, name, known(kind))}")
    return {"dataset": _dataset, "model": _model, "recipe": _recipe, "analysis": _analysis}[kind](
        name
    )


def _method(kind: str, name: str) -> Description:
    record, cls = catalog.record(kind, name), catalog.method(kind, name)
    facts = {"paper": cls.paper}
    if kind == "attack":
        facts |= {"controls": record["controls"], "rules": ", ".join(record["rules"])}
        facts |= {"rate base": record["rate_base"]}
        clean = " It starts from a clean model." if cls.needs_clean_model else ""
        facts |= {"before": f"It learns before it poisons.{clean}"} if cls.prepares else {}
    else:
        from sweeper.cli import listing

        facts |= {"kind": record["kind"], "sees": ", ".join(record["sees"]) or "nothing"}
        facts |= {"runs on": listing.runs_on(name) if ":" not in name else "", "needs": ""}
        facts["needs"] = "BatchNorm layers" if record["requires"] else ""
        facts["light"] = "yes: a CPU runs it in no long time" if cls.light else ""
    facts["tasks"] = ", ".join(record["tasks"])
    own = _options(cls, record["options"], getattr(cls, "bases", ()), cls.rules)
    entry: dict[str, Any] = {kind: name}
    required = [f for f in dataclasses.fields(cls) if f.metadata.get("required")]
    presets = {preset: _plain(values) for preset, values in cls.presets.items()}
    if required:
        entry |= {item.name: item.name.upper() for item in required}
    elif changed := {preset: values for preset, values in presets.items() if values}:
        entry["preset"] = next(iter(changed))
        entry |= {"as": name} if name.endswith("-oracle") else {}
    elif chosen := [o for o in own if o.name not in ("rule", "rate_base", "rounding")]:
        entry |= {chosen[0].name: chosen[0].default}
    example = {KEYS[kind]: [entry if len(entry) > 1 else name]}
    return _described(kind, name, cls, cls.title, facts, own, presets, example)


def _dataset(name: str) -> Description:
    from sweeper import data
    from sweeper.data import base

    source = data.source_of({"dataset": name})
    assert source is not None, "its name is known by it"
    where = f"not downloaded: put {source.wants} into the data folder".replace(", into", " into")
    if issubclass(source, base.Fileless):
        where = "always at hand: no file is needed"
    elif source.downloads:
        where = "downloaded into the data folder where it is not there"
    facts = {"about": data.known()[name], "where": where, "task": source.task}
    facts["needs"] = f"pip install '.[{source.extra}]'" if source.extra else ""
    subset = tuple(
        Option(f"{split}_size", None, "a whole number of at least 1, or null", sentence)
        for split, sentence in (
            ("train", "Samples of the training split that are used; default: all."),
            ("test", "Likewise of the test split."),
        )
    )
    own = tuple(option for option in _options(source) if option.name != "name") + subset
    example = {"datasets": [{"dataset": name, "train_size": 500, "test_size": 200}]}
    return _described("dataset", name, source, name, facts, own, {}, example)


def _model(name: str) -> Description:
    from sweeper import models

    family = models.families()[name]
    facts = {"tasks": ", ".join(sorted(family.tasks)), "usual input": _shape(family.usual)}
    facts["family"] = ", ".join(family.names)
    own = _options(family)
    chosen = next((o for o in own if o.name != "weights"), None)
    entry = {"model": name, chosen.name: chosen.default} if chosen else name
    return _described("model", name, family, name, facts, own, {}, {"models": [entry]})


def _recipe(name: str) -> Description:
    from sweeper.engine import recipes

    lines: dict[str, dict[str, Any]] = {}
    for dataset, model, values in recipes.RECIPES[name]:
        place = "any data" if dataset == "*" else dataset
        place += "" if model == "*" else f" with {model}"
        while place in lines and not _last(lines, place, values):
            place = f"then {place}"
        lines.setdefault(place, {}).update(_plain(values))
    facts = {"about": "How victims are trained; the lower of two lines counts."}
    own, example = _options(recipes.Recipe), {"recipe": {"base": name, "epochs": 60}}
    return _described("recipe", name, recipes.Recipe, f"Recipe {name}", facts, own, lines, example)


def _last(lines: Mapping[str, Mapping[str, Any]], place: str, values: Mapping[str, Any]) -> bool:
    """Whether a line is the last so far that sets any of these values."""
    after = list(lines)[list(lines).index(place) + 1 :]
    return not any(values.keys() & lines[other].keys() for other in after)


def _analysis(name: str) -> Description:
    from sweeper.analyses import looks

    cls = looks.analysis(name)
    facts = {"source": cls.source, "tasks": ", ".join(sorted(cls.tasks))}
    return _described("analysis", name, cls, cls.title, facts, _options(cls), {}, {})


def _described(
    kind: str,
    name: str,
    cls: type,
    title: str,
    facts: Mapping[str, str],
    own: tuple[Option, ...],
    presets: dict[str, dict[str, Any]],
    example: dict[str, Any],
) -> Description:
    head = textwrap.dedent(sys.modules[cls.__module__].__doc__ or "").strip()
    said = {fact: text for fact, text in facts.items() if text}
    return Description(kind, name, title, head, said, own, presets, example)


def _options(
    cls: type,
    defaults: Mapping[str, Any] | None = None,
    bases: Iterable[str] = (),
    rules: Iterable[str] = (),
) -> tuple[Option, ...]:
    """The options of a class; `defaults` where a method's differ from its fields'."""
    words = {"rule": rules, "rate_base": bases}
    ranges, told = options.ranges(cls), options.sentences(cls)
    ranges |= {name: " or ".join(map(repr, words[name])) for name in words if name in ranges}
    fields = {item.name: item for item in dataclasses.fields(cls)}
    values = _plain({name: fields[name].default for name in ranges} | dict(defaults or {}))
    return tuple(
        Option(name, values[name], span, told.get(name, "")) for name, span in ranges.items()
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as YAML writes them: no tuple among them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def sets(values: Mapping[str, Any], code: str = "") -> str:
    """The options a preset sets, each between marks of code."""
    words = [f"{code}{name}: {flow(value)}{code}" for name, value in values.items()]
    return ", ".join(words) or "the defaults"


def _example(example: Mapping[str, Any]) -> str:
    """An entry of a sweep file, on one line."""
    return "\n".join(f"{key}: {flow(value)}" for key, value in example.items())


# A page


def page(kind: str, name: str) -> str:
    """Return a name's page in Markdown; its title is the heading of level 1.

    Args:
        kind: attack | defense | dataset | model | recipe | analysis.
        name: One of `known(kind)`.
    """
    return markdown(describe(kind, name))


def markdown(about: Description) -> str:
    """Return a description as a page in Markdown."""
    kind, lines = about.kind, [f"# {about.title}", "", "| | |", "|---|---|"]
    called = {"name": f"`{about.name}`" + ("" if kind in ("recipe", "model") else f", {kind}")}
    facts = called | {fact: _escaped(text) for fact, text in about.facts.items()}
    lines += [f"| {fact} | {_cell(text)} |" for fact, text in facts.items()]
    lines += ["", _escaped(about.head), ""]
    if about.example:
        lines += ["In a sweep file:", "", "```yaml", _example(about.example), "```", ""]
    if about.options:
        lines += ["## Options", "", "| option | default | range | |", "|---|---|---|---|"]
        for option in about.options:
            words = (f"`{flow(option.default)}`", option.range, _escaped(option.sentence))
            lines.append(f"| `{option.name}` | {' | '.join(map(_cell, words))} |")
        lines.append("")
    if about.presets:
        word = "for" if kind == "recipe" else "preset"
        lines += [f"## {_preset_head(kind)}", "", f"| {word} | sets |", "|---|---|"]
        for preset, values in about.presets.items():
            lines.append(f"| {_escaped(preset)} | {_cell(sets(values, '`'))} |")
        lines.append("")
    return "\n".join(lines)


def _preset_head(kind: str) -> str:
    return "What it sets" if kind == "recipe" else "Presets"


def _escaped(text: str) -> str:
    """Text for Markdown: what stands outside of backticks and code has no marks and tags."""
    parts = re.split(r"(`[^`]*`|^ {4}.*$)", text, flags=re.MULTILINE)
    return "".join(
        part if place % 2 else re.sub(r"([*<_])", r"\\\1", part) for place, part in enumerate(parts)
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# A screen


def screen(about: Description, width: int) -> str:
    """Return a description as a terminal of `width` columns shows it."""
    lines = [*_hung(f"{about.kind} {about.name}: ", about.title, width, 2), ""]
    wide = max(map(len, about.facts)) + 2
    for fact, text in about.facts.items():
        lines += _hung(f"{fact:<{wide}}", text, width)
    lines += ["", *_reflowed(about.head, width)]
    if about.example:
        lines += ["", "In a sweep file:", "", f"  {_example(about.example)}"]
    lines += ["", "Options:", ""] if about.options else []
    for option in about.options:
        lines += _hung(f"  {option.name}: ", flow(option.default), width)
        lines += _hung("      ", f"{option.sentence} ({option.range})", width)
    lines += ["", f"{_preset_head(about.kind)}:", ""] if about.presets else []
    for preset, values in about.presets.items():
        lines += _hung(f"  {preset}: ", sets(values), width, 6)
    return "\n".join(lines)


def _hung(start: str, text: str, width: int, indent: int | None = None) -> list[str]:
    """Text behind a word, its further lines under its first or `indent` columns in."""
    hung = " " * (len(start) if indent is None else indent)
    return textwrap.wrap(
        start + text,
        width,
        subsequent_indent=hung,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _reflowed(text: str, width: int) -> list[str]:
    """Paragraphs and lists of a docstring, filled to a width; indented lines stay."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        for item in re.split(r"\n(?=- )", block):
            if item.startswith("    "):
                lines += item.splitlines()
            else:
                words = " ".join(item.split())
                lines += _hung("", words, width, 2 if item.startswith("- ") else 0)
        lines.append("")
    return lines[:-1]
