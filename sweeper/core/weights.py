"""Weights of others: named tensors from their files, none of whose code is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from sweeper.core.errors import SweepError, unreadable

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "netC", "weights")
"""Under which names checkpoints of others hold their weights."""
_NUMERIC = re.compile(r"[biufc]\d{1,2}|[SU]\d+")


def read_file(path: Path) -> Any:
    """Read safetensors, or what a file of torch holds; arrays and scalars of numpy become `Array`.

    Raises:
        SweepError: It is neither, or more than tensors and plain values is in it.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # here: it asks for torch at once

            return dict(load_file(path))
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except OSError as error:
        raise SweepError(
            f"{path}: cannot be read ({error.strerror or error}): correct it"
        ) from None
    except SafetensorError as error:
        raise unreadable(path, "is no safetensors file", error, remedy="write it anew") from None
    except Exception as error:  # torch raises whatever a broken or a foreign pickle leads it to
        what = "torch cannot read it without running code from it, which is not done here"
        remedy = "save the weights alone, `torch.save(model.state_dict(), FILE)`, or as safetensors"
        raise unreadable(path, what, type(error).__name__, remedy=remedy) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from safetensors, or from a file of torch without running its code.

    Raises:
        SweepError: It is neither, or holds no names with tensors.
    """
    weights = read_file(path)
    for name in WRAPPERS:
        if isinstance(weights, dict) and isinstance(weights.get(name), dict):
            weights = weights[name]
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise SweepError(
            f"{path}: needs names with tensors, at the top or under one of {', '.join(WRAPPERS)}: "
            "save `model.state_dict()`"
        )
    return weights


class Array:
    """What a pickle says of an array of numpy.

    numpy's own classes believe what a pickle tells them of memory, so they are not given any.
    """

    value: np.ndarray[Any, Any]
    """The array, of numbers or characters."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take version, shape, type, whether columns come first, and bytes."""
        _, shape, kind, columns, content = state
        flat = np.frombuffer(content, kind.read())
        self.value = flat.reshape(shape, order="F" if columns else "C").copy()


class _Type:
    """What a pickle says of a type of numpy: its code, then its order of bytes."""

    def __init__(self, code: str, *_: bool) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def read(self) -> np.dtype[Any]:
        """The type; ValueError where it is none of numbers or characters."""
        if not _NUMERIC.fullmatch(self.code) or self.order not in ("=", "<", ">", "|"):
            raise ValueError(f"not a type of numbers: {self.code}")
        return np.dtype(self.order + self.code)


def _scalar(kind: _Type, content: bytes) -> Any:
    return np.frombuffer(content, kind.read())[0].item()


def _array(*_: object) -> Array:
    return Array()


def _empty() -> bytes:
    return b""


_NUMPY: list[Any] = [
    (_Type, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    (_empty, "builtins.bytes"),  # of an array of no entries
] + [
    (stand_in, f"numpy.{core}.multiarray.{name}")
    for core in ("core", "_core")
    for stand_in, name in ((_scalar, "scalar"), (_array, "_reconstruct"))
]
"""What torch calls in place of the functions of numpy, 1 and 2, that a pickle names."""
