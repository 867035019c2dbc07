"""The matrix of a sweep as its file stands, and the rows of it a store has.

The last `sweeper run` left its matrix in the store. It stands where the file, with what --set
changes of it, still says the same; else the sweep is planned anew. Only that waits for torch, and
only rows wait for pandas.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.core.errors import SweepError
from sweeper.plan import source, view
from sweeper.plan.source import NAME, Source
from sweeper.plan.view import View
from sweeper.store import rowfiles
from sweeper.store.ledger import Ledger

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from sweeper.plan.matrix import Plan
    from sweeper.plan.sweep import Sweep

_ASIDE = {"name", "resources", "timeout", "table"}
"""The keys of a sweep file that change no cell."""


@dataclass(frozen=True)
class Present:
    """The present matrix of a sweep and its rows."""

    name: str
    """The sweep's."""
    layout: View
    """Its `table:` section."""
    outline: Mapping[str, Any]
    """Its matrix, as `outline` says it."""
    changed: bool
    """Whether that is not the one of the last run."""
    rows: Callable[[], pd.DataFrame]
    """Reads its rows."""

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """The rows there are, from `results.frame`, under the labels of the file."""
        return self.rows()

    @property
    def unrun(self) -> int:
        """Cells that apply and have no row, where the matrix is not the one of the last run."""
        known = {*self.frame["key"], *self.outline.get("inapplicable", ())} if self.changed else ()
        return len(set(self.outline["cells"]) - set(known)) if self.changed else 0

    @property
    def order(self) -> dict[str, list[str]]:
        """Axis -> labels in the order of the file."""
        return dict(self.outline.get("order", {}))

    @property
    def whole(self) -> pd.DataFrame:
        """The rows, and one of status `missing` for each cell that was not run yet."""
        from sweeper.tables import results

        return results.completed(self.frame, self.name, self.outline)

    def where(self, conditions: Mapping[str, Sequence[str]]) -> Present:
        """The part of it whose rows `results.select` takes, cells that were not run among them.

        Raises:
            SweepError: See `results.select`.
        """
        if not conditions:
            return self
        from sweeper.tables import results

        chosen = results.select(self.whole, **conditions)
        cells = self.outline["cells"]
        part = {key: cells[key] for key in chosen["key"] if key in cells}
        kept = self.frame[self.frame["key"].isin(set(chosen["key"]))].reset_index(drop=True)
        only = {**self.outline, "cells": part, "above": {}}
        return replace(self, outline=only, rows=lambda: kept)


def read(
    sweep_file: str, store: str, overrides: Sequence[str] = (), data: str | None = None
) -> Present:
    """Read the present matrix of a sweep.

    Args:
        sweep_file: A file, a shipped sweep, or a sweep of which only the store has the text.
        store: Where its rows are.
        overrides: `key=value` each, as after --set.
        data: Folder of the data sets; looked at only where the matrix is planned anew.

    Raises:
        SweepError: The sweep has not been run into this store, its file has mistakes, or it changed
            and its data are not known.
    """
    ledger = Ledger(store)
    file = _file(sweep_file, ledger)
    name = source.name_in(file)
    before = _stored(ledger, name)
    if before and before.values == file.values and not overrides:
        return _present(ledger, name, view.of(file), ledger.plan(name), changed=False)
    from sweeper.plan import spec

    stated = spec.form(file, overrides) or spec.loaded(file, overrides)
    return of(stated, ledger, data, lambda: spec.loaded(file, overrides))


def of(
    stated: Sweep, ledger: Ledger, data: str | None, checked: Callable[[], Sweep] | None = None
) -> Present:
    """Return the present matrix of a sweep; see `read`.

    Args:
        stated: The sweep, of which no more than the form need be right.
        ledger: The store.
        data: Folder of the data sets.
        checked: Returns the sweep validated, or raises its mistakes; default: it is.
    """
    from sweeper.plan import spec

    kept = ledger.plan(stated.name)
    stored = _stored(ledger, stated.name)
    before = spec.form(stored) if stored else None
    if before is None or _cells(before) == _cells(stated):
        return _present(ledger, stated.name, stated.table, kept, changed=False)
    now = _planned(checked() if checked else stated, before, kept, data)
    return _present(ledger, stated.name, stated.table, now, changed=True)


def outline(plan: Plan) -> dict[str, Any]:
    """What tables, reports and `sweeper status` must know of a matrix, as JSON values.

    Returns:
        order: axis -> labels; cells: key -> axes of the rows; inapplicable: which of them cannot be
        run; above: key -> kind of the others; data: label -> digest; facts: label -> `Facts`.
    """
    every = [*plan.cells.values(), *plan.inapplicable]
    return {
        "order": {
            axis: [entry.label for entry in getattr(plan.sweep, f"{axis}s")]
            for axis in ("dataset", "model", "attack", "defense")
        },
        "cells": {c.key: dict(c.axes) for c in every if c.kind == "defend"},
        "inapplicable": [cell.key for cell in plan.inapplicable],
        "data": {c.axes["dataset"]: c.params["data"] for c in every if c.kind == "train"},
        "facts": {label: asdict(fact) for label, fact in plan.facts.items()},
        "above": {c.key: c.kind for c in every if c.kind != "defend"},
    }


def _file(sweep_file: str, ledger: Ledger) -> Source:
    """The sweep file, or what the store has of one that is gone."""
    gone = not Path(sweep_file).is_file() and sweep_file not in source.shipped()
    text = ledger.sweep_text(sweep_file) if gone and NAME.fullmatch(sweep_file) else ""
    return source.of(text, sweep_file) if text else source.read(sweep_file)


def _stored(ledger: Ledger, name: str) -> Source | None:
    """The sweep as it was last run; None where the store does not say."""
    text = ledger.sweep_text(name)
    return source.of(text, f"sweeps/{name}/sweep.yaml") if text else None


def _cells(sweep: Sweep) -> dict[str, Any]:
    """What decides which cells a sweep has."""
    return sweep.model_dump(exclude=_ASIDE)


def _planned(
    sweep: Sweep, before: Sweep, kept: Mapping[str, Any], data: str | None
) -> dict[str, Any]:
    """The matrix anew; of data sets that are as before, what the last run knew of them counts.

    Raises:
        SweepError: A data set is not here, and older code did not keep what it knew of it.
    """
    from sweeper.core.types import Facts
    from sweeper.plan import known, matrix

    same = [entry.label for entry in sweep.datasets if entry in before.datasets]
    facts = {
        label: Facts(**{**fact, **{key: tuple(fact[key]) for key in ("shape", "class_counts")}})
        for label, fact in kept.get("facts", {}).items()
        if label in same and sweep.reserve == before.reserve and fact["digest"]
    }
    root = Path(data).expanduser().absolute() if data else None
    plan = matrix.expand(sweep, known.each(sweep, root, None, need_data=False, kept=facts))
    if lost := [label for label in plan.unresolved if label in kept.get("data", {})]:
        raise SweepError(
            f"{sweep.name}: its file is not what was last run, and data set {lost[0]} is not on "
            "this machine: which of its cells were run is not known; name its folder with --data"
        )
    return outline(plan)


def _present(
    ledger: Ledger, name: str, layout: View, matrix: Mapping[str, Any], *, changed: bool
) -> Present:
    return Present(name, layout, matrix, changed, lambda: _rows(ledger, name, matrix, changed))


def _rows(ledger: Ledger, name: str, matrix: Mapping[str, Any], changed: bool) -> pd.DataFrame:
    """The rows of a matrix; of one that was never run, those of other sweeps of the store too."""
    from sweeper.tables import results

    cells = matrix["cells"]
    tables = _among(ledger, name, set(cells))
    found = {key for table in tables for key in table["key"].to_pylist()}
    others = ledger.sweeps() if changed and len(found) < len(cells) else []
    for other in others:
        if other != name and NAME.fullmatch(other):
            tables += _among(ledger, other, set(cells) - found)
    return results.declared(results.frame(tables), name, cells)


def _among(ledger: Ledger, name: str, keys: set[str]) -> list[pa.Table]:
    """The rows of a sweep that are of these cells."""
    return [rowfiles.among(table, keys) for table in ledger.tables(name)]
