"""Which rows say something of a defense: a backdoor was there, and nothing was seen or guessed.

A victim *did not take* where the attack left no backdoor in it (ASR below `TOOK` undefended; the
clean model needs none), or where it learned nothing (ACC within `NEAR_CHANCE` of chance).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from sweeper.tables.layout import name, word

TOOK = 0.5
"""The ASR an undefended victim must reach to carry a backdoor."""
NEAR_CHANCE = 0.05
"""An ACC above chance by less than this is that of a model that has learned nothing. A distance, as
a multiple of chance would call 70 % of two classes nothing, and the most frequent class of 43 not.
"""
TRIGGERED = ("asr", "asr_all", "leak", "ra", "der")
"""The metrics of triggered images: a model that guesses, or always says the same, is good in some
of them, so they need an ACC that has not fallen."""
_FILTERED = ("tpr", "fpr", "f1", "auroc", "tpr_at_5")
"""Those of them that a filter of inputs has."""
UNTAKEN = (
    f"the victim carries no backdoor (undefended ASR below {100 * TOOK:g} %) or has learned "
    f"nothing (undefended ACC within {100 * NEAR_CHANCE:g} points of chance)"
)
"""What the sign of an untaken victim says."""
HELPS = (
    "train longer (recipe.epochs), raise poison_rates, enlarge the trigger, and neither crop nor "
    "flip where it lies in a corner"
)
"""What usually gives a victim its backdoor."""
_VICTIM = ("dataset", "model", "attack", "poison_rate", "target", "seed", "victim")


def undefended(data: pd.DataFrame) -> pd.DataFrame:
    """Return `acc` and `asr` of the victim behind each row; nan where no row says.

    They are the row's `_before` columns, else what its victim has in the row of defense `none`.
    """
    measured = data["status"].eq("ok") & bare(data)
    found = {}
    for metric in ("acc", "asr"):
        before = data[f"{metric}_before"].astype(np.float64)
        if before.isna().any():
            own = data[metric].astype(np.float64).where(measured)
            by = own.groupby([data[axis] for axis in _VICTIM], dropna=False)
            before = before.fillna(by.transform("mean"))
        found[metric] = before
    return pd.DataFrame(found)


def untaken(data: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows have a victim that did not take; no where the rows do not say."""
    before = undefended(data)
    poisoned = data["attack_name"].fillna(data["attack"]).ne("none")
    known = data["n_classes"].groupby(data["dataset"]).transform("max")  # older rows do not say
    classes = known.astype("Float64").to_numpy(np.float64, na_value=np.nan)
    near = before["acc"] < 1 / classes + NEAR_CHANCE
    return (before["asr"].lt(TOOK) & poisoned) | near


def taken(data: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows count in a mean over seeds: not those of a victim that did not take.

    Where that is so of each seed of a setting, all count: there is no other figure.
    """
    lost = untaken(data)
    setting = [data[axis] for axis in _VICTIM if axis not in ("seed", "victim")]
    return ~lost | lost.groupby(setting, dropna=False).transform("all")


def blind(data: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows have a victim that came without its trigger, or average over one."""
    imported = data["attack_name"].eq("imported") & data["n_triggered"].eq(0)
    averaged = data.get("blind", pd.Series(False, data.index)).eq(True)
    return imported.fillna(False).astype(bool) | averaged


def unknown(data: pd.DataFrame, metric: str) -> pd.Series[bool]:
    """Return which rows have no value of a metric because their victim came without its trigger."""
    if metric in ("asr_before", "ra_before"):
        return blind(data)
    if metric in TRIGGERED:
        return blind(data) & data["acc"].notna()
    return blind(data) & data["kind"].eq("input filter") & (metric in _FILTERED)


def bare(data: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows are those of no defense."""
    return data["defense_name"].eq("none").fillna(False).astype(bool) | data["defense"].eq("none")


def oracles(data: pd.DataFrame) -> frozenset[Any]:
    """Return the defenses that know what no defender does: test data, or facts of the attack."""
    oracle = data["oracle"].astype("boolean").fillna(False).astype(bool)
    return frozenset(data.loc[oracle, "defense"])


def listed(data: pd.DataFrame, column: str) -> dict[Any, tuple[str, ...]]:
    """Return defense -> what its rows list in a JSON column, where that is anything."""
    found: dict[Any, dict[str, None]] = {}
    pairs = data[["defense", column]].dropna().drop_duplicates().sort_values(["defense", column])
    for defense, text in pairs.itertuples(index=False, name=None):
        if items := json.loads(text):
            found.setdefault(defense, {}).update(dict.fromkeys(map(str, items)))
    return {defense: tuple(items) for defense, items in found.items()}


def reached(data: pd.DataFrame) -> dict[Any, str]:
    """Return what each defense that was seen to do so reached beyond what it was given."""
    return {defense: shortened(seen) for defense, seen in listed(data, "seen").items()}


def reaching(found: Mapping[Any, str]) -> str:
    """Return what the sign of the defenses that `reached` found says."""
    told = "; ".join(f"{defense}: {what}" for defense, what in found.items())
    return (
        f"reached beyond what a defense may see ({told}); evidence, no proof; never bold or ranked"
    )


def barred(data: pd.DataFrame) -> pd.Series[bool]:
    """Return which rows do not compete: those of oracles, and of defenses that `reached` finds.

    One row that reached beyond what it was given bars all rows of its defense.
    """
    return data["defense"].isin(oracles(data) | reached(data).keys())


def acc_loss(data: pd.DataFrame) -> pd.Series[float]:
    """Return by how much the ACC of each row lies below that of its victim; nan where unknown."""
    return undefended(data)["acc"] - data["acc"].astype(np.float64)


def shortened(items: Iterable[str], limit: int = 5) -> str:
    """Return the first of `items`, and how many more there are."""
    every = list(items)
    more = [f"and {len(every) - limit} more"] if len(every) > limit else []
    return ", ".join([*every[:limit], *more])


def victims(data: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the victims behind the rows, each once, as JSON values.

    Keys: the axes of a victim, its key, its undefended `acc` and `asr` (null: not known), and
    whether it is `untaken`.
    """
    before = undefended(data).add_prefix("_")
    whole = data[list(_VICTIM)].assign(**before, untaken=untaken(data))
    whole = whole[before.notna().any(axis=1)].drop_duplicates(list(_VICTIM))
    plain = whole.astype(object).where(whole.notna(), None)
    plain = plain.rename(columns={"_acc": "acc", "_asr": "asr"})
    return [
        {str(key): v.item() if isinstance(v, np.generic) else v for key, v in record.items()}
        for record in plain.to_dict("records")
    ]


def sentence(given: Iterable[Mapping[str, Any]]) -> str:
    """Return which of the `victims` did not take, and what helps; empty where all did."""
    every = list(given)
    lost = [victim for victim in every if victim["untaken"]]
    if not lost:
        return ""
    axes = [a for a in _VICTIM[:-1] if a == "attack" or len({v[a] for v in every}) > 1]
    named = [
        " ".join([_said(axis, victim[axis]) for axis in axes if victim[axis] is not None])
        + f" ({', '.join(_rate(metric, victim[metric]) for metric in ('asr', 'acc'))})"
        for victim in lost
    ]
    carry, have = ("carries", "has") if len(lost) == 1 else ("carry", "have")
    count = f"{len(lost)} of {len(every)} victim{'s' * (len(every) > 1)}"
    return (
        f"{count} {carry} no backdoor (ASR below {100 * TOOK:g} %) or {have} learned nothing (ACC "
        f"near chance): {shortened(named)}. What usually helps: {HELPS}."
    )


def _said(axis: str, value: Any) -> str:
    text = word(axis, value)
    return text if axis in ("dataset", "model", "attack", "poison_rate") else f"{name(axis)} {text}"


def _rate(metric: str, value: float | None) -> str:
    return f"{metric.upper()} " + ("n/a" if value is None else f"{100 * value:.1f}")
