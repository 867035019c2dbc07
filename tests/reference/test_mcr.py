"""MCR: the curve, its training and the statistics of its points, as the release computes them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn import BatchNorm2d

from defenses.base import Case
from defenses.mcr_pair import MCRPair
from defenses.parts.curve import SHAPES, Curve
from sweeper.engine.recipes import Recipe
from tests.reference.golden import load
from tests.support import toys

SEEDS = {"times": "seed_times", "curve": "seed_batches"}
POINTS = (0.1, 0.5, 0.9)


class Drawn(Case):
    """A case whose draws come from the file's seeds."""

    def rng(self, name: str) -> Generator:
        return Generator().manual_seed(load("defenses/mcr").meta[SEEDS[name]])


@dataclass
class Seen:
    """What the steps of the training were given and gave."""

    times: list[float] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    bends: list[Tensor] = field(default_factory=list)
    """The middle bend before each step and after the last."""


@functools.cache
def learned() -> tuple[Curve, Seen]:
    """The curve as our training leaves it, and what was seen of that."""
    z, seen, own = load("defenses/mcr"), Seen(), Curve.loss

    def watched(self: Curve, t: float, images: Tensor, labels: Tensor, l2: float = 0.0) -> Tensor:
        loss = own(self, t, images, labels, l2)
        seen.times.append(t)
        seen.images.append(images)
        seen.losses.append(loss.item())
        seen.bends.append(self.inner.detach()[0].clone())
        return loss

    case = Drawn(
        sees=frozenset({"clean"}),
        key="golden",
        device=toys.CPU,
        recipe=Recipe(precision="fp32"),
        given={"clean": z.data()},
        build=toys.network,
    )
    given = {name: z.meta[name] for name in ("steps", "batch", "lr", "l2", "bends", "shape")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Curve, "loss", watched)
        curve = MCRPair(t=0.5, **given).connect(case, z.net("first"), z.net("last"), z.data())
    seen.bends.append(curve.inner.detach()[0].clone())
    return curve, seen


def test_coefficients() -> None:
    z = load("defenses/mcr")
    for shape, what in (("bezier", "Bezier's coefficients"), ("polychain", "chain's coefficients")):
        ours = [SHAPES[shape](t, bends) for bends in (3, 4, 5) for t in z.arrays["t_grid"].tolist()]
        theirs = [z.arrays[f"coefficients_{shape}_{bends}"] for bends in (3, 4, 5)]
        z.agree(what, np.concatenate(ours), np.concatenate(theirs, axis=None), within=3e-7)


def test_training() -> None:
    z, (_, seen) = load("defenses/mcr"), learned()
    z.agree("t of 20 steps", seen.times, "times")
    images = (255 * torch.stack(seen.images)).round().to(torch.uint8)
    z.agree("images of 20 steps", images, z["images"][z["batches"].long()])
    z.agree("loss of 20 steps", seen.losses, "loss", within=1e-5)
    every = z.meta["every"]
    bends = torch.stack([seen.bends[step][::every] for step in z["theta_steps"].tolist()])
    z.agree("middle bend after 1 to 20 steps", bends, "theta", within=1e-5)
    norms = [float(bend.double().norm()) for bend in seen.bends[1:]]
    z.agree("its norm", norms, "theta_norm", within=1e-5)


def test_points() -> None:
    z, (curve, _) = load("defenses/mcr"), learned()
    found: dict[str, list[Tensor]] = {}
    for t in POINTS:
        model = curve.at(t, z["images"])
        norms = [module for module in model.modules() if isinstance(module, BatchNorm2d)]
        with torch.no_grad():
            logits = model(z["images"][:16].float().div(255))
        ours = {
            "logits": logits,
            "running_mean": torch.cat([norm.get_buffer("running_mean") for norm in norms]),
            "running_var": torch.cat([norm.get_buffer("running_var") for norm in norms]),
            "weights": curve.weights(t).detach()[:: z.meta["every"]],
            "weights_norm": curve.weights(t).detach().double().norm(),
        }
        for name, value in ours.items():
            found.setdefault(name, []).append(value)

    def both(name: str) -> tuple[Tensor, Tensor]:
        return torch.stack(found[name]), torch.stack([z[f"{name}_{t}"] for t in POINTS])

    z.agree("weights of three points", *both("weights"), within=1e-5)
    z.agree("norm of three points", *both("weights_norm"), within=1e-5)
    z.agree("running means of three points", *both("running_mean"), within=3e-5)
    z.agree("running variances of three points", *both("running_var"), within=3e-5)
    z.agree("logits of three points", *both("logits"), within=1e-4)


def test_straight_line() -> None:
    z = load("defenses/mcr")
    line = Curve(z.net("first"), z.net("last"), bends=4)
    norms = [float(line.weights(t).detach().double().norm()) for t in z.arrays["t_grid"].tolist()]
    z.agree("norm of a curve of four bends before training", norms, "line_norm_bends4", within=1e-5)
