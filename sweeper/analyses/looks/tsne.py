"""t-SNE of the penultimate features, poisoned training images marked (FIP, t-SNE figure).

Features are standardised and reduced to 50 dimensions by PCA. Beside the picture, one number: the
share of poisoned images whose nearest centroid of clean classes is their true class - near 0 while
the backdoor works, high once it is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sweeper.analyses.base import Analysis, Subject, features
from sweeper.core import seeds
from sweeper.core.options import Count, Positive, Whole
from sweeper.core.types import Role
from sweeper.engine.task import ANY

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Tsne(Analysis):
    """Where poisoned images lie among the classes."""

    per_class: Count = 200
    """Most clean training images of a class."""
    poisoned: Whole = 300
    """Most poisoned training images."""
    perplexity: Positive = 30.0
    """Effective number of neighbours."""

    title = "t-SNE of features, poisoned samples marked"
    source = "Karim et al., CCS 2024 (FIP)"
    tasks = frozenset({ANY})

    def compute(self, subject: Subject) -> pd.DataFrame:
        """One row an image: x, y, its true label, whether poisoned, its nearest class."""
        import pandas as pd
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE

        poisoned = subject.work.poisoned()
        index = self.sample(poisoned.true_labels, poisoned.role, subject.work.victim.key)
        penultimate = features(subject, poisoned.samples.inputs[index])
        true = poisoned.true_labels[index]
        marked = poisoned.role[index] == int(Role.POISON)
        scaled = (penultimate - penultimate.mean(0)) / penultimate.std(0).clamp(min=1e-6)
        reduced = PCA(min(50, *scaled.shape), random_state=0).fit_transform(scaled.double().numpy())
        perplexity = min(self.perplexity, (len(index) - 1) / 3)
        place = TSNE(perplexity=perplexity, random_state=0, init="pca").fit_transform(reduced)
        return pd.DataFrame(
            {
                "x": place[:, 0],
                "y": place[:, 1],
                "true_label": true.numpy(),
                "poisoned": marked.numpy(),
                "nearest": nearest(penultimate, true, marked).numpy(),
            }
        )

    def sample(self, labels: Tensor, role: Tensor, key: str) -> Tensor:
        """Indices of the images drawn: of each class the clean ones, and the poisoned ones."""
        order = torch.randperm(len(labels), generator=seeds.generator(key, "tsne"))
        clean, marked = (
            order[role[order] == int(Role.CLEAN)],
            order[role[order] == int(Role.POISON)],
        )
        parts = [clean[labels[clean] == c][: self.per_class] for c in labels.unique()]
        return torch.cat([*parts, marked[: self.poisoned]])

    def draw(self, frame: pd.DataFrame, figure: Any) -> None:
        """One panel: classes in colours, poisoned images as black crosses."""
        axes = figure.subplots()
        clean, marked = frame[~frame["poisoned"]], frame[frame["poisoned"]]
        style = {"s": 6, "linewidths": 0}
        axes.scatter(clean["x"], clean["y"], c=clean["true_label"] % 20, cmap="tab20", **style)
        axes.scatter(marked["x"], marked["y"], c="black", marker="x", s=9, linewidths=0.7)
        axes.set_xticks([])
        axes.set_yticks([])
        if len(marked):
            share = (marked["nearest"] == marked["true_label"]).mean()
            axes.set_xlabel(
                f"crosses: poisoned samples; {share:.0%} lie nearest to their true class"
            )


def nearest(penultimate: Tensor, labels: Tensor, marked: Tensor) -> Tensor:
    """The class whose clean centroid is nearest to each feature vector; int64 [N]."""
    classes = labels[~marked].unique()
    centres = torch.stack([penultimate[~marked & (labels == label)].mean(0) for label in classes])
    nearest_classes: Tensor = classes[torch.cdist(penultimate, centres).argmin(1)]
    return nearest_classes
