"""What can be said of a network without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sweeper.models.base import Family


class _Undrawn(torch.overrides.TorchFunctionMode):
    """Leaves weights undrawn: the first draw on the meta device imports a compiler (1.8 s)."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def has_batchnorm(family: Family, classes: int, shape: tuple[int, ...]) -> bool:
    """See `models.has_batchnorm`."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        for module in _trunk(family, classes, shape).modules()
    )


def least_batch(family: Family, classes: int, shape: tuple[int, ...]) -> int:
    """See `models.least_batch`."""
    if not has_batchnorm(family, classes, shape):
        return 1
    try:
        _trunk(family, classes, shape).train()(torch.empty(1, *shape, device="meta"))
    except Exception as error:  # a network of which nothing can be asked so takes any batch
        return 2 if "more than 1 value per channel" in str(error) else 1
    return 1


def _trunk(family: Family, classes: int, shape: tuple[int, ...]) -> nn.Module:
    with torch.device("meta"), _Undrawn():
        return family.build(classes, shape)[0]
