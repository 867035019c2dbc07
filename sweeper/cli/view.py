"""The command that shows the sweeps of a store in a browser while they run."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from sweeper.api import STORE, place
from sweeper.cli.arguments import StoreOption, specs


def view(
    spec: Annotated[
        str | None, typer.Argument(help="The sweep to open first.", autocompletion=specs)
    ] = None,
    store: StoreOption = STORE,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of this machine; 0: any that is free.")
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open it in a browser.")] = True,
) -> None:
    """Show a store's sweeps in a browser, live while they run.

    Everything is read from the store, so the sweeps may run on other machines. Only people on this
    machine who have the printed link may look. Ctrl-C ends it.

    Example: sweeper view --store s3://bucket/sweeps
    """
    from sweeper.plan import source
    from sweeper.view.facts import Facts
    from sweeper.view.server import Server

    facts = Facts(place(store))
    name = source.name_of(spec) if spec else ""
    if name:
        facts.ledger.plan(name)  # a sweep that is not there is said here
    with Server(facts, port) as server:
        link = server.link(name)
        typer.echo(link)
        typer.echo("Ctrl-C ends it; the link has a token, so keep it to yourself", err=True)
        if browser and sys.stdout.isatty() and _has_screen():
            import webbrowser

            webbrowser.open(link)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended", err=True)


def _has_screen() -> bool:
    return sys.platform == "darwin" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


COMMANDS = (view,)
"""What `app` registers."""
