"""What the command line says of itself: help, completion, lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.cli import app, listing, remote
from tests.support.commands import SWEEP, call
from tests.support.places import ROOT

COMMANDS = (
    *sorted(c.name or c.callback.__name__ for c in app.app.registered_commands),
    *(f"cluster {c.callback.__name__}" for c in remote.clusters.registered_commands),
)


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


@pytest.mark.parametrize("typed", sorted({command.split()[0] for command in COMMANDS}))
def test_a_command_that_is_typed_is_built_alone(typed: str) -> None:
    few = app.narrowed(typed)
    assert [one.name for one in (*few.registered_commands, *few.registered_groups)] == [typed]


@pytest.mark.parametrize("typed", ["plna", "", "--version"])
def test_a_word_that_is_no_command_builds_all(typed: str) -> None:
    assert app.narrowed(typed) is app.app


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
