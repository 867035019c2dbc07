"""FT-SAM: six updates, the schedule stepped at every one of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from defenses.ft_sam import FTSAM, Sharpness
from tests.reference.golden import load
from tests.support import toys


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def running(model: nn.Module) -> Tensor:
    named = model.named_buffers()
    return torch.cat([value.flatten() for name, value in named if ".running_" in name])


def test_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("defenses/ft_sam")
    model, meta = z.net(), z.meta
    begun, losses, moved, statistics = flat(model), [], [], []
    rates: list[float] = []
    own = Sharpness.step

    def step(
        self: Sharpness,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], Tensor],
    ) -> Tensor:
        value = own(self, net, optimizer, loss)
        losses.append(value.item())
        moved.append(flat(net) - begun)
        statistics.append(running(net))
        rates.append(optimizer.param_groups[0]["lr"])
        return value

    monkeypatch.setattr(Sharpness, "step", step)
    whole = z["batches"].flatten(1).long()
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: next(orders))
    orders = iter([torch.arange(48), *whole])  # the first only counts the steps
    given = {**FTSAM.presets["backdoorbench"], "epochs": meta["epochs"], "batch": meta["batch"]}
    FTSAM(**given).defend(toys.case(FTSAM.sees, clean=z.data(), model=model))
    share = meta["label_smoothing"]
    entropy = -(1 - share) * math.log(1 - share) - share * math.log(share / 9)
    z.agree("learning rates", rates, "lr", within=1e-9)
    z.agree(
        "losses, less the entropy of the label", [v - entropy for v in losses], "loss", within=1e-5
    )
    z.agree("running statistics after an update", statistics[0], "running_after_1", within=1e-6)
    for at, wanted in zip(meta["displacement_steps"], z["displacement"], strict=True):
        what = {1: "displacement after 1 update", 2: "after 2 updates", 6: "after 6 updates"}[at]
        z.agree(what, moved[at - 1], wanted, within=5e-5, relative=True)
