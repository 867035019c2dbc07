"""A sweep that is ready to run: its plan, less what the store holds."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sweeper.core import rows
from sweeper.core.types import Cell
from sweeper.engine import portable
from sweeper.plan import matrix
from sweeper.plan.sweep import Shape, Sweep
from sweeper.run import fresh
from sweeper.run.material import Context
from sweeper.store.artifacts import Store


@dataclass
class Job:
    """A sweep ready to run: its plan less what is done."""

    plan: matrix.Plan
    """The expanded sweep."""
    store: Store
    """Where victims and rows are kept."""
    context: Context
    """Where the cells run, and under what those that train do."""
    done: set[str]
    """Keys of cells the store has, defense cells with a finished row of this sweep."""
    adopted: set[str] = field(default_factory=set)
    """Defense cells another sweep of the store has already run."""
    hidden: int = 0
    """Finished rows of this sweep whose cells the plan does not have: no table shows them now."""

    @property
    def todo(self) -> list[str]:
        """Keys to run: unfinished defense cells and the ancestors they lack."""
        had, needed, keys = self.done | self.adopted, set[str](), list[str]()
        for key, cell in reversed([*self.plan.cells.items()]):  # children before parents
            if (cell.kind == "defend" or key in needed) and key not in had:
                keys.append(key)
                needed.update(cell.parents)
        return keys[::-1]

    def context_of(self, cell: Cell) -> Context:
        """Under what a cell runs: the job's context, with threads and device of its own shape."""
        resources = self.plan.sweep.resources
        shape = resources.of(matrix.shape_of(cell))
        if shape == resources.of("train"):
            return self.context
        threads, gpus, device = shape.cpus, shape.gpus, shape.device
        context = replace(self.context, threads=threads, gpus=gpus, device=device)
        return carried(context, self.plan.sweep)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The distinct shapes of the cells to run."""
        names = dict.fromkeys(matrix.shape_of(self.plan.cells[key]) for key in self.todo)
        return tuple(dict.fromkeys(map(self.plan.sweep.resources.of, names)))

    def _defended(self) -> list[Cell]:
        """The cells that have a row, those that do not apply among them."""
        every = (*self.plan.cells.values(), *self.plan.inapplicable)
        return [cell for cell in every if cell.kind == "defend"]

    @property
    def row_count(self) -> int:
        """How many rows the sweep has once it is done."""
        return len(self._defended())

    def unfinished(self) -> dict[str, int]:
        """The rows that are not finished now, whoever left them so: state, or missing -> count."""
        statuses = self.store.statuses(self.plan.sweep.name)
        states = Counter(statuses.get(cell.key, "missing") for cell in self._defended())
        return {state: states[state] for state in sorted(states.keys() - set(rows.FINISHED))}

    @functools.cached_property
    def other_code(self) -> list[dict[str, Any]]:
        """What is done by other code than today's; see `fresh.other_code`."""
        return fresh.other_code(self.plan, self.store, self.done)

    def resume(self) -> None:
        """End what an interrupted `again` began."""
        fresh.resume(self.plan, self.store, self.context.run)

    def again(self, names: Sequence[str]) -> str:
        """Have cells run again that are done, with all below them; say what that is.

        Args:
            names: See `fresh.chosen`.

        Raises:
            SweepError: One names nothing, or another driver runs a sweep that has such a cell.
        """
        keys = fresh.chosen(self.plan, self.store, self.done, names)
        if not keys:
            return "--fresh: no other engine has done any of these cells, none is run again"
        moved, others = fresh.replace(self.plan, self.store, self.context.run, keys)
        for group in moved.values():
            self.done -= set(group)
            self.adopted -= set(group)
        return fresh.spoken(moved, others, self.context.run)

    def summary(self) -> dict[str, Any]:
        """What `sweeper plan --json` prints."""
        todo = self.todo
        return {
            "sweep": self.plan.sweep.name,
            "cells": self.plan.counts(),
            "total": len(self.plan.cells),
            "done": len(self.done | self.adopted),
            "to_run": len(todo),
            "to_run_by_kind": dict(Counter(self.plan.cells[key].kind for key in todo)),
            "trainings_saved": self.plan.trainings_saved(),
            "why_not": self._why_not(),
            "unresolved": list(self.plan.unresolved),
            "other_code": self.other_code,
        }

    def _why_not(self) -> list[dict[str, Any]]:
        """What does not apply, by its cause: how many cells, of which attacks if not of all."""
        groups: dict[str, list[Cell]] = defaultdict(list)
        for cell in self.plan.inapplicable:
            groups[cell.reason].append(cell)
        causes = []
        for reason, group in groups.items():
            item: dict[str, Any] = {"cells": len(group), "reason": reason}
            for axis in (f"{name}s" for name in WHO):
                labels = list(dict.fromkeys(cell.axes[axis[:-1]] for cell in group))
                if len(labels) < len(getattr(self.plan.sweep, axis)):
                    item[axis] = labels
            causes.append(item)
        return sorted(causes, key=lambda item: -item["cells"])


WHO = ("attack", "defense", "dataset", "model")
"""The axes that say what does not fit together."""


def carried(context: Context, sweep: Sweep) -> Context:
    """The context with what `precision: portable` makes of it: one thread, on a CPU."""
    asked = portable.asked(sweep.recipe, context.device)
    return replace(context, portable=asked, threads=1 if asked else context.threads)
