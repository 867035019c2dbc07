"""Fair rule H: what a hold-out chooses is learned again on all clean images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses.awm import AWM
from defenses.base import Case, Defense
from defenses.bnp import BNP
from defenses.clp_holdout import CLPHoldout
from defenses.f_fip import FFIP
from defenses.fine_pruning import FinePruning
from defenses.fine_tuning import FineTuning
from defenses.fip import FIP
from defenses.i_bau import IBAU
from defenses.mcr import MCR
from defenses.mcr_pair import MCRPair
from defenses.neural_cleanse import NeuralCleanse, Triggers
from defenses.npd import NPD
from defenses.parts.accept import Rule, last_within
from defenses.random_pruning import RandomPruning
from defenses.sau import SAU
from defenses.sibp import SIBP
from defenses.soda import SODA
from defenses.soda_oracle import SODAOracle
from defenses.super_ft import SuperFT
from sweeper.core import catalog
from sweeper.core.errors import DivergedError
from sweeper.core.types import ImageSet, Outcome
from sweeper.models.base import Net
from tests.support import toys
from tests.support.repairs import case, repaired

Notes = dict[str, Any]
SMALL = (3, 8, 8)
"""Who learns from what shows on the smallest images too."""


@dataclass(frozen=True)
class Choosing:
    """A defense that chooses, and itself with the choice made."""

    defense: Defense
    fixed: Callable[[Notes], dict[str, Any]]
    """Options that fix what the notes say was chosen."""
    accuracies: tuple[float, ...]
    """Of the victim and of what is tried, so that the choice is not the last nor the first."""


def rounds(**options: int) -> Callable[[Notes], dict[str, Any]]:
    """The number of rounds kept, given as these options, each at most its value."""

    def fixed(notes: Notes) -> dict[str, Any]:
        left, given = notes["kept"], dict[str, Any](tau=None)
        for name, most in options.items():
            given[name] = min(left, most)
            left -= given[name]
        assert not left
        return given

    return fixed


def sibp(notes: Notes) -> dict[str, Any]:
    plan = notes["choice"]["rounds"]
    u, epochs = ([entry[name] for entry in plan] for name in ("u", "epochs"))
    return {"u": tuple(u), "epochs": tuple(epochs), "patience": 0}


def soda(notes: Notes) -> dict[str, Any]:
    assert notes["accepted"]
    tried = notes["attempts"][-1]
    return {"bar": 0.0, "drop": 1.0, **{name: tried[name] for name in ("lr", "q", "epochs")}}


def fip(notes: Notes) -> dict[str, Any]:
    scale = notes["scale"]
    return {"balance": scale, "lr": 0.005 * scale, "guard": None}


DIPS = (0.9, 0.9, 0.9, 0.5, 0.5)
"""Accepted: the second of four rounds."""
GENTLER = (0.9, 0.5, 0.9)
"""Accepted: the second of the settings."""
NC = NeuralCleanse(epochs=2, steps=2, batch=16, success=0.01, theta=-9.0, tune_epochs=4, patience=1)
SHORT: Notes = {"steps": 4, "batch": 16, "every": 2}
CURVE: Notes = {"steps": 3, "batch": 16}
SIBP_U = {"conv": 0.2, "patience": 1, "batch": 32}
CHOOSING = {
    "awm": Choosing(AWM(outer_steps=4, inner_epochs=1), rounds(outer_steps=4), DIPS),
    "i-bau": Choosing(IBAU(outer_steps=4, iterations=1), rounds(outer_steps=4), DIPS),
    "sau": Choosing(SAU(epochs=4, steps=1, lr=1e-3), rounds(epochs=4), DIPS),
    "npd": Choosing(NPD(epochs=3, warmup_epochs=1), rounds(warmup_epochs=1, epochs=3), DIPS),
    "neural-cleanse": Choosing(NC, rounds(tune_epochs=4), DIPS),
    "super-ft": Choosing(
        SuperFT(peak=None, epochs=3, batch=32), lambda notes: {"peak": notes["peak"]}, GENTLER
    ),
    "fip": Choosing(FIP(**SHORT), fip, (0.9, 0.9)),
    "fip, gentler": Choosing(FIP(**SHORT), fip, (0.9, 0.5)),
    "f-fip": Choosing(FFIP(lr=0.005, **SHORT), fip, (0.9, 0.5)),
    "mcr": Choosing(
        MCR(tune_steps=3, **CURVE), lambda notes: {"t": notes["t"]}, (0.9, 0.9, 0.9, 0.5, 0.5)
    ),
    "mcr-pair": Choosing(
        MCRPair(epochs=1, **CURVE), lambda notes: {"t": notes["t"]}, (0.1,) * 5 + (0.9,) * 4
    ),
    # before; pruned, epochs 1 to 3 of which the second is the best, after them
    "sibp": Choosing(SIBP(**SIBP_U, epochs=9), sibp, (0.9, 0.1, 0.5, 0.6, 0.5, 0.9)),
    "sibp, the second round undone": Choosing(
        SIBP(**SIBP_U, epochs=1, rounds=2), sibp, (0.9, 0.1, 0.5, 0.9, 0.1, 0.5, 0.5)
    ),
    "sibp, two rounds": Choosing(
        SIBP(**SIBP_U, epochs=2, rounds=2), sibp, (0.9, 0.1, 0.5, 0.4, 0.9, 0.1, 0.5, 0.5, 0.9)
    ),
    "sibp, u": Choosing(
        SIBP(**SIBP_U, epochs=1, u=None), sibp, (0.9, 0.1, 0.5, 0.5, 0.1, 0.5, 0.9)
    ),
    "random-pruning": Choosing(
        RandomPruning(like="sibp", epochs=9, patience=1),
        lambda notes: {"epochs": notes["epochs"], "patience": 0},
        (0.5, 0.6, 0.5),
    ),
    "soda": Choosing(
        SODA(theta1=0.0, steps=60, epochs=3, count=8, batch=40, bar=2.0), soda, (0.9, 0.9)
    ),
    "soda, gentler": Choosing(
        SODA(theta1=0.0, steps=60, epochs=3, count=8, batch=40), soda, GENTLER
    ),
    "soda-oracle": Choosing(
        SODAOracle(source=3, target=5, steps=60, epochs=2, count=8, batch=40), soda, GENTLER
    ),
}
choosing = pytest.mark.parametrize("name", CHOOSING)


def own_case(defense: Defense, clean: int = 80, **given: Any) -> Case:
    return toys.case(defense.sees, clean=clean, epochs=1, shape=SMALL, **given)


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: tuple[float, ...]) -> list[float]:
    """Let successive calls of `case.accuracy` return these; what is left of them."""
    left = [*accuracies]
    monkeypatch.setattr(Case, "accuracy", lambda *_, **__: left.pop(0))
    return left


@choosing
def test_the_choice_is_learned_on_all_images_as_if_it_had_been_given(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    chooses = CHOOSING[name]
    with monkeypatch.context() as patch:
        left = scripted(patch, chooses.accuracies)
        outcome = chooses.defense.defend(own_case(chooses.defense))
    assert not left, "the test needs a choice that looks at all it says"
    fixed = replace(chooses.defense, **chooses.fixed(outcome.notes))
    model = repaired(outcome)
    assert not toys.differing(model, repaired(fixed.defend(own_case(fixed))))
    assert toys.differing(model, toys.victim(shape=SMALL)), "something must have been learned"
    fewer = own_case(fixed)
    fewer._given = {**fewer._given, "clean": fewer.split()[0]}  # type: ignore[dict-item]
    assert toys.differing(model, repaired(fixed.defend(fewer))), "the hold-out teaches too"


@pytest.mark.parametrize("name", ["awm", "i-bau", "sau", "npd", "neural-cleanse"])
def test_where_no_round_is_accepted_the_victim_comes_back(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    scripted(monkeypatch, (0.9, 0.5, 0.5, 0.5, 0.5))
    outcome = CHOOSING[name].defense.defend(own_case(CHOOSING[name].defense))
    assert outcome.notes["kept"] == 0 and outcome.notes["holdout"] == [0.9, 0.5, 0.5, 0.5, 0.5]
    assert not toys.differing(repaired(outcome), toys.victim(shape=SMALL))


@pytest.mark.parametrize(
    "defense",
    [
        BNP(u=None),
        CLPHoldout(u=0.5),
        FinePruning(epochs=1),
        SIBP(epochs=0, rounds=2),
        NeuralCleanse(epochs=1, steps=2, tune_epochs=0),
    ],
    ids=lambda defense: type(defense).__name__,
)
def test_what_memorises_no_image_holds_none_out(
    monkeypatch: pytest.MonkeyPatch, defense: Defense
) -> None:
    own, judged = case(clean=200), []
    accuracy = Case.accuracy

    def watched(self: Case, model: nn.Module, data: ImageSet) -> float:
        judged.append(len(data))
        return accuracy(self, model, data)

    def refused(self: Case, *_: Any) -> Any:
        raise AssertionError("all images are to be learned from")

    monkeypatch.setattr(Case, "accuracy", watched)
    monkeypatch.setattr(Case, "split", refused)
    defense.defend(own)
    assert all(count == 200 for count in judged)


class Recording(Case):
    """Finds every model as good as the victim, and notes which images it was judged by."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.judged: list[tuple[Tensor, dict[str, Tensor]]] = []
        """Images and learned weights of each measurement; a victim with zeros has learned none."""

    def accuracy(self, model: nn.Module, data: ImageSet) -> float:
        found, victim = toys.weights(model), self._given["model"].state_dict()
        pruned = found.keys() == victim.keys() and all(
            bool(((value == victim[name]) | (value == 0)).all()) for name, value in found.items()
        )
        self.judged.append((data.images, {} if pruned else found))
        return 0.9


def judged_by_what_it_learned(defense: Defense) -> bool:
    """Whether weights that were judged change with the images they were judged by."""

    def judged(clean: ImageSet) -> list[tuple[Tensor, dict[str, Tensor]]]:
        shape = SMALL
        own = toys.case(defense.sees, clean=clean, kind=Recording, epochs=1, shape=shape)
        assert isinstance(own, Recording)
        defense.defend(own)
        return own.judged

    clean = toys.image_set(80, shape=SMALL, seed=1)
    after: dict[bytes, list[tuple[Tensor, dict[str, Tensor]]]] = {}  # by what is inverted
    for place, (images, weights) in enumerate(judged(clean)):
        if not weights:
            continue
        mine = (clean.images[:, None] == images).flatten(2).all(2).any(1)
        inverted = torch.where(mine.view(-1, 1, 1, 1), 255 - clean.images, clean.images)
        which = mine.numpy().tobytes()
        if which not in after:
            after[which] = judged(replace(clean, images=inverted))
        if not toys.same(weights, after[which][place][1]):
            return True
    return False


REPAIRS = {
    name: toys.short("defense", name, {})
    for name in catalog.names("defense")
    if {"model", "clean"} <= catalog.method("defense", name).sees
    and catalog.method("defense", name).kind == "repair"
    and name != "seam"
}
"""Without SEAM: it ends, as published, once it has learned its images, which chooses nothing."""


@pytest.mark.parametrize("name", sorted({*REPAIRS, *CHOOSING}))
def test_no_weights_are_judged_by_images_they_were_learned_on(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shape = SMALL
    patch = torch.zeros(1, 1, *shape[1:])
    patch[..., :4, :4] = 1
    triggers = Triggers(torch.tensor([0]), patch, patch.expand(-1, 3, -1, -1), torch.tensor([16.0]))
    # Triggers, and the classes SODA finds, memorise nothing: they are learned on all images.
    monkeypatch.setattr(NeuralCleanse, "invert", lambda *_: triggers)
    monkeypatch.setattr(
        "defenses.neural_cleanse.judged", lambda *_: (torch.ones(1), torch.tensor([True]))
    )
    monkeypatch.setattr(SODA, "detect", lambda *_: (5, 3, {}))
    defense = CHOOSING[name].defense if name in CHOOSING else REPAIRS[name]
    assert not judged_by_what_it_learned(defense)


@dataclass(frozen=True, kw_only=True)
class Careless(FineTuning):
    """Judges by all images, or by those it held out."""

    all_images: bool = True
    """Whether by all."""

    def defend(self, case: Case) -> Outcome:
        """Learn on a part."""
        fitted, holdout = case.split()
        model = case.fresh_model()
        case.fit(model, fitted, epochs=1)
        case.accuracy(model, case.clean if self.all_images else holdout)
        return Outcome(model=model)


def test_the_sentinel_can_fail() -> None:
    assert judged_by_what_it_learned(Careless())
    assert not judged_by_what_it_learned(Careless(all_images=False))


# The rule itself


def test_strongest_first_the_first_accepted_is_taken() -> None:
    own = case()
    rule = Rule(own, own.clean, 0.03)

    def scaled(factor: float) -> nn.Module:
        if factor > 9:
            raise DivergedError("too strong")
        model = own.fresh_model()
        with torch.no_grad():
            model.classifier.weight.mul_(factor)
        return model

    found, curve = rule.first((10.0, -1.0, 0.5, 2.0), scaled)
    assert found == 0.5 and [tried for tried, _ in curve] == [10.0, -1.0, 0.5]
    assert curve[0][1] == 0 and curve[1][1] < rule.least <= curve[2][1]
    assert rule.first((10.0, -1.0), scaled)[0] is None


def test_weakest_first_the_one_before_the_first_rejected_is_taken() -> None:
    own = case()
    rule = Rule(own, own.clean, 0.03)

    def scaled(factor: float) -> nn.Module:
        model = own.fresh_model()
        with torch.no_grad():
            model.classifier.weight.mul_(factor)
        return model

    found, curve = rule.until_rejected((0.9, 0.5, -1.0, 0.4), scaled)
    assert found == 0.5 and [tried for tried, _ in curve] == [None, 0.9, 0.5, -1.0]
    assert curve[0] == (None, rule.before)
    assert rule.until_rejected((-1.0, 0.5), scaled)[0] is None


def test_a_model_that_is_not_finite_is_never_accepted() -> None:
    own = case()
    rule, model = Rule(own, own.clean, 1.0), own.fresh_model()
    torch.nn.init.constant_(model.classifier.get_parameter("weight"), torch.nan)
    assert rule.accuracy(model) == 0


@pytest.mark.parametrize(
    ("tau", "after", "kept"),
    [
        (0.1, [0.85, 0.7, 0.81, 0.79], 3),
        (0.1, [0.5, 0.6, 0.7, 0.79], 0),
        (None, [], 4),
        (0.0, [0.88, 0.86, 0.7, 0.7], 2),  # two of the forty held out are allowed
    ],
)
def test_as_many_rounds_as_the_last_within_tau_are_run_again(
    monkeypatch: pytest.MonkeyPatch, tau: float | None, after: list[float], kept: int
) -> None:
    own, learned = case(), []
    scripted(monkeypatch, (0.9, *after))

    def learn(data: ImageSet) -> tuple[Net, Iterator[float]]:
        model = own.fresh_model()
        learned.append(len(data))

        def rounds() -> Iterator[float]:
            for number in range(1, 5):
                with torch.no_grad():
                    model.classifier.bias.fill_(number)
                yield float(number)

        return model, rounds()

    model, notes = last_within(own, tau, learn)
    assert learned == ([80] if tau is None else [40, 80])
    if kept:
        assert bool((model.classifier.bias == kept).all())
    else:
        assert not toys.differing(model, toys.victim()), "all fell below: the victim"
    curve = {} if tau is None else {"holdout": [0.9, *after]}
    assert notes == {"losses": [1, 2, 3, 4][:kept], "kept": kept, **curve}
