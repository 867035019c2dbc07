"""The errors that have a name of their own, and the near-name hint they often carry."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from pathlib import Path


class SweepError(Exception):
    """What was asked, why it cannot be, and what to type instead; printed without a traceback."""


class AccessDenied(Exception):
    """A defense touched something its `sees` does not declare: a bug of the defense."""


class MachineError(Exception):
    """Data, code or a device are not right on this machine: no method is to blame."""


class DivergedError(Exception):
    """Weights or losses became NaN or infinite."""


class StoreError(OSError):
    """The store itself cannot be read or written: a full disk, no network, no permission."""


_POINTER = b"version https://git-lfs.github.com/spec/"
"""What a file of Git LFS begins with while its content is elsewhere."""


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins so is a pointer of Git LFS."""
    return head.startswith(_POINTER)


def unreadable(
    place: object, what: str, error: object, head: bytes | None = None, remedy: str = "replace it"
) -> SweepError:
    """The error for a file that cannot be read; where it is a pointer of Git LFS, that says so.

    Args:
        place: Its path, or what it is called.
        what: The sentence: `is not a readable Parquet file`.
        error: Why.
        head: Its first bytes; None: they are read where `place` is a path.
        remedy: What to do.
    """
    if head is None and isinstance(place, Path):
        try:
            with place.open("rb") as file:
                head = file.read(len(_POINTER))
        except OSError:
            head = b""
    if is_pointer(head or b""):
        return SweepError(
            f"{place}: is a pointer of Git LFS, not the file itself: run `git lfs pull` there"
        )
    return SweepError(f"{place}: {what} ({error}): {remedy}")


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that does not exist, with its near matches and the list."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.55)
    hint = f", did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
    return f"no {what} {str(name)!r}{hint} Known: {', '.join(names) or '(none)'}"


def one_key(keys: Collection[str], prefix: str, of: str) -> str:
    """The one key of `keys` that starts with these digits.

    Args:
        keys: Keys of cells.
        prefix: The first digits, or all.
        of: Whose keys they are, for the error.

    Raises:
        SweepError: None does, or several do.
    """
    matches = sorted(key for key in keys if key.startswith(prefix))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise SweepError(
            f"{len(matches)} {of} have a key that starts with {prefix!r}: give more of its digits: "
            + ", ".join(key[:12] for key in matches[:5])
        )
    raise SweepError(
        f"no {of} have a key that starts with {prefix!r}: the column `key` of the rows has those "
        "of defense cells, `victim` those of victims, a run prints those of failed cells; "
        "--set must be as it was"
    )
