"""Looks into a model a table cannot give: one file an analysis, found by its file name.

An analysis knows what no defense may - roles, triggers, the test set - and changes nothing: it
leaves a picture and its numbers.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from sweeper.analyses.base import Analysis
from sweeper.core import options
from sweeper.core.errors import SweepError, unknown


def names() -> list[str]:
    """Return the names of all analyses, without importing them."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(n.replace("_", "-") for n in modules if not n.startswith("_") and n != "base")


def analysis(name: str) -> type[Analysis]:
    """Return the class of an analysis.

    Raises:
        SweepError: There is none of that name.
    """
    if name not in names():
        raise SweepError(unknown("analysis", name, names()))
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    (analysis_class,) = (
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Analysis)
        if value.__module__ == module.__name__
    )
    return analysis_class


def make(name: str, settings: Mapping[str, Any]) -> Analysis:
    """Build an analysis from its options.

    Raises:
        SweepError: Unknown analysis or option, or an impossible value.
    """
    return options.construct(analysis(name), settings, name)
