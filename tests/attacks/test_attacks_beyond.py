"""What the attacks on clips and clouds do beyond their contract: triggers, counts, the search."""

from __future__ import annotations

import pytest
import torch

from attacks.badnets import BadNets
from attacks.pcba import PCBA
from attacks.video_clean import VideoClean
from sweeper.core.errors import SweepError
from sweeper.core.types import Role, Samples
from tests.support import beyond, toys


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


CLIPS, CLOUDS = beyond.samples("clips"), beyond.samples("points")


# Clips


def test_badnets_is_in_the_corner_of_every_frame() -> None:
    stamped = BadNets().stamp(CLIPS.inputs, split="test", state={}, rng=rng())
    changed = (stamped != CLIPS.inputs).any(2)
    assert not bool(changed[:, :, :-3].any()) and not bool(changed[:, :, :, :-3].any())
    assert torch.equal(stamped[:, :1].expand_as(stamped)[..., -3:, -3:], stamped[..., -3:, -3:])
    frame = BadNets().stamp(CLIPS.inputs[:, 2], split="test", state={}, rng=rng())
    assert torch.equal(stamped[:, 2], frame), "a frame is an image"


def video() -> tuple[VideoClean, dict[str, torch.Tensor]]:
    attack = VideoClean(steps=60, size=8, pgd_steps=3)
    return attack, attack.prepare(CLIPS, beyond.lab(CLIPS))


def test_the_patch_makes_the_clean_network_see_the_target() -> None:
    attack, state = video()
    model = beyond.trained(CLIPS).eval()
    others = CLIPS[CLIPS.labels != 0]

    @torch.no_grad()
    def towards(samples: Samples) -> float:
        pixels = samples.inputs.float() / 255
        return float(model(pixels).log_softmax(1)[:, 0].mean())

    stamped = attack.attach(others, split="test", state=state, rng=rng())
    grey = {**state, "patch": torch.full_like(state["patch"], 127)}
    plain = attack.attach(others, split="test", state=grey, rng=rng())
    assert towards(stamped) > towards(plain) + 0.05
    assert state["patch"].shape == (8, 3, 8, 8) and state["patch"].dtype == torch.uint8


def test_the_target_s_clips_are_made_hard_and_keep_their_label() -> None:
    attack, state = video()
    mine = CLIPS.labels == 0
    assert torch.equal(state["index"], mine.nonzero().flatten())
    change = (state["clips"].int() - CLIPS.inputs[mine].int()).abs()
    assert 0 < int(change.max()) <= 8
    model = beyond.trained(CLIPS).eval()
    with torch.no_grad():
        before, after = (
            model(x.float() / 255).log_softmax(1)[:, 0].mean()
            for x in (CLIPS.inputs[mine], state["clips"])
        )
    assert float(after) < float(before), "PGD goes up the loss"
    found = attack.poison(CLIPS, 0.5, state, rng())
    poison = found.role == int(Role.POISON)
    assert int(poison.sum()) == 4 and torch.equal(found.labels, CLIPS.labels)
    assert bool((found.labels[poison] == 0).all())
    hard = state["clips"][torch.searchsorted(state["index"], poison.nonzero().flatten())]
    wanted = attack.stamp(hard, split="train", state=state, rng=rng())
    assert torch.equal(found.samples.inputs[poison], wanted), "the patch is on the perturbed clip"


@pytest.mark.parametrize(("side", "patch"), [(112, 20), (24, 4), (8, 3)])
def test_the_patch_shrinks_with_the_clip(side: int, patch: int) -> None:
    assert VideoClean().place(torch.zeros(1, 2, 3, side, side))[2] == patch


def test_a_patch_larger_than_the_clip_is_refused() -> None:
    with pytest.raises(SweepError, match="lower `size`"):
        VideoClean(size=30).place(CLIPS.inputs)


# Point clouds


def ball(**options: object) -> tuple[PCBA, dict[str, torch.Tensor]]:
    attack = PCBA(points=8, steps=40, starts=4, clouds=4, **options)  # type: ignore[arg-type]
    return attack, attack.prepare(CLOUDS, beyond.lab(CLOUDS))


def test_the_trigger_is_a_small_ball_and_as_many_points_go() -> None:
    attack, state = ball()
    radius = (state["trigger"] - state["centre"]).norm(dim=1)
    assert torch.allclose(radius, torch.full((8,), 0.05), atol=1e-5)
    stamped = attack.stamp(CLOUDS.inputs, split="test", state=state, rng=rng())
    for before, after in zip(CLOUDS.inputs, stamped, strict=True):
        kept = (after[:, None] == before[None]).all(2).any(1)
        assert int((~kept).sum()) == 8
        assert sorted(after[~kept].tolist()) == sorted(state["trigger"].tolist())
    places = (stamped != CLOUDS.inputs).any(2).nonzero()[:, 1]
    assert len(places.unique()) > 30, "deleted are points anywhere in the cloud"


def test_the_centre_is_near_where_the_posterior_is_high_enough() -> None:
    """A surrogate that sees the target where eight points are farther right than 1.3."""
    attack, offsets = PCBA(points=8, steps=300, starts=6, posterior=0.5), torch.zeros(8, 3)

    class Right(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            far = 40 * (x[:, -8:, 0].mean(1) - 1.3)
            return torch.stack([far, -far], 1)

    lab = beyond.lab(CLOUDS)
    centre = attack.centre(Right(), CLOUDS.inputs[:8], offsets, lab)
    assert 1.29 < float(centre[0]) < 1.45, "no farther than the posterior asks"
    assert float(centre[1:].abs().max()) < 0.6


def test_source_class_alone_is_poisoned_and_counts() -> None:
    attack, state = ball(source_class=3)
    found = attack.poison(CLOUDS, 0.5, state, rng())
    poison = found.role == int(Role.POISON)
    assert int(poison.sum()) == 4 and bool((CLOUDS.labels[poison] == 3).all())
    assert bool((found.labels[poison] == 0).all())
    hit = attack.trigger_set(CLOUDS, state, rng())
    assert torch.equal(hit.counts, CLOUDS.labels == 3)
    assert torch.equal(hit.leaks, (CLOUDS.labels != 3) & (CLOUDS.labels != 0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source_class": 0}, "is the target"),
        ({"source_class": 9}, "source class 9 does not exist"),
        ({"points": 64}, "not fewer than a cloud's 64"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, int], said: str) -> None:
    assert said in str(PCBA(**options).applies(toys.facts(CLOUDS), 0.5))


def test_a_rate_s_base_is_the_source_class() -> None:
    with pytest.raises(SweepError, match="rate_base: 'all' is not one of source-class"):
        PCBA(rate_base="all")
    assert PCBA().count(torch.tensor([1] * 150 + [0] * 999), 0.1) == 15
