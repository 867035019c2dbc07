"""The order of the walk, what a failure blocks, and that every cell ends once in one state."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.core.types import Cell
from sweeper.run.walk import Walk


def graph(**parents: str) -> dict[str, Cell]:
    """Cells named `<kind letter><anything>`: p, t, s or d; parents before children."""
    kinds = {"p": "prepare", "t": "train", "s": "stage", "d": "defend"}
    return {
        key: Cell(kinds[key[0]], key, {}, tuple(above.split()), {})
        for key, above in parents.items()
    }


def order(cells: dict[str, Cell], todo: list[str] | None = None) -> list[str]:
    """The order in which one slot runs everything."""
    walk, found = Walk(cells, cells if todo is None else todo), []
    while item := walk.next():
        found.append(item[0].key)
        walk.complete(item[0].key, "ok")
    assert walk.finished
    return found


CHAIN = graph(t1="", d1="t1", t2="", s2="t2", d2="t2 s2", p3="", t3="p3", s3="t3", d3="t3 s3")


def test_the_longest_way_to_the_end_goes_first() -> None:
    walk = Walk(CHAIN, CHAIN)
    taken = [walk.next() for _ in range(3)]
    assert [item[0].key for item in taken if item] == ["p3", "t2", "t1"]
    assert all(item and not item[1] for item in taken)
    assert walk.next() is None, "everything else waits for its parents"
    assert not walk.finished


def test_children_are_released_without_a_barrier_between_kinds() -> None:
    walk = Walk(CHAIN, CHAIN)
    for _ in range(3):
        walk.next()
    walk.complete("t1", "ok")
    item = walk.next()
    assert item and item[0].key == "d1", "its own parent is all a cell waits for"


def test_of_equal_ways_the_broader_and_then_the_earlier_goes_first() -> None:
    cells = graph(t1="", t2="", t3="", d1="t1", d2="t2", d2b="t2", d3="t3")
    assert order(cells)[0] == "t2"
    assert order(graph(t1="", t2="", d2="t2", d1="t1"))[:2] == ["t1", "t2"]


def test_parents_that_are_not_to_run_count_as_finished() -> None:
    assert order(CHAIN, ["d1", "d3"]) == ["d1", "d3"]
    assert order(CHAIN, ["s2", "d2"]) == ["s2", "d2"]
    assert order(CHAIN, []) == []


@pytest.mark.parametrize("status", ["failed", "diverged", "timeout"])
def test_a_failure_blocks_all_that_hangs_on_it_and_nothing_else(status: str) -> None:
    walk = Walk(CHAIN, CHAIN)
    for _ in range(3):
        walk.next()
    blocked = walk.complete("p3", status)
    assert [(below.key, above.key) for below, above in blocked] == [
        ("t3", "p3"),
        ("s3", "p3"),
        ("d3", "p3"),
    ]
    assert walk.complete("t2", "ok") == []
    left = {item[0].key for item in iter(walk.next, None) if item}
    assert left == {"s2"}, "the others go on"
    assert walk.status == {
        "p3": status, "t3": "blocked", "s3": "blocked", "d3": "blocked", "t2": "ok"
    }  # fmt: skip


def test_a_cell_with_two_failed_parents_is_blocked_once() -> None:
    cells = graph(t1="", t2="", d="t1 t2")
    walk = Walk(cells, cells)
    walk.next(), walk.next()
    assert len(walk.complete("t1", "failed")) == 1
    assert walk.complete("t2", "failed") == []
    assert walk.finished


def test_out_of_memory_is_tried_once_more_alone() -> None:
    cells = graph(t1="", t2="", d1="t1", d2="t2")
    walk = Walk(cells, cells)
    walk.next(), walk.next()
    assert walk.complete("t1", "oom") == [] and "t1" not in walk.status
    assert walk.next() is None, "t2 still runs: t1 is not alone"
    walk.complete("t2", "ok")
    item = walk.next()
    assert item and item[0].key == "d2", "what can run beside others goes first"
    assert walk.next() is None
    walk.complete("d2", "ok")
    item = walk.next()
    assert item and item[0].key == "t1" and item[1] is True, "its last try"
    assert walk.next() is None and not walk.finished
    walk.complete("t1", "ok")
    item = walk.next()
    assert item and item[0].key == "d1"
    walk.complete("d1", "ok")
    assert walk.finished


def test_nothing_starts_beside_the_lonely_cell() -> None:
    cells = graph(t1="", t2="", d1="t1", d2="t2")
    walk = Walk(cells, cells)
    walk.next(), walk.next()
    walk.complete("t1", "oom")
    walk.complete("t2", "oom")
    for key in ("t1", "t2"):
        item = walk.next()
        assert item and item[0].key == key and item[1]
        assert walk.next() is None
        walk.complete(key, "ok")
        if key == "t1":
            assert (walk.next() or [None])[0] is cells["d1"]
            walk.complete("d1", "ok")


def test_out_of_memory_alone_is_final() -> None:
    cells = graph(t1="", d1="t1")
    walk = Walk(cells, cells)
    walk.next()
    walk.complete("t1", "oom")
    walk.next()
    (pair,) = walk.complete("t1", "oom")
    assert (pair[0].key, pair[1].key) == ("d1", "t1")
    assert walk.finished and walk.status == {"t1": "oom", "d1": "blocked"}


def test_ancestors_stand_after_their_own_parents() -> None:
    walk = Walk(CHAIN, [])
    assert [cell.key for cell in walk.ancestors("d3")] == ["p3", "t3", "s3"]
    assert walk.ancestors("t1") == []


@st.composite
def graphs(draw: Any) -> dict[str, Cell]:
    """Any directed graph without cycles."""
    cells: dict[str, Cell] = {}
    for place in range(draw(st.integers(0, 25))):
        above = draw(st.sets(st.sampled_from(sorted(cells)), max_size=3)) if cells else set()
        kind = draw(st.sampled_from(["prepare", "train", "stage", "defend"]))
        cells[f"{place:02}"] = Cell(kind, f"{place:02}", {}, tuple(sorted(above)), {})
    return cells


@settings(max_examples=150, deadline=None)
@given(graphs(), st.data())
def test_every_cell_ends_once_in_one_state(cells: dict[str, Cell], data: st.DataObject) -> None:
    todo = set(data.draw(st.sets(st.sampled_from(sorted(cells))))) if cells else set()
    slots = data.draw(st.integers(1, 4))
    walk, running = Walk(cells, todo), []
    tries: Counter[str] = Counter()
    ended: dict[str, str] = {}
    while True:
        while len(running) < slots and (item := walk.next()):
            cell, last = item
            above = [parent for parent in cell.parents if parent in todo]
            assert all(ended.get(parent) == "ok" for parent in above), "parents first"
            assert cell.key not in ended and cell.key not in running
            tries[cell.key] += 1
            assert last == (tries[cell.key] == 2), "a second try is the last"
            assert not last or not running, "and has nothing beside it"
            running.append(cell.key)
        if not running:
            break
        key = running.pop(data.draw(st.integers(0, len(running) - 1)))
        outcome = data.draw(st.sampled_from(["ok", "ok", "ok", "failed", "timeout", "oom"]))
        blocked = walk.complete(key, outcome)
        if outcome == "oom" and tries[key] == 1:
            assert not blocked
            continue
        assert key not in ended
        ended[key] = outcome
        for below, above_ in blocked:
            assert below.key not in ended and tries[below.key] == 0 and above_.key == key
            ended[below.key] = "blocked"
    assert walk.finished, "nothing is left, nothing can run"
    assert set(ended) == todo and walk.status == ended
    for key, status in ended.items():
        bad = [p for p in cells[key].parents if p in todo and ended[p] != "ok"]
        assert (status == "blocked") == bool(bad), "blocked are the descendants of a failure"
    assert not walk.running
