"""What a run says before its cells."""

from __future__ import annotations

import pytest

from sweeper.run import summary


@pytest.mark.parametrize(
    ("count", "who"), [(2, "d0, d1"), (12, "d0, d1, d2, d3, d4, d5, d6, d7, d8, 3 more")]
)
def test_defenses_that_do_not_apply_are_named(count: int, who: str) -> None:
    item = {"cells": 12, "defenses": [f"d{number}" for number in range(count)], "reason": "no"}
    assert summary.why_not({"why_not": [item]}) == [f"      12  {who}: no"]
