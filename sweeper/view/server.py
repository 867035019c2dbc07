"""Serves the facts of a store to one person's browser: on loopback, to who has the token, to read.

    /, /sweep/NAME, /sweep/NAME/KEY     the page; its script asks for the rest
    /data, /data/NAME, /data/NAME/KEY   JSON; with If-None-Match, what has not changed is not sent
    /report/NAME, /rows/NAME            the page of `sweeper report`, and all rows as CSV

Any program of this machine, and any page open in a browser, may ask a port of loopback. So every
request needs the token, by the printed link first and by a cookie then; a Host that is not
loopback's is refused, as a name that was bound anew would bring (DNS rebinding); no other origin is
answered, and there is nothing but GET.
"""

from __future__ import annotations

import functools
import hmac
import http.cookies
import re
import secrets
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sweeper.core.errors import StoreError, SweepError
from sweeper.plan.source import NAME
from sweeper.view.facts import Facts, Unknown, encoded

LOOPBACK = "127.0.0.1"
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")
"""Any port: SSH may bring this one to another machine under its own."""
_OURS = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The policy of the page; a report has its own."""
_REPORT = "frame-ancestors 'none'; form-action 'none'; base-uri 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_TYPES = {"css": "text/css", "js": "text/javascript"}


class Server(ThreadingHTTPServer):
    """A server on loopback."""

    daemon_threads = True

    def __init__(self, facts: Facts, port: int = 0) -> None:
        """Take a port.

        Args:
            facts: Of the store.
            port: Which; 0: any that is free.

        Raises:
            SweepError: Another process has it.
        """
        self.facts = facts
        self.token = secrets.token_urlsafe(32)
        """Who has it may look."""
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise SweepError(
                f"--port {port}: cannot be opened on this machine ({error.strerror or error}): "
                "name another, or 0 for any that is free"
            ) from None

    def link(self, sweep: str = "") -> str:
        """The address to open, with the token."""
        path = f"sweep/{sweep}" if sweep else ""
        return f"http://{LOOPBACK}:{self.server_port}/{path}?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong; who has closed the page is no fault."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def cookie(self) -> str:
        """The cookie's name; a browser sends the cookies of one port to all others."""
        return f"sweeper-{self.server_port}"


class _Refused(Exception):
    """A request that is not answered: its status, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "sweeper", ""
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Answer."""
        try:
            brought = self._admit()
            self._answer(urlsplit(self.path).path, brought)
        except _Refused as refused:
            self._send(refused.status, f"{refused}\n".encode(), "text/plain")
        except Unknown:
            self._send(404, b"There is nothing here.\n", "text/plain")
        except SweepError as error:
            self._send(404, f"{error}\n".encode(), "text/plain")
        except StoreError as error:
            self._send(503, f"The store is away: {error}\n".encode(), "text/plain")

    def _admit(self) -> bool:
        """Whether the token came in the address, so that a cookie takes its place.

        Raises:
            _Refused: It did not come, or the request is not one from this machine's own browser.
        """
        if not _HOST.fullmatch(self.headers.get("Host", "")):
            raise _Refused(421, "This address is not served here.")
        if self.headers.get("Sec-Fetch-Site", "none") == "cross-site" and self._fetched:
            raise _Refused(403, "Other pages get no answer here.")
        given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        if given and self._right(given):
            return True
        kept: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
        try:
            kept.load(self.headers.get("Cookie", ""))
        except http.cookies.CookieError:
            kept.clear()
        there = kept.get(self.server.cookie)
        if not (there and self._right(there.value)):
            raise _Refused(403, "Open the link that was printed: it has the token.")
        return False

    @property
    def _fetched(self) -> bool:
        """Whether a script or an element asks, and not a person who opens a link."""
        return self.headers.get("Sec-Fetch-Mode", "navigate") != "navigate"

    def _right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self.server.token.encode())

    def _answer(self, path: str, brought: bool) -> None:
        facts = self.server.facts
        what, *names = path[1:].split("/")
        names = list(map(_segment, names))
        match what, len(names):
            case (("view.css" | "view.js"), 0):
                self._send(200, _page(what), _TYPES[what[5:]])
            case "data", 0:
                self._json(facts.sweeps)
            case "data", 1:
                self._json(functools.partial(facts.sweep, *names))
            case "data", 2:
                self._json(functools.partial(facts.record, *names))
            case "report", 1:
                page = facts.report(*names).encode()
                self._send(200, page, "text/html", {"Content-Security-Policy": _REPORT})
            case "rows", 1:
                saved = {"Content-Disposition": f'attachment; filename="{names[0]}.csv"'}
                self._send(200, facts.table(*names).encode(), "text/csv", saved)
            case ("", 0) | ("sweep", 1 | 2):
                kept = f"{self.server.cookie}={self.server.token}"
                more = {"Set-Cookie": f"{kept}; HttpOnly; SameSite=Strict; Path=/"}
                self._send(200, _page("view.html"), "text/html", more if brought else {})
            case _:
                raise Unknown

    def _json(self, ask: Callable[[], tuple[str, Any]]) -> None:
        """Answer with JSON, or that nothing has changed."""
        mark, value = ask()
        tag = f'"{mark}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(304, b"", "application/json", {"ETag": tag})
        else:
            self._send(200, encoded(value), "application/json", {"ETag": tag})

    def _send(
        self, status: int, content: bytes, kind: str, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        given = {"Content-Security-Policy": _OURS, **_HEADERS, **(more or {})}
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the token would stand there."""


def _segment(quoted: str) -> str:
    """A part of a path that may name something.

    Raises:
        Unknown: No name is spelt so.
    """
    name = unquote(quoted)
    if not NAME.fullmatch(name):
        raise Unknown
    return name


@functools.lru_cache(maxsize=8)
def _page(name: str) -> bytes:
    """A file of the page; its style is the report's, and some more."""
    content = (resources.files("sweeper.view") / "page" / name).read_text(encoding="utf-8")
    if name == "view.css":
        report = resources.files("sweeper.tables") / "page" / "report.css"
        content = report.read_text(encoding="utf-8") + content
    return content.encode()
