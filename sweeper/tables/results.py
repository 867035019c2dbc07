"""The rows of sweeps as one pandas frame: every cell once, in an order the parts cannot change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from sweeper.core import advice
from sweeper.core.errors import SweepError, unknown
from sweeper.core.rows import AXES, DEVICES, FINISHED, METRICS, UNFINISHED, schema
from sweeper.tables import fair

SETTINGS = (
    "attack_name attack_options rule defense_name defense_options dataset_options model_options "
    "recipe"
).split()
"""What can differ under one label: becomes an axis where two rows would else share a seed."""

NAMED = (
    *AXES,
    *(
        "status kind task attack_name defense_name rule sees device device_kind dtype torch "
        "victim_device victim victim_dtype sweep key"
    ).split(),
)
"""The columns that rows can be chosen by."""

_NUMBERS = ("poison_rate", "clean_budget", "target", "seed")


def frame(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """Return the rows of `tables` as one frame, each (sweep, key) once, sorted by axes and key.

    A store gives each once; of several from several files `one_each` says which stays. Columns an
    older file lacks are null; columns the schema does not know stay, after the others. Whole
    numbers and truth values are pandas' nullable types.

    Raises:
        SweepError: Two files hold the same column with types that do not go together.
    """
    try:
        whole = pa.concat_tables(
            [schema().empty_table(), *tables],
            promote_options="permissive",
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise SweepError(
            f"results: the files cannot be read as one table ({error}); move the older ones out of "
            "the sweep's results folder and run the sweep again"
        ) from error
    names = [*schema().names, *sorted(set(whole.column_names) - set(schema().names))]
    types = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    data: pd.DataFrame = whole.select(names).to_pandas(types_mapper=types.get)
    data = one_each(data, ["sweep", "key"])
    return data.sort_values([*AXES, "key", "sweep"], kind="stable", ignore_index=True)


def one_each(data: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return one row for each combination of the columns `by`: a finished one, where one is.

    Among those the contents decide (`ok` before other states), so the order of `data` does not. No
    clocks are compared: those of two machines differ.
    """
    data = data.reset_index(drop=True)
    again = data.duplicated(list(by), keep=False)
    if not again.any():
        return data
    pool = data[again].assign(_finished=data["status"].isin(FINISHED), _ok=data["status"] == "ok")
    names = sorted(schema().names, key="started_at".__eq__)  # last: only where all else is equal
    pool = pool.sort_values(["_finished", "_ok", *names], na_position="first")
    kept = pool.drop_duplicates(list(by), keep="last").index
    return data[~again | data.index.isin(kept)].reset_index(drop=True)


def declared(
    data: pd.DataFrame, sweep: str, cells: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """Return the rows as those of one sweep, each cell once, under the labels its file has now.

    Args:
        data: From `frame`; rows of other sweeps may be among them.
        sweep: Its name.
        cells: Key -> axes as the sweep has them; an axis that is not there stays as it is.
    """
    data = one_each(data.assign(sweep=sweep), ["key"])
    for axis in AXES:
        now = data["key"].map({key: axes[axis] for key, axes in cells.items() if axis in axes})
        data[axis] = now.astype(data[axis].dtype).fillna(data[axis])
    return data.sort_values([*AXES, "key"], kind="stable", ignore_index=True)


def completed(data: pd.DataFrame, sweep: str, outline: Mapping[str, Any]) -> pd.DataFrame:
    """Return `data` with a row for each cell it lacks: of status `missing`, or not_applicable.

    Args:
        data: From `declared`; not empty, else nothing is added.
        sweep: Its name.
        outline: The matrix, as `sweeper.run.present.outline` says it.
    """
    have, no = set(data["key"]), set(outline.get("inapplicable", ()))
    tasks = {label: fact["task"] for label, fact in outline.get("facts", {}).items()}
    lacking = [
        {
            **axes,
            "sweep": sweep,
            "key": key,
            "status": "not_applicable" if key in no else "missing",
            "task": tasks.get(axes["dataset"]),
        }
        for key, axes in outline["cells"].items()
        if key not in have and axes
    ]
    if data.empty or not lacking:
        return data
    added = pd.DataFrame(lacking)
    return pd.concat([data, added.astype(data.dtypes[added.columns])], ignore_index=True)


def require(data: pd.DataFrame) -> None:
    """Do nothing if there is at least one row.

    Raises:
        SweepError: There is none.
    """
    if data.empty:
        raise SweepError(f"no rows yet: {advice.command('run')} makes them")


def select(data: pd.DataFrame, **filters: Any) -> pd.DataFrame:
    """Return the rows that have the values asked for.

    Args:
        data: What `frame` returned.
        **filters: Axis, or another column of `NAMED`, -> a value or several; numbers may be given
            as text, also in percent. A filter on `clean_budget` also keeps the defenses that see no
            clean data (budget 0): they belong beside every budget.

    Raises:
        SweepError: No rows at all, an unknown column, a value that occurs nowhere, or values that
            never occur together.
    """
    require(data)
    mask = pd.Series(True, index=data.index)
    for axis, values in filters.items():
        if axis not in NAMED:
            raise SweepError(f"--where: {unknown('axis', axis, NAMED)}")
        several = isinstance(values, Iterable) and not isinstance(values, str)
        labels = [_value(data, axis, item) for item in (values if several else [values])]
        matches = data[axis].isin(labels)
        if axis == "clean_budget":
            matches |= data[axis].fillna(0.0) == 0
        mask &= matches.astype(bool)
    if not mask.any():
        conditions = ", ".join(f"{axis}={values}" for axis, values in filters.items())
        raise SweepError(
            f"results: no row has {conditions}: each value occurs, but not together; leave one out"
        )
    return data[mask].reset_index(drop=True)


def once(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return each cell once, and the settings that must be axes so that no seed counts twice.

    Sweeps may share a cell: `one_each` says whose row stays. Rows that agree in all axes come from
    other settings under the same labels: those that differ are returned.

    Raises:
        SweepError: Rows differ in nothing but their key: they come from two versions of the code.
    """
    data = one_each(frame, ["key"])
    data["clean_budget"] = data["clean_budget"].fillna(0.0)
    again = data[data.duplicated(list(AXES), keep=False)]
    if again.empty:
        return data, []
    same = again.groupby(list(AXES), dropna=False)
    settings = [name for name in SETTINGS if (same[name].nunique() > 1).any()]
    twins = data[data.duplicated([*AXES, *settings], keep=False)].sort_values([*AXES, "key"])
    if not twins.empty:
        first, second = (str(key)[:12] for key in twins["key"].iloc[:2])
        raise SweepError(
            f"results: rows {first} and {second} differ in nothing but their key, so two versions "
            "of the code made them: keep the rows of one"
        )
    return data, settings


def spread(data: pd.DataFrame) -> pd.DataFrame:
    """Repeat the rows with clean budget 0 for every budget of their line.

    They belong to defenses that see no clean data, so they hold for any budget. With a single other
    budget they simply join it.
    """
    free = (data["clean_budget"] == 0).to_numpy()
    budgets = np.sort(data.loc[~free, "clean_budget"].unique())
    if not len(budgets) or not free.any():
        return data
    peers = ["dataset", "model", "attack", "poison_rate", "target"]
    pairs = data.loc[~free, [*peers, "clean_budget"]].drop_duplicates()
    free_rows = data.loc[free, peers].assign(position=np.flatnonzero(free))
    joined = free_rows.merge(pairs, on=peers, how="left")
    unmatched = joined["clean_budget"].isna()  # nothing that uses clean data ran on this line yet
    alone = joined.loc[unmatched, "position"].to_numpy()
    positions = [
        np.flatnonzero(~free),
        joined.loc[~unmatched, "position"].to_numpy(),
        np.repeat(alone, len(budgets)),
    ]
    given = [
        data.loc[~free, "clean_budget"].to_numpy(),
        joined.loc[~unmatched, "clean_budget"].to_numpy(),
        np.tile(budgets, len(alone)),
    ]
    out = data.iloc[np.concatenate(positions)].reset_index(drop=True)
    return out.assign(clean_budget=np.concatenate(given))


def trials(data: pd.DataFrame, metric: str) -> npt.NDArray[np.float64]:
    """Return the test samples `metric` is a share of, one number a row; nan where it is no share.

    ASR is one; ACC and RA are where the task's score is accuracy: BLEU and mAP are none, and have
    no interval with one seed.
    """
    if metric not in ("acc", "asr", "ra"):
        return np.full(len(data), np.nan)
    counts = data["n_test" if metric == "acc" else "n_triggered"].astype("Float64")
    share = data["score"].fillna("accuracy").eq("accuracy") | (metric == "asr")
    return np.asarray(counts.where(share).astype(np.float64), dtype=np.float64)


def by_task(frame: pd.DataFrame, datasets: Sequence[str] = ()) -> list[pd.DataFrame]:
    """Return the rows of each task, in the order of the data sets; all at once where there is one.

    Of several tasks' rows, those of attacks that none of a task's data sets can have are left out.
    """
    told = frame.groupby("dataset")["task"].transform("first")  # rows not run yet do not say
    task = frame["task"].fillna(told).fillna("image")
    order = {name: place for place, name in enumerate(datasets)}
    first = frame["dataset"].map(order).fillna(len(order)).groupby(task).min().sort_values()
    if len(first) < 2:
        return [frame]
    parts = (frame[task == name] for name in first.index)
    return [
        part[~part["status"].eq("not_applicable").groupby(part["attack"]).transform("all")]
        for part in parts
    ]


def averages(data: pd.DataFrame, label: str, *, untaken: bool = False) -> pd.DataFrame:
    """Return `data` with rows of attack `label`: the means over the attacks, seed by seed.

    There is one only where every attack of the data set and model has ended well: a mean of the
    attacks that happened to end is another table's. Where each attack has one poison rate, the rows
    have it too, or none if the rates differ. The clean model (attack `none`) does not count. Costs
    have no mean over several devices.

    Args:
        data: From `frame`.
        label: What to call the average.
        untaken: Whether victims that did not take (`fair.untaken`) count. Else they are left out,
            and the column `left_out` says of which averages.

    Raises:
        SweepError: An attack is already called so.
    """
    if (data["attack"] == label).any():
        raise SweepError(f"tables: an attack is called {label!r}: give it another name with `as:`")
    single = bool((data.groupby("attack")["poison_rate"].nunique(dropna=False) <= 1).all())
    axes = [a for a in AXES if a != "attack" and not (single and a == "poison_rate")]
    cells = once(data[data["attack"] != "none"])[0]
    peers = cells.groupby(["dataset", "model"], dropna=False)["attack"].transform("nunique")
    lost = fair.untaken(cells) & (not untaken)
    cells = cells.assign(
        **cells[list(METRICS)].mask(lost),
        status=cells["status"].mask(lost, "ok"),  # whatever became of it, no average waits for it
        _of=peers,
        _lost=lost,
        _blind=fair.blind(cells),
    )
    by = cells.assign(_ok=cells["status"] == "ok").groupby(axes, dropna=False)
    kept = ["defense_name", "sees", "oracle", "sweep", "kind", "device", "victim_device"]
    constant = by[kept + ["poison_rate"] * single].agg(_only)
    mean = by[list(METRICS)].mean()
    for cost, device in DEVICES.items():
        mean.loc[by[device].nunique(dropna=False) > 1, cost] = np.nan
    mean.loc[by["_blind"].any(), list(fair.TRIGGERED)] = np.nan
    complete = (by["_ok"].sum() == by["_of"].first()) & ~by["_lost"].all()
    rows = pd.concat([constant, mean], axis=1).assign(
        status=by["status"].agg(_worst), left_out=by["_lost"].any(), blind=by["_blind"].any()
    )
    rows = rows[complete | (rows["status"] != "ok")].reset_index()  # else one has not run yet
    if rows.empty:
        return data
    rows = rows.assign(attack=label, attack_name=label)
    rows["key"] = rows[axes].astype(str).agg("/".join, axis=1) + f"/{label}"
    data = data.assign(left_out=False, blind=False)
    return pd.concat([data, rows.astype(data.dtypes[rows.columns])], ignore_index=True)


def _only(part: pd.Series[Any]) -> Any:
    """Return the one value of `part`; None where there are several."""
    return part.iloc[0] if part.nunique(dropna=False) == 1 else None


def _worst(part: pd.Series[Any]) -> Any:
    """Return the first state in which one has not ended well; `ok` where all have."""
    return next((s for s in (*UNFINISHED, *FINISHED[1:]) if (part == s).any()), "ok")


def _value(data: pd.DataFrame, axis: str, given: Any) -> Any:
    """Return `given` as the axis' own type, if it occurs there."""
    present = data[axis].dropna().unique().tolist()
    value = given
    if axis in _NUMBERS:
        try:
            text = str(given)
            value = float(text.rstrip("% ")) / (100 if text.endswith("%") else 1)
        except (TypeError, ValueError):
            value = None
    if value not in present:
        raise SweepError(
            f"--where {axis}: {unknown(axis, given, [str(label) for label in present])}"
        )
    return value
