"""Every method on a device that is no CPU: `python -m tests.support.pretend FOLDER [DEVICE]`.

Where no GPU is, `pretend.cpp` makes a device called "pretend" of the CPU: it computes what the CPU
does and refuses what a GPU refuses. It is compiled into the folder. The last line printed is JSON:
the cells and analyses that did not end well, with their errors.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
import traceback
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image

from sweeper.analyses import analyze, looks
from sweeper.core import catalog
from sweeper.run import driver
from tests.support import pictures, sweeps, toys

SOURCE = Path(__file__).with_suffix(".cpp")
SUITED = {
    "semantic": {"members": "dark", "share": 0.3},
    "low-frequency": {"samples": 30, "overshoot": 0.5},
}
"""Options that let an attack run on few images, or in seconds."""


def compiled(folder: Path) -> Path:
    """The device as an extension module in this folder, made unless it is there."""
    from torch.utils import cpp_extension

    made, home = folder / "pretend_device.so", Path(torch.__file__).parent / "lib"
    if made.exists():
        return made
    includes = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    subprocess.run(
        [
            *("g++", "-std=c++20", "-O0", "-fPIC", "-shared", "-w", str(SOURCE), "-o", str(made)),
            f"-DTORCH_EXTENSION_NAME={made.stem}",
            *(f"-isystem{path}" for path in includes),
            *(f"-L{home}", f"-Wl,-rpath,{home}"),
            *("-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"),
        ],
        check=True,
    )
    return made


def load(made: Path) -> Any:
    """Make torch know the device "pretend", for good in this process.

    Returns:
        The extension; its `waits()` counts how often the CPU waited for the device.
    """
    about = importlib.util.spec_from_file_location(made.stem, made)
    assert about and about.loader
    device = importlib.util.module_from_spec(about)
    about.loader.exec_module(device)
    torch.utils.rename_privateuse1_backend("pretend")
    module = ModuleType("torch.pretend")
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "_is_in_bad_fork": False,
        "get_amp_supported_dtype": [torch.bfloat16],
        "manual_seed_all": None,
    }
    for name, answer in answers.items():
        setattr(module, name, lambda *_, answer=answer: answer)
    torch._register_device_module("pretend", module)
    torch.utils.generate_methods_for_privateuse1_backend()
    return device


class Errors(sweeps.Silent):
    """A watcher that keeps what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def finished(self, cell: Any, result: Any) -> None:
        super().finished(cell, result)
        if result["status"] != "ok":
            method = cell.axes.get("defense") or cell.axes.get("attack")
            self.found[f"{cell.kind} {method} {cell.key}"] = result["error"]


def entries(kind: str) -> list[dict[str, Any]]:
    """Every method with its default options, made short."""
    found = []
    for name in catalog.names(kind):
        if name != "imported":  # it trains nothing
            short = toys.small(catalog.method(kind, name))
            found.append({kind: name, **short, **SUITED.get(name, {})})
    return found


def failures(folder: Path, device: str) -> dict[str, str]:
    """Run all attacks, all defenses against one of them, in bfloat16, then all analyses of it."""
    for split, count in (("train", 800), ("test", 200)):
        data = toys.image_set(count, seed=len(split))
        images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images]
        file = folder / f"data/toys/{split}.parquet"
        pictures.write_parquet(file, images, data.labels.tolist(), data.classes)
    shared: dict[str, Any] = {
        "datasets": ["toys"],
        "models": [{"model": "tiny", "width": 4}],
        "poison_rates": [0.1],
        "seeds": 1,
        "clean_budgets": [80],
        "recipe": {"epochs": 1, "crop": 2, "flip": True, "precision": "bf16"},
    }
    found: dict[str, str] = {}
    for kind in ("attack", "defense"):
        methods = {"attacks": ["badnets"], "defenses": ["none"], f"{kind}s": entries(kind)}
        path = sweeps.write(folder, name=f"all-{kind}s", **shared, **methods)
        job = sweeps.prepared(path, folder / "store", data=str(folder / "data"))
        watcher = Errors()
        driver.execute(
            replace(job, context=replace(job.context, device=device)), driver.inline, watcher
        )
        assert len(watcher.cells) >= len(methods[f"{kind}s"]), "cells were left out"
        found |= watcher.found
    return found | looks_failing(job.plan.sweep, replace(job.context, device=device), folder)


def looks_failing(sweep: Any, context: Any, folder: Path) -> dict[str, str]:
    """Look into the sweep's victim with every analysis, before and after a defense."""
    found: dict[str, str] = {}
    for name in looks.names():
        for after in ("", "fine-tuning"):
            try:
                given = sweep, context, folder / "looks"
                made = list(analyze.pictures(name, toys.small_look(name), *given, after=after))
                assert made, "no victim was looked at"
            except Exception:
                found[f"analysis {name} {after}"] = traceback.format_exc()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, device = Path(sys.argv[1]), (sys.argv[2:] or ["pretend"])[0]
    if device == "pretend":
        load(compiled(where))
    sys.stdout.write(json.dumps(failures(where, device)) + "\n")
