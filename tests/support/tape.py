"""A stand-in for CUDA graphs on any device: operations are recorded and done again.

Like a CUDA graph it does nothing while it records, keeps the tensors, not what they held, and
refuses what the CPU would have to wait for. A number that Python took from somewhere stays what it
was when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WRITTEN = {torch.ops.aten.native_batch_norm.default: ("running_mean", "running_var")}
"""What an operation changes without its schema saying so."""
READ = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Tape(TorchDispatchMode):
    """Implements `graphed.Recorder`."""

    made: list[Tape] = []
    """All of them, for a test to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.warmed = self.replayed = 0
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._mine: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        Tape.made.append(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in READ:
            raise RuntimeError("operation not permitted when stream is capturing")
        for place, about in enumerate(func._schema.arguments):
            said = about.alias_info is not None and about.alias_info.is_write
            if said or about.name in WRITTEN.get(func, ()):
                given = args[place] if place < len(args) else kwargs.get(about.name)
                for value in tensors(given):
                    self._keep(value)
        found = func(*args, **kwargs)
        known = {value.untyped_storage().data_ptr() for value in tensors([args, kwargs])}
        fresh = [v for v in tensors(found) if v.untyped_storage().data_ptr() not in known]
        self._mine |= {value.untyped_storage().data_ptr() for value in fresh}
        self.calls.append((func, args, kwargs, found))
        return found

    def _keep(self, value: Tensor) -> None:
        """Keep what a tensor held before the recording changed it."""
        place = value.untyped_storage().data_ptr()
        if place not in self._mine and id(value) not in self._before:
            self._before[id(value)] = value, value.detach().clone()

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        self.warmed += 1
        return work()

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        with self:
            found = work()
        with torch.no_grad():
            for value, before in self._before.values():
                value.detach().copy_(before)
        return found

    def replay(self) -> None:
        self.replayed += 1
        with torch.no_grad():
            for func, args, kwargs, found in self.calls:
                known = {value.untyped_storage().data_ptr() for value in tensors([args, kwargs])}
                for old, new in zip(tensors(found), tensors(func(*args, **kwargs)), strict=True):
                    if old.untyped_storage().data_ptr() not in known:
                        old.copy_(new)
