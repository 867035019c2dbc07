"""The contract of a model family, and the one shape every built network has."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from sweeper.core.errors import SweepError

Shape = tuple[int, ...]
"""Of what a network is shown of one sample; an image's is (C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """A family of architectures; its fields are its options. One file, one subclass."""

    name: str = field(metadata={"axis": True})
    """Which member of the family, one of `names`."""
    weights: str = field(default="", metadata={"path": True})
    """File of weights every new model starts from, such as torchvision's; default: drawn."""

    names: ClassVar[tuple[str, ...]]
    """The architectures this file provides."""
    tasks: ClassVar[frozenset[str]] = frozenset({"image"})
    """The tasks whose samples they take: files of `sweeper/tasks/`."""
    usual: ClassVar[Shape] = (3, 32, 32)
    """A shape they take, for what is said of them without data."""
    version: ClassVar[int] = 1
    """Raised when the same options build another network or another initialisation."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: There is no such file of weights.
        """
        if self.weights and not Path(self.weights).expanduser().is_file():
            raise SweepError(f"weights: no file {self.weights}: correct it")

    def content(self) -> dict[str, str]:
        """The hash of the file of weights, which stands in the key in place of its path."""
        if not self.weights:
            return {}
        content = Path(self.weights).expanduser().read_bytes()
        return {"weights": hashlib.sha256(content).hexdigest()}

    @abstractmethod
    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build the trunk (images [B,C,H,W] -> features [B,D]) and the head (features -> logits).

        Args:
            classes: Number of classes.
            shape: Of what the network is shown of one sample; (C, H, W) of an image.

        Raises:
            SweepError: The architecture does not fit the shape.
        """

    def joined(
        self, trunk: nn.Module, classifier: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> Net:
        """Join trunk and head; a task whose networks take or return more has its own `Net`."""
        return Net(trunk, classifier, mean, std)


class Normalise(nn.Module):
    """Pixels in [0, 1] -> normalised pixels; the first module of every network."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W] in [0, 1], or [B, T, C, H, W]."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (x - mean) / std


class Net(nn.Module):
    """normalise -> trunk -> classifier; takes pixels in [0, 1], or what else samples are made of.

    Any family's penultimate features and last layer are had the same way: `features(x)` and
    `classifier`.
    """

    def __init__(
        self, trunk: nn.Module, classifier: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std) if mean else nn.Identity()
        self.trunk = trunk
        self.classifier = classifier

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features [B, D] of inputs: pixels [B, C, H, W] in [0, 1]."""
        out: Tensor = self.trunk(self.normalise(x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of inputs: pixels [B, C, H, W] in [0, 1]."""
        out: Tensor = self.classifier(self.features(x))
        return out
