"""Text that came from anywhere, made fit for files and screens."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import sysconfig
from pathlib import Path

LONGEST = 20_000
"""Bytes of an error that are kept: a longer one is cut in its middle."""
_END = 9_900
"""Bytes kept of either end of what is cut."""
_LINE = 300
"""Characters of a line that others repeat."""
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PACKAGE = str(Path(__file__).resolve().parents[2])
"""Where the package lies."""
STARTED_IN: list[str] = []
"""The folder the sweep was started in, where that is not this process's own."""


def utf8(text: str) -> str:
    """Text with a question mark for each lone surrogate, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def slug(text: str, limit: int = 60) -> str:
    """A name for a file: letters, digits, dots, underscores and hyphens; again gives the same.

    Where that loses something of the text, eight digits of its hash follow.

    Args:
        text: Any text.
        limit: Characters of it that are kept at most.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:limit]
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    return plain if plain == text else "-".join(filter(None, (plain, digest)))


def without_homes(text: str) -> str:
    """Text, or JSON, whose paths do not tell where its user's files lie; again gives the same.

    A path below the package, what is installed for Python, or the folder the sweep was started in
    becomes relative to that; one below the user's home begins with `~`; others stay.
    """
    if "/" not in text:
        return text
    known = sysconfig.get_paths()
    roots = [_PACKAGE, *(known[name] for name in ("purelib", "platlib", "stdlib")), *STARTED_IN]
    with contextlib.suppress(OSError):  # a working directory that was deleted
        roots += [] if STARTED_IN else [os.getcwd()]
    pattern, home = _roots(tuple(roots), os.path.expanduser("~"))
    return pattern.sub(lambda match: "~" if match[0] in home else "", text)


@functools.lru_cache(maxsize=8)
def _roots(folders: tuple[str, ...], home: str) -> tuple[re.Pattern[str], frozenset[str]]:
    """What finds the beginnings of paths to be cut, and those of them that are the home."""

    def spellings(folder: str) -> set[str]:
        """A folder as it is called and as it lies, also as JSON writes them; `/` is none."""
        names = {folder.rstrip("/"), os.path.realpath(folder)} - {"", "/"}
        return names | {json.dumps(name)[1:-1] for name in names}

    homes = frozenset(spellings(home))
    cut = {f"{name}/": r"(?=[^\s\"'])" for folder in folders for name in spellings(folder)}
    whole = dict.fromkeys(homes, r"(?![\w-]|\.\w)")
    longest = sorted((cut | whole).items(), key=lambda item: -len(item[0]))
    choices = "|".join(re.escape(name) + after for name, after in longest)
    return re.compile(rf"(?:(?<![\w.~-])|(?<=\\[nrt]))(?:{choices})"), homes


def error(text: str) -> str:
    """An error as files and screens take it; again gives the same.

    Lone surrogates become question marks, control characters but newline and tab go, paths tell no
    home, and of what is longer than `LONGEST` bytes head and tail stay.
    """
    content = without_homes(_CONTROL.sub("", text)).encode("utf-8", "replace")
    if len(content) <= LONGEST:
        return content.decode()
    head, tail = (part.decode(errors="ignore") for part in (content[:_END], content[-_END:]))
    return f"{head}\n[{len(content) - 2 * _END:,} bytes left out]\n{tail}"


def printed(said: str) -> str:
    """What was printed as files take it: as it stood in the end, without colours, telling no home.

    Of a line that was written over again and again the last state stays.
    """
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in said.split("\n"))
    return utf8(without_homes(_CONTROL.sub("", _COLOUR.sub("", "\n".join(lines)))))


def last_line(text: str) -> str:
    """The last line of an error that says something, cut short; empty where none does."""
    line = error(text).strip().rpartition("\n")[2]
    return line if len(line) <= _LINE else f"{line[:_LINE]}..."
