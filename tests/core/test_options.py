"""What of a method's options stands in keys."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass

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
