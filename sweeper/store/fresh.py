"""Cells that are to run again: what they left is moved away before they do. No torch.

    replaced/<run>.json     which cells; written first, removed last
    replaced/<run>/...      their artifacts and rows, of all sweeps of the store

While the first is there the move has not ended: none of these cells counts as done, and the next
run that has one of them ends the move before it does anything else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping

from sweeper.plan.source import NAME
from sweeper.store import rowfiles
from sweeper.store.ledger import CHECKPOINT, Ledger
from sweeper.store.sweeps import PLAN

Cells = Mapping[str, Collection[str]]
"""Kind -> keys."""
ABOVE = {"prepare": "clean_model", "train": "state", "stage": "victim"}
"""Kind -> where a cell's parameters name its parent; each has one at most."""


class Fresh(Ledger):
    """A store whose cells can be run again."""

    def replacing(self) -> dict[str, Cells]:
        """What is being moved away, or was when a process stopped: run -> its cells."""
        files = [f.base_name for f in self._list("replaced") if f.base_name.endswith(".json")]
        found = {name: self._json(f"replaced/{name}", {}) for name in files}
        return {name.removesuffix(".json"): cells for name, cells in found.items() if cells}

    def replace(self, run: str, cells: Cells) -> None:
        """Move away what cells left, in all sweeps; repeat it where it was interrupted.

        Args:
            run: Names the folder below `replaced/`.
            cells: The cells, with all that are below them.
        """
        intent = f"replaced/{run}.json"
        self._write(
            intent, json.dumps({kind: sorted(keys) for kind, keys in cells.items()}).encode()
        )
        place = f"replaced/{run}"
        for kind, keys in cells.items():
            there = self.keys(kind)
            for key in keys:
                if key in there:
                    self._away(self._artifact(kind, key), place)
        for key in {f.base_name for f in self._list("checkpoints")} & set(cells.get("train", ())):
            self._away(self._artifact(CHECKPOINT, key), place)
        keys = set(cells.get("defend", ()))
        for sweep in self._sweeps():
            self._rows_away(sweep, keys, place)
            self.drop_gallery(sweep)
            for key in self.failures(sweep) & {key for group in cells.values() for key in group}:
                self._away(f"{self._sweep(sweep)}/failures/{key}.json", place)
        samples = {f.base_name.removesuffix(".parquet") for f in self._list("samples")}
        for key in samples & keys:
            self._away(f"samples/{key}.parquet", place)
        self._delete(intent)

    def holders(self, cells: Cells) -> list[str]:
        """Sweeps whose last matrix has one of these cells, or whose rows are of one."""
        keys = {key for group in cells.values() for key in group}
        found = []
        for sweep in self._sweeps():
            outline = self._json(f"{self._sweep(sweep)}/plan.json", PLAN) or {}
            known = {*outline.get("cells", ()), *outline.get("above", ())}
            if not keys.isdisjoint(known) or not keys.isdisjoint(self.statuses(sweep)):
                found.append(sweep)
        return found

    def _sweeps(self) -> Iterator[str]:
        return (name for name in self.sweeps() if NAME.fullmatch(name))

    def _away(self, path: str, place: str) -> None:
        self._move(path, f"{place}/{path.replace('/', '-')}-{time.time_ns()}")

    def _rows_away(self, sweep: str, keys: set[str], place: str) -> None:
        """Move rows of these cells; a file of several rows is written anew under its own name."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(sorted(keys), pa.string())
        for file in self._files(sweep):
            if file.key:
                if file.key in keys:
                    self._away(file.path, place)
                continue
            found = self._glance(None, file)
            if found is None:
                continue
            table = found.drop_columns(rowfiles.AGE)
            mine = pc.is_in(table["key"], wanted)
            if pc.any(mine, min_count=0).as_py():
                stem = file.path.rpartition("/")[2].removesuffix(".parquet")
                name = f"{sweep}-{stem}-{time.time_ns()}.parquet"
                self._write(f"{place}/{name}", rowfiles.encoded(table.filter(mine)))
                self._write(file.path, rowfiles.encoded(table.filter(pc.invert(mine))))
