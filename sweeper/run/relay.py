"""How far the cells are, from Ray's workers to the driver's display while they run.

Workers leave it with Ray's head (in the key-value store where Tune keeps its trainables), at most
once a second and from a thread of their own; the driver asks as often. Nothing waits for either,
no process is started for them, and what fails here is an epoch that is not shown.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence

from sweeper.core.types import Cell
from sweeper.run.progress import Epoch, Progress, Relayed
from sweeper.run.rays import head

SECONDS = 1.0
"""Between two tellings of a trial, and between two questions of the driver."""
PATIENCE = 2.0
"""Seconds in which the head must answer."""
TOLD = 100
"""Epochs in one telling, the last ones: a thousand would be too many for every second."""
SPACE = b"sweeper"
"""Namespace of the keys in the head's store."""


class Teller:
    """In a worker: tells which cell of its trial is at work, and how far."""

    def __init__(self, place: str) -> None:
        """Prepare to tell.

        Args:
            place: The trial's, as its driver's `Listener` says; empty where nobody listens.
        """
        self._place = place.encode()
        self._current = "", Progress()
        self._all: dict[str, Progress] = {}
        self._ended = threading.Event()

    def starting(self, cell: Cell) -> Progress:
        """Return the log of a cell that starts; it leads nowhere, not even here."""
        self._current = cell.key, Progress()
        self._all[cell.key] = self._current[1]
        return self._current[1]

    def epochs(self, key: str) -> list[Epoch]:
        """What a cell of the trial said of its epochs; nothing where nobody listens."""
        return self._all[key].epochs if self._place else []

    @contextlib.contextmanager
    def telling(self) -> Iterator[Teller]:
        """Tell, from a thread of its own, until the trial ends."""
        if self._place:
            threading.Thread(target=self._tell, daemon=True).start()
        try:
            yield self
        finally:
            self._ended.set()

    def _tell(self) -> None:
        sent = b""
        while not self._ended.wait(SECONDS):
            key, progress = self._current
            epochs = [*progress.epochs]
            first = max(0, len(epochs) - TOLD)
            message = json.dumps([key, progress.text, first, epochs[first:]]).encode()
            if message != sent:
                with contextlib.suppress(Exception):  # the head is away
                    head().internal_kv_put(self._place, message, True, SPACE, timeout=PATIENCE)
                    sent = message
        if sent:
            with contextlib.suppress(Exception):
                head().internal_kv_del(self._place, False, SPACE, timeout=PATIENCE)


class Listener:
    """In the driver: passes on what the workers tell."""

    def __init__(self, run: str, live: bool) -> None:
        """Prepare to listen.

        Args:
            run: Names this call of `sweeper run`.
            live: Whether anybody looks on; else nothing is told.
        """
        self._run = run
        self._live = live
        self._trials: dict[bytes, tuple[dict[str, Cell], Relayed]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def place(self, trial: str) -> str:
        """Where a trial tells; empty where nobody listens."""
        return f"{self._run}/{trial}" if self._live else ""

    def started(self, trial: str, cells: Sequence[Cell]) -> Progress | None:
        """A trial of these cells was handed to Ray: what will be known of it."""
        if not self._live:
            return None
        progress = Relayed(cells[0])
        self._trials[self.place(trial).encode()] = {cell.key: cell for cell in cells}, progress
        return progress

    def began(self, trial: str) -> None:
        """The process of a trial is there."""
        if told := self._trials.get(self.place(trial).encode()):
            told[1].begin()

    def ended(self, trial: str) -> None:
        """A trial is over."""
        self._trials.pop(self.place(trial).encode(), None)

    @contextlib.contextmanager
    def listening(self) -> Iterator[Listener]:
        """Listen, from a thread of its own, until the walk ends; then nothing told is left."""
        if self._live:
            self._thread.start()
        try:
            yield self
        finally:
            if self._live:
                self._ended.set()
                self._thread.join(2 * PATIENCE)
                with contextlib.suppress(Exception):  # of workers that were lost
                    prefix = self.place("").encode()
                    head().internal_kv_del(prefix, True, SPACE, timeout=PATIENCE)

    def _listen(self) -> None:
        while not self._ended.wait(SECONDS):
            trials = dict(self._trials)
            with contextlib.suppress(Exception):  # the head is away
                messages = head().internal_kv_multi_get(list(trials), SPACE, timeout=PATIENCE)
                for place, message in messages.items():
                    cells, progress = trials[place]
                    key, *told = json.loads(message)
                    progress.hear(cells[key], *told)
