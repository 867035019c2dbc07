"""The errors that have a name of their own, and the near-name hint they often carry."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from sweeper.core import names


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
    """Return the sentence for a name that does not exist.

    It has the one name that is meant, where that is known; else near names, and the list.

    Args:
        what: What it would name: attack, data set, option.
        name: What was typed.
        known: The names there are.
    """
    typed, every = str(name), sorted(known)
    if right := names.meant(what, typed, every):
        return f"no {what} {typed!r}: write {names.introduced(what, right, typed)}"
    if kind := names.other_kind(what, typed):
        article = "an" if kind[0] in "aeiou" else "a"
        return f"no {what} {typed!r}: it is {article} {kind}, which stands below `{kind}s`"
    spelled = {item.lower(): item for item in every}
    near = difflib.get_close_matches(typed.lower(), sorted(spelled), n=2, cutoff=0.55)
    hint = f", did you mean {' or '.join(repr(spelled[n]) for n in near)}?" if near else "."
    return f"no {what} {typed!r}{hint} Known: {', '.join(every) or '(none)'}"


_LIST = re.compile(r"no ([a-z ]+) '[^']*'.*?( Known: (.+))$")
"""In a sentence of `unknown`: what is unknown, and the list of what is known."""
_MANY = 12
"""Names of a list that is told once for several mistakes."""


def together(lines: Sequence[str]) -> str:
    """Several mistakes as one text: long lists of names stand once, below all of them.

    Args:
        lines: A sentence for each mistake.
    """
    if len(lines) < 2:
        return "\n".join(lines)
    told, lists = [], dict[tuple[str, str], None]()
    for line in lines:
        found = _LIST.search(line)
        if found and found[3].count(", ") >= _MANY:
            lists[found[1], found[3]] = None
            line = line.removesuffix(found[2])
        told.append(line)
    for what, known in lists:
        wrapped = textwrap.wrap(
            f"Every {what}: {known}", 80, subsequent_indent="  ", break_on_hyphens=False
        )
        told += wrapped
    return "\n".join(told)


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
