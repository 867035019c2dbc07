"""Where trials run, in virtual time: nodes that fail, devices for one cell, no barrier."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from sweeper.core.types import Cell
from sweeper.plan.sweep import Resources
from sweeper.run import graph as graphs
from sweeper.run import progress
from sweeper.run.graph import Cluster, Need
from sweeper.run.rays import Node
from sweeper.run.tries import FAULTS
from tests.support import simulated


def wide(victims: int, defenses: int) -> dict[str, Cell]:
    """Victims and defense cells below each."""
    cells: dict[str, Cell] = {}
    for v in range(victims):
        axes = {"attack": f"a{v}"}
        cells[f"t{v}"] = Cell("train", f"t{v}", {}, (), axes)
        for d in range(defenses):
            params = {"victim": f"t{v}", "defense": {"name": f"n{d}"}}
            key = f"d{v}-{d}"
            cells[key] = Cell("defend", key, params, (f"t{v}",), axes)
    return cells


def cpus(*counts: float) -> list[Node]:
    return [Node(f"n{i}", f"host{i}", count, 0.0) for i, count in enumerate(counts)]


def gpus(*counts: float) -> list[Node]:
    return [Node(f"n{i}", f"host{i}", 16.0, count) for i, count in enumerate(counts)]


def overlap(ran: simulated.Ran, key: str) -> set[str]:
    """Cells that ran on the node of a cell's last try while it ran."""
    _, node, start, end = [span for span in ran.spans if span[0] == key][-1]
    return {k for k, n, s, e in ran.spans if n == node and s < end and e > start} - {key}


AXES = {"attack": "badnets", "dataset": "digits", "poison_rate": 0.1, "seed": 0}


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("train", {"model": "tiny"}, "train badnets digits tiny r=0.1 seed=0"),
        ("stage", {"stage": "anp"}, "stage badnets digits r=0.1 seed=0 > anp"),
        (
            "defend",
            {"clean_budget": 0.05, "defense": "anp"},
            "defend badnets digits r=0.1 seed=0 clean_budget=0.05 > anp",
        ),
    ],
)
def test_a_cell_is_called_what_people_call_it(
    kind: str, more: dict[str, object], words: str
) -> None:
    assert progress.title(Cell(kind, "k", {}, (), {**AXES, **more})) == words


def test_one_bad_node_costs_a_few_tries_and_no_row() -> None:
    def outcome(cell: Cell, config: dict[str, Any], node: str) -> dict[str, Any]:
        if node == "n0":
            return {"status": "machine", "error": "no data here", "seconds": 0.01}
        return simulated.well(cell, config, node)

    def seconds(cell: Cell) -> float:
        return 10.0

    ran = simulated.run(wide(6, 10), cpus(4, 4, 4), seconds, outcome)
    assert set(ran.status.values()) == {"ok"} and len(ran.status) == 66
    there = [span for span in ran.spans if span[1] == "n0"]
    assert FAULTS <= len(there) <= 4 + FAULTS, "it is left out as soon as it has shown itself"
    assert len(ran.told) == 1 and ran.told[0].startswith("node host0 is left out of this run: ")


def test_a_cell_two_nodes_cannot_run_ends_and_blocks_its_own() -> None:
    def outcome(cell: Cell, config: dict[str, Any], node: str) -> dict[str, Any]:
        if cell.key == "t1":
            return {"status": "machine", "error": "cannot open its data", "seconds": 0.01}
        return simulated.well(cell, config, node)

    ran = simulated.run(wide(4, 3), cpus(2, 2), lambda cell: 1.0, outcome)
    assert ran.status["t1"] == "failed" and ran.status["d1-0"] == "blocked"
    nodes = [node for key, node, *_ in ran.spans if key == "t1"]
    assert sorted(nodes) == ["n0", "n1"], "each was asked once"
    assert sum(state == "ok" for state in ran.status.values()) == 12 and not ran.told


def short_of_memory(keys: set[str]) -> simulated.Outcome:
    """Cells that need a device for themselves."""

    def outcome(cell: Cell, config: dict[str, Any], node: str) -> dict[str, Any]:
        if cell.key in keys and not config["last_try"]:
            return {"status": "oom", "error": "no memory", "seconds": 1.0}
        return simulated.well(cell, config, node)

    return outcome


def test_out_of_memory_runs_alone_on_one_gpu_beside_the_others() -> None:
    hungry = {f"d{v}-0" for v in range(20)}
    shape = Resources(cpus=1, gpus=0.25)
    ran = simulated.run(wide(20, 20), gpus(4, 4), lambda cell: 10.0, short_of_memory(hungry), shape)
    assert set(ran.status.values()) == {"ok"}
    ideal = (420 * 10.0 + 20 * 10.0 * 3) / 32  # each has four slots when it is alone
    assert ran.seconds < 1.35 * ideal, "20 cells alone do not stop 8 GPUs 20 times"
    last = [span for span in ran.spans if span[0] in hungry][-20:]
    together = max(sum(a <= s < a + 10 for _, _, s, _ in last) for _, _, a, _ in last)
    assert together > 3, "several of them at once, each with a GPU"
    others = [span for span in ran.spans if span[0] not in hungry]
    assert any(s <= start < e for _, _, start, _ in last for _, _, s, e in others), "beside others"


def test_whole_gpus_are_not_cleared_for_a_cell_that_had_one() -> None:
    hungry = {"d0-0", "d1-0"}
    ran = simulated.run(
        wide(4, 8), gpus(2), lambda cell: 10.0, short_of_memory(hungry), Resources(gpus=1)
    )
    assert ran.seconds == 10.0 * (36 + 2) / 2, "no GPU waits"


def test_out_of_memory_on_a_cpu_has_a_node_and_the_other_nodes_go_on() -> None:
    ran = simulated.run(wide(4, 20), cpus(4, 4), lambda cell: 10.0, short_of_memory({"d0-0"}))
    assert set(ran.status.values()) == {"ok"} and not overlap(ran, "d0-0")
    assert ran.seconds < 10.0 * 84 / 8 + 40


def test_the_shapes_of_a_cluster_are_those_of_single_nodes() -> None:
    cluster = Cluster(lambda: cpus(1, 1, 3), set())
    assert cluster.slots(Need(1, 0)) == 5 and cluster.slots(Need(2, 0)) == 1
    assert cluster.slots(Need(4, 0)) == 0
    assert cluster.device(1, 0) == Need(3, 0, whole=True)
    mixed = Cluster(lambda: gpus(2, 0), set())
    assert mixed.slots(Need(1, 0.5)) == 4 and mixed.device(2, 0.5) == Need(2, 1.0, whole=True)
    assert mixed.device(2, 2) == Need(2, 2, whole=False)


def test_a_node_that_is_out_has_no_room() -> None:
    out: set[str] = set()
    cluster = Cluster(lambda: cpus(2, 2), out)
    assert cluster.slots(Need(1, 0)) == 4
    out.add("n1")
    assert cluster.slots(Need(1, 0)) == 2


def test_nothing_waits_at_a_barrier() -> None:
    """More trials than a Tuner once had, and no moment at which a slot waits for another."""
    cells = wide(30, 40)

    def seconds(cell: Cell) -> float:
        return 50.0 if cell.key == "t0" else 1.0

    ran = simulated.run(cells, cpus(4), seconds)
    assert ran.status.keys() == cells.keys()
    assert ran.seconds <= (len(cells) + 49) / 4 + 15, "the long one holds up only its own"
    once = simulated.run(cells, cpus(4), seconds, chain=20)
    assert once.seconds > ran.seconds + 30


def test_a_victim_lost_by_many_is_made_once() -> None:
    state = {"there": True, "made": 0}

    def outcome(cell: Cell, config: dict[str, Any], node: str) -> dict[str, Any]:
        if cell.key == "t0":
            state["there"], state["made"] = True, state["made"] + 1
        elif cell.key == "d0-3":
            state["there"] = False  # it finds the damage and sets the artifact aside
            state["d3"] = state.get("d3", 0) + 1
            if state["d3"] == 1:
                return {"status": "parents", "lost": ["t0"], "error": "lost", "seconds": 0.0}
            state["there"] = True
        elif not state["there"]:
            return {"status": "parents", "lost": ["t0"], "error": "lost", "seconds": 0.0}
        return simulated.well(cell, config, node)

    ran = simulated.run(wide(1, 30), cpus(8), lambda cell: 1.0, outcome)
    assert set(ran.status.values()) == {"ok"} and state["made"] == 2
    tries = defaultdict(int)
    for key, *_ in ran.spans:
        tries[key] += 1
    assert max(tries.values()) == 2


def test_a_sweep_of_any_length_is_one_tuner() -> None:
    assert not hasattr(graphs, "CHAIN")


def test_a_head_that_runs_no_cell_is_no_other_node() -> None:
    tries: dict[str, int] = defaultdict(int)

    def outcome(cell: Cell, config: dict[str, Any], node: str) -> dict[str, Any]:
        tries[cell.key] += 1
        if cell.key == "t0" and tries["t0"] == 1:
            return {"status": "machine", "error": "the store is away", "seconds": 0.0}
        return simulated.well(cell, config, node)

    ran = simulated.run(wide(2, 2), cpus(0, 2), lambda cell: 1.0, outcome)
    assert set(ran.status.values()) == {"ok"} and len(ran.status) == 6, "it waited for the head"
