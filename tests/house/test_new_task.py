"""A task of one's own is three new files and no other edit: here, waves told by their frequency."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sweeper
import sweeper.data
import sweeper.models
import sweeper.tasks
from sweeper.core.errors import SweepError
from sweeper.core.types import SampleSet
from sweeper.engine import task as tasks
from tests.support import sweeps

TASK = '''
"""Waves: float32 [N, T] with one label each."""

import torch

from sweeper.tasks.base import Classification


class Waves(Classification):
    """Telling waves apart."""

    title = "wave classification"
    recipe = {"epochs": 3, "crop": 0, "batch": 16}

    def pictures(self, samples):
        """Grey stripes."""
        return samples.inputs.mul(127).add(128).byte()[:, None, None].expand(-1, 1, 8, -1)
'''
DATA = '''
"""Waves of two frequencies."""

from dataclasses import dataclass

import torch

from sweeper.core import seeds
from sweeper.core.types import SampleSet
from sweeper.data.base import Source, Splits


@dataclass(frozen=True, kw_only=True)
class Waves(Source):
    """Sines of one or two periods, at any phase."""

    count: int = 120
    """Training waves."""

    names = {"waves": "sines"}
    task = "waves"
    shape = (16,)

    def serves(self, root):
        """By name."""
        return self.name == "waves"

    def files(self, root):
        """None."""
        return []

    def read(self, root):
        """Draw them."""
        return Splits(self.drawn("train", self.count), self.drawn("test", 60))

    def drawn(self, name, count):
        """Draw a split."""
        labels = torch.arange(count) % 2
        phase = torch.rand(count, 1, generator=seeds.generator("waves", name))
        turns = (1 + labels[:, None]) * torch.arange(16) / 16 + phase
        waves = (turns * 2 * torch.pi).sin()
        return SampleSet("waves", {"waves": waves, "labels": labels}, ("one", "two"))
'''
MODEL = '''
"""A perceptron for waves."""

from dataclasses import dataclass

from torch import nn

from sweeper.models.base import Family


@dataclass(frozen=True, kw_only=True)
class Waves(Family):
    """One hidden layer."""

    names = ("waves-mlp",)
    tasks = frozenset({"waves"})
    usual = (16,)

    def build(self, classes, shape):
        """Build it."""
        return nn.Sequential(nn.Linear(shape[0], 32), nn.ReLU()), nn.Linear(32, classes)
'''
PACKAGES = {"tasks": (sweeper.tasks, TASK), "data": (sweeper.data, DATA)}
PACKAGES |= {"models": (sweeper.models, MODEL)}


@pytest.fixture
def waves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The three files, in folders appended to the rooms they belong to."""
    for room, (package, text) in PACKAGES.items():
        folder = tmp_path / "own" / room
        folder.mkdir(parents=True)
        (folder / "waves.py").write_text(text.lstrip())
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()
    yield
    tasks.task.cache_clear()
    for room in PACKAGES:
        sys.modules.pop(f"sweeper.{room}.waves", None)
        vars(sys.modules[f"sweeper.{room}"]).pop("waves", None)


SWEEP = {"datasets": ["waves"], "models": ["waves-mlp"], "attacks": ["none"], "seeds": 1}
SWEEP |= {"recipe": {"epochs": 30}}
FEW = [
    "none",
    {"defense": "fine-tuning", "epochs": 2},
    {"defense": "fip", "steps": 3},
    {"defense": "f-fip", "steps": 3},
    {"defense": "ft-sam", "epochs": 2},
]


def test_a_task_is_three_files(waves: None, tmp_path: Path) -> None:
    path = sweeps.write(tmp_path, **SWEEP, clean_budgets=[12], defenses=[*FEW, "strip", "clp"])
    counts, _ = sweeps.inline(path, tmp_path / "store")
    assert counts == {"ok": 6}, "a victim and five defenses"
    rows = sweeps.frame(tmp_path / "store").set_index("defense")
    assert set(rows["task"]) == {"waves"} and set(rows["score"]) == {"accuracy"}
    assert rows.loc["none", "acc"] > 0.9, "the perceptron learns it"
    assert rows.loc["fip", "status"] == "ok" and rows.loc["fip", "n_test"] == 60
    for defense in ("strip", "clp"):
        assert rows.loc[defense, "status"] == "not_applicable"
        assert rows.loc[defense, "error"] == "is made for image data, these are waves"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"models": ["tiny"]},
            "none takes the samples of waves.*: add one of waves-mlp",
        ),
        ({"models": ["waves-mlp", "tiny"]}, "tiny takes image samples, no data set has such"),
        ({"recipe": {"crop": 4}}, "crop: means nothing for wave classification: set it to 0"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_runs(
    waves: None, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    path = sweeps.write(tmp_path, **{**SWEEP, "defenses": ["none"], **changes})
    with pytest.raises(SweepError, match=said):
        sweeps.prepared(path, tmp_path / "store")


def test_a_mirrored_motion_is_another_one(tmp_path: Path) -> None:
    values = {"datasets": ["moving"], "models": ["r3d-small"], "attacks": ["none"]}
    path = sweeps.write(tmp_path, **values, defenses=["none"], recipe="fip")
    with pytest.raises(SweepError, match="flip: makes other classes of the samples of moving"):
        sweeps.prepared(path, tmp_path / "store")


def test_a_model_is_paired_with_the_data_sets_it_takes(waves: None, tmp_path: Path) -> None:
    both = {"datasets": ["waves", "digits"], "models": ["waves-mlp", "tiny"]}
    path = sweeps.write(tmp_path, **{**SWEEP, **both, "defenses": ["none"]})
    cells = sweeps.prepared(path, tmp_path / "store").plan.cells.values()
    pairs = {(cell.axes["dataset"], cell.axes["model"]) for cell in cells}
    assert pairs == {("waves", "waves-mlp"), ("digits", "tiny")}


def test_an_unknown_task_is_said() -> None:
    with pytest.raises(SweepError, match="task"):
        tasks.of(SampleSet("wavs", {"waves": torch.zeros(2, 3)}, ()))


OUTSIDE = '''
"""A defense that is made for every task."""

from dataclasses import dataclass

from defenses.base import Defense
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class Mine(Defense):
    """Trains one epoch."""

    title = "mine"
    paper = "none"
    kind = "repair"
    sees = frozenset({"model", "clean", "train"})
    tasks = frozenset({"any"})

    def defend(self, case):
        """Train."""
        model = case.fresh_model()
        assert case.clean.task == case.train.task == "points" and case.clean.points.ndim == 3
        case.fit(model, case.clean, epochs=1, lr=0.01, batch=8)
        return Outcome(model=model, notes={"accuracy": case.accuracy(model, case.clean)})
'''


def test_a_defense_from_outside_gets_samples_of_any_task_in_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_points.py").write_text(OUTSIDE.lstrip())
    monkeypatch.syspath_prepend(str(tmp_path))
    solids = {"dataset": "solids", "per_class": 12, "test_per_class": 4, "points": 32}
    values = {"datasets": [solids], "models": ["pointnet-small"], "attacks": ["none"]}
    values |= {"clean_budgets": [16], "reserve": 0.25, "recipe": {"epochs": 2}, "seeds": 1}
    anp = {"defense": "anp", "eps": 0.4, "steps": 10}
    path = sweeps.write(tmp_path, **values, defenses=["none", "mine_points:Mine", anp])
    counts, _ = sweeps.inline(path, tmp_path / "store")
    rows = sweeps.frame(tmp_path / "store").set_index("defense")
    assert counts == {"ok": 4}, rows["error"].tolist()
    assert rows.loc["mine_points:Mine", "acc"] > 0 and set(rows["task"]) == {"points"}
    victim = sweeper.load_victim(rows.loc["none", "victim"], store=tmp_path / "store")
    assert victim.shape == (32, 3) and victim.model(torch.zeros(2, 32, 3)).shape == (2, 8)


def test_what_is_made_for_images_does_not_apply_to_points(tmp_path: Path) -> None:
    solids = {"dataset": "solids", "per_class": 12, "test_per_class": 4, "points": 32}
    values = {"datasets": [solids], "models": ["pointnet-small"], "attacks": ["badnets", "none"]}
    values |= {"reserve": 0.25, "clean_budgets": [16], "seeds": 1, "recipe": {"epochs": 1}}
    path = sweeps.write(tmp_path, **values, defenses=["none", "neural-cleanse", "strip"])
    plan = sweeps.prepared(path, tmp_path / "store").plan
    said = {(c.axes["attack"], c.axes["defense"]): c.reason for c in plan.inapplicable}
    assert said[("badnets", "none")] == "is made for clips and image data, these are points"
    assert said[("none", "strip")] == "is made for image data, these are points"
    assert {c.axes["defense"] for c in plan.cells.values() if c.kind == "defend"} == {"none"}
