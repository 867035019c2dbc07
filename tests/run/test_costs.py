"""What cells cost: nearest measured cells first, scaled; roughly where nothing was measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sweeper
from sweeper.core.types import Facts
from sweeper.plan.sweep import Shape
from sweeper.run import calibrate, costs, driver, estimate, record
from sweeper.run.costs import Book, Sort, Sorts
from sweeper.run.job import Job
from tests.support import sweeps

DATA = '{"dataset": "digits"}'
VICTIM = Sort("train", "badnets", "{}", DATA, "tiny {}", images=1000, epochs=10)
ANP = Sort("defend", "anp", '{"steps": 9}', DATA, "tiny {}", images=1000, epochs=10, clean=50)


def of(sort: Sort, **changes: Any) -> Sort:
    return dataclasses.replace(sort, **changes)


def test_a_victim_costs_the_median_of_its_like_by_epochs_and_images() -> None:
    known = Book()
    for seconds in (8.0, 10.0, 40.0):
        known.add(VICTIM, seconds)
    assert known.seconds(VICTIM) == (10.0, False)
    assert known.seconds(of(VICTIM, epochs=20)) == (20.0, False)
    assert known.seconds(of(VICTIM, epochs=20, images=500)) == (10.0, False)
    assert known.seconds(of(VICTIM, method="blend")) == (10.0, False), "any attack, then"
    large = '{"dataset": "digits", "train_size": 100}'
    assert known.seconds(of(VICTIM, dataset=large, images=100)) == (1.0, False)
    assert known.seconds(of(VICTIM, model="resnet18 {}")) is None
    known.add(of(VICTIM, method="lira"), 99.0)
    assert known.seconds(of(VICTIM, method="lira", options="{1}")) == (99.0, False)


def test_a_victim_that_is_not_trained_tells_nothing_of_one_that_is() -> None:
    known = Book()
    known.add(of(VICTIM, method="imported", epochs=0), 0.0)
    assert known.seconds(of(VICTIM, method="imported", epochs=0)) == (0.0, False)
    assert known.seconds(ANP) is None
    known.add(VICTIM, 10.0)
    assert known.seconds(of(ANP, method="none-training")) == (15.0, True)


def test_a_defense_costs_what_it_did_or_so_many_epochs_of_its_victim() -> None:
    known = Book()
    known.add(VICTIM, 10.0)
    known.add(ANP, 3.0, victim=10.0)
    assert known.seconds(ANP) == (3.0, False)
    slower = of(ANP, model="resnet18 {}")
    assert known.seconds(slower) is None, "no victim of that model tells the pace"
    known.add(of(VICTIM, model="resnet18 {}"), 70.0)
    assert known.seconds(slower) == (21.0, False)
    assert known.seconds(of(ANP, clean=99)) == (3.0, False)
    other, rough = known.seconds(of(ANP, method="fine-tuning")) or (0.0, False)
    assert rough and other == costs.ROUGH["repair"] * 1.0


def test_what_was_never_measured_is_rough_and_follows_a_calibration() -> None:
    known = Book()
    assert known.seconds(VICTIM) is None
    known.enter((DATA, "tiny {}"), 1e-3)
    assert known.seconds(VICTIM) == (10.0, True)
    assert known.seconds(of(VICTIM, kind="stage", method="sd")) == (13.0, True)
    assert known.seconds(of(ANP, method="d-st")) == (15.0, True)
    known.add(VICTIM, 20.0)
    assert known.seconds(VICTIM) == (20.0, False), "a measured cell counts before it"


def test_what_is_not_known_is_not_called_nothing() -> None:
    """A cell that trains nothing tells nothing of one that does, nor the other way round."""
    known = Book()
    imported = of(VICTIM, method="imported", epochs=0)
    known.add(imported, 0.0)
    assert known.seconds(VICTIM) is None, "an imported victim takes no time, BadNets does"
    known.add(VICTIM, 10.0)
    assert known.seconds(of(imported, method="sra")) is None, "no epochs, yet no 0 s"
    assert known.seconds(of(ANP, method="abl", epochs=0)) is None, "it trains, who knows how long"
    assert known.seconds(imported) == (0.0, False), "that was measured"


def test_other_options_and_other_code_tell_a_cost_roughly_at_most() -> None:
    known = Book()
    known.add(VICTIM, 10.0)
    short = of(ANP, options='{"steps": 1}')
    known.add(short, 0.01, victim=10.0)
    assert known.seconds(short) == (0.01, False)
    assert known.seconds(ANP) == (0.01, True), "2,000 steps may cost more than one"
    mine = of(short, method="mine:Own", code="a1")
    known.add(mine, 0.01, victim=10.0)
    for sort in (of(mine, code="b2"), of(mine, code="b2", options="{}")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(costs, "_kind", lambda _: "repair")
            assert known.seconds(sort) == (costs.ROUGH["repair"], True), "it was edited since"


def test_a_row_of_a_method_of_ones_own_has_its_code(ran: tuple[Path, Path]) -> None:
    job = sweeps.prepared(*ran)
    sorts = Sorts(job.plan)
    rows = job.store.recent_rows(costs.COLUMNS, costs.RECENT)
    row = next(row for row in rows if row["defense_name"] == "fine-tuning")
    assert sorts.of_row(row)[0].code == "", "what ships is told by its version"
    hashed = json.loads(row["code"])["defense"]
    sorts.edited["defense", "fine-tuning"] = hashed
    assert sorts.of_row(row)[0].code == hashed
    assert sorts.of_row({**row, "code": None})[0].code == ""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep file, and the store it ran into.

    A clean model, the images made with it, two victims, two stages, six defense cells.
    """
    folder = tmp_path_factory.mktemp("costs")
    defenses: list[Any] = ["none", {"defense": "fine-tuning", "epochs": 1}]
    defenses.append({"detect": "spectral-signatures", "then": "unlearn"})
    attacks = ["badnets", "clean-label"]
    path = sweeps.write(folder, attacks=attacks, defenses=defenses, poison_rates=[0.1], seeds=1)
    sweeps.inline(path, folder / "store")
    return path, folder / "store"


def known(job: Job) -> tuple[Book, Sorts]:
    return estimate.known_costs(job), Sorts(job.plan)


def test_a_store_tells_the_cost_of_its_own_cells(ran: tuple[Path, Path]) -> None:
    job = sweeps.prepared(*ran)
    found, sorts = known(job)
    assert found.device == record.device_name("cpu")
    assert found.cells == len(job.plan.cells), "each counts once, whoever mentions it"
    frame = sweeps.frame(ran[1])
    for key, cell in job.plan.cells.items():
        seconds, rough = found.seconds(sorts.of(cell)) or (-1.0, True)
        assert not rough, cell
        if cell.kind == "defend":
            same = frame[frame["defense"] == cell.axes["defense"]]["seconds"]
            assert seconds == pytest.approx(same.median()), key
        elif cell.kind != "stage":
            own = job.store.meta(cell.kind, key)["result"]["seconds"]
            assert seconds == pytest.approx(own), key


def test_victims_without_a_row_count_and_another_device_does_not(
    ran: tuple[Path, Path], tmp_path: Path
) -> None:
    job = sweeps.prepared(*ran)
    store = type(job.store)(str(tmp_path))
    victim = next(cell for cell in job.plan.cells.values() if cell.kind == "train")
    meta = dict(job.store.meta("train", victim.key))
    store.put("train", victim.key, {}, meta)
    sort = Sorts(job.plan).of(victim)
    device = meta["device"]
    assert costs.book(store, job.plan, device).seconds(sort) == (meta["result"]["seconds"], False)
    assert not costs.book(store, job.plan, "NVIDIA H200").cells
    assert not costs.book(job.store, job.plan, "NVIDIA H200").cells
    assert costs.book(job.store, job.plan).device == device, "where most rows are from"


def test_rows_of_older_code_and_damaged_ones_do_not_stop_a_plan(
    ran: tuple[Path, Path], tmp_path: Path
) -> None:
    job = sweeps.prepared(ran[0], tmp_path)
    row = {"sweep": "small", "key": "0" * 20, "status": "ok", "seconds": 1.0}
    job.store.write_row(row)
    results = tmp_path / "sweeps" / "small" / "results"
    (results / f"{'1' * 20}.ok.parquet").write_bytes(b"no")
    whole = (results / f"{'0' * 20}.ok.parquet").read_bytes()
    for place in range(0, len(whole), 97):  # damaged anywhere: pyarrow raises one thing or another
        torn = whole[:place] + bytes(97) + whole[place + 97 :]
        (results / f"{place:020x}.ok.parquet").write_bytes(torn)
    (tmp_path / "sweeps" / "not a sweep").mkdir()
    assert not known(job)[0].cells
    assert (tmp_path / "sweeps" / "small" / "results" / f"{'1' * 20}.ok.parquet").exists()


PRICES = {"prepare": 1.0, "train": 10.0, "stage": 5.0, "defend": 2.0}


def priced(job: Job) -> Book:
    """What is known where every kind has one price."""
    sorts, found = Sorts(job.plan), Book("a device")
    for cell in job.plan.cells.values():
        found.add(sorts.of(cell), PRICES[cell.kind])
    return found


def test_an_estimate_adds_up_what_is_to_run(ran: tuple[Path, Path], tmp_path: Path) -> None:
    job = sweeps.prepared(ran[0], tmp_path)
    counts = {"prepare": 1, "train": 3, "stage": 2, "defend": 6, "not_applicable": 0}
    assert job.plan.counts() == counts
    found = estimate.estimate(job, priced(job), 1)
    assert found.cell_seconds == found.wall_seconds == 1 + 3 * 10 + 2 * 5 + 6 * 2
    assert found.core_hours == round(53 / 3600, 6) and found.gpu_hours == 0
    assert estimate.estimate(job, priced(job), 99).wall_seconds == 10 + 1 + 10 + 5 + 2
    assert found.saved_seconds == 2 * 10 + 2 * (10 + 1 + 10), "each victim has three defenses"
    assert (found.cells_measured, found.cells_rough, found.cells_unknown) == (12, 0, 0)
    finished = estimate.estimate(sweeps.prepared(*ran), priced(job), 1)
    assert finished.cell_seconds == 0 and finished.saved_seconds == found.saved_seconds


def test_cells_of_milliseconds_are_no_cells_for_nothing(tmp_path: Path) -> None:
    """On a fast machine a whole sweep may take less than a tenth of a second."""
    job = sweeps.prepared(sweeps.write(tmp_path), tmp_path / "store")
    sorts, book = Sorts(job.plan), Book("a device")
    for cell in job.plan.cells.values():
        book.add(sorts.of(cell), 0.002)
    found = estimate.estimate(job, book, 1)
    assert found.cell_seconds == found.wall_seconds == round(0.002 * len(job.plan.cells), 3)
    assert found.saved_seconds > 0


def test_cells_of_different_shapes_run_side_by_side(tmp_path: Path) -> None:
    """10 s for each of 8 victims, 5 s for their 8 stages, 2 s for 24 rows, 8 of them light."""
    defenses = ["none", {"defense": "fine-tuning", "epochs": 1}, "d-br"]
    changes: dict[str, Any] = {"poison_rates": [0.1], "seeds": 4, "defenses": defenses}
    shapes = {"gpus": 0.25, "train": {"gpus": 1}, "light": {"cpus": 2}}
    job = sweeps.prepared(sweeps.write(tmp_path, **changes, resources=shapes), tmp_path / "store")
    gpus, cores = 2, 16

    def room(shape: Shape) -> int:
        by_cpu = cores // shape.cpus
        return min(by_cpu, int(gpus / shape.gpus)) if shape.gpus else by_cpu

    assert estimate.together(job.shapes, room) == 8 + 4, "eight quarters, on the other CPUs light"
    found = estimate.estimate(job, priced(job), 12, room)
    assert found.wall_seconds == 8 * 10 / 2 + 8 * 5 / 8 + 16 * 2 / 8, "the GPUs are the last"
    assert found.core_hours == round((80 + 40 + 32 + 2 * 16) / 3600, 6)
    assert found.gpu_hours == round((80 + 0.25 * (40 + 32)) / 3600, 6)
    gpus, cores = 99, 2
    assert estimate.estimate(job, priced(job), 12, room).wall_seconds == (152 + 2 * 16) / 2
    assert estimate.estimate(job, priced(job), 1, room).wall_seconds == 80 + 40 + 48, "inline"
    gpus = 0
    assert estimate.together(job.shapes, room) == 1, "until there is a GPU"
    assert estimate.estimate(job, priced(job), 1, room).wall_seconds == 168, "as if there were one"


def test_light_cells_on_a_cpu_do_not_cost_what_they_did_on_the_gpu(
    ran: tuple[Path, Path], tmp_path: Path
) -> None:
    changes = {"attacks": ["badnets", "clean-label"], "poison_rates": [0.1], "seeds": 1}
    shapes = {"gpus": 1, "light": {"cpus": 1}}
    job = sweeps.prepared(sweeps.write(tmp_path, **changes, resources=shapes), ran[1])
    sorts, cpu = Sorts(job.plan), record.device_name("cpu")
    light, tuned = (
        sorts.of(next(c for c in job.plan.cells.values() if c.axes.get("defense") == name))
        for name in ("none", "fine-tuning")
    )
    assert light.aside and not tuned.aside
    beside = costs.book(job.store, job.plan, "NVIDIA H200", cpu)
    assert beside.seconds(light) and beside.seconds(tuned) is None, "its GPU has run nothing yet"
    beside.add(of(tuned, kind="train", method="badnets", clean=0), 9.0)
    assert (beside.seconds(tuned) or (0, False))[1], "roughly, by that training"
    alone = costs.book(type(job.store)(str(tmp_path)), job.plan, "NVIDIA H200", cpu)
    alone.add(of(tuned, kind="train", method="badnets", clean=0), 9.0)
    assert alone.seconds(light) is None, "a training on the GPU tells nothing of a CPU"
    far = costs.book(job.store, job.plan)
    assert far.device == cpu and far.seconds(tuned), "elsewhere: where most rows are from"


class Priced(sweeps.Silent):
    """Lets a bill believe that every cell took what its kind costs."""

    def __init__(self, bill: estimate.Bill) -> None:
        super().__init__()
        self.bill = bill

    def finished(self, cell: Any, result: Any) -> None:
        result = result if result["seconds"] is None else {**result, "seconds": PRICES[cell.kind]}
        self.bill.finished(cell, result)


def test_a_bill_says_what_sharing_saved(ran: tuple[Path, Path], tmp_path: Path) -> None:
    job = sweeps.prepared(ran[0], tmp_path)
    bill = estimate.Bill(job, sweeps.Silent())
    driver.execute(job, driver.inline, Priced(bill))
    assert bill.saved() == 2 * 10 + 2 * (10 + 1 + 10)
    assert bill.sentence().endswith(" s; 53 s of cell time, sharing victims saved 62 s")
    again = sweeps.prepared(ran[0], tmp_path)
    bill = estimate.Bill(again, sweeps.Silent())
    driver.execute(again, driver.inline, bill)
    assert bill.sentence() == "", "nothing ran"


def test_a_victim_of_an_earlier_run_saves_all_it_took(
    ran: tuple[Path, Path], tmp_path: Path
) -> None:
    first = sweeps.write(tmp_path, attacks=["badnets"], poison_rates=[0.1], seeds=1)
    sweeps.inline(first, tmp_path / "store")
    more = ["none", {"defense": "fine-tuning", "epochs": 1}, "clp", "bnp"]
    grown = sweeps.write(tmp_path, attacks=["badnets"], poison_rates=[0.1], seeds=1, defenses=more)
    job = sweeps.prepared(grown, tmp_path / "store")
    bill = estimate.Bill(job, sweeps.Silent())
    driver.execute(job, driver.inline, bill)
    (victim,) = [key for key, cell in job.plan.cells.items() if cell.kind == "train"]
    took = job.store.meta("train", victim)["result"]["seconds"]
    assert bill.saved() == pytest.approx(2 * took), "two new defenses, no training"


def test_what_people_read_of_an_estimate() -> None:
    about = estimate.Estimate("GPU X", 4, 7200.0, 1800.0, 2.0, 0.5, 90.0, 30, 0, 0)

    def said(**changes: Any) -> list[str]:
        return estimate.sentences(dataclasses.replace(about, **changes), {"store": "s"})

    assert said() == [
        "cost: about 30 min, 4 cells at once; 2 h 00 min of core time, 0.5 GPU-hours on GPU X"
    ]
    assert said(cells_rough=10)[1:] == [
        "      only roughly known for 10 of 40 cells: none like them was measured"
    ]
    rough = said(cells_measured=0, cells_rough=9, cells_unknown=2000)
    assert rough[0].startswith("cost, a rough estimate: at least 30 min")
    assert rough[1:] == ["      the cost of 2,000 of 2,009 cells is unknown and comes on top"]
    small = said(wall_seconds=0.0, core_hours=0.0, gpu_hours=0.0)
    assert small == [
        "cost: less than 0.1 s, 4 cells at once; less than 0.1 s of core time on GPU X"
    ]
    (first, second) = said(cells_measured=0, cells_unknown=7)
    assert first == "cost: unknown, no such victims stored from GPU X;"
    assert "`sweep.plan(store='s', calibrate=True)`" in second
    assert said(cells_measured=0) == [], "nothing to run"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (0.94, "0.9 s"),
        (1.4, "1 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (5969, "99 min"),
        (5990, "1 h 40 min"),
        (47.99 * 3600, "47 h 59 min"),
        (48 * 3600, "2.0 days"),
        (9.96 * 86400, "10 days"),
        (3678.2 * 86400, "3,678 days"),
    ],
)
def test_lengths_of_time(seconds: float, said: str) -> None:
    assert estimate.spoken(seconds) == said


def test_a_calibration_gives_each_model_its_pace(
    ran: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sweeps.write(tmp_path, models=["tiny", {"model": "resnet18", "width": 8}])
    job = sweeps.prepared(path, tmp_path / "store")
    monkeypatch.setattr(calibrate, "SECONDS", 0.2)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = estimate.estimate(job, estimate.known_costs(job, calibrated=True), 1)
    assert found.cells_rough + found.cells_unknown == len(job.plan.cells)
    assert found.cells_rough and found.cell_seconds > 0
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    monkeypatch.setattr(calibrate, "SECONDS", 60.0)
    monkeypatch.setattr(calibrate, "_pace", lambda *_: 1e-3)
    rows = estimate.estimate(job, estimate.known_costs(job, calibrated=True), 1)
    assert rows.cells_rough == len(job.plan.cells)
    known = sweeps.prepared(*ran)
    monkeypatch.setattr(calibrate, "_pace", None)
    estimate.known_costs(known, calibrated=True)  # its victims tell the pace: nothing is trained


def test_a_plan_from_python_has_the_estimate(ran: tuple[Path, Path]) -> None:
    sweep = sweeper.Sweep.from_yaml(ran[0], ["seeds=2"])
    about = sweep.plan(store=ran[1])["estimate"]
    assert about["cells_measured"] == about["cells_rough"] + about["cells_measured"] > 0
    assert about["wall_seconds"] > 0 and about["parallel"] >= 1


def test_samples_without_classes_are_counted_too() -> None:
    """Sentences and scenes: no class counts, yet as many as there are."""
    told = Facts("phrases", "d", 500, (30,), n_train=4000, n_reserve=400, task="pairs")
    plan: Any = SimpleNamespace(facts={"phrases": told}, sweep=SimpleNamespace(reserve=0.1))
    assert costs.images(plan, "phrases") == 3600
    plan.facts["phrases"] = Facts("phrases", "", task="pairs")
    assert costs.images(plan, "phrases") == 45_000, "of what is not here nothing is known"
