"""Which cells share a trial, what ends a bundle early, and what comes back from one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.core.types import Cell
from sweeper.run import bundle, cells
from sweeper.run.bundle import SAMPLE, SECONDS, Bundles
from sweeper.run.material import Context
from sweeper.run.progress import Progress
from sweeper.run.walk import Walk


def wide(many: int, names: str = "a") -> dict[str, Cell]:
    """One victim and so many defense cells below it, of these methods in turn."""
    found = {"t": Cell("train", "t", {}, (), {})}
    for i in range(many):
        params = {"victim": "t", "defense": {"name": names[i % len(names)]}}
        found[f"d{i}"] = Cell("defend", f"d{i}", params, ("t",), {})
    return found


def begun(many: int, names: str = "a") -> tuple[Walk, Bundles]:
    """The walk of `wide` after its victim."""
    known = wide(many, names)
    walk = Walk(known, known)
    walk.next()
    walk.complete("t", "ok")
    return walk, Bundles(walk)


def learn(
    walk: Walk, bundles: Bundles, seconds: float, times: int = SAMPLE, name: str = "a"
) -> None:
    for _ in range(times):
        bundles.learn(Cell("defend", "x", {"defense": {"name": name}}, (), {}), seconds)


def take(bundles: Bundles, slots: int) -> list[Cell]:
    """What the next trial runs where there is room for anything."""
    return bundles.take(slots, lambda cell: True, lambda one, other: True)


def test_a_method_nothing_is_known_of_is_not_bundled() -> None:
    walk, bundles = begun(100)
    learn(walk, bundles, 0.01, SAMPLE - 1)
    assert [len(take(bundles, 2)) for _ in range(3)] == [1, 1, 1]


def test_short_cells_are_bundled_up_to_a_second() -> None:
    walk, bundles = begun(1000)
    learn(walk, bundles, SECONDS / 16)
    taken = take(bundles, 2)
    assert len(taken) == 16
    assert walk.running == {cell.key for cell in taken}


def test_one_long_cell_of_a_method_ends_its_bundles() -> None:
    walk, bundles = begun(1000)
    learn(walk, bundles, 0.01)
    learn(walk, bundles, 5.0, 1)
    assert len(take(bundles, 2)) == 1
    learn(walk, bundles, 0.01)
    assert len(take(bundles, 2)) > 1


def test_a_bundle_ends_where_another_method_begins_that_is_long() -> None:
    walk, bundles = begun(100, "ab")
    learn(walk, bundles, 0.01)
    learn(walk, bundles, 9.0, name="b")
    assert len(take(bundles, 1)) == 1
    learn(walk, bundles, 0.01, name="b")
    assert len(take(bundles, 1)) > 10


def test_a_bundle_leaves_as_much_to_the_other_slots() -> None:
    walk, bundles = begun(40)
    learn(walk, bundles, 0.001)
    sizes = []
    while walk.ready:
        sizes.append(len(take(bundles, 4)))
    assert sizes[0] == 5 and sizes[-1] == 1 and sum(sizes) == 40


def test_a_victim_is_never_in_a_bundle() -> None:
    known = {f"t{i}": Cell("train", f"t{i}", {}, (), {}) for i in range(50)}
    walk = Walk(known, known)
    bundles = Bundles(walk)
    for _ in range(SAMPLE):
        bundles.learn(known["t0"], 0.001)
    assert len(take(bundles, 1)) == 1


def test_cells_of_a_lost_process_run_by_themselves_and_others_are_bundled_again() -> None:
    walk, bundles = begun(40)
    learn(walk, bundles, 0.001)
    first = take(bundles, 1)
    bundles.put_back([cell.key for cell in first[1:]], lost=True)
    again = [take(bundles, 1) for _ in first[1:]]
    assert [[c.key for c in taken] for taken in again] == [[c.key] for c in first[1:]]
    second = take(bundles, 1)
    assert len(second) > 1
    bundles.put_back([cell.key for cell in second], lost=False)
    assert len(take(bundles, 1)) > 1


def test_cells_that_need_other_places_are_not_bundled() -> None:
    walk, bundles = begun(40)
    learn(walk, bundles, 0.001)
    walk.next()
    walk.put_back("d0", "whole")
    taken = bundles.take(1, lambda cell: True, lambda one, other: "d0" not in (one.key, other.key))
    assert len(taken) == 1 and taken[0].key == "d0"
    assert len(take(bundles, 1)) > 1


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_comes_back_every_cell_ends_once(data: st.DataObject) -> None:
    walk, bundles = begun(data.draw(st.integers(1, 60)), "abc")
    slots, ended, running = data.draw(st.integers(1, 4)), [], []
    for _ in range(5000):
        if walk.finished:
            break
        while len(running) < slots and (cells_ := take(bundles, slots)):
            running.append(cells_)
        taken = running.pop(data.draw(st.integers(0, len(running) - 1)))
        lost = data.draw(st.integers(0, 9)) == 0
        ran = data.draw(st.integers(0 if lost and len(taken) > 1 else 1, len(taken)))
        for cell in taken[:ran]:
            bundles.learn(cell, data.draw(st.sampled_from([0.001, 0.2, 3.0])))
            if data.draw(st.integers(0, 19)) == 19:
                walk.put_back(cell.key, "whole")
            else:
                walk.complete(cell.key, "ok")
                ended.append(cell.key)
        bundles.put_back([cell.key for cell in taken[ran:]], lost=lost)
    assert walk.finished and len(ended) == len(set(ended)) == len(walk.todo) - 1


# In the worker


class Clock:
    """Time that passes when a cell runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.ran, self.above = 0.0, list[str](), list[list[str]]()
        monkeypatch.setattr(bundle.time, "perf_counter", lambda: self.now)

        def run(cell: Cell, ancestors: list[Cell], *_: Any, **__: Any) -> dict[str, Any]:
            self.now += seconds
            self.ran.append(cell.key)
            self.above.append([item.key for item in ancestors])
            return {"status": "ok", "error": "", "seconds": seconds}

        monkeypatch.setattr(cells, "run", run)


def test_what_a_bundle_has_no_time_left_for_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    walk, _ = begun(30)
    clock = Clock(monkeypatch, SECONDS / 4)
    seen: list[Cell] = []

    def starting(cell: Cell) -> Progress:
        seen.append(cell)
        return Progress()

    packed = bundle.pack([walk.cells[f"d{i}"] for i in range(30)], walk)
    found = bundle.run(packed, Context(store="nowhere", sweep="x"), starting)
    assert clock.ran == [f"d{i}" for i in range(9)] == [key for key, _, _ in found]
    assert clock.above == [["t"]] * 9
    assert seen == [walk.cells[key] for key in clock.ran], "cells arrive as they were sent"
    assert {seconds for _, _, seconds in found} == {SECONDS / 4}
    assert len(json.loads(packed)["cells"]) == 31, "what they share is sent once"
