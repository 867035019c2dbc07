"""A sweep of digits with `template`: it runs, and takes a patch out of a victim."""

from __future__ import annotations

from pathlib import Path

import sweeper

SWEEP = {
    "name": "test",
    "datasets": ["digits"],
    "models": ["tiny"],
    "attacks": ["badnets"],
    "poison_rates": [0.1],
    "reserve": 0.2,
    "clean_budgets": [0.2],
    "defenses": ["template"],
    "recipe": {"epochs": 6},
}


def test_the_backdoor_fades_and_the_accuracy_stays(tmp_path: Path) -> None:
    """One victim, a few seconds; raise the bars to what the paper claims."""
    sweep = sweeper.Sweep.from_values(SWEEP)
    assert sweep.run(store=tmp_path, executor="inline", quiet=True) == {"ok": 2}
    (row,) = sweep.results(store=tmp_path).to_dict("records")
    assert row["asr_before"] > 0.8 and row["asr"] < 0.5
    assert row["acc"] > row["acc_before"] - 0.1
