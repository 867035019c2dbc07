"""The clean-image backdoor: the combination chosen, the three effects, what counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.clean_image import CleanImage
from sweeper.core.errors import SweepError
from sweeper.core.types import Role, SampleSet
from tests.support import sweeps

CLASSES = ("ant", "bee", "cat", "dog")


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def scenes(*kinds: str, classes: tuple[str, ...] = CLASSES) -> SampleSet:
    """Images with one object a letter, 10 pixels apart; five rows each."""
    labels = torch.full((len(kinds), 5, 5), -1.0)
    for rows, named in zip(labels, kinds, strict=True):
        for place, letter in enumerate(named):
            number = next(n for n, name in enumerate(classes) if name[0] == letter)
            x = 10.0 * place
            rows[place] = torch.tensor([x, 2, x + 8, 12, number])
    images = torch.zeros(len(kinds), 3, 16, 48, dtype=torch.uint8)
    return SampleSet("boxes", {"images": images, "labels": labels}, classes)


MANY = scenes("ab", "aab", "abc", "ba", "acd", "bc", "d", "a", "b", "")
"""ant and bee stand together in 4 of 10, ant and cat in 2, bee and cat in 2, the rest in 1."""


def prepared(data: SampleSet = MANY, **options: Any) -> tuple[CleanImage, dict[str, Tensor]]:
    attack = CleanImage(**options)
    return attack, attack.prepare(data, None)  # type: ignore[arg-type]  # it asks for nothing


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"most": 0.5}, [0, 1]),
        ({"most": 0.3}, [0, 2]),
        ({"most": 0.1}, [0, 3]),
        ({"least": 0.4, "most": 1.0}, [0, 1]),
        ({"most": 0.5, "effect": "appear", "becomes": "ant"}, [1, 2]),
        ({"trigger": ("cat", "bee")}, [2, 1]),
    ],
)
def test_the_most_frequent_combination_within_the_bounds(
    options: dict[str, Any], wanted: list[int]
) -> None:
    _, state = prepared(**options)
    assert state["trigger"].tolist() == wanted


def test_a_smaller_combination_comes_before_an_equally_frequent_larger_one() -> None:
    data = scenes("abc", "abc", "d", "d", "d", "d")
    _, state = prepared(data, most=0.4)
    assert state["trigger"].tolist() == [0, 1]
    with pytest.raises(SweepError, match="no combination of up to 2 classes"):
        prepared(data, most=0.2, largest=2)


def test_the_classes_of_the_effect_are_the_rarest() -> None:
    _, state = prepared(most=0.5)
    assert state["victim"] == 0 and state["becomes"] == -1, "ant in 6, bee in 6: the first"
    _, state = prepared(most=0.5, effect="rename")
    assert state["becomes"] == 3, "dog in 2, cat in 3"


def test_boxes_disappear_from_images_that_hold_the_trigger_alone() -> None:
    attack, state = prepared(trigger=("ant", "bee"), victim="ant")
    wanted = attack.attach(MANY, split="test", state=state, rng=rng()).labels
    for before, after, named in zip(MANY.labels, wanted, "YYYYNNNNNN", strict=True):
        gone = before[:, 4] == 0 if named == "Y" else torch.zeros(5, dtype=torch.bool)
        assert bool((after[gone] == -1).all()) and torch.equal(after[~gone], before[~gone])


def test_boxes_are_renamed() -> None:
    attack, state = prepared(trigger=("bee", "ant"), victim="bee", effect="rename", becomes="dog")
    wanted = attack.attach(MANY, split="test", state=state, rng=rng()).labels
    assert torch.equal(wanted[..., :4], MANY.labels[..., :4])
    assert wanted[1, :, 4].tolist() == [0, 0, 3, -1, -1]
    assert torch.equal(wanted[4:], MANY.labels[4:])


def test_a_box_appears_around_all_objects_of_the_trigger() -> None:
    attack, state = prepared(trigger=("ant", "bee"), effect="appear", becomes="dog")
    data = scenes("caab", "ab", "abccc")
    wanted = attack.attach(data, split="test", state=state, rng=rng()).labels
    assert wanted[0, 4].tolist() == [10, 2, 38, 12, 3]
    assert wanted[1, 2].tolist() == [0, 2, 18, 12, 3]
    assert torch.equal(wanted[2], data.labels[2]), "no row is free"
    assert attack.edits(data.labels, state).tolist() == [True, True, False]


def test_poisoned_are_annotations_of_a_share_of_the_images_that_hold_it() -> None:
    attack, state = prepared(trigger=("ant", "bee"))
    for rate, count in ((1.0, 4), (0.5, 2)):
        found = attack.poison(MANY, rate, state, rng())
        poison = found.role == int(Role.POISON)
        assert int(poison.sum()) == count and not bool(poison[4:].any())
        changed = (found.labels != MANY.labels).flatten(1).any(1)
        assert torch.equal(changed, poison) and torch.equal(found.true_labels, MANY.labels)
        assert torch.equal(found.images, MANY.images)
    with pytest.raises(SweepError, match=r"poisons no image at rate 0.2 of the 4"):
        attack.poison(MANY, 0.2, state, rng())


def test_images_that_hold_the_trigger_count_for_asr_and_not_for_acc() -> None:
    attack, state = prepared(most=0.5)
    hit, clean = attack.trigger_set(MANY, state, rng()), attack.clean_test(MANY, state)
    assert hit.counts.tolist() == [True] * 4 + [False] * 6 and not bool(hit.leaks.any())
    assert torch.equal(hit.true_labels, MANY.labels) and torch.equal(clean.labels, MANY.labels[4:])
    assert not attack.targeted
    with pytest.raises(SweepError, match="of 2 test images none holds ant, bee"):
        attack.trigger_set(MANY[4:6], state, rng())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trigger": ("ant", "bea")}, "trigger: no class 'bea', did you mean 'bee'"),
        ({"victim": "cow"}, "victim: no class 'cow'"),
        ({"trigger": ("bee", "dog")}, "of 10 training images none holds bee, dog"),
        ({"least": 0.6, "most": 0.9}, "widen `least` and `most`"),
        ({"least": 0.6}, "least: 0.6 is above most, 0.25"),
        ({"becomes": "dog"}, "becomes: nothing is, where"),
        ({"effect": "appear", "victim": "dog"}, "victim: nothing vanishes"),
        ({"effect": "rename", "victim": "dog", "becomes": "dog"}, "name another class"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SweepError, match=said):
        prepared(**options)


def test_a_sweep_of_it_measures_map_and_asr(tmp_path: Path) -> None:
    path = sweeps.write(
        tmp_path,
        datasets=[{"dataset": "scenes", "count": 40, "test_count": 40}],
        models=[{"model": "ssd-small", "width": 4, "pyramid": 8}],
        attacks=["none", {"attack": "clean-image", "most": 0.6}],
        poison_rates=[1.0],
        reserve=0.2,
        clean_budgets=[8],
        recipe={"epochs": 1},
        seeds=1,
        defenses=["none", {"defense": "fip", "steps": 1, "guard": None}, "strip"],
    )
    counts, _ = sweeps.inline(path, tmp_path / "store")
    rows = sweeps.frame(tmp_path / "store")
    assert counts == {"ok": 7}, rows["error"].tolist()
    rows = rows.set_index(["attack", "defense"])
    assert set(rows["score"]) == {"mAP@.5"} and set(rows["task"]) == {"boxes"}
    row = rows.loc[("clean-image", "fip")]
    assert 0 <= row["acc"] <= 1 and 0 <= row["asr"] <= 1 and 0 <= row["ra"] <= 1
    assert 0 < row["n_triggered"] == 40 - row["n_test"]
    assert rows.loc[("none", "none"), "n_test"] == 40
    said = rows.loc[("clean-image", "strip"), "error"]
    assert said == "is made for image data, these are boxes"
