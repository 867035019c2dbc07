"""Methods of one's own go along to a cluster: their code, to nodes that have no such folder."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeper import models
from sweeper.core import catalog, code, folders, names, options, search
from sweeper.core.errors import SweepError
from sweeper.data.base import Source
from sweeper.plan.sweep import Sweep

MOST = 50_000_000
"""Bytes that go along at most."""
_REMEDY = (
    "put them into one folder or package that holds code alone, or install them on every node and "
    "take them out of here"
)


def modules(sweep: Sweep) -> dict[str, Path]:
    """Return what a sweep's methods run that neither ships nor is installed.

    Returns:
        Name of a module or package -> its file or folder; all lie in one folder.

    Raises:
        SweepError: They do not.
    """
    points = (point.value for kind in names.KINDS for point in names.points(kind))
    installed = {value.partition(":")[0].partition(".")[0] for value in points}
    found: dict[str, Path] = {}
    for kind in names.KINDS:
        for entry in getattr(sweep, f"{kind}s"):
            for cls in catalog.classes(catalog.make(kind, entry.name, entry.options)):
                if cls.__module__.partition(".")[0] not in installed:
                    found |= code.outside(cls)
    homes = sorted({str(place.parent) for place in found.values()})
    if len(homes) > 1:
        raise SweepError(f"methods of your own lie in {' and '.join(homes)}: {_REMEDY}")
    return found


def pack(places: Mapping[str, Path], folder: Path) -> str:
    """Copy modules, and packages with all that lies in them, into a folder.

    Args:
        places: What `modules` returned.
        folder: Where to.

    Returns:
        The hash of what was copied.

    Raises:
        SweepError: It is more than `MOST`.
    """
    files = {place: list(_files(place)) for _, place in sorted(places.items())}
    sizes = {place: sum(file.stat().st_size for file in files[place]) for place in files}
    if sum(sizes.values()) > MOST:
        place = max(sizes, key=lambda place: sizes[place])
        raise SweepError(
            f"methods of your own: all of {place} would go to the cluster, {_mb(sizes[place])} MB, "
            f"and what goes may have {_mb(MOST)}: {_REMEDY}"
        )
    digest = hashlib.sha256()
    for place, inside in files.items():
        for file in inside:
            copy = folder / file.relative_to(place.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            content = hashlib.sha256(copy.read_bytes()).hexdigest()
            digest.update(f"{copy.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()


def _files(place: Path) -> Iterator[Path]:
    """A module's file, or all files of a package that are not hidden."""
    for file in folders.below(place) if place.is_dir() else [place]:
        if "__pycache__" not in file.parts and file.is_file():
            yield file


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f}"


@contextlib.contextmanager
def environment(places: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """Yield the Ray runtime environment that takes modules along, while its files are there.

    Args:
        places: What `modules` returned; of none it is empty, and workers start as fast as they do.
    """
    if not places:
        yield {}
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, search.FOLDER)
        digest = pack(places, folder)
        yield {"py_modules": [str(folder)], "env_vars": {search.SENT: digest}}


def require_places(sweep: Sweep) -> None:
    """See that a sweep that runs elsewhere names no file by a path of this machine.

    Raises:
        SweepError: It does, relative to the folder we are in.
    """
    for axis in ("dataset", "model", *names.KINDS):
        for entry in getattr(sweep, f"{axis}s"):
            owner: Any = Source
            if axis == "model":
                owner = models.families()[entry.name]
            elif axis in names.KINDS:
                owner = catalog.method(axis, entry.name)
            for name, place in options.placed(owner, entry.options).items():
                given = entry.options[name]
                if place != given and not given.startswith("~"):
                    raise SweepError(
                        f"{axis}s: {entry.name}: {name}: {given} is a path of this machine, and "
                        "only code goes to the cluster: write the absolute path of a place all its "
                        "nodes see"
                    )
