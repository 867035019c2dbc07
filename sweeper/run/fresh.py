"""Numbers that come from other code than today's, and cells that are run again: `--fresh`."""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sweeper import models
from sweeper.core import advice, rows
from sweeper.core.errors import SweepError, one_key, unknown
from sweeper.core.types import Cell
from sweeper.plan.matrix import KINDS, Plan
from sweeper.run import record
from sweeper.store.artifacts import DamagedError, Store
from sweeper.store.claim import claimed
from sweeper.store.fresh import ABOVE, Cells

SINGLE = 500
"""How many rows are looked at that are not compacted, as after a driver was killed: 0.8 ms each."""
_DIGITS = re.compile(r"[0-9a-f]{1,20}")


def other_code(plan: Plan, store: Store, done: Collection[str]) -> list[dict[str, Any]]:
    """What the finished rows of a plan come from that is not the code of now.

    Rows that do not say (of older code) are not counted.

    Returns:
        name, kind (attack | defense | engine), cells: of an attack victims, else rows.
    """
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    today, asked = _Today(plan), set()
    for cell, said in _said(plan, store, done):
        victim = plan.cells[cell.params["victim"]]
        asked.add(victim.key)
        now = today.row(cell, victim)
        if said.get("defense") not in (None, now["defense"]):
            found[cell.params["defense"]["name"], "defense"].add(cell.key)
        if said.get("attack") not in (None, now["attack"]):
            found[victim.params["attack"]["name"], "attack"].add(victim.key)
        if {said.get("engine"), said.get("victim_engine")} - {None, now["engine"]}:
            found["engine", "engine"].add(cell.key)
    for victim in plan.cells.values():  # of those without a row only the manifest tells
        if victim.kind == "train" and victim.key in done and victim.key not in asked:
            said = _manifest(store, victim)
            if said.get("attack") not in (None, today.victim(victim)["attack"]):
                found[victim.params["attack"]["name"], "attack"].add(victim.key)
    return [{"name": n, "kind": k, "cells": len(keys)} for (n, k), keys in sorted(found.items())]


def sentence(item: dict[str, Any], where: dict[str, Any] | None = None) -> str:
    """One entry of `other_code` for people.

    Args:
        item: The entry.
        where: Store and data folder, as `advice.command` has them.
    """
    name, count = item["name"], item["cells"]
    what = "victim" if item["kind"] == "attack" else "row"
    of = "the engine" if item["kind"] == "engine" else f"{name} under the same version"
    said = f"{what}s come" if count > 1 else f"{what} comes"
    them = "them" if count > 1 else "it"
    does = f"trains {them} again, and runs all below" if what == "victim" else f"runs {them} again"
    again = advice.command("run", where=where, fresh=[name])
    return f"{count} {said} from other code of {of}: {again} {does}"


def chosen(plan: Plan, store: Store, done: Collection[str], names: Sequence[str]) -> set[str]:
    """The cells of a plan that `--fresh` names, those below them aside.

    Args:
        plan: The expanded sweep.
        store: Whose rows say by what engine they were made.
        done: Keys of what the store has.
        names: Each an attack or defense (label or name), `engine`, `all`, or the first digits of a
            key.

    Raises:
        SweepError: One names nothing.
    """
    known = {"all", "engine"}
    for entry in (*plan.sweep.attacks, *plan.sweep.defenses):
        known |= {entry.name, entry.label}
    keys: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        if name == "all":
            keys |= set(plan.cells)
        elif name == "engine":
            keys |= _by_another_engine(plan, store, done)
        elif name in known:
            keys |= _named(plan, name)
        elif _DIGITS.fullmatch(name):
            keys.add(one_key(plan.cells, name, f"cells of {plan.sweep.name}"))
        else:
            raise SweepError(f"--fresh: {unknown('attack, defense or key', name, known)}")
    return keys


def _named(plan: Plan, name: str) -> set[str]:
    """Of an attack its victims and what they are prepared from; of a defense its cells and stages.

    A victim an attack's trigger is prepared on belongs to no attack but `none`.
    """
    labels = {
        axis: {e.label for e in getattr(plan.sweep, f"{axis}s") if name in (e.name, e.label)}
        for axis in ("attack", "defense")
    }
    keys: set[str] = set()
    for cell in plan.cells.values():
        if cell.kind == "defend" and cell.axes["defense"] in labels["defense"]:
            keys |= {cell.key, *(cell.parents[1:])}
        if cell.kind == "defend" and cell.axes["attack"] in labels["attack"]:
            keys |= {cell.params["victim"], *plan.cells[cell.params["victim"]].parents}
    return keys


def _by_another_engine(plan: Plan, store: Store, done: Collection[str]) -> set[str]:
    today, keys = _Today(plan), set()
    for cell, said in _said(plan, store, done):
        victim = plan.cells[cell.params["victim"]]
        if said.get("engine") not in (None, today.victim(victim)["engine"]):
            keys.add(cell.key)
    for cell in plan.cells.values():
        if cell.kind != "defend" and cell.key in done:
            victim = plan.cells[cell.params["victim"]] if cell.kind == "stage" else cell
            engine = _manifest(store, cell).get("engine")
            if engine not in (None, today.victim(victim)["engine"]):
                keys.add(cell.key)
    return keys


def _manifest(store: Store, cell: Cell) -> dict[str, Any]:
    """The hashes of the code a cell above the defenses was made by; empty where it does not say."""
    try:
        return dict(store.meta(cell.kind, cell.key).get("code", {}))
    except DamagedError:
        return {}


class _Today:
    """The hashes of the code of now, each made once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._rows: dict[tuple[str, ...], dict[str, Any]] = {}
        self._victims: dict[tuple[str, ...], dict[str, str]] = {}

    def row(self, cell: Cell, victim: Cell) -> dict[str, Any]:
        """What the row of a defense cell would say if it ran now, on a victim trained now."""
        labels = (cell.axes["defense"], victim.axes["attack"], victim.axes["model"])
        if labels not in self._rows:
            defense, family = record.defense_of(cell), self._family(victim)
            self._rows[labels] = json.loads(record.ran(defense, family, self.victim(victim)))
        return self._rows[labels]

    def victim(self, cell: Cell) -> dict[str, str]:
        """What the manifest of a cell above the defenses would say."""
        labels = (cell.axes["attack"], cell.axes["model"])
        if labels not in self._victims:
            attack = record.attack_of(cell)
            self._victims[labels] = record.trained_by(attack, self._family(cell))
        return self._victims[labels]

    @staticmethod
    def _family(victim: Cell) -> type:
        local = dict(victim.local["model"])
        return type(models.family(local.pop("model"), local))


def _said(plan: Plan, store: Store, done: Collection[str]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """The finished rows of a plan with what each says of its code."""
    parsed: dict[str, dict[str, Any]] = {}
    for key, row in store.columns(plan.sweep.name, ["status", "code"], SINGLE).items():
        cell = plan.cells.get(key)
        if cell and key in done and row["code"] and row["status"] in rows.FINISHED:
            text = row["code"]
            if text not in parsed:
                parsed[text] = json.loads(text)
            yield cell, parsed[text]


def replace(plan: Plan, store: Store, run: str, keys: Collection[str]) -> tuple[Cells, list[str]]:
    """Move away what these cells and all below them left in the store, in every sweep of it.

    Rows of other sweeps go too: a key has one number in a store, and a row does not outlive the
    victim it was measured on. Those sweeps' next run takes over what was run here, and runs the
    rest.

    Args:
        plan: The expanded sweep.
        store: Its store.
        run: Name of this call.
        keys: Cells of the plan.

    Returns:
        Kind -> keys of all these cells; the other sweeps that have some of them.

    Raises:
        SweepError: Another driver runs a sweep that has one of these cells.
    """
    cells = _with_below(plan, store, set(keys))
    others = [name for name in store.holders(cells) if name != plan.sweep.name]
    _move(store, run, cells, [plan.sweep.name, *others], run)
    return cells, others


def resume(plan: Plan, store: Store, run: str) -> None:
    """End moves that were interrupted, where they concern this plan.

    Raises:
        SweepError: Another driver runs a sweep that has one of these cells.
    """
    for name, cells in store.replacing().items():
        if any(key in plan.cells for keys in cells.values() for key in keys):
            _move(store, name, cells, [*{plan.sweep.name, *store.holders(cells)}], run)


def _move(store: Store, name: str, cells: Cells, sweeps: Sequence[str], run: str) -> None:
    with contextlib.ExitStack() as claims:
        for sweep in sorted(sweeps):
            claims.enter_context(claimed(store, sweep, run))
        store.replace(name, cells)


def _with_below(plan: Plan, store: Store, keys: set[str]) -> dict[str, set[str]]:
    """Kind -> these cells and all that come from them, of this plan and of others."""
    kinds = {cell.key: cell.kind for cell in plan.cells.values()}
    below: dict[str, set[str]] = defaultdict(set)
    for cell in plan.cells.values():
        for parent in cell.parents:
            below[parent].add(cell.key)
    if any(kinds[key] in ABOVE for key in keys):
        for kind, parent in ABOVE.items():
            for key in store.keys(kind) - set(kinds):
                with contextlib.suppress(DamagedError):
                    params = store.meta(kind, key).get("params", {})
                    below[str(params.get(parent))].add(key)
                    kinds[key] = kind
        for sweep in store.sweeps():
            for key, row in store.columns(sweep, ["victim", "status"]).items():
                if row["status"] != "not_applicable":
                    below[str(row["victim"])].add(key)
                    kinds.setdefault(key, "defend")
    left, reached = list(keys), set(keys)
    while left:
        new = below[left.pop()] - reached
        reached |= new
        left += new
    found: dict[str, set[str]] = defaultdict(set)
    for key in reached:
        found[kinds[key]].add(key)
    return dict(found)


def spoken(cells: Cells, others: Sequence[str], run: str) -> str:
    """What `replace` did, for people."""
    what = ", ".join(f"{len(cells[kind])} {kind}" for kind in KINDS if cells.get(kind))
    also = f"; other sweeps lost rows of theirs, run them again too: {', '.join(others)}"
    return (
        f"--fresh: {what} to be run again, what was done of them is now in replaced/{run} of the "
        f"store{also if others else ''}"
    )
