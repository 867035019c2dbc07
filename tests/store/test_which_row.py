"""Which of several rows of a cell counts: the same for every reader, and no finished one is lost.

Clocks say anything here: each row's `started_at` is drawn, so a reader that believes it loses.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sweeper.core import rows
from sweeper.store.ledger import Ledger
from sweeper.tables import results

KEYS = [f"{number:020x}" for number in range(3)]
STATES = (*rows.FINISHED, *rows.UNFINISHED)
LATE, EARLY = "2030-01-01T00:00:00+00:00", "2020-01-01T00:00:00+00:00"


def row(key: str = KEYS[0], status: str = "ok", start: str = EARLY, **more: Any) -> dict[str, Any]:
    return {"sweep": "study", "key": key, "status": status, "started_at": start, **more}


def shown(ledger: Ledger) -> dict[str, tuple[str, float]]:
    """Key -> (status, acc), as a table has it; all readers must say the same."""
    frame = results.frame(ledger.tables("study"))
    found = dict(zip(frame["key"], zip(frame["status"], frame["acc"], strict=True), strict=True))
    assert len(found) == len(frame), "each cell once"
    recent = ledger.recent_rows(["key", "status", "acc"], 1000)
    assert {r["key"]: (r["status"], r["acc"]) for r in recent} == found
    assert len(recent) == len(frame)
    assert ledger.statuses("study") == {key: status for key, (status, _) in found.items()}
    assert sum(len(table) for table in ledger.tables("study")) == len(frame), "not only in frames"
    return found


# One case each


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("bad", rows.UNFINISHED)
@pytest.mark.parametrize("good", rows.FINISHED)
def test_a_row_of_a_clock_ahead_does_not_beat_a_finished_one(
    tmp_path: Path, good: str, bad: str, compacted: bool
) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.write_row(row(status=good, acc=0.9))
    ledger.write_row(row(KEYS[1], acc=0.1))
    if compacted:
        ledger.compact("study")
    ledger.write_row(row(status=bad, start=LATE, acc=0.0))
    for _ in range(2):
        assert shown(ledger)[KEYS[0]] == (good, 0.9)
        ledger.compact("study")


def test_a_finished_row_beats_the_unfinished_one_before_it(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.write_row(row(status="failed", start=LATE, acc=0.0))
    ledger.write_row(row(KEYS[1], acc=0.1))
    ledger.compact("study")
    ledger.write_row(row(start=EARLY, acc=0.9))
    for _ in range(2):
        assert shown(ledger)[KEYS[0]] == ("ok", 0.9)
        ledger.compact("study")


def test_a_row_written_anew_counts_though_its_clock_is_behind(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    for acc, start in ((0.1, LATE), (0.2, EARLY), (0.3, "")):
        ledger.write_row(row(acc=acc, start=start))
        ledger.write_row(row(KEYS[1], acc=acc, start=start))
        assert shown(ledger)[KEYS[0]] == ("ok", acc)
        ledger.compact("study")
        assert shown(ledger)[KEYS[0]] == ("ok", acc)


@pytest.mark.parametrize("compacted", [False, True])
def test_the_unfinished_state_of_the_last_run_counts(tmp_path: Path, compacted: bool) -> None:
    """Old stores have their parts in the folder itself: the first run of today's comes after."""
    ledger = Ledger(str(tmp_path))
    ledger.write_row(row(status="blocked", acc=0.5))
    for status in (*rows.UNFINISHED, *reversed(rows.UNFINISHED)):
        ledger.begin("study")
        ledger.write_row(row(status=status, acc=0.5))
        assert shown(ledger)[KEYS[0]][0] == status
        if compacted:
            ledger.compact("study")
            assert shown(ledger)[KEYS[0]][0] == status
            assert len(os.listdir(tmp_path / "sweeps/study/results")) == 1


def test_a_newer_compaction_beats_an_older_by_its_number(tmp_path: Path) -> None:
    """Two that a kill left: 10 is newer than 9, whatever the clock and the alphabet say."""
    ledger, folder = Ledger(str(tmp_path)), tmp_path / "sweeps/study/results"
    folder.mkdir(parents=True)
    for number, acc in ((9, 0.9), (10, 0.1)):
        table = rows.table([row(acc=acc, start=LATE if number == 9 else EARLY)])
        pq.write_table(table, folder / f"compact-{number}.parquet")
    assert shown(ledger)[KEYS[0]] == ("ok", 0.1)
    ledger.write_row(row(KEYS[1], acc=0.5))
    ledger.compact("study")
    assert shown(ledger)[KEYS[0]] == ("ok", 0.1)
    (name,) = os.listdir(folder)
    assert name.startswith("compact-11"), "and is numbered after them"


def test_compactions_of_older_code_count_less_than_newer_ones(tmp_path: Path) -> None:
    ledger, folder = Ledger(str(tmp_path)), tmp_path / "sweeps/study/results"
    folder.mkdir(parents=True)
    older = rows.table([row(acc=0.1, start=LATE)])
    pq.write_table(older, folder / "compact-1790000000000000000.parquet")
    ledger.write_row(row(acc=0.2))
    ledger.compact("study")
    (name,) = os.listdir(folder)
    assert name.startswith("compact-1790000000000000001")
    assert shown(ledger)[KEYS[0]] == ("ok", 0.2)


# Whatever the order


@dataclass
class Step:
    """Something a process does; what happens in the midst of a compaction is inside it."""

    key: str = ""
    """A row is written; empty for a compaction."""
    number: int | None = None
    """Of the run that writes it: a node that was given up may answer in any later one."""
    many: bool = False
    """Whether it is written as a driver writes what it was told."""
    status: str = "ok"
    start: str = ""
    during: list[Step] = field(default_factory=list)
    """Between what a compaction reads and what it writes."""
    after: list[Step] = field(default_factory=list)
    """Between what it writes and what it deletes."""
    killed: bool = False
    """Before it deletes."""


writes = st.builds(
    Step,
    key=st.sampled_from(KEYS),
    status=st.sampled_from(STATES),
    start=st.sampled_from([EARLY, LATE, ""]),
    number=st.sampled_from([None, 1, 2, 3]),
    many=st.booleans(),
)
steps = st.recursive(
    writes,
    lambda inner: st.builds(
        Step,
        during=st.lists(inner, max_size=3),
        after=st.lists(inner, max_size=3),
        killed=st.booleans(),
    ),
    max_leaves=6,
)


class Killed(BaseException):
    """The process is gone."""


def play(root: str, step: Step, written: dict[str, list[tuple[str, float]]]) -> None:
    """Do a step, and in the midst of it those inside it, each as a process of its own."""
    ledger = Ledger(root)
    if step.key:
        acc = float(sum(map(len, written.values())))
        written.setdefault(step.key, []).append((step.status, acc))
        made = row(step.key, step.status, step.start, acc=acc)
        ledger.number = step.number
        ledger.write_rows("study", [made]) if step.many else ledger.write_row(made)
        return
    write, delete = ledger._write, ledger._delete
    between = list(step.after)

    def slow_write(path: str, content: bytes, **how: bool) -> None:
        for inner in step.during:
            play(root, inner, written)
        write(path, content, **how)

    def slow_delete(path: str) -> None:
        while between:
            play(root, between.pop(), written)
        if step.killed:
            raise Killed
        delete(path)
        shown(Ledger(root))

    ledger._write, ledger._delete = slow_write, slow_delete  # type: ignore[method-assign]
    try:
        ledger.compact("study")
    except Killed:
        pass


@settings(max_examples=30)
@example([Step(key) for key in KEYS[:2]] + [Step(during=[Step(KEYS[2]), Step()])])
@given(st.lists(steps, min_size=1, max_size=8))
def test_whatever_the_order_no_finished_row_is_lost_and_all_readers_agree(
    given_steps: list[Step],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written: dict[str, list[tuple[str, float]]] = {}
        for step in given_steps:
            play(folder, step, written)
            found = shown(Ledger(folder))
            assert set(found) == set(written)
            for key, one in found.items():
                assert one in written[key], "as it was written"
                if any(status in rows.FINISHED for status, _ in written[key]):
                    assert one[0] in rows.FINISHED
        before = shown(Ledger(folder))
        for _ in range(2):
            Ledger(folder).compact("study")
            assert shown(Ledger(folder)) == before, "compacting changes what nobody sees"


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(STATES), st.sampled_from([EARLY, LATE])), max_size=3))
def test_the_order_of_files_decides_nothing(given_rows: list[tuple[str, str]]) -> None:
    made = [
        rows.table([row(status=status, start=start, acc=acc / 10)])
        for acc, (status, start) in enumerate(given_rows)
    ]
    found = set()
    for order in itertools.permutations(made):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "sweeps/study/results")
            place.mkdir(parents=True)
            for number, table in enumerate(order):  # of one number: two compactions at once
                pq.write_table(table, place / f"compact-1-{number:08x}.parquet")
            frame = results.frame(made[::-1] if len(found) else order)
            assert len(frame) == bool(made)
            found.add((tuple(shown(Ledger(folder)).items()), tuple(frame["acc"])))
    assert len(found) == 1
