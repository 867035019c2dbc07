"""One sweep file with several tasks in one matrix: one run, one report, one table a task."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sweeper.cli import app
from tests.support import sweeps

FILE = """
name: several
datasets:
  - {dataset: digits, train_size: 200, test_size: 60}
  - {dataset: solids, per_class: 10, test_per_class: 4}
  - {dataset: phrases, count: 80, test_count: 20}
  - {dataset: scenes, count: 60, test_count: 30}
models:
  - {model: tiny, width: 4}
  - pointnet-small
  - {model: transformer-small, dropout: 0.0}
  - {model: ssd-small, width: 4, pyramid: 8}
attacks:
  - {attack: badnets, poison_rates: [0.2]}
  - {attack: pcba, poison_rates: [0.5], steps: 2, clouds: 2}
  - {attack: trigger-word, poison_rates: [0.2]}
  - {attack: clean-image, poison_rates: [1.0]}
clean_budgets: [0.1]
defenses: [none, {defense: fine-tuning, steps: 2}, clp]
seeds: 1
recipe: {epochs: 1, precision: fp32}
table: {rows: [defense], cols: [attack]}
"""
SCORES = {"image": "accuracy", "points": "accuracy", "pairs": "BLEU", "boxes": "mAP@.5"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sweep's file, and the store it was run into."""
    folder = tmp_path_factory.mktemp("several")
    path = folder / "several.yaml"
    path.write_text(FILE)
    sweeps.inline(path, folder / "store")
    return path, folder / "store"


def test_every_task_is_measured_by_its_own_score(done: tuple[Path, Path]) -> None:
    found: pd.DataFrame = sweeps.frame(done[1], "several")
    assert set(found["status"]) == {"ok", "not_applicable"}, found["error"].dropna().tolist()
    ended = found[found["status"] == "ok"]
    assert dict(zip(ended["task"], ended["score"], strict=True)) == SCORES
    assert (ended["acc"].between(0, 1) & ended["asr"].between(0, 1)).all()
    applied = ended.groupby("task")["defense"].unique()
    assert {task: set(names) for task, names in applied.items()} == {
        "image": {"none", "fine-tuning", "clp"},
        "points": {"none", "fine-tuning"},
        "pairs": {"none", "fine-tuning"},
        "boxes": {"none", "fine-tuning"},
    }
    refused = found[(found["attack"] == "pcba") & (found["dataset"] == "phrases")]
    assert refused["error"].str.contains("is made for points data, these are pairs").all()


def call(*words: object) -> str:
    """What a command prints."""
    said = CliRunner().invoke(app.app, [*map(str, words)])
    assert said.exit_code == 0, said.output
    return said.output


def test_there_is_one_table_a_task_and_one_report(done: tuple[Path, Path], tmp_path: Path) -> None:
    path, store = done
    text = call("table", path, "--store", store, "--format", "markdown")
    heads = [line for line in text.splitlines() if line.startswith("| defense")]
    assert len(heads) == 4 and ["BLEU" in head for head in heads] == [False, False, True, False]
    assert "mAP@.5" in heads[3] and "ACC" in heads[0]
    names = ["badnets", "pcba", "trigger-word", "clean-image"]
    for name, part in zip(names, text.split("| defense")[1:], strict=True):
        assert not any(f"{other} " in part for other in names if other != name)
    page = tmp_path / "page.html"
    call("report", path, "--store", store, "--out", page)
    written = page.read_text()
    assert all(name in written for name in ("digits", "solids", "phrases", "scenes"))
