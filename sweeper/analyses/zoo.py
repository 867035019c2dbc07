"""The victims of a sweep as a zoo that others import; `sweeper.analyses.zoofiles` is its format."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attacks.parts import victim_folder
from sweeper.analyses import exchange
from sweeper.analyses.zoofiles import (
    INDEX,
    Opener,
    Victim,
    Zoo,
    damaged,
    files_of,
    opened,
    read_index,
    sum_of,
    whole,
)
from sweeper.core import advice
from sweeper.core.errors import SweepError
from sweeper.core.outputs import written
from sweeper.core.text import slug
from sweeper.core.types import Cell
from sweeper.plan.source import NAME
from sweeper.plan.sweep import Sweep
from sweeper.run import driver
from sweeper.run.job import Job
from sweeper.run.material import Context
from sweeper.store.artifacts import DamagedError

Say = Callable[[str], None]
"""Is told what happens, a line each."""


# Out


def export(sweep: Sweep, context: Context, folder: Path, say: Say) -> Zoo:
    """Write all victims of a sweep that can be written; what is there and whole stays.

    Args:
        sweep: The sweep.
        context: Store and data folder.
        folder: Where to; a zoo of this sweep, or nothing, is there.
        say: Told of each victim, and why one is left out.

    Returns:
        What is in the folder now.

    Raises:
        SweepError: The folder holds something else or takes no files, or no victim can be written.
    """
    there = _there(sweep.name, folder)
    job = driver.prepare(sweep, context)
    cells = {(_called(cell), key): cell for key, cell in exchange.victims(job).items()}
    trained = job.store.keys("train")
    ready = sorted(place for place in cells if place[1] in trained)
    kept = []
    for number, (name, key) in enumerate(ready, 1):
        if key in there and not damaged(there[key], files_of(folder)):
            say(f"{number}/{len(ready)} {name} is there")
        else:
            _save(sweep.name, there.values(), folder)  # first: an interrupted zoo is one too
            say(f"{number}/{len(ready)} {name}")
            try:
                there[key] = _written(job, key, cells[name, key], folder / name)
            except (_LeftOut, DamagedError) as error:
                say(f"{name} is left out: {error}")
                continue
        kept.append(there[key])
    if absent := len(cells) - len(ready):
        run = advice.command("run", where={"store": context.store})
        say(f"{absent} of {len(cells)} victims are left out, not trained yet: {run} trains them")
    if not kept:
        raise SweepError(f"{sweep.name}: none of its {len(cells)} victims can be written: run it")
    return _save(sweep.name, kept, folder)


class _LeftOut(Exception):
    """Why a victim cannot be written."""


def _there(sweep: str, folder: Path) -> dict[str, Victim]:
    """The victims by key of the zoo that is there.

    Raises:
        SweepError: Something else is there.
    """
    if (folder / INDEX).is_file():
        zoo = read_index(folder, files_of(folder))
        if zoo.sweep != sweep:
            raise SweepError(f"{folder}: holds the zoo of sweep {zoo.sweep}: name another folder")
        return {victim.key: victim for victim in zoo.victims}
    if folder.is_dir() and any(folder.iterdir()):
        raise SweepError(f"{folder}: holds files that are no zoo's: name another folder")
    return {}


def _called(cell: Cell) -> str:
    """The folder of a victim: what it is, and the first digits of its key."""
    axes = cell.axes
    rate = [f"{axes['poison_rate']:g}"] if axes["poison_rate"] else []
    words = [axes["attack"], *rate, axes["dataset"], axes["model"]]
    return f"{slug('-'.join(words), 70)}-{cell.params['victim'][:8]}"


def _written(job: Job, key: str, cell: Cell, folder: Path) -> Victim:
    """Write one victim's folder whole, in the place of what may be there."""
    try:
        about, tensors, listed = exchange.read(job, cell)
    except SweepError as error:
        raise _LeftOut(str(error).partition(": ")[2]) from None
    part = folder.parent / f".{folder.name}.part"
    with written(folder):
        shutil.rmtree(part, ignore_errors=True)
        exchange.save(part, about, tensors, listed)
        files = {path.name: sum_of(path) for path in sorted(part.iterdir())}
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    axes = {name: cell.axes[name] for name in ("attack", "dataset", "model", "poison_rate")}
    axes |= {"target": about["target"], "seed": about["seed"]}
    metrics = {name: about["metrics"].get(name) for name in ("acc", "asr")}
    return Victim(folder.name, key, axes, metrics, files)


def _save(sweep: str, victims: Iterable[Victim], folder: Path) -> Zoo:
    zoo = Zoo(sweep, tuple(sorted(victims, key=lambda victim: victim.folder)))
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{INDEX}.part"
        part.write_text(json.dumps(zoo.values(), indent=1) + "\n", encoding="utf-8")
        os.replace(part, folder / INDEX)
    return zoo


# In


def bring(place: Path, only: Sequence[str], prefix: str, out: Path) -> dict[str, Path]:
    """Copy victims of a zoo; all are checked before the first is written, and each comes whole.

    Args:
        place: The zoo's folder or archive.
        only: Attacks, and beginnings of folders and keys; empty: all victims.
        prefix: What their names begin with; empty: they keep theirs.
        out: The folder theirs are made in; a victim that is there already stays.

    Returns:
        What rows are to call a victim -> its folder.

    Raises:
        SweepError: It is no zoo, a name is of none, files are damaged, another victim is there, or
            the place takes no files.
    """
    with opened(place) as (zoo, open_):
        victims = _chosen(zoo, only)
        targets = {_named(prefix, victim): victim for victim in victims}
        if bad := [name for victim in victims for name in damaged(victim, open_)]:
            more = f" and {len(bad) - 5} more" * (len(bad) > 5)
            raise SweepError(
                f"{place}: damaged, as size or checksum are not those of {INDEX}: "
                f"{', '.join(bad[:5])}{more}: get it anew"
            )
        for name, victim in targets.items():
            there = out / name
            if there.exists() and not all(_same(victim, file, there) for file in victim.files):
                raise SweepError(
                    f"{there}: is there and is not this victim: move it away, or give others "
                    "names with --as"
                )
        for name, victim in targets.items():
            if not (out / name).exists():
                _copied(victim, open_, out / name)
    return {name: out / name for name in targets}


def _chosen(zoo: Zoo, only: Sequence[str]) -> list[Victim]:
    for name in only:
        if not any(victim.called(name) for victim in zoo.victims):
            folders = ", ".join(victim.folder for victim in zoo.victims[:9])
            raise SweepError(f"--only: no victim {name!r}: name an attack, or one of {folders}")
    return [v for v in zoo.victims if not only or any(map(v.called, only))]


def _named(prefix: str, victim: Victim) -> str:
    name = f"{prefix}-{victim.folder}" if prefix else victim.folder
    if not NAME.fullmatch(name):
        raise SweepError(
            f"--as: {name!r} cannot name a folder: use letters, digits and hyphens, and fewer"
        )
    return name


def _copied(victim: Victim, open_: Opener, folder: Path) -> None:
    part = folder.parent / f".{folder.name}.part"
    with written(folder):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name in victim.names():
            if not whole(victim, name, open_, part / name.rpartition("/")[2]):
                raise SweepError(f"{name} changed while it was read: try again")
        part.rename(folder)


def _same(victim: Victim, name: str, folder: Path) -> bool:
    path = folder / name
    return path.is_file() and sum_of(path) == victim.files[name]


def entries(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return parts of sweep files that run these victims: one for each data set and network.

    Args:
        folders: What rows call a victim -> its folder.
    """
    parts: dict[str, dict[str, Any]] = {}
    for label, folder in folders.items():
        about = victim_folder.about(str(folder))
        fixed = {"datasets": [about["dataset"]]} if "dataset" in about else {}
        fixed |= {"models": [about["model"]]}
        fixed |= {"reserve": about["reserve"]} if "reserve" in about else {}
        part = parts.setdefault(
            json.dumps(fixed, sort_keys=True), {**fixed, "attacks": [], "targets": [], "seeds": 1}
        )
        rule = {"rule": about["rule"]} if about["rule"] != "all2one" else {}
        part["attacks"].append({"attack": "imported", "path": str(folder), "as": label, **rule})
        part["targets"] = sorted({*part["targets"], about["target"]})
    return list(parts.values())
