"""Files that the user asked for: where they lie is made, and a place that takes none is said."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from sweeper.core.errors import SweepError


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Make the folders above a file, which is written meanwhile.

    Args:
        path: The file.

    Raises:
        SweepError: It cannot be written.
    """
    with _said(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SweepError(
            f"{path}: cannot be written ({error.strerror or error}): name another place"
        ) from None


@contextlib.contextmanager
def replaced(folder: Path, ours: Callable[[Path], Collection[str]]) -> Iterator[Path]:
    """Write a folder anew: what is yielded becomes it when all went well, whole or not at all.

    Args:
        folder: Where it is to lie: nothing, an empty folder, or one that was written so before.
        ours: Returns the paths of the files that were written into a folder before, relative to it;
            none where it is not one of those folders.

    Raises:
        SweepError: It holds a file that was not written so, or cannot be written.
    """
    place = folder.resolve()
    made, before = (place.parent / f".{place.name}-{uuid.uuid4().hex[:8]}" for _ in range(2))
    with _said(folder):
        known = set(ours(place)) if place.is_dir() else set()
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        for file in sorted(place.rglob("*")):
            name = file.relative_to(place).as_posix()
            if (file.is_symlink() or not file.is_dir()) and name not in known:
                raise SweepError(
                    f"{folder}: holds {name}, which was not made by this command and would be "
                    "lost: move it away, or name another folder"
                )
        made.mkdir(parents=True)
        try:
            yield made
            if place.exists():
                place.rename(before)
            made.rename(place)
        finally:
            if before.exists() and not place.exists():
                before.rename(place)
            for left in (made, before):
                shutil.rmtree(left, ignore_errors=True)
