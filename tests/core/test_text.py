"""Errors from anywhere: what any file and screen takes, of a bounded length."""

from __future__ import annotations

import unicodedata

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
