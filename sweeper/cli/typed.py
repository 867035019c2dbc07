"""Commands that remember how they were typed, for the advice they give."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from sweeper.core import advice

KEPT = ("store", "sweeps", "data", "overrides", "executor", "address")
"""Parameters that are told again, where they were typed and the advised command has them."""
FUNCTIONS: dict[str, Callable[..., None]] = {}
"""Every command -> its function, as `app` registers them; only the typed one is built."""


class Command(TyperCommand):
    """A command whose advice is told as it was typed."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        if not ctx.params.get("spec"):
            return super().invoke(ctx)
        with advice.told_by(functools.partial(line, ctx)):
            return super().invoke(ctx)


class Sections(TyperGroup):
    """A group whose help lists its commands by section, one line each."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the lists."""
        sections: dict[str, list[tuple[str, str]]] = {}
        shown = {name: cmd for name, cmd in self.commands.items() if not cmd.hidden}
        limit = formatter.width - 4 - max(map(len, shown))
        for name, command in shown.items():
            section = getattr(command, "rich_help_panel", "")
            sections.setdefault(section, []).append((name, command.get_short_help_str(limit)))
        for section, lines in sections.items():
            with formatter.section(section):
                formatter.write_dl(lines)


def line(here: typer.Context, name: str, words: Sequence[str]) -> str:
    """Return a command for a shell, on the sweep of the command at work where it has one.

    Args:
        here: The command at work.
        name: The command to tell.
        words: What it gets beyond what was typed.
    """
    has = inspect.signature(FUNCTIONS[name]).parameters
    told = ["sweeper", name, *([here.params["spec"]] if "spec" in here.params else []), *words]
    for parameter in here.command.params:
        source = here.get_parameter_source(str(parameter.name))
        typed = source is not None and source.name == "COMMANDLINE"
        if typed and parameter.name in KEPT and parameter.name in has:
            given = here.params[parameter.name]
            for value in given if isinstance(given, list | tuple) else [given]:
                told += [parameter.opts[0], str(value)]
    return shlex.join(told)
