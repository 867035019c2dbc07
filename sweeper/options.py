"""Options <-> frozen dataclasses: built with checked names and types, written back canonically."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from sweeper.errors import SweepError, unknown

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
    hints = get_type_hints(cls)
    values: dict[str, Any] = dict(axes)
    for name, value in options.items():
        if name not in known:
            raise SweepError(f"{what}: {unknown('option', name, known)}")
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise SweepError(f"{what}: {name}: {error.errors()[0]['msg']}, got {value!r}") from None
    try:
        return cls(**values)
    except SweepError as error:
        raise SweepError(f"{what}: {error}") from None


def canonical(instance: Any) -> dict[str, Any]:
    """Return the options of `instance` after defaults, as JSON values.

    Axes stand in the cell on their own; a path is replaced by the hash of its file (`content`).
    """
    found = {}
    for item in dataclasses.fields(instance):
        if not (item.metadata.get("axis") or item.metadata.get("path")):
            value = getattr(instance, item.name)
            found[item.name] = list(value) if isinstance(value, tuple) else value
    content: dict[str, str] = instance.content() if hasattr(instance, "content") else {}
    return {**found, **content}
