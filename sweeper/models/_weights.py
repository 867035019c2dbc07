"""Starts a network from weights that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sweeper.core.errors import SweepError
from sweeper.core.weights import COUNTER, read_weights
from sweeper.models.base import Net


def start(net: Net, path: str, what: str) -> None:
    """Load a file's weights into the trunk, and into the head where it has as many classes.

    Tensors are paired by name, or, where the file has other names, in the order the two networks
    hold them; what is left is the file's head.

    Args:
        net: Freshly initialised; its head stays so where the file's has another shape.
        path: safetensors, or a file of torch that holds tensors alone.
        what: The architecture, for the error.

    Raises:
        SweepError: The file cannot be read, or is of another architecture.
    """
    file = Path(path).expanduser()
    theirs = {
        name.removeprefix("module.").removeprefix("trunk."): value
        for name, value in read_weights(file).items()
        if not name.endswith(COUNTER) and not name.startswith("normalise.")
    }
    ours = _counted(net.trunk.state_dict())
    named = set(ours) <= set(theirs)
    chosen = list(ours) if named else list(theirs)[: len(ours)]
    for our, their in zip(ours, chosen, strict=False):
        value = theirs[their]
        kinds = our.rpartition(".")[2], their.rpartition(".")[2]
        if kinds[0] != kinds[1] or ours[our].shape != value.shape:
            raise SweepError(
                f"weights: {file}: {their} is {list(value.shape)}, {our} of {what} "
                f"{list(ours[our].shape)}: name the file's architecture, with stem: imagenet where "
                "it was trained on large images; torch's file keeps the order that foreign names "
                "need, safetensors does not"
            )
    head = {name: value for name, value in theirs.items() if name not in chosen}
    if len(chosen) < len(ours) or any(value.ndim > 2 for value in head.values()):
        raise SweepError(
            f"weights: {file}: holds {len(theirs)} tensors, {what} has {len(ours)} before its "
            "head: name the file's architecture"
        )
    state = {our: theirs[their] for our, their in zip(ours, chosen, strict=True)}
    net.trunk.load_state_dict({**net.trunk.state_dict(), **state})
    _head(net, head)


def _head(net: Net, head: Mapping[str, Tensor]) -> None:
    """Load the file's head where each of ours has one of its kind and shape."""
    given = {name.rpartition(".")[2]: value for name, value in head.items()}
    ours = net.classifier.state_dict()
    if len(given) == len(head) and {k: v.shape for k, v in given.items()} == {
        k: v.shape for k, v in ours.items()
    }:
        net.classifier.load_state_dict(given)


def _counted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that change an output."""
    return {name: value for name, value in state.items() if not name.endswith(COUNTER)}
