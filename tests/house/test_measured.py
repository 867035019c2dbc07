"""docs/measured.md holds what was measured of methods, and the docstrings of methods hold none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper.core import names
from tests.support.places import ROOT

PARTS = ("sd",)
"""Headings that are a module of defenses/parts/ instead of a method."""
FILES = [path for kind in ("attacks", "defenses") for path in sorted((ROOT / kind).rglob("*.py"))]
Documented = ast.Module | ast.ClassDef | ast.FunctionDef


def headings() -> list[str]:
    page = (ROOT / "docs/measured.md").read_text(encoding="utf-8")
    return re.findall(r"^## (.+)$", page, re.MULTILINE)


def measurements(source: str) -> Iterator[str]:
    """First lines of the paragraphs of docstrings that begin with "Measured"."""
    for node in ast.walk(ast.parse(source)):
        text = ast.get_docstring(node) if isinstance(node, Documented) else None
        for paragraph in re.split(r"\n\s*\n", text or ""):
            if re.match(r"\W*measured\b", paragraph, re.IGNORECASE):
                yield paragraph.splitlines()[0]


def test_a_heading_is_a_method() -> None:
    attacks, defenses = names.names("attack"), [*names.names("defense"), *PARTS]
    found = headings()
    assert set(found) <= {*attacks, *defenses}, "no attack, defense or part has this name"
    assert found == sorted(set(found), key=lambda name: (name in defenses, name)), (
        "attacks first, then defenses, each in the order of the alphabet, none twice"
    )
    for part in PARTS:
        assert (ROOT / f"defenses/parts/{part}.py").is_file()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_docstring_of_a_method_holds_measurements(path: Path) -> None:
    found = list(measurements(path.read_text(encoding="utf-8")))
    assert not found, f"this belongs in docs/measured.md: {found}"


def test_a_planted_measurement_is_found() -> None:
    source = (ROOT / "attacks/blend.py").read_text(encoding="utf-8")
    assert not list(measurements(source))
    planted = source.replace('\n"""\n', '\n\nMeasured on digits (one seed):\nACC 97.3.\n"""\n', 1)
    assert list(measurements(planted)) == ["Measured on digits (one seed):"]
    inside = 'class Some:\n    """A method.\n\n    Measured: ACC 97.3.\n    """\n'
    assert list(measurements(inside)) == ["Measured: ACC 97.3."]
    assert not list(measurements('"""A method.\n\nWhat is measured decides."""'))
