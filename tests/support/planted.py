"""Features with planted clusters, and a case whose model has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from defenses.base import Case
from sweeper.core import catalog, seeds
from sweeper.core.types import ImageSet
from sweeper.engine import metrics
from tests.support import toys


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeds.generator("detectors", seed), dtype=torch.float64)


def planted(count: int, width: int, poisoned: int, far: float, seed: int = 0) -> Tensor:
    """Gaussian features [count, width]; the first `poisoned` moved by `far` along one direction."""
    found = gaussian(count, width, seed=seed)
    found[:poisoned, 1] += far
    return found


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(gaussian(width, width, seed=9))[0]


def first(count: int, of: int) -> Tensor:
    return torch.arange(of) < count


def rank(scores: Tensor, positive: Tensor) -> float:
    found = metrics.auroc(scores.double().numpy(), positive.numpy())
    assert found is not None
    return found


def outcome(name: str, preset: str = "", **given: Any) -> Any:
    return toys.run(toys.short("defense", name, toys.asked(preset)), **given)


def populations(
    counts: int, second: float, *, classes: int = 8, width: int = 6, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and roles: classes apart by 5, a tenth of class 0 moved by `second`."""
    centres = 5 * gaussian(classes, width, seed=50 + seed)
    labels = torch.arange(classes).repeat_interleave(counts)
    role = (labels == 0) & first(counts // 10, len(labels))
    features = centres[labels] + gaussian(len(labels), width, seed=seed)
    features[role] += second * gaussian(1, width, seed=70).div(gaussian(1, width, seed=70).norm())
    return features, labels, role


class Given(nn.Module):
    """A network whose features are what its images encode, one number a pixel."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(width, classes)
        self.width = width

    def features(self, x: Tensor) -> Tensor:
        return (255 * x.flatten(1)[:, : self.width] - 128) / 5

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x))
        return out


def encoded(features: Tensor, labels: Tensor, classes: int) -> ImageSet:
    """Images whose first pixels are these features, in steps of a fifth."""
    images = torch.zeros(len(features), 3 * 64, dtype=torch.uint8)
    images[:, : features.shape[1]] = (features * 5 + 128).round().clamp(0, 255).to(torch.uint8)
    names = tuple(f"class {number}" for number in range(classes))
    return ImageSet(images.view(-1, 3, 8, 8), labels, names)


def feature_case(name: str, train: Any, clean: Any, key: str = "toy case") -> Case:
    """A case whose model has the features given as (features, labels)."""
    sees = catalog.method("defense", name).sees
    data, held = (encoded(*given[:2], 8) for given in (train, clean))
    case = toys.case(sees, clean=held, model=Given(8, train[0].shape[1]), key=key)  # type: ignore
    case._given["train"] = data
    return case
