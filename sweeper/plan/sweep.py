"""What a sweep file may say: the declared matrix as data, its form validated."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections import Counter
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

from sweeper.core import catalog, options
from sweeper.plan import source
from sweeper.plan.document import Loc
from sweeper.plan.view import View

Problem = tuple[Loc, str]
"""A mistake: where it stands, and the sentence about it."""


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"needs a number, not {value!r}")
    return value


def _rate(rate: float) -> float:
    if not 0 < rate <= 1:
        needs = "needs a share above 0 and at most 1"
        meant = f", did you mean {rate / 100:g}? It" if 1 < rate <= 100 else ":"
        raise ValueError(f"{rate:g} is no poison rate{meant} {needs}")
    return rate


def _budget(value: Any) -> int | float:
    """A share stays a float, a count becomes an int; 1.0 could be either and is refused."""
    try:
        number = float(_no_bool(value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if 0 < number < 1:
        return number
    if (
        1 <= number < LARGEST
        and number.is_integer()
        and not (number == 1 and isinstance(value, float))
    ):
        return int(number)
    raise ValueError(
        options.percent(value)
        or f"{value!r} is no clean budget: needs a share between 0 and 1, such as 0.05, or a whole "
        "number of images, such as 500"
    )


def _mapping(value: Any, like: str) -> Any:
    if not isinstance(value, dict) or not value or not all(isinstance(k, str) for k in value):
        raise ValueError(f"needs {like}, not {value!r}")
    return value


def _recipe(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return _mapping(value, "the name of a recipe, or changes such as {base: d-br, epochs: 60}")


def _pattern(value: Any) -> Any:
    return _mapping(value, "a mapping such as {attack: badnets, poison_rate: 0.1}")


LARGEST = 2**63 - 1
"""The largest whole number a row can hold: what goes into one is checked before anything is run."""
Whole = Annotated[int, BeforeValidator(_no_bool), Field(ge=0, le=LARGEST)]
Rate = Annotated[float, BeforeValidator(_no_bool), AfterValidator(_rate)]
Budget = Annotated[int | float, PlainValidator(_budget)]
Pattern = Annotated[dict[str, Any], BeforeValidator(_pattern)]


MOST_SEEDS = 10_000
"""Seeds a count may stand for: a larger one is a seed that lacks its brackets."""


class Entry(BaseModel):
    """One entry of datasets, models, attacks or defenses: a name, or a mapping with options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The data set, architecture, attack or defense."""
    label: str
    """What rows and tables call it: `as`, or its name and preset."""
    options: dict[str, Any] = {}
    """Everything else of the mapping."""
    poison_rates: list[Rate] | None = Field(default=None, min_length=1)
    """An attack's own rates in place of the sweep's."""


def entry_fields(kind: str, item: Any) -> Any:
    """Turn what stands in the file into the fields of an `Entry`."""
    if isinstance(item, str):
        return {"name": item, "label": _label(item)}
    options = dict(_mapping(item, f"a name, or a mapping with `{kind}: NAME` and options"))
    if kind == "defense" and "then" in options:
        options = _chain(options)
    name, preset = options.pop(kind, None), options.get("preset", "")
    if not isinstance(name, str):
        raise ValueError(f"an entry with options needs `{kind}: NAME`, not {item!r}")
    if not isinstance(preset, str):
        raise ValueError(f"preset: needs the name of one, not {preset!r}")
    label = _label(options.pop("as", f"{name}-{preset}" if preset else name))
    fields = {"name": name, "label": label, "options": options}
    if kind == "attack" and "poison_rates" in options:
        rates = options.pop("poison_rates")
        fields["poison_rates"] = [] if rates is None else rates
    return fields


def _label(value: Any) -> str:
    """A label as text, fit for a line of a table and the cell of a spreadsheet."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        quote = (
            "" if isinstance(value, list | dict) else "; quote what YAML takes for something else"
        )
        raise ValueError(f"as: needs a label, not {value!r}{quote}")
    label = str(value)
    if not label.strip():
        raise ValueError(f"as: needs a label, not {label!r}")
    if any(unicodedata.category(character) in _UNSEEN for character in label):
        raise ValueError(
            f"label {label!r} has a character that breaks a line of a table: write `as: LABEL` of "
            "what can be seen"
        )
    if label.lstrip()[0] in "=+-@":
        raise ValueError(
            f"label {label!r} is a formula to a spreadsheet: write `as: LABEL` that begins with a "
            "letter or a digit"
        )
    return label


_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode's categories of control characters, halves of pairs, ends of lines and paragraphs."""


def _chain(item: dict[str, Any]) -> dict[str, Any]:
    """Write `{detect: A, then: B, ...}` as the defense B with A among its options."""
    options = {key: value for key, value in item.items() if key not in ("detect", "then")}
    if "detect" not in item or "defense" in options:
        raise ValueError(f"a chain is {{detect: DEFENSE, then: DEFENSE}}, not {item!r}")
    first, second = (Entry(**entry_fields("defense", item[key])) for key in ("detect", "then"))
    detect = {"defense": first.name, **first.options} if first.options else first.name
    label = f"{first.label}+{second.label}"
    return {**second.options, "defense": second.name, "as": label, "detect": detect, **options}


def _every(kind: str, value: Any, info: ValidationInfo) -> Any:
    """`all`: every attack or defense made for one of the data sets that needs no option."""
    if value != "all":
        return value
    from sweeper import data  # waits for torch

    entries: list[Entry] = info.data.get("datasets", [])
    found = (data.source_of({"dataset": entry.name, **entry.options}) for entry in entries)
    return catalog.ready(kind, {source.task if source else "image" for source in found})


Datasets = list[Annotated[Entry, BeforeValidator(functools.partial(entry_fields, "dataset"))]]
Models = list[Annotated[Entry, BeforeValidator(functools.partial(entry_fields, "model"))]]
Attacks = Annotated[
    list[Annotated[Entry, BeforeValidator(functools.partial(entry_fields, "attack"))]],
    BeforeValidator(functools.partial(_every, "attack")),
]
Defenses = Annotated[
    list[Annotated[Entry, BeforeValidator(functools.partial(entry_fields, "defense"))]],
    BeforeValidator(functools.partial(_every, "defense")),
]


class Shape(BaseModel):
    """What a cell is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    cpus: Annotated[int, BeforeValidator(_no_bool)] = Field(default=1, ge=1, le=LARGEST)
    """CPUs, and threads, of a cell. On two cores, two cells at one thread train 1.4 (ResNet-18)
    to 1.8 (MobileNetV2) times the images/s of one cell at two threads, so the default is 1."""
    gpus: Annotated[float, BeforeValidator(_no_bool)] = Field(default=0.0, ge=0)
    """GPUs of a cell; a fraction shares one."""

    @field_validator("gpus")
    @classmethod
    def _gpus(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(f"{value:g} is neither a share of one GPU nor a whole number of them")
        return value

    @property
    def device(self) -> str:
        """Where its cells compute: cpu | cuda."""
        return "cuda" if self.gpus else "cpu"


def _shape(value: Any) -> Any:
    if isinstance(value, Shape):
        return value
    return _mapping(value, "what its cells are given, such as {cpus: 1}")


Named = Annotated[Shape | None, BeforeValidator(_shape)]
"""A shape of its own; None, which no file can say, where there is none."""


class Resources(Shape):
    """What cells are given: one shape for all, and others for those that need more or less.

    A named shape is whole in itself: `light: {cpus: 1}` has no GPU, whatever stands beside it.
    """

    train: Named = None
    """The shape of cells that train victims, or what an attack learns before."""
    defend: Named = None
    """The shape of cells that defend."""
    light: Named = None
    """Of those the cells whose defense takes a CPU no long time (`sweeper describe NAME`);
    default: that of `defend`."""

    def of(self, name: str) -> Shape:
        """The shape of cells.

        Args:
            name: One of `SHAPES`.
        """
        named = {"train": self.train, "defend": self.defend, "light": self.light or self.defend}
        return named[name] or Shape(cpus=self.cpus, gpus=self.gpus)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The distinct shapes, that of cells that train first."""
        return tuple(dict.fromkeys(self.of(name) for name in SHAPES))


SHAPES = ("train", "defend", "light")
"""What a cell can be to `Resources`."""


class Sweep(BaseModel):
    """The declared matrix."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    """Names the results; a second file of this name adds to them."""
    datasets: Datasets = Field(min_length=1)
    """What is trained on."""
    models: Models = Field(min_length=1)
    """Architectures."""
    attacks: Attacks = Field(min_length=1)
    """Who poisons; `none` is the clean model. `all`: every attack there is."""
    poison_rates: list[Rate] = Field(default=[0.1], min_length=1)
    """Shares of each attack's own base."""
    targets: list[Whole] = Field(default=[0], min_length=1)
    """Target labels."""
    clean_budgets: list[Budget] = Field(default=[0.05], min_length=1)
    """Clean images of the defender: a share of the training split (< 1) or a count (>= 1)."""
    defenses: Defenses = Field(min_length=1)
    """Who defends; `none` measures the victim as it is. `all`: every defense there is."""
    seeds: list[Whole] = Field(default=[0], min_length=1)
    """In the file a count (0, 1, ... n-1) or a list."""
    recipe: Annotated[str | dict[str, Any], BeforeValidator(_recipe)] = "fast"
    """A training recipe by name, or changes to one."""
    reserve: Annotated[float, BeforeValidator(_no_bool)] = Field(default=0.1, gt=0, lt=1)
    """Share of the training split no attacker trains on; clean budgets are drawn from it."""
    exclude: list[Pattern] = []
    """Combinations left out: each entry is a set of axis values that must all match."""
    resources: Resources = Resources()
    """What cells are given."""
    timeout: Annotated[float, BeforeValidator(_no_bool)] | None = Field(default=None, gt=0)
    """Seconds after which an attempt at a cell is given up."""
    table: View = View()
    """The layout of its table."""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not source.NAME.fullmatch(value):
            raise ValueError(
                f"needs letters, digits, dots, underscores and hyphens, at most 100, not {value!r}"
            )
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        if isinstance(value, list):
            return value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"needs a count above 0, or a list such as [0, 7], not {value!r}")
        if value > MOST_SEEDS:
            raise ValueError(
                f"{value} are too many: needs a count up to {MOST_SEEDS}, or a list: [{value}]"
            )
        return list(range(value))

    @field_validator("targets", "seeds", "poison_rates", "clean_budgets")
    @classmethod
    def _unique(cls, value: list[Any]) -> list[Any]:
        for item, count in Counter(value).items():
            if count > 1:
                raise ValueError(f"{item!r} stands twice; remove one")
        return value
