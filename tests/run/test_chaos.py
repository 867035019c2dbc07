"""Thirty faults at random moments of one sweep, and the table of an undisturbed one.

SWEEPER_CHAOS_SEED names another order, SWEEPER_CHAOS_FAULTS another number of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import pictures, sweeps
from tests.support.places import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore"),
]
FAULTS = {
    "driver": 2,
    "raylet": 3,
    "worker": 5,
    "starting": 5,
    "truncated": 5,
    "full": 3,
    "unreadable": 3,
    "blind": 2,
    "clock": 2,
}
"""How often each happens, of thirty. starting: a worker is killed before it has a cell; blind: the
data are away; clock: a driver and all it starts go five minutes ahead."""
AHEAD = """
import time

now, now_ns = time.time, time.time_ns
time.time = lambda: now() + 300
time.time_ns = lambda: now_ns() + 300 * 10**9
"""
ROOM = "64m"
"""Of the store's disk; the sweep needs a few MB of it."""


def mounted(place: Path, *options: str) -> bool:
    """Mount a file system in memory over a folder; only root may."""
    place.mkdir(exist_ok=True, parents=True)
    words = ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)]
    return not subprocess.run(words, capture_output=True, check=False).returncode


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    if not mounted(place, "-o", f"size={ROOM}"):
        pytest.skip("mounting a small disk needs root")
    yield place
    unmount(place)


class Chaos:
    """One sweep, its driver, and what is done to them."""

    def __init__(self, disk: Path, rng: random.Random) -> None:
        self.disk = disk
        self.store = disk / "store"
        self.rng = rng
        self.counts: Counter[str] = Counter()
        self.drivers = 0
        self.seeds = 2
        self.ahead = False
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the driver where none runs; a sweep that is done is made longer."""
        if self.process and self.process.poll() is None:
            return
        if self.process and self.process.returncode == 0:
            self.seeds += 1
        words = ["run", str(self.disk.parent / "small.yaml"), "--store", str(self.store)]
        words += ["--data", str(self.disk.parent / "data")]
        env = dict(os.environ)
        if self.ahead:
            env["PYTHONPATH"] = os.pathsep.join([str(self.disk.parent / "ahead"), str(ROOT)])
        with (self.disk.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweeper", *words, "--set", f"seeds={self.seeds}"],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=env,
            )
        self.drivers += 1

    def processes(self, title: str) -> list[int]:
        """Descendants of the driver whose command begins so."""
        assert self.process
        parents, names = {}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(stat[1])
                command = (folder / "cmdline").read_bytes().partition(b"\0")[0].decode()
                names[int(folder.name)] = command.rpartition("/")[2]
        tree = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
            tree |= more
        return sorted(pid for pid in tree if names.get(pid, "").startswith(title))

    def strike(self, fault: str) -> bool:
        """Do it; False where there is nothing yet to do it to."""
        if fault in ("driver", "raylet", "worker", "starting", "clock"):
            known = self.processes("ray::train ") + self.processes("ray::defend ")
            if fault == "starting":
                known = self.processes("ray::IDLE") + self.processes("ray::Worker")
            if not known:  # Ray is still starting
                return False
            if fault == "raylet":
                known = self.processes("raylet")
            elif fault in ("driver", "clock") and self.process:
                known, self.ahead = [self.process.pid], fault == "clock"
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(self.rng.choice(known), signal.SIGKILL)
        elif fault == "truncated":
            known_files = sorted(self.store.glob("artifacts/*/*/*.safetensors"))
            if not known_files:
                return False
            with contextlib.suppress(FileNotFoundError):
                file = self.rng.choice(known_files)
                os.truncate(file, file.stat().st_size // 2)
        elif fault == "full":
            with contextlib.suppress(OSError), (self.disk / "filler").open("wb") as filler:
                while True:
                    filler.write(bytes(1 << 16))
                    filler.flush()
            time.sleep(self.rng.uniform(0.5, 3))
            (self.disk / "filler").unlink()
        elif fault == "blind":
            data = self.disk.parent / "data"
            data.rename(data.with_name("away"))
            time.sleep(self.rng.uniform(0.5, 3))
            data.with_name("away").rename(data)
        else:
            assert mounted(self.store, "-o", "ro")
            time.sleep(self.rng.uniform(0.5, 3))
            unmount(self.store)
        return True


def test_thirty_faults_lose_and_change_nothing(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = int(os.environ.get("SWEEPER_CHAOS_SEED", "0"))
    many = int(os.environ.get("SWEEPER_CHAOS_FAULTS", "30"))
    rng = random.Random(seed)
    faults = [fault for fault, count in FAULTS.items() for _ in range(count)]
    rng.shuffle(faults)
    slow = {"defense": "fine-tuning", "epochs": 40, "as": "slow"}
    defenses = ["none", {"defense": "clp"}, slow]
    small = {"defenses": defenses, "poison_rates": [0.1], "recipe": {"epochs": 4}}
    small |= {"datasets": ["pixels"]}
    for split, number in (("train", 300), ("test", 100)):
        images = [pictures.picture(i, (8, 8)) for i in range(number)]
        labels = [i % 3 for i in range(number)]
        pictures.write_parquet(tmp_path / f"data/pixels/{split}.parquet", images, labels)
    monkeypatch.setenv("SWEEPER_DATA", str(tmp_path / "data"))
    (tmp_path / "ahead").mkdir()
    (tmp_path / "ahead/sitecustomize.py").write_text(AHEAD)
    sweeps.write(tmp_path, **small)
    chaos, started = Chaos(disk, rng), time.monotonic()
    for fault in faults[:many]:
        while True:
            chaos.start()
            time.sleep(rng.uniform(0.5, 3))
            if chaos.process and chaos.process.poll() is None and chaos.strike(fault):
                break
        chaos.counts[fault] += 1
        sys.stderr.write(f"{time.monotonic() - started:4.0f} s  {fault}\n")
    for _ in range(6):  # from here on it is left alone
        assert chaos.process
        if chaos.process.wait() == 0:
            break
        chaos.start()
    took = time.monotonic() - started
    told = f"seed {seed}: {dict(chaos.counts)}, {chaos.drivers} drivers, {took:.0f} s"
    sys.stderr.write(f"chaos {told}\n")
    assert sum(chaos.counts.values()) == many
    assert chaos.process and chaos.process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    path = sweeps.write(tmp_path, **small, seeds=chaos.seeds)
    sweeps.inline(path, tmp_path / "undisturbed")
    sweeps.assert_same(sweeps.frame(chaos.store), sweeps.frame(tmp_path / "undisturbed"))
