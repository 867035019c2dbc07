"""Options <-> frozen dataclasses: built with checked names and types, written back canonically."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sweeper.core.errors import SweepError, unknown

T = TypeVar("T")


def names(cls: type) -> list[str]:
    """Return the options of a dataclass: its fields, less those an axis of the sweep sets."""
    return [f.name for f in dataclasses.fields(cls) if f.init and not f.metadata.get("axis")]


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
        if name not in known:
            problems.append(f"{what}: {unknown('option', name, known)}")
            continue
        if given != name and name in options:
            problems.append(f"{what}: {given} is the former name of {name}: remove one")
            continue
        try:
            values[name] = _convert(hints[name], value)
        except (TypeError, ValidationError):
            problems.append(f"{what}: {name}: needs {spelled(hints[name])}, not {value!r}")
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


_hints = functools.lru_cache(maxsize=256)(get_type_hints)


def _convert(hint: Any, value: Any) -> Any:
    """Return `value` as the type `hint`; text such as 1e-3, which YAML takes for text, counts."""
    if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
        raise TypeError("a truth value is not a number")
    return _adapter(hint).validate_python(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of a sweep file may stand, unconverted, for a field of type `hint`."""
    try:
        _adapter(hint).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def spelled(hint: Any) -> str:
    """Return a type in the words of a message: `a whole number or null`."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(spelled(part) for part in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (tuple, list):
        items = dict.fromkeys(spelled(part) for part in inner if part is not ...)
        several = [f"{item.removeprefix('a ').removesuffix('number')}numbers" for item in items]
        return f"a list of {' and '.join(several) if 'number' in ''.join(items) else 'text'}"
    return "null" if hint is types.NoneType else words.get(hint, "a mapping")


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
    "greater_than": "needs a number above {gt:g}, not {input!r}",
    "greater_than_equal": "needs a number of at least {ge:g}, not {input!r}",
    "less_than_equal": "needs a number of at most {le}, not {input!r}",
    "less_than": "needs a number below {lt:g}, not {input!r}",
    "model_type": "needs a mapping, such as {{cpus: 1}}, not {input!r}",
    "value_error": "{error}",
}
"""Kind of pydantic's errors -> the words of ours."""


def wording(item: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors, as `ValidationError.errors()` gives it, in our words."""
    words = _WORDS.get(item["type"], str(item["msg"]))
    return words.format(input=item.get("input"), **item.get("ctx", {}))


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
