"""The quantiles of tables: scipy's, kept on this machine's disk once they were asked for.

To import scipy takes as long as the table itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from sweeper.core import kept


def normal(confidence: float) -> float:
    """Return z with P(|Z| <= z) = confidence, Z normal."""

    def made() -> float:
        from scipy.special import ndtri

        return float(ndtri(0.5 + confidence / 2))

    return _kept(f"normal-{confidence}", made)


def student(freedom: int, confidence: float) -> float:
    """Return t with P(|T| <= t) = confidence, T Student's; degrees of freedom from 1."""

    def made() -> float:
        from scipy.special import stdtrit

        return float(stdtrit(freedom, 0.5 + confidence / 2))

    return _kept(f"student-{freedom}-{confidence}", made)


def studentized_range(count: int, confidence: float) -> float:
    """Return q with P(range <= q) = confidence, of the range of `count` normal variables."""

    def made() -> float:
        from scipy.stats import studentized_range

        return float(studentized_range.ppf(confidence, count, math.inf))

    return _kept(f"range-{count}-{confidence}", made)


def _kept(name: str, made: Callable[[], float]) -> float:
    file = kept.cache() / "quantiles" / f"{name}.json"
    if file not in _READ:
        _READ[file] = kept.kept(file, made)
    return _READ[file]


_READ: dict[Path, float] = {}
