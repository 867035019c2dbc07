"""Tables on a terminal: nothing wider than it, nothing lost, the same numbers as in Markdown."""

from __future__ import annotations

import re

import pytest

from sweeper.tables import render, screen, tables
from sweeper.tables.layout import Table
from tests.support import invented


def built(cols: tuple[str, ...] = ("defense",), seeds: int = 2) -> Table:
    rows = ["attack", "poison_rate"]
    return tables.build(invented.frame(broken=0.1, seeds=seeds), rows=rows, cols=list(cols))


def shown(table: Table, width: int) -> list[str]:
    return re.sub(r"\x1b\[\d*m", "", screen.render(table, width)).splitlines()


def numbers(lines: list[str]) -> list[str]:
    """Every entry, in the order of the lines of each attack and rate."""
    body = [line for line in lines if re.match(r"(BadNets|Blend|SIG) ", line)]
    return sorted(entry for line in body for entry in re.findall(r"\d+\.\d ± \d+\.\d \(\d\)", line))


@pytest.mark.parametrize("width", [60, 80, 120, 160, 400])
def test_a_table_fits_the_terminal_and_loses_nothing(width: int) -> None:
    table = built()
    lines = shown(table, width)
    assert all(len(line) <= width for line in lines), max(lines, key=len)
    everything = tables.render(table, "markdown").replace("*", "")
    rows = [line.strip("| ") for line in everything.splitlines()]
    assert numbers(lines) == numbers(rows) and numbers(lines)
    heads = [line for line in lines if line.startswith("attack ")]
    assert sum(line.count("ACC") for line in heads) == 5
    assert (len(heads) == 1) == (width == 400)


def test_defenses_stand_above_their_metrics() -> None:
    lines = shown(built(seeds=1), 400)
    above, heads, rule = lines[2:5]
    assert re.split(" {2,}", above.strip()) == ["ANP", "FP", "FT", "NAD", "No defense"]
    assert heads.split()[:4] == ["attack", "poison", "rate", "ACC"]
    assert [m.end() for m in re.finditer("ASR", heads)] == [
        m.end() for m in re.finditer(r"\S+( \S+)*", above)
    ]
    assert set(rule) == {"─"} and len(rule) == len(heads)


def test_no_groups_and_several() -> None:
    table = tables.build(invented.frame(seeds=1), rows=["defense"], cols=[])
    lines = shown(table, 60)
    assert all(len(line) <= 60 for line in lines)
    assert "ACC" in " ".join(lines)
    deep = shown(built(cols=("defense", "seed")), 100)
    assert all(len(line) <= 100 for line in deep)
    assert deep[2].split()[:2] == ["ANP", "FP"]
    assert deep[3].split()[:4] == ["0", "1", "0", "1"]


def test_the_best_is_bold_and_the_notes_are_wrapped() -> None:
    text = screen.render(built(seeds=1), 60)
    assert "\x1b[1mBold\x1b[0m: better" in text
    told = [sign for sign in render.SIGNS.values() if f"- {sign}: " in text]
    assert told and text.endswith("\n") and all(text.count(sign) > 1 for sign in told)
    notes = [line for line in text.splitlines() if line.startswith(("- ", "  "))]
    assert len(notes) > len([line for line in notes if line.startswith("- ")])


def test_an_attack_without_a_rate_has_none_in_caption_and_line() -> None:
    frame = invented.frame(attacks=("badnets", "none"), rates=(0.1,), seeds=1)
    alone = frame[frame["attack"] == "none"]
    axes = ["attack", "poison_rate"]
    caption = tables.render(tables.build(alone, rows=axes), "markdown").splitlines()[0]
    assert caption.startswith("Dataset cifar10") and "rate" not in caption
    both = tables.render(tables.build(frame, rows=axes), "markdown")
    assert "| No attack | –             |" in both and "| BadNets   | 10 %          |" in both
