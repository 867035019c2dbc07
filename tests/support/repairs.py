"""What tests of repairs share: a case, networks, draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from defenses.base import Case
from sweeper.core import seeds
from sweeper.core.types import Outcome
from sweeper.models.base import Net
from tests.support import toys

SEES = frozenset({"model", "clean"})


def case(**given: Any) -> Case:
    return toys.case(SEES, **given)


def rng(*name: Any) -> torch.Generator:
    return seeds.generator("repair baselines", *name)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng(*shape))


def fresh(model: str, **options: Any) -> Net:
    return toys.network(rng(model), model=model, **options).eval()


def pixels(count: int) -> Tensor:
    return toys.image_set(count, seed=9).images.float().div(255)


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_buffers()}


def draws(*shape: int, name: str = "draws", of: str = "unlearning") -> Tensor:
    return torch.randn(*shape, generator=seeds.generator(of, name))


def repaired(outcome: Outcome) -> Net:
    assert isinstance(outcome.model, Net)
    return outcome.model


def rates(model: nn.Module) -> tuple[float, float]:
    """ACC and ASR on toy test images."""
    return toys.oracle()(model)
