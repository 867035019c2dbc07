"""A sweep of digits with `template`: it runs, and a victim learns the trigger."""

from __future__ import annotations

from pathlib import Path

import sweeper

SWEEP = {
    "name": "test",
    "datasets": ["digits"],
    "models": ["tiny"],
    "attacks": ["template"],
    "poison_rates": [0.1],
    "defenses": ["none"],
    "recipe": {"epochs": 6},
}


def test_a_victim_learns_the_trigger(tmp_path: Path) -> None:
    """One victim, a few seconds; raise the bars to what the paper claims."""
    sweep = sweeper.Sweep.from_values(SWEEP)
    assert sweep.run(store=tmp_path, executor="inline", quiet=True) == {"ok": 2}
    (row,) = sweep.results(store=tmp_path).to_dict("records")
    assert row["acc"] > 0.8 and row["asr"] > 0.8
