"""The one error for everything the user can fix, and the near-name hint it often carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SweepError(Exception):
    """What was asked, why it cannot be, and what to type instead; printed without a traceback."""


class AccessDenied(Exception):
    """A defense touched something its `sees` does not declare: a bug of the defense."""


class DivergedError(Exception):
    """Weights or losses became NaN or infinite."""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that does not exist, with its near matches and the list."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.55)
    hint = f", did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
    return f"no {what} {str(name)!r}{hint} Known: {', '.join(names) or '(none)'}"
