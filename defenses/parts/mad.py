"""Which of K numbers stands out: distances from the median in median absolute deviations.

It needs about six numbers to mean anything. One statistic for the defenses that look for an odd
class: SODA, Neural Cleanse.
"""

from __future__ import annotations

import torch
from torch import Tensor


def anomaly(values: Tensor) -> Tensor:
    """Distance from the median in median absolute deviations (normal scale); float64 [K].

    Where that deviation is 0 a millionth of the range stands for it; of equal values all are 0.
    """
    values = values.double()
    deviations = (values - values.quantile(0.5)).abs()
    mad = 1.4826 * deviations.quantile(0.5)
    floor = 1e-6 * (values.max() - values.min())
    return (deviations / torch.maximum(mad, floor)).nan_to_num(0.0)


def outliers(values: Tensor, theta: float) -> Tensor:
    """Which values lie above the median by more than `theta` deviations; bool [K]."""
    return (values.double() >= values.double().quantile(0.5)) & (anomaly(values) > theta)
