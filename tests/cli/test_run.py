"""`sweeper run` and `sweeper cell`: what they print, their exit codes, and what runs again."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from sweeper.store import ledger
from sweeper.store.artifacts import Store
from sweeper.tables import results
from tests.support.commands import SWEEP, call, defended


def test_a_run_records_the_digest_of_its_data(done: tuple[Path, Path]) -> None:
    outline = ledger.Ledger(str(done[1])).plan("tiny")
    assert outline and set(outline["data"]) == {"digits"}
    assert int(outline["data"]["digits"], 16), "a digest, in hexadecimal"


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
    path.write_text(defended("tests.support.faulty:Raises"))
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


def test_a_run_for_machines_is_lines_of_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, store = tmp_path / "tiny.yaml", tmp_path / "store"
    path.write_text(defended("tests.support.faulty:Raises"))
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
    assert ends[0]["acc"] > 0 and ends[0]["seconds"] > 0
    assert ends[0]["key"] in Store(str(store)).keys("train")
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
    path.write_text(defended("tests.support.faulty:Diverges"))
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
