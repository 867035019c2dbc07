"""What a store keeps of a sweep beside its rows: its text, its plan, who runs it. No torch.

    sweeps/<sweep>/sweep.yaml, plan.json, driver.json, gallery.json
    sweeps/<sweep>/failures/<key>.json

What is not what was written is set aside when it is read: then it is as if it were not there.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.core import advice, text
from sweeper.core.errors import SweepError
from sweeper.plan.source import NAME
from sweeper.store.files import Files
from sweeper.store.rowfiles import KEY

PLAN = {"cells": dict}
FAILURE = {"status": str, "error": str, "run": str}
CLAIM = {"run": str, "who": str, "pid": int, "since": str}
GALLERY = {"of": str, "pictures": list, "left_out": list}
"""What these files of a sweep have in any case, and of what types."""
_DRAWN = 1
"""Raised when the pictures of triggers are drawn otherwise."""

Pictures = Sequence[tuple[str, bytes]]
"""Pictures as PNG, each after its title."""


class Sweeps(Files):
    """The sweeps of one store."""

    def save_sweep(self, sweep: str, content: str) -> None:
        """Keep the sweep as it was run, beside its results."""
        self._write(f"{self._sweep(sweep)}/sweep.yaml", content.encode())

    def sweep_text(self, sweep: str) -> str:
        """The text `save_sweep` kept; empty before the first run."""
        with contextlib.suppress(FileNotFoundError):
            return self._read(f"{self._sweep(sweep)}/sweep.yaml").decode(errors="replace")
        return ""

    def save_plan(self, sweep: str, outline: Mapping[str, Any]) -> None:
        """Keep which cells the sweep now has: rows of other cells are not shown."""
        self._write(f"{self._sweep(sweep)}/plan.json", json.dumps(outline).encode())

    def plan(self, sweep: str) -> dict[str, Any]:
        """The outline `save_plan` kept.

        Raises:
            SweepError: The sweep has not been run into this store.
        """
        path = f"{self._sweep(sweep)}/plan.json"
        outline = self._json(path, PLAN)
        if outline is None:
            names = ", ".join(self.sweeps()) or "none"
            damage = "; its plan could not be read and was moved to damaged/"
            raise SweepError(
                f"store {self.root} has no results of sweep {sweep!r} (it has: {names}"
                f"{damage if path in self.aside else ''}): "
                f"{advice.command('run', where={'store': self.root})} runs it, or name the store "
                "that has them with --store"
            )
        return outline

    def sweeps(self) -> list[str]:
        """Names of the sweeps in this store."""
        return sorted(f.base_name for f in self._list("sweeps"))

    def fail(self, sweep: str, key: str, failure: Mapping[str, Any]) -> None:
        """Record that a cell did not finish: status, error, run."""
        path = f"{self._sweep(sweep)}/failures/{self._key(key)}.json"
        said = {"error": text.error(failure["error"])} if "error" in failure else {}
        self._write(path, json.dumps({**failure, **said}).encode(), durable=False)

    def failure(self, sweep: str, key: str) -> dict[str, Any] | None:
        """The recorded failure of a cell; None where there is none."""
        return self._json(f"{self._sweep(sweep)}/failures/{self._key(key)}.json", FAILURE)

    def failures(self, sweep: str) -> set[str]:
        """Keys of the cells with a recorded failure, those that ended well later among them."""
        files = self._list(f"{self._sweep(sweep)}/failures")
        return {info.base_name.removesuffix(".json") for info in files}

    def activity(self, sweep: str) -> datetime.datetime | None:
        """When a file of a sweep last changed, by the clock of the store."""
        files = self._list(self._sweep(sweep), recursive=True)
        read = ("gallery.json",)  # a report wrote it
        return max(
            (info.mtime for info in files if info.is_file and info.base_name not in read),
            default=None,
        )

    # Its triggers as pictures, which take torch and the data to draw

    def save_gallery(
        self, sweep: str, cells: Mapping[str, Any], pictures: Pictures, left_out: Sequence[str]
    ) -> None:
        """Keep what a report shows of the triggers of these cells, key -> axes.

        Raises:
            StoreError: Nothing can be written here.
        """
        shown = [[title, base64.b64encode(picture).decode()] for title, picture in pictures]
        content = {"of": _drawn_of(cells), "pictures": shown, "left_out": [*left_out]}
        self._write(f"{self._sweep(sweep)}/gallery.json", json.dumps(content).encode())

    def gallery(
        self, sweep: str, cells: Mapping[str, Any]
    ) -> tuple[Pictures, Sequence[str]] | None:
        """What `save_gallery` kept of these cells; None where that is nothing."""
        kept = self._json(f"{self._sweep(sweep)}/gallery.json", GALLERY)
        if kept is None or kept["of"] != _drawn_of(cells):
            return None
        try:
            shown = [(str(title), base64.b64decode(text)) for title, text in kept["pictures"]]
        except (TypeError, ValueError):
            return None
        return shown, [*map(str, kept["left_out"])]

    def drop_gallery(self, sweep: str) -> None:
        """Have the triggers drawn anew."""
        self._delete(f"{self._sweep(sweep)}/gallery.json")

    # Who runs a sweep (sweeper.store.claim)

    def claim(self, sweep: str) -> dict[str, Any] | None:
        """What the driver of a sweep last said of itself; None where nobody runs it."""
        return self._json(f"{self._sweep(sweep)}/driver.json", CLAIM)

    def save_claim(self, sweep: str, claim: Mapping[str, Any]) -> None:
        """Say who runs a sweep; the last to say so counts."""
        self._write(f"{self._sweep(sweep)}/driver.json", json.dumps(claim).encode(), durable=False)

    def drop_claim(self, sweep: str) -> None:
        """Nobody runs the sweep any more."""
        self._delete(f"{self._sweep(sweep)}/driver.json")

    def _key(self, key: str) -> str:
        if not KEY.fullmatch(key):
            raise SweepError(f"{key!r} is not the key of a cell: 20 digits 0-9a-f")
        return key

    def _sweep(self, sweep: str) -> str:
        if not NAME.fullmatch(sweep):
            raise SweepError(
                f"{sweep!r} cannot name a sweep: use letters, digits, dots, underscores, hyphens"
            )
        return f"sweeps/{sweep}"


def _drawn_of(cells: Mapping[str, Any]) -> str:
    """What tells the pictures of one matrix from those of another."""
    return hashlib.sha256(json.dumps([_DRAWN, cells], sort_keys=True).encode()).hexdigest()
