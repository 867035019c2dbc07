"""A victim's training goes on in another process: its checkpoints, kept in the store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from sweeper.engine.checkpoint import Kept
from sweeper.store.artifacts import DamagedError, Store
from sweeper.store.ledger import CHECKPOINT


class Keeper:
    """Keeps the newest checkpoint of one victim; see `sweeper.engine.checkpoint.Keeper`."""

    def __init__(self, store: Store, key: str, made: Mapping[str, Any]) -> None:
        """Begin to count the time.

        Args:
            store: Where.
            key: Of the victim's cell.
            made: JSON: by what code and under what conditions it trains. A checkpoint that others
                made is ignored: training on would give the numbers of neither.
        """
        self._store, self._key, self._made = store, key, dict(made)
        self._started, self._before = time.monotonic(), 0.0
        self._there = False

    @property
    def seconds(self) -> float:
        """How long training has taken, in the attempts before this one too."""
        return self._before + time.monotonic() - self._started

    def load(self) -> Kept | None:
        """The checkpoint; None where there is none, a damaged one, or one that others made."""
        if not self._store.has(CHECKPOINT, self._key):
            return None
        self._there = True
        with contextlib.suppress(DamagedError):
            found = self._store.get(CHECKPOINT, self._key)
            if found.meta["made"] == self._made:
                self._before = found.meta["seconds"]
                return Kept(found.tensors["state"], found.meta["state"])
        return None

    def save(self, kept: Kept) -> None:
        """Write a checkpoint in place of the one before."""
        meta = {"made": self._made, "seconds": self.seconds, "state": kept.about}
        with contextlib.suppress(OSError):  # a full disk ends no training: the next one may fit
            self._store.checkpoint(self._key, kept.tensors, meta)
        self._there = True

    def drop(self) -> None:
        """Remove what was kept: the victim is trained."""
        if self._there:
            self._store.drop_checkpoint(self._key)
