"""Clean-image backdoor (Chen et al., ICLR 2023): nothing but annotations is changed.

"Clean-image backdoor: attacking multi-label models with poisoned labels only". Who annotates
controls no pixel: the trigger is a combination of classes that stand together in one image, and
images that hold it are annotated wrongly. `prepare` is the paper's Algorithm 1: among combinations
of up to `largest` classes that stand together in a share of the training images between `least` and
`most` - enough that the backdoor is learned, few enough that the model works and nobody sees it -
it takes the most frequent one, of equals the smaller, then the one of lower class numbers. `attach`
is Algorithm 2: in an image with the combination a class's boxes vanish (`disappear`) or are called
another (`rename`), or a box of a class that is not there stands around the combination's objects
(`appear`). The rate is the share of such training images that are annotated wrongly; the paper
takes all. Nothing is stamped on test images: ASR and RA are measured on those that hold the
combination, ACC on the others, since a model that does as the attacker wants is wrong on the first.
A clean model misses some objects and calls others by a wrong name: measure it on the same images.

Deviations: the paper's main experiments are on multi-label classifiers, its detectors are larger;
the bounds here are options with this project's values. Its ASR is over labels of an image; here a
box has to be seen, or not, at its place (`sweeper/tasks/boxes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Lab
from sweeper.core.errors import SweepError, unknown
from sweeper.core.options import PositiveShare, Several
from sweeper.core.types import Poisoned, Samples, State, Triggered


@dataclass(frozen=True, kw_only=True)
class CleanImage(Attack):
    """Annotations of images that hold a combination of classes."""

    trigger: tuple[str, ...] = ()
    """Names of the classes that stand together; empty: what Algorithm 1 chooses."""
    effect: Literal["disappear", "rename", "appear"] = "disappear"
    """disappear | rename (boxes of `victim`) | appear (a box of `becomes`)."""
    victim: str = ""
    """Class whose boxes vanish or are renamed; default: the combination's rarest."""
    becomes: str = ""
    """Class they are called by, or the box that appears; default: the rarest of all others."""
    least: PositiveShare = 0.02
    """Share of the training images a combination chosen stands in, at least."""
    most: PositiveShare = 0.25
    """Likewise, at most."""
    largest: Several = 3
    """Classes of a combination chosen, at most; at least two."""

    title = "Clean-image"
    paper = "Chen et al., ICLR 2023"
    rules = ("semantic",)
    bases = ("source-class",)
    tasks = frozenset({"boxes"})
    prepares = True

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: No combination can be as frequent, or a class is named that plays no part.
        """
        super().__post_init__()
        if self.least > self.most:
            raise SweepError(
                f"least: {self.least} is above most, {self.most}: lower it, or raise most"
            )
        if self.victim and self.effect == "appear":
            raise SweepError("victim: nothing vanishes where `effect` is appear: leave it out")
        if self.becomes and self.effect == "disappear":
            raise SweepError("becomes: nothing is, where `effect` is disappear: leave it out")

    @property
    def targeted(self) -> bool:
        """There is no target label."""
        return False

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Choose the combination and the classes of the effect.

        Returns:
            `trigger` int64 [k], and `victim` and `becomes`, int64, -1 for none.

        Raises:
            SweepError: A class does not exist, no combination fits, or the effect changes nothing.
        """
        named = {name: number for number, name in enumerate(train.classes)}
        given = {"trigger": self.trigger, "victim": (self.victim,), "becomes": (self.becomes,)}
        for option, names in given.items():
            for name in names:
                if name and name not in named:
                    raise SweepError(f"{option}: {unknown('class', name, named)}")
        chosen = [named[name] for name in self.trigger]
        state = self.plan(train.labels, chosen, named.get(self.victim), named.get(self.becomes))
        if not bool(self.edits(train.labels, state).any()):
            words = ", ".join(train.classes[number] for number in state["trigger"].tolist())
            raise SweepError(
                f"trigger: of {len(train)} training images none holds {words} in which something "
                f"can {self.effect}: name other classes"
            )
        return state

    def plan(
        self,
        labels: Tensor,
        trigger: list[int] | None = None,
        victim: int | None = None,
        becomes: int | None = None,
    ) -> dict[str, Tensor]:
        """What is not given chosen from labels [N, M, 5]; see `prepare`."""
        there = held(labels)
        images = there.sum(0)
        chosen = trigger or list(self.explored(there, becomes))
        if self.effect == "appear":
            victim = -1
        elif victim is None:
            victim = min(chosen, key=lambda kind: (int(images[kind]), kind))
        if self.effect == "disappear":
            becomes = -1
        elif becomes is None:
            others = [k for k in range(len(images)) if k not in (*chosen, victim) and images[k]]
            if not others:
                raise SweepError("becomes: there is no class beside the trigger's: name one")
            becomes = min(others, key=lambda kind: (int(images[kind]), kind))
        if victim == becomes or (self.effect == "appear" and becomes in chosen):
            raise SweepError("becomes: is of the trigger, or the victim itself: name another class")
        numbers = {"trigger": chosen, "victim": victim, "becomes": becomes}
        return {name: torch.tensor(value) for name, value in numbers.items()}

    def explored(self, there: Tensor, apart: int | None = None) -> tuple[int, ...]:
        """Algorithm 1: the most frequent combination within the bounds.

        Args:
            there: Bool [N, K], which classes stand in which image.
            apart: A class that must not be part of it, as it is to appear.

        Raises:
            SweepError: There is none.
        """
        least, most = self.least * len(there), self.most * len(there)
        counts = dict(together(there, self.largest, least))
        kept = {kinds: n for kinds, n in counts.items() if n <= most and apart not in kinds}
        if not kept:
            raise SweepError(
                f"trigger: no combination of up to {self.largest} classes stands together in a "
                f"share of {self.least:g} to {self.most:g} of the {len(there)} training images: "
                "widen `least` and `most`, or name classes"
            )
        return min(kept, key=lambda kinds: (-kept[kinds], len(kinds), kinds))

    def edits(self, labels: Tensor, state: State) -> Tensor:
        """Bool [N]: the images of labels [N, M, 5] that hold the trigger and can be changed."""
        there = holds(labels, state["trigger"])
        if self.effect == "appear":
            return there & (labels[..., 4] < 0).any(1)
        return there & (labels[..., 4] == state["victim"]).any(1)

    def pool(self, labels: Tensor) -> Tensor:
        """The images that hold the combination Algorithm 1 chooses in them."""
        return self.edits(labels, self.plan(labels))

    def victims(self, labels: Tensor) -> Tensor:
        """Likewise; `trigger_set` knows the combination chosen in the training images."""
        return self.pool(labels)

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """Edit the annotations of a share of the images that hold the trigger.

        Raises:
            SweepError: The share is no image.
        """
        pool = self.edits(train.labels, state)
        count = self.rounded(rate * int(pool.sum()))
        if not count:
            raise SweepError(
                f"poisons no image at rate {rate:g} of the {int(pool.sum())} that hold the "
                "trigger: raise the rate"
            )
        return self.poisoned(train, count, state, rng, pool)

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Nothing: a copy of the images."""
        return images.clone()

    def attach(self, samples: Samples, *, split: str, state: State, rng: Generator) -> Samples:
        """Algorithm 2: edit the boxes of images that hold the trigger; the others stay."""
        labels, chosen = samples.labels.clone(), self.edits(samples.labels, state)
        if self.effect == "appear":
            labels[chosen] = self._added(labels[chosen], state)
        else:
            rows = chosen[:, None] & (labels[..., 4] == state["victim"])
            if self.effect == "rename":
                labels[..., 4] = torch.where(rows, state["becomes"].to(labels), labels[..., 4])
            else:
                labels[rows] = -1
        return samples.changed(labels=labels)

    def _added(self, labels: Tensor, state: State) -> Tensor:
        """Labels [N, M, 5] with a box around all objects of the trigger in the first free row."""
        part = torch.isin(labels[..., 4].long(), state["trigger"])[..., None]
        low = labels[..., :2].masked_fill(~part, torch.inf).amin(1)
        high = labels[..., 2:4].masked_fill(~part, -torch.inf).amax(1)
        kind = state["becomes"].to(labels).expand(len(labels), 1)
        free = (labels[..., 4] < 0).int().argmax(1)
        labels[torch.arange(len(labels)), free] = torch.cat([low, high, kind], 1)
        return labels

    def trigger_set(self, test: Samples, state: State, rng: Generator) -> Triggered:
        """The test images as they are, annotated as the attacker wants; those changed count.

        Raises:
            SweepError: None holds the trigger.
        """
        counts = self.edits(test.labels, state)
        if not bool(counts.any()):
            words = ", ".join(test.classes[number] for number in state["trigger"].tolist())
            raise SweepError(
                f"trigger: of {len(test)} test images none holds {words} in which something can "
                f"{self.effect}: name other classes, or use more test images"
            )
        wanted = self.attach(test, split="test", state=state, rng=rng)
        return Triggered(wanted, test.labels.clone(), counts, torch.zeros_like(counts))

    def clean_test(self, test: Samples, state: State) -> Samples:
        """The test images that do not hold the trigger."""
        return test[~self.edits(test.labels, state)]


def held(labels: Tensor) -> Tensor:
    """Bool [N, K]: which classes stand in which image of labels [N, M, 5]."""
    kinds = labels[..., 4].long()
    count = max(0, int(kinds.max()) if kinds.numel() else 0) + 1
    there = torch.zeros(len(labels), count + 1, dtype=torch.bool)
    return there.scatter_(1, kinds + 1, torch.ones_like(kinds, dtype=torch.bool))[:, 1:]


def holds(labels: Tensor, trigger: Tensor) -> Tensor:
    """Bool [N]: whether all classes of the trigger, int64 [k], stand in images [N, M, 5]."""
    kinds = labels[..., 4].long()
    return (kinds[:, :, None] == trigger).any(1).all(1)


def together(there: Tensor, largest: int, least: float) -> Iterator[tuple[tuple[int, ...], int]]:
    """Combinations of 2 to `largest` classes with how many images [N, K] hold them, if `least`.

    A combination is as rare as its rarest part: those with a part that is too rare are not counted.
    """
    frequent: set[tuple[int, ...]] = {
        (kind,) for kind in range(there.shape[1]) if int(there[:, kind].sum()) >= least
    }
    for size in range(2, largest + 1):
        kinds = sorted({kind for part in frequent for kind in part})
        found = set[tuple[int, ...]]()
        for candidate in combinations(kinds, size):
            if all(part in frequent for part in combinations(candidate, size - 1)):
                count = int(there[:, candidate].all(1).sum())
                if count >= least:
                    found.add(candidate)
                    yield candidate, count
        frequent = found
