"""Files that the user asked for: where they lie is made, and a place that takes none is said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
    except OSError as error:
        raise SweepError(
            f"{path}: cannot be written ({error.strerror or error}): name another place"
        ) from None
