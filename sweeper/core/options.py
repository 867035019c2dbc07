"""Options <-> frozen dataclasses: built with checked names and types, written back canonically."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sweeper.core.errors import SweepError, unknown

T = TypeVar("T")

CEILING = 10**9
"""No option needs more; what is larger is a slip of the pen."""
Count = Annotated[int, Field(ge=1, le=CEILING)]
"""How many, where none makes no sense."""
Whole = Annotated[int, Field(ge=0, le=CEILING)]
"""How many, where 0 means none; the number of a class, of a row."""
Several = Annotated[int, Field(ge=2, le=CEILING)]
"""How many, where one is too few: BatchNorm has no variance of a batch of one image."""
Offset = Annotated[int, Field(ge=-1, le=CEILING)]
"""Pixels from a border; -1 stands for the method's own rule."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share, a probability or an accuracy."""
PositiveShare = Annotated[float, Field(gt=0, le=1)]
"""Such a share, where 0 makes no sense."""
ProperShare = Annotated[float, Field(ge=0, lt=1)]
"""Such a share, where 1 makes no sense; momentum."""
OpenShare = Annotated[float, Field(gt=0, lt=1)]
"""Such a share, where neither does."""
Positive = Annotated[float, Field(gt=0, le=CEILING)]
"""A weight, length or factor above 0."""
NonNegative = Annotated[float, Field(ge=0, le=CEILING)]
"""Likewise, where 0 means that it is not there."""
Factor = Annotated[float, Field(ge=1, le=CEILING)]
"""What something is multiplied or divided by, never to grow or shrink the other way."""
AnyNumber = Annotated[float, Field(ge=-CEILING, le=CEILING)]
"""A number that may lie on either side of 0."""
Level = Annotated[float, Field(gt=0, le=255)]
"""A change of pixels in levels of 0..255."""
Pixel = Annotated[float, Field(ge=0, le=255)]
"""Likewise, where 0 means none."""
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]
"""Share of a label spread over the other classes; the label keeps the larger part."""
LearningRate = Annotated[float, Field(ge=0, le=1000)]
"""A learning rate; 0 leaves the weights where they are."""
Stride = Annotated[float, Field(gt=0, le=1000)]
"""The learning rate of what must be learned, or the length of a step."""
Some = Annotated[tuple[T, ...], Field(min_length=1)]
"""A list of one item or more: `Some[Count]`."""


def names(cls: type) -> list[str]:
    """Return the options of a dataclass: its fields, less those an axis sets and `idle` ones."""
    own = [f for f in dataclasses.fields(cls) if f.init and not f.metadata.get("axis")]
    return [f.name for f in own if f.name not in _idle(cls)]


def _idle(cls: type) -> Collection[str]:
    """The fields that a class inherits and makes no use of, as it declares."""
    found: Collection[str] = getattr(cls, "idle", ())
    return found


def construct(cls: type[T], options: Mapping[str, Any], what: str, **axes: Any) -> T:
    """Build `cls` from the options of a sweep file.

    Args:
        cls: A dataclass whose fields are its options.
        options: Option name -> value as YAML gives it.
        what: Whose options these are, for the error ("anp", "recipe").
        axes: Fields the sweep's axes set.

    Raises:
        SweepError: An option does not exist, has the wrong type or an impossible value.
    """
    known = names(cls)
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
    values: dict[str, Any] = dict(axes)
    problems = []
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # T is one
    current = {_key(item): item.name for item in fields}
    for given, value in options.items():
        name = current.get(given, given)
        if name in _idle(cls):
            if value != cls.__dataclass_fields__[name].default:  # type: ignore[attr-defined]
                problems.append(f"{what}: {name}: has no effect here: leave it out")
            continue
        if name not in known:
            problems.append(f"{what}: {unknown('option', name, known)}")
            continue
        if given != name and name in options:
            problems.append(f"{what}: {given} is the former name of {name}: remove one")
            continue
        try:
            values[name] = _convert(hints[name], value)
        except (TypeError, ValidationError) as error:
            problems.append(f"{what}: {name}: {_lacking(error, hints[name], value)}")
    if problems:
        raise SweepError("\n".join(problems))
    try:
        return cls(**values)
    except SweepError as error:
        raise SweepError(f"{what}: {_with_values(str(error), options)}") from None


def _with_values(message: str, options: Mapping[str, Any]) -> str:
    """Add to a method's sentence about its options what was asked of those it names."""
    values = []
    for name, value in options.items():
        forms = [f"{name}: {value}", f"{name} {value}"]
        forms += [value] if isinstance(value, str) else []
        if re.search(rf"\b{re.escape(name)}\b", message) and not any(s in message for s in forms):
            values.append(f"{name}: {value}")
    return f"{message} (here {', '.join(values)})" if values else message


_hints = functools.lru_cache(maxsize=256)(functools.partial(get_type_hints, include_extras=True))


def _convert(hint: Any, value: Any) -> Any:
    """Return `value` as the type `hint`; text such as 1e-3, which YAML takes for text, counts."""
    if bool not in (hint, *get_args(hint)) and _holds_truth(value):
        raise TypeError("a truth value is not a number")
    return _adapter(hint).validate_python(value)


def _holds_truth(value: Any) -> bool:
    """Whether a value, or an item of it, is a truth value, which pydantic takes for a number."""
    return isinstance(value, bool) or (
        isinstance(value, list | tuple) and any(map(_holds_truth, value))
    )


def _lacking(error: Exception, hint: Any, value: Any) -> str:
    """Say what an option needs: the end of its range that a number passes, or else its type."""
    for item in error.errors() if isinstance(error, ValidationError) else ():
        if item["type"] in _ENDS or (item["type"] == "too_short" and not value):
            whole = "a whole number" if "whole" in spelled(hint) else "a number"
            return wording(item).replace("a number", whole)
    return percent(value) or f"needs {spelled(hint)}, not {value!r}"


def percent(value: Any) -> str:
    """Return what to write for a share in percent, which YAML takes for text; else empty."""
    found = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    return f"{value!r} is text here: write {float(found[1]) / 100:g}" if found else ""


_PERCENT = re.compile(r"(\d+\.?\d*)\s*%")


def misfit(value: Any, hint: Any) -> str:
    """Why a value of a sweep file cannot stand, unconverted, for a type; empty where it can."""
    try:
        _adapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        return _lacking(error, hint, value)
    return ""


@functools.lru_cache(maxsize=256)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def spelled(hint: Any) -> str:
    """Return a type in the words of a message: `a whole number or null`."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return spelled(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join(spelled(part) for part in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (tuple, list):
        items = dict.fromkeys(spelled(part) for part in inner if part is not ...)
        several = [_PLURAL.sub(r"\1s", item.removeprefix("a ")) for item in items]
        return f"a list of {' and '.join(several)}"
    return "null" if hint is types.NoneType else words.get(hint, "a mapping")


def span(hint: Any) -> str:
    """Return a type and its range in words: `a number above 0 and at most 1, or 'auto'`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return ", or ".join(span(part) for part in inner)
    if origin in (tuple, list):
        return spelled(hint) + next((f", each {ends}" for ends in map(_ends, inner) if ends), "")
    ends, text = _ends(hint), span(inner[0]) if origin is Annotated else spelled(hint)
    return f"{text} {ends}" if ends else text


def _ends(hint: Any) -> str:
    """The ends of a type's range in words; empty where it has none but `CEILING`."""
    found: dict[str, Any] = {}
    for item in hint.__metadata__ if get_origin(hint) is Annotated else ():
        for end in item.metadata:
            found |= {name: getattr(end, name) for name in _SPAN if hasattr(end, name)}
    ends = {name: value for name, value in found.items() if abs(value) < CEILING}
    if {"ge", "le"} <= set(ends):
        return f"from {ends['ge']:g} to {ends['le']:g}"
    return " and ".join(word.format(ends[name]) for name, word in _SPAN.items() if name in ends)


_SPAN = {
    "ge": "of at least {:g}",
    "gt": "above {:g}",
    "le": "at most {:g}",
    "lt": "below {:g}",
    "min_length": "of {} or more",
}
"""Ends of a range, as annotations call them, in words."""


@functools.cache
def sentences(cls: type) -> dict[str, str]:
    """Return what the strings below the fields of a dataclass, and of those it derives from, say.

    A field whose class has no source at hand is not among them.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            (top,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError):
            continue
        body = top.body if isinstance(top, ast.ClassDef) else []
        for node, after in itertools.pairwise(body):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(node, ast.AnnAssign) and isinstance(text, ast.Constant):
                found[ast.unparse(node.target)] = " ".join(str(text.value).split())
    return found


def ranges(cls: type) -> dict[str, str]:
    """Return the options of a dataclass with their types and ranges in words."""
    hints = _hints(cls)
    return {name: span(hints[name]) for name in names(cls)}


_PLURAL = re.compile(r"^((?:whole )?number|list)\b")
"""The noun of `a whole number` and `a list of numbers`."""
_WORDS = {
    "missing": "is missing",
    "too_short": "needs at least one value",
    "list_type": "needs a list, such as [a, b], not {input!r}",
    "string_type": "needs text, not {input!r}",
    "int_type": "needs a whole number, not {input!r}",
    "int_parsing": "needs a whole number, not {input!r}",
    "int_from_float": "needs a whole number, not {input!r}",
    "float_type": "needs a number, not {input!r}",
    "float_parsing": "needs a number, not {input!r}",
    "finite_number": "needs a finite number, not {input!r}",
    "greater_than": "needs a number above {gt}, not {input!r}",
    "greater_than_equal": "needs a number of at least {ge}, not {input!r}",
    "less_than_equal": "needs a number of at most {le}, not {input!r}",
    "less_than": "needs a number below {lt}, not {input!r}",
    "model_type": "needs a mapping, such as {{cpus: 1}}, not {input!r}",
    "value_error": "{error}",
}
"""Kind of pydantic's errors -> the words of ours."""
_ENDS = ("greater_than", "greater_than_equal", "less_than_equal", "less_than")
"""Kinds that say which end of a range is passed."""


def wording(item: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors, as `ValidationError.errors()` gives it, in our words."""
    if said := percent(item.get("input")):
        return said
    words = _WORDS.get(item["type"], str(item["msg"]))
    context = item.get("ctx", {}).items()
    shown = {name: f"{it:g}" if isinstance(it, float) else it for name, it in context}
    return words.format(input=item.get("input"), **shown)


def placed(owner: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as given, their paths absolute: a cell may run in another folder.

    Args:
        owner: The dataclass they are of, or an instance.
        given: Option name -> value as the sweep file has it.
    """
    paths = {item.name for item in dataclasses.fields(owner) if item.metadata.get("path")}
    return {
        name: str(Path(value).expanduser().absolute()) if name in paths and value else value
        for name, value in given.items()
    }


def _key(item: dataclasses.Field[Any]) -> str:
    """What keys call an option: its name, or the one it had when the first keys were made."""
    key: str = item.metadata.get("key", item.name)
    return key


def canonical(instance: Any) -> dict[str, Any]:
    """Return the options of `instance` after defaults, as JSON values.

    Axes stand in the cell on their own; a path is replaced by the hash of its file (`content`). An
    option `added` after the first keys were made stands in none at its default, so that it makes
    nothing anew.
    """
    values = {}
    for item in dataclasses.fields(instance):
        if not (item.metadata.get("axis") or item.metadata.get("path")):
            value = getattr(instance, item.name)
            if item.metadata.get("added") and value == item.default:
                continue
            values[_key(item)] = list(value) if isinstance(value, tuple) else value
    content: dict[str, str] = instance.content() if hasattr(instance, "content") else {}
    return {**values, **content}
