"""The handwritten digits that come with scikit-learn: 1,797 images of 1x8x8, no download.

The data set has no official split: a fixed fifth of every class is the test split.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from sweeper.core.types import ImageSet
from sweeper.data._files import hold_out
from sweeper.data._images import as_batches, decode
from sweeper.data.base import Fileless, Splits


@dataclass(frozen=True, kw_only=True)
class Digits(Fileless):
    """scikit-learn's `load_digits`, its 17 grey levels scaled to 0..255."""

    names: ClassVar[dict[str, str]] = {
        "digits": "1,797 handwritten digits, 1x8x8, 10 classes; embedded in scikit-learn"
    }
    order: ClassVar[int] = 40

    def read(self, root: Path) -> Splits:
        """Scale and split the images."""
        from sklearn.datasets import load_digits  # here: importing it takes a second

        data = load_digits()
        pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)
        images = decode(as_batches(list(pixels)), len(pixels), "digits", self.size)
        labels = torch.from_numpy(data.target.astype(np.int64))
        whole = ImageSet(images, labels, tuple(str(name) for name in data.target_names))
        train, test = hold_out(labels, 0.2)
        return Splits(whole[train], whole[test])
