"""Starts a network from weights that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sweeper.core.errors import SweepError
from sweeper.core.namings import fitted, refuse
from sweeper.core.weights import read_weights
from sweeper.models.base import Net

ADVICE = "name the file's architecture, with stem: imagenet where it was trained on large images"


def start(net: Net, path: str, what: str) -> None:
    """Load a file's weights into the trunk, and into the head where it has as many classes.

    Args:
        net: Freshly initialised; its head stays so where the file's has another shape.
        path: safetensors, or a file of torch.
        what: The architecture, for the error.

    Raises:
        SweepError: The file cannot be read, or is of another architecture.
    """
    file = Path(path).expanduser()
    theirs = {n: v for n, v in read_weights(file).items() if "normalise" not in n.split(".")}
    try:
        trunk, left = fitted(net.trunk.state_dict(), theirs, what, ADVICE)
        if not _head(net, left):
            refuse({n: v for n, v in left.items() if v.ndim > 2}, what, ADVICE)
    except SweepError as error:
        raise SweepError(f"weights: {file}: {error}") from None
    net.trunk.load_state_dict(trunk)


def _head(net: Net, left: Mapping[str, Tensor]) -> bool:
    """Load what is left of a file into the head where it is one of the same shape."""
    try:
        state, rest = fitted(net.classifier.state_dict(), left, "", "")
    except SweepError:
        return False
    if not rest:
        net.classifier.load_state_dict(state)
    return not rest
