"""The first commands: the sweep file that is written, and what is said of a machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from sweeper.plan import spec
from sweeper.plan.sweep import Sweep
from sweeper.run import checkup
from sweeper.run.checkup import OK, PROBLEM, WARNING, Finding
from tests.support.commands import call
from tests.support.places import ROOT

Capture = pytest.CaptureFixture[str]
TEMPLATE = ROOT / "sweeper/cli/templates/sweep.yaml"


def test_the_sweep_file_that_is_written_has_every_key_with_a_comment() -> None:
    text = TEMPLATE.read_text("utf-8")
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert sorted(keys) == sorted([*Sweep.model_fields, "scales"])
    for block in re.split(r"\n\n", text)[1:]:
        for key in re.findall(r"^\w+:.*", block, re.MULTILINE):
            assert block.startswith("#") or "# " in key, f"no comment: {key}"
    assert max(map(len, text.splitlines())) <= 100


def test_the_sweep_file_that_is_written_says_the_defaults() -> None:
    text = TEMPLATE.read_text("utf-8")
    for key, default in re.findall(r"^(\w+):.*\(default: (\[.*\]|[\d.]+)\)", text, re.MULTILINE):
        field = Sweep.model_fields[key].get_default(call_default_factory=True)
        assert json.loads(default) == field, key


def test_init(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "init").code == 0 and call(capsys, "init", "new/my-own.yml").code == 0
    sweep = spec.load("sweep.yaml")
    assert (sweep.name, spec.load("new/my-own.yml", ["scale=large"]).name) == ("sweep", "my-own")
    before = Path("sweep.yaml").read_text()
    line = call(capsys, "init").sentence
    assert line == "sweep.yaml: cannot be written (File exists): name another place"
    assert Path("sweep.yaml").read_text() == before
    assert call(capsys, "init", "mine").sentence.endswith("ends in .yaml, such as mine.yaml")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder where someone works; nothing is timed."""
    monkeypatch.setattr(checkup, "_speed", lambda: iter([Finding("speed", OK, "1 s")]))
    for name in ("SWEEPER_STORE", "SWEEPER_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def states(capsys: Capture, *words: object) -> dict[str, set[str]]:
    """Subject -> the states of what was found."""
    said = call(capsys, "doctor", "--json", *words)
    found: dict[str, set[str]] = {}
    for one in json.loads(said.out):
        assert one["state"] == OK or one["remedy"] or one["subject"] in ("GPU", "data", "Ray"), one
        found.setdefault(one["subject"], set()).add(one["state"])
    assert said.code == any(PROBLEM in each for each in found.values())
    return found


def test_doctor_leaves_nothing_and_fits_the_screen(capsys: Capture, quick: Path) -> None:
    said = call(capsys, "doctor")
    assert said.code == 0 and not said.err, said
    assert max(len(line) for line in said.out.splitlines() if "/" not in line) <= 80
    for subject in ("versions", "extras", "CPU", "memory", "GPU", "data", "store", "disk", "speed"):
        assert re.search(rf"^(ok|warning) +{subject}( |$)", said.out, re.MULTILINE), subject
    assert not list(quick.iterdir())


def test_doctor_says_what_must_be_mended(
    capsys: Capture, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (quick / "file").touch()
    assert states(capsys, "--store", "file")["store"] == {PROBLEM}
    assert states(capsys, "--store", "file/below")["store"] == {PROBLEM}
    assert PROBLEM in states(capsys, "--data", quick / "gone")["data"]
    monkeypatch.setattr(checkup, "MEMORY", 10**18)
    monkeypatch.setattr(checkup, "ROOM", 10**18)
    found = states(capsys)
    assert found["memory"] == found["disk"] == {WARNING}


def test_doctor_finds_data_where_they_lie_and_a_store_that_is_there(
    capsys: Capture, quick: Path
) -> None:
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (quick / "data/tiny-imagenet" / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(quick / "data/tiny-imagenet" / place / "0.png")
    (quick / "store").mkdir()
    said = call(capsys, "doctor", "--data", "data", "--store", "store")
    text = " ".join(said.out.split())
    assert said.code == 0 and "store can be written and read" in text
    assert "at hand: digits, moving, phrases, scenes, solids, tiny-imagenet" in text


def test_doctor_tries_each_gpu(
    capsys: Capture, quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert states(capsys)["GPU"] == {PROBLEM}
