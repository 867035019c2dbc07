"""The order of the walk, what a failure blocks, and that every cell ends once in one state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.core.types import Cell
from sweeper.run import driver
from sweeper.run.walk import REBUILDS, Walk


def graph(**parents: str) -> dict[str, Cell]:
    """Cells named `<kind letter><anything>`: p, t, s or d; parents before children."""
    kinds = {"p": "prepare", "t": "train", "s": "stage", "d": "defend"}
    return {
        key: Cell(kinds[key[0]], key, {}, tuple(above.split()), {})
        for key, above in parents.items()
    }


def test_a_driver_says_what_it_has_begun() -> None:
    cells = graph(t1="", d1="t1", d2="t1") | {"t2": Cell("train", "t2", {}, (), {"attack": "sig"})}
    walk = Walk(cells, cells)
    assert driver._at_work([]) == driver._at_work([walk]) == {}
    while walk.next():
        pass
    assert driver._at_work([walk]) == {"t1": "train", "t2": "train sig"}


def order(cells: dict[str, Cell], todo: list[str] | None = None) -> list[str]:
    """The order in which one slot runs everything."""
    walk, found = Walk(cells, cells if todo is None else todo), []
    while cell := walk.next():
        found.append(cell.key)
        walk.complete(cell.key, "ok")
    assert walk.finished
    return found


def taken(walk: Walk, fits: Callable[[Cell], bool] | None = None) -> str:
    """The key of the next cell."""
    cell = walk.next(fits)
    assert cell
    return cell.key


CHAIN = graph(t1="", d1="t1", t2="", s2="t2", d2="t2 s2", p3="", t3="p3", s3="t3", d3="t3 s3")


def test_the_longest_way_to_the_end_goes_first() -> None:
    walk = Walk(CHAIN, CHAIN)
    assert [taken(walk) for _ in range(3)] == ["p3", "t2", "t1"]
    assert walk.next() is None, "everything else waits for its parents"
    assert not walk.finished


def test_children_are_released_without_a_barrier_between_kinds() -> None:
    walk = Walk(CHAIN, CHAIN)
    for _ in range(3):
        walk.next()
    walk.complete("t1", "ok")
    assert taken(walk) == "d1", "its own parent is all a cell waits for"


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
    left = {cell.key for cell in iter(walk.next, None)}
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


def test_a_cell_that_comes_back_is_taken_again_from_the_lane_it_is_put_into() -> None:
    cells = graph(t1="", t2="", d1="t1", d2="t2")
    walk = Walk(cells, cells)
    walk.next(), walk.next()
    walk.put_back("t1", "whole")
    assert walk.waiting("whole") == 1 and walk.ready == 1 and walk.running == {"t2"}
    assert walk.next(lambda cell: cell.key != "t1") is None, "its lane waits"
    walk.complete("t2", "ok")
    assert taken(walk, lambda cell: cell.key != "t1") == "d2", "and keeps nobody else"
    assert taken(walk) == "t1" and walk.complete("t1", "ok") == []
    assert taken(walk) == "d1"


def test_lanes_go_by_the_longest_way_to_the_end_among_those_that_fit() -> None:
    cells = graph(p3="", t3="p3", d3="t3", t1="", d1="t1", t2="", d2="t2")
    walk = Walk(cells, cells, lane=lambda cell: "even" if int(cell.key[1]) % 2 == 0 else "odd")
    assert taken(walk, lambda cell: cell.key != "p3") == "t2"
    assert taken(walk) == "p3" and taken(walk) == "t1" and walk.next() is None


def test_a_lost_parent_is_made_once_for_all_who_miss_it() -> None:
    cells = graph(t="", d1="t", d2="t", d3="t")
    for todo in (cells, ["d1", "d2", "d3"]):
        walk = Walk(cells, todo)
        if todo is cells:
            assert taken(walk) == "t"
            walk.complete("t", "ok")
        assert taken(walk) == "d1" and taken(walk) == "d2"
        assert walk.reopen("d1", ["t"]) is None and walk.reopen("d2", ["t"]) is None
        assert taken(walk) == "t", "before what is below"
        assert taken(walk) == "d3" and walk.reopen("d3", ["t"]) is None, "it runs already"
        assert walk.next() is None and not walk.finished
        assert walk.complete("t", "ok") == []
        assert [taken(walk) for _ in range(3)] == ["d1", "d2", "d3"]
        for key in ("d1", "d2", "d3"):
            walk.complete(key, "ok")
        assert walk.finished


def test_what_cannot_be_made_again_ends_those_that_miss_it() -> None:
    cells = graph(t="", s="t", d1="t s", d2="t")
    walk = Walk(cells, ["s", "d1", "d2"])
    assert taken(walk) == "s" and walk.reopen("s", ["t"]) is None
    assert taken(walk) == "t"
    assert [below.key for below, _ in walk.complete("t", "failed")] == ["s", "d1"]
    assert taken(walk) == "d2" and walk.reopen("d2", ["t"]) == "t"
    walk.complete("d2", "blocked")
    assert walk.finished


def test_what_is_damaged_again_and_again_is_given_up() -> None:
    cells = graph(t="", d="t")
    walk = Walk(cells, ["d"])
    for _ in range(REBUILDS):
        assert taken(walk) == "d" and walk.reopen("d", ["t"]) is None
        assert taken(walk) == "t"
        walk.complete("t", "ok")
    assert taken(walk) == "d" and walk.reopen("d", ["t"]) == "t"


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
        while len(running) < slots and (cell := walk.next()):
            above = [parent for parent in cell.parents if parent in todo]
            assert all(ended.get(parent) == "ok" for parent in above), "parents first"
            assert cell.key not in ended and cell.key not in running
            tries[cell.key] += 1
            running.append(cell.key)
        if not running:
            break
        key = running.pop(data.draw(st.integers(0, len(running) - 1)))
        outcome = data.draw(st.sampled_from(["ok", "ok", "ok", "failed", "timeout", "oom"]))
        if outcome == "oom" and tries[key] == 1:
            walk.put_back(key, "whole")
            continue
        blocked = walk.complete(key, outcome)
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
