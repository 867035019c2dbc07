"""Who holds which images: the attacker's training split and the reserve of clean images."""

from __future__ import annotations

import torch
from torch import Tensor

from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.data import Dataset


def split(dataset: Dataset, reserve: float) -> tuple[Tensor, Tensor]:
    """Divide the training split between the attacker and the reserve for the defender.

    The division is fixed by the data set's digest alone, whatever the seed, and a larger reserve
    contains a smaller one. Where the data set has groups, the reserve is made of whole groups, in
    a fixed order, until they reach its share; otherwise it is exactly the share, rounded.

    Args:
        dataset: The data set.
        reserve: Share of the training split to set aside, in [0, 1).

    Returns:
        The attacker's indices, int64 and sorted, and the reserve's, int64 in a fixed random order;
        disjoint, and together the whole training split.

    Raises:
        SweepError: The share is out of range, or leaves the attacker nothing.
    """
    if isinstance(reserve, bool) or not 0 <= reserve < 1:
        raise SweepError(f"reserve: needs a share of at least 0 and below 1, not {reserve!r}")
    count = len(dataset.train)
    order = torch.randperm(count, generator=seeds.generator(dataset.digest, "reserve"))
    reserve_size = round(reserve * count)
    if dataset.groups is None:
        held = order[:reserve_size]
    else:
        _, inverse, sizes = torch.unique(dataset.groups, return_inverse=True, return_counts=True)
        groups = torch.randperm(len(sizes), generator=seeds.generator(dataset.digest, "groups"))
        before = sizes[groups].cumsum(0) - sizes[groups]
        in_reserve = torch.zeros(len(sizes), dtype=torch.bool)
        in_reserve[groups[before < reserve_size]] = True
        held = order[in_reserve[inverse][order]]
    if len(held) == count:
        raise SweepError(
            f"reserve: {reserve} of the {count} training images of {dataset.name} leaves the "
            "attacker none: lower it"
        )
    kept = torch.ones(count, dtype=torch.bool)
    kept[held] = False
    return kept.nonzero().flatten(), held


def clean_set(dataset: Dataset, reserve_indices: Tensor, count: int, seed: int) -> Tensor:
    """Draw the clean images a defender holds from the reserve.

    Args:
        dataset: The data set.
        reserve_indices: int64 [R], the reserve as `split` returns it.
        count: How many images to draw.
        seed: Seed of the cell: another seed draws other images.

    Returns:
        int64 [count], indices into the training split; a larger count extends a smaller one.

    Raises:
        SweepError: The reserve is smaller than `count`.
    """
    size = len(reserve_indices)
    if not 0 <= count <= size:
        raise SweepError(
            f"clean_budgets: {count} clean images, but the reserve of {dataset.name} holds {size} "
            f"of its {len(dataset.train)} training images: lower the clean budget or raise "
            "`reserve`"
        )
    order = torch.randperm(size, generator=seeds.generator(dataset.digest, seed, "clean"))
    return reserve_indices[order[:count]]


def budget_count(budget: float | int, n_train: int) -> int:
    """Return the number of clean images a budget stands for.

    Args:
        budget: A share of the whole training split, above 0 and below 1, or a count: a whole
            number of at least 1.
        n_train: Images of the whole training split.

    Returns:
        The count, at least 1.

    Raises:
        SweepError: The budget is neither, or is more than there is. 1.0 is refused: one image
            and all of them are both what it may mean.
    """
    if not isinstance(budget, bool) and isinstance(budget, int | float):
        if 0 < budget < 1:
            return max(1, int(round(budget * n_train)))
        whole = isinstance(budget, int) or (budget > 1 and budget.is_integer())
        if whole and 1 <= budget <= n_train:
            return int(budget)
        if whole and budget > n_train:
            raise SweepError(
                f"clean_budgets: {budget:.0f} images of a training split of {n_train}: lower it"
            )
    raise SweepError(
        f"clean_budgets: {budget!r} is neither a share between 0 and 1, such as 0.05, nor a whole "
        "number of images, such as 2500"
    )
