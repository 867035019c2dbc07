"""The files of a zoo of victims: written by us, read from anyone.

    zoo.json            what there is: each victim's axes, ACC, ASR, and its files with SHA-256
    <victim>/           a folder as `exchange.export` writes it, one for each

The archive is a plain tar of these files, `zoo.json` first: the same files give the same bytes, and
as nothing is compressed it holds no more than its own size. What comes from others is checked whole
(names, kinds, sizes, sums) before a file is written; what `zoo.json` does not list is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from attacks.parts import victim_folder
from sweeper.analyses.exchange import PLACES
from sweeper.core.errors import SweepError
from sweeper.core.outputs import written
from sweeper.plan.source import NAME

INDEX = "zoo.json"
MEMBERS = 100_000
"""Files an archive has at most."""
FORMAT = 1
"""Raised when older code could not read it any more."""
LARGEST = 32_000_000
"""Bytes `zoo.json` has at most."""
NEEDED = (victim_folder.ABOUT, victim_folder.MODEL)
FILES = frozenset((*NEEDED, victim_folder.TRIGGER, victim_folder.POISON, PLACES))
"""What a victim's folder can hold."""
_KEY = re.compile(r"[0-9a-f]{20}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Kept:
    """What is known of a file."""

    size: int
    """Bytes."""
    sha256: str
    """In hexadecimal."""


@dataclass(frozen=True)
class Victim:
    """One victim of a zoo."""

    folder: str
    """Its folder's name."""
    key: str
    """Its key in the store it comes from."""
    axes: Mapping[str, Any]
    """Attack, data set, model, poison rate, target and seed, as its sweep calls them."""
    metrics: Mapping[str, Any]
    """ACC and ASR on the test set, in [0, 1]; None where not known."""
    files: Mapping[str, Kept]
    """Name -> what is known of it."""

    def names(self) -> list[str]:
        """Return its files' places in the zoo."""
        return [f"{self.folder}/{name}" for name in sorted(self.files)]

    def called(self, text: str) -> bool:
        """Return whether it is meant by its attack, or the beginning of its folder or key."""
        whole = self.axes.get("attack") == text or self.folder.startswith(text)
        return whole or (len(text) > 3 and self.key.startswith(text))


@dataclass(frozen=True)
class Zoo:
    """What a zoo holds."""

    sweep: str
    """The sweep its victims are of."""
    victims: tuple[Victim, ...]
    """In the order of their folders."""

    def names(self) -> list[str]:
        """Return the places of all its files but `zoo.json`."""
        return [name for victim in self.victims for name in victim.names()]

    def size(self) -> int:
        """Return the bytes of these files."""
        return sum(kept.size for victim in self.victims for kept in victim.files.values())

    def values(self) -> dict[str, Any]:
        """Return what `zoo.json` says."""
        victims = [asdict(victim) for victim in self.victims]
        return {"zoo": FORMAT, "sweep": self.sweep, "victims": victims}


@dataclass(frozen=True)
class Opener:
    """What opens a file of a zoo by its place in it."""

    open: Callable[[str], IO[bytes] | None]
    """Returns None where there is no plain file."""
    names: tuple[str, ...] = ()
    """Of an archive, all there are."""

    def __call__(self, name: str) -> IO[bytes] | None:
        """Open a file; None where there is none."""
        return self.open(name)


def read_index(place: Path, open_: Opener) -> Zoo:
    """Read what a zoo says it holds; nothing in it is trusted.

    Args:
        place: The zoo, for what is said.
        open_: What opens its files.

    Raises:
        SweepError: It is none, or of newer code, or says what cannot be.
    """
    file = open_(INDEX)
    if file is None:
        raise SweepError(
            f"{place}: has no {INDEX}, so it is no zoo: name what `export --all` wrote; "
            "`sweeper import-model` takes one checkpoint"
        )
    with file:
        content = file.read(LARGEST + 1)
    try:
        if len(content) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        values = json.loads(content)
        if int(values["zoo"]) > FORMAT:
            raise SweepError(f"{place}: was written by a newer sweeper: install that")
        victims = tuple(map(_victim, values["victims"]))
        zoo = Zoo(_such(values["sweep"], NAME), victims)
        if len({victim.folder.casefold() for victim in victims}) < len(victims):
            raise ValueError("a folder stands twice")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SweepError(f"{place}: its {INDEX} is damaged ({error}): get it anew") from None
    return zoo


def _such(value: Any, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{str(value)[:100]!r} cannot be")
    return value


def _victim(values: Mapping[str, Any]) -> Victim:
    files = {name: _kept(said) for name, said in values["files"].items()}
    if not set(NEEDED) <= set(files) <= FILES:
        raise ValueError(f"no victim has the files {', '.join(map(repr, files))[:200]}")
    axes, metrics = dict(values["axes"]), dict(values["metrics"])
    return Victim(_such(values["folder"], NAME), _such(values["key"], _KEY), axes, metrics, files)


def _kept(said: Mapping[str, Any]) -> Kept:
    size = said["size"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"{str(size)[:100]!r} is no size")
    return Kept(size, _such(said["sha256"], _DIGEST))


def summed(file: IO[bytes], limit: int | None = None, to: IO[bytes] | None = None) -> Kept:
    """Return the size and the sum of a file, copied to another on the way.

    Args:
        file: Open for reading.
        limit: Bytes that are read at most; None: all.
        to: Open for writing.
    """
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(file, limit):
        digest.update(chunk)
        size += len(chunk)
        if to is not None:
            to.write(chunk)
    return Kept(size, digest.hexdigest())


def _chunks(file: IO[bytes], limit: int | None) -> Iterator[bytes]:
    left = limit
    while left != 0 and (chunk := file.read(_CHUNK if left is None else min(_CHUNK, left))):
        yield chunk
        left = None if left is None else left - len(chunk)


@contextlib.contextmanager
def opened(place: Path) -> Iterator[tuple[Zoo, Opener]]:
    """Open a zoo's folder or archive: what it says it holds, and what opens a file of it.

    Raises:
        SweepError: It is neither, or holds what no zoo does.
    """
    if place.is_dir():
        open_ = files_of(place)
        yield read_index(place, open_), open_
        return
    try:
        with tarfile.open(place, "r:") as tar:
            open_ = _members(place, tar)
            zoo = read_index(place, open_)
            if strays := sorted(set(open_.names) - {INDEX, *zoo.names()}):
                raise SweepError(f"{place}: holds {strays[0]!r}, which its {INDEX} does not list")
            yield zoo, open_
    except (tarfile.TarError, OSError) as error:
        raise SweepError(
            f"{place}: is no folder and no archive of victims ({error}): name what `export --all` "
            "wrote"
        ) from None


def files_of(folder: Path) -> Opener:
    """Return what opens the files of a zoo's folder; a link is no file of it."""

    def open_(name: str) -> Any:
        path = folder / name
        if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
            return None
        return path.open("rb")

    return Opener(open_)


def _members(place: Path, tar: tarfile.TarFile) -> Opener:
    """What opens the members of an archive.

    Raises:
        SweepError: There are too many, two of one name, or one that is no plain file.
    """
    found: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
        if not plain or member.name in found or len(found) >= MEMBERS:
            why = "stands twice" if member.name in found else "is no plain file"
            why = why if len(found) < MEMBERS else f"is one of more than {MEMBERS:,}"
            raise SweepError(f"{place}: {member.name!r} {why}: no archive of victims has such")
        found[member.name] = member
    return Opener(
        lambda name: tar.extractfile(found[name]) if name in found else None, tuple(found)
    )


def damaged(victim: Victim, open_: Opener) -> list[str]:
    """Return the files of a victim that are not what its zoo says."""
    return [name for name in victim.names() if not whole(victim, name, open_)]


def whole(victim: Victim, name: str, open_: Opener, to: Path | None = None) -> bool:
    """Return whether a file of a victim is what its zoo says; it is copied on the way to `to`."""
    said = victim.files[name.rpartition("/")[2]]
    source = open_(name)
    if source is None:
        return False
    with source, to.open("wb") if to else contextlib.nullcontext() as target:
        return summed(source, said.size + 1, target) == said


def sum_of(path: Path) -> Kept:
    """Return the size and the sum of a file on disk."""
    with path.open("rb") as file:
        return summed(file)


def pack(zoo: Zoo, folder: Path, path: Path) -> Kept:
    """Write a zoo's folder as one archive, whole or not at all.

    Args:
        zoo: What is in the folder.
        folder: Its folder.
        path: The archive.

    Returns:
        The archive's size and sum.

    Raises:
        SweepError: It cannot be written.
    """
    part = path.parent / f".{path.name}.part"
    with written(path):
        with tarfile.open(part, "w:", format=tarfile.PAX_FORMAT) as tar:
            for name in (INDEX, *zoo.names()):
                item = tarfile.TarInfo(name)  # no time, no owner: the same files, the same bytes
                item.size = (folder / name).stat().st_size
                with (folder / name).open("rb") as file:
                    tar.addfile(item, file)
        os.replace(part, path)
        return sum_of(path)
