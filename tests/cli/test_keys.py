"""Keys in the URI of a store: every command refuses them before it writes or tells anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from typer.models import ArgumentInfo

from sweeper.cli import app, remote

KEYS = "s3://AKIAHIDDEN:wJalr/x@bucket/sweeps"


def spelled(callback: Any, place: str) -> str:
    """How a place is given to a command: as an option, or as the argument STORE."""
    said = get_args(get_type_hints(callback, include_extras=True)[place])
    return place.upper() if any(isinstance(one, ArgumentInfo) for one in said) else f"--{place}"


PLACES = [
    (*group, command.name or command.callback.__name__, spelled(command.callback, place))
    for group, commands in (
        ((), app.app.registered_commands),
        (("cluster",), remote.clusters.registered_commands),
    )
    for command in commands
    for place in ("store", "data")
    if place in command.callback.__annotations__
]
"""Every command with a store or data, and the option, or the argument's name."""


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence of a command that is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sweeper", *words])
        with pytest.raises(SystemExit) as left:
            app.main()
    said = capsys.readouterr()
    assert left.value.code == 2 and not said.out
    assert "AKIAHIDDEN" not in said.err and "wJalr" not in said.err
    (line,) = said.err.splitlines()
    return line


@pytest.mark.parametrize("words", PLACES, ids=" ".join)
def test_every_command_refuses_keys(
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = told(capsys, *(word for word in words if word != "STORE"), KEYS)
    assert said.startswith(f"{words[-1]}: this s3:// URI holds keys")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["STORE", "DATA"])
@pytest.mark.parametrize("words", ["run", "submit --address x", "cluster kuberay --image x"])
def test_so_it_does_those_of_the_environment(
    words: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"SWEEPER_{name}", KEYS)
    said = told(capsys, *words.split(), "quickstart")
    assert said.startswith(f"--{name.lower()}: this s3:// URI holds keys")


def test_the_commands_with_a_store_are_found() -> None:
    wanted = {
        ("site", "STORE"),
        ("run", "--store"),
        ("submit", "--data"),
        ("cluster", "kuberay", "--store"),
    }
    assert wanted <= set(PLACES)
