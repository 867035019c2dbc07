"""YAML as users write it: merges are read, what has no end or no bound is refused at its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeper.cli import arguments
from sweeper.core.errors import SweepError
from tests.support.written import loaded, refused, text

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
"""Nine lines that stand for 400 million values."""


@pytest.mark.parametrize("merged", [False, True])
def test_a_text_of_aliases_that_stands_for_too_much_is_refused_at_once(
    tmp_path: Path, merged: bool
) -> None:
    bomb = BOMB
    if merged:
        bomb = "a0: &a0 {x: 1, y: 2, z: 3}\n" + "".join(
            f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)
        )
    (found,) = refused(tmp_path, bomb)
    assert re.match(r"study\.yaml:[56]: more than 100,000 values, aliases written out", found)
    for flag in ("--set", "--option"):
        value = "a: [&a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "
        for name, before in zip("bcdef", "abcde", strict=True):
            value += f"&{name} [{', '.join([f'*{before}'] * 10)}], "
        with pytest.raises(SweepError, match=rf"^{flag} x=.*: more than 100,000 values"):
            if flag == "--set":
                loaded(tmp_path, text(), f"x={{{value}]}}")
            else:
                arguments.pairs(flag, [f"x={{{value}]}}"])


def test_a_list_as_long_as_a_sweep_may_have_is_read(tmp_path: Path) -> None:
    assert len(loaded(tmp_path, text(f"seeds: {list(range(10_000))}")).seeds) == 10_000


MERGED = """
name: study
datasets: [digits]
models: [tiny]
attacks:
  - &base
    attack: badnets
    opacity: 0.5
    margin: 3
  - {<<: *base, opacity: 0.1, as: faint}
  - <<: *base
    margin: 2
    as: small
defenses: &defenses [none, {defense: fine-tuning, lr: 1}]
"""


def test_a_merge_takes_what_it_does_not_say_itself(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, MERGED)
    assert [entry.label for entry in sweep.attacks] == ["badnets", "faint", "small"]
    assert [entry.options for entry in sweep.attacks] == [
        {"opacity": 0.5, "margin": 3},
        {"opacity": 0.1, "margin": 3},
        {"opacity": 0.5, "margin": 2},
    ]
    picked = loaded(tmp_path, MERGED, "attacks=[{attack: blend, <<: {opacity: 0.3}, as: b}]")
    assert picked.attacks[0].options == {"opacity": 0.3}


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        ("opacity: 0.1", "opacity: 7", 10),
        ("    margin: 2", "    margin: x", 12),
        ("as: small", "as: []", 11),
        ("lr: 1", "lr: fast", 14),
    ],
)
def test_lines_of_what_is_merged_are_right(
    tmp_path: Path, right: str, wrong: str, line: int
) -> None:
    (found,) = refused(tmp_path, MERGED.replace(right, wrong))
    assert found.startswith(f"study.yaml:{line}: "), found


def test_a_mistake_of_what_is_merged_stands_where_it_is_written(tmp_path: Path) -> None:
    (found,) = refused(tmp_path, MERGED.replace("opacity: 0.5", "opacity: 9"))
    assert found.startswith(
        "study.yaml:8: attacks: badnets: opacity: needs a number of at most 1, not 9"
    )
