"""Tables of measured rows within pages: what they show, and that no page holds an older one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sweeper.core.errors import SweepError
from sweeper.tables import extracts, measured
from tests.support.places import ROOT

PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_page_holds_an_older_table(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert extracts.rewrite(text) == text, f"python -m sweeper.tables.extracts {page}"


def test_a_page_without_markers_stays_and_one_with_them_is_filled() -> None:
    assert extracts.rewrite("# none\n") == "# none\n"
    empty = "<!-- measured quickstart: none, anp -->\nold\n<!-- end measured -->\n"
    filled = extracts.rewrite("before\n" + empty + "after\n")
    assert filled.startswith("before\n<!-- measured quickstart: none, anp -->\n\n| ACC / ASR")
    assert filled.endswith("\n\n<!-- end measured -->\nafter\n") and "old" not in filled
    assert extracts.rewrite(filled) == filled


def test_cells_are_means_over_seeds_of_the_newest_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(key: str, attack: str, seed: int, acc: float, asr: float, day: int = 1) -> dict:
        return {
            "key": key,
            "attack": attack,
            "defense": "none",
            "seed": seed,
            "acc": acc,
            "asr": asr,
            "device": "laptop",
            "started_at": f"2026-01-0{day}",
        }

    rows = [
        row("a", "badnets", 0, 0.5, 0.5),
        row("a", "badnets", 0, 0.9, 0.2, day=2),
        row("b", "badnets", 1, 0.8, 0.1),
        row("c", "blend", 1, 0.7, 1.0),
    ]
    monkeypatch.setattr(measured, "frame", lambda sweep: pd.DataFrame(rows))
    lines = extracts.table("quickstart", ["none", "fip"]).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:4]]
    assert cells[0] == ["ACC / ASR", "badnets", "blend"], "an attack without a row has no column"
    assert cells[2] == ["none", "85.0 ± 7.1 / 15.0 ± 7.1", "70.0 / 100.0 (n = 1)"]
    assert cells[3] == ["fip", ".", "."]
    assert lines[-1] == "Sweep `quickstart`, seeds 0, 1, laptop, 2026-01-02."


def test_what_a_sweep_has_not_is_refused() -> None:
    with pytest.raises(SweepError, match=r"quickstart has no defense abl, only none, fine-tuning"):
        extracts.table("quickstart", ["none", "abl"])
    with pytest.raises(SweepError, match="nothing was measured of grand"):
        extracts.table("grand", ["none"])
