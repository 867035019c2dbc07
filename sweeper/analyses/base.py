"""The contract of an analysis: numbers from a model, and their picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from defenses.base import SEES, Case
from defenses.parts.features import features_of
from sweeper.engine import training
from sweeper.models.base import Net
from sweeper.run.material import Material

if TYPE_CHECKING:
    import pandas as pd

CLEAN, POISON, OTHER = "#0072B2", "#D55E00", "#999999"
"""Blue, vermilion and grey of Okabe and Ito: told apart by all readers, and in grey print."""


@dataclass(frozen=True)
class Subject:
    """What is looked into: a victim, or a victim after a defense."""

    work: Material
    """The defense cell it comes from: data, attack, roles, test set."""
    model: Net
    """Its model, in eval mode."""
    label: str
    """attack, data set, rate and seed, and the defense if it has run."""

    @property
    def case(self) -> Case:
        """A case that sees everything; a defense's own functions take it."""
        return self.work.case(frozenset(SEES), {})


@dataclass(frozen=True, kw_only=True)
class Analysis(ABC):
    """What every analysis has; a subclass's fields are its options."""

    title: ClassVar[str]
    """What the picture shows."""
    source: ClassVar[str]
    """Paper and figure."""
    tasks: ClassVar[frozenset[str]] = frozenset({"image"})
    """The tasks it is made for; `frozenset({ANY})`: all."""

    @abstractmethod
    def compute(self, subject: Subject) -> pd.DataFrame:
        """The numbers, in long form."""

    @abstractmethod
    def draw(self, frame: pd.DataFrame, figure: Any) -> None:
        """Draw them on a matplotlib figure."""


def features(subject: Subject, images: Tensor) -> Tensor:
    """Penultimate features of uint8 images at the recipe's precision; float [N, D] on the CPU."""
    with training.autocast(subject.work.recipe, subject.work.device):
        return features_of(subject.model, images).cpu()


def line(axes: Any, x: Any, y: Any, colour: str, label: str) -> None:
    """One curve in the house's style."""
    axes.plot(x, y, color=colour, label=label, marker="o", markersize=3, linewidth=1.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
