"""Methods by name: found by file name, entry point or `module:Class`, built from their options."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any

from sweeper.core import names as method_names
from sweeper.core import options, search, text
from sweeper.core.errors import SweepError, unknown

names = method_names.names
ANY = "any"
"""In the `tasks` of a method: it is made for every task."""
_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_BESIDE: list[str] = []


def look_in(folder: str) -> None:
    """Say where `module:Class` may lie, beside what Python finds.

    By default that is where methods were sent to, else the folder the process runs in.

    Args:
        folder: For a process that runs elsewhere than the sweep was started.
    """
    _BESIDE[:] = text.STARTED_IN[:] = [folder]


def contract_of(kind: str) -> type:
    """Return the contract the files of a kind keep: `Attack` of `attacks/base.py`, and so on."""
    contract: type = getattr(importlib.import_module(f"{kind}s.base"), kind.capitalize())
    return contract


@functools.cache
def method(kind: str, name: str) -> type[Any]:
    """Return the class of a method.

    Args:
        kind: attack | defense.
        name: A name of `names`, or `module:Class` of an importable module.

    Raises:
        SweepError: No such method, or its file does not keep the contract.
    """
    contract = contract_of(kind)
    if _DOTTED.fullmatch(name):
        (folder,) = _BESIDE or [search.sent() or os.getcwd()]
        if folder not in sys.path:
            sys.path.append(folder)  # last, to shadow nothing
        return _dotted(name, contract)
    if name not in names(kind):
        raise SweepError(unknown(kind, name, names(kind)))
    for point in method_names.points(kind):
        if point.name == name:
            return _dotted(point.value, contract)
    module = importlib.import_module(f"{kind}s.{name.replace('-', '_')}")
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, contract)
        if value.__module__ == module.__name__ and not inspect.isabstract(value)
    ]
    if len(classes) != 1:
        raise SweepError(
            f"{module.__file__} must define exactly one {contract.__name__}, it defines "
            f"{len(classes)}: move the others to files of their own, or write the one it lacks"
        )
    return classes[0]


def _dotted(name: str, contract: type) -> type[Any]:
    from sweeper.core import switches  # waits for torch; names alone must not

    path, _, attribute = name.partition(":")
    try:
        with switches.kept(but=switches.PATHS):
            cls = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise SweepError(
            f"cannot import {name} ({error}): correct it, go to the folder of its file, or put "
            "that into PYTHONPATH"
        ) from None
    if not (inspect.isclass(cls) and issubclass(cls, contract)):
        base = f"{contract.__module__}.{contract.__name__}"
        raise SweepError(f"{name} is not a subclass of {base}: derive it, or name a class that is")
    if inspect.isabstract(cls):
        raise SweepError(f"{name} is abstract: name a class that can be built")
    return cls


def make(kind: str, name: str, values: Mapping[str, Any], **axes: Any) -> Any:
    """Build a method from the options of a sweep file; `preset` names a source's variant.

    Raises:
        SweepError: Unknown method, preset or option, or an impossible value.
    """
    cls = method(kind, name)
    values = dict(values)
    preset = values.pop("preset", None)
    if preset is not None:
        if preset not in cls.presets:
            raise SweepError(f"{name}: {unknown('preset', preset, cls.presets)}")
        values = {**cls.presets[preset], **values}
    return options.construct(cls, values, name, **axes)


def classes(built: Any) -> tuple[type, ...]:
    """Return the classes whose code a method runs: its own, and of methods its options name."""
    found = [type(built)]
    for value in vars(built).values():
        if isinstance(value, Mapping):
            found += [method(kind, value[kind]) for kind in method_names.KINDS if kind in value]
    return tuple(found)


def ships(built: Any) -> bool:
    """Whether all code a method runs lies in `attacks/` and `defenses/`, not in other packages."""
    ours = {f"{kind}s" for kind in method_names.KINDS}
    return all(cls.__module__.partition(".")[0] in ours for cls in classes(built))


def ready(kind: str, tasks: Collection[str] = ("image",)) -> list[str]:
    """Return the names of the methods made for one of `tasks` that need no option."""

    def fits(name: str) -> bool:
        cls = method(kind, name)
        made = not cls.tasks.isdisjoint({*tasks, ANY})
        return made and not any(f.metadata.get("required") for f in dataclasses.fields(cls))

    return [name for name in names(kind) if fits(name)]


def describe(kind: str) -> list[dict[str, Any]]:
    """Return one record per method: what `sweeper list` prints."""
    return [record(kind, name) for name in names(kind)]


def record(kind: str, name: str) -> dict[str, Any]:
    """Return what there is to list of a method: title, paper, what it sees or controls, options.

    Raises:
        SweepError: No such method.
    """
    cls = method(kind, name)
    found: dict[str, Any] = {"name": name, "title": cls.title, "paper": cls.paper}
    found["tasks"] = sorted(cls.tasks)
    if kind == "attack":
        sample = make("attack", name, {})
        bases = {"rate_base": sample.base if sample.rated else "none"}
        found |= {"rules": list(cls.rules), "controls": cls.controls, **bases}
    else:
        found |= {"kind": cls.kind, "sees": sorted(cls.sees), "requires": sorted(cls.requires)}
        found |= {"rules": list(cls.rules), "light": cls.light}
    fields = [f for f in dataclasses.fields(cls) if f.name in options.names(cls)]
    found["options"] = {f.name: f.default for f in fields}
    if kind == "attack":
        found["options"]["rule"] = cls.rules[0]
    return {**found, "presets": sorted(cls.presets)}
