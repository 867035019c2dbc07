"""Text that came from anywhere, made fit for files and screens."""

from __future__ import annotations

import re

LONGEST = 20_000
"""Bytes of an error that are kept: a longer one is cut in its middle."""
_END = 9_900
"""Bytes kept of either end of what is cut."""
_LINE = 300
"""Characters of a line that others repeat."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def utf8(text: str) -> str:
    """Text with a question mark for each lone surrogate, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def error(text: str) -> str:
    """An error as files and screens take it; again gives the same.

    Lone surrogates become question marks, control characters but newline and tab go, and of what is
    longer than `LONGEST` bytes head and tail stay.
    """
    content = _CONTROL.sub("", text).encode("utf-8", "replace")
    if len(content) <= LONGEST:
        return content.decode()
    head, tail = (part.decode(errors="ignore") for part in (content[:_END], content[-_END:]))
    return f"{head}\n[{len(content) - 2 * _END:,} bytes left out]\n{tail}"


def last_line(text: str) -> str:
    """The last line of an error that says something, cut short; empty where none does."""
    line = error(text).strip().rpartition("\n")[2]
    return line if len(line) <= _LINE else f"{line[:_LINE]}..."
