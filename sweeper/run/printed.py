"""What a cell says while it is at work: what it prints and how far it is, bounded, to be kept.

Python's streams of this process are heard and pass on what they are given: nothing is swallowed,
and what compiled code writes goes by. Of a child both file descriptors are heard (`run.apart`), so
there that is kept too.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sweeper.core import text

HEAD, TAIL = 16 * 1024, 48 * 1024
"""Characters kept of the beginning and of the end."""
SECONDS = 1.0
"""Between two lines of progress: a defense may tell of thousands of steps. The last one stays."""


class Printed:
    """What one cell says; it holds no cell, since a defense can reach it."""

    def __init__(self, log: Callable[..., None] | None = None) -> None:
        """Hear nothing yet.

        Args:
            log: Takes progress too.
        """
        self._log = log
        self._lock = threading.RLock()  # a signal's handler may print where print was interrupted
        self._began = self._told = time.monotonic()
        self._told -= SECONDS
        self._waiting = ""
        self._head = self._last = ""
        self._tail: list[str] = []
        self._behind = self._left_out = 0

    def add(self, said: str) -> None:
        """Take what was printed."""
        with self._lock:
            self._tell()
            self._add(said)

    def progress(self, **values: Any) -> None:
        """Take how far the cell is: epoch, epochs, loss, ..."""
        with self._lock:
            now = time.monotonic()
            self._waiting = f"[{now - self._began:.1f} s] {_words(values)}\n"
            if now - self._told >= SECONDS:
                self._told = now
                self._tell()
        if self._log:
            self._log(**values)

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Hear what this process prints meanwhile."""
        out, err = (_Heard(stream, self.add) for stream in (sys.stdout, sys.stderr))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield

    def text(self, error: str = "") -> str:
        """All that was said, and how it ended, fit for files; empty where nothing was.

        Args:
            error: Why the cell did not end well.
        """
        with self._lock:
            self._tell()
            tail = "".join(self._tail)
            cut = max(0, len(tail) - TAIL)
            left_out = self._left_out + cut
            gap = f"\n[... {left_out:,} characters left out ...]\n" if left_out else ""
            said = text.printed(self._head + gap + tail[cut:]).rstrip()
        return "\n".join(filter(None, [said, error.strip()]))

    def _tell(self) -> None:
        """Add the progress that waits, on a line of its own."""
        if self._waiting:
            line, self._waiting = self._waiting, ""
            self._add(line if self._last in ("", "\n") else f"\n{line}")

    def _add(self, said: str) -> None:
        if not said:
            return
        self._last = said[-1]
        room = HEAD - len(self._head)
        self._head += said[:room]
        if rest := said[room:]:
            self._tail.append(rest)
            self._behind += len(rest)
        if self._behind > 2 * TAIL:
            kept = "".join(self._tail)[-TAIL:]
            self._left_out += self._behind - len(kept)
            self._tail, self._behind = [kept], len(kept)


class _Heard:
    """A stream that is heard; in all else it is the stream it passes on to."""

    def __init__(self, stream: Any, hear: Callable[[str], None]) -> None:
        self._stream = stream
        self._hear = hear

    def write(self, said: str) -> int:
        self._hear(said)
        count: int = self._stream.write(said)
        return count

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _words(values: Mapping[str, Any]) -> str:
    """Progress for people: epoch 3/15 loss 0.4123."""
    said = []
    for name, value in values.items():
        if name.endswith("s") and name[:-1] in values:
            continue
        of = f"/{values[f'{name}s']}" if f"{name}s" in values else ""
        said.append(f"{name} {f'{value:.4g}' if isinstance(value, float) else value}{of}")
    return " ".join(said)
