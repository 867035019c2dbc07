"""The command line: what is registered, in which section of the help; and its entry point."""

from __future__ import annotations

import copy
import platform
import sys
from typing import Annotated, Any

import typer

from sweeper.cli import (
    beginning,
    commands,
    figures,
    inspect,
    names,
    remote,
    runs,
    site,
    storage,
    tables,
    view,
)
from sweeper.cli.typed import FUNCTIONS, Command, Sections
from sweeper.core import search
from sweeper.core.errors import SweepError

app = typer.Typer(
    cls=Sections,
    help="Backdoor attacks x defenses: one sweep file in, one table out.\n\n"
    "Example: sweeper run quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    """Say what runs here, and end; neither torch nor Ray is imported for it."""
    if not asked:
        return
    from importlib import metadata

    found = {}
    for package in ("backdoor-sweeper", "torch", "ray"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    sweeper, torch, ray = found.values()
    typer.echo(f"sweeper {sweeper}, Python {platform.python_version()}, torch {torch}, ray {ray}")
    raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say the versions."),
    ] = False,
) -> None: ...


SECTIONS = {
    "Run": beginning.COMMANDS + runs.COMMANDS + remote.COMMANDS,
    "Results": tables.COMMANDS + site.COMMANDS,
    "Pictures": figures.COMMANDS + view.COMMANDS,
    "What there is, and what you bring": names.COMMANDS + commands.COMMANDS,
    "A model you do not trust": inspect.COMMANDS,
    "The store": storage.COMMANDS,
}
"""What `sweeper --help` lists, and in which order; a module of this room has the commands of one
subject."""
for section, registered in SECTIONS.items():
    for command in registered:
        called = command.__name__.strip("_").replace("_", "-")
        app.command(called, cls=Command, rich_help_panel=section)(command)
        FUNCTIONS[called] = command
app.add_typer(remote.clusters, name="cluster", rich_help_panel="Run")
told = (remote.slurm.__doc__ or "").replace("cluster slurm", "slurm")
app.command("slurm", cls=Command, hidden=True, help=told)(remote.slurm)
for one in remote.clusters.registered_commands:
    one.cls = Command


def narrowed(typed: str) -> typer.Typer:
    """Return the command line with the command that was typed alone; all of it where none was.

    Typer builds whatever is registered before it looks for what was typed: .05 to .09 CPU seconds.
    """
    few = copy.copy(app)
    few.registered_commands = [one for one in app.registered_commands if one.name == typed]
    few.registered_groups = [one for one in app.registered_groups if one.name == typed]
    return few if few.registered_commands or few.registered_groups else app


def main() -> None:
    """Run a command: what the user can fix is one sentence and exit code 2, not a traceback.

    `sweeper.cli.main` is the entry point, which calls it and leaves the process.
    """
    code: Any = 0
    try:
        search.require_ours()
        narrowed("".join(sys.argv[1:2]))()
    except SweepError as error:
        sys.stderr.write(f"{error}\n")
        code = 2
    except SystemExit as end:
        code = end.code
    raise SystemExit(code)


if __name__ == "__main__":
    main()
