"""Results are of the sweep file as it stands, and of the part of it that was asked for."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import sweeper
from sweeper.plan import known
from sweeper.store.ledger import Ledger
from sweeper.tables import diff as differences
from tests.support.commands import Said, call

Capture = pytest.CaptureFixture[str]
SWEEP = """
name: tiny
datasets: [{dataset: digits, train_size: 300, test_size: 100}]
models: [{model: tiny, width: 4}]
attacks: [badnets, blend]
defenses: [none, {defense: fine-tuning, epochs: 1}]
recipe: {epochs: 1}
"""
MORE = SWEEP.replace("epochs: 1}]", "epochs: 1}, clp]")
LESS = SWEEP.replace("badnets, blend", "blend")
RENAMED = SWEEP.replace("badnets, ", "{attack: badnets, as: grid}, ")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep that was run."""
    folder = tmp_path_factory.mktemp("present")
    (folder / "tiny.yaml").write_text(SWEEP)
    declared = sweeper.Sweep.from_yaml(folder / "tiny.yaml")
    assert declared.run(store=folder / "store", executor="inline", quiet=True) == {"ok": 6}
    return folder


@pytest.fixture
def here(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where somebody works."""
    shutil.copytree(ran, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("SWEEPER_STORE", "store")
    monkeypatch.delenv("SWEEPER_DATA", raising=False)
    return tmp_path / "work"


def grid(said: Said) -> list[list[str]]:
    """The lines of a Markdown table."""
    assert said.code == 0, said
    found = [line for line in said.out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def rows(capsys: Capture, *words: object) -> list[dict[str, Any]]:
    said = call(capsys, "rows", "tiny.yaml", "--format", "json", *words)
    assert said.code == 0, said
    return list(json.loads(said.out))


@pytest.mark.parametrize(
    ("text", "words", "left"),
    [
        (MORE, (), 2),
        (SWEEP, ("--set", "seeds=2"), 4),
        (SWEEP, ("--set", "recipe.epochs=2"), 4),
        (LESS, (), 0),
        (RENAMED, (), 0),
    ],
)
def test_every_view_is_of_the_file_as_it_stands(
    capsys: Capture, here: Path, text: str, words: tuple[str, ...], left: int
) -> None:
    (here / "tiny.yaml").write_text(text)
    progress = json.loads(call(capsys, "status", "tiny.yaml", "--json", *words).out)
    asked = sweeper.Sweep.from_yaml("tiny.yaml", words[1:])
    plan = asked.plan()
    cells = plan["cells"]["defend"] + plan["cells"]["not_applicable"]
    states = progress["cells"]["defend"]
    assert (states["left"], sum(states.values())) == (left, cells)
    assert progress["total"] == plan["total"], "a run would have these cells"
    if cells > left:
        assert len(rows(capsys, *words)) == len(asked.results()) == cells - left
        table = call(capsys, "table", "tiny.yaml", "--format", "csv", *words)
        labels = {line["attack"] for line in csv.DictReader(table.out.splitlines())} - {"blend"}
        assert labels == ({"grid"} if text is RENAMED else set() if text is LESS else {"badnets"})
    hint = call(capsys, "rows", "tiny.yaml", *words).err
    words_of = "cells were never run: " if cells > left else "no rows yet: "
    assert (words_of + "`sweeper run tiny.yaml" in hint) == bool(left)


def test_what_was_never_run_stands_in_the_table_and_the_hint_runs_it(
    capsys: Capture, here: Path
) -> None:
    assert "·" not in call(capsys, "table", "tiny.yaml").out
    (here / "tiny.yaml").write_text(MORE)
    said = call(capsys, "table", "tiny.yaml")
    head, _, *lines = grid(said)
    assert head[-2:] == ["CLP ACC", "CLP ASR"] and "- ·: not run yet." in said.out
    assert [line[-2:] for line in lines] == [["·", "·"]] * 2
    (hint,) = re.findall(r"`sweeper (.*)`", said.err)
    assert call(capsys, *shlex.split(hint), "--executor", "inline").code == 0
    again = call(capsys, "table", "tiny.yaml")
    assert not again.err and "·" not in again.out


@pytest.mark.parametrize(
    ("where", "count"),
    [
        (["attack=badnets"], 2),
        (["attack=badnets", "attack=blend"], 4),
        (["attack=badnets", "defense_name=fine-tuning"], 1),
        (["poison_rate=10%", "seed=0", "status=ok", "defense=none"], 2),
    ],
)
def test_where_takes_the_same_part_for_every_command(
    capsys: Capture, here: Path, where: list[str], count: int
) -> None:
    words = [word for condition in where for word in ("--where", condition)]
    assert len(rows(capsys, *words)) == count
    assert json.loads(call(capsys, "status", "tiny.yaml", "--json", *words).out)["total"] == count
    said = call(capsys, "table", "tiny.yaml", "--rows", "attack,defense", "--cols", "seed", *words)
    assert len(grid(said)) - 2 == count
    if len(where) == 1:
        assert call(capsys, "report", "tiny.yaml", "--out", "part.html", *words).code == 0
        keys = {row["key"] for row in rows(capsys)} - {row["key"] for row in rows(capsys, *words)}
        page = Path("part.html").read_text("utf-8")
        assert keys and not any(key in page for key in keys)
        assert call(capsys, "plot", "bars", "tiny.yaml", "--out", "p.svg", *words).code == 0


@pytest.mark.parametrize("command", ["table", "status", "rows", "report", "plot"])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("attack=badnet", "--where attack: no attack 'badnet', did you mean 'badnets'? Known:"),
        ("atack=badnets", "--where: no axis 'atack', did you mean 'attack'"),
        ("badnets", "--where badnets: write AXIS=VALUE, such as attack=badnets"),
    ],
)
def test_a_part_that_is_not_there_is_refused(
    capsys: Capture, here: Path, command: str, where: str, said: str
) -> None:
    first, out = ["bars"] * (command == "plot"), ["--out", "p.svg"] * (command == "plot")
    line = call(capsys, command, *first, "tiny.yaml", "--where", where, *out).sentence
    assert line.startswith(said)


def test_a_sweep_whose_file_is_gone_is_read_from_its_store(capsys: Capture, here: Path) -> None:
    before = call(capsys, "table", "tiny.yaml").out
    (here / "tiny.yaml").unlink()
    assert call(capsys, "table", "tiny").out == before
    assert "blend" not in call(capsys, "table", "tiny", "--set", "attacks=[badnets]").out
    assert "no sweep file" in call(capsys, "table", "tiny2").sentence


def test_a_sweep_that_changed_needs_no_data_where_the_last_run_knew_them(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "at_hand", lambda *_: False)
    assert len(rows(capsys, "--set", "attacks=[blend]")) == 2
    ledger = Ledger(str(here / "store"))
    plan = ledger.plan("tiny")
    ledger.save_plan("tiny", {key: value for key, value in plan.items() if key != "facts"})
    assert len(rows(capsys)) == 4, "what has not changed needs none either"
    line = call(capsys, "table", "tiny.yaml", "--set", "attacks=[blend]").sentence
    assert "data set digits is not on this machine" in line and "--data" in line


def test_rows_another_sweep_has_of_the_same_cells_are_shown_under_this_ones_labels(
    capsys: Capture, here: Path
) -> None:
    (here / "other.yaml").write_text(RENAMED.replace("name: tiny", "name: other"))
    words = ("--executor", "inline", "--set", "attacks=[blend]")
    assert call(capsys, "run", "other.yaml", *words).code == 0
    said = call(capsys, "rows", "other.yaml", "--format", "json")
    assert not said.err, "nothing was never run"
    found = {(row["sweep"], row["attack"]) for row in json.loads(said.out)}
    assert found == {("other", "grid"), ("other", "blend")}


# All rows


def test_rows_come_in_every_format_alike(capsys: Capture, here: Path) -> None:
    found = rows(capsys)
    names = list(found[0])
    assert {"acc", "key", "oracle", "versions"} <= set(names) and found[0]["auroc"] is None
    assert call(capsys, "rows", "tiny.yaml", "--out", "new/rows.parquet").code == 0
    pd.testing.assert_frame_equal(
        pd.read_parquet("new/rows.parquet")[["key", "acc", "seed"]],
        pd.DataFrame(found)[["key", "acc", "seed"]],
        check_dtype=False,
    )
    (head, *lines) = csv.reader(call(capsys, "rows", "tiny.yaml").out.splitlines())
    assert head == names
    assert [float(line[names.index("acc")]) for line in lines] == [row["acc"] for row in found]
    line = call(capsys, "rows", "tiny.yaml", "--format", "parquet").sentence
    assert line == "--format parquet: is no text for a screen: name a file with --out"
    assert "no format 'xls'" in call(capsys, "rows", "tiny.yaml", "--format", "xls").sentence


# Published


def test_what_is_published_is_shown_without_a_run(capsys: Capture, here: Path) -> None:
    listed = call(capsys, "published")
    assert listed.code == 0 and re.search(r"d-br-cifar10 +172 +D-BR", listed.out)
    said = call(capsys, "published", "d-br-cifar10")
    assert ["BadNets all2one", "91.64 [abcd]", "100.00 [abcd]"] in [line[:3] for line in grid(said)]
    assert "Published: [a] D-BR/D-ST seed, table 1;" in said.out and "ours" not in said.out
    assert "write ft-sam" in call(capsys, "published", "ftsam").sentence


# Two stores, two sweeps


def test_a_store_and_its_copy_are_the_same_to_the_last_bit(capsys: Capture, here: Path) -> None:
    shutil.copytree("store", "copy")
    said = call(capsys, "diff", "store", "copy")
    assert said.code == 0 and "of 4 cells in both" in said.out
    assert " 0 moved within the noise, 0 moved beyond it," in said.out
    assert "0 cells only in store, 0 only in copy, 0 ended with another status." in said.out
    assert said.out.endswith("under the same conditions, as far as the rows say.\n")


def test_two_files_are_compared_by_their_labels(capsys: Capture, here: Path) -> None:
    text = LESS.replace("name: tiny", "name: longer").replace("blend]", "badnets]")
    (here / "longer.yaml").write_text(text.replace("recipe: {epochs: 1}", "recipe: {epochs: 12}"))
    assert call(capsys, "run", "longer.yaml", "--executor", "inline").code == 0
    said = call(capsys, "diff", "tiny.yaml", "longer.yaml")
    assert said.code == 1, "twelve epochs are better than one beyond the noise"
    assert "of 2 cells in both" in said.out and "2 cells only in tiny.yaml, 0 only" in said.out
    assert "2 cells have another key" in said.out
    told = json.loads(call(capsys, "diff", "tiny.yaml", "longer.yaml", "--json").out)
    first = told["numbers"][0]
    assert first["verdict"] == "beyond" and told["counts"]["beyond"] > 0
    assert first["difference"] == pytest.approx(first["after"] - first["before"])
    with_store = json.loads(call(capsys, "diff", "store", "longer.yaml", "--json").out)
    assert with_store["counts"]["same"] == len(with_store["numbers"]), "that sweep of the store"


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        (("nowhere", "store"), "no sweep file or shipped sweep 'nowhere'"),
        (("tiny.yaml", "quickstart"), "has no results of sweep 'quickstart'"),
        (("store", "."), "diff: . is no store, or no sweep was run into it"),
    ],
)
def test_a_side_that_is_not_there_is_refused(
    capsys: Capture, here: Path, sides: tuple[str, str], said: str
) -> None:
    assert said in call(capsys, "diff", *sides).sentence


def test_the_noise_of_a_difference() -> None:
    from tests.support.recorded import frame, row

    def rows_of(anp: list[float], alone: float, der: float) -> pd.DataFrame:
        several = [row("badnets", 0.1, "anp", seed, acc=acc) for seed, acc in enumerate(anp)]
        return frame([*several, row("blend", 0.1, "fip", 0, acc=alone, der=der)])

    def verdicts(*given: Any) -> dict[tuple[str, str], str]:
        before = rows_of([0.90, 0.91, 0.92], 0.9, 0.5)
        found = differences.compare(before, rows_of(*given), by_sweep=True)
        return {
            (line["defense"], line["metric"]): line["verdict"]
            for line in found.numbers.to_dict("records")
        }

    same = verdicts([0.90, 0.91, 0.92], 0.9, 0.5)
    assert set(same.values()) == {"same"}
    moved = verdicts([0.89, 0.899, 0.911], 0.89, 0.6)
    assert moved["anp", "acc"] == "beyond", "the seeds agree"
    assert moved["fip", "acc"] == "within" and moved["fip", "der"] == "unknown"
    assert verdicts([0.80, 0.95, 0.99], 0.5, 0.5)["anp", "acc"] == "within", "they do not"
    assert verdicts([0.90, 0.91, 0.92], 0.5, 0.5)["fip", "acc"] == "beyond"
