"""Every attack, defense and analysis runs where tensors of the device and of the CPU do not mix."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support import pretend
from tests.support.places import ROOT

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no g++ to make a device with")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the device is compiled once for all tests."""
    return tmp_path_factory.mktemp("device")


def ran(folder: Path, *words: str) -> str:
    """What Python printed in a process of its own, which may know another device after it."""
    path = os.pathsep.join((".", os.environ.get("PYTHONPATH", "")))
    more = {"PYTHONPATH": path, "SWEEPER_CACHE": str(folder / "cache")}
    asked, home = [sys.executable, *words], ROOT
    done = subprocess.run(asked, capture_output=True, text=True, cwd=home, env=os.environ | more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_every_method(folder: Path, device: str) -> None:
    found = json.loads(ran(folder, pretend.__file__, str(folder), device).splitlines()[-1])
    assert not found, "\n".join(f"{cell}: {error}" for cell, error in found.items())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_compiler
def test_every_method_runs_where_devices_do_not_mix(folder: Path) -> None:
    check_every_method(folder, "pretend")


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_every_method_runs_on_a_gpu(folder: Path) -> None:
    check_every_method(folder, "cuda")


MIXED = """
import pathlib, sys, torch
from tests.support import pretend
pretend.load(pretend.compiled(pathlib.Path(sys.argv[1])))
here, there = torch.ones(3, 4, device="pretend"), torch.ones(3, 4)
places = torch.zeros(2, dtype=torch.long, device="pretend")
mixed = {
    "sum": lambda: here + there,
    "product": lambda: here @ there.T,
    "joined": lambda: torch.cat([here, there]),
    "joined numbers": lambda: torch.stack([here.sum(), there.sum()]),
    "chosen": lambda: there[places],
    "placed": lambda: there.index_put_((places,), torch.ones(4)),
    "drawn": lambda: torch.rand(3, device="pretend", generator=torch.Generator()),
    "read": lambda: here.numpy(),
    "convolved": lambda: torch.conv2d(here.view(1, 1, 3, 4), torch.ones(1, 1, 1, 1)),
}
for name, work in mixed.items():
    try:
        work()
    except (RuntimeError, TypeError):
        continue
    raise SystemExit(f"{name}: not refused")
allowed = [here + torch.tensor(2.0), here[torch.tensor([0, 1])], here.clone().mul_(3)]
assert all(one.device.type == "pretend" for one in allowed)
assert torch.equal(allowed[2].cpu(), 3 * there)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_compiler
def test_the_pretended_device_refuses_what_a_gpu_refuses(folder: Path) -> None:
    ran(folder, "-c", MIXED, str(folder))


WAITS = """
import pathlib, sys, torch
from dataclasses import replace
from sweeper.engine import training
from tests.support import pretend, toys
device = pretend.load(pretend.compiled(pathlib.Path(sys.argv[1])))
here, given = torch.device("pretend"), {"batch": 16, "crop": 2, "flip": True, "rotation": 9.0}
for epochs in (1, 3):
    for images in (64, 256):
        recipe = replace(toys.RECIPE, epochs=epochs, erase=0.5, precision="bf16", **given)
        model, before = toys.network(torch.Generator().manual_seed(0)), device.waits()
        training.fit(model, toys.image_set(images), recipe, key="waits", device=here)
        print(device.waits() - before)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_compiler
def test_training_waits_for_the_device_once_for_the_images_and_once_an_epoch(folder: Path) -> None:
    assert ran(folder, "-c", WAITS, str(folder)).split() == ["2", "2", "4", "4"]


GRAPHED = """
import os, pathlib, sys, torch
from dataclasses import replace
from sweeper.engine import graphed, training
from tests.support import pretend, toys
from tests.support.tape import Tape
pretend.load(pretend.compiled(pathlib.Path(sys.argv[1])))
graphed.RECORDERS["pretend"] = Tape
recipe = replace(toys.RECIPE, epochs=2, crop=2, flip=True, precision="bf16")
for switch in "01":
    os.environ[graphed.SWITCH] = switch
    model = toys.network(torch.Generator().manual_seed(0))
    print(training.fit(
        model, toys.image_set(200), recipe, key="graph", device=torch.device("pretend")
    ))
print(Tape.made[0].replayed)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_compiler
def test_recorded_and_eager_steps_agree_on_the_pretended_device(folder: Path) -> None:
    eager, recorded, replayed = ran(folder, "-c", GRAPHED, str(folder)).splitlines()
    assert eager == recorded and int(replayed) == 2 * 6 - 3
