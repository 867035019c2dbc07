"""Methods that do not ship run in children: the same bits, nothing left, nothing reached."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sweeper.core import switches
from sweeper.core.types import Cell
from sweeper.run import cells
from sweeper.run.walk import Walk
from sweeper.tables import results
from tests.support import sweeps, toys
from tests.support.outside import OVER, Way
from tests.support.places import ROOT

ONE: dict[str, Any] = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}
SAME = {
    "Tuning": {"epochs": 2},
    "Filter": {},
    "Scaling": {},
    "Detector": {},
    "Staged": {"epochs": 1, "train_epochs": 1},
    "Oracle": {"steps": 20},
}


def outside(*ways: str, **options: Any) -> list[dict[str, Any]]:
    return [
        {"defense": "tests.support.outside:Way", "as": way, "way": way, **options} for way in ways
    ]


def ran(folder: Path, *ways: str, **changes: Any) -> pd.DataFrame:
    """The rows of `none` and of some ways, by label."""
    defenses = ["none", *outside(*ways, **changes.pop("options", {}))]
    path = sweeps.write(folder, **{**ONE, "defenses": defenses, **changes})
    sweeps.inline(path, folder / "store")
    return sweeps.frame(folder / "store").set_index("defense")


def each(folder: Path, **changes: Any) -> tuple[dict[str, Cell], Any, Walk]:
    """The cells of a sweep by their label, with what runs them."""
    job = sweeps.prepared(sweeps.write(folder, **{**ONE, **changes}), folder / "store")
    labels = {str(c.axes.get("defense", c.kind)): c for c in job.plan.cells.values()}
    return labels, job, Walk(job.plan.cells, [])


def row(job: Any, cell: Cell) -> pd.Series:
    """The row of a cell, whoever ran it."""
    return results.frame(job.store.tables("small")).set_index("key").loc[cell.key]


def test_a_child_gives_the_bits_of_the_process(tmp_path: Path) -> None:
    entries = [
        {"defense": f"tests.support.outside:{name}", "as": f"{name}-oracle", **given}
        for name, given in SAME.items()
    ]
    labels, job, walk = each(tmp_path, defenses=entries, clean_budgets=[0.1])
    for name in SAME:
        cell = labels[f"{name}-oracle"]
        rows = []
        for kinds in ((), ("attack", "defense")):
            above = walk.ancestors(cell.key)
            result = cells.run_here(cell, above, replace(job.context, outside=kinds), force=True)
            assert result["status"] == "ok", result["error"]
            rows.append(row(job, cell))
            for parent in above:
                if parent.kind == "stage":
                    path = tmp_path / "store" / "artifacts" / "stage" / parent.key
                    path.rename(path.with_name(f"{kinds}"))
        here, there = rows
        names = [*sweeps.MEASURED, "auroc", "tpr", "fpr", "tpr_at_5", "notes", "n_test"]
        pd.testing.assert_series_equal(here[names], there[names], check_names=False)
        assert json.loads(there["seen"]) == [], name
        assert "own process" in json.loads(here["seen"])[0]


def test_an_attack_that_does_not_ship_runs_in_a_child_with_all_its_cell(tmp_path: Path) -> None:
    attacks = [
        {"attack": f"tests.support.outside:{name}", "as": name} for name in ("Patch", "Warp")
    ]
    defenses = ["none", {"defense": "tests.support.outside:Tuning", "as": "own", "epochs": 1}]
    path = sweeps.write(tmp_path, **{**ONE, "attacks": attacks, "defenses": defenses})
    counts, _ = sweeps.inline(path, tmp_path / "store")
    assert counts == {"ok": 6}
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    labels, job, walk = each(tmp_path, attacks=attacks[:1], defenses=["none"])
    cell = labels["train"]
    first = job.store.get("train", cell.key)
    here = replace(job.context, outside=())
    result = cells.run_here(cell, walk.ancestors(cell.key), here, force=True)
    again = job.store.get("train", cell.key)
    assert result["status"] == "ok"
    for name, value in first.tensors["model"].items():
        assert torch.equal(value, again.tensors["model"][name]), "the bits of this process"


CAUSES = {
    "exits": ("failed", "called sys.exit(0)"),
    "interrupts": ("failed", "KeyboardInterrupt"),
    "leaves": ("failed", "GeneratorExit"),
    "faults": ("failed", "ended by SIGSEGV"),
    "ends_process": ("failed", "ended its process with code 3"),
    "stubborn": ("timeout", "gave up after 3 s"),
    "dull": ("timeout", "gave up after 3 s"),
    "shouts": ("failed", "x"),
}


def test_whatever_a_method_does_its_row_has_the_cause(tmp_path: Path) -> None:
    ways = [way for way in CAUSES if way != "dull"]
    found = ran(tmp_path, *ways, "nothing", timeout=3)
    for way in ways:
        status, cause = CAUSES[way]
        assert found.loc[way, "status"] == status, way
        assert found.loc[way, "error"].strip().splitlines()[-1].endswith(cause), way
    assert found.loc["nothing", "status"] == found.loc["none", "status"] == "ok"


@pytest.mark.parametrize("way", ["before", "while"])
def test_a_child_that_ends_while_it_is_measured_is_told_so(tmp_path: Path, way: str) -> None:
    entry = {"defense": "tests.support.outside:Late", "as": "late", "way": way}
    many = {"dataset": "digits", "train_size": 300}
    path = sweeps.write(tmp_path, **{**ONE, "defenses": [entry], "datasets": [many]})
    sweeps.inline(path, tmp_path / "store")
    (found,) = sweeps.frame(tmp_path / "store").to_dict("records")
    assert found["status"] == "failed" and found["error"] == "ended its process with code 5"


def test_a_method_of_the_process_itself_cannot_end_it_either(tmp_path: Path) -> None:
    ways = ("exits", "interrupts", "leaves", "dull")
    labels, job, walk = each(tmp_path, defenses=["none", *outside(*ways)], timeout=2)
    for way in ways:
        above = walk.ancestors(labels[way].key)
        result = cells.run_here(labels[way], above, replace(job.context, outside=()))
        status, cause = CAUSES[way]
        assert result["status"] == status
        assert result["error"].strip().splitlines()[-1].endswith(cause.replace("3 s", "2 s"))


def test_what_a_method_does_to_the_process_stays_in_the_child(tmp_path: Path) -> None:
    plain = ran(tmp_path, "nothing", seeds=2)
    folder = tmp_path / "changed"
    folder.mkdir()
    before = os.getcwd(), torch.get_default_dtype()
    found = ran(folder, "float64", "replaces", "thread", seeds=2)
    assert (os.getcwd(), torch.get_default_dtype()) == before and "LEFT" not in os.environ
    assert set(found["status"]) == {"ok"} and set(found["left_behind"]) == {"[]"}
    columns = [*sweeps.MEASURED, "seed"]
    pd.testing.assert_frame_equal(plain.loc[["none"], columns], found.loc[["none"], columns])


def test_a_shipped_method_is_cleaned_up_after(tmp_path: Path) -> None:
    """The same ways without a child: all is put back, and what cannot be is said."""
    switches.LEFT.clear()
    ways = ("float64", "replaces", "nothing", "thread")
    labels, job, walk = each(tmp_path, defenses=["none", *outside(*ways)])
    for way in ways:
        above = walk.ancestors(labels[way].key)
        assert (
            cells.run_here(labels[way], above, replace(job.context, outside=()))["status"] == "ok"
        )
    found = {way: row(job, labels[way]) for way in ways}
    assert torch.get_default_dtype() is torch.float32 and "LEFT" not in os.environ
    assert found["nothing"]["left_behind"] == "[]"
    (left,) = json.loads(found["thread"]["left_behind"])
    assert left.startswith("thread ") and switches.LEFT == [left]
    none = labels["none"]  # this process will not do any more: even what ships goes to a child
    cells.run(none, walk.ancestors(none.key), job.context)
    apart = row(job, none)
    switches.LEFT.clear()
    OVER.set()
    assert apart["status"] == "ok" and apart["left_behind"] == "[]"
    assert apart["peak_memory_mb"] < found["thread"]["peak_memory_mb"]


def test_memory_is_the_methods_own(tmp_path: Path) -> None:
    found = ran(tmp_path, "allocates", "nothing")["peak_memory_mb"]
    assert 280 < found["allocates"] - found["nothing"] < 340


def test_who_walks_the_frames_finds_nothing_and_is_seen(tmp_path: Path) -> None:
    found = ran(tmp_path, "walks", "objects", "ordinary", "asks_inspect")
    assert found.loc["ordinary", "status"] == "ok", found.loc["ordinary", "error"]
    assert json.loads(found.loc["ordinary", "seen"]) == []
    assert json.loads(found.loc["asks_inspect", "seen"]) == ["sys._getframe"]
    walked = json.loads(found.loc["walks", "notes"])["found"]
    assert json.loads(found.loc["walks", "seen"]) == ["sys._getframe"]
    assert "Case" in walked and "Way" in walked, "it did look"
    everything = json.loads(found.loc["objects", "notes"])
    secrets = {"Material", "Work", "Cell", "Dataset", "Poisoned", "Triggered", "BadNets"}
    assert not secrets & {*walked, *everything["found"]}
    assert everything["sets"] == [15], "its clean images, and no others"
    assert not [name for name in everything["environment"] if name.startswith("SWEEPER")]
    assert "gc.get_objects" in json.loads(found.loc["objects", "seen"])


def test_the_weights_a_model_starts_from_are_no_reach_beyond_the_case(tmp_path: Path) -> None:
    start = toys.network(torch.Generator(), shape=(1, 8, 8), width=4)
    file = tmp_path / "start.pth"
    torch.save(start.state_dict(), file)  # noqa: TID251
    found = ran(tmp_path, "nothing", models=[{"model": "tiny", "width": 4, "weights": str(file)}])
    assert found.loc["nothing", "status"] == "ok" and json.loads(found.loc["nothing", "seen"]) == []


def test_who_opens_the_store_or_the_data_is_seen(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    found = ran(tmp_path, "opens", "imports", options={"path": store})
    seen = json.loads(found.loc["opens", "seen"])
    assert seen and all(text.startswith(f"open {store}") for text in seen)
    assert "import sweeper.data" in json.loads(found.loc["imports", "seen"])


def test_who_looks_only_while_it_is_measured_is_seen_too(tmp_path: Path) -> None:
    store = tmp_path / "store"
    entry = {"defense": "tests.support.outside:Patient", "as": "patient", "path": str(store)}
    sweeps.inline(sweeps.write(tmp_path, **{**ONE, "defenses": [entry]}), store)
    (found,) = sweeps.frame(store).to_dict("records")
    seen = json.loads(found["seen"])
    assert found["status"] == "ok" and seen and seen[0].startswith(f"open {store}")


def test_a_method_of_a_notebook_runs_here_and_its_row_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = dataclass(frozen=True, kw_only=True)(type("Mine", (Way,), {"__module__": "__main__"}))
    monkeypatch.setattr(sys.modules["__main__"], "Mine", made, raising=False)
    path = sweeps.write(tmp_path, **{**ONE, "defenses": [{"defense": "__main__:Mine"}]})
    counts, _ = sweeps.inline(path, tmp_path / "store")
    (found,) = sweeps.frame(tmp_path / "store").to_dict("records")
    assert counts == {"ok": 2}, found["error"]
    assert json.loads(found["seen"]) == ["ran in the sweeper's own process"]


def test_a_filter_that_counts_is_right_by_chance(tmp_path: Path) -> None:
    entry = {"defense": "tests.support.outside:Counting", "as": "counting"}
    digits = {"dataset": "digits", "train_size": 300}
    path = sweeps.write(tmp_path, **{**ONE, "datasets": [digits], "defenses": [entry]})
    sweeps.inline(path, tmp_path / "store")
    (row,) = sweeps.frame(tmp_path / "store").to_dict("records")
    assert row["status"] == "ok" and row["auroc"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_child_may_use_the_gpu_beside_its_cell(tmp_path: Path) -> None:
    tuning = {"defense": "tests.support.outside:Tuning", "as": "own", "epochs": 1}
    labels, job, walk = each(tmp_path, defenses=[tuning])
    context = replace(job.context, device="cuda", gpus=0.5)
    for cell in (labels["train"], labels["own"]):
        result = cells.run(cell, walk.ancestors(cell.key), context)
        assert result["status"] == "ok", result["error"]
    found = row(job, labels["own"])
    assert found["device_kind"] == "cuda" and found["seen"] == "[]" and found["peak_memory_mb"] > 0


SCRIPT = """
import sys
from pathlib import Path
from sweeper.tables import results
from tests.support import sweeps
sweeps.inline(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_child_ends_with_its_sweep(tmp_path: Path) -> None:
    path = sweeps.write(tmp_path, **{**ONE, "defenses": outside("stubborn")})
    command = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "store")]
    driver = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def below(pid: int) -> set[int]:
        pids = set()
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, task.read_text(encoding="ascii").split()):
                pids |= {child, *below(child)}
        return pids

    deadline = time.monotonic() + 60
    children: set[int] = set()
    while len(children) < 3:  # the tracker, the server, the child
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.1)
        children = below(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a child outlives its sweep"
        time.sleep(0.1)
