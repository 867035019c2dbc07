"""The files of a store, on whatever file system: written whole or not at all. No torch.

A file is written under a temporary name and moved, or, where renaming is copying (S3), written in
one piece whose size is checked. What cannot be read (a power cut) is moved to `damaged/`. The root
is a local folder, NFS, or any pyarrow filesystem URI.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from sweeper.core.errors import SweepError

PROBES = "probes"
"""Where machines leave a file each to see whether the store is the same for all."""


class Files:
    """The files of one store; cheap to make, holds none open."""

    def __init__(self, root: str) -> None:
        """Open a store; the first write creates it.

        Args:
            root: A folder, or a URI such as s3://bucket/folder.

        Raises:
            SweepError: The place cannot be reached, or is a file.
        """
        try:
            if "://" in root:
                base, path = pafs.FileSystem.from_uri(root)
            else:
                base, path = pafs.LocalFileSystem(), root
            kind = base.get_file_info(path or ".").type
        except (OSError, pa.ArrowInvalid) as error:
            raise SweepError(f"store: cannot open {root}: {error}") from None
        if kind == pafs.FileType.File:
            raise SweepError(f"store: {root} is a file: give --store a folder")
        self.root = root
        self.local = isinstance(base, pafs.LocalFileSystem)
        self._fs = pafs.SubTreeFileSystem(path, base)

    def _write(self, path: str, content: bytes) -> None:
        """Write a file so that it is there whole or not at all."""
        target = path
        if self.local:  # an object store has no folders, and shows no object before it is whole
            folder = path.rpartition("/")[0]
            self._fs.create_dir(folder, recursive=True)
            target = f"{folder}/.{uuid.uuid4().hex}.part"
        try:
            with self._fs.open_output_stream(target) as stream:
                stream.write(content)
            if (size := self._fs.get_file_info(target).size) != len(content):
                raise OSError(f"{path}: {size} of {len(content)} bytes arrived")
            if self.local:
                self._fs.move(target, path)
        except BaseException:
            with contextlib.suppress(OSError):
                if self.local or self._fs.get_file_info(target).size != len(content):
                    self._fs.delete_file(target)
            raise

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_stream(path) as stream:
            return bytes(stream.read())

    def _exists(self, path: str) -> bool:
        return bool(self._fs.get_file_info(path).type != pafs.FileType.NotFound)

    def _delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # another process may have been faster
            self._fs.delete_file(path)

    def _list(self, folder: str) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(folder, allow_not_found=True)
        return [f for f in self._fs.get_file_info(selector) if not f.base_name.startswith(".")]

    @contextlib.contextmanager
    def probed(self, name: str) -> Iterator[None]:
        """Leave a file that other machines look for with `probe`."""
        self._write(f"{PROBES}/{name}", b"here")
        try:
            yield
        finally:
            for info in self._list(PROBES):
                if info.base_name.startswith(name):
                    self._delete(info.path)

    def probe(self, name: str) -> None:
        """See that this machine reads what another wrote, and what it writes itself.

        Args:
            name: What the other gave to `probed`.

        Raises:
            OSError: It does not.
        """
        if not self._exists(f"{PROBES}/{name}"):
            raise OSError(f"{self.root} is not the store the driver writes: it must be shared")
        own = f"{PROBES}/{name}-{uuid.uuid4().hex[:8]}"
        self._write(own, b"here")
        if self._read(own) != b"here":
            raise OSError(f"{self.root}: what is written cannot be read back")

    def _set_aside(self, path: str) -> None:
        """Move what cannot be read to `damaged/`, where it can be looked at."""
        self._move(path, f"damaged/{path.replace('/', '-')}-{time.time_ns()}")

    def _move(self, path: str, place: str) -> None:
        """Move a file, or a folder of files, whose manifest goes first; another may be faster."""
        with contextlib.suppress(FileNotFoundError):
            if self.local:
                self._fs.create_dir(place.rpartition("/")[0], recursive=True)
                self._fs.move(path, place)
                return
            inside = self._fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
            for info in sorted(inside, key=lambda f: f.base_name != "manifest.json"):
                self._fs.move(info.path, place + info.path.removeprefix(path))
            if not inside:  # an object store moves no folders, and a file has nothing inside
                self._fs.move(path, place)

    def _json(self, path: str) -> dict[str, Any] | None:
        """A JSON file; None where there is none that can be read."""
        try:
            content: dict[str, Any] = json.loads(self._read(path))
        except (FileNotFoundError, ValueError):
            return None
        return content
