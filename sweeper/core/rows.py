"""The row a defense cell writes: its columns, their types, and the states a cell can end in."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sweeper.core import text

if TYPE_CHECKING:
    import pyarrow as pa

FINISHED = ("ok", "diverged", "not_applicable")
"""States that running again would only repeat."""
UNFINISHED = ("failed", "timeout", "blocked")
"""States the next run of the sweep tries again."""

_TEXT = (
    "sweep key victim status error dataset dataset_options model model_options recipe attack "
    "attack_name attack_options rule rate_base defense defense_name defense_options kind sees "
    "device victim_device notes versions started_at dtype victim_dtype device_kind "
    "victim_device_kind capability torch victim_torch cuda python data_hash code seen left_behind "
    "task score"
).split()
_REAL = (
    "poison_rate clean_budget acc_before acc_nontarget_before asr_before ra_before acc "
    "acc_nontarget asr asr_all ra leak cross_acc der tpr fpr precision auroc tpr_at_5 f1 seconds "
    "victim_seconds peak_memory_mb"
).split()
_WHOLE = (
    "target seed n_poisoned n_clean n_test n_triggered n_classes threads victim_threads"
).split()

_COLUMNS = (*_TEXT, *_REAL, *_WHOLE, "oracle")
METRICS = tuple(_REAL[2:])
"""The numeric columns a table can show."""
DEVICES = {"seconds": "device", "victim_seconds": "victim_device", "peak_memory_mb": "device"}
"""The costs, and the column that says where each was measured."""
CONDITIONS = {
    "dtype": "precision of the defense",
    "victim_dtype": "precision of the victim",
    "threads": "threads of the defense",
    "victim_threads": "threads of the victim",
    "device_kind": "device of the defense",
    "victim_device_kind": "device of the victim",
    "capability": "instructions of the device",
    "torch": "torch of the defense",
    "victim_torch": "torch of the victim",
    "cuda": "CUDA",
    "python": "Python",
    "data_hash": "content of the data set",
}
"""The columns that say under what a row was measured, and in words: two rows that differ in one of
them may differ in their numbers though their keys are the same."""
AXES = ("dataset", "model", "attack", "poison_rate", "target", "clean_budget", "defense", "seed")
"""The columns that say which cell of the declared matrix a row is."""

_NAMES = frozenset(("sweep", "key", "victim", "status", *AXES))
"""Columns that name what a row is of, and stay as the sweep file has them."""


@functools.cache
def schema() -> pa.Schema:
    """Return the columns of a row with their types.

    Rates and metrics are fractions in [0, 1]; options, recipe, notes, versions, code, seen and
    left_behind are JSON; a column that does not apply to a row, or that older code did not write,
    is null. `attack`, `defense`, `dataset` and `model` are the labels of the sweep file, the
    `_name` columns the methods behind them. `sees` is comma-separated.

    task: what the samples are. score: what acc measures: accuracy, or another score of the task.
    code: attack, defense, engine, victim_engine -> the hash of the code that ran
    (`sweeper.core.code`), the first and the last where the victim was trained; null where its
    manifest does not say. seen: a list of what a method that does not ship with the sweeper was
    seen to reach beyond what it was given. left_behind: a list of what a method changed in its
    process that could not be undone.
    """
    import pyarrow as pa  # here: a plan asks for the names alone

    return pa.schema(
        [(name, pa.string()) for name in _TEXT]
        + [(name, pa.float64()) for name in _REAL]
        + [(name, pa.int64()) for name in _WHOLE]
        + [("oracle", pa.bool_())]
    )


def table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return an Arrow table of `rows`; a column missing in a row is null.

    Any text can be stored: `sweeper.core.text` says what becomes of what Arrow would refuse, and of
    a long error.

    Raises:
        KeyError: A row has a column the schema does not know.
    """
    for row in rows:
        if stray := set(row).difference(_COLUMNS):
            raise KeyError(f"not a column of a row: {sorted(stray)}")
    import pyarrow as pa

    return pa.Table.from_pylist([_storable(row) for row in rows], schema=schema())


def _storable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its texts as Arrow takes them; but for names, none tells a home."""

    def clean(name: str, value: str) -> str:
        if name == "error":
            return text.error(value)
        return text.utf8(value if name in _NAMES else text.without_homes(value))

    return {k: clean(k, v) if isinstance(v, str) else v for k, v in row.items()}
