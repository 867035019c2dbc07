"""The files of a store, on whatever file system: written whole or not at all. No torch.

A file is written under a temporary name and moved, or, where renaming is copying (S3), in one
request, whose failure leaves what was there. What cannot be read (a power cut) is moved to
`damaged/`. The root is a local folder, NFS, or any pyarrow filesystem URI.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from sweeper.core.errors import StoreError, SweepError

AT_ONCE = 32
"""Requests to an object store that are under way at the same time, at most."""
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")

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
        base, path = (
            _opened(root) if "://" in root else _checked(root, pafs.LocalFileSystem(), root)
        )
        self.root = root
        self.local = isinstance(base, pafs.LocalFileSystem)
        self._place, self._fs = path, pafs.SubTreeFileSystem(path, base)
        self.aside: list[str] = []
        """What could not be read and was moved to `damaged/`."""
        self.foreign: set[str] = set()
        """What lies among our files and is not ours: it is left alone."""

    @contextlib.contextmanager
    def _at_work(self, passes: type[OSError] | tuple[()] = FileNotFoundError) -> Iterator[None]:
        """Make what the file system refuses a `StoreError`; a file that is missing passes."""
        try:
            yield
        except passes:
            raise
        except StoreError:
            raise
        except OSError as error:
            said = f"{error.strerror or error} (store {self.root})"
            raise StoreError(*([error.errno] if error.errno else []), said) from error

    def _write(self, path: str, content: bytes, *, durable: bool = True) -> None:
        """Write a file so that it is there whole or not at all.

        Args:
            path: Where.
            content: What.
            durable: Whether it outlives a power cut; on an object store every file does.

        Raises:
            StoreError: It cannot be written; what was there is there still.
        """
        with self._at_work(passes=()):
            if not self.local:
                with self._fs.open_output_stream(path) as stream:
                    stream.write(content)
                return
            folder = path.rpartition("/")[0]
            self._fs.create_dir(folder, recursive=True)
            draft = f"{folder}/.{uuid.uuid4().hex}.part"
            try:
                with self._fs.open_output_stream(draft) as stream:
                    stream.write(content)
                if (size := self._fs.get_file_info(draft).size) != len(content):
                    raise OSError(f"{path}: {size} of {len(content)} bytes arrived")
                if durable:
                    self._sync(draft)
                self._fs.move(draft, path)
                while durable and folder:  # those above may be as new
                    self._sync(folder)
                    folder = folder.rpartition("/")[0]
            except BaseException:
                with contextlib.suppress(OSError):
                    self._fs.delete_file(draft)
                raise

    def _sync(self, path: str) -> None:
        """Have the disk hold what a file or a folder has now."""
        handle = os.open(os.path.join(self._place, path), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _read(self, path: str) -> bytes:
        with self._at_work(), self._fs.open_input_stream(path) as stream:
            return bytes(stream.read())

    def _exists(self, path: str) -> bool:
        """Whether a file is there, by one request."""
        with contextlib.suppress(FileNotFoundError), self._at_work():
            self._fs.open_input_file(path).close()
            return True
        return False

    def _delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._at_work():  # another may be faster
            self._fs.delete_file(path)

    def _delete_folder(self, folder: str, files: Sequence[str], *, whole: bool) -> None:
        """Delete these files of a folder, and the folder once it is empty.

        Args:
            folder: The folder.
            files: Paths of the files in it.
            whole: Whether nothing else is in it: an object store then deletes a thousand at once.
        """
        if whole and not self.local:
            with contextlib.suppress(FileNotFoundError), self._at_work():
                self._fs.delete_dir(folder)
            return
        self._each(self._delete, files)
        if self.local:
            with contextlib.suppress(OSError):  # something came meanwhile
                os.rmdir(os.path.join(self._place, folder))

    def _list(self, folder: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """What is in a folder; nothing hidden, and nothing where there is no folder."""
        selector = pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)
        with self._at_work():
            found = self._fs.get_file_info(selector)
        return [info for info in found if not info.base_name.startswith(".")]

    def _each(self, do: Callable[[_Item], _Found], items: Sequence[_Item]) -> list[_Found]:
        """What a function says of each item; an object store is asked for several at a time."""
        if self.local or len(items) < 2:
            return [do(item) for item in items]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(do, items))

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
            StoreError: It does not.
        """
        if not self._exists(f"{PROBES}/{name}"):
            raise StoreError(f"{self.root} is not the store the driver writes: it must be shared")
        own = f"{PROBES}/{name}-{uuid.uuid4().hex[:8]}"
        self._write(own, b"here")
        if self._read(own) != b"here":
            raise StoreError(f"{self.root}: what is written cannot be read back")

    def _set_aside(self, path: str) -> None:
        """Move what cannot be read to `damaged/`, where it can be looked at."""
        try:
            if self._move(path, f"damaged/{path.replace('/', '-')}-{time.time_ns()}"):
                self.aside.append(path)
        except StoreError:  # who may only read the store
            self.foreign.add(path)

    def _move(self, path: str, place: str) -> bool:
        """Move a file, or a folder of files, whose manifest goes first; False: it is not there."""
        with contextlib.suppress(FileNotFoundError), self._at_work():  # another may be faster
            if self.local:
                if self._fs.get_file_info(path).type == pafs.FileType.NotFound:
                    return False
                self._fs.create_dir(place.rpartition("/")[0], recursive=True)
                self._fs.move(path, place)
                return True
            inside = self._fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
            for info in sorted(inside, key=lambda f: f.base_name != "manifest.json"):
                self._fs.move(info.path, place + info.path.removeprefix(path))
            if not inside:  # an object store moves no folders, and a file has nothing inside
                self._fs.move(path, place)
            return True
        return False

    def _said(self, path: str) -> dict[str, Any]:
        """A JSON object, left where it is; empty where there is none."""
        try:
            said = json.loads(self._read(path))
        except (FileNotFoundError, ValueError, RecursionError):
            said = None
        return said if isinstance(said, dict) else {}

    def _json(self, path: str, shape: Mapping[str, type]) -> dict[str, Any] | None:
        """A JSON file; None where there is none. What is not what was written is set aside.

        Args:
            path: The file.
            shape: Names it must have -> types of their values.
        """
        content: Any = None
        try:
            content = json.loads(self._read(path))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            pass
        if isinstance(content, dict):
            if all(isinstance(content.get(name), kind) for name, kind in shape.items()):
                return content
        self._set_aside(path)
        return None


@functools.lru_cache(maxsize=8)
def _opened(root: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a URI and the path in it; asked once a process, not once a cell.

    With the option, S3 gets a small file in one request, not in the three of an upload in parts.
    """
    uri, known = root, int(pa.__version__.partition(".")[0]) >= 21
    if root.startswith("s3://") and known and "allow_delayed_open=" not in root:
        uri += f"{'&' if '?' in root else '?'}allow_delayed_open=true"
    try:
        base, path = pafs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowInvalid) as error:
        raise SweepError(f"store: cannot open {root}: {error}") from None
    return _checked(root, base, path)


def _checked(root: str, base: pafs.FileSystem, path: str) -> tuple[pafs.FileSystem, str]:
    try:
        kind = base.get_file_info(path or ".").type
    except (OSError, pa.ArrowInvalid) as error:
        raise SweepError(f"store: cannot open {root}: {error}") from None
    if kind == pafs.FileType.File:
        raise SweepError(f"store: {root} is a file: give --store a folder")
    return base, path
