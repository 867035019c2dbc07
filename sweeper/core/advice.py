"""What a sentence advises to type: the command at work, told again as it was typed.

A room below does not know what was typed, and advice that drops a `--store` or does not quote a
path fails when it is copied. So the command line leaves a teller here while a command is at work.
Without one Python is at work, and the same is told as a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Teller = Callable[[str, Sequence[str]], str]
"""Takes a command and the words it gets beyond those typed; returns a line for a shell."""
_teller: ContextVar[Teller | None] = ContextVar("teller", default=None)
CALLS = ("plan", "run")
"""Commands that `sweeper.Sweep` has too."""


@contextmanager
def told_by(teller: Teller) -> Iterator[None]:
    """Tell commands by this teller meanwhile."""
    before = _teller.set(teller)
    try:
        yield
    finally:
        _teller.reset(before)


def command(name: str, *words: str, where: dict[str, Any] | None = None, **options: Any) -> str:
    """What to type, in backticks; empty for a command that Python does not have, in Python.

    Args:
        name: A command that takes a sweep.
        *words: Its arguments after the sweep.
        where: Store and data folder, for a call; a command has those that were typed.
        **options: True for a flag, a list for an option that is repeated.
    """
    if teller := _teller.get():
        said = [*words]
        for option, value in options.items():
            for item in [""] if value is True else value:
                said += [f"--{option}", *([item] if item else [])]
        return f"`{teller(name, said)}`"
    if name not in CALLS:
        return ""
    given = {key: value for key, value in {**(where or {}), **options}.items() if value}
    return f"`sweep.{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})`"
