"""A sweep's victims as a zoo: out and in with the same numbers; what is damaged or hostile."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import sweeper
from sweeper.analyses import zoo as zoos
from sweeper.analyses import zoofiles
from tests.analyses.test_exchange import MEASURED, VALUES
from tests.support import sweeps
from tests.support.commands import Said, call

Capture = pytest.CaptureFixture[str]
TWO = {**VALUES, "attacks": ["badnets", "none"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, pd.DataFrame]:
    """A sweep of two victims: its file, its store, its rows."""
    folder = tmp_path_factory.mktemp("zoo")
    path = sweeps.write(folder, **{k: v for k, v in TWO.items() if k != "name"})
    sweep = sweeper.Sweep.from_yaml(path)
    sweep.run(store=folder / "store", executor="inline", quiet=True)
    return path, folder / "store", sweep.results(store=folder / "store")


def written(capsys: Capture, trained: tuple[Path, Path, pd.DataFrame], out: Path) -> Said:
    return call(
        capsys, "export", trained[0], "--store", trained[1], "--all", "--archive", "--out", out
    )


@pytest.fixture(scope="module")
def made(
    trained: tuple[Path, Path, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A zoo of these victims, and its archive beside it."""
    folder = tmp_path_factory.mktemp("made") / "zoo"
    sweep = sweeper.Sweep.from_yaml(trained[0])
    whole = zoos.export(sweep.declared, sweep.context(trained[1]), folder, lambda line: None)
    zoofiles.pack(whole, folder, folder.with_name("zoo.tar"))
    return folder


@pytest.fixture
def zoo(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(made.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "zoo"


@pytest.mark.parametrize("form", ["zoo", "zoo.tar"])
def test_an_imported_zoo_has_the_numbers_of_its_sweep(
    capsys: Capture,
    trained: tuple[Path, Path, pd.DataFrame],
    zoo: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    monkeypatch.chdir(zoo.parent)
    said = call(capsys, "import", form, "--as", "their")
    assert said.code == 0 and "2 victims in imported" in said.err, said
    values = {**VALUES, **yaml.safe_load(said.out)}
    sweep = sweeper.Sweep.from_values(values)
    sweep.run(store=zoo.parent / "again", executor="inline", quiet=True)
    after = sweep.results(store=zoo.parent / "again")
    before, after = trained[2], after[after["status"] != "not_applicable"]  # of the other's target
    assert len(after) == len(before) == 2
    for taken, names in ((slice(0, 1), list(MEASURED)), (slice(1, 2), ["acc", "asr", "asr_all"])):
        both = [frame.sort_values("acc", ignore_index=True)[names] for frame in (after, before)]
        one, other = (frame.iloc[taken] for frame in both)
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert before["asr"].max() > 0.5, "or this compares nothing"
    assert {label[:5] for label in after["attack"]} == {"their"}
    assert "2 victims in imported" in call(capsys, "import", form, "--as", "their").err, "again"


def test_the_same_victims_give_the_same_archive(
    capsys: Capture, trained: tuple[Path, Path, pd.DataFrame], zoo: Path
) -> None:
    before = (zoo.parent / "zoo.tar").read_bytes()
    (victim, other) = sorted(p for p in zoo.iterdir() if p.is_dir())
    stays = (other / "model.safetensors").stat().st_mtime_ns
    (victim / "model.safetensors").write_bytes(b"cut")
    assert written(capsys, trained, zoo).code == 0
    assert (zoo.parent / "zoo.tar").read_bytes() == before
    assert (other / "model.safetensors").stat().st_mtime_ns == stays, "what is whole stays"
    kept = json.loads((zoo / "zoo.json").read_text())["victims"]
    assert [victim["axes"]["attack"] for victim in kept] == ["badnets", "none"]
    row = trained[2].set_index("attack").loc["badnets"]
    assert kept[0]["metrics"] == {"acc": row["acc"], "asr": row["asr"]}


def test_an_export_is_of_one_victim_or_of_all(
    capsys: Capture, trained: tuple[Path, Path, pd.DataFrame], zoo: Path, tmp_path: Path
) -> None:
    words = ("export", trained[0], "--store", trained[1], "--out")
    assert "write one of the two" in call(capsys, *words, tmp_path / "x").sentence
    line = call(capsys, *words, tmp_path / "x", "--victim", "a", "--archive").sentence
    assert line.startswith("--archive: is of all victims")
    assert "no zoo's: name another" in call(capsys, *words, tmp_path, "--all").sentence
    other = tmp_path / "other.yaml"
    other.write_text(trained[0].read_text().replace("name: small", "name: other"))
    line = call(capsys, "export", other, "--store", tmp_path, "--all", "--out", zoo).sentence
    assert "holds the zoo of sweep small" in line
    said = call(
        capsys, "export", other, "--store", tmp_path / "s", "--all", "--out", tmp_path / "y"
    )
    assert said.code == 2 and "2 of 2 victims are left out, not trained yet" in said.err
    assert not (tmp_path / "y").exists()


def test_some_victims_alone_are_imported(capsys: Capture, zoo: Path, tmp_path: Path) -> None:
    out = tmp_path / "in"
    said = call(capsys, "import", zoo, "--only", "badnets", "--out", out)
    assert said.code == 0 and [p.name[:12] for p in out.iterdir()] == ["badnets-0.2-"]
    line = call(capsys, "import", zoo, "--only", "blend", "--out", out).sentence
    assert line.startswith("--only: no victim 'blend': name an attack, or one of badnets-0.2-")
    assert "cannot name a folder" in call(capsys, "import", zoo, "--as", "../x").sentence
    (out / next(out.iterdir()).name / "model.safetensors").write_bytes(b"another")
    assert "is not this victim: move it" in call(capsys, "import", zoo, "--out", out).sentence


# What is not as it was written


def changed(zoo: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((zoo / "zoo.json").read_text())
    change(values)
    (zoo / "zoo.json").write_text(json.dumps(values))


def cut(zoo: Path) -> None:
    path = next(zoo.glob("badnets*/model.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def flipped(zoo: Path) -> None:
    path = next(zoo.glob("badnets*/trigger.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")


def linked(zoo: Path) -> None:
    path = next(zoo.glob("badnets*/model.safetensors"))
    path.rename(zoo / "elsewhere")
    path.symlink_to(zoo / "elsewhere")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "model.safetensors: get it anew"),
    "flipped": (flipped, "trigger.safetensors: get it anew"),
    "gone": (lambda zoo: next(zoo.glob("none*/victim.json")).unlink(), "victim.json: get it anew"),
    "a link": (linked, "model.safetensors: get it anew"),
    "no index": (lambda zoo: (zoo / "zoo.json").unlink(), "so it is no zoo"),
    "no JSON": (lambda zoo: (zoo / "zoo.json").write_text("{"), "zoo.json is damaged"),
    "deep": (lambda zoo: (zoo / "zoo.json").write_text("[" * 100_000), "zoo.json is damaged"),
    "newer": (lambda zoo: changed(zoo, lambda v: v.update(zoo=2)), "newer sweeper"),
    "out": (lambda zoo: changed(zoo, lambda v: v["victims"][0].update(folder="../x")), "'../x'"),
    "absolute": (lambda zoo: changed(zoo, lambda v: v["victims"][0].update(folder="/x")), "'/x'"),
    "other files": (
        lambda zoo: changed(zoo, lambda v: v["victims"][0]["files"].update({"../../a.py": {}})),
        "zoo.json is damaged",
    ),
    "twice": (lambda zoo: changed(zoo, lambda v: v["victims"].append(v["victims"][0])), "twice"),
    "no size": (
        lambda zoo: changed(
            zoo, lambda v: v["victims"][0]["files"]["model.safetensors"].update(size=-1)
        ),
        "'-1' is no size",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_zoo_is_refused_before_anything_is_written(
    capsys: Capture, zoo: Path, tmp_path: Path, damage: str
) -> None:
    harm, why = DAMAGE[damage]
    harm(zoo)
    line = call(capsys, "import", zoo, "--out", tmp_path / "in").sentence
    assert why in line and str(zoo) in line, line
    assert not (tmp_path / "in").exists()


def member(name: str, content: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


HOSTILE = {
    "absolute": (member("/etc/x"), "which its zoo.json does not list"),
    "up": (member("../x"), "which its zoo.json does not list"),
    "beside": (member("setup.py", b"boom"), "which its zoo.json does not list"),
    "a symbolic link": (member("a", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "no plain file"),
    "a hard link": (member("a", type=tarfile.LNKTYPE, linkname="zoo.json"), "no plain file"),
    "a device": (member("a", type=tarfile.CHRTYPE), "no plain file"),
    "a folder": (member("a", type=tarfile.DIRTYPE), "no plain file"),
    "sparse": (member("a", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}), "plain"),
    "twice": (member("zoo.json", b"{}"), "stands twice"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_before_anything_is_written(
    capsys: Capture, zoo: Path, tmp_path: Path, kind: str
) -> None:
    (info, content), why = HOSTILE[kind]
    archive = tmp_path / "zoo.tar"
    with tarfile.open(archive, "a:", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(content))
    line = call(capsys, "import", archive, "--out", tmp_path / "in").sentence
    assert why in line and not (tmp_path / "in").exists(), line


def test_a_file_that_is_no_archive_is_named(capsys: Capture, zoo: Path, tmp_path: Path) -> None:
    archive = tmp_path / "zoo.tar"
    whole = archive.read_bytes()
    for content in (b"", b"no", whole[:1000], whole[: len(whole) // 2]):
        archive.write_bytes(content)
        line = call(capsys, "import", archive, "--out", tmp_path / "in").sentence
        assert str(archive) in line and not (tmp_path / "in").exists()
    assert "No such file" in call(capsys, "import", tmp_path / "nothing.tar").sentence
