"""What of this machine a sweep will use, and whether it is right: `sweeper doctor`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sweeper import data
from sweeper.core.errors import StoreError, SweepError
from sweeper.core.machine import cores
from sweeper.plan import known, matrix, spec
from sweeper.run import calibrate, record
from sweeper.run.costs import Book, Sorts
from sweeper.run.estimate import spoken
from sweeper.run.material import Context
from sweeper.store.files import Files

OK, WARNING, PROBLEM = "ok", "warning", "problem"
ROOM, MEMORY = 5 * 10**9, 4 * 10**9
"""Bytes below which a disk, or memory, is short: a few hundred victims of ResNet-18; two cells."""
DATASET, MODELS = "cifar10", ("tiny", "resnet18")
"""Whose training is timed."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    """What it is."""
    state: str
    """ok | warning | problem."""
    text: str
    """What was found."""
    remedy: str = ""
    """What to do; empty where nothing is to be done."""


def findings(store: str, folder: str | None, *, ray: bool = False) -> Iterator[Finding]:
    """Look at all there is, one thing after the other; the last takes about 5 s.

    Args:
        store: Where victims and rows will be kept.
        folder: Of the data sets; None: SWEEPER_DATA, or the default.
        ray: Whether to start Ray, too.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "extras": _extras,
        "machine": _machine,
        "GPU": _gpus,
        "data": lambda: _data(folder),
        "store": lambda: _store(store),
        "Ray": _ray if ray else lambda: iter(()),
        "speed": _speed,
    }
    for subject, check in checks.items():
        try:
            yield from check()
        except (SweepError, OSError, RuntimeError) as error:
            yield Finding(subject, PROBLEM, str(error))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _versions() -> Iterator[Finding]:
    packages = {"sweeper": "backdoor-sweeper", "torch": "torch", "ray": "ray"}
    found = {name: _version(package) for name, package in packages.items()}
    told = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield Finding("versions", OK, f"Python {platform.python_version()}, {told}")
    if not found["ray"]:
        remedy = "pip install 'ray[default,tune]', or run with --executor inline"
        yield Finding("versions", WARNING, "Ray is not installed", remedy)


def _extras() -> Iterator[Finding]:
    """What pyproject.toml has beyond what is always needed."""
    requires = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        requires = importlib.metadata.requires("backdoor-sweeper") or []
    for extra, what in {"text": "sentences", "detection": "images with boxes"}.items():
        needs = [line for line in requires if re.search(rf"extra == .{extra}\b", line)]
        names = [re.split(r"[^\w.-]", line)[0] for line in needs]
        if lack := [name for name in names if not _version(name)]:
            remedy = f"pip install '.[{extra}]' in the checkout, if you want such data"
            lacking = f"no {' and '.join(lack)}, which {what} need"
            yield Finding("extras", OK, lacking, remedy)
        else:
            yield Finding("extras", OK, f"{extra} is installed: {what}")


def _machine() -> Iterator[Finding]:
    yield Finding("CPU", OK, f"{cores()} cores to use: {record.device_name('cpu')}")
    facts = {}
    with contextlib.suppress(OSError):
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        facts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()}
    if free := facts.get("MemAvailable"):
        short = free < MEMORY
        remedy = "free some: cells that run out of memory fail" if short else ""
        total = f"{_gigabytes(free)} free of {_gigabytes(facts['MemTotal'])}"
        yield Finding("memory", WARNING if short else OK, total, remedy)


def _gpus() -> Iterator[Finding]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count and shutil.which("nvidia-smi"):
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        remedy = "install a torch that fits the driver (`nvidia-smi` says its CUDA version)"
        yield Finding("GPU", WARNING, f"torch (built {built}) sees no GPU", remedy)
    elif not count:
        yield Finding("GPU", OK, "none: cells run on the CPU")
    for place in range(count):
        device = torch.device("cuda", place)
        about = torch.cuda.get_device_properties(place)
        name = f"{place}: {about.name}, {_gigabytes(about.total_memory)}"
        ones = torch.ones(64, 64, device=device)
        right = bool(((ones @ ones).cpu() == 64).all())
        remedy = "" if right else "leave it out with CUDA_VISIBLE_DEVICES"
        yield Finding("GPU", OK if right else PROBLEM, name, remedy)


def _data(folder: str | None) -> Iterator[Finding]:
    root = data.looked_in(Path(folder).expanduser() if folder else None)
    if not root.is_dir():
        given = folder or os.environ.get("SWEEPER_DATA")
        remedy = "correct its name" if given else "name yours with --data DIR or SWEEPER_DATA"
        yield Finding("data", PROBLEM if given else OK, f"there is no folder {root}", remedy)
    groups: dict[str, list[str]] = {"here": [], "download": [], "absent": []}
    for name in data.known():
        source = data.source_of({"dataset": name})
        try:
            here = data.at_hand({"dataset": name}, root)
        except SweepError as error:
            yield Finding("data", WARNING, str(error))
            continue
        fetched = source is not None and source.downloads
        groups["here" if here else "download" if fetched else "absent"].append(name)
    for group, words in {
        "here": "at hand",
        "download": "downloaded by the first run that needs them",
        "absent": f"to be put into {root}",
    }.items():
        if groups[group]:
            yield Finding("data", OK, f"{words}: {', '.join(groups[group])}")


def _store(store: str) -> Iterator[Finding]:
    place = Path(store)
    there = next(part for part in (place, *place.parents, Path("/")) if part.exists())
    if "://" not in store and not place.is_dir():
        writable = there.is_dir() and os.access(there, os.W_OK)
        told = f"{store} is not there yet, and can{'' if writable else 'not'} be made"
        remedy = "" if writable else "name another with --store or SWEEPER_STORE"
        yield Finding("store", OK if writable else PROBLEM, told, remedy)
    else:
        files, name = Files(store), f"doctor-{uuid.uuid4().hex[:8]}"
        try:
            with files.probed(name):
                files.probe(name)
        except StoreError as error:
            yield Finding("store", PROBLEM, str(error), "repair it, or name another with --store")
            return
        yield Finding("store", OK, f"{store} can be written and read")
    if "://" not in store:
        free = shutil.disk_usage(there).free
        remedy = "`sweeper gc --help` says how to free some" if free < ROOM else ""
        yield Finding("disk", WARNING if remedy else OK, f"{_gigabytes(free)} free", remedy)


def _ray() -> Iterator[Finding]:
    from sweeper.run import rays, start

    url = start.connect(None)
    found = "starts" + (f", with a dashboard on {url}" if url else ", without a dashboard")
    rays.ray.shutdown()
    yield Finding("Ray", OK, found)


def _speed() -> Iterator[Finding]:
    """How long victims take here, from a few steps of each."""
    values = {"name": "doctor", "datasets": [DATASET], "models": list(MODELS)}
    sweep = spec.parse({**values, "attacks": ["none"], "defenses": ["none"]})
    plan = matrix.expand(sweep, {DATASET: known.unresolved(sweep.datasets[0])})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    book, sorts = Book(record.device_name(device.type)), Sorts(plan)
    calibrate.calibrate(plan, book, device, Context(store="", sweep=sweep.name))
    where = "the GPU" if device.type == "cuda" else "one core"
    for cell in plan.cells.values():
        if cell.kind == "train" and (cost := book.seconds(sorts.of(cell))):
            epochs = cell.params["recipe"]["epochs"]
            text = f"{cell.axes['model']} on CIFAR-10, {epochs} epochs: about {spoken(cost[0])}"
            yield Finding("speed", OK, f"{text} on {where}")


def _gigabytes(size: float) -> str:
    return f"{size / 10**9:.0f} GB"
