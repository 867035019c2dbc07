"""FIP: the Fisher diagonal, the trace and the run of the release."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytest
import torch
from torch import Generator, Tensor, nn

from defenses.base import Case
from defenses.fip import FIP, _Penalty, squared_batch_means
from sweeper.engine import curvature
from sweeper.engine.task import Batch
from tests.reference.golden import Golden, load
from tests.support import toys
from tests.support.toys import CPU


class Seeded(Case):
    """A case whose vectors are drawn from the seed of the reference."""

    def rng(self, name: str) -> Generator:
        return Generator().manual_seed(3)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([value.detach().flatten() for value in tensors])


def moved(model: nn.Module, step: Tensor) -> nn.Module:
    """The model with a flat step added to its weights."""
    weights = list(model.parameters())
    with torch.no_grad():
        for weight, part in zip(weights, step.split([w.numel() for w in weights]), strict=True):
            weight += part.view_as(weight)
    return model


def test_fisher() -> None:
    z = load("defenses/fip")
    model, data = z.net(), z.data()
    fisher = squared_batch_means(model, data, CPU)
    ours = torch.cat([fisher[name].flatten() for name, _ in model.named_parameters()])
    z.agree("F of one batch", ours, "fisher", within=1e-5, relative=True)
    ours = flat(squared_batch_means(model, data, CPU, batch=50).values())
    z.agree("F of two batches", ours, "fisher_batches_of_50", within=1e-5, relative=True)


def test_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("defenses/fip")
    model, data = z.net().train(), z.data()
    weights, index = list(model.parameters()), z["trace_index"].long()
    sizes = [weight.numel() for weight in weights]
    vectors = iter([part for vector in z["v"] for part in vector.split(sizes)])
    monkeypatch.setattr(torch, "randn", lambda shape, **_: next(vectors).view(shape))
    logits = model(data.images[index].float() / 255)
    ours = curvature.as_released(logits, data.labels[index], weights, Generator(), z.meta["draws"])
    slope = flat(torch.autograd.grad(ours, weights))
    z.agree("trace", ours, "trace", within=1e-5)
    z.agree("gradient of the trace", slope, "trace_gradient", within=1e-5, relative=True)


def test_retention() -> None:
    z = load("defenses/fip")
    model, data, eta = z.net(), z.data(), z.meta["eta_r"]
    own = toys.case(FIP.sees, clean=data, model=model)
    penalty = _Penalty(FIP(eta_f=0.0, eta_r=eta, fisher="batches"), own, model, data)
    moved(model, z["step"].float())
    term = eta / 2 * penalty.distance()
    slope = flat(torch.autograd.grad(term, list(model.parameters())))
    z.agree("retention term", term, "retention", within=1e-5, relative=True)
    z.agree("its gradient", slope, "retention_gradient", within=1e-5, relative=True)


def run(z: Golden, patch: pytest.MonkeyPatch, eta_f: float) -> tuple[list[float], list[Tensor]]:
    """The losses of ten steps of `preset: released`, and the weights' way after each of them."""
    losses, weights, own, begun = [], [], _Penalty.loss, z.net()

    def loss(self: _Penalty, batch: Batch) -> Tensor:
        value = own(self, batch)
        losses.append(value.item())
        weights.append(flat(self.model.parameters()))
        return value

    batches = iter(z["batches"].long())
    patch.setattr(_Penalty, "loss", loss)
    patch.setattr(torch, "randint", lambda *_, **__: next(batches))
    options = {**FIP.presets["released"], "steps": 10, "batch": 32, "eta_f": eta_f}
    case = toys.case(FIP.sees, clean=z.data(), model=copy.deepcopy(begun), kind=Seeded)
    found = FIP(**options).defend(case).model
    assert found is not None
    weights.append(flat(found.parameters()))
    statistics = flat(value for name, value in found.named_buffers() if ".running_" in name)
    return losses, [w - weights[0] for w in weights[1:]] + [statistics]


def test_ten_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("defenses/fip")
    losses, (*ways, statistics) = run(z, monkeypatch, z.meta["eta_f"])
    z.agree("losses of ten steps", losses, "loss", within=1e-5, relative=True)
    lengths = [way.norm().item() for way in ways]
    z.agree("lengths of ten", lengths, "displacement_norm", within=1e-5, relative=True)
    after = torch.stack([ways[k - 1] for k in z["displacement_steps"].tolist()])
    for name, one, wanted in zip(AFTER, after, z["displacement"], strict=True):
        z.agree(name, one, wanted, within=1e-5, relative=True)
    z.agree("running statistics after ten", statistics, "running", within=1e-5)


AFTER = ("displacement after 1 step", "displacement after 5 steps", "displacement after 10 steps")


def test_ten_steps_without_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    z = load("defenses/fip")
    losses, (*ways, _) = run(z, monkeypatch, 0.0)
    z.agree("losses without the trace", losses, "loss_plain", within=1e-5, relative=True)
    z.agree(
        "lengths without the trace",
        [way.norm().item() for way in ways],
        "displacement_plain_norm",
        within=1e-5,
        relative=True,
    )
