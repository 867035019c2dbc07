"""What of Ray is not public, on the Ray that is here and on the oldest and newest allowed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.places import ROOT

OLDEST = re.findall(r"ray\[default,tune\]>=([\d.]+)", (ROOT / "pyproject.toml").read_text())[0]
SIGNS = {
    "node": "The actor died because its node has died. Node Id: 0123",
    "memory": "Task was killed due to the node running low on memory.",
    "process": "The actor is dead because its worker process has died. Worker exit type: SYSTEM",
    "machine": "ModuleNotFoundError: No module named 'attacks'",
}


@pytest.mark.parametrize("kind", SIGNS)
def test_how_a_process_was_lost_is_read_from_what_ray_says(kind: str, tmp_path: Path) -> None:
    from sweeper.run import rays

    said = tmp_path / "error.txt"
    said.write_text(f"Failure # 1 (occurred at noon)\nActorDiedError: {SIGNS[kind]}\n")
    loss = rays.loss(SimpleNamespace(error_file=str(said)))
    assert loss.kind == kind and loss.words and not loss.node


@pytest.mark.parametrize(
    ("left", "words"), [("SIGSEGV", "exit code 139"), ("", "SIGKILL"), (None, "does not say how")]
)
def test_a_node_that_does_not_answer_tells_no_signal(
    left: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeper.run import rays

    def get(*_: Any, timeout: float) -> str:
        if left is None:
            raise rays.ray.exceptions.GetTimeoutError
        return left

    task = SimpleNamespace(remote=lambda pid: None)
    task.options = lambda **_: task
    monkeypatch.setattr(rays.ray, "remote", lambda function: task)
    monkeypatch.setattr(rays.ray, "get", get)
    said = rays.last_words("ab" * 28, 7)
    assert words in said and ("SIGKILL" in said) == (left == "")


def test_nothing_private_of_ray_is_imported_elsewhere() -> None:
    private = re.compile(r"(from|import) ray(\.\w+)*\.(_\w+|internal_kv|experimental)\b|ray\._")
    found = [
        path.relative_to(ROOT)
        for path in (ROOT / "sweeper").rglob("*.py")
        if private.search(path.read_text(encoding="utf-8"))
    ]
    assert found == [Path("sweeper/run/rays.py")]


TRY = """
import sys
from sweeper.run import rays, start
from sweeper.run.graph import Begins, Graph, Patient
from sweeper.run import schedule
from tests.support import sweeps
from sweeper.run import driver
from functools import partial
from pathlib import Path
import os, signal, threading, time

start.connect(None)
assert rays.ray.__version__.startswith(sys.argv[2]), rays.ray.__version__
(node,) = rays.nodes()
assert node.cpus >= 1 and rays.room(1, 0) == node.holds(1, 0)
deadline = time.monotonic() + 60  # a young head has not said yet
while rays.grows():
    assert time.monotonic() < deadline
    time.sleep(0.5)
rays.request(1, 0, [node.id]), rays.request(1, 0.5, [])
rays.head().internal_kv_put(b"x", b"y", True, b"sweeper", timeout=5)
rays.setproctitle("ray::IDLE")

def kill():
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::train"):
                os.kill(int(folder.name), signal.SIGSEGV)
                return
        time.sleep(0.001)

threading.Thread(target=kill, daemon=True).start()
from sweeper.run import graph
graph.FORGET = 2
lost = []
real = rays.loss
rays.loss = lambda *given: lost.append(real(*given)) or lost[-1]
path = sweeps.write(Path(sys.argv[1]), seeds=2, poison_rates=[0.1])
job = sweeps.prepared(path, Path(sys.argv[1]) / "store")
counts = driver.execute(job, schedule.walk_with_tune, sweeps.Silent())
assert counts == {"ok": 12}, counts
assert [(loss.kind, loss.node) for loss in lost] == [("process", node.id)], lost
assert "SIGSEGV" in lost[0].words and "139" in lost[0].words, lost
print("fine with", rays.ray.__version__)
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_a_sweep_with_a_lost_process_runs_on(which: str, tmp_path: Path) -> None:
    """The newest is the one that is installed; the oldest is fetched, where a registry answers."""
    import ray

    version, place = ray.__version__, [str(ROOT)]
    if which == "oldest":
        version, packages = OLDEST, tmp_path / "packages"
        wanted = f"ray=={OLDEST}.*"
        words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
        got = subprocess.run([*words, str(packages), wanted], capture_output=True, text=True)
        if got.returncode:
            pytest.skip(f"no registry gives {wanted}: {got.stderr[-200:]}")
        place.insert(0, str(packages))
    env: dict[str, Any] = os.environ | {"PYTHONPATH": os.pathsep.join(place)}
    words = [sys.executable, "-c", TRY, str(tmp_path), version]
    ran = subprocess.run(words, capture_output=True, text=True, env=env, cwd=ROOT, timeout=900)
    assert "fine with" in ran.stdout, ran.stdout[-2000:] + ran.stderr[-4000:]
