"""An S3 server on loopback for tests: moto's, a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

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
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(words, stdout=out, stderr=out, env=os.environ | CREDENTIALS)
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
