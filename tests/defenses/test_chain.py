"""Chains: a detector, then retraining without what it flags, or unlearning of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from defenses.base import Case
from defenses.neural_cleanse import NeuralCleanse
from defenses.retrain import Retrain
from defenses.unlearn import Unlearn
from sweeper.core import options
from sweeper.core.errors import SweepError
from sweeper.core.types import Role
from sweeper.plan import spec
from sweeper.plan.sweep import Sweep
from tests.support import sweeps, toys


def parsed(*defenses: Any) -> Sweep:
    values = {"datasets": ["digits"], "models": ["tiny"], "attacks": ["badnets"]}
    return spec.parse({"name": "chains", **values, "defenses": list(defenses)})


def truth() -> dict[str, torch.Tensor]:
    """The stage of a detector that is always right."""
    flagged = toys.poisoned_set().role == int(Role.POISON)
    return {"flagged": flagged, "scores": flagged.float()}


def case(defense: Any, state: dict[str, torch.Tensor], **changes: Any) -> Case:
    return toys.case(defense.sees, state=state, **changes)


def test_a_chain_in_a_sweep_file_is_the_second_defense_with_the_first_as_an_option() -> None:
    plain, whole, named = parsed(
        {"detect": "scan", "then": "retrain"},
        {
            "detect": {"defense": "spectral-signatures", "eps": 0.1},
            "then": {"defense": "unlearn", "lr": 0.01},
            "epochs": 3,
        },
        {"detect": "spectre", "then": "unlearn", "as": "mine"},
    ).defenses
    assert (plain.name, plain.label, plain.options) == (
        "retrain",
        "scan+retrain",
        {"detect": "scan"},
    )
    assert whole.label == "spectral-signatures+unlearn"
    detect = {"defense": "spectral-signatures", "eps": 0.1}
    assert whole.options == {"detect": detect, "lr": 0.01, "epochs": 3}
    assert (named.name, named.label) == ("unlearn", "mine")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"then": "retrain"}, "a chain is"),
        ({"detect": "scan", "then": "retrain", "defense": "anp"}, "a chain is"),
        ({"detect": "scam", "then": "retrain"}, "scan"),
        ({"detect": "anp", "then": "retrain"}, "of kind repair"),
        ({"detect": "neural-cleanse", "then": "retrain"}, "of kind repair"),
        ({"detect": "strip", "then": "unlearn"}, "of kind input filter"),
        ({"detect": "scan", "then": "anp"}, "no option 'detect'"),
        ({"detect": {"defense": "scan", "speed": 1}, "then": "retrain"}, "speed"),
    ],
)
def test_what_cannot_be_chained_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SweepError, match=words):
        parsed(wrong)


def test_a_chain_sees_and_requires_what_its_detector_does() -> None:
    assert Retrain(detect="spectral-signatures").sees == {"model", "train"}
    assert Retrain(detect="frequency").sees == Retrain(detect="frequency").stage().sees | {"train"}  # type: ignore[union-attr]
    assert "clean" in Unlearn(detect="beatrix").sees
    assert Unlearn(detect="neural-cleanse").sees == NeuralCleanse.sees


def test_two_chains_behind_one_detector_share_its_run(tmp_path: Path) -> None:
    path = sweeps.write(
        tmp_path,
        attacks=["badnets"],
        defenses=[
            {"detect": "spectral-signatures", "then": "retrain"},
            {"detect": {"defense": "spectral-signatures", "eps": 0.05}, "then": "unlearn"},
        ],
    )
    plan = sweeps.prepared(path, tmp_path / "store").plan
    victims = plan.counts()["train"]
    assert plan.counts()["stage"] == victims and plan.counts()["defend"] == 2 * victims


def test_a_right_detector_leaves_a_clean_model() -> None:
    ask = toys.oracle()
    assert ask(toys.victim())[1] == 1
    for defense in (Retrain(), Unlearn(lr=0.01, epochs=3)):
        outcome = defense.defend(case(defense, truth()))
        acc, asr = ask(outcome.model)  # type: ignore[arg-type]
        assert asr < 0.1 and acc > 0.9, type(defense)
        assert torch.equal(outcome.flagged, truth()["flagged"])  # type: ignore[arg-type]


def test_nothing_flagged_unlearns_nothing_and_retrains_the_backdoor() -> None:
    none = {"flagged": torch.zeros_like(truth()["flagged"])}
    kept = Unlearn().defend(case(Unlearn(), none))
    assert not toys.differing(kept.model, toys.victim())  # type: ignore[arg-type]
    again = Retrain().defend(case(Retrain(), none))
    assert toys.oracle()(again.model)[1] > 0.9  # type: ignore[arg-type]


def test_everything_flagged_is_an_error() -> None:
    every = {"flagged": torch.ones_like(truth()["flagged"])}
    for defense in (Retrain(), Unlearn()):
        with pytest.raises(SweepError, match="all .* training samples are flagged"):
            defense.defend(case(defense, every))


def test_unlearning_behind_neural_cleanse_is_its_own() -> None:
    short = {"defense": "neural-cleanse", "epochs": 2, "steps": 2, "tune_epochs": 1}
    chain = Unlearn(detect=short)
    assert chain.stage() is None
    own = NeuralCleanse(epochs=2, steps=2, tune_epochs=1).defend(toys.case(chain.sees))
    found = chain.defend(toys.case(chain.sees))
    assert str(found.notes) == str(own.notes)
    assert not toys.differing(found.model, own.model)  # type: ignore[arg-type]


def test_the_detector_is_part_of_the_stage_as_it_is_after_defaults() -> None:
    one, other = Retrain(detect="scan").stage(), Unlearn(detect={"defense": "scan"}).stage()
    assert one == other
    assert Retrain(detect="scan") == Retrain(detect={"defense": "scan"}), "two ways to say one"
    own = options.canonical(Unlearn(detect="neural-cleanse"))["detect"]
    assert own == {"defense": "neural-cleanse", **options.canonical(NeuralCleanse())}
    assert one != Retrain(detect="spectre").stage()


def test_a_detector_without_its_name_is_refused() -> None:
    with pytest.raises(SweepError):
        Retrain(detect={"defence": "scan"})
