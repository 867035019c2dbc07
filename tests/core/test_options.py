"""What of a method's options stands in keys, and which values they take."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from attacks.badnets import BadNets
from sweeper import models
from sweeper.core import options
from sweeper.core.errors import SweepError
from sweeper.core.options import Count, OpenShare, Positive, Share, Some


@dataclass(frozen=True, kw_only=True)
class Method:
    """As it first was."""

    steps: int = 100


def test_an_added_option_at_its_default_leaves_the_key_alone() -> None:
    grown = make_dataclass(
        "Grown",
        [
            ("steps", int, 100),
            ("stem", str, field(default="pool", metadata={"added": True})),
            ("plain", bool, field(default=False)),
        ],
    )
    assert options.canonical(Method()) == {"steps": 100}
    assert options.canonical(grown()) == {"steps": 100, "plain": False}
    assert options.canonical(grown(stem="cifar")) == {"steps": 100, "stem": "cifar", "plain": False}
    assert options.names(grown) == ["steps", "stem", "plain"]


def test_paths_are_made_absolute_for_cells_that_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    family = models.family("tiny", {})
    given = {"width": 4, "weights": "here.pth"}
    assert options.placed(family, given) == {"width": 4, "weights": str(tmp_path / "here.pth")}
    assert options.placed(BadNets, {"size": 3}) == {"size": 3}


@pytest.mark.parametrize(
    ("hint", "given", "said"),
    [
        (Count, -3, "a whole number of at least 1, not -3"),
        (Count, "-3", "a whole number of at least 1, not '-3'"),
        (Count, 1e30, "a whole number, not 1e+30"),
        (Count, 10**10, "a whole number of at most 1000000000, not 10000000000"),
        (Count, "many", "a whole number, not 'many'"),
        (Count, True, "a whole number, not True"),
        (Share | None, 5, "a number of at most 1, not 5"),
        (Share | None, "half", "a number or null, not 'half'"),
        (OpenShare, 1.0, "a number below 1, not 1.0"),
        (Positive | Literal["auto"], 0, "a number above 0, not 0"),
        (Some[Positive], [1, -2], "a number above 0, not -2"),
        (Some[Positive], [1, True], "a list of numbers, not [1, True]"),
        (Some[Positive], [], "at least one value"),
        (Some[tuple[Count, Count]], [[1, 0]], "a whole number of at least 1, not 0"),
        (
            tuple[tuple[Count, Count]],
            [[True, 1]],
            "a list of lists of whole numbers, not [[True, 1]]",
        ),
    ],
)
def test_a_value_out_of_the_declared_range_is_refused_in_words(
    hint: Any, given: Any, said: str
) -> None:
    method = make_dataclass("Ranged", [("it", hint, None)])
    with pytest.raises(SweepError) as refused:
        options.construct(method, {"it": given}, "toy")
    assert str(refused.value) == f"toy: it: needs {said}"


def test_a_field_that_declares_no_range_takes_any_number() -> None:
    assert options.construct(Method, {"steps": -3}, "toy") == Method(steps=-3)
