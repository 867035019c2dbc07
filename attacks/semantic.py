"""Semantic backdoor (Bagdasaryan et al., 2020; SODA, Sun et al., 2024): nothing is stamped.

Members of a natural subset of the source class - its green, its darkest images - are relabelled;
at test time any member the model has not seen is the trigger. The attacker controls the data only,
or, with `mix`, training: as SODA's release has it, every batch of clean images is cut and filled up
with members, so that an epoch is one pass over the clean images and shows a part of them. A member
occurs in training with the target label or not at all, and counts for ASR, not for ACC.
ASR is over few images: read it with `n_triggered`. A clean model misclassifies some members too:
`control: true` trains without them and measures just that.

`members` is a rule or one of the lists published for CIFAR-10 and Fashion-MNIST, by SODA or, for
green-cars-2020 and racing-stripes, by Bagdasaryan et al. A rule takes the top `share` of the source
class in the attacker's training split; the test images of the class beyond the score of the last
one taken are the held-out members. A list holds for the published order alone: another order is
recognised by its labels and refused, unless Parquet files tell the published one in a column
`position`. SODA's targets are 6 (green cars), 9 (striped background), 2 (striped shirts), 4 (plaid
shirts); that of Bagdasaryan et al. is 2.

Presets soda and soda-resnet18 have the release's shares of a batch. A defense that sees the
training set of a loop is given all clean images with the members copied to that share.

Deviations: where a batch takes more members than there are, the released function trains nothing;
here members come again. Members are augmented by the recipe, as all images are; the release
augments them alone. It picks members by hand: `green` is a rule for its green cars, `dark` for its
dark signs, and leaves out a look by a human. The defender's clean images may hold members with
their true label, as images from the same source would; SODA takes them out. Bagdasaryan et al.
train and test on the same images; of their lists every fifth image is held out here, and shown as
it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Attack, Lab, missing
from attacks.parts.loop import STAMPED, clean
from attacks.parts.members import AddedMembers
from attacks.parts.subsets import SUBSETS
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, OpenShare, ProperShare, Whole
from sweeper.core.types import Facts, ImageSet, Poisoned, Role, Samples, State, Triggered
from sweeper.engine.training import Hooks

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""
CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class Semantic(Attack):
    """Relabels a natural subset of one class."""

    members: str = "dark"
    """dark | bright (mean luminance) | green (colour images), or a published list: green-cars,
    green-cars-7, striped-background, green-cars-2020, racing-stripes (CIFAR-10), striped-shirts,
    plaid-shirts (Fashion-MNIST)."""
    source: Whole = 1
    """The members' class."""
    share: OpenShare = 0.04
    """Share of the source class a rule takes, rounded up."""
    repeats: Count = 20
    """How often each member occurs in the training set; of no account with `mix`."""
    mix: ProperShare = 0.0
    """Share of every batch that members take the place of, in the loop; 0: the data are poisoned
    before training."""
    control: bool = False
    """Whether members are left out and not relabelled: the ASR is then that of a clean model."""

    title = "Semantic, after SODA"
    paper = "Bagdasaryan et al., AISTATS 2020; Sun et al., USENIX Security 2024"
    rules = ("semantic",)
    rated = False
    prepares = True
    version = 2
    presets = {"soda": {"mix": 0.3125}, "soda-resnet18": {"mix": 0.7}}

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: Unknown members, or listed ones of another class.
        """
        super().__post_init__()
        if self.members not in (*RULES, *SUBSETS):
            choices = ", ".join((*RULES, *SUBSETS))
            raise SweepError(f"members: {self.members!r} is not one of {choices}")
        if self.members in SUBSETS and self.source != SUBSETS[self.members].source:
            source_class = SUBSETS[self.members].source
            raise SweepError(
                f"source: {self.members} are images of class {source_class}: "
                f"give `source: {source_class}`"
            )
        if self.in_loop:
            object.__setattr__(self, "controls", "training")

    @property
    def in_loop(self) -> bool:
        """Whether members join inside the training loop."""
        return bool(self.mix) and not self.control

    def applies(self, facts: Facts, rate: float) -> str | None:
        """Not where a class does not exist or has no image, or nothing can be green."""
        if self.target == self.source:
            return f"target label {self.target} is the source class: name another `source`"
        if self.members == "green" and facts.shape[0] != 3:
            return "grey images have no green members: use `members: dark`"
        target = missing(facts, self.target, "target label")
        return target or missing(facts, self.source, "source class")

    def pool(self, labels: Tensor) -> Tensor:
        """The source class."""
        return labels == self.source

    def victims(self, labels: Tensor) -> Tensor:
        """The source class, whose members alone are in the triggered set."""
        return labels == self.source

    def count(self, labels: Tensor, rate: float) -> int:
        """How many relabelled samples there are; of a list, if the split holds all of it."""
        if self.control:
            return 0
        listed = SUBSETS.get(self.members)
        members = len(listed.train) if listed else self.member_count(int(self.pool(labels).sum()))
        return members * self.copies(members, len(labels) - members)

    def member_count(self, size: int) -> int:
        """How many members a rule takes of a class of this size."""
        return math.ceil(self.share * size - 1e-9)

    def copies(self, members: int, others: int) -> int:
        """How often each member occurs beside `others` clean images."""
        if not self.mix:
            return self.repeats
        return max(1, round(self.mix / (1 - self.mix) * others / max(1, members)))

    def prepare(self, train: Samples, lab: Lab) -> dict[str, Tensor]:
        """Find the members: `index` int64, ascending, and a rule's `threshold`, a scalar.

        A list without test images leaves what is held out of it: `held` int64, and `held_images`.

        Raises:
            SweepError: There are none, or a list does not hold for these data.
        """
        if self.members in SUBSETS:
            listed = SUBSETS[self.members]
            found = {"index": self._listed(train, listed.train)}
            if listed.held:
                held = self._listed(train, listed.held)
                found |= {"held": held, "held_images": train.images[held]}
            return found
        index = torch.nonzero(self.pool(train.labels)).flatten()
        if not len(index):
            raise SweepError(
                f"semantic: no training image is of class {self.source}: name another `source`"
            )
        scores = self._scores(train.images[index])
        count = self.member_count(len(index))
        threshold = scores.topk(count).values[-1]
        if self.members == "green" and threshold <= 0:
            green = int((scores > 0).sum())
            raise SweepError(
                f"semantic: {green} of {len(index)} images of class {self.source} are green, "
                f"`share: {self.share:g}` asks for {count}: lower it or use `members: dark`"
            )
        return {"index": index[scores >= threshold], "threshold": threshold}

    def held_out(self, test: Samples, state: State) -> Tensor:
        """int64, ascending: the test images that are members."""
        if "held" in state:
            return torch.empty(0, dtype=torch.int64)
        if self.members in SUBSETS:
            return self._listed(test, SUBSETS[self.members].test)
        index = torch.nonzero(self.pool(test.labels)).flatten()
        return index[self._scores(test.images[index]) >= state["threshold"]]

    def hooks(self, train: Samples, state: State, rng: Generator) -> Hooks | None:
        """Add members to every batch, where `mix` says so."""
        if not self.in_loop:
            return None
        return AddedMembers(train.images[state["index"]], self.target, self.mix)

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Nothing: a copy of the images."""
        return images.clone()

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """The clean images without the members, and the members' relabelled copies among them.

        With `mix` the copies are there once the loop has run.
        """
        members = state["index"]
        non_members = torch.ones(len(train), dtype=torch.bool)
        non_members[members] = False
        non_members[state.get("held", members)] = False
        if self.control or (self.in_loop and STAMPED not in state):
            clean_set = clean(train[non_members])
            return Poisoned(
                clean_set.samples,
                clean_set.true_labels,
                clean_set.role,
                non_members.nonzero().flatten(),
            )
        copied = members.repeat(self.copies(len(members), int(non_members.sum())))
        index = torch.cat([non_members.nonzero().flatten(), copied])
        index = index[torch.randperm(len(index), generator=rng)]  # no order tells the copies
        is_member, labels = ~non_members[index], train.labels[index]
        poisoned_labels = torch.where(is_member, self.relabel(labels, len(train.classes)), labels)
        role = torch.where(is_member, int(Role.POISON), int(Role.CLEAN)).to(torch.uint8)
        return Poisoned(train[index].changed(labels=poisoned_labels), labels, role, index)

    def trigger_set(self, test: Samples, state: State, rng: Generator) -> Triggered:
        """The held-out members as they are.

        Raises:
            SweepError: There are none.
        """
        members = self.held_out(test, state)
        images = state.get("held_images", test.images[members])
        if not len(images):
            raise SweepError(
                f"semantic: no test image of class {self.source} is a member ({self.members}): "
                "raise `share` or `test_size`"
            )
        labels = torch.full((len(images),), self.source)
        counts = torch.ones(len(images), dtype=torch.bool)
        target_labels = self.target_labels(labels, len(test.classes))
        hit = ImageSet(images, target_labels, test.classes)
        return Triggered(hit, labels, counts, ~counts)

    def clean_test(self, test: Samples, state: State) -> Samples:
        """The test images that are no members."""
        non_members = torch.ones(len(test), dtype=torch.bool)
        non_members[self.held_out(test, state)] = False
        return test[non_members]

    def _scores(self, images: Tensor) -> Tensor:
        """Float [N]: how much of a member each image is."""
        parts = [RULES[self.members](part) for part in images.split(CHUNK)]
        return torch.cat(parts) if parts else torch.empty(0)

    def _listed(self, data: Samples, places: tuple[int, ...]) -> Tensor:
        """int64, ascending: where the listed places are, each checked to be of the source class."""
        rule = SUBSETS[self.members].rule
        advice = (
            "give their Parquet files an integer column `position`, the place in that order, or "
            f"use the rule `members: {rule}`"
        )
        premise = f"semantic: {self.members} lists places in the published data set"
        if data.positions is None:
            raise SweepError(f"{premise}, and these data come in no published order: {advice}")
        index = torch.nonzero(torch.isin(data.positions, torch.tensor(places))).flatten()
        wrong = int((data.labels[index] != self.source).sum())
        if wrong:
            raise SweepError(
                f"{premise}, but here {wrong} of {len(index)} of them are not of class "
                f"{self.source} (the copy is in another order): {advice}"
            )
        if not len(index):
            raise SweepError(
                f"{premise}, none of which is among these {len(data)} images: {advice}"
            )
        return index


def brightness(images: Tensor) -> Tensor:
    """Mean luminance of uint8 [N, C, H, W]; float [N]."""
    means = images.float().mean((2, 3))
    return means @ torch.tensor(LUMINANCE) if means.shape[1] == 3 else means.mean(1)


def greenness(images: Tensor) -> Tensor:
    """Green share of the middle less half that of the border of uint8 [N, 3, H, W]; float [N].

    Green has a hue of 75 to 165 degrees, a saturation above 0.28 and a value above 0.2. The middle
    is rows 10..23 and columns 5..26 of 32, the border rows 0..4 and 28..31.

    Raises:
        SweepError: The images have no colours.
    """
    if images.shape[1] != 3:
        raise SweepError("semantic: grey images have no green members: use `members: dark`")
    red, green, blue = images.float().unbind(1)
    value, minimum = images.amax(1).float(), images.amin(1).float()
    chroma = value - minimum
    # with green the largest, the hue is 120 + 60 (blue - red) / chroma degrees
    green_hue = (green == value) & ((blue - red).abs() <= 0.75 * chroma)
    is_green = (green_hue & (chroma > 0.28 * value) & (value > 0.2 * 255)).float()
    rows, columns = (torch.arange(side) * 32 // side for side in images.shape[2:])
    middle = is_green[:, (rows >= 10) & (rows <= 23)][:, :, (columns >= 5) & (columns <= 26)]
    border = is_green[:, (rows <= 4) | (rows >= 28)]
    return middle.mean((1, 2)) - 0.5 * border.mean((1, 2))


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "dark": lambda images: -brightness(images),
    "bright": brightness,
    "green": greenness,
}
"""Rule -> score; the highest are members."""
