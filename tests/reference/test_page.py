"""docs/reference.md has a line for every golden file, and none that nothing measures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.reference import golden, page

TESTS = "".join(
    path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py"))
)


def parts() -> tuple[dict[str, list[str]], dict[str, str]]:
    """Golden file -> the cells of its line, and -> what was compared."""
    rows, compared, kind = {}, {}, ""
    for line in golden.PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            kind = line.removeprefix("## ").lower()
        elif line.startswith("| ") and "](" in line:
            name, *cells = line.strip("| ").split(" | ")
            rows[f"{kind}/{name}"] = cells
        elif line.startswith("- `"):
            head, said = line.split("): ", 1)
            compared[head.split("`")[1]] = said
    return rows, compared


@pytest.mark.skipif(golden.writing, reason="the page is being written")
def test_every_golden_file_has_its_line() -> None:
    rows, compared = parts()
    assert sorted(rows) == sorted(compared) == golden.names(), f"run `{golden.COMMAND}`"
    for name, cells in rows.items():
        assert cells[0] == page.links(name), name


@pytest.mark.skipif(golden.writing, reason="the page is being written")
def test_every_line_says_what_a_test_compares() -> None:
    for name, all_said in parts()[1].items():
        for said in all_said.split("; "):
            what = re.sub(r" (0|[\d.e+-]+( relative| in [\d.e+-]+ %)?)$", "", said)
            assert f'"{what}"' in TESTS, f"{name}: {what}: run `{golden.COMMAND}`"


def test_a_difference_is_found_and_told() -> None:
    z = golden.load("attacks/badnets-anp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "rows", [])
        patch.setattr(golden, "writing", True)
        with pytest.raises(AssertionError, match="attacks/badnets-anp: pixels: 1 > 0"):
            z.agree("pixels", z["train"].bitwise_xor(z["train"] == z["train"][0, 0, 0, 0]), "train")
        z.agree("wrapped", [0, 255], [255, 0], within=1, modulo=256)
        with pytest.raises(AssertionError, match="100.00% differ, not 50.00%"):
            z.agree("share", [1, 2], [2, 3], within=1, share=0.5)
        with pytest.raises(AssertionError, match="agrees now"):
            z.deviates("nothing", [1.0], [1.0], by=1e-3, why="It was so.")
        told = [page.size(row) for row in golden.rows]
    assert told[1:] == ["1 in 1e+02 %", "1 in 1e+02 %", "0"]
    (row,) = [golden.Row("attacks/badnets-anp", "a thing no page lists", 0, 0, True)]
    assert not golden.listed(row)
