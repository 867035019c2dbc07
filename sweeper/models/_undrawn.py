"""What can be said of a network without its weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from sweeper.models.base import Family


class _Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: the first draw on the meta device imports a compiler (1.8 s)."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


@functools.lru_cache(maxsize=256)
def has_batchnorm(family: Family, classes: int, shape: tuple[int, ...]) -> bool:
    """See `models.has_batchnorm`."""
    with torch.device("meta"), _Undrawn():
        trunk, _ = family.build(classes, shape)
    return any(isinstance(module, _BatchNorm) for module in trunk.modules())
