"""How far an inspection is: one line for each step, and how long the one at work will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sweeper.run.estimate import spoken

Say = Callable[[str, bool], None]
"""Takes a line, and whether it passes: a later line stands in its place."""


class Steps:
    """The steps of an inspection; `log` is what methods report to."""

    def __init__(self, count: int, say: Say) -> None:
        self.count = count
        self.say = say
        self.number = 0
        self.what = ""
        self.began = time.monotonic()
        self.parts, self.part = 1, 0

    def begin(self, what: str, parts: int = 1) -> None:
        """Say which step comes.

        Args:
            what: What is done.
            parts: How often progress will begin anew within it.
        """
        self.number += 1
        self.what, self.parts, self.part = what, parts, 0
        self.began = time.monotonic()
        self.say(f"[{self.number}/{self.count}] {what}", False)

    def log(self, **values: Any) -> None:
        """Take progress: epoch of epochs, or step of steps."""
        for word in ("epoch", "step"):
            done, total = values.get(word), values.get(f"{word}s")
            if done and total:
                self.part += done == 1
                self._passing(word, done, total)
                return

    def _passing(self, word: str, done: int, total: int) -> None:
        share = (max(self.part - 1, 0) + done / total) / self.parts
        part = f", part {self.part} of {self.parts}" if self.parts > 1 else ""
        left = (time.monotonic() - self.began) * (1 - share) / share if share > 0 else 0.0
        ahead = f", at most {spoken(left)} left of this step" if 0 < share < 1 else ""
        self.say(
            f"[{self.number}/{self.count}] {self.what}: {word} {done} of {total}{part}{ahead}", True
        )
