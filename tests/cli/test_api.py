"""Sweeps from Python: the same as the commands, and models a notebook can use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sweeper
from sweeper import api, data
from sweeper.cli import app
from sweeper.core.errors import SweepError
from tests.support import sweeps
from tests.support.places import ROOT

LEARNS: dict[str, Any] = {
    "models": ["tiny"],
    "attacks": ["badnets"],
    "poison_rates": [0.2],
    "recipe": {"epochs": 3},
}
"""A sweep whose victims take the trigger in and tell classes apart."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[sweeper.Sweep, Path]:
    """A finished sweep, and its store."""
    folder = tmp_path_factory.mktemp("api")
    sweep = sweeper.Sweep.from_values({**sweeps.SMALL, **LEARNS, "seeds": 2})
    assert sweep.run(store=folder / "store", executor="inline", quiet=True) == {"ok": 6}
    return sweep, folder / "store"


def test_importing_sweeper_is_cheap() -> None:
    code = (
        "import sys, sweeper\n"
        "heavy = {'torch', 'ray', 'pandas', 'pyarrow', 'numpy', 'rich', 'yaml', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "sweeper.Sweep, sweeper.load_victim, sweeper.SweepError\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "try:\n    sweeper.Sweeps\nexcept AttributeError:\n    print('none')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout == "none\n", ran.stderr


def test_a_run_that_asks_for_a_gpu_is_refused_where_torch_sees_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sweep = sweeper.Sweep.from_values({**sweeps.SMALL, "resources": {"gpus": 0.25}})
    with pytest.raises(SweepError, match=r"torch sees none .* 'resources=\{cpus: 1\}'"):
        sweep.run(store=tmp_path, executor="inline", quiet=True)
    assert sweep.plan(store=tmp_path)["to_run"], "a plan needs none"


NO_RAY = """
import importlib.abc, importlib.metadata, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
found = importlib.metadata.version
def version(name):
    if name == "ray":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
from sweeper.cli import main
main()
"""


def test_without_ray_cells_run_one_after_the_other(tmp_path: Path) -> None:
    path, store = sweeps.write(tmp_path, attacks=["badnets"], seeds=1), tmp_path / "store"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        asked = [sys.executable, "-c", NO_RAY, *words, str(path), "--store", str(store)]
        return subprocess.run(asked, capture_output=True, text=True, cwd=ROOT)

    ran = run("run", "--executor", "inline")
    assert ran.returncode == 0, ran.stderr
    assert set(sweeps.frame(store)["status"]) == {"ok"}
    assert all("ray" not in json.loads(v) for v in sweeps.frame(store)["versions"])
    assert "BadNets" in run("table").stdout
    path.write_text(path.read_text() + "\ntimeout: 100\ntargets: [1]\n")
    ran = run("run")
    assert ran.returncode == 2 and "Ray is not installed here" in ran.stderr
    assert "--executor inline" in ran.stderr and "Traceback" not in ran.stderr


def test_a_run_from_python_is_the_run_of_the_command(
    done: tuple[sweeper.Sweep, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, store = done
    path = sweeps.write(tmp_path, **LEARNS)
    words = ["plan", str(path), "--set", "seeds=2", "--store", str(store), "--json"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", ["sweeper", *words])
        app.main()
    facts = json.loads(capsys.readouterr().out)
    assert (facts["total"], facts["done"]) == (6, 6)
    assert sweeper.Sweep.from_yaml(path, ["seeds=2"]).plan(store=store) == facts
    grown = sweeper.Sweep.from_yaml(path).plan(store=store)
    assert (grown["total"], grown["to_run"]) == (9, 3)


def test_a_run_ends_with_the_victims_that_carry_no_backdoor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**sweeps.SMALL, "attacks": ["badnets", "none"], "poison_rates": [0.02], "seeds": 1}
    sweep, store = sweeper.Sweep.from_values(values), tmp_path / "store"
    sweep.run(store=store, executor="inline")
    said = " ".join(capsys.readouterr().err.split())
    found = sweep.results(store=store)
    badnets = found[found["attack"] == "badnets"].iloc[0]
    assert badnets["asr_before"] < 0.5, "the test needs a victim that does not take"
    assert "victims carry no backdoor" in said or "victims carries no backdoor" in said
    assert f"badnets 2 % (ASR {100 * badnets['asr_before']:.1f}" in said and "poison_rates" in said
    assert said.index("cells run: ") < said.index("no backdoor (ASR below 50 %)")
    assert set(found["n_classes"]) == {10}
    told: list[dict] = []
    sweep.run(store=store, executor="inline", tell=told.append)
    end = told[-1]
    lost = {victim["attack"]: victim for victim in end["no_backdoor"]}
    assert end["event"] == "end" and lost["badnets"]["victim"] == badnets["victim"]
    assert lost["badnets"]["asr"] == badnets["asr_before"] and json.dumps(end)


def test_a_run_whose_victims_all_took_says_nothing_of_them(
    done: tuple[sweeper.Sweep, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, store = done
    assert (sweep.results(store=store)["asr_before"] > 0.5).all(), (
        "the test needs victims that took"
    )
    sweep.run(store=store, executor="inline")
    assert "no backdoor" not in capsys.readouterr().err


def test_a_second_run_runs_nothing_and_a_quiet_one_says_nothing(
    done: tuple[sweeper.Sweep, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, store = done
    assert sweep.run(store=store, executor="inline", quiet=True) == {}
    assert capsys.readouterr() == ("", "")
    assert sweep.run(store=store) == {}, "nothing to run: Ray is not started"
    assert "6 cells, 6 done, 0 to run" in capsys.readouterr().err
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_rows_of_cells_left_out_are_told_of_and_come_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweeps.write(tmp_path, attacks=["badnets"], poison_rates=[0.2], seeds=1)
    words = {"store": tmp_path / "store", "executor": "inline"}
    said = []
    for left_out in ("fine-tuning", "none", ""):
        asked = [f"exclude=[{{defense: {left_out}}}]"] if left_out else []
        sweep = sweeper.Sweep.from_yaml(path, asked)
        counts = sweep.run(**words)
        said.append(capsys.readouterr().err)
    told = "1 finished rows in the store are of cells this call leaves out"
    assert [told in text for text in said] == [False, True, False]
    assert counts == {} and len(sweep.results(store=words["store"])) == 2


def test_results_are_the_rows(
    done: tuple[sweeper.Sweep, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, store = done
    found = sweep.results(store=store)
    assert len(found) == 4 and set(found["status"]) == {"ok"}
    assert set(found["defense"]) == {"none", "fine-tuning"}
    monkeypatch.setenv("SWEEPER_STORE", str(store))
    assert found.equals(sweep.results()), "the store of the environment is the default"
    with pytest.raises(SweepError, match="has no results of sweep 'small'"):
        sweep.results(store=store.parent / "other")


def test_a_loaded_victim_is_the_one_that_was_measured(done: tuple[sweeper.Sweep, Path]) -> None:
    sweep, store = done
    rows = sweep.results(store=store)
    row = rows[rows["defense"] == "none"].iloc[0]
    found = sweeper.load_victim(row["victim"], store=store)
    assert found.shape == (1, 8, 8) and found.classes == tuple("0123456789")
    assert found.axes["attack"] == "badnets" and found.axes["seed"] == row["seed"]
    assert found.params["poison_rate"] == 0.2 and not found.model.training
    (entry,) = sweep.declared.datasets
    test = data.open_dataset({"dataset": entry.name, **entry.options}).test
    with torch.inference_mode():
        guessed = found.model(test.images.float() / 255).argmax(1)
    measured = float((guessed == test.labels).double().mean())
    assert measured == pytest.approx(row["acc"], abs=0.011) == found.metrics["acc"]
    assert 0.2 < measured < 1, "it has learned something, or this compares nothing"


def test_victims_are_found_by_their_first_digits(done: tuple[sweeper.Sweep, Path]) -> None:
    sweep, store = done
    key = sweep.results(store=store)["victim"][0]
    assert sweeper.load_victim(key[:6], store=store).key == key
    with pytest.raises(SweepError, match="no victims of store .* starts with 'xyz'"):
        sweeper.load_victim("xyz", store=store)
    with pytest.raises(SweepError, match="^2 victims of store .* give more of its digits"):
        sweeper.load_victim("", store=store)


def test_a_victim_of_older_code_is_named(done: tuple[sweeper.Sweep, Path], tmp_path: Path) -> None:
    from sweeper.store.artifacts import Store

    key = "0" * 20
    Store(str(tmp_path)).put("train", key, {"model": {"w": torch.zeros(1)}}, {"params": {}})
    with pytest.raises(SweepError, match=r"`sweep\.run\(store=.*, fresh=\['00000000'\]\)` trains"):
        sweeper.load_victim(key, store=tmp_path)


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="no attack 'badnet', did you mean 'badnets'"):
        sweeper.Sweep.from_values({**sweeps.SMALL, "attacks": ["badnet"]})
    with pytest.raises(SweepError, match="'quickstrat', did you mean 'quickstart'"):
        sweeper.Sweep.from_yaml("quickstrat")
    sweep = sweeper.Sweep.from_yaml("quickstart")
    with pytest.raises(SweepError, match="executor: 'slurm' is not one of ray, inline"):
        sweep.run(store=tmp_path / "store", executor="slurm")
    assert not (tmp_path / "store").exists()


def test_a_store_is_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SWEEPER_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert api.place() == str(tmp_path / "sweeps-store") and api.place("s3://b/f") == "s3://b/f"
