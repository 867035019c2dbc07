"""A file system whose disk is full, for tests of what a half-written file leaves."""

from __future__ import annotations

from typing import Any


class Breaking:
    """A file system whose disk is full: streams take half of what is written, then fail."""

    def __init__(self, inner: Any, allowed: int) -> None:
        self.inner = inner
        self.allowed = allowed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def open_output_stream(self, path: str) -> Any:
        stream = self.inner.open_output_stream(path)
        self.allowed -= 1
        return stream if self.allowed >= 0 else _Half(stream)


class _Half:
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> _Half:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def write(self, content: bytes) -> None:
        self.stream.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")
