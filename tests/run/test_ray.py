"""The main job through Ray Tune: the same bits as inline, faults survived, the driver killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sweeper.core.errors import SweepError
from sweeper.core.types import Cell
from sweeper.plan.sweep import Resources, Shape
from sweeper.run import cluster as submitter
from sweeper.run import driver
from sweeper.run.walk import Walk
from sweeper.store import status
from sweeper.store.ledger import Ledger
from tests.support import sweeps
from tests.support.places import ROOT

# Ray's own, in its threads and at shutdown
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Ray on this machine, with two CPUs whatever it has: the URL of its dashboard."""
    import ray

    from sweeper.run import start  # before ray is used: it sets the token mode

    with pytest.MonkeyPatch.context() as patch:  # for the jobs submitted to it
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        found = ray.init(
            address="local",
            num_cpus=2,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
        )
    start.connect(None)
    yield f"http://{found.dashboard_url}"
    ray.shutdown()


class Looks(sweeps.Silent):
    """Leaves a mark when it sees the epoch of `faulty:Waits`; a display looks as often."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def started(self, cell: Any, progress: Any = None) -> None:
        if cell.axes.get("defense") == "waits":
            threading.Thread(target=self.look, args=(progress,), daemon=True).start()

    def look(self, progress: Any) -> None:
        while not self.mark.exists():
            time.sleep(0.05)
            if progress.text == "epoch 3/7":
                self.mark.touch()


def with_ray(
    path: Path, store: Path, looks: Looks | None = None
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Run a sweep through Tune: states of this call, and (kind, state) of each cell."""
    from sweeper.run import schedule

    watcher = looks or sweeps.Silent()
    job = sweeps.prepared(path, store, cache=os.environ.get("SWEEPER_CACHE"), code=str(Path.cwd()))
    counts = driver.execute(job, partial(schedule.walk_with_tune, live=bool(looks)), watcher)
    return dict(counts), watcher.cells


def test_ray_gives_the_bits_of_inline_and_epochs_arrive_meanwhile(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    monkeypatch.chdir(tmp_path)
    shown: list[Any] = []  # by Tune, which clears in a notebook what others show
    notebook: Any = ModuleType("IPython.display")
    notebook.HTML, notebook.display = str, lambda *given, **_: shown.append(given)
    notebook.clear_output = lambda **_: shown.append("cleared")
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    monkeypatch.setattr("ray.tune.progress_reporter.IS_NOTEBOOK", True)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside.py").write_text(
        "from tests.support.faulty import Waits\nclass Own(Waits): pass\n"
    )
    waits = {"defense": "beside:Own", "as": "waits", "marks": str(tmp_path)}
    defenses = [*sweeps.SMALL["defenses"], waits]
    path = sweeps.write(tmp_path, seeds=1, attacks=["badnets"], defenses=defenses)
    mark = tmp_path / "heard"
    mark.touch()
    sweeps.inline(path, tmp_path / "inline")
    mark.unlink()
    counts, ran = with_ray(path, tmp_path / "ray", Looks(mark))
    assert counts == {"ok": 8} and ran.count(("train", "ok")) == 2 and not shown
    sweeps.assert_same(sweeps.frame(tmp_path / "ray"), sweeps.frame(tmp_path / "inline"))
    assert not internal_kv_get_gcs_client().internal_kv_keys(b"", b"sweeper"), "nothing is left"
    assert with_ray(path, tmp_path / "ray") == ({}, []), "nothing is left to run"


@pytest.mark.slow
def test_a_portable_sweep_has_the_bits_of_inline_and_turns_no_worker_of_the_next(
    cluster: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"seeds": 1, "poison_rates": [0.1], "attacks": ["badnets"]}
    own = {"defense": "tests.support.outside:Tuning", "as": "own", "epochs": 1}
    given["defenses"] = [*sweeps.SMALL["defenses"], own]
    for precision in ("portable", "fp32"):
        recipe = {"epochs": 1, "precision": precision}
        path = sweeps.write(tmp_path, **given, name=precision, recipe=recipe)
        assert with_ray(path, tmp_path / "ray")[0] == {"ok": 4}
        sweeps.inline(path, tmp_path / "inline")
        found, wanted = (sweeps.frame(tmp_path / name, precision) for name in ("ray", "inline"))
        sweeps.assert_same(found, wanted)
        for name in ("dtype", "capability", "threads"):
            assert found[name].tolist() == wanted[name].tolist(), name
    plain = torch.backends.cpu.get_cpu_capability()
    assert set(found["capability"]) == {plain} and set(found["dtype"]) == {"fp32"}


@pytest.mark.slow
def test_faults_become_rows_and_a_lost_process_is_retried(cluster: str, tmp_path: Path) -> None:
    faulty = ["Raises", "Diverges", "OutOfMemory", "Hangs", "Holds", "Dies"]
    entries = [
        {"defense": f"tests.support.faulty:{name}", "as": name, "marks": str(tmp_path)}
        for name in faulty
    ]
    path = sweeps.write(
        tmp_path,
        attacks=["badnets", {"attack": "tests.support.faulty:FailsToPoison", "as": "unbuilt"}],
        poison_rates=[0.1],
        seeds=1,
        defenses=["none", *entries],
        timeout=15,
    )
    counts, _ = with_ray(path, tmp_path / "store")
    found = sweeps.frame(tmp_path / "store").set_index(["attack", "defense"])
    assert found.loc["badnets"]["status"].to_dict() == {
        "none": "ok",
        "Raises": "failed",
        "Diverges": "diverged",
        "OutOfMemory": "failed",
        "Hangs": "timeout",
        "Holds": "timeout",
        "Dies": "ok",
    }
    for name in ("Hangs", "Holds"):  # a child can be ended whatever it does
        assert found.loc["badnets", name]["error"] == "gave up after 15 s"
    assert set(found.loc["unbuilt"]["status"]) == {"blocked"}
    assert counts == {"ok": 3, "failed": 3, "diverged": 1, "timeout": 2, "blocked": 7}
    assert len(list(tmp_path.glob("OutOfMemory-*"))) == 2, "tried once more, alone"
    for hung in ("Hangs", "Holds"):
        assert len(list(tmp_path.glob(f"{hung}-*"))) == 1, "a timeout is not tried again in a run"
    assert len(list(tmp_path.glob("Dies-*"))) == 2, "a lost process is a fault of the machine"


def test_short_cells_share_a_trial_and_a_lost_process_costs_one_cell(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeper.run import bundle

    monkeypatch.setattr(bundle, "SECONDS", 30.0)  # the driver's: on a busy machine no cell is short
    sizes: list[int] = []
    packed = bundle.pack
    monkeypatch.setattr(
        bundle, "pack", lambda taken, walk: sizes.append(len(taken)) or packed(taken, walk)
    )
    defenses = [
        {
            "defense": "tests.support.faulty:Numbered",
            "marks": str(tmp_path),
            "number": i,
            "dies": i == 15,
        }
        for i in range(24)
    ]
    labelled = [{**entry, "as": f"n{entry['number']}"} for entry in defenses]
    one = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}
    path = sweeps.write(tmp_path, **one, defenses=labelled)
    counts, _ = with_ray(path, tmp_path / "store")
    assert counts == {"ok": 25} and sum(sizes) > 25, "what a lost bundle had not run came back"
    assert max(sizes) > 2 and len(sizes) < 22, sizes
    assert sweeps.frame(tmp_path / "store")["status"].to_list() == ["ok"] * 24
    tries = Counter(mark.name.split("-")[1] for mark in tmp_path.glob("Numbered-*"))
    assert tries == {str(i): 1 + (i == 15) for i in range(24)}, "what had ended is not run again"


def test_a_trial_that_waits_for_its_actor_gets_no_other() -> None:
    from ray.tune.experiment import Trial

    from sweeper.run import graph

    class Live:
        def get_live_trials(self) -> list[Trial]:
            return [running, first, second]

    running, first, second = (Trial("x", stub=True) for _ in range(3))
    running.status = Trial.RUNNING
    scheduler = graph.Patient()
    assert scheduler.choose_trial_to_run(Live()) is first
    assert scheduler.choose_trial_to_run(Live()) is second, "the first waits for its own"
    assert scheduler.choose_trial_to_run(Live()) is None


def get(url: str, token: str | None = None) -> tuple[int, str]:
    """Ask for a page: (status, text)."""
    head = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=head), timeout=30) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_more_than_this_machine_has_is_refused(cluster: str) -> None:
    from sweeper.run import start

    with pytest.raises(SweepError, match=r"1 CPUs and 64 GPUs of one node.*has 2 and .*: lower"):
        start.connect(None, [Shape(gpus=64)])
    with pytest.raises(SweepError, match="asks for 99 CPUs and 0 GPUs"):
        start.connect(None, [Shape(cpus=99)])


def assert_named(cluster: str, token: str, sweep: str) -> None:
    """Tasks are listed as cells, and actors as what runs them, whichever ran before."""
    printed = subprocess.run(start_words(), capture_output=True, text=True, timeout=120, check=True)
    assert printed.stdout.strip() == token, "what the screen says prints it"
    cells = {
        f"defend badnets digits tiny r=0.1 target=0 seed=0 clean_budget=0.0 > {name}"
        for name in ("none", "clp", "tests.support.faulty:Raises")
    }
    cells.add("train badnets digits tiny r=0.1 target=0 seed=0")
    deadline, tasks, actors = time.monotonic() + 60, set[str](), set[str]()
    while not (
        cells <= tasks and any(a.startswith(f"cells of {sweep}, the first ") for a in actors)
    ):
        assert time.monotonic() < deadline, (tasks, actors)
        time.sleep(1)
        found = [
            json.loads(get(f"{cluster}/api/v0/{what}?detail=1&limit=1000", token)[1])
            for what in ("tasks", "actors")
        ]
        ours, theirs = (answer["data"]["result"]["result"] for answer in found)
        tasks = {task["name"] for task in ours}
        actors = {actor["repr_name"] for actor in theirs if actor["class_name"] == "Worker"}


def start_words() -> list[str]:
    from sweeper.run import start

    return shlex.split(start.token_command())


@pytest.mark.slow
def test_the_dashboard_asks_for_a_token_and_prometheus_reads_the_cells(
    cluster: str, tmp_path: Path
) -> None:
    token = Path("~/.ray/auth_token").expanduser().read_text().strip()
    for page in ("/api/version", "/api/jobs/", "/nodes?view=summary", "/api/v0/actors"):
        assert get(cluster + page)[0] == 401, "nothing is told without a token"
        assert get(cluster + page, "a" * len(token))[0] == 403
        assert get(cluster + page, token)[0] == 200
    defenses = ["none", {"defense": "clp"}, "tests.support.faulty:Raises"]
    one = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}
    path = sweeps.write(tmp_path, name="metered", **one, defenses=defenses)
    with_ray(path, tmp_path / "store")
    assert_named(cluster, token, "metered")
    assert get(f"{cluster}/api/prometheus/sd")[0] == 401
    (found,) = json.loads(get(f"{cluster}/api/prometheus/sd", token)[1])
    wanted = {
        'cells_ended_total{kind="train",status="ok"}': 1,
        'cells_ended_total{kind="defend",status="ok"}': 2,
        'cells_ended_total{kind="defend",status="failed"}': 1,
        "victims_reused_total{}": 1,
        'cell_seconds_count{kind="defend"}': 3,
        "cells_left{}": 0,
        "cells_running{}": 0,
        'images_trained_total{model="tiny"}': 270,  # 300 less the reserve, one epoch
    }
    drawn = json.loads((ROOT / "sweeper/run/grafana.json").read_text(encoding="utf-8"))
    asked = " ".join(t["expr"] for panel in drawn["panels"] for t in panel["targets"])
    names = set(re.findall(r"\bray_\w+", asked)) - {"ray_node_gpus_utilization"}
    deadline, counted, text = time.monotonic() + 60, {}, ""
    while counted != wanted or not names <= set(re.findall(r"^(\w+)\{", text, re.MULTILINE)):
        assert time.monotonic() < deadline, (counted, names)
        time.sleep(1)
        text = ""
        for place in found["targets"]:
            with contextlib.suppress(urllib.error.URLError):  # an exporter that is not up yet
                text += get(f"http://{place}/metrics")[1]
        counted = {}
        for name, labels, value in re.findall(
            r'^ray_sweeper_(\w+)\{(.*sweep="metered".*)\} (\S+)$', text, re.MULTILINE
        ):
            kept = ",".join(re.findall(r'\b(?:kind|status|model)="\w+"', labels))
            if f"{name}{{{kept}}}" in wanted:
                counted[f"{name}{{{kept}}}"] = float(value)
    speed = re.findall(r'^ray_sweeper_images_per_second\{.*sweep="metered".*\} (\S+)$', text, re.M)
    assert len(speed) == 1 and 0 < float(speed[0]) < 1e7


@pytest.mark.slow
def test_a_submitted_sweep_runs_as_a_job(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.job_submission import JobSubmissionClient

    one = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1}
    path = sweeps.write(tmp_path, **one, defenses=["none", {"defense": "clp"}])
    monkeypatch.chdir(tmp_path)
    job = submitter.submit(
        path.name, cluster, submitter.words(str(tmp_path / "store"), None, ["seeds=2"])
    )
    assert job.startswith("small-")
    client, deadline = JobSubmissionClient(cluster), time.monotonic() + 200
    while not client.get_job_status(job).is_terminal():
        assert time.monotonic() < deadline, client.get_job_logs(job)
        time.sleep(1)
    logs = client.get_job_logs(job)
    assert client.get_job_status(job) == "SUCCEEDED", logs
    assert "small: 6 cells, 0 done, 6 to run" in logs and "| BadNets" in logs
    assert len(sweeps.frame(tmp_path / "store")) == 4


def started(path: Path, store: Path) -> subprocess.Popen[str]:
    """`sweeper run`, with a process group of its own as a terminal gives it."""
    return subprocess.Popen(
        [sys.executable, "-m", "sweeper", "run", str(path), "--store", str(store)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(files: int, pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a folder has so many files; the process must still be running."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob(pattern))) < files:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def outside(root: int) -> list[str]:
    """Addresses other machines could reach on which a process or what it started listens."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    sockets = set()
    for pid in tree:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(file))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{root}/net/{name}").read_text().splitlines()[1:]
    ]
    listening = [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]
    assert listening, "Ray listens somewhere"
    loopback = (
        "0100007F:",
        "00000000000000000000000001000000:",
        "0000000000000000FFFF00000100007F:",
    )
    return [place for place in listening if not place.startswith(loopback)]


@pytest.mark.slow
def test_ctrl_c_finishes_the_running_cells_and_a_second_one_stops_at_once(tmp_path: Path) -> None:
    store = tmp_path / "store"
    hangs = {"defense": "tests.support.faulty:Hangs", "as": "hangs", "marks": str(tmp_path)}
    path = sweeps.write(tmp_path, seeds=4, recipe={"epochs": 3})
    process = started(path, store)
    wait_for(2, "parts-*/*.ok.parquet", store / "sweeps/small/results", process)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in said, said
    assert "stopping after the running cells" in said and "cells are left; the same" in said
    found = status.status(Ledger(str(store)), "small")
    assert found["left"] and not found["failed"] and found["driver"] is None
    assert found["rows"] == {"ok": found["cells"]["defend"]["done"]}
    assert len(list((store / "sweeps/small/results").iterdir())) == 1, "the rows are compacted"

    path = sweeps.write(tmp_path, attacks=["badnets"], seeds=1, defenses=["none", hangs])
    process = started(path, store)
    wait_for(1, "Hangs-*", tmp_path, process)
    titles = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "\nray::defend badnets digits" in titles.stdout
    assert outside(process.pid) == [], "a Ray of our own listens on loopback alone"
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None, "it waits for the running cell, which never ends"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30)
    assert Ledger(str(store)).claim("small") is None


@pytest.mark.slow
def test_driver_killed_in_mid_sweep_loses_and_repeats_nothing(cluster: str, tmp_path: Path) -> None:
    path = sweeps.write(tmp_path, seeds=2, recipe={"epochs": 3})
    store = tmp_path / "store"
    results = store / "sweeps/small/results"
    process = started(path, store)
    wait_for(4, "parts-*/*.ok.parquet", results, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)  # a worker may still finish the cell it is at
    rows = {p.name: p.stat().st_mtime_ns for p in results.glob("parts-*/*.ok.parquet")}
    victims = {p: p.stat().st_mtime_ns for p in (store / "artifacts/train").glob("*/manifest.json")}
    assert 4 <= len(rows) < 16, "the driver must die in mid-sweep for this test to say anything"
    before = sweeps.frame(store)

    job = sweeps.prepared(path, store)
    assert job.summary()["done"] == len(rows) + len(victims)
    again, _ = with_ray(path, store)
    assert again == {"ok": len(job.todo)}
    after = sweeps.frame(store)
    assert len(after) == 16 and not after.index.duplicated().any()
    assert (after.loc[before.index, "started_at"] == before["started_at"]).all()
    assert {p: p.stat().st_mtime_ns for p in victims} == victims, "no victim trained twice"
    sweeps.inline(path, tmp_path / "undisturbed")
    sweeps.assert_same(after, sweeps.frame(tmp_path / "undisturbed"))
    assert not list(store.rglob("*.part")), "nothing half-written is left"


def test_a_start_that_fails_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeper.run import rays, start  # Ray is imported where it is needed

    tried: list[str] = []

    def init(address: str, **_: object) -> None:
        tried.append(address)
        raise RuntimeError("the node timed out")

    monkeypatch.setattr(rays.ray, "init", init)
    monkeypatch.setattr(rays.ray, "shutdown", lambda: None)
    with pytest.raises(
        SweepError, match="^this machine: cannot reach Ray .the node timed out.: use"
    ):
        start._started(None, {})
    assert tried == ["local", "local"]
    with pytest.raises(SweepError, match="^--address 1.2.3.4:1: cannot reach Ray .* check that"):
        start._started("1.2.3.4:1", {})
    assert tried == ["local", "local", "1.2.3.4:1"]


def test_nodes_of_two_precisions_are_refused_in_one_sentence() -> None:
    from sweeper.run import nodes

    nodes.refuse({})
    nodes.refuse({"a (1)": "fp32", "b (2)": "fp32"})
    with pytest.raises(SweepError) as caught:
        nodes.refuse({"a (1)": "fp32", "b (2)": "bf16", "c (3)": "fp32"})
    assert str(caught.value) == (
        "recipe.precision: auto is bf16 on b (2) and fp32 on c (3), so one cell would have two "
        "results: write --set recipe.precision=fp32, which every node computes, or bf16, or "
        "portable, which has the same bits on all"
    )


def test_a_worker_lost_long_after_its_cells_time_was_in_code_that_cannot_be_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ships runs in the worker, and C code may never let go of the interpreter."""
    from sweeper.run import graph
    from sweeper.run.tries import Loss

    told: list[tuple[str, str, str]] = []
    ending: Any = SimpleNamespace(
        tries=SimpleNamespace(health=SimpleNamespace(out=set())),
        give_up=lambda key, result: told.append((key, result["status"], result["error"])),
        lost=lambda key, loss: told.append((key, "lost", loss.words)),
    )
    sweep = SimpleNamespace(resources=Resources())
    job: Any = SimpleNamespace(
        context=SimpleNamespace(timeout=1.0), plan=SimpleNamespace(sweep=sweep)
    )
    silent: Any = SimpleNamespace(began=lambda trial: None, ended=lambda trial: None)
    found = graph.Graph(job, Walk({}, []), ending, sweeps.Silent(), silent, bool, nodes=list)
    for seconds in (2.0, 100.0):
        cell = Cell("defend", f"k{seconds:.0f}", {}, (), {})
        found._taken["t"] = [cell], graph.Need(1, 0)
        found.began("t")
        found._began["t"] -= seconds
        found.lost("t", Loss("process", "killed"))
        found.on_trial_complete("t", error=True)
    why = "gave up after 100 s: code that cannot be interrupted"
    assert told == [("k2", "lost", "killed"), ("k100", "timeout", why)]
