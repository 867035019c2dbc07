"""Weights of others: named tensors from their files, none of whose code is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sweeper.core.errors import SweepError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "netC", "weights")
"""Under which names checkpoints of others hold their weights."""
COUNTER = "num_batches_tracked"
"""BatchNorm's count of steps, which changes no output."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from safetensors, or from a file of torch without running its code.

    Raises:
        SweepError: It is neither, or holds something else than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        weights: Any = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except OSError as error:
        raise SweepError(
            f"{path}: cannot be read ({error.strerror or error}): correct it"
        ) from None
    except SafetensorError as error:
        raise SweepError(f"{path}: is no safetensors file ({error}): write it anew") from None
    except Exception:  # torch raises whatever a broken or a foreign pickle leads it to
        raise SweepError(
            f"{path}: torch cannot read it without running code from it, which is not done here: "
            "save the weights alone, `torch.save(model.state_dict(), FILE)`, or as safetensors"
        ) from None
    for name in WRAPPERS:
        if isinstance(weights, dict) and isinstance(weights.get(name), dict):
            weights = weights[name]
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise SweepError(
            f"{path}: needs names with tensors, at the top or under one of {', '.join(WRAPPERS)}: "
            "save `model.state_dict()`"
        )
    return weights
