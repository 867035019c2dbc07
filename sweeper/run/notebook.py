"""What a notebook shows while a sweep runs: one output that is refreshed in place."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.terminal_theme import SVG_EXPORT_THEME

SECONDS = 1.0
"""Between two refreshings."""
_PAGE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'


class Output:
    """As `rich.live.Live`, which needs ipywidgets in a notebook; what it showed last stays."""

    def __init__(self, render: Callable[[], RenderableType], console: Console) -> None:
        """Prepare to show.

        Args:
            render: Gives what is to be seen now.
            console: Where lines are printed beside it, and how wide.
        """
        self.console = console
        self._render = render
        self._handle: Any = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    @property
    def is_started(self) -> bool:
        """Whether it is being refreshed."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Show it, and from now on what has changed."""
        from IPython.display import display  # there is one where there is a notebook

        self._handle = display(self._bundle(), raw=True, display_id=True)
        self._thread.start()

    def stop(self) -> None:
        """Show it for the last time."""
        if self._handle:
            self._ended.set()
            self._thread.join()
            self._handle.update(self._bundle(), raw=True)
            self._handle = None

    def _refresh(self) -> None:
        while not self._ended.wait(SECONDS):
            self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        """It as HTML, and as text for a notebook that shows no HTML."""
        page = Console(
            file=io.StringIO(), record=True, force_jupyter=False, width=self.console.width
        )
        page.print(self._render())
        plain = page.export_text(clear=False)
        theme = SVG_EXPORT_THEME  # its colours can be read on white and on black
        html = page.export_html(theme=theme, inline_styles=True, code_format=_PAGE)
        return {"text/html": html, "text/plain": plain}
