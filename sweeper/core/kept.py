"""Answers that took long, as JSON on this machine's disk: the next process reads them.

Whatever changes an answer is to stand in the name of its file. A file that is gone, or is no JSON,
is made anew; a folder that takes none keeps nothing, and nobody is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def folder(variable: str, name: str) -> Path:
    """Return the folder an environment variable names, or the one of `~/.cache/sweeper`."""
    given = os.environ.get(variable)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "sweeper" / name


def cache() -> Path:
    """Return the folder of what can be made anew: SWEEPER_CACHE, or the default."""
    return folder("SWEEPER_CACHE", "decoded")


def kept(file: Path, make: Callable[[], T]) -> T:
    """Return what a file holds; where there is none, make it and write it.

    Args:
        file: Where it is kept.
        make: Returns plain JSON values; a list comes back as a list.
    """
    with contextlib.suppress(OSError, ValueError):
        found: T = json.loads(file.read_text(encoding="utf-8"))
        return found
    made = make()
    partial = file.with_name(f".{file.name}-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(made), encoding="utf-8")
        partial.replace(file)
    return made
