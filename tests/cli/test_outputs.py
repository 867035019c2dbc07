"""What commands write for the user, where it goes, what they need, and what they are."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeper.analyses import show
from sweeper.core import outputs
from sweeper.core.errors import StoreError, SweepError
from sweeper.store.fresh import Fresh
from sweeper.store.sweeps import Sweeps
from tests.support.commands import SWEEP, Said, call

DIGITS = "{dataset: digits, train_size: 300, test_size: 100}"
QUICKLY = ("--budget", "20", "--epochs", "1", "--repairs", "none")
WRITERS = {
    "table": ("table", "SPEC"),
    "rows": ("rows", "SPEC"),
    "report": ("report", "SPEC"),
    "plot": ("plot", "bars", "SPEC"),
    "show": ("show", "badnets"),
    "analyze": ("analyze", "fct", "SPEC"),
    "export": ("export", "SPEC", "--victim", ""),
    "export all": ("export", "SPEC", "--all"),
    "site": ("site", "STORE"),
    "inspect": ("inspect", "--victim", "", "--dataset", DIGITS, *QUICKLY),
}
"""Command -> what is typed before --out, and --store unless it is typed itself."""
FILES = {
    "table": "t.md",
    "rows": "r.csv",
    "report": "r.html",
    "plot": "p.svg",
    "show": "s.png",
    "inspect": "i.html",
}
"""What is written is a file of this name, else a folder."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished sweep: its file, its store."""
    folder = tmp_path_factory.mktemp("outputs")
    path, store = folder / "tiny.yaml", folder / "store"
    path.write_text(SWEEP.replace("epochs: 1}]", "epochs: 1}]\ntable: {untaken: true}"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        words = ["sweeper", "run", str(path), "--store", str(store), "--executor", "inline"]
        patch.setattr(sys, "argv", words)
        from sweeper.cli import app

        app.main()
    assert not left.value.code
    return path, store


def write(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], command: str, out: Path
) -> Said:
    named = {"SPEC": done[0], "STORE": done[1]}
    words = [named.get(word, word) for word in WRITERS[command]]
    place = () if "STORE" in WRITERS[command] else ("--store", done[1])
    return call(capsys, *words, *place, "--out", out)


@pytest.mark.parametrize("command", WRITERS)
def test_a_command_makes_the_folder_it_writes_into(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], tmp_path: Path, command: str
) -> None:
    out = tmp_path / "a new folder" / "in another" / FILES.get(command, "folder")
    said = write(capsys, done, command, out)
    assert said.code == 0, said
    assert out.is_file() if command in FILES else list(out.iterdir())


@pytest.mark.parametrize("command", WRITERS)
def test_what_cannot_be_written_is_one_sentence(
    capsys: pytest.CaptureFixture[str], done: tuple[Path, Path], tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").touch()
    line = write(capsys, done, command, tmp_path / "file" / FILES.get(command, "x")).sentence
    assert str(tmp_path / "file") in line and "cannot be written" in line and "name another" in line
    if command in FILES:
        taken = tmp_path / FILES[command]
        taken.mkdir()
        line = write(capsys, done, command, taken).sentence
        assert line == f"{taken}: cannot be written (Is a directory): name another place"


def listed(folder: Path) -> list[str]:
    """What the test below has written into a folder before."""
    return (folder / "list").read_text().split() if (folder / "list").is_file() else []


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "what was made", "a link to it"])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, before: str) -> None:
    place = out = tmp_path / "out"
    if before == "a link to it":
        place = tmp_path / "elsewhere"
        out.symlink_to(place)
    if before != "nothing":
        place.mkdir()
    if before in ("what was made", "a link to it"):
        (place / "a").mkdir()
        (place / "a" / "old").touch()
        (place / "list").write_text("list a/old")
    kept = sorted(place.rglob("*"))
    with pytest.raises(KeyError), outputs.replaced(out, listed) as folder:
        (folder / "half").touch()
        raise KeyError
    assert sorted(place.rglob("*")) == kept and not list(tmp_path.glob(".*"))
    with outputs.replaced(out, listed) as folder:
        (folder / "new").touch()
    assert [path.name for path in out.iterdir()] == ["new"] and not list(tmp_path.glob(".*"))
    assert out.is_symlink() == (before == "a link to it")


@pytest.mark.parametrize("name", ["x", "a/x", ".git/config", "link"])
def test_a_file_that_was_not_made_is_never_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(tmp_path) if name == "link" else (out / name).touch()
    (out / "list").write_text("list old")
    with (
        pytest.raises(SweepError, match=rf"holds {name}, which was not made .* move it away"),
        outputs.replaced(out, listed),
    ):
        raise AssertionError("nothing is written")
    assert (out / name).exists()
    (tmp_path / "file").touch()
    with pytest.raises(SweepError, match="file: cannot be written .Not a directory"):
        outputs.replaced(tmp_path / "file", listed).__enter__()


def test_a_picture_of_another_format_is_refused_before_its_trigger_is_learned(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("show", "wanet", "--store", tmp_path / "store", "--out", tmp_path / "new" / "s.xyz")
    line = call(capsys, *words).sentence
    assert "s.xyz: no format 'xyz'" in line and not list(tmp_path.iterdir())


def test_a_new_method_goes_where_files_can_go(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    line = call(capsys, "new", "attack", "my-spot", "--to", tmp_path / "file" / "in").sentence
    assert "cannot be written" in line


def test_the_versions_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    python = ".".join(map(str, sys.version_info[:3]))
    ours, theirs = (importlib.metadata.version(name) for name in ("backdoor-sweeper", "torch"))
    versions = call(capsys, "--version").out
    assert versions.startswith(f"sweeper {ours}, Python {python}, torch {theirs}, ray ")


@pytest.mark.parametrize(
    ("words", "pictures", "why"),
    [
        ((), 1, None),
        (("--no-pictures",), 0, "written with --no-pictures"),
        (("--set", "resources.gpus=1"), 0, "torch sees none"),
    ],
)
def test_a_report_shows_the_triggers_or_says_why_not(
    capsys: pytest.CaptureFixture[str],
    done: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    pictures: int,
    why: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path, store = done
    Sweeps(str(store)).drop_gallery("tiny")
    out = tmp_path / "page.html"
    assert call(capsys, "report", path, "--store", store, "--out", out, *words).code == 0
    found = json.loads(re.findall(r'id="data">(.*?)</script>', out.read_text())[0])
    assert len(found["pictures"]) == pictures
    assert bool(found["left_out"]) == bool(why) and (why or "") in "".join(found["left_out"])


def test_triggers_are_drawn_for_the_first_report_of_a_matrix_alone(
    capsys: pytest.CaptureFixture[str],
    done: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, out, drawn = tmp_path / "store", tmp_path / "page.html", []
    shutil.copytree(done[1], store)
    kept, draw = Fresh(str(store)), show.gallery
    kept.drop_gallery("tiny")
    active = kept.activity("tiny")
    monkeypatch.setattr(show, "gallery", lambda *given: drawn.append(1) or draw(*given))

    def page(*words: str, times: int, pictures: int = 1) -> dict[str, Any]:
        assert call(capsys, "report", done[0], "--store", store, "--out", out, *words).code == 0
        found = json.loads(re.findall(r'id="data">(.*?)</script>', out.read_text())[0])
        assert (len(found["pictures"]), len(drawn)) == (pictures, times)
        drawn.clear()
        return dict(found)

    first = page(times=1)
    assert page(times=0) == first
    assert page("--where", "defense=none", times=0)["pictures"] == first["pictures"]
    assert kept.activity("tiny") == active, "nobody ran anything"
    assert page("--pictures", times=1) == first, "they are asked for"
    other = page("--set", "attacks=[badnets, blend]", pictures=2, times=1)
    assert other["pictures"][0] == first["pictures"][0]
    assert page(times=0) == first, "another matrix is not the one that was run"
    kept.replace("run", {"defend": []})
    assert kept.gallery("tiny", kept.plan("tiny")["cells"]) is None, "code may have changed"

    def refused(*_: Any) -> None:
        raise StoreError("Read-only file system")

    monkeypatch.setattr(Sweeps, "save_gallery", refused)
    assert page(times=1) == page(times=1) == first, "who may only read draws each time"


NEEDS_A_GPU = {
    "run": ("run", "SPEC", "--executor", "inline", "--set", "seeds=2"),
    "cell": ("cell", "SPEC", "KEY"),
    "analyze": ("analyze", "fct", "SPEC"),
    "export": ("export", "SPEC", "--victim", "", "--out", "out"),
    "report": ("report", "SPEC", "--pictures"),
}


@pytest.mark.parametrize("command", NEEDS_A_GPU)
def test_a_gpu_that_is_not_there_is_missed_before_anything_is_done(
    capsys: pytest.CaptureFixture[str],
    done: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    path, store = done
    key = sorted(os.listdir(store / "artifacts" / "defend"))[0]
    words = [{"SPEC": path, "KEY": key}.get(word, word) for word in NEEDS_A_GPU[command]]
    kept = {file: file.stat().st_mtime_ns for file in store.rglob("*")}
    line = call(capsys, *words, "--store", store, "--set", "resources.gpus=1").sentence
    assert "torch sees none" in line and "--set 'resources={cpus: 1}'" in line
    assert {file: file.stat().st_mtime_ns for file in store.rglob("*")} == kept
    assert not list(tmp_path.iterdir())
    words = ("plan", path, "--store", store, "--set", "resources.gpus=1")
    assert call(capsys, *words).code == 0, "a plan is made anywhere"
