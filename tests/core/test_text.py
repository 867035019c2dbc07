"""Errors from anywhere: what any file and screen takes, of a bounded length."""

from __future__ import annotations

import json
import sysconfig
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sweeper.core import text

ANY = st.text(st.characters(exclude_categories=()), max_size=200)


@given(ANY, st.integers(1, 300))
@example("\ud800\udfff naïve 🙂", 1)
@example("🙂", 20_000)
@example("a\x00\x1b[31m\r\nb\tc\x7f\x85", 1)
def test_an_error_fits_everywhere(piece: str, times: int) -> None:
    said = text.error(piece * times)
    assert len(said.encode()) <= text.LONGEST
    assert not [c for c in said if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert text.error(said) == said, "who cleans it again changes nothing"
    assert len(text.last_line(piece * times)) <= 303
    text.utf8(piece).encode()


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_an_ordinary_error_stays_as_it_is(plain: str) -> None:
    assert text.error(plain) == plain == text.utf8(plain)


def test_of_a_long_error_both_ends_stay() -> None:
    said = text.error("first" + "x" * 50_000_000 + "last")
    assert said.startswith("firstx") and said.endswith("xlast")
    assert "\n[49,980,209 bytes left out]\n" in said


@pytest.mark.parametrize(
    ("whole", "last"),
    [
        ("a\nb\n\n", "b"),
        ("", ""),
        (" \x1b\n", ""),
        ("x" * 400, "x" * 300 + "..."),
        ("a\x00\n", "a"),
    ],
)
def test_the_last_line(whole: str, last: str) -> None:
    assert text.last_line(whole) == last


@pytest.fixture
def ann(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose home is /people/ann, who starts sweeps in proj."""
    monkeypatch.setenv("HOME", "/people/ann/")
    monkeypatch.setattr(text, "_PACKAGE", "/people/ann/proj/sweeper-src")
    monkeypatch.setattr(text, "STARTED_IN", ["/people/ann/proj"])


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ('File "/people/ann/proj/sweeper-src/sweeper/run/work.py"', 'File "sweeper/run/work.py"'),
        ('File "/people/ann/proj/mine.py", line 3', 'File "mine.py", line 3'),
        ("/people/ann/data/images", "~/data/images"),
        ("no /people/ann, no /people/ann.", "no ~, no ~."),
        ("in /people/ann/proj", "in ~/proj"),
        ("in '/people/ann/proj/'", "in '~/proj/'"),
        ("file:///people/ann/x", "file://~/x"),
        ("PATH=/people/ann/bin:/people/ann/proj/bin:/bin", "PATH=~/bin:bin:/bin"),
        (
            "/people/anna/x /people/ann-2 /people/ann.old/x",
            "/people/anna/x /people/ann-2 /people/ann.old/x",
        ),
        ("/disk/people/ann/x ./people/ann/x", "/disk/people/ann/x ./people/ann/x"),
        (
            "/disk/store/sweeps s3://bucket/a /spare/x a/b",
            "/disk/store/sweeps s3://bucket/a /spare/x a/b",
        ),
        (json.dumps({"path": "/people/ann/proj/images"}), '{"path": "images"}'),
        (json.dumps(["two\n/people/ann/x\ttwo"]), r'["two\n~/x\ttwo"]'),
        (f"{sysconfig.get_paths()['purelib']}/torch/nn/module.py", "torch/nn/module.py"),
        (f"{sysconfig.get_paths()['stdlib']}/json/decoder.py", "json/decoder.py"),
    ],
)
def test_a_path_tells_no_home(told: str, kept: str, ann: None) -> None:
    assert text.without_homes(told) == kept == text.without_homes(kept)
    assert text.error(told) == kept


@pytest.mark.parametrize("home", ["/people/jürgen", "/folk/Ann Lee", "/people/a+b(c)"])
def test_a_home_of_any_name_is_found_as_json_writes_it(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert text.without_homes(f"in {home}/x") == "in ~/x"
    assert text.without_homes(json.dumps({"path": f"{home}/x"})) == '{"path": "~/x"}'


def test_a_home_behind_a_link_is_found_under_both_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "ann").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    assert text.without_homes(f"{tmp_path}/ann/x {tmp_path}/disk/x") == "~/x ~/x"


@pytest.mark.parametrize("home", ["/", ""])
def test_a_home_that_is_none_leaves_paths_as_they_are(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(text, "STARTED_IN", ["/"])
    assert text.without_homes("/disk/x /") == "/disk/x /"
