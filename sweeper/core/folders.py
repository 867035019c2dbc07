"""What lies in a folder of a user's own, without what file managers and notebooks leave there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_LEFT = "__MACOSX"
"""The folder an archive made on a Mac unpacks to beside its content."""


def _counts(name: str) -> bool:
    """Whether a name is one of the user's: not .ipynb_checkpoints, ._a.png or .DS_Store."""
    return not (name.startswith(".") or name == _LEFT)


def inside(folder: Path, pattern: str = "*") -> list[Path]:
    """The files and folders that match, sorted; names that begin with a dot are nothing.

    Args:
        folder: Where to look.
        pattern: As `Path.glob` takes it.
    """
    found = folder.glob(pattern)
    return sorted(p for p in found if all(map(_counts, p.relative_to(folder).parts)))


def below(folder: Path) -> Iterator[Path]:
    """Yield all files at any depth, those of a folder before those of the folders in it, sorted."""
    for base, inner, files in os.walk(folder):
        inner[:] = sorted(filter(_counts, inner))
        for file in sorted(filter(_counts, files)):
            yield Path(base, file)


def called(folder: Path, *names: str) -> Path | None:
    """The folder in `folder` of the first of these names there is, whatever its case; or None."""
    found = {path.name.lower(): path for path in inside(folder) if path.is_dir()}
    return next((found[name] for name in names if name in found), None)
