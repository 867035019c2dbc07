"""What cells say while they are at work is kept with what they leave, bounded, and still heard."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from sweeper.run import cells, printed
from sweeper.run.printed import Printed
from sweeper.run.walk import Walk
from tests.support import sweeps

ENDINGS = {"": "ok", "raises": "failed", "dies": "failed"}
OWN, CHILD = (), ("attack", "defense")
HEARD = ["an ordinary word", "a warning", "in ~/study, red"]


def test_beginning_and_end_of_much_are_kept() -> None:
    heard = Printed()
    for number in range(200_000):
        heard.add(f"line {number}\n")
    text = heard.text()
    assert text.startswith("line 0\n") and text.endswith("line 199999")
    assert len(text) < printed.HEAD + printed.TAIL + 100
    said = sum(len(f"line {number}\n") for number in range(200_000))
    left_out = said - printed.HEAD - printed.TAIL
    assert f"[... {left_out:,} characters left out ...]" in text


def test_what_is_short_is_whole_and_silence_is_nothing() -> None:
    heard = Printed()
    assert heard.text() == ""
    heard.add("x" * (printed.HEAD + printed.TAIL))
    assert heard.text() == "x" * (printed.HEAD + printed.TAIL)


def test_of_many_steps_a_few_are_told_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000))
    monkeypatch.setattr(printed.time, "monotonic", lambda: next(clock) / 1000)
    passed: list[dict[str, Any]] = []
    heard = Printed(lambda **values: passed.append(values))
    heard.add("no end of line")
    for step in range(5000):
        heard.progress(step=step)
    first, *lines = heard.text().splitlines()
    assert first == "no end of line" and lines[0].endswith("s] step 0")
    assert 5 <= len(lines) <= 7 and lines[-1].endswith("step 4999")
    assert len(passed) == 5000, "who shows progress hears all of it"


def test_of_a_progress_bar_the_last_state_stays() -> None:
    heard = Printed()
    heard.add("".join(f"\r{share} %" for share in range(101)) + "\ndone \udcff\r\n")
    assert heard.text() == "100 %\ndone ?"


def test_a_live_display_is_neither_heard_nor_disturbed(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(stderr=True, force_terminal=True, width=40)
    heard = Printed()
    with Live("frame one", console=console, auto_refresh=False) as live, heard.hearing():
        sys.stdout.write("a word\n")
        live.update("frame two", refresh=True)
    assert heard.text() == "a word"
    shown = capsys.readouterr().err
    assert shown.index("frame one") < shown.index("a word") < shown.index("frame two")


@pytest.mark.parametrize("where", [OWN, CHILD])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_a_cell_says_is_kept_and_heard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ending: str, where: tuple[str, ...]
) -> None:
    if (ending, where) == ("dies", OWN):
        pytest.skip("it would take this process with it")
    entry = {"defense": "tests.support.faulty:Speaks", "as": "speaks", "ending": ending}
    one = {"attacks": ["badnets"], "poison_rates": [0.1], "seeds": 1, "defenses": [entry]}
    job = sweeps.prepared(sweeps.write(tmp_path, **one), tmp_path / "store")
    (cell,) = (cell for cell in job.plan.cells.values() if cell.kind == "defend")
    above = Walk(job.plan.cells, []).ancestors(cell.key)
    context = replace(job.context, outside=where)
    result = cells.run_here(cell, above, context)
    assert result["status"] == ENDINGS[ending], result["error"]
    log = job.store.log("small", "defend", cell.key)
    assert all(said in log for said in HEARD), log
    places = [log.index(said) for said in HEARD]
    assert places == sorted(places) and "\x1b" not in log
    assert "s] epoch 1/2 loss 0.5123" in log
    assert ("from compiled code" in log) == (where == CHILD)
    assert log.endswith({"": "", "raises": "broken on purpose", "dies": "SIGSEGV"}[ending])
    assert ("Traceback" in log) == (ending == "raises")
    heard = "".join(capfd.readouterr())
    assert all(said in heard for said in ("an ordinary word", "a warning", "from compiled code"))
    (victim,) = (parent for parent in above if parent.kind == "train")
    assert "epoch 1/1 loss" in job.store.log("small", "train", victim.key)
