"""What the terminal shows: one line a cell without a terminal, the matrix with one."""

from __future__ import annotations

import io
import re
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sweeper.core.types import Facts
from sweeper.plan import matrix
from sweeper.plan.sweep import Sweep
from sweeper.run import display, notebook
from sweeper.run.costs import Book
from sweeper.run.display import Display
from sweeper.run.estimate import spoken
from sweeper.run.job import Job
from sweeper.run.material import Context
from sweeper.run.progress import Progress, Relayed
from sweeper.store.artifacts import Store

BASE: dict[str, Any] = {
    "name": "study",
    "datasets": ["digits"],
    "models": ["tiny"],
    "attacks": ["badnets", {"attack": "badnets", "rule": "all2all", "as": "badnets-a2a"}, "none"],
    "poison_rates": [0.05, 0.1],
    "defenses": ["none", "fine-tuning", "fine-pruning", "anp"],
    "seeds": 2,
}
FAILURE = "Traceback\n  File x\nValueError: broken on purpose"


def job(done: bool = False, **changes: Any) -> Job:
    sweep = Sweep.model_validate({**BASE, **changes})
    facts = Facts("digits", "d", 10, (1, 8, 8), (90,) * 10, n_train=1000, n_reserve=100)
    plan = matrix.expand(sweep, {"digits": facts})
    finished = set(plan.cells) if done else set()
    return Job(plan, Store("nowhere"), Context("nowhere", sweep.name), finished)


class Show:
    """A display on a recorded console, driven by hand."""

    def __init__(
        self,
        job: Job,
        width: int = 80,
        terminal: bool = True,
        slots: int = 2,
        book: Book | None = None,
    ) -> None:
        self.job = job
        self.console = Console(
            file=io.StringIO(), record=True, force_terminal=terminal, width=width, height=40
        )
        self.display = Display(job, self.console, slots, book)
        self.left = list(job.todo)

    def start(self) -> str:
        key = self.left.pop(0)
        self.progress = Progress()
        self.display.started(self.job.plan.cells[key], self.progress)
        return key

    def end(self, key: str, status: str = "ok", asr: float | None = 0.5, **more: Any) -> None:
        cell = self.job.plan.cells[key]
        found = {"status": status, "error": "", "seconds": 1.25, **more}
        if cell.axes["attack"] != "none" and status == "ok":
            found |= {"acc": 0.98765, "asr": asr}
        self.display.finished(cell, found)

    def all(self, count: int | None = None, **result: Any) -> Show:
        for _ in range(len(self.left) if count is None else count):
            self.end(self.start(), **result)
        return self

    def said(self) -> list[str]:
        """What was printed so far."""
        return [line.rstrip() for line in self.console.export_text().splitlines()]

    def seen(self) -> list[str]:
        """What the live display would show now."""
        self.console.export_text()
        self.console.print(self.display._render())
        return [line.rstrip() for line in self.console.export_text().splitlines()]


def test_without_a_terminal_every_finished_cell_is_one_line() -> None:
    show = Show(job(), terminal=False)
    with show.display.shown():
        show.all()
    lines = show.said()
    assert len(lines) == len(show.job.plan.cells) == 50
    assert lines[0] == "[ 1/50] ok       train   badnets 5% seed 0  acc 98.8  asr 50.0  1.2 s"
    assert lines[1] == "[ 2/50] ok       defend  badnets 5% seed 0 none  acc 98.8  asr 50.0  1.2 s"
    assert lines[-1].startswith("[50/50] ok       defend  none")
    assert not any("\x1b" in line for line in lines)


def test_a_failure_names_its_key_and_its_last_line() -> None:
    show = Show(job(), width=60, terminal=False)
    show.all(1)
    key = show.start()
    show.end(key, "failed", error=FAILURE)
    (_, line) = show.said()
    assert line == (
        f"[ 2/50] failed   defend  badnets 5% seed 0 none  1.2 s  {key}: ValueError: broken on "
        "purpose"
    ), "one line, however narrow"


def test_blocked_and_reused_cells_are_said_to_be() -> None:
    show = Show(job(), terminal=False)
    show.end(show.start(), reused=True)
    show.end(show.start(), "blocked", seconds=None, error="train cell x failed: no memory")
    one, two = show.said()
    assert one.endswith("1.2 s  (from the store)")
    assert "blocked" in two and two.endswith(": train cell x failed: no memory")


def test_a_line_says_what_tells_the_cells_apart() -> None:
    changes = {
        "models": ["tiny", "resnet18"],
        "targets": [0, 1],
        "clean_budgets": [0.05, 30],
        "poison_rates": [0.1],
        "seeds": 1,
    }
    show = Show(job(**changes), terminal=False)
    show.all()
    lines = show.said()
    assert any(" resnet18 badnets target 1 anp clean 5%  " in line for line in lines)
    assert any(" tiny badnets target 0 anp clean 30  " in line for line in lines)
    ours = [re.sub(r"^\[.*?\]", "", line) for line in lines]
    assert len(set(ours)) == len(ours), "no two lines are the same"
    assert not any("digits" in line or "seed" in line for line in lines)


@pytest.mark.parametrize("width", [80, 160])
def test_the_matrix_fills_up(width: int) -> None:
    show = Show(job(), width)
    show.all(10)
    show.end(show.start(), "failed", error=FAILURE)
    show.start()
    show.progress(epoch=3, epochs=20, loss=0.1)
    show.start()
    show.progress(step=7)
    lines = show.seen()
    assert all(len(line) <= width for line in lines)
    assert lines[0].split() == ["ASR", "%", "none", "fine-tuning", "fine-pruning", "anp"]
    assert set(lines[1]) == {"─"}
    assert re.split(r"\s{2,}", lines[2]) == [
        "badnets",
        "50.0 2/4",
        "50.0 2/4",
        "50.0 2/4",
        "50.0 2/4",
    ]
    assert re.split(r"\s{2,}", lines[4]) == ["none", "0/2", "0/2", "0/2", "0/2"]
    assert lines[5].startswith("11/50 cells, 1 failed, 0 s, about 24 s left")
    assert lines[6] == "  defend badnets 10% seed 0 none · epoch 3/20 · 0 s"
    assert lines[7] == "  defend badnets 10% seed 0 fine-tuning · step 7 · 0 s"
    assert len(lines) == 8


class Clock:
    """Time as a test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_cells_of_another_process_are_named_as_they_come_and_their_time_begins_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    show, clock = Show(job()), Clock(monkeypatch)
    cells = [show.job.plan.cells[key] for key in show.left[:3]]
    progress = Relayed(cells[0])
    show.display.started(cells[0], progress)
    clock.now += 20
    assert show.seen()[6:] == ["  train badnets 5% seed 0 · starting a process"]
    progress.begin()
    clock.now += 30
    progress.hear(cells[0], "epoch 7/15", 0, [])
    assert show.seen()[6:] == ["  train badnets 5% seed 0 · epoch 7/15 · 30 s"]
    progress.hear(cells[2], "", 0, [])
    assert show.seen()[6:] == ["  defend badnets 5% seed 0 fine-tuning · 0 s"]
    show.end(cells[0].key)
    assert not show.seen()[6:]


def test_on_a_terminal_only_what_went_wrong_is_a_line() -> None:
    show = Show(job())
    with show.display.shown():
        show.all(5)
        show.end(show.start(), "timeout", error="gave up after 3 s")
    said = "\n".join(show.said())
    assert said.count("timeout  train") == 1 and "gave up after 3 s" in said
    assert not re.search(r"ok +train", said)


def test_what_is_finished_shows_means_failures_and_what_was_there() -> None:
    show = Show(job())
    cells = show.job.plan.cells
    for place, key in enumerate(list(show.left)):
        bad = cells[key].axes.get("defense") == "anp" and cells[key].axes["seed"] == 1
        show.left.remove(key)
        show.end(key, "failed" if bad else "ok", asr=0.25 if place % 2 else 0.75)
    lines = show.seen()
    assert re.split(r"\s{2,}", lines[2])[-1].endswith(" 2 failed")
    assert re.split(r"\s{2,}", lines[4]) == ["none", "ok", "ok", "ok", "1 failed"], (
        "a clean model has no ASR"
    )
    assert lines[5] == "50/50 cells, 5 failed, 0 s"
    had = Show(job(done=True)).seen()
    assert re.split(r"\s{2,}", had[2]) == ["badnets", "stored", "stored", "stored", "stored"]


def test_a_narrow_terminal_shows_the_matrix_in_short() -> None:
    show = Show(job(), width=60)
    show.all(8).end(show.start(), "failed", error=FAILURE)
    lines = show.seen()
    assert all(len(line) <= 60 for line in lines)
    assert re.split(r"\s{2,}", lines[2]) == ["badnets", "2/4", "2/4", "2/4!", "1/4"]


def test_many_defenses_fold_their_names_or_give_way_to_attacks_alone() -> None:
    many = [{"defense": "anp", "steps": n, "as": f"anp-steps-{n}"} for n in range(1, 21)]
    wide = Show(job(defenses=many), width=160).all(30).seen()
    assert all(len(line) <= 160 for line in wide)
    assert len(wide) < 12, "names take a few lines, squares one"
    assert sum("badnets " in line for line in wide) == 1
    narrow = Show(job(defenses=many), width=80).all(30).seen()
    assert all(len(line) <= 80 for line in narrow)
    assert narrow[0].split() == ["ASR", "%", "all", "defenses"]
    assert re.split(r"\s{2,}", narrow[2]) == ["badnets", "50.0 28/80"]


def test_every_kind_of_failure_is_counted_apart() -> None:
    show = Show(job(attacks=["badnets"], poison_rates=[0.1], seeds=3, defenses=["none"]))
    for status in ("ok", "failed", "ok", "blocked", "ok", "timeout"):
        show.end(show.start(), status)
    assert show.seen()[2].split("  ")[-1].strip() == "1 failed 1 blocked 1 timeout"
    assert show.seen()[3].startswith("6/6 cells, 1 failed, 1 blocked, 1 timeout, ")


def test_labels_are_not_markup() -> None:
    odd = {"attack": "badnets", "as": "[red]x[/nope]"}
    show = Show(job(attacks=[odd]), width=160)
    assert any("[red]x[/nope]" in line for line in show.all(3).seen())
    plain = Show(job(attacks=[odd]), terminal=False)
    assert "[red]x[/nope]" in plain.all(1).said()[0]


def test_the_time_left_counts_what_each_kind_costs() -> None:
    show = Show(job(), slots=1)
    assert show.display._eta() == "measuring"
    show.end(show.start(), seconds=60.0)
    show.end(show.start(), seconds=2.0)
    # 9 more victims at 60 s, 39 more defenses at 2 s
    assert show.display._eta() == "about 10 min left"
    show.end(show.start(), seconds=900.0, reused=True)
    assert show.display._eta() == "about 10 min left", "what was there cost nothing"


@pytest.mark.parametrize(
    ("elapsed", "left"),
    [
        (None, "about 40 s left"),  # its process starts: all of it is before us
        (0, "about 40 s left"),
        (15, "about 25 s left"),
        (38, "about 2 s left"),  # its 2 s, which outlast half of that and of nothing
        (60, "longer than such cells took"),
    ],
)
def test_the_time_left_counts_what_runs_now(
    monkeypatch: pytest.MonkeyPatch, elapsed: float | None, left: str
) -> None:
    clock = Clock(monkeypatch)
    show = Show(job(attacks=["badnets"], poison_rates=[0.1], defenses=["none"]), slots=2)
    show.end(show.start(), seconds=40.0)
    show.end(show.start(), seconds=0.0)
    cell = show.job.plan.cells[show.left[0]]
    progress = Relayed(cell)
    show.display.started(cell, progress)
    clock.now += 7  # until its process is there
    if elapsed is not None:
        progress.begin()
        clock.now += elapsed
    assert show.display._eta() == left, "one cell of 40 s fills one of two slots"


def test_the_time_left_tells_defenses_apart_and_knows_earlier_runs() -> None:
    first = job(attacks=["badnets"], poison_rates=[0.1], defenses=["none", "anp"], seeds=3)
    show = Show(first, slots=1)
    costs = {"none": 1.0, "anp": 30.0, "": 60.0}
    for _ in range(3):  # the victim of seed 0 and its defenses
        key = show.start()
        show.end(key, seconds=costs[str(first.plan.cells[key].axes.get("defense", ""))])
    assert show.display._eta() == f"about {spoken(2 * 60 + 2 * 31)} left"
    again = Show(first, slots=1, book=show.display.costs)
    assert again.display._eta() == f"about {spoken(3 * 60 + 3 * 31)} left"


def test_nothing_to_run() -> None:
    show = Show(job(done=True))
    with show.display.shown():
        pass
    assert show.said() == []


def test_names_too_long_for_the_terminal_break_at_their_hyphens() -> None:
    long = ["activation-clustering", "spectral-signatures", "strip-cleanser", "fine-pruning"]
    show = Show(job(attacks=["badnets"], poison_rates=[0.1], defenses=long), width=61)
    lines = show.seen()
    assert all(len(line) <= 61 for line in lines)
    assert lines[0].split() == ["activation-", "spectral-", "strip-"]
    assert lines[1].split() == ["ASR", "%", "clustering", "signatures", "cleanser", "fine-pruning"]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("spectral-signatures+retrain", ["spectral-", "signatures+", "retrain"]),
        ("tests.faulty:Raises", ["tests.", "faulty:", "Raises"]),
        ("anp", ["anp"]),
        ("a-b-c-d", ["a-b-c-d"]),
    ],
)
def test_where_a_name_breaks(name: str, lines: list[str]) -> None:
    assert display._folded(name, 11).split("\n") == lines


def test_a_cause_is_told_once_on_a_terminal_and_counted() -> None:
    show = Show(job())
    with show.display.shown():
        for _ in range(3):
            show.end(show.start(), "failed", error=FAILURE)
        show.end(show.start(), "failed", error="ValueError: another")
    said = "\n".join(show.said())
    assert said.count("broken on purpose") == 3, "train, defend, and the end"
    assert said.count("another") == 1
    assert "1 more defend cells failed in the same way: ValueError: broken on purpose" in said
    plain = Show(job(), terminal=False)
    with plain.display.shown():
        for _ in range(3):
            plain.end(plain.start(), "failed", error=FAILURE)
    assert len([line for line in plain.said() if line.startswith("[")]) == 3, "a line each in a log"


class Outputs(ModuleType):
    """IPython's display, as a notebook's cell has it: what it shows now, in order."""

    def __init__(self) -> None:
        super().__init__("IPython.display")
        self.shown: list[str] = []

    def display(self, item: Any, raw: bool = False, display_id: bool = False) -> Any:
        place = len(self.shown)
        self.shown.append(item["text/plain"] if raw else str(item.text))
        return SimpleNamespace(update=lambda item, raw: self._put(place, item["text/plain"]))

    def _put(self, place: int, text: str) -> None:
        self.shown[place] = text


@pytest.mark.parametrize("quiet", [False, True])
def test_in_a_notebook_the_matrix_is_refreshed_in_place_and_failures_stay(
    monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    cell = Outputs()
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", cell)
    monkeypatch.setattr(notebook, "SECONDS", 0.01)
    show = Show(job())
    console = Console(force_jupyter=True, width=100, quiet=quiet)
    show.display = Display(show.job, console, 2)
    with show.display.shown():
        show.all(5)
        show.end(show.start(), "timeout", error="gave up after 3 s")
        deadline = time.monotonic() + 20
        while not quiet and "\n6/50 cells, 1 timeout" not in cell.shown[0]:
            assert time.monotonic() < deadline, cell.shown
            time.sleep(0.01)
        show.all(1)
    if quiet:
        assert not cell.shown
        return
    matrix, failure = cell.shown
    assert "7/50 cells, 1 timeout" in matrix, "what it showed last stays"
    assert "timeout" in failure and "gave up after 3 s" in failure
    assert not show.display.live.is_started


def test_an_interrupted_sweep_leaves_the_terminal_and_its_causes() -> None:
    show = Show(job())
    with pytest.raises(KeyboardInterrupt), show.display.shown():
        for _ in range(3):
            show.end(show.start(), "failed", error=FAILURE)
        raise KeyboardInterrupt
    assert not show.display.live.is_started
    assert "1 more defend cells failed in the same way" in "\n".join(show.said())
