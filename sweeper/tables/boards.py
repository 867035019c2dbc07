"""Leaderboards of several sweeps: defenses by average rank, on rows that may be compared.

A board is of one data set, model and clean budget. Rows of several sweeps stand on one only where
equal labels mean equal settings; else each has a board of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweeper.core.errors import SweepError
from sweeper.plan.view import View
from sweeper.tables import conditions, fair
from sweeper.tables.points import MEASURES, Ranks, points, ranks
from sweeper.tables.results import by_task, once

SETTING = ("attack", "poison_rate", "target")
"""The axes that say on what a defense of a board was measured."""
_MEANS = {
    "dataset": ("dataset_options", "data_hash"),
    "model": ("model_options",),
    "attack": ("attack_name", "attack_options", "rule", "recipe"),
    "defense": ("defense_name", "defense_options"),
}
"""Axis -> the columns that say what a label of it means."""


@dataclass(frozen=True)
class Shown:
    """A sweep as a site shows it."""

    name: str
    """Its name."""
    rows: pd.DataFrame
    """From `results.frame`."""
    order: Mapping[str, Sequence[str]]
    """Axis -> its labels in the order of the sweep file."""
    view: View
    """The layout of its table."""
    text: str = ""
    """The sweep file."""
    data: Mapping[str, str] | None = None
    """Data set -> its digest."""

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """Its rows without those of attacks that no data set of a task can have."""
        return pd.concat(by_task(self.rows, self.order.get("dataset", ())))

    @functools.cached_property
    def points(self) -> pd.DataFrame:
        """One line for each cell of its matrix."""
        return _points(self.frame, self.order, self.view)


def _points(frame: pd.DataFrame, order: Mapping[str, Sequence[str]], view: View) -> pd.DataFrame:
    return points(frame, order, untaken=view.untaken, max_acc_loss=view.max_acc_loss)


@dataclass(frozen=True)
class Standing:
    """A defense on a board."""

    defense: str
    """Its label."""
    name: str
    """The method behind it."""
    sees: str
    """What it is given."""
    rank: float | None
    """Its average rank, 1 is best; None where it has none."""
    why: str
    """Why it has none: `reference`, `oracle`, `reached` (`fair.reached`), `few` settings with a
    value; empty where it has one, or where it is none of these."""
    means: Mapping[str, float]
    """Measure -> its mean over the settings, where it has a value in all of them; else nan."""
    counted: int
    """In how many of the settings it has a value that counts."""


@dataclass(frozen=True)
class Board:
    """One leaderboard."""

    dataset: str
    """Label of the data set."""
    model: str
    """Label of the model."""
    budget: float
    """Clean images of the defender: a share below 1, else a count; 0: none."""
    sweeps: tuple[str, ...]
    """Whose rows they are."""
    measures: tuple[str, ...]
    """`asr` and `acc`, or what detectors have; the first ranks."""
    settings: tuple[tuple[Any, ...], ...]
    """Values of `SETTING`, in order."""
    standings: tuple[Standing, ...]
    """The reference first, then by rank, then those without."""
    points: Mapping[tuple[Any, ...], Mapping[str, Any]]
    """(defense, *setting) -> its point."""
    ranks: Ranks | None
    """How they were ranked; None where they could not be."""
    why: str
    """Why they could not."""
    notes: tuple[str, ...]
    """What must be known of the rows, a sentence each."""
    score: str
    """What ACC measures, where it is not accuracy."""


def boards(sweeps: Sequence[Shown]) -> list[Board]:
    """Return the leaderboards of sweeps, by data set, model and budget in the order of theirs.

    Raises:
        SweepError: A sweep has rows of several settings under one label.
    """
    found: dict[tuple[str, str], list[list[Shown]]] = {}
    for sweep in sweeps:
        for (dataset, model), frame in sweep.frame.groupby(["dataset", "model"], sort=False):
            part = Shown(sweep.name, frame, sweep.order, sweep.view)
            groups = found.setdefault((str(dataset), str(model)), [])
            group = next((g for g in groups if all(_alike(part, o) for o in g)), None)
            groups.append([part]) if group is None else group.append(part)
    named = list(dict.fromkeys(d for sweep in sweeps for d in sweep.order.get("dataset", ())))
    order = {name: place for place, name in enumerate(named)}
    keys = sorted(found, key=lambda key: (order.get(key[0], len(order)), *key))
    return [board for key in keys for group in found[key] for board in _boards(group)]


def _alike(one: Shown, other: Shown) -> bool:
    """Whether the rows of two sweeps may be compared: the same under each label they share."""
    rules = [(part.view.untaken, part.view.max_acc_loss) for part in (one, other)]
    if rules[0] != rules[1]:
        return False
    for axis, columns in _MEANS.items():
        for column in columns:
            left, right = (_meanings(part.rows, axis, column) for part in (one, other))
            if any(left[label] != right[label] for label in left.keys() & right.keys()):
                return False
    recipes = [set(part.rows["recipe"].dropna()) for part in (one, other)]
    if all(recipes) and not recipes[0] & recipes[1]:
        return False
    try:
        return not once(pd.concat([one.rows, other.rows]))[1]
    except SweepError:  # two versions of the code
        return False


def _meanings(rows: pd.DataFrame, axis: str, column: str) -> dict[str, frozenset[str]]:
    known = rows[[axis, column]].dropna().drop_duplicates()
    return {str(label): frozenset(part[column]) for label, part in known.groupby(axis)}


def _boards(group: Sequence[Shown]) -> Iterator[Board]:
    """Yield the boards of one data set and model, one for each budget and kind of measure."""
    rows, _ = once(pd.concat([part.rows for part in group]))
    order = {
        axis: list(dict.fromkeys(label for part in group for label in part.order.get(axis, ())))
        for axis in ("attack", "defense")
    }
    budgets = sorted(float(value) for value in rows["clean_budget"].unique() if value) or [0.0]
    for budget in budgets:
        held = rows[rows["clean_budget"].isin([budget, 0.0])]
        whole = _points(held, order, group[0].view)
        detectors = whole[["tpr", "auroc"]].notna().any(axis=1)
        found = set(whole.loc[detectors, "defense"])
        for measures, part in (
            (("asr", "acc"), whole[whole["acc"].notna() | ~whole["defense"].isin(found)]),
            (("auroc", "tpr", "fpr"), whole[whole["defense"].isin(found)]),
        ):
            if len(part):
                yield _board(group, held, budget, measures, part)


def _board(
    group: Sequence[Shown],
    rows: pd.DataFrame,
    budget: float,
    measures: tuple[str, ...],
    part: pd.DataFrame,
) -> Board:
    names = dict(zip(rows["defense"], rows["defense_name"].fillna(rows["defense"]), strict=True))
    references = set(rows.loc[fair.bare(rows), "defense"])
    ranking, why = None, ""
    try:
        ranking = ranks(part[~part["defense"].isin(references)], measures[0])
    except SweepError as error:
        why = str(error).partition(": ")[2].rpartition(":")[0]
    settings = list(part[list(SETTING)].drop_duplicates().itertuples(index=False, name=None))
    settings.sort(key=lambda one: _place(part, one))
    records = part.to_dict("records")
    first = rows.iloc[0]
    return Board(
        dataset=str(first["dataset"]),
        model=str(first["model"]),
        budget=budget,
        sweeps=tuple(sorted({shown.name for shown in group})),
        measures=measures,
        settings=tuple(settings),
        standings=tuple(_standings(part, measures, ranking, references, names)),
        points={
            (p["defense"], *(p[axis] for axis in SETTING)): {str(k): v for k, v in p.items()}
            for p in records
        },
        ranks=ranking,
        why=why,
        notes=tuple(
            filter(None, [fair.sentence(fair.victims(rows)), *conditions.notes(rows)]),
        ),
        score=conditions.score(rows),
    )


def _place(part: pd.DataFrame, setting: tuple[Any, ...]) -> tuple[Any, ...]:
    attack, *numbers = setting
    known = [(pd.isna(number), 0 if pd.isna(number) else number) for number in numbers]
    return (list(part["attack"].cat.categories).index(attack), *known)


def _standings(
    part: pd.DataFrame,
    measures: Iterable[str],
    ranking: Ranks | None,
    references: set[str],
    names: Mapping[str, str],
) -> list[Standing]:
    first, *others = measures
    counted = part.dropna(subset=[f"{first}_counted"])
    settings = len(counted.drop_duplicates(list(SETTING)))
    places = dict(ranking.rank) if ranking else {}
    found = []
    for defense, own in part.groupby("defense", observed=True, sort=False):
        valued = own.dropna(subset=[f"{first}_counted"])
        means = {
            m: float(valued[f"{m}_counted"].mean()) if len(valued) == settings else float("nan")
            for m in (first, *others)
        }
        label = str(defense)
        why = _why(own, label in references, bool(ranking and label in ranking.left_out))
        rank = places.get(defense)
        seen = next((text for text in own["sees"] if text), "")
        found.append(
            Standing(
                label,
                str(names[label]),
                ", ".join(filter(None, seen.split(","))),
                None if rank is None else float(rank),
                why if rank is None else "",
                means,
                len(valued),
            )
        )
    better = MEASURES[first]

    def place(one: Standing) -> tuple[Any, ...]:
        mean = one.means[first]
        known = (mean != mean, 0.0 if mean != mean else -better * mean)
        return (one.defense not in references, one.rank or float("inf"), bool(one.why), *known)

    return sorted(found, key=place)


def _why(own: pd.DataFrame, reference: bool, few: bool) -> str:
    """Why a defense is not ranked: the first of these that holds."""
    reasons = {
        "reference": reference,
        "oracle": own["oracle"].any(),
        "reached": own["reached"].any(),
        "few": few,
    }
    return next((text for text, holds in reasons.items() if holds), "")
