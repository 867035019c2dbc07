"""SIBP, Self-Inspecting Backdoor Purification (released code; no text of the paper was found).

The defender sees the model and a few clean images. Channels are scored from the weights alone - of
a convolution by its largest weight over the deviation of its kernel, `max |W| / std W`, of a norm
by the factor it scales with, `|gamma| / sigma` - and those far above their layer's mean are set to
zero; then the model is fine-tuned. Threshold: `mean + conv T deviation` for convolutions,
`mean + u T deviation` for norms.

1x1 convolutions have no deviation within a kernel and are never pruned: all pointwise layers of a
MobileNet, the shortcuts of a ResNet. T comes from a list of VGG-16's layers and is 1 for every
other architecture; mode `adaptive` is our generalisation: layers with many outliers, relative to
all layers.

Deviations, each with its reason; `preset: released` (CIFAR-10) and `released-gtsrb` have none of
them and bring the release's u and epochs against BadNets and its augmentation:

- Channels that are zero already have no score and take no part in their layer's mean, so that a
  further round prunes (`literal`: in their layer nothing is pruned).
- Gradients are clipped: the first update regrows a zeroed kernel along a gradient that its norm
  amplifies by up to 1/sqrt(eps). It is re-initialised rather than pruned; `freeze` keeps it zero.
- Released u and epochs are chosen for each attack. Here one u for all, and as many epochs as it
  takes, fine-tuning on a part of the clean budget, until accuracy on the rest has not improved for
  `patience` epochs, of which none counts while it is near chance: a pruned network may need several
  before it learns at all. `u: null` takes the strongest pruning of a list whose hold-out accuracy
  stays within `tau`. With what was chosen the victim is pruned and tuned on all images (fair rule
  H).

The controls: `fine-tuning`, or this with `u` and `conv` of 1e9, which prunes nothing;
`{defense: random-pruning, like: sibp}`, which zeroes as many channels of each layer at random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from defenses.base import Case, Defense, Needs
from defenses.parts import channels
from defenses.parts.accept import Rule
from defenses.parts.hooks import Clipped, Enough
from defenses.parts.passes import PLAIN
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, LearningRate, NonNegative, Share, Some, Whole
from sweeper.core.types import Outcome, Samples
from sweeper.models.base import Net

CANDIDATES = (0.5, 1.0, 1.5, 1.9, 2.5)
NEAR_CHANCE = 0.05
"""Hold-out accuracy above chance below which no epoch counts against the patience."""
MODES = ("released", "vgg-list", "adaptive")
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "cifar10": {**PLAIN, "crop": 4, "flip": True},
    "gtsrb": {**PLAIN, "rotation": 15.0},
}
"""Name -> changes of the recipe; those of the released fine-tuning go by its data sets."""
RELEASED: dict[str, Any] = {"patience": 0, "clip": 0.0, "literal": True}
"""What the release does on every data set."""


@dataclass(frozen=True, kw_only=True)
class SIBP(Defense):
    """Pruning by statistics of the weights, then fine-tuning; in rounds."""

    mode: str = "released"
    """released (T = 1 off VGG) | vgg-list (refuses other models) | adaptive."""
    u: NonNegative | Some[NonNegative] | None = 1.9
    """Coefficient of the norms' threshold; one a round; null: chosen on the hold-out."""
    conv: NonNegative = 0.5
    """Coefficient of the convolutions' threshold."""
    rounds: Count = 1
    """Rounds of pruning and fine-tuning; where u is a list, its length."""
    epochs: Whole | tuple[Whole, ...] = 20
    """Most passes of each fine-tuning; one a round; 0: pruning alone."""
    patience: Whole = 5
    """Epochs without a better hold-out accuracy after which it stops; 0: no hold-out."""
    tau: Share = 0.05
    """Hold-out accuracy the choice of u, or a further round, may cost, absolute, at least two
    images."""
    lr: LearningRate = 0.01
    """Learning rate (SGD, momentum 0.9, constant)."""
    weight_decay: NonNegative = 1e-4
    """L2 penalty."""
    batch: Count = 256
    """Images of a step."""
    freeze: bool = False
    """Whether pruned channels stay zero while fine-tuning."""
    clip: NonNegative = 5.0
    """Largest norm of the gradient; 0: no bound."""
    literal: bool = False
    """Whether dead channels are scored as released (their layer: not pruned)."""
    augment: str = field(default="recipe", metadata={"added": True})
    """Augmentation of the fine-tuning: recipe | cifar10 (crop 4, flip) | gtsrb (rotation 15)."""

    title = "Self-Inspecting Backdoor Purification (SIBP)"
    paper = "released code; no paper found"
    kind = "repair"
    sees = frozenset({"model", "clean"})
    version = 4
    presets = {
        "released": {**RELEASED, "epochs": 7, "augment": "cifar10"},
        "released-gtsrb": {**RELEASED, "u": 1.8, "epochs": 4, "augment": "gtsrb"},
        "adaptive": {"mode": "adaptive"},
        "automatic": {"u": None},
    }

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: An unknown word, or lists that do not fit.
        """
        if self.mode not in MODES:
            raise SweepError(f"mode: {self.mode!r} is not one of {', '.join(MODES)}")
        if self.augment not in AUGMENTATIONS:
            choices = ", ".join(AUGMENTATIONS)
            raise SweepError(f"augment: {self.augment!r} is not one of {choices}")
        if self.u is None and not self.patience:
            raise SweepError("u: null is chosen on the hold-out: give patience, or a number")
        if isinstance(self.epochs, tuple) and len(self.epochs) != self.count:
            raise SweepError(f"epochs: give one number, or {self.count}: one a round")

    @property
    def count(self) -> int:
        """Rounds."""
        return len(self.u) if isinstance(self.u, tuple) else self.rounds

    def least_clean(self, needs: Needs) -> int:
        """One more than a training takes where a hold-out is set aside."""
        return needs.batch + (self.patience > 0) if self.trains else 1

    @property
    def trains(self) -> bool:
        """Whether any round fine-tunes."""
        return any(self.epochs) if isinstance(self.epochs, tuple) else self.epochs > 0

    def defend(self, case: Case) -> Outcome:
        """Choose u, rounds and epochs on a hold-out where asked, then purify with all images."""
        choice = self.choose(case) if self.patience else {}
        plan = [(entry["u"], entry["epochs"]) for entry in choice.get("rounds", [])]
        model = case.fresh_model()
        rounds = [*self.run(case, model, plan or self.plan(self.u), case.clean)]
        return Outcome(model=model, notes={"rounds": rounds, "choice": choice})

    def plan(self, u: float | tuple[float, ...] | None) -> list[tuple[float, int]]:
        """Coefficient and most epochs of each round."""
        assert u is not None
        all_u = u if isinstance(u, tuple) else (u,) * self.count
        epochs = self.epochs if isinstance(self.epochs, tuple) else (self.epochs,) * self.count
        return list(zip(all_u, epochs, strict=True))

    def choose(self, case: Case) -> dict[str, Any]:
        """What a hold-out allows: rounds of the options' u, or of the first candidate within tau.

        Where no round trains nothing is learned, and all clean images judge.
        """
        fitted, holdout = case.split() if self.trains else (case.clean, case.clean)
        rule = Rule(case, holdout, self.tau)
        if self.u is not None:
            return {"holdout_before": rule.before, **self.tried(case, self.u, fitted, rule)}
        accuracies: dict[str, float] = {}
        for u in CANDIDATES:
            found = self.tried(case, u, fitted, rule)
            accuracies[str(u)] = found["rounds"][-1]["holdout"]
            if within := accuracies[str(u)] >= rule.least:
                break
        tried = {"tried": accuracies, "within_tau": within}
        return {"holdout_before": rule.before, **found, **tried}

    def tried(
        self, case: Case, u: float | tuple[float, ...], fitted: Samples, rule: Rule
    ) -> dict[str, Any]:
        """The rounds up to the first further one that costs too much; a list has none such."""
        rounds: list[dict[str, Any]] = []
        for entry in self.run(case, case.fresh_model(), self.plan(u), fitted, rule):
            if rounds and entry["holdout"] < rule.least and not isinstance(u, tuple):
                return {"rounds": rounds, "undone": entry}
            rounds.append(entry)
        return {"rounds": rounds}

    def run(
        self,
        case: Case,
        model: Net,
        plan: list[tuple[float, int]],
        data: Samples,
        rule: Rule | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Prune and fine-tune in place round by round; yields the notes of each.

        Args:
            case: Whose draws.
            model: The victim.
            plan: Coefficient and epochs of each round.
            data: The images to fine-tune on.
            rule: Measures, and ends each fine-tuning by the patience; None: all epochs are run.
        """
        frozen: channels.Dead = {}
        for number, (u, epochs) in enumerate(plan):
            dead = self.prune(model, u)
            frozen = {name: part | frozen.get(name, part) for name, part in dead.items()}
            entry: dict[str, Any] = {"u": u, "pruned": channels.counts(dead)}
            name = "fit" if number == 0 else f"fit {number}"
            if rule is None:
                entry["epochs"] = self.tune(case, model, frozen, data, epochs, name)
            else:
                entry["holdout_pruned"] = rule.accuracy(model)
                entry["epochs"] = self.tune(case, model, frozen, data, epochs, name, rule.accuracy)
                entry["holdout"] = rule.accuracy(model)
            yield entry

    def prune(self, model: nn.Module, u: float) -> channels.Dead:
        """Zero the suspicious channels in place; returns which."""
        dead = channels.suspicious(
            channels.scores(model, self.literal),
            conv=self.conv,
            u=u,
            mode=self.mode,
            literal=self.literal,
        )
        channels.zero(model, dead)
        return dead

    def tune(
        self,
        case: Case,
        model: Net,
        dead: channels.Dead,
        data: Samples,
        epochs: int,
        name: str = "fit",
        accuracy: Callable[[nn.Module], float] | None = None,
    ) -> int:
        """Fine-tune in place, as the options say; returns the epochs it took.

        Args:
            case: Whose draws.
            model: Pruned.
            dead: What was pruned.
            data: The images to train on.
            epochs: Passes, at most.
            name: Names the draws.
            accuracy: Ends the training when it has not risen for `patience` epochs; None: all run.
        """
        hooks = _Tuning(self, dead, accuracy, 1 / len(data.classes) + NEAR_CHANCE)
        if epochs:
            try:
                case.fit(
                    model,
                    data,
                    name=name,
                    hooks=hooks,
                    epochs=epochs,
                    lr=self.lr,
                    momentum=0.9,
                    weight_decay=self.weight_decay,
                    batch=min(self.batch, len(data)),
                    schedule="constant",
                    period=0,
                    warmup=0.0,
                    **AUGMENTATIONS[self.augment],
                )
            except Enough:
                model.eval()
        return hooks.epochs


class _Tuning(Clipped):
    """Keeps pruned channels at zero, clips gradients, ends the loop when nothing improves."""

    def __init__(
        self,
        sibp: SIBP,
        dead: channels.Dead,
        accuracy: Callable[[nn.Module], float] | None,
        floor: float,
    ) -> None:
        super().__init__(sibp.clip)
        self.sibp = sibp
        self.dead = dead
        self.accuracy = accuracy
        self.floor = floor
        self.epochs = 0
        self.best, self.best_epoch = -1.0, 0

    def stepped(self, model: nn.Module, step: int) -> None:
        """After an update."""
        if self.sibp.freeze:
            channels.zero(model, self.dead)

    def epoch(self, model: nn.Module, epoch: int) -> None:
        """After an epoch."""
        self.epochs = epoch + 1
        if self.accuracy is None:
            return
        accuracy = self.accuracy(model)
        model.train()
        if accuracy > self.best or accuracy < self.floor:
            self.best, self.best_epoch = max(accuracy, self.best), epoch
        if epoch - self.best_epoch >= self.sibp.patience:
            raise Enough
