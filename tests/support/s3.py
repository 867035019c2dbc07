"""An S3 server on loopback for tests: moto's, a process of its own that counts its requests."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from tests.support.places import ROOT

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@contextlib.contextmanager
def server(log: Path) -> Iterator[str]:
    """Run the server with an empty bucket.

    Yields:
        The URI of a folder in the bucket.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = f"127.0.0.1:{port}"
    with log.open("wb") as out:
        words = [sys.executable, "-W", "ignore", "-m", "tests.support.s3", str(port)]
        process = subprocess.Popen(
            words, stdout=out, stderr=out, cwd=ROOT, env=os.environ | CREDENTIALS
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                with contextlib.suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(f"http://{place}", timeout=5).close()
                break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        pafs.S3FileSystem(
            access_key="test",
            secret_key="test",
            region="us-east-1",
            scheme="http",
            endpoint_override=place,
            allow_bucket_creation=True,
        ).create_dir("bucket")
        yield f"s3://bucket/sweeps?scheme=http&endpoint_override={place}&region=us-east-1"
    finally:
        process.kill()
        process.wait()


@dataclass
class Seen:
    """What a server saw since it was asked last."""

    requests: list[str] = field(default_factory=list)
    """Method and path of each."""
    most: int = 0
    """How many were under way at the same time, at most."""


def seen(uri: str) -> Seen:
    """What the server of a URI saw; then it counts anew."""
    return Seen(**_asked(uri, "seen"))


def behave(uri: str, *, refuse: str = "", seconds: float = 0.0) -> None:
    """Have a server refuse a method (PUT), and take so many seconds for each request."""
    _asked(uri, "behave", refuse=refuse, seconds=seconds)


def _asked(uri: str, what: str, **values: Any) -> Any:
    (place,) = urllib.parse.parse_qs(urllib.parse.urlsplit(uri).query)["endpoint_override"]
    words = urllib.parse.urlencode(values)
    with urllib.request.urlopen(f"http://{place}/-{what}?{words}", timeout=60) as answer:
        return json.load(answer)


class _Counting:
    """A WSGI application around moto's."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._seen, self._now = Seen(), 0
        self._refuse, self._seconds = "", 0.0

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path.startswith("/-"):
            return self._answer(path, dict(urllib.parse.parse_qsl(environ["QUERY_STRING"])), start)
        with self._lock:
            self._now += 1
            self._seen.requests.append(f"{method} {path}?{environ['QUERY_STRING']}")
            self._seen.most = max(self._seen.most, self._now)
        try:
            time.sleep(self._seconds)
            if method == self._refuse:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start("403 Forbidden", [("Content-Length", "0")])
                return [b""]
            return list(self._inner(environ, start))
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, path: str, values: dict[str, str], start: Any) -> Iterable[bytes]:
        said: Any = None
        if path == "/-seen":
            said, self._seen = vars(self._seen), Seen()
        else:
            self._refuse, self._seconds = values.get("refuse", ""), float(values["seconds"])
        content = json.dumps(said).encode()
        start("200 OK", [("Content-Length", str(len(content)))])
        return [content]


def _serve(port: int) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # as S3: a connection takes many requests

        def log(self, type: str, message: str, *args: Any) -> None:
            """Nothing."""

    application = _Counting(DomainDispatcherApplication(create_backend_app))
    make_server(
        "127.0.0.1", port, application, threaded=True, request_handler=Quiet
    ).serve_forever()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
