"""`sweeper new`: what it writes passes the test it writes; what it refuses."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from sweeper.cli import app, new
from sweeper.core import catalog
from sweeper.core.errors import SweepError


@pytest.mark.parametrize("kind", ["attack", "defense"])
def test_a_third_partys_method_passes_its_own_test(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = new.write(kind, f"my-{kind}", tmp_path / "mine")
    assert found.entry == f"my_{kind}:My{kind.title()}"
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    cls = catalog.method(kind, found.entry)
    assert cls.title == f"My {kind.title()}" and cls.__doc__
    test = importlib.import_module(f"test_my_{kind}")
    (check,) = [value for name, value in vars(test).items() if name.startswith("test_")]
    check(tmp_path / "store")
    assert "emplate" not in found.method.read_text() + found.test.read_text()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "needs a name of small letters") for name in ("Foo", "1a", "my patch", "../x")),
        *((name, "needs a name of small letters") for name in ("", "a--b", "_a", "lambda")),
        ("badnets", "there is one of this name"),
        ("fine-tuning", "there is one of this name"),
        ("fine_tuning", "there is one of this name"),
        ("base", "there is one of this name"),
        ("json", "Python has a module json"),
    ],
)
def test_names_that_cannot_be(name: str, why: str, tmp_path: Path) -> None:
    kind = "defense" if "fine" in name else "attack"
    with pytest.raises(SweepError, match=why):
        new.write(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "test_ours.py").write_text("ours")
    with pytest.raises(SweepError, match=r"test_ours\.py is there"):
        new.write("attack", "ours", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["ours"]


def test_outside_a_checkout_a_folder_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SweepError, match=r"no attacks/base\.py in this folder: .* --to DIR"):
        new.write("attack", "ours")
    with pytest.raises(SweepError, match="no kind of method 'atack', did you mean 'attack'"):
        new.write("atack", "ours")


def test_the_command_says_what_to_type_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweeper", "new", "attack", "ours", "--to", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        app.main()
    said = capsys.readouterr().out
    assert not left.value.code and "attacks: [ours:Ours]" in said
    assert f"PYTHONPATH={tmp_path} python -m pytest {tmp_path / 'test_ours.py'}" in said
