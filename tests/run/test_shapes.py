"""Shapes of resources at work: what each cell is given, and what its row says it had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import sweeper
from sweeper import api
from sweeper.core.errors import SweepError
from sweeper.plan import matrix
from sweeper.plan.sweep import Shape
from sweeper.run import driver, rays, start
from sweeper.run.job import Job
from sweeper.run.material import Material
from tests.support import sweeps
from tests.support.commands import call

ONE: dict[str, Any] = {
    **sweeps.SMALL, "attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1,
    "defenses": ["none", {"defense": "fine-tuning", "epochs": 1}],
}  # fmt: skip
GPUS = {"train": {"gpus": 1, "cpus": 4}, "defend": {"gpus": 0.25, "cpus": 2}, "light": {"cpus": 1}}
ALL_BUT_LIGHT = {"gpus": 1, "light": {"cpus": 1}}


def planned(store: Path, **changes: Any) -> Job:
    sweep = sweeper.Sweep.from_values({**ONE, **changes})
    return driver.prepare(sweep.declared, sweep.context(store, here=False))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_cell_runs_under_the_threads_and_device_of_its_shape(tmp_path: Path) -> None:
    job = planned(tmp_path, resources=GPUS)
    found = {
        cell.axes.get("defense", cell.kind): job.context_of(cell)
        for cell in job.plan.cells.values()
    }
    assert {name: (c.device, c.gpus, c.threads) for name, c in found.items()} == {
        "train": ("cuda", 1, 4), "fine-tuning": ("cuda", 0.25, 2), "none": ("cpu", 0, 1),
    }  # fmt: skip
    assert {c.store for c in found.values()} == {str(tmp_path)}
    assert len({c.run for c in found.values()}) == 1, "one call"
    assert job.shapes == (Shape(cpus=4, gpus=1), Shape(), Shape(cpus=2, gpus=0.25))


def test_a_portable_cell_has_one_thread_on_a_cpu_and_its_own_on_a_gpu(tmp_path: Path) -> None:
    recipe = {"epochs": 1, "precision": "portable"}
    shapes = {"train": {"gpus": 1, "cpus": 4}, "light": {"cpus": 2}}
    job = planned(tmp_path, recipe=recipe, resources=shapes)
    found = {matrix.shape_of(cell): job.context_of(cell) for cell in job.plan.cells.values()}
    assert {name: (c.portable, c.threads) for name, c in found.items()} == {
        "train": (False, 4), "light": (True, 1), "defend": (True, 1),
    }  # fmt: skip
    assert job.context == found["train"]


def test_rows_say_what_each_cell_had_and_only_training_measures_a_victim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, evaluate = [], Material.evaluate

    def told(self: Material, predict: Any, key: str) -> Any:
        measured.append((self.cell.kind, key == self.victim.key))
        return evaluate(self, predict, key)

    monkeypatch.setattr(Material, "evaluate", told)
    shapes = {"train": {"cpus": 2}, "defend": {"cpus": 3}, "light": {"cpus": 1}}
    sweep = sweeper.Sweep.from_values({**ONE, "resources": shapes})
    assert sweep.run(store=tmp_path, executor="inline", quiet=True) == {"ok": 3}
    rows = sweeps.frame(tmp_path).set_index("defense")
    assert rows["threads"].to_dict() == {"none": 1, "fine-tuning": 3}
    assert set(rows["victim_threads"]) == {2} and set(rows["device_kind"]) == {"cpu"}
    assert sorted(measured) == [("defend", False), ("defend", False), ("train", True)]


def test_a_gpu_is_missed_only_by_what_asks_for_one(
    tmp_path: Path, no_gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = sweeps.write(tmp_path, **ONE), tmp_path / "store"
    sweeps.inline(path, store)
    light = {**ONE, "defenses": [*ONE["defenses"], "bnp"], "resources": ALL_BUT_LIGHT}
    sweep = sweeper.Sweep.from_values(light)
    assert sweep.run(store=store, executor="inline", quiet=True) == {"ok": 1}
    heavy = sweeper.Sweep.from_values({**light, "seeds": [7]})
    with pytest.raises(SweepError, match=r"^resources.gpus: .* --set 'resources=\{cpus: 1\}'$"):
        heavy.run(store=store, executor="inline", quiet=True)
    with pytest.raises(SweepError, match="torch sees none"):
        heavy.context(store)
    keys = sweeps.frame(store).reset_index().set_index("defense")["key"]
    shapes = ("--store", store, "--set", "resources={gpus: 1, light: {cpus: 1}}")
    assert call(capsys, "cell", path, keys["none"], *shapes).code == 0
    assert "torch sees none" in call(capsys, "cell", path, keys["fine-tuning"], *shapes).sentence


def test_ray_is_asked_for_room_for_every_shape_that_cells_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float]] = []
    rooms = {(1, 0): 16, (4, 1): 2, (2, 0.25): 8}

    def connect(_: None, shapes: Sequence[Shape], __: dict[str, Path]) -> None:
        asked.extend((shape.cpus, shape.gpus) for shape in shapes)

    monkeypatch.setattr(start, "connect", connect)
    monkeypatch.setattr(rays, "room", lambda *shape: rooms[shape])
    job, console = planned(tmp_path, resources=GPUS), Console(quiet=True)
    assert api._with_ray(job, None, console)[1](Shape(cpus=4, gpus=1)) == 2
    assert sorted(asked) == sorted(rooms)
    asked.clear()
    api._with_ray(planned(tmp_path, resources=GPUS, defenses=["none"]), None, console)
    assert sorted(asked) == [(1, 0), (4, 1)], "no cell has the third"
