"""Splits: disjoint, fixed by the seed, groups whole, clean sets nested."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet
from sweeper.data import Dataset
from sweeper.data._files import hold_out, number
from sweeper.data.splits import budget_count, clean_set, split


def toy(n=60, groups=None, digest="toy") -> Dataset:
    """A data set of blank images for the splits, which look at sizes, groups and digest only."""
    images = ImageSet(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.zeros(n).long(), ("a",))
    return Dataset("toy", images, images, digest, (0.0,), (1.0,), groups)


@given(n=st.integers(2, 200), share=st.floats(0, 0.9), digest=st.text("ab", min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_split_covers_and_is_disjoint(n, share, digest):
    if round(share * n) == n:
        with pytest.raises(SweepError, match="leaves the attacker none"):
            split(toy(n, digest=digest), share)
        return
    attacker, reserve = split(toy(n, digest=digest), share)
    assert sorted([*attacker.tolist(), *reserve.tolist()]) == list(range(n))
    assert attacker.tolist() == sorted(attacker.tolist())
    assert len(reserve) == round(share * n)
    again = split(toy(n, digest=digest), share)
    assert torch.equal(reserve, again[1]), "the digest alone fixes it"


@given(groups=st.lists(st.integers(-3, 8), min_size=2, max_size=80), share=st.floats(0.01, 0.6))
@settings(max_examples=60, deadline=None)
def test_groups_stay_whole(groups, share):
    data = toy(len(groups), torch.tensor(groups))
    try:
        attacker, reserve = split(data, share)
    except SweepError:
        assert len(set(groups)) < 12, "only where the last group is needed to reach the share"
        return
    of = data.groups
    assert not set(of[attacker].tolist()) & set(of[reserve].tolist())
    assert sorted([*attacker.tolist(), *reserve.tolist()]) == list(range(len(groups)))
    assert len(reserve) >= round(share * len(groups))
    if len(reserve):
        last = int(of[reserve].unique(return_counts=True)[1].max())
        assert len(reserve) - last < round(share * len(groups)), "no group more than needed"


@given(
    n=st.integers(20, 150), seed=st.integers(0, 5), small=st.integers(0, 5), more=st.integers(0, 5)
)
@settings(max_examples=50, deadline=None)
def test_clean_sets_are_nested_and_come_from_the_reserve(n, seed, small, more):
    data = toy(n)
    _, reserve = split(data, 0.5)
    few, many = (clean_set(data, reserve, count, seed) for count in (small, small + more))
    assert torch.equal(many[:small], few), "a larger budget extends a smaller one"
    assert len(set(many.tolist())) == small + more and set(many.tolist()) <= set(reserve.tolist())


def test_another_seed_draws_other_clean_images():
    data = toy(400)
    _, reserve = split(data, 0.5)
    assert not torch.equal(clean_set(data, reserve, 50, 0), clean_set(data, reserve, 50, 1))


def test_a_larger_reserve_contains_a_smaller_one():
    small, large = split(toy(100), 0.1)[1], split(toy(100), 0.2)[1]
    assert torch.equal(large[:10], small)


def test_too_large_requests_say_what_to_change():
    _, reserve = split(toy(100), 0.1)
    with pytest.raises(SweepError, match="raise `reserve`"):
        clean_set(toy(100), reserve, 11, 0)
    for share in (1.0, -0.1, True):
        with pytest.raises(SweepError, match="reserve"):
            split(toy(100), share)
    with pytest.raises(SweepError, match="leaves the attacker none"):
        split(toy(10, torch.zeros(10, dtype=torch.int64)), 0.1)


def test_budgets_are_shares_or_counts():
    assert budget_count(0.05, 50000) == 2500 and budget_count(0.001, 100) == 1
    assert budget_count(1, 100) == 1 and budget_count(100, 100) == 100
    assert budget_count(50.0, 100) == 50
    for wrong in (0, -1, -0.1, 1.0, 1.5, True, float("nan"), float("inf"), 101, "0.1", None):
        with pytest.raises(SweepError, match="clean_budgets"):
            budget_count(wrong, 100)


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=60), share=st.floats(0.05, 0.9))
@settings(max_examples=50, deadline=None)
def test_a_share_is_held_out_of_every_class(labels, share):
    kept, held = hold_out(torch.tensor(labels), share)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert {labels[i] for i in kept.tolist()} == set(labels), "every class stays in training"


@given(keys=st.lists(st.sampled_from(["b", "a", "zz", "a/b"]), min_size=1, max_size=30))
@settings(deadline=None)
def test_groups_are_numbered_by_first_appearance(keys):
    order = list(dict.fromkeys(keys))
    assert number(keys).tolist() == [order.index(key) for key in keys]
