"""A sweep file (YAML) -> a validated `Sweep`; all its mistakes at once, each with its line."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sweeper.errors import SweepError, unknown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a sweep may be called: it names a folder of the store."""
_Loc = tuple[str | int, ...]


class Entry(BaseModel):
    """One entry of datasets, models, attacks or defenses: a name, or a mapping with options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The data set, architecture, attack or defense."""
    label: str
    """What rows and tables call it: `as`, or its name and preset."""
    options: dict[str, Any] = {}
    """Everything else of the mapping."""
    poison_rates: list[float] | None = None
    """An attack's own rates in place of the sweep's."""


class Resources(BaseModel):
    """What every cell is given: one shape for the whole sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int = Field(default=1, ge=1)
    """CPUs, and threads, of a cell."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a cell; a fraction shares one."""


class Sweep(BaseModel):
    """The declared matrix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Names the results; a second file of this name adds to them."""
    datasets: list[Entry] = Field(min_length=1)
    models: list[Entry] = Field(min_length=1)
    attacks: list[Entry] = Field(min_length=1)
    poison_rates: list[float] = Field(default=[0.1], min_length=1)
    """Shares of each attack's own base."""
    targets: list[int] = Field(default=[0], min_length=1)
    """Target labels."""
    clean_budgets: list[int | float] = Field(default=[0.05], min_length=1)
    """Clean images of the defender: a share of the training split (< 1) or a count (>= 1)."""
    defenses: list[Entry] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    """In the file a count (0, 1, ... n-1) or a list."""
    recipe: str | dict[str, Any] = "fast"
    """A training recipe by name, or changes to one."""
    reserve: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training split no attacker trains on; clean budgets are drawn from it."""
    exclude: list[dict[str, Any]] = []
    """Combinations left out: each entry is a set of axis values that must all match."""
    resources: Resources = Resources()
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which a cell is given up."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError("use letters, digits, dots, underscores and hyphens")
        return value

    @field_validator("datasets", "models", "attacks", "defenses", mode="before")
    @classmethod
    def _entries(cls, value: Any, info: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError("must be a list, such as [a, b]")
        kind = info.field_name.removesuffix("s")
        return [_entry(kind, item) for item in value]

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError("give at least one seed")
            return list(range(value))
        return value

    @field_validator("poison_rates")
    @classmethod
    def _rates(cls, value: list[float]) -> list[float]:
        return _check_rates(value)

    @field_validator("clean_budgets")
    @classmethod
    def _budgets(cls, value: list[int | float]) -> list[int | float]:
        for budget in value:
            if budget <= 0 or (budget >= 1 and budget != int(budget)):
                raise ValueError(f"{budget} is neither a share in (0, 1) nor a whole number")
        return value

    @field_validator("targets", "seeds", "poison_rates", "clean_budgets")
    @classmethod
    def _unique(cls, value: list[Any]) -> list[Any]:
        if len(set(value)) != len(value):
            raise ValueError("a value stands twice")
        return value


def _check_rates(rates: Sequence[float]) -> list[float]:
    for rate in rates:
        if not 0 < rate <= 1:
            raise ValueError(f"poison rate {rate} is not in (0, 1]")
    return list(rates)


def _entry(kind: str, item: Any) -> Any:
    """Turn what stands in the file into the fields of an `Entry`."""
    if isinstance(item, str):
        return {"name": item, "label": item}
    if not isinstance(item, dict):
        raise ValueError(f"an entry is a name or a mapping with `{kind}: NAME`, not {item!r}")
    rest = dict(item)
    name = rest.pop(kind, None)
    if not isinstance(name, str):
        raise ValueError(f"an entry with options needs `{kind}: NAME`")
    preset = f"-{rest['preset']}" if "preset" in rest else ""
    label = rest.pop("as", f"{name}{preset}")
    found = {"name": name, "label": str(label), "options": rest}
    if kind == "attack" and "poison_rates" in rest:
        found["poison_rates"] = _check_rates(rest.pop("poison_rates"))
    return found


@dataclass(frozen=True)
class Source:
    """A sweep file as read: its values and the line each stands on."""

    path: str
    values: dict[str, Any]
    lines: Mapping[_Loc, int]


def shipped() -> list[str]:
    """Return the names of the sweeps that ship with the package."""
    folder = importlib.resources.files("sweeper.sweeps")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def read(spec: str) -> Source:
    """Read a sweep file by path, or a shipped sweep by name.

    Raises:
        SweepError: There is no such file, or it is no YAML mapping.
    """
    path = Path(spec)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif spec in shipped():
        text = (importlib.resources.files("sweeper.sweeps") / f"{spec}.yaml").read_text("utf-8")
    elif path.suffix in (".yaml", ".yml") or "/" in spec:
        raise SweepError(f"no file {spec}; shipped sweeps: {', '.join(shipped())}")
    else:
        raise SweepError(f"{unknown('sweep file or shipped sweep', spec, shipped())}")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{spec}:{mark.line + 1}" if mark else spec
        raise SweepError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(values, dict):
        raise SweepError(f"{spec}: a sweep file is a mapping: name, datasets, attacks, ...")
    lines: dict[_Loc, int] = {}
    _mark(node, (), lines, spec)
    return Source(spec, values, lines)


def _mark(node: Any, at: _Loc, lines: dict[_Loc, int], spec: str) -> None:
    """Note the line of every key and item; refuse a key that stands twice."""
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, key.value)
            if here in lines:
                line = key.start_mark.line + 1
                raise SweepError(f"{spec}:{line}: {key.value}: stands twice in this mapping")
            lines[here] = key.start_mark.line + 1
            _mark(value, here, lines, spec)
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            _mark(value, (*at, place), lines, spec)


def name_of(spec: str) -> str:
    """Return the name of a sweep without validating the rest; needs no torch."""
    name = read(spec).values.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SweepError(f"{spec}: name: is missing, or not letters, digits, dots, - and _")
    return name


def purpose(name: str) -> str:
    """Return the first sentence of a shipped sweep's header."""
    text = (importlib.resources.files("sweeper.sweeps") / f"{name}.yaml").read_text("utf-8")
    head = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    return head.partition(". ")[0].strip()


def load(spec: str, overrides: Sequence[str] = ()) -> Sweep:
    """Read and validate a sweep.

    Args:
        spec: A path, or the name of a shipped sweep.
        overrides: `key=value` each, dots for nested keys; the value is YAML. `scale=NAME` applies
            the file's own `scales: {NAME: {...}}`.

    Raises:
        SweepError: Every mistake of the file, one line each.
    """
    source = read(spec)
    values = dict(source.values)
    scales = values.pop("scales", {})
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise SweepError(f"--set {override}: write key=value, such as seeds=1")
        if key == "scale":
            if not isinstance(scales, dict) or text not in scales:
                raise SweepError(f"--set {override}: {unknown('scale', text, scales or ())}")
            values |= scales[text]
        else:
            _set(values, key.split("."), yaml.safe_load(text), override)
    problems: list[tuple[_Loc, str]] = []
    try:
        sweep = Sweep.model_validate(values)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
    else:
        from sweeper.check import check

        problems = check(sweep)
        if not problems:
            return sweep
    raise SweepError("\n".join(_sentence(source, at, text) for at, text in problems))


def _set(values: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise SweepError(f"--set {override}: {key} holds {inner!r}, no keys below it")
        values[key] = values = dict(inner)
    values[path[-1]] = value


def _problem(item: Any) -> tuple[_Loc, str]:
    at, text = tuple(item["loc"]), str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        text = unknown("key", at[-1], Resources.model_fields if len(at) > 1 else Sweep.model_fields)
    elif item["type"] == "missing":
        text = "is missing"
    elif not isinstance(item.get("input"), dict | list):
        text = f"{text}, got {item['input']!r}"
    return at, text


def _sentence(source: Source, at: _Loc, text: str) -> str:
    """`file:line: key: what is wrong`, at the nearest place the file itself has."""
    known = at
    while known not in source.lines:
        known = known[:-1]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")
    return f"{source.path}:{source.lines[known]}: {name}: {text}"
