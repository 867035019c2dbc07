"""Methods of one's own go to nodes that have no such folder; what cannot go is one sentence."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sweeper
from sweeper.core import catalog, code, names, search
from sweeper.core.errors import SweepError
from sweeper.plan import spec
from sweeper.run import cluster as submitter
from sweeper.run import travel
from tests.support import sweeps
from tests.support.places import ROOT

OWN = """
from dataclasses import dataclass

from defenses.base import Defense
from sweeper.core.types import Outcome
from parts.deep import factor


@dataclass(frozen=True, kw_only=True)
class Travels(Defense):
    "Says where it is."

    title = "Travels"
    paper = "toy"
    kind = "repair"
    sees = frozenset({"model"})

    def defend(self, case):
        import traveller_aside

        from pathlib import Path
        size = (Path(traveller_aside.__file__).parent / "parts" / "table.txt").stat().st_size
        return Outcome(model=case.fresh_model(), notes={"file": __file__, "size": size * factor})
"""
FILES = {
    "traveller.py": OWN,
    "traveller_aside.py": "import random\n",
    "traveller_other.py": "raise RuntimeError('nobody named it')\n",
    "parts/__init__.py": "",
    "parts/deep.py": "factor = 2\n",
    "parts/table.txt": "12345",
    "parts/.hidden": "",
    "parts/__pycache__/deep.pyc": "",
    "parts/more/left.py": "",
    "photos/large.bin": "0" * 1000,
    "attacks/__init__.py": "raise RuntimeError('shadowed')\n",
    "random.py": "raise RuntimeError('shadowed')\n",
}
GO = {
    "traveller.py",
    "traveller_aside.py",
    "random.py",
    "parts/__init__.py",
    "parts/deep.py",
    "parts/table.txt",
    "parts/more/left.py",
}
ONE: dict[str, Any] = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder we are in: a sweep file, a method of our own with what it imports, and more."""
    folder = tmp_path / "work"
    put(folder, FILES)
    defenses = ["none", {"defense": "traveller:Travels", "as": "travels"}]
    sweeps.write(folder, **ONE, defenses=defenses)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(catalog, "_BESIDE", [])
    forget()
    yield folder
    forget()


def forget() -> None:
    """Let methods be imported anew."""
    catalog.method.cache_clear()
    code.of.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] in {"parts", "own", "other"}]:
        del sys.modules[name]
    for name in [n for n in sys.modules if n.startswith("traveller")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def packed(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_what_a_method_imports_goes_along_with_its_packages_and_nothing_else(
    work: Path, tmp_path: Path
) -> None:
    declared = spec.load("small.yaml")
    travel.pack(travel.modules(declared), tmp_path / "sent")
    assert packed(tmp_path / "sent") == GO


def test_the_code_of_a_method_has_one_hash_here_and_there(work: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    here = code.of(catalog.method("defense", "traveller:Travels"))
    travel.pack(travel.modules(spec.load("small.yaml")), there)
    forget()
    sys.path[:] = [place for place in sys.path if place != str(work)]
    catalog.look_in(str(there))
    cls = catalog.method("defense", "traveller:Travels")
    assert str(sys.modules[cls.__module__].__file__).startswith(str(there))
    assert code.of(cls) == here


def test_what_ships_or_is_installed_stays(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(work, {"site-packages/own.py": "from defenses.clp import CLP\nclass Own(CLP): pass\n"})
    monkeypatch.syspath_prepend(str(work / "site-packages"))
    assert travel.modules(spec.parse({**sweeps.SMALL, "defenses": ["own:Own", "anp"]})) == {}
    point = SimpleNamespace(name="travels", value="traveller:Travels")
    points = {"attack": (), "defense": (point,)}
    monkeypatch.setattr(names, "points", points.__getitem__)
    assert travel.modules(spec.parse({**sweeps.SMALL, "defenses": ["travels"]})) == {}


def test_a_package_with_data_in_it_is_refused(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(travel, "MOST", 1200)
    places = travel.modules(spec.load("small.yaml"))
    put(work, {"parts/weights.bin": "0" * 1000})
    with pytest.raises(SweepError, match=r"^methods of your own: all of .*parts would go to"):
        travel.pack(places, tmp_path / "sent")


def test_methods_of_two_folders_are_refused(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, {"far/own.py": "from defenses.clp import CLP\nclass Own(CLP): pass\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "far"))
    both = {**sweeps.SMALL, "defenses": ["own:Own", "traveller:Travels"]}
    with pytest.raises(SweepError, match="^methods of your own lie in .*far and .*work: put them"):
        travel.modules(spec.parse(both))


def test_methods_are_looked_for_where_they_arrived_and_last(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = tmp_path / "resources"
    travel.pack(travel.modules(spec.load("small.yaml")), above / search.FOLDER)
    forget()
    (work / "traveller.py").unlink()
    monkeypatch.setattr(sys, "path", [str(above), *[p for p in sys.path if p != str(work)]])
    assert search.sent() is None
    monkeypatch.setenv(search.SENT, "0123")
    assert search.sent() == str(above / search.FOLDER)
    assert catalog.method("defense", "traveller:Travels").title == "Travels"
    assert sys.path[0] == str(above) and sys.path[-1] == str(above / search.FOLDER)
    assert sweeper.Sweep.from_yaml("small.yaml").context().code == str(above / search.FOLDER)


@pytest.mark.parametrize("method", ["traveller:Travels", "clp"])
def test_a_joined_cluster_is_given_them_and_only_once(
    work: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from sweeper.run import rays, start  # Ray is imported where it is needed

    given: dict[str, Any] = {}
    sent: set[str] = set()

    def init(**options: Any) -> SimpleNamespace:
        given.update(options["runtime_env"])
        for place in given.get("py_modules", ()):
            sent.update(packed(Path(place).parent))
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(rays.ray, "is_initialized", lambda: bool(given))
    monkeypatch.setattr(rays.ray, "init", init)
    monkeypatch.setattr(start, "nodes", list)
    context = SimpleNamespace(runtime_env=given)
    monkeypatch.setattr(rays.ray, "get_runtime_context", lambda: context)
    methods = travel.modules(spec.parse({**sweeps.SMALL, "defenses": [method]}))
    for _ in range(2):
        start.connect("auto", methods=methods)
    if method == "clp":
        assert given == {}, "no environment, whose workers start later"
        return
    assert sent == {f"{search.FOLDER}/{name}" for name in GO}
    given["env_vars"] = {}
    with pytest.raises(SweepError, match=r"^--address: this process is connected to Ray with"):
        start.connect("auto", methods=methods)


def test_a_submitted_sweep_takes_its_methods_along(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.job_submission

    sent: set[str] = set()
    beside: set[str] = set()

    class Client:
        def __init__(self, address: str) -> None:
            pass

        def submit_job(self, runtime_env: dict[str, Any], **_: Any) -> str:
            (methods,) = runtime_env["py_modules"]
            sent.update(packed(Path(methods)))
            beside.update(packed(Path(runtime_env["working_dir"])))
            return "job"

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    submitter.submit("small.yaml", "http://x", [], travel.modules(spec.load("small.yaml")))
    assert sent == GO and beside == {submitter.FILE}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"models": [{"model": "tiny", "weights": "net.st"}]}, "models: tiny: weights: net.st"),
        (
            {"attacks": [{"attack": "blend", "trigger_image": "cat.png"}]},
            "attacks: blend: trigger_image: cat.png",
        ),
        (
            {"datasets": [{"dataset": "folder", "path": "photos"}]},
            "datasets: folder: path: photos",
        ),
    ],
)
def test_a_file_that_does_not_go_along_is_named(changes: dict[str, Any], words: str) -> None:
    declared = spec.Sweep.model_validate({**sweeps.SMALL, **changes})
    with pytest.raises(SweepError) as caught:
        travel.require_places(declared)
    assert str(caught.value) == (
        f"{words} is a path of this machine, and only code goes to the cluster: write the absolute "
        "path of a place all its nodes see"
    )
    travel.require_places(spec.Sweep.model_validate(sweeps.SMALL))


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, str]]:
    """Ray, started in the checkout: its address, and its dashboard's."""
    import ray

    from sweeper.run import (  # before ray: it sets the token mode ray reads at its import
        rays,
    )

    assert rays
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        patch.chdir(ROOT)
        found = ray.init(
            num_cpus=2, dashboard_host="127.0.0.1", log_to_driver=False, logging_level="ERROR"
        )
    yield found.address_info["address"], f"http://{found.dashboard_url}"
    ray.shutdown()


def expect_sent(store: Path) -> None:
    """See that the method ran, and from where Ray unpacks what was sent."""
    row = sweeps.frame(store).set_index("defense").loc["travels"]
    assert row["status"] == "ok", row["error"]
    notes = json.loads(row["notes"])
    assert "runtime_resources" in notes["file"] and notes["size"] == 10
    assert not json.loads(row["seen"]), "its own folder is no reach beyond the case"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_method_of_ones_own_runs_on_a_joined_cluster(
    cluster: tuple[str, str], work: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    entry = tmp_path / "start.py"
    entry.write_text("from sweeper.cli import main\n\nif __name__ == '__main__':\n    main()\n")
    said = subprocess.run(
        [sys.executable, str(entry), "run", "small.yaml", "--address", cluster[0]]
        + ["--store", str(store)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert said.returncode == 0, said.stderr
    expect_sent(store)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_method_of_ones_own_runs_in_a_submitted_sweep(
    cluster: tuple[str, str], work: Path, tmp_path: Path
) -> None:
    from ray.job_submission import JobSubmissionClient

    words = submitter.words(str(tmp_path / "store"), None, [])
    words[words.index("auto")] = cluster[0]  # of several on this machine, it is any
    methods = travel.modules(spec.load("small.yaml"))
    job = submitter.submit("small.yaml", cluster[1], words, methods)
    client, deadline = JobSubmissionClient(cluster[1]), time.monotonic() + 400
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(1)
    assert client.get_job_status(job) == "SUCCEEDED", client.get_job_logs(job)
    expect_sent(tmp_path / "store")
