"""Whose fault it was, and how a cell is tried again: pure decisions, a property of each kind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.core.types import Cell
from sweeper.run import tries
from sweeper.run.tries import FAULTS, LOST_NODES, RETRIES, Health, Loss, Tries

NODES = {"a": "host-a", "b": "host-b", "c": "host-c"}
OK = {"status": "ok", "error": "", "seconds": 1.0}


def failed(error: str, **more: Any) -> dict[str, Any]:
    return {"status": "machine", "error": error, "seconds": 0.1, **more}


def cluster(*names: str) -> tuple[Tries, list[str]]:
    """Tries on a cluster of these nodes, and what people are told."""
    told: list[str] = []
    return Tries(Health(lambda: {name: NODES[name] for name in names}, told.append)), told


@pytest.mark.parametrize("status", ["ok", "failed", "diverged", "timeout"])
def test_what_a_method_did_is_final(status: str) -> None:
    found, _ = cluster("a", "b")
    result = {"status": status, "error": "x", "seconds": 1.0}
    assert found.judge("k", result, "a") is result


def test_a_machines_fault_is_tried_elsewhere_and_two_nodes_that_agree_make_a_row() -> None:
    found, _ = cluster("a", "b", "c")
    assert found.judge("k", failed("no data here"), "a") is None
    assert found.of("k").avoid == {"a"}
    final = found.judge("k", failed("no data here"), "c")
    assert final and final["status"] == "failed"
    assert final["error"] == "no data here\nhost-a: no data here\nhost-c: no data here"
    assert found.judge("other", OK, "b") is OK


def test_the_only_machine_is_asked_again_only_where_it_may_be_right_by_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr(tries.time, "monotonic", lambda: clock[0])
    found, _ = cluster("a")
    final = found.judge("k", failed("no GPU"), "a")
    assert final and final["error"] == "no GPU"
    cell = Cell("defend", "s", {}, (), {})
    for _ in range(RETRIES):
        assert found.judge("s", failed("disk full", passing=True), "a") is None
        assert not found.due(cell) and not found.of("s").avoid
        clock[0] += 20
        assert found.due(cell)
    final = found.judge("s", failed("disk full", passing=True), "a")
    assert final and final["status"] == "failed"


def test_a_node_that_does_nothing_but_fail_is_taken_out_once_and_never_the_last() -> None:
    found, told = cluster("a", "b")
    for i in range(FAULTS):
        found.judge(f"k{i}", failed("no CUDA"), "a")
    assert found.health.out == {"a"} and len(told) == 1
    assert told[0] == (
        f"node host-a is left out of this run: {FAULTS} faults of its own in a row, the last: "
        "no CUDA"
    )
    for i in range(9):
        found.judge(f"k{i}", failed("no data"), "b")
        found.judge(f"m{i}", failed("no CUDA"), "a")
    assert found.health.out == {"a"} and len(told) == 1, "the last node stays"


def test_one_success_between_two_faults_keeps_a_node() -> None:
    found, told = cluster("a", "b")
    for i in range(10):
        found.judge(f"k{i}", failed("store away"), "a")
        found.judge(f"m{i}", {"status": "failed", "error": "the method's", "seconds": 1.0}, "a")
    assert not told and not found.health.out


def test_out_of_memory_gets_a_device_for_itself_once() -> None:
    found, _ = cluster("a")
    assert found.judge("k", {"status": "oom", "error": "x", "seconds": 1.0}, "a") is None
    assert found.of("k").whole
    assert found.lost("m", Loss("memory", "killed")) is None and found.of("m").whole
    final = found.lost("m", Loss("memory", "killed by Ray: low on memory"))
    assert final and final["error"].startswith("out of memory, with a device for itself")


def test_lost_nodes_do_not_count_and_lost_processes_do() -> None:
    found, _ = cluster("a", "b")
    for _ in range(LOST_NODES):
        assert found.lost("k", Loss("node", "its node has died")) is None
    assert not found.of("k").whole
    assert found.lost("k", Loss("process", "SIGSEGV")) is None
    assert found.lost("k", Loss("process", "SIGSEGV")) is None
    assert found.of("k").whole, "the last try has a device for itself"
    final = found.lost("k", Loss("process", "ended by SIGSEGV"))
    assert final and final["error"] == "its process was lost 3 times: ended by SIGSEGV"
    over = (
        found.lost("j", Loss("node", "x"))
        or [found.lost("j", Loss("node", "x")) for _ in range(LOST_NODES)][-1]
    )
    assert over and over["status"] == "failed", "what kills every node it is on has an end too"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_cell_ends_whatever_happens(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True))
    found, _ = cluster(*names)
    for _ in range(10 + LOST_NODES):
        node = data.draw(st.sampled_from([*names, ""]))
        kind = data.draw(st.sampled_from(["machine", "passing", "oom", "process", "memory"]))
        if kind in ("process", "memory"):
            final = found.lost("k", Loss(kind, "x", node))
        elif kind == "oom":
            if found.of("k").whole:
                return  # `cells.run` says failed where memory is short and it was the last try
            final = found.judge("k", {"status": "oom", "error": "x", "seconds": 0.0}, node)
        else:
            final = found.judge("k", failed("x", passing=kind == "passing"), node)
        if final:
            assert final["status"] == "failed"
            return
        assert set(found.health.there()) - found.of("k").avoid, "somewhere it can run"
    raise AssertionError("it was tried for ever")


def test_what_nodes_say_is_one_table_of_what_differs() -> None:
    from sweeper.run import nodes

    well = {"data": "ok", "device": "cuda", "precision": "bf16", "store": "ok"}
    names = {node: f"host-{node}" for node in "abcdefg"}
    assert nodes.table(dict.fromkeys("abc", well), names) == (
        "3 nodes, all with data ok, device cuda, precision bf16, store ok"
    )
    blind = {**well, "data": "! no Parquet file in /data"}
    said = {**dict.fromkeys("abcdef", well), "g": blind}
    first, head, _, *lines = nodes.table(said, names).splitlines()
    assert first == "7 nodes, all with device cuda, precision bf16, store ok"
    assert head.split() == ["node", "data"] and max(map(len, lines)) < 80
    told = " ".join(" ".join(lines).split())
    assert "host-a, host-b, host-c, 3" in told and "! no Parquet file in /data" in told
    assert nodes.problems(blind) == ["data: no Parquet file in /data"] and not nodes.problems(well)
