"""What a run says before its cells and after them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from sweeper.run import driver, estimate, summary
from tests.support import sweeps


@pytest.mark.parametrize(
    ("count", "who"), [(2, "d0, d1"), (12, "d0, d1, d2, d3, d4, d5, d6, d7, d8, 3 more")]
)
def test_defenses_that_do_not_apply_are_named(count: int, who: str) -> None:
    item = {"cells": 12, "defenses": [f"d{number}" for number in range(count)], "reason": "no"}
    assert summary.why_not({"why_not": [item]}) == [f"      12  {who}: no"]


def test_files_that_are_damaged_or_not_ours_are_named_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweeps.write(tmp_path, attacks=["badnets"], poison_rates=[0.1], seeds=1)
    sweeps.inline(path, tmp_path / "store")
    results = tmp_path / "store/sweeps/small/results"
    (results / "mine.parquet").write_text("a table of the user")
    (results / "compact-9.parquet").write_bytes(b"damaged")
    job = sweeps.prepared(path, tmp_path / "store")
    counts = driver.execute(job, driver.inline, sweeps.Silent())
    bill = estimate.Bill(job, sweeps.Silent())
    summary.ended(job, dict(counts), bill, Console(width=60), None)
    said = capsys.readouterr().out
    assert "sweeps/small/results/compact-9.parquet" in said and "damaged/" in said
    assert "these files among the rows are not the sweeper's and were left alone" in said
    assert said.count("sweeps/small/results/mine.parquet") == 1
