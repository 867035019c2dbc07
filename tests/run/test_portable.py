"""Portable sweeps: the same bits whatever the processor offers, and no process turned by them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sweeper.cli.app import app
from sweeper.core.errors import SweepError
from sweeper.engine import portable, training
from sweeper.engine.recipes import Recipe
from sweeper.run import calibrate, cells, estimate
from sweeper.run.progress import Progress
from sweeper.store.artifacts import Store
from tests.support import sweeps
from tests.support.places import ROOT

RECIPE = {"epochs": 1, "precision": "portable"}
TINY: dict[str, Any] = {
    "datasets": [{"dataset": "digits", "train_size": 300, "test_size": 100}],
    "models": [{"model": "tiny", "width": 4}],
    "attacks": ["badnets"],
    "poison_rates": [0.1],
    "seeds": 1,
    "recipe": RECIPE,
}
OLDER = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
}
"""Have torch, oneDNN and MKL take the processor for one without AVX."""
SCRIPT = """
import sys
from pathlib import Path
from sweeper.engine import portable
from tests.support import sweeps
if "portable" in Path(sys.argv[1]).read_text():
    assert portable.enter()
counts, _ = sweeps.inline(Path(sys.argv[1]), Path(sys.argv[2]))
assert counts == {"ok": 3}, counts
"""


def elsewhere(code: str, *arguments: Any, **environment: str) -> str:
    """What a script prints, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name not in OLDER}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**clean, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def victim(store: Path) -> Mapping[str, torch.Tensor]:
    """The weights of the only victim."""
    opened = Store(str(store))
    (key,) = opened.keys("train")
    return opened.get("train", key).tensors["model"]


def is_same(one: Path, other: Path) -> bool:
    """Whether two stores have the same victim, bit for bit."""
    first, second = victim(one), victim(other)
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the tiny sweep, run inline in this process."""
    folder = tmp_path_factory.mktemp("here")
    assert sweeps.inline(sweeps.write(folder, **TINY), folder / "store")[0] == {"ok": 3}
    return folder / "store"


def test_the_processor_changes_no_bit(here: Path, tmp_path: Path) -> None:
    elsewhere(SCRIPT, sweeps.write(tmp_path, **TINY), tmp_path / "store", **OLDER)
    assert is_same(here, tmp_path / "store")
    sweeps.assert_same(sweeps.frame(here), sweeps.frame(tmp_path / "store"))


def test_without_it_the_processor_does(tmp_path: Path) -> None:
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no AVX2 to do without")
    path = sweeps.write(tmp_path, **{**TINY, "recipe": {**RECIPE, "precision": "fp32"}})
    sweeps.inline(path, tmp_path / "store")
    elsewhere(SCRIPT, path, tmp_path / "older", **OLDER)
    assert not is_same(tmp_path / "store", tmp_path / "older")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["preact-resnet18", "mobilenet-v2", "vit-tiny"])
def test_no_bit_of_larger_models_either(model: str, tmp_path: Path) -> None:
    digits = {"dataset": "digits", "train_size": 60, "test_size": 20}
    path = sweeps.write(tmp_path, **{**TINY, "models": [model], "datasets": [digits]})
    for name, processor in (("all", {}), ("older", OLDER)):
        elsewhere(SCRIPT, path, tmp_path / name, **processor)
    assert is_same(tmp_path / "all", tmp_path / "older")
    sweeps.assert_same(*(sweeps.frame(tmp_path / name) for name in ("all", "older")))


def state() -> tuple[Any, ...]:
    """What is otherwise in a portable process."""
    return (
        dict(os.environ),
        torch.backends.mkldnn.enabled,
        torch._C._get_nnpack_enabled(),
        torch.get_num_threads(),
        torch.backends.cpu.get_cpu_capability(),
        portable.entered(),
    )


def test_this_process_stays_as_it_was_and_rows_say_how_they_were_computed(
    here: Path, tmp_path: Path
) -> None:
    before = state()
    path = sweeps.write(tmp_path, **TINY, resources={"cpus": 2})
    assert sweeps.inline(path, tmp_path / "store")[0] == {"ok": 3}
    assert state() == before and not portable.entered()
    found = sweeps.frame(tmp_path / "store")
    said = found[["dtype", "victim_dtype", "threads", "victim_threads", "capability"]]
    assert set(said.itertuples(index=False, name=None)) == {
        ("portable", "portable", 1, 1, "DEFAULT")
    }
    assert is_same(here, tmp_path / "store"), "one thread, whatever the sweep's resources say"


@pytest.mark.slow
def test_what_does_not_ship_is_portable_too(here: Path, tmp_path: Path) -> None:
    """A child of the cell's child."""
    own = {"defense": "tests.support.outside:Tuning", "as": "fine-tuning", "epochs": 1}
    path = sweeps.write(tmp_path, **{**TINY, "defenses": ["none", own]})
    assert sweeps.inline(path, tmp_path / "store")[0] == {"ok": 3}
    ours, theirs = (
        sweeps.frame(store).set_index("defense").sort_index()
        for store in (here, tmp_path / "store")
    )
    sweeps.assert_same(ours, theirs)


def test_a_cell_of_it_ends_as_others_do(tmp_path: Path) -> None:
    ended = {}
    for way, recipe in {
        "long": {"epochs": 10**6},
        "steep": {"epochs": 3, "weight_decay": 1e9},
    }.items():
        changes = {**TINY, "name": way, "recipe": {**RECIPE, **recipe}, "timeout": 2}
        job = sweeps.prepared(sweeps.write(tmp_path, **changes), tmp_path / "store")
        progress = Progress()
        ended[way] = cells.run(next(iter(job.plan.cells.values())), [], job.context, progress)
        assert progress.text.startswith("epoch") == (way == "long"), "it arrives meanwhile"
    assert ended["long"]["status"] == "timeout" and ended["long"]["error"] == "gave up after 2 s"
    assert ended["steep"]["status"] == "diverged" and "the loss of" in ended["steep"]["error"]


@pytest.mark.slow
def test_a_cell_of_it_that_is_out_of_memory_is_tried_once_more(tmp_path: Path) -> None:
    full = {"defense": "tests.support.faulty:OutOfMemory", "marks": str(tmp_path), "as": "full"}
    path = sweeps.write(tmp_path, **{**TINY, "defenses": [full]})
    assert sweeps.inline(path, tmp_path / "store")[0] == {"ok": 1, "failed": 1}
    assert len(list(tmp_path.glob("OutOfMemory-*"))) == 2


def test_a_calibration_times_it_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SECONDS", 0.1)
    before = state()
    job = sweeps.prepared(sweeps.write(tmp_path, **TINY), tmp_path / "store")
    book = estimate.known_costs(job, calibrated=True)
    cost = estimate.estimate(job, book, 1)
    assert cost.cells_rough == 3 and cost.cell_seconds > 0
    assert state() == before


def test_where_torch_has_computed_it_is_too_late() -> None:
    before = state()
    if before[-2] == "DEFAULT":
        pytest.skip("this processor has plain kernels only")
    with pytest.raises(SweepError, match="portable needs processes in which torch"):
        portable.require()
    assert state() == before


def test_a_debugger_cannot_be_in_a_child(tmp_path: Path) -> None:
    path, store = sweeps.write(tmp_path, **TINY), tmp_path / "store"
    job = sweeps.prepared(path, store)
    (key,) = (cell.key for cell in job.plan.cells.values() if cell.kind == "train")
    command = ["cell", str(path), key, "--store", str(store)]
    refused = CliRunner().invoke(app, [*command, "--here"])
    assert isinstance(refused.exception, SweepError) and "run in a child" in str(refused.exception)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert job.store.about("train", key)["conditions"]["dtype"] == "portable"


def test_a_gpu_computes_it_as_fp32() -> None:
    recipe = Recipe(precision="portable")
    assert training.precision(recipe, torch.device("cuda")) == "fp32"
    assert not portable.asked(RECIPE, "cuda") and portable.asked(RECIPE, "cpu")
    with training.autocast(recipe, torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
