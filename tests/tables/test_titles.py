"""What figures call attacks and defenses."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from sweeper.core import names
from sweeper.tables import titles
from sweeper.tables.titles import titled


@pytest.mark.parametrize(
    ("labels", "heads", "expected"),
    [
        ({"fine-tuning": "fine-tuning", "anp": "anp"}, {}, ["FT", "ANP"]),
        ({"none": "none", "ft-200": "fine-tuning"}, {}, ["No defense", "ft-200"]),
        ({"fine-tuning": None}, {}, ["FT"]),
        ({"clp": "anp"}, {}, ["clp"]),
        ({"fine-tuning": "fine-tuning", "ft": "nad"}, {}, ["fine-tuning", "ft"]),
        ({"nobody's": "nobody's"}, {}, ["nobody's"]),
        ({"anp": "anp", "anp-oracle": "anp-oracle"}, {}, ["ANP", "ANP"]),
        ({"anp": "anp", "nad": "nad"}, {"defense": {"anp": "Pruned"}}, ["Pruned", "NAD"]),
    ],
)
def test_a_methods_own_name_reads_as_in_papers_where_that_tells_them_apart(
    labels: dict[str, str | None], heads: dict[str, dict[str, str]], expected: list[str]
) -> None:
    data = pd.DataFrame({"defense": list(labels), "defense_name": list(labels.values())})
    oracle = data["defense"].str.endswith("-oracle")
    data = data.assign(attack="badnets", attack_name="badnets", oracle=oracle)
    found = titles.of(data, heads)
    assert found["defense"] == dict(zip(labels, expected, strict=True))
    assert found["attack"] == {"badnets": "BadNets"}


def test_third_parties_are_asked_only_for_what_does_not_ship(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    point = SimpleNamespace(name="mine")
    monkeypatch.setattr(names, "points", lambda kind: asked.append(kind) or (point,))
    assert titled("defense", {"anp": "anp", "clp": None}) == {"anp": "ANP", "clp": "CLP"}
    assert not asked, "looking them up costs as much as all else of a title"
    assert titled("defense", {"mine+fine-tuning": None}) == {"mine+fine-tuning": "mine+FT"}
    assert titled("defense", {"other+fine-tuning": None}) == {} and asked
