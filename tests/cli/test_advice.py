"""Commands that screens advise to type: each is run as it stands there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sweeper
from sweeper import api
from sweeper.core.errors import SweepError
from sweeper.run import calibrate, driver
from sweeper.run import fresh as renewed
from sweeper.store import claim
from sweeper.store.artifacts import Store
from sweeper.store.ledger import Ledger
from tests.house.test_structure import modules, tree
from tests.support import sweeps
from tests.support.commands import SWEEP, Said, call, defended

Capture = pytest.CaptureFixture[str]
HINT = re.compile(r"`(sweeper [^`]*)`")
FILE, STORE = "my sweep.yaml", "the other place/a store"
"""A file and a folder as people name them; both are relative to where they work."""
TYPED = (FILE, "--store", STORE, "--set", "attacks=[badnets, blend]", "--set", "recipe={epochs: 1}")
BROKEN = defended("tests.support.faulty:Raises")
UNLEARNED = SWEEP.replace("recipe: {epochs: 1}", "recipe: {epochs: 1, lr: 0.00001}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep, where someone works; Ray is not started."""
    folder = tmp_path / "their folder"
    folder.mkdir()
    (folder / FILE).write_text(SWEEP)
    monkeypatch.chdir(folder)
    for name in ("SWEEPER_STORE", "SWEEPER_DATA"):  # another store may know the costs
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(calibrate, "SECONDS", 0.05)
    monkeypatch.setattr(api, "_with_ray", lambda *_: (driver.inline, lambda shape: 1))
    return folder


def advised(capsys: Capture, said: Said, commands: dict[str, int]) -> list[list[str]]:
    """Run what a screen advises; the commands with the exit codes they are to have."""
    lines = [shlex.split(hint) for hint in HINT.findall(said.out + said.err)]
    assert [words[1] for words in lines] == list(commands), said
    for words in lines:
        assert FILE in words, f"the sweep as it was typed: {words}"
        ran = call(capsys, *words[1:])
        assert ran.code == commands[words[1]], f"{shlex.join(words)}: {ran}"
    return lines


def test_a_plan_of_unknown_cost(capsys: Capture, here: Path) -> None:
    (words,) = advised(capsys, call(capsys, "plan", *TYPED), {"plan": 0})
    assert words == ["sweeper", "plan", FILE, "--calibrate", *TYPED[1:]]


def test_what_was_not_typed_is_not_told(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPER_STORE", STORE)
    monkeypatch.setenv("SWEEPER_DATA", "data")
    (words,) = advised(capsys, call(capsys, "plan", FILE), {"plan": 0})
    assert words == ["sweeper", "plan", FILE, "--calibrate"]


def test_a_data_folder_is_told_again(capsys: Capture, here: Path) -> None:
    said = call(capsys, "plan", *TYPED, "--data", "the data")
    (words,) = advised(capsys, said, {"plan": 0})
    assert words[words.index("--data") + 1] == "the data"


def test_a_run_from_its_estimate_to_its_end(capsys: Capture, here: Path) -> None:
    said = call(capsys, "run", *TYPED, "--executor", "inline", "--fresh", "all")
    assert said.code == 0
    lines = advised(capsys, said, {"plan": 0, "report": 0, "table": 0})
    assert all("--fresh" not in words for words in lines), "nothing is done twice"
    assert (here / "tiny.html").is_file()


def test_a_sweep_file_that_is_begun(capsys: Capture, here: Path) -> None:
    (here / FILE).unlink()
    advised(capsys, call(capsys, "init", FILE), {"plan": 0, "run": 0})


def test_a_run_whose_cells_fail(capsys: Capture, here: Path) -> None:
    (here / FILE).write_text(BROKEN)
    said = call(capsys, "run", *TYPED[:3], "--set", "seeds=[1]", "--executor", "inline")
    lines = advised(capsys, said, {"plan": 0, "run": 1, "cell": 1})
    assert "--executor" in lines[1] and "--executor" not in lines[2]


def test_a_run_whose_victims_fail(capsys: Capture, here: Path) -> None:
    (here / FILE).write_text(SWEEP.replace("[badnets]", "[tests.support.faulty:FailsToPoison]"))
    said = call(capsys, "run", FILE, "--executor", "inline")
    advised(capsys, said, {"plan": 0, "run": 1, "cell": 1})


def test_a_run_whose_victims_carry_no_backdoor(capsys: Capture, here: Path) -> None:
    (here / FILE).write_text(UNLEARNED)
    said = call(capsys, "run", FILE, "--executor", "inline")
    assert "no backdoor" in said.err
    advised(capsys, said, {"plan": 0, "report": 0, "table": 0})


ABSENT = {
    "table": ("--where", "attack=badnets"),
    "rows": ("--set", "seeds=1"),
    "status": (),
    "report": ("--set", "seeds=1"),
    "plot": ("--out", "p.svg"),
    "analyze": ("--set", "attacks=[badnets]"),
    "export": ("--victim", "", "--out", "a victim"),
    "export all": ("--all", "--out", "a zoo"),
}


@pytest.mark.parametrize("command", ABSENT)
def test_results_that_are_not_there(capsys: Capture, here: Path, command: str) -> None:
    first = {"plot": ["rates"], "analyze": ["fct"]}.get(command, [])
    words = (command.split()[0], *first, FILE, "--store", STORE, *ABSENT[command])
    said = call(capsys, *words)
    assert said.code == 2
    (run,) = advised(capsys, said, {"run": 0})
    assert ("--set" in run) == ("--set" in ABSENT[command])
    after = call(capsys, *words)
    assert "no results" not in after.err and "trained" not in after.err, "they are there now"


def test_rows_of_other_code(capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(capsys, "run", *TYPED, "--executor", "inline")
    item = {"name": "fine-tuning", "kind": "defense", "cells": 2}
    with monkeypatch.context() as patch:
        patch.setattr(renewed, "other_code", lambda *_: [item])
        said = call(capsys, "plan", *TYPED)
    (words,) = advised(capsys, said, {"run": 0})
    assert tuple(words[-2:]) == TYPED[-2:] and "--fresh" in words


def test_a_sweep_that_another_runs(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(capsys, "run", *TYPED, "--executor", "inline")
    beats = iter(range(100))
    with monkeypatch.context() as patch:
        about = {"run": "x", "who": "them", "pid": 1, "place": "there", "since": "now"}
        patch.setattr(Ledger, "claim", lambda *_: {**about, "beat": next(beats)})
        patch.setattr(claim, "BEAT", 0.01)
        said = call(capsys, "run", *TYPED, "--executor", "inline", "--set", "seeds=2")
    assert "is being run by" in said.err
    (words,) = advised(capsys, said, {"watch": 0})
    assert words == ["sweeper", "watch", FILE, "--store", STORE]


# Python


def test_python_is_told_calls(capsys: Capture, tmp_path: Path) -> None:
    sweep = sweeper.Sweep.from_values({**sweeps.SMALL, "attacks": ["badnets"], "seeds": 1})
    store = tmp_path / "a store"

    def told(action: Callable[[], Any]) -> None:
        with pytest.raises(SweepError) as refused:
            action()
        text = str(refused.value)
        assert "`sweeper" not in text
        (given,) = re.findall(r"`(sweep\.[^`]*)`", text)
        calls.append(given)

    calls: list[str] = []
    told(lambda: sweep.results(store=store))
    Store(str(store)).put("train", "0" * 20, {"model": {"w": torch.zeros(1)}}, {"params": {}})
    told(lambda: sweeper.load_victim("0", store=store))
    fresh, path = " fresh=['00000000']", str(store)
    assert calls == [f"sweep.run(store={path!r})", f"sweep.run(store={path!r},{fresh})"]
    sweep.run(store=store, executor="inline")
    said = capsys.readouterr().err
    assert "`sweeper" not in said
    (call_,) = re.findall(r"`(sweep\.[^`]*)`", said)
    assert call_ == f"sweep.plan(store={path!r}, calibrate=True)"


def test_no_sentence_has_a_command_that_is_not_whole() -> None:
    """Others come from `sweeper.core.advice`, which knows what was typed."""
    whole = re.compile(r"`sweeper (list [a-z]+|[a-z-]+ --help)`")
    # Said of what they are, not to be typed.
    named = re.compile(r"`sweeper (import-model|export|run|status|table SWEEP --compare)`")
    found = []
    for module in modules():
        docs = {
            id(node.value)
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = named.sub("", whole.sub("", node.value))
                if "`sweeper " in text and id(node) not in docs:
                    found.append(f"{module}:{node.lineno} {text}")
    assert not found
