"""The command line: what each command prints, its exit code, and what it leaves alone."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from sweeper import data
from sweeper.cli import app, listing, remote
from sweeper.run import calibrate
from sweeper.store import ledger
from sweeper.store.artifacts import Store
from sweeper.tables import results
from tests.support.places import ROOT

COMMANDS = (
    *sorted(c.name or c.callback.__name__ for c in app.app.registered_commands),
    *(f"cluster {c.callback.__name__}" for c in remote.clusters.registered_commands),
)
SWEEP = """
name: tiny
datasets: [{dataset: digits, train_size: 300, test_size: 100}]
models: [tiny]
attacks: [badnets]
defenses: [none, {defense: fine-tuning, epochs: 1}]
recipe: {epochs: 1}
"""


@dataclass
class Said:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of an error of the user's."""
        assert self.code == 2 and not self.out, self
        (line,) = self.err.splitlines()
        assert "Traceback" not in line
        return line


def call(capsys: pytest.CaptureFixture[str], *words: object) -> Said:
    """Run a command in this process, as its entry point does."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sweeper", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            app.main()
    code = left.value.code
    return Said(int(code or 0), *capsys.readouterr())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep: (its file, its store)."""
    folder = tmp_path_factory.mktemp("cli")
    path, store = folder / "tiny.yaml", folder / "store"
    path.write_text(SWEEP)
    words = ["sweeper", "run", str(path), "--store", str(store), "--executor", "inline"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", words)
        app.main()
    assert not left.value.code
    return path, store


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    said = call(capsys, *command.split(), "--help")
    assert said.code == 0 and not said.err
    assert f"Example: sweeper {command}" in said.out
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= (24 if command else 52), "a screen"
    assert command or "..." not in said.out.partition("Run:")[2], "no summary is cut"


def test_every_command_is_tried_here() -> None:
    assert len(COMMANDS) >= 10 and {"run", "import-model"} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("run qui", {"quickstart"}),
        ("run mi", {"mine.yaml"}),
        ("show adaptive-", {"adaptive-blend", "adaptive-k-way", "adaptive-patch"}),
        ("analyze tsne quickstart --after fine-", {"fine-pruning", "fine-tuning"}),
        ("list da", {"datasets"}),
        ("describe adaptive-", {"adaptive-blend", "adaptive-k-way", "adaptive-patch"}),
        ("new de", {"defense"}),
        ("run quickstart --executor i", {"inline"}),
        ("table quickstart --format la", {"latex"}),
    ],
)
def test_the_shell_completes_names(
    line: str, completed: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.main import get_command

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(SWEEP)
    *words, incomplete = line.split()
    shell = pytest.importorskip("typer._completion_classes").BashComplete
    asked = shell(get_command(app.app), {}, "sweeper", "_SWEEPER_COMPLETE")
    assert {item.value for item in asked.get_completions(words, incomplete)} == completed


def test_completion_waits_for_no_torch() -> None:
    code = (
        "import sys\nfrom sweeper.cli import arguments\n"
        "assert 'badnets' in arguments.methods('attack')('') and arguments.specs('quick')\n"
        "print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout == "[]\n", ran.stderr


def test_examples_of_the_help_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "plan"):
        text = call(capsys, command, "--help").out
        (line,) = [part for part in text.splitlines() if "Example:" in part]
        words = line.partition("sweeper ")[2].split()
        assert call(capsys, *words).code == 0, line


@pytest.mark.parametrize("what", ["attacks", "defenses", "datasets", "models", "sweeps"])
def test_list(capsys: pytest.CaptureFixture[str], what: str) -> None:
    found = json.loads(call(capsys, "list", what, "--json").out)
    assert found and all(isinstance(record["name"], str) for record in found)
    names = [record["name"] for record in found]
    assert names == sorted(names) and len(set(names)) == len(names)
    known = {
        "attacks": "badnets",
        "defenses": "anp-oracle",
        "datasets": "cifar10",
        "models": "resnet18",
        "sweeps": "quickstart",
    }
    assert known[what] in names
    shown = call(capsys, "list", what).out.splitlines()
    assert [line.split()[0] for line in shown] == names, "a line for each, for grep and cut"
    if what == "defenses":
        assert shown[names.index("anp")].split("  ")[-1].strip() == "clean, model"


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("what", listing.KINDS)
def test_a_list_fits_the_terminal(what: str, width: int) -> None:
    head, *lines = listing.lines(what, width)
    assert head.startswith("name ") and len(lines) == len(listing.lines(what))
    assert max(map(len, lines)) <= width
    assert not any("…" in line.split("  ")[0] for line in lines), "names are whole"
    if what == "defenses" and width >= 80:
        (anp,) = (line for line in lines if line.startswith("anp "))
        assert anp.split()[1] == ("ANP" if width == 80 else "Adversarial")
        assert anp.endswith("repair           clean, model")


def test_list_of_an_unknown_kind(capsys: pytest.CaptureFixture[str]) -> None:
    line = call(capsys, "list", "atacks").sentence
    assert line.startswith("list: no kind 'atacks', did you mean 'attacks'")


def test_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "tiny.yaml", tmp_path / "store"
    path.write_text(SWEEP)
    said = call(capsys, "plan", path, "--store", store, "--set", "seeds=2", "--json")
    found = json.loads(said.out)
    cost = found.pop("estimate")
    assert (cost["cells_unknown"], cost["cell_seconds"]) == (6, 0), "nothing was measured yet"
    assert found == {
        "sweep": "tiny",
        "cells": {"prepare": 0, "train": 2, "stage": 0, "defend": 4, "not_applicable": 0},
        "total": 6,
        "done": 0,
        "to_run": 6,
        "to_run_by_kind": {"train": 2, "defend": 4},
        "trainings_saved": 2,
        "why_not": [],
        "unresolved": [],
        "other_code": [],
    }
    words = call(capsys, "plan", path, "--store", store).out
    assert "sweep tiny: 3 cells" in words and "trainings saved" in words
    assert "cost: unknown" in words
    assert f"`sweeper plan {path} --calibrate --store {store}`" in words
    monkeypatch.setattr(calibrate, "SECONDS", 0.2)
    guess = call(capsys, "plan", path, "--store", store, "--calibrate").out
    assert "cost, a rough estimate: about " in guess and " of core time on " in guess
    assert not store.exists(), "a plan leaves nothing"


def test_plan_of_a_finished_sweep(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path]
) -> None:
    path, store = done
    found = json.loads(call(capsys, "plan", path, "--store", store, "--json").out)
    assert (found["total"], found["done"], found["to_run"]) == (3, 3, 0)
    assert found["estimate"]["cell_seconds"] == 0 < found["estimate"]["saved_seconds"]
    assert "cost:" not in call(capsys, "plan", path, "--store", store).out
    grown = ("--set", "seeds=2", "--json")
    found = json.loads(call(capsys, "plan", path, "--store", store, *grown).out)
    assert (found["total"], found["done"], found["to_run"]) == (6, 3, 3)
    cost = found["estimate"]
    assert cost["cells_measured"] == 3 and cost["cell_seconds"] >= cost["wall_seconds"] > 0


def test_a_run_records_the_digest_of_its_data(done: tuple[Path, Path]) -> None:
    outline = ledger.Ledger(str(done[1])).plan("tiny")
    assert outline and set(outline["data"]) == {"digits"}
    assert int(outline["data"]["digits"], 16), "a digest, in hexadecimal"


def test_plan_of_data_that_are_not_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is downloaded for a plan")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    empty = tmp_path / "data"
    empty.mkdir()
    path = tmp_path / "tiny.yaml"
    path.write_text(
        SWEEP.replace("[{dataset: digits, train_size: 300, test_size: 100}]", "[cifar10]")
    )
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    words = ("plan", path, "--data", empty, "--store", tmp_path / "store")
    found = json.loads(call(capsys, *words, "--json").out)
    assert found["unresolved"] == ["cifar10"]
    assert found["cells"]["train"] == 1 and found["cells"]["defend"] == 2
    first, *_ = call(capsys, *words).out.splitlines()
    assert first == (
        f"data set cifar10 is not on this machine: `run` downloads about 170 MB into "
        f"{empty / 'torchvision'}; what is done of it is not known before"
    )
    path.write_text(path.read_text().replace("[cifar10]", "[imagenet]"))
    monkeypatch.setenv("SWEEPER_DATA", str(empty))
    first, *_ = call(capsys, "plan", path, "--store", tmp_path / "store").out.splitlines()
    assert first.startswith(
        f"data set imagenet is not on this machine: imagenet: not found under {empty} and not "
        "downloadable: put train.parquet and test.parquet, or "
    )
    assert f"into {empty / 'imagenet'}" in first and "with --data DIR" in first
    assert not list(empty.iterdir())


def test_every_download_says_how_large_it_is() -> None:
    for kind in data.sources():
        for name in kind.names if kind.downloads else ():
            assert 10e6 < kind.sizes[name] < 1e9, name


def test_data_that_are_nowhere(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP.replace("dataset: digits", "dataset: digit"))
    line = call(capsys, "run", path, "--data", tmp_path, "--store", tmp_path / "store").sentence
    assert "no data set 'digit', did you mean 'digits'" in line
    assert not (tmp_path / "store").exists()


def test_run_again_runs_nothing_and_prints_the_table(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path]
) -> None:
    path, store = done
    said = call(capsys, "run", path, "--store", store, "--executor", "inline")
    assert said.code == 0
    assert "tiny: 3 cells, 3 done, 0 to run; trainings saved by sharing victims: 1" in said.err
    assert "cells run: none" in said.err
    assert "FT ACC" in said.out and "BadNets" in said.out
    assert said.out == call(capsys, "table", path, "--store", store).out


def test_an_unknown_executor(capsys: pytest.CaptureFixture[str], done: tuple[Path, Path]) -> None:
    line = call(capsys, "run", done[0], "--store", done[1], "--executor", "slurm").sentence
    assert line == "--executor: 'slurm' is not one of ray, inline: write one of them"


def test_a_failed_cell_gives_exit_code_1_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, store = tmp_path / "tiny.yaml", tmp_path / "store"
    path.write_text(
        SWEEP.replace("{defense: fine-tuning, epochs: 1}", "tests.support.faulty:Raises")
    )
    said = call(capsys, "run", path, "--store", store, "--executor", "inline")
    assert said.code == 1
    assert "\ncost: unknown, " in said.err and "\ncells run: 1 failed, 2 ok in " in said.err
    assert "ValueError: broken on purpose" in said.err and "Traceback" not in said.err
    again = " ".join(said.err.split())
    assert "\nunfinished rows: 1 of 2 (1 failed)\n" in said.err
    key = next(key for key, s in Store(str(store)).statuses("tiny").items() if s == "failed")
    assert f"`sweeper run {path} --store {store} --executor inline` tries them again" in again
    assert f"`sweeper cell {path} {key[:8]} --store {store}` shows one fail here" in again
    said = call(capsys, "cell", path, key[:8], "--store", store)
    assert said.code == 1
    assert "Traceback" in said.err and "broken on purpose" in said.err, "here it is asked for"
    assert json.loads(said.out)["status"] == "failed"


@pytest.mark.parametrize("style", ["markdown", "csv", "latex", "html"])
def test_table_formats(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], tmp_path: Path, style: str
) -> None:
    words = ("table", done[0], "--store", done[1], "--format", style)
    said = call(capsys, *words)
    assert said.code == 0 and not said.err
    assert {
        "markdown": lambda text: "|" in text and "FT ACC" in text,
        "csv": lambda text: len({len(line) for line in csv.reader(text.splitlines())}) <= 2,
        "latex": lambda text: r"\begin{tabular}" in text,
        "html": lambda text: "<table" in text and "</table>" in text,
    }[style](said.out)
    out = tmp_path / "table"
    assert call(capsys, *words, "--out", out).out == ""
    assert out.read_text() == said.out


def test_table_of_other_axes_and_metrics(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path]
) -> None:
    words = ("table", done[0], "--store", done[1])
    said = call(capsys, *words, "--rows", "defense", "--cols", "attack, seed", "--values", "ra,der")
    assert said.code == 0 and "| FT " in said.out
    line = call(capsys, *words, "--values", "accuracy").sentence
    assert "no " in line and "'accuracy'" in line and "did you mean" in line
    assert "'excel'" in call(capsys, *words, "--format", "excel").sentence
    assert "'defence'" in call(capsys, *words, "--cols", "defence").sentence


def test_table_before_any_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    line = call(capsys, "table", "quickstart", "--store", store).sentence
    assert line == (
        f"store {store} has no results of sweep 'quickstart' (it has: none): `sweeper run "
        f"quickstart --store {store}` runs it, or name the store that has them with --store"
    )
    assert not store.exists()


def test_table_of_a_file_without_a_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("# a study\nseeds: 1\nname: a/b\n")
    line = call(capsys, "table", path).sentence
    assert line.startswith(f"{path}:3: name: needs letters, ") and line.endswith(", not 'a/b'")


def test_a_store_is_the_same_place_for_every_command(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = done
    monkeypatch.setenv("HOME", str(store.parent))
    monkeypatch.setenv("SWEEPER_STORE", "~/store")
    assert json.loads(call(capsys, "plan", path, "--json").out)["done"] == 3
    assert call(capsys, "table", path).code == 0
    monkeypatch.chdir(store.parent)
    assert call(capsys, "table", path, "--store", "store").code == 0
    assert call(capsys, "table", path, "--store", f"file://{store}").code == 0


def test_table_beside_published_figures(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], tmp_path: Path
) -> None:
    line = call(capsys, "table", done[0], "--store", done[1], "--compare").sentence
    assert line.startswith(
        "--compare: nothing published or measured is known for sweep 'tiny'; it is"
    )
    ledger_ = ledger.Ledger(str(tmp_path))
    row = {"sweep": "anp", "key": "0" * 20, "status": "ok", "dataset": "cifar10", "seed": 0}
    row |= {"model": "tiny", "attack": "badnets", "poison_rate": 0.05, "target": 0}
    row |= {"clean_budget": 500.0, "defense": "anp-0.05", "acc": 0.9, "asr": 0.2}
    ledger_.write_row(row)
    ledger_.save_plan("anp", {"order": {"attack": ["badnets"]}, "cells": {row["key"]: {}}})
    said = call(capsys, "table", "anp", "--store", tmp_path, "--compare", "--values", "asr")
    assert said.code == 0 and "9.00 [a] / 20.0 / +11.0≠" in said.out
    assert "[a] ANP recipe, figure" in said.out and "ANP at 0.05 ASR" in said.out
    assert "model resnet18, ours tiny" in said.out


def test_a_plan_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sweeper.cli import app\n"
        f"sys.argv = ['sweeper', 'plan', 'grand', '--json', '--store', {str(tmp_path)!r}]\n"
        "try:\n    app.main()\nexcept SystemExit as left:\n    assert not left.code\n"
        "print(sorted({'ray', 'torchvision', 'sympy', 'sklearn'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    plan, modules = ran.stdout.splitlines()
    assert modules == "[]"
    assert json.loads(plan)["total"] > 20_000


def test_cell_runs_again_and_gives_the_same_bits(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path]
) -> None:
    path, store = done

    def rows() -> pd.DataFrame:
        return results.frame(ledger.load(str(store), "tiny")[0]).set_index("key").sort_index()

    before = rows()
    key = before.index[before["defense"] == "fine-tuning"][0]
    said = call(capsys, "cell", path, key[:6], "--store", store)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert (found["key"], found["status"], found["kind"]) == (key, "ok", "defend")
    assert found["defense"] == "fine-tuning" and found["acc"] == before.loc[key, "acc"]
    after = rows()
    assert after.loc[key, "started_at"] > before.loc[key, "started_at"], "its row is written anew"
    same = ["acc", "asr", "ra", "der", "status", "acc_before"]
    pd.testing.assert_frame_equal(before[same], after[same], check_exact=True)


def test_cell_of_an_unknown_or_ambiguous_key(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path]
) -> None:
    path, store = done
    line = call(capsys, "cell", path, "xyz", "--store", store).sentence
    assert line.startswith("no cells of tiny have a key that starts with 'xyz': the column")
    assert call(capsys, "cell", path, "", "--store", store).sentence.startswith("3 cells of tiny")


def test_a_table_waits_for_neither_torch_nor_ray(done: tuple[Path, Path]) -> None:
    path, store = done
    code = (
        "import sys\nfrom sweeper.cli import app\n"
        f"sys.argv = ['sweeper', 'table', {str(path)!r}, '--store', {str(store)!r}]\n"
        "try:\n    app.main()\nexcept SystemExit as left:\n    assert not left.code\n"
        "print(sorted({'torch', 'ray', 'torchvision'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ran.stdout.splitlines()[-1] == "[]"
    assert "BadNets" in ran.stdout


def test_a_plan_says_what_does_not_apply_and_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP.replace("[badnets]", "[badnets, tact]"))
    words = ("plan", path, "--store", tmp_path / "store", "--set", "poison_rates=[0.3]")
    (why,) = json.loads(call(capsys, *words, "--json").out)["why_not"]
    assert set(why) == {"cells", "reason", "attacks"}, "it is so for every defense"
    assert (why["cells"], why["attacks"]) == (2, ["tact"])
    said = call(capsys, *words).out
    assert f"       2  tact: {why['reason']}\n" in said
    assert re.search(r"needs 81 images to poison at rate 0.3 of all, class 1 has \d\d: ", said)


def test_a_run_for_machines_is_lines_of_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, store = tmp_path / "tiny.yaml", tmp_path / "store"
    path.write_text(
        SWEEP.replace("{defense: fine-tuning, epochs: 1}", "tests.support.faulty:Raises")
    )
    words = ("run", path, "--store", store, "--executor", "inline", "--json")
    said = call(capsys, *words)
    events = [json.loads(line) for line in said.out.splitlines()]
    assert said.code == 1 and not said.err
    plan, *between, end = events
    assert plan["event"] == "plan" and plan["to_run"] == 3 and plan["estimate"]["parallel"] == 1
    assert [(e["event"], e["kind"]) for e in between] == [
        pair for kind in ("train", "defend", "defend") for pair in (("start", kind), ("cell", kind))
    ]
    ends = [event for event in between if event["event"] == "cell"]
    assert [event["status"] for event in ends] == ["ok", "ok", "failed"]
    assert "broken on purpose" in ends[2]["error"] and ends[1]["attack"] == "badnets"
    assert ends[0]["acc"] > 0 and ends[0]["seconds"] > 0 and ends[0]["key"] in store_keys(store)
    assert end["event"] == "end" and end["cells"] == {"ok": 2, "failed": 1}
    assert end["unfinished"] == {"failed": 1}
    assert end["cell_seconds"] > 0 and end["saved_seconds"] == 0
    path.write_text(SWEEP)
    said = call(capsys, *words)
    assert said.code == 0 and json.loads(said.out.splitlines()[-1])["unfinished"] == {}


@pytest.mark.parametrize("as_json", [False, True])
def test_a_row_that_somebody_else_left_unfinished_gives_exit_code_1(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    """Each cell of this call is ok to it, yet the table has a hole: the code is the table's."""
    path, store = tmp_path / "tiny.yaml", tmp_path / "store"
    path.write_text(SWEEP)
    write = Store.write_rows

    def lying(store: Store, sweep: str, rows: list[dict[str, object]]) -> None:
        write(store, sweep, [row for row in rows if row["defense"] == "none"])

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_row", lambda store, row: lying(store, row["sweep"], [row]))
        patch.setattr(Store, "write_rows", lying)
        words = ("run", path, "--store", store, "--executor", "inline")
        said = call(capsys, *words, *["--json"] * as_json)
    assert said.code == 1
    if as_json:
        end = json.loads(said.out.splitlines()[-1])
        assert end["cells"] == {"ok": 3} and end["unfinished"] == {"missing": 1}
    else:
        assert "cells run: 3 ok" in said.err
        assert "\nunfinished rows: 1 of 2 (1 missing)\n" in said.err
    assert call(capsys, *words).code == 0, "the same command enters them"


def test_a_row_that_diverged_is_finished(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, store = tmp_path / "tiny.yaml", tmp_path / "store"
    path.write_text(
        SWEEP.replace("{defense: fine-tuning, epochs: 1}", "tests.support.faulty:Diverges")
    )
    for _ in range(2):
        said = call(capsys, "run", path, "--store", store, "--executor", "inline")
        assert said.code == 0 and "unfinished" not in said.err, "now and when it is run again"


def test_a_run_of_which_nothing_applies_says_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, store = tmp_path / "tiny.yaml", tmp_path / "store"
    path.write_text(SWEEP)
    words = (path, "--store", store, "--set", "targets=[10]", "--set", "attacks=[badnets, blend]")
    for more in ([], ["--json"]):
        said = call(capsys, "run", *words, *more)
        assert said.code == 2 and not said.out and not store.exists()
        first, *reasons = said.err.splitlines()
        assert first.startswith("tiny: none of its 4 defense cells applies, so nothing can run")
        assert reasons == ["       4  target label 10 does not exist: labels are 0 to 9"]
    said = call(capsys, "plan", *words)
    assert said.code == 0 and reasons[0] in said.out.splitlines()
    words = (path, "--store", store, "--executor", "inline", "--set", "targets=[0, 10]")
    some = call(capsys, "run", *words)
    assert some.code == 0, "some of it applies"


def store_keys(store: Path) -> set[str]:
    return Store(str(store)).keys("train")


def test_a_method_beside_the_sweep_file_is_found(tmp_path: Path) -> None:
    own = (ROOT / "defenses" / "none.py").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(own.replace("NoDefense", "Mine"))
    mine = SWEEP.replace("{defense: fine-tuning, epochs: 1}", "mine:Mine")
    (tmp_path / "tiny.yaml").write_text(mine.replace("[none,", "["))
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", "from sweeper.cli import main; main()", "plan", "tiny.yaml"]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0 and "  defend               1, 1 to run" in ran.stdout, ran.stderr


def test_fresh_runs_again_what_is_done(
    done: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = done
    words = ("run", path, "--store", store, "--executor", "inline")
    said = call(capsys, *words, "--fresh", "fine-tuning")
    assert "--fresh: 1 defend to be run again" in said.err and "cells run: 1 ok" in said.err
    assert "cells run: none" in call(capsys, *words).err
    unknown = call(capsys, *words, "--fresh", "fine-tunning")
    assert "did you mean 'fine-tuning'?" in unknown.sentence
    assert (
        json.loads(call(capsys, "plan", path, "--store", store, "--json").out)["other_code"] == []
    )


def test_what_a_store_holds_is_told_and_then_freed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "a store"
    store = Store(str(place))
    store.save_plan("old", {"cells": {}, "above": {"1" * 20: "train"}})
    store.put("train", "1" * 20, {}, {"params": {}})
    said = call(capsys, "du", "--store", place)
    assert re.search(r"^victims +1 +\d+ bytes$", said.out, re.MULTILINE) and said.code == 0
    assert re.search(r"^old +2 +\d+ bytes$", said.out, re.MULTILINE)
    used = json.loads(call(capsys, "du", "--store", place, "--json").out)
    assert used["sweeps"]["old"] == {"files": 2, "bytes": used["bytes"]}
    assert call(capsys, "gc", "--store", place).out == f"store {place}: nothing to free\n"
    told = call(capsys, "gc", "--store", place, "--sweep", "old")
    assert store.keys("train"), "it is only said"
    (command,) = re.findall("`sweeper (.*)` does it", told.out)
    assert shlex.split(command) == ["gc", "--yes", "--store", str(place), "--sweep", "old"]
    found = json.loads(call(capsys, "gc", "--store", place, "--sweep", "old", "--json").out)
    assert (found["bytes"], found["freed"]) == (used["bytes"], False)
    assert found["what"]["victims of old alone"]["paths"] == [f"artifacts/train/{'1' * 20}"]
    freed = call(capsys, *shlex.split(command))
    assert freed.code == 0 and "2 files freed" in freed.out and not list(place.rglob("*.json"))
    assert call(capsys, "du", "--store", place).out == f"store {place} is empty\n"
    assert "there is no " in call(capsys, "gc", "--store", tmp_path / "no store").sentence
