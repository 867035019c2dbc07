"""What of a method's options stands in keys."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from pathlib import Path

import pytest

from attacks.badnets import BadNets
from sweeper import models
from sweeper.core import options


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
