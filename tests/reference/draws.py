"""What a test gives to our code in place of its own random draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor


@contextmanager
def given(name: str, *draws: Tensor) -> Iterator[None]:
    """`torch.NAME` returns these tensors, one after the other; all must be asked for."""
    left = list(draws)

    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        return left.pop(0).clone()

    with mock.patch.object(torch, name, drawn):
        yield
    assert not left, f"{len(left)} draws of torch.{name} were not asked for"


@contextmanager
def evenly(count: int) -> Iterator[None]:
    """`torch.rand` returns `count` single numbers, spread evenly over [0, 1)."""
    at = iter(range(count))

    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        return torch.tensor((next(at) + 0.5) / count)

    with mock.patch.object(torch, "rand", drawn):
        yield
