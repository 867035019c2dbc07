"""How many images each attack poisons, and how many it stamps and leaves their label."""

from __future__ import annotations

import itertools
from dataclasses import replace
from unittest import mock

import torch
from torch import Generator, Tensor

from attacks.base import Attack
from attacks.parts.covers import CoverAttack
from attacks.parts.loop import LoopAttack, LoopHooks
from sweeper.core import catalog
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, Role
from sweeper.engine import training
from tests.reference.draws import evenly
from tests.reference.golden import Golden, load

RELEASES = {"wanet": "released", "input-aware": "iab-release", "bpp": "bpp"}
"""Our preset of a row that is the release itself."""


def attack_of(z: Golden, row: int, names: str = "") -> Attack:
    name, preset = (str(z.arrays[f"{names}{of}"][row]) for of in ("attack", "preset"))
    if preset == "default":
        preset = RELEASES[name]
    made: Attack = catalog.make("attack", name, {"preset": preset})
    return made


def exported(attack: LoopAttack, labels: Tensor, rate: float) -> tuple[int, int]:
    """Poisoned and other stamped images of the set that an epoch of the loop amounts to."""
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    train = ImageSet(images, labels, tuple("0123456789"))
    rng = Generator().manual_seed(0)
    hooks = LoopHooks(replace(attack, poison_rate=rate), train, {}, rng)
    batches = training.order(len(labels), 128, rng)
    try:
        with evenly(len(batches)):
            for index in batches:
                hooks.parts(labels[index])
    except SweepError as error:
        assert "poisons no image" in str(error)
        return 0, hooks.stamped[1]
    with mock.patch.object(type(attack), "stamp", lambda self, images, **kwargs: images):
        found = attack.poison(train, rate, hooks.learned(), rng)
    poisoned = int((found.role == int(Role.POISON)).sum())
    return poisoned, int((found.role == int(attack.extra_role)).sum())


def test_counts() -> None:
    z = load("attacks/counts")
    labels = [torch.repeat_interleave(torch.arange(10), counts) for counts in z["class_counts"]]
    theirs, exact, expected = z["count"], z["exact"], z["of_target"]
    ours, of_target = torch.zeros_like(theirs), torch.zeros_like(theirs)
    for row, split, column in itertools.product(*map(range, theirs.shape)):
        attack, rate, some = attack_of(z, row), float(z["rates"][column]), labels[split]
        if isinstance(attack, LoopAttack):
            ours[row, split, column] = exported(attack, some, rate)[0]
        else:
            ours[row, split, column] = attack.count(some, rate)
        share = (some[attack.pool(some)] == 0).double().mean()
        of_target[row, split, column] = ours[row, split, column] * share
    stops = theirs < 0
    sure = exact[:, None, None] & ~stops
    z.agree("poisoned images", ours[sure], theirs[sure])
    drawn = ~exact[:, None, None] & ~stops
    z.agree("poisoned images, beside an expectation", ours[drawn], theirs[drawn], within=1)
    z.deviates(
        "poisoned images where the reference stops",
        ours[stops],
        theirs[stops],
        by=1,
        why="SIG of BackdoorBench stops where the class holds fewer images than asked for, ours "
        "takes the whole class.",
    )
    one = expected >= 0
    what = "target images among them, our expectation beside one draw"
    z.agree(what, of_target[one], expected[one], within=7)


def test_covers_crossed_and_negatives() -> None:
    z = load("attacks/counts")
    labels = torch.arange(10).repeat_interleave(z["class_counts"][0])
    ours, theirs = torch.zeros_like(z["extra"]), z["extra"]
    for row, column in itertools.product(*map(range, ours.shape)):
        attack, rate = attack_of(z, row, "extra_"), float(z["rates"][column])
        if isinstance(attack, CoverAttack):
            ours[row, column] = attack.cover_count(labels, rate)
        else:
            assert isinstance(attack, LoopAttack)
            ours[row, column] = exported(attack, labels, rate)[1]
    refused = (ours == 0) & (theirs > 0)
    assert refused.nonzero().tolist() == [[1, 3]], "Input-aware's release at the lowest rate"
    z.deviates(
        "crossed images where no batch has a poisoned one",
        ours[refused],
        theirs[refused],
        by=1,
        why="At a rate below one image a batch Input-aware's release trains without a poisoned "
        "image, ours refuses.",
    )
    drawn = (theirs != theirs.round()) & ~refused
    sure = ~drawn & ~refused
    z.agree("covers, crossed and negative images", ours[sure], theirs[sure])
    z.agree("crossed images, beside an expectation", ours[drawn], theirs[drawn], within=1)
