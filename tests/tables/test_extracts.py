"""Tables of measured rows within pages: what they show, and that no page holds an older one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeper.core.errors import SweepError
from sweeper.core.rows import schema
from sweeper.tables import extracts, measured
from tests.support.places import ROOT

PAGES = sorted([*(ROOT / "docs" / "methods").glob("*.md"), ROOT / "docs" / "tasks.md"])


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


def row(key: str, attack: str, seed: int, acc: float, asr: float, **rest: Any) -> dict[str, Any]:
    """A measured row of the undefended victim, or of a defense of `rest`."""
    before = {"acc_before": 0.9, "asr_before": 0.9}
    cell = {
        "key": key,
        "attack": attack,
        "attack_name": attack,
        "seed": seed,
        "acc": acc,
        "asr": asr,
    }
    kept = {"defense": "none", "device": "laptop", "started_at": "2026-01-01", "status": "ok"}
    return {"dataset": "digits", "n_classes": 10, **kept, **before, **cell, **rest}


def table(rows: list[dict[str, Any]], *defenses: str) -> tuple[list[list[str]], str]:
    """The head and the lines of the table of these rows, and what stands below it."""
    with pytest.MonkeyPatch.context() as patch:
        frame = pd.DataFrame(rows).reindex(columns=schema().names)
        patch.setattr(measured, "frame", lambda sweep: frame)
        head, _, *lines, _, said = extracts.table("quickstart", defenses).splitlines()
    return [[c.strip() for c in line.split("|")[1:-1]] for line in (head, *lines)], said


def test_cells_are_means_over_seeds_of_the_newest_rows() -> None:
    rows = [
        row("a", "badnets", 0, 0.5, 0.5),
        row("a", "badnets", 0, 0.9, 0.2, started_at="2026-01-02"),
        row("b", "badnets", 1, 0.8, 0.1),
        row("c", "blend", 1, 0.7, 1.0),
    ]
    cells, said = table(rows, "none", "fip")
    assert cells[0] == ["ACC / ASR", "badnets", "blend"], "an attack without a row has no column"
    assert cells[1] == ["none", "85.0 ± 7.1 / 15.0 ± 7.1", "70.0 / 100.0 (n = 1)"]
    assert cells[2] == ["fip", ".", "."]
    assert said == "Sweep `quickstart`, seeds 0, 1, laptop, 2026-01-02."


def test_a_victim_that_did_not_take_is_left_out_where_another_did() -> None:
    rows = [
        row("a", "badnets", 0, 0.8, 0.1),
        row("b", "badnets", 1, 0.6, 0.0, asr_before=0.07),
        row("c", "blend", 0, 0.7, 0.3, asr_before=0.3),
        row("d", "blend", 1, 0.7, 0.2, asr_before=0.2),
    ]
    cells, said = table(rows, "none")
    assert cells[0] == ["ACC / ASR", "badnets", "blend°"]
    assert cells[1] == ["none", "80.0 / 10.0 (n = 1)", "70.0 ± 0.0 / 25.0 ± 7.1"]
    reason = "the backdoor did not take (undefended ASR below 50 %)."
    assert said.endswith(f"01. Left out is badnets of seed 1: {reason} °: {reason}")


def test_the_head_says_what_acc_measures() -> None:
    cells, _ = table([row("a", "badnets", 0, 0.5, 0.5, score="BLEU")], "none")
    assert cells[0][0] == "BLEU / ASR"


def test_what_a_sweep_has_not_is_refused() -> None:
    with pytest.raises(SweepError, match=r"quickstart has no defense abl, only none, fine-tuning"):
        extracts.table("quickstart", ["none", "abl"])
    with pytest.raises(SweepError, match="nothing was measured of grand"):
        extracts.table("grand", ["none"])
