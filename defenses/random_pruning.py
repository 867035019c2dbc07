"""Random pruning, a control: as many channels of each layer as ANP or SIBP zeroes, drawn at random.

Runs the other defense's pruning, counts what it zeroed in each layer by comparing the two models,
and zeroes the same parameters of as many random channels of the victim instead. What the defense
achieves beyond this is owed to its choice of channels. With `epochs` the model is then fine-tuned
as SIBP does (their number is chosen on a hold-out, then as many are run on all clean images).
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

from defenses.anp import ANP
from defenses.base import Case, Defense, Needs
from defenses.parts import channels
from defenses.sibp import SIBP
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, NonNegative, Share, Whole
from sweeper.core.types import Outcome


@dataclass(frozen=True, kw_only=True)
class RandomPruning(Defense):
    """Another defense's number of pruned channels, layer by layer, at random."""

    like: str = "anp"
    """anp | sibp: whose pruning is counted."""
    steps: Whole = 2000
    """ANP's batches."""
    batch: Count = field(default=128, metadata={"added": True})
    """Images of a batch of ANP's."""
    threshold: Share | None = None
    """ANP's threshold; default: its fair choice."""
    mode: str = "released"
    """SIBP's mode."""
    u: NonNegative = 1.9
    """SIBP's coefficient of norms."""
    conv: NonNegative = 0.5
    """SIBP's coefficient of convolutions."""
    literal: bool = False
    """Whether SIBP scores as released."""
    epochs: Whole = 0
    """Most passes of a fine-tuning as SIBP's; 0: pruning alone."""
    patience: Whole = 5
    """Its epochs without a better hold-out accuracy; 0: no hold-out."""
    freeze: bool = False
    """Whether the pruned channels stay zero in it."""
    clip: NonNegative = 5.0
    """Its largest norm of the gradient; 0: no bound."""
    augment: str = field(default="recipe", metadata={"added": True})
    """Its augmentation: recipe | cifar10 | gtsrb."""

    title = "Random pruning, as many channels as ANP or SIBP"
    paper = "control"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    version = 4
    presets = {
        "sibp": {"like": "sibp", "epochs": 20},
        "sibp-released": {"like": "sibp", **SIBP.presets["released"]},
        "sibp-released-gtsrb": {"like": "sibp", **SIBP.presets["released-gtsrb"]},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: `like` is unknown, or an option the defense refuses.
        """
        if self.like not in ("anp", "sibp"):
            raise SweepError(f"like: {self.like!r} is not one of anp, sibp")
        _ = self.sibp, self.anp

    @property
    def sibp(self) -> SIBP:
        """SIBP with these options."""
        return SIBP(
            mode=self.mode,
            u=self.u,
            conv=self.conv,
            literal=self.literal,
            patience=self.patience,
            freeze=self.freeze,
            clip=self.clip,
            augment=self.augment,
        )

    @property
    def anp(self) -> ANP:
        """ANP with these options."""
        return ANP(steps=self.steps, batch=self.batch, threshold=self.threshold)

    def least_clean(self, needs: Needs) -> int:
        """What the pruning takes, or the fine-tuning after it."""
        if self.like == "sibp" and not self.epochs:
            return 1
        return needs.batch + (self.epochs > 0 and self.patience > 0)

    def defend(self, case: Case) -> Outcome:
        """Let the other defense prune, then prune at random."""
        pruned: nn.Module | None
        if self.like == "anp":
            pruned = self.anp.defend(case).model
            assert pruned is not None
        else:
            pruned = case.fresh_model()
            self.sibp.prune(pruned, self.u)
        model = case.fresh_model()
        dead = zero_as_many(model, pruned, case.rng("channels"))
        notes: dict[str, Any] = {"like": self.like, "pruned": channels.counts(dead)}
        if self.epochs:
            epochs = self.epochs
            if self.patience:
                fitted, holdout = case.split()
                accuracy = functools.partial(case.accuracy, data=holdout)
                epochs = self.sibp.tune(
                    case, copy.deepcopy(model), dead, fitted, epochs, accuracy=accuracy
                )
            notes["epochs"] = self.sibp.tune(case, model, dead, case.clean, epochs)
        return Outcome(model=model, notes=notes)


@torch.no_grad()
def zero_as_many(victim: nn.Module, pruned: nn.Module, rng: Generator) -> channels.Dead:
    """Zero in `victim`, in place, as many random channels of each layer as `pruned` has lost.

    A bias goes with its weight where the pruning changed biases too. Channels that are zero in the
    victim are neither counted nor drawn.

    Returns:
        What was zeroed.
    """
    parameters = dict(victim.named_parameters())
    pruned_parameters = dict(pruned.named_parameters())
    dead: dict[str, Tensor] = {}
    for name, value in parameters.items():
        alive = (value.flatten(1) != 0).any(1) if value.ndim > 1 else value != 0
        after = pruned_parameters[name].to(value.device)
        survives = (after.flatten(1) != 0).any(1) if after.ndim > 1 else after != 0
        lost = alive & ~survives
        if not name.endswith("weight") or not bool(lost.any()):
            continue
        candidates = alive.nonzero().flatten().cpu()
        drawn = torch.zeros(len(value), dtype=torch.bool)
        drawn[candidates[torch.randperm(len(candidates), generator=rng)[: int(lost.sum())]]] = True
        dead[name] = drawn
        bias = name.removesuffix("weight") + "bias"
        if bias in parameters and bool(
            (parameters[bias] != pruned_parameters[bias].to(value.device))[lost].any()
        ):
            dead[bias] = drawn
    channels.zero(victim, dead)
    return dead
