"""What this project measured with its own sweeps, to stand beside published figures and yours.

`sweeps/measured/NAME.parquet` holds rows of the shipped sweep NAME as a store has them, with
device, versions, recipe and seed, less what only their run needed. To add some:

    python -m sweeper.tables.measured ROWS.parquet ...
"""

from __future__ import annotations

import functools
import importlib.resources
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sweeper.core import rows
from sweeper.core.errors import SweepError
from sweeper.core.rows import METRICS, schema
from sweeper.engine import recipes
from sweeper.plan import source
from sweeper.tables import conditions, fair, results
from sweeper.tables.published import AVERAGE, Figure
from sweeper.tables.results import SETTINGS

FOLDER = "measured"
_RUN = ["dataset", "dataset_options", "model", "model_options", "recipe", "device", "versions"]
"""Rows that agree in these were measured as one."""
_SIZES = {"train_size": "training images", "test_size": "test images"}
_CELL = ["attack", "poison_rate", "target", "clean_budget", "defense"]
_METHODS = ("attack", "defense")
_SET = [f"{kind}_options" for kind in _METHODS]


def sweeps() -> list[str]:
    """Return the shipped sweeps of which something was measured."""
    folder = importlib.resources.files("sweeper.sweeps") / FOLDER
    if not folder.is_dir():
        return []
    names = [file.name for file in folder.iterdir()]
    return sorted(name[: -len(".parquet")] for name in names if name.endswith(".parquet"))


def frame(sweep: str) -> pd.DataFrame:
    """Return the measured rows of a shipped sweep; none where none are.

    They are as `results.frame` has them, but for a cell measured on several devices, or by several
    versions of the code, each of which has its row.
    """
    if sweep not in sweeps():
        return results.frame([])
    file = importlib.resources.files("sweeper.sweeps") / FOLDER / f"{sweep}.parquet"
    return _each(pq.read_table(io.BytesIO(file.read_bytes())))


def _each(table: pa.Table) -> pd.DataFrame:
    """The rows of a table, each cell once for each device and code."""
    groups = table.to_pandas().groupby(["device", "versions"], dropna=False).indices
    return pd.concat([results.frame([table.take(place)]) for place in groups.values()])


def figures(sweep: str, beside: pd.DataFrame | None = None) -> tuple[Figure, ...]:
    """Return the measured cells of a shipped sweep, means over the seeds, the newest first.

    A seed whose victim did not take counts where that is so of all (`fair.taken`).

    Args:
        sweep: Its name.
        beside: The rows they will stand beside: what was measured on other data, or on another
            number of images, is left out, and what else differs is noted. Default: all but what
            had other options than the sweep gives to its label now.
    """
    rows = frame(sweep)
    if beside is None:
        rows = rows.loc[_current(rows, sweep)]
    groups = rows.groupby(_RUN, dropna=False, sort=False)
    found = []
    for _, group in groups:
        group = group.reset_index(drop=True)
        if beside is None or _same_data(group, beside):
            found.append((group["started_at"].max(), list(_figures(group, beside))))
    found.sort(key=lambda pair: pair[0], reverse=True)
    return tuple(figure for _, part in found for figure in part)


def _current(rows: pd.DataFrame, sweep: str) -> list[bool]:
    """Which rows have the options that the shipped sweep gives to their labels now."""
    from sweeper.plan import spec

    declared = spec.load(sweep)
    set_now = {
        (kind, entry.label): entry.options
        for kind in _METHODS
        for entry in getattr(declared, f"{kind}s")
    }

    def agrees(row: Mapping[Any, Any], kind: str) -> bool:
        had = json.loads(row[f"{kind}_options"] or "{}")
        wanted = set_now.get((kind, row[kind]), {})
        return all(had[name] == value for name, value in wanted.items() if name in had)

    return [all(agrees(row, kind) for kind in _METHODS) for row in rows.to_dict("records")]


def _figures(group: pd.DataFrame, beside: pd.DataFrame | None) -> Iterator[Figure]:
    """The cells of one run."""
    first, date = group.iloc[0], str(group["started_at"].max())[:10]
    whole = results.averages(group, AVERAGE) if group["attack"].nunique() > 1 else group
    whole = whole[fair.taken(whole)]
    for _, cell in whole.groupby([*_CELL, *_SET], dropna=False, sort=False):
        named = cell.iloc[0]
        means, sds = (getattr(cell[list(METRICS)], name)().dropna() for name in ("mean", "std"))
        rate, budget = named["poison_rate"], named["clean_budget"]
        yield Figure(
            sweep=str(first["sweep"]),
            dataset=str(first["dataset"]),
            model=str(first["model"]),
            attack=str(named["attack"]),
            poison_rate=None if pd.isna(rate) else float(rate),
            defense=str(named["defense"]),
            values={str(name): float(value) for name, value in means.items()},
            source=_source(first, date, cell["seed"]),
            wording="",
            note="",
            measured=True,
            score=conditions.score(group),
            sd={str(name): float(value) for name, value in sds.items()},
            target=int(named["target"]),
            clean_budget=0.0 if pd.isna(budget) else float(budget),
            differs=() if beside is None else tuple(_differences(cell, beside)),
        )


def _same_data(group: pd.DataFrame, beside: pd.DataFrame) -> bool:
    """Whether rows are of the same data as those they will stand beside, as far as these say."""
    theirs = beside.loc[beside["dataset"] == group["dataset"].iloc[0], "dataset_options"].dropna()
    return theirs.empty or group["dataset_options"].iloc[0] in set(theirs)


def _differences(cell: pd.DataFrame, beside: pd.DataFrame) -> Iterator[str]:
    """Say what was set otherwise than in the rows of the same labels."""
    first, match = cell.iloc[0], pd.Series(True, index=beside.index)
    for axis in ("dataset", "model", "attack", "poison_rate", "defense"):
        match &= beside[axis] == first[axis]
    ours = beside[match]
    for name in SETTINGS:
        values = set(ours[name].dropna())
        if not values or pd.isna(first[name]) or first[name] in values:
            continue
        if name == "recipe":
            place = str(first["dataset"]), str(first["model"])
            theirs = " or ".join(sorted(recipe_name(value, *place) for value in values))
            yield f"recipe {recipe_name(first[name], *place)}, ours {theirs}"
        else:
            what = name.partition("_")[0]
            yield f"other options of {first.get(what, what)}"


@functools.lru_cache(maxsize=64)
def recipe_name(recipe: str, dataset: str, model: str) -> str:
    """Return what a sweep file would call a recipe: the nearest shipped one, and its changes.

    Args:
        recipe: Its fields as JSON, as a row has them.
        dataset: The data set.
        model: The architecture.
    """
    given: dict[str, Any] = json.loads(recipe)
    best: tuple[str, dict[str, Any]] | None = None
    for name in recipes.RECIPES:
        base = json.loads(json.dumps(vars(recipes.resolve(name, dataset, model))))
        changes = {key: value for key, value in given.items() if base.get(key, value) != value}
        if best is None or len(changes) < len(best[1]):
            best = name, changes
    assert best
    changed = ", ".join(f"{key} {json.dumps(value)}" for key, value in best[1].items())
    return f"{best[0]} with {changed}" if changed else best[0]


def _source(first: pd.Series[Any], date: str, seeds: Iterable[int]) -> str:
    """Say on what, when and how the seeds of a cell were measured, from a row of its run."""
    said, seeds = [str(first["device"]), date], sorted({int(seed) for seed in seeds})
    options, versions = json.loads(first["dataset_options"]), json.loads(first["versions"])
    sizes = [f"{options[name]} {what}" for name, what in _SIZES.items() if options.get(name)]
    said += [", ".join(sizes)] * bool(sizes)
    said.append(f"recipe {recipe_name(first['recipe'], first['dataset'], first['model'])}")
    said.append(f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}")
    return "; ".join([*said, f"torch {versions.get('torch', 'unknown')}"])


def add(files: Sequence[Path], folder: Path) -> list[str]:
    """Add the rows of files that ended well to those of `folder`.

    Of a cell, device and code the row of the last file named counts. One measured on another device
    or by other code stays beside it.

    Returns:
        A line for each sweep: how many rows it has now.

    Raises:
        SweepError: A row is not of a shipped sweep, or does not say where it was measured.
    """
    given = pd.concat([results.frame([]), *(_each(pq.read_table(file)) for file in files)])
    given = given[given["status"] == "ok"]
    results.require(given)
    if strange := sorted(set(given["sweep"]) - set(source.shipped())):
        raise SweepError(f"{', '.join(strange)}: no such sweep is shipped; only theirs are kept")
    if given[["device", "versions", "recipe", "started_at"]].isna().any(axis=None):
        raise SweepError("a row lacks its device, versions, recipe or start: it proves nothing")
    given = given.assign(notes=None)
    folder.mkdir(exist_ok=True)
    said = []
    for sweep, part in given.groupby("sweep"):
        path = folder / f"{sweep}.parquet"
        tables = [pq.read_table(path)] if path.exists() else []
        merged = _merged([*tables, pa.Table.from_pandas(part[schema().names], schema(), False)])
        pq.write_table(rows.table(merged), path, compression="zstd")
        said.append(f"{path}: {len(merged)} rows")
    return said


def _merged(tables: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """The last row of each cell, device and code."""
    whole = pa.concat_tables(tables, promote_options="permissive").to_pylist()
    last = {(row["key"], row["device"], row["versions"]): row for row in whole}
    order = ("dataset", "model", "attack", "poison_rate", "defense", "seed", "device", "versions")
    return sorted(last.values(), key=lambda row: [str(row[name]) for name in order])


if __name__ == "__main__":
    import sys

    place = Path(__file__).parent.parent / "sweeps" / FOLDER
    try:
        sys.stdout.writelines(f"{line}\n" for line in add(list(map(Path, sys.argv[1:])), place))
    except SweepError as error:
        sys.exit(str(error))
