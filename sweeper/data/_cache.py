"""The decoded copy of a data set on this machine's disk, mapped into memory by every process.

One folder a data set, named by the fingerprint of what was decoded and how: the arrays as `.npy`
files and `meta.json`. It is written beside its place, flushed and renamed, so it is whole or not
there; a lock on a file beside it lets the first of many processes decode while the others wait.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet, Samples, samples
from sweeper.data.base import Source, Splits

_FORMAT = 2
"""Raised when the layout of an entry or the digest of its content changes."""


@dataclass(frozen=True)
class Decoded:
    """A data set as it lies in the cache."""

    splits: Splits
    """Training and test split."""
    digest: str
    """Content hash of the splits: pixels, labels, class names and groups."""
    mean: tuple[float, ...]
    """Mean of each channel of the training split, pixels in [0, 1], 4 decimals."""
    std: tuple[float, ...]
    """Standard deviation likewise."""


class _DamagedError(Exception):
    """An entry of the cache is not what was written."""


def place(source: Source, root: Path, cache: Path) -> Path:
    """Where the decoded copy of `source` lies once it is made."""
    return cache / f"{source.name}-{fingerprint(source, root)}"


def decoded(source: Source, root: Path, cache: Path) -> Decoded:
    """Return the data set of `source`, decoded now only where no process has before.

    Raises:
        SweepError: The data cannot be read, or the cache cannot be written.
    """
    entry = place(source, root, cache)
    if entry.is_dir():
        try:
            return _load(entry)
        except _DamagedError:
            pass  # looked at again under the lock: another process may be mending it
    with _locked(entry.with_name(f"{entry.name}.lock")):
        if entry.is_dir():
            try:
                return _load(entry)
            except _DamagedError as damage:
                _set_aside(entry, damage)
        splits = source.read(root)
        _check(source.name, splits)
        _write(entry, splits)
        return _load(entry)


def fingerprint(source: Source, root: Path) -> str:
    """Return the hash of what decides the decoded tensors: source, options and files.

    Raises:
        SweepError: A file is gone or may not be read.
    """
    options = {k: v for k, v in dataclasses.asdict(source).items() if k != "path"}
    files = []
    for file in source.files(root):
        try:
            state = file.stat()
        except OSError as error:
            raise SweepError(
                f"{source.name}: {file} cannot be read ({error}): restore it"
            ) from error
        files.append([str(file.absolute()), state.st_size, state.st_mtime_ns])
    kind = type(source)
    return seeds.digest([_FORMAT, kind.__name__, kind.version, options, files])


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock on `file`; it ends with the process, however that dies."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = open(file, "w")
    except OSError as error:
        raise _unwritable(file.parent, error) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _unwritable(cache: Path, error: OSError) -> SweepError:
    return SweepError(
        f"the decoded data cannot be written to {cache} ({error}): make room there, or set "
        "SWEEPER_CACHE to another folder"
    )


def _check(name: str, splits: Splits) -> None:
    """Refuse splits that break the contract of `Samples`, whatever source they come from."""
    if splits.train.classes != splits.test.classes:
        raise SweepError(
            f"{name}: train and test have different classes: give files of one data set"
        )
    for word, part in (("train", splits.train), ("test", splits.test)):
        inputs, labels, count = part.inputs, part.labels, len(part.classes)
        if part.positions is not None and len(part.positions) != len(labels):
            raise SweepError(f"{name}: {word} has {len(part.positions)} positions")
        if len({len(value) for value in part.tensors.values()}) > 1 or not len(part):
            counts = " and ".join(f"{len(value)} {key}" for key, value in part.tensors.items())
            raise SweepError(f"{name}: {word} has {counts}")
        if part.task == "image" and (
            inputs.dtype != torch.uint8 or inputs.ndim != 4 or labels.dtype != torch.int64
        ):
            raise SweepError(f"{name}: {word} needs uint8 [N, C, H, W] images and int64 labels")
        if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            raise SweepError(f"{name}: {word} has numbers that are NaN or infinite")
        if labels.ndim > 1 or not count:  # not one class each
            continue
        if int(labels.min()) < 0 or int(labels.max()) >= count:
            raise SweepError(
                f"{name}: {word} has labels {int(labels.min())} to {int(labels.max())}, "
                f"but there are {count} class names"
            )
    if splits.train.inputs.shape[1:] != splits.test.inputs.shape[1:]:
        kind = "images" if splits.train.task == "image" else splits.train.task
        raise SweepError(f"{name}: train and test {kind} differ in shape: give `size: N`")
    if splits.groups is not None and len(splits.groups) != len(splits.train):
        raise SweepError(f"{name}: {len(splits.groups)} groups for {len(splits.train)} images")


def _write(entry: Path, splits: Splits) -> None:
    """Write the entry beside its place and rename it; the lock is held."""
    parts = {"train": splits.train, "test": splits.test}
    every = {
        f"{part}_{name}": value
        for part, split in parts.items()
        for name, value in split.tensors.items()
    }
    positions = {name: value for name, value in every.items() if name.endswith("_positions")}
    arrays = {name: value for name, value in every.items() if name not in positions}
    arrays |= {} if splits.groups is None else {"groups": splits.groups}
    mean, std = _moments(splits.train.inputs)
    meta: dict[str, Any] = {
        "digest": _digest(arrays, splits.train.classes),
        "classes": list(splits.train.classes),
        "mean": mean,
        "std": std,
        "task": splits.train.task,
        "files": {},
    }
    # positions are no content: two sources of the same images keep one digest
    arrays |= positions
    partial = entry.with_name(f"{entry.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        for name, tensor in arrays.items():
            with open(partial / f"{name}.npy", "wb") as file:
                np.save(file, tensor.contiguous().numpy(), allow_pickle=False)
                _flush(file)
                meta["files"][name] = {"bytes": file.tell(), "shape": list(tensor.shape)}
        with open(partial / "meta.json", "w") as text:
            json.dump(meta, text, indent=1)
            _flush(text)
        os.rename(partial, entry)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _unwritable(entry.parent, error) from error


def _flush(file: Any) -> None:
    """Put the file on the disk: after a power cut its length alone would not show its loss."""
    file.flush()
    os.fsync(file.fileno())


def _load(entry: Path) -> Decoded:
    """Map the entry into memory; lengths and shapes are checked, contents are not read."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        tensors = {name: _map(entry / f"{name}.npy", spec) for name, spec in meta["files"].items()}
        classes, task = tuple(meta["classes"]), meta.get("task", ImageSet.task)
        splits = Splits(
            _part(tensors, "train", task, classes),
            _part(tensors, "test", task, classes),
            tensors.get("groups"),
        )
        return Decoded(splits, str(meta["digest"]), tuple(meta["mean"]), tuple(meta["std"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error


def _part(tensors: Mapping[str, Tensor], part: str, task: str, classes: tuple[str, ...]) -> Samples:
    """The samples of one split; their tensors keep the order they were written in."""
    prefix = f"{part}_"
    named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return samples(task, named, classes)


def _map(file: Path, spec: Mapping[str, Any]) -> Tensor:
    if file.stat().st_size != spec["bytes"]:
        raise ValueError(f"{file.name} has {file.stat().st_size} of {spec['bytes']} bytes")
    # Copy on write: pages are shared between processes, yet torch gets the writable array it wants.
    array = np.load(file, mmap_mode="c", allow_pickle=False)
    if list(array.shape) != spec["shape"]:
        raise ValueError(f"{file.name} has shape {list(array.shape)}, not {spec['shape']}")
    return torch.from_numpy(array)


def _set_aside(entry: Path, damage: _DamagedError) -> None:
    """Move a damaged entry out of the way, keeping the latest one for inspection."""
    aside = entry.with_name(f"{entry.name}.damaged")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(entry, aside)
    except OSError as error:
        raise _unwritable(entry.parent, error) from error
    warnings.warn(
        f"the decoded copy {entry} is damaged ({damage}); moved to {aside.name} and decoded anew",
        stacklevel=2,
    )


def _digest(arrays: Mapping[str, Tensor], classes: tuple[str, ...]) -> str:
    """Return the hash of the content, the same wherever it was read from."""
    total = hashlib.sha256(seeds.canonical(list(classes)).encode())
    for name, tensor in sorted(arrays.items()):
        header = [name, str(tensor.dtype), list(tensor.shape)]
        total.update(seeds.canonical(header).encode())
        total.update(tensor.contiguous().numpy().data)
    return total.hexdigest()[:20]


def _moments(inputs: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each channel in [0, 1], from exact counts of the 256 values.

    Args:
        inputs: uint8 [..., C, H, W]; of what is not made of pixels there are none.
    """
    if inputs.dtype != torch.uint8:
        return [], []
    images = inputs.flatten(0, -4)
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    for start in range(0, len(images), 4096):
        chunk = images[start : start + 4096]
        for channel, total in enumerate(counts):
            total += np.bincount(chunk[:, channel].numpy().ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    return [round(float(m), 4) for m in mean], [round(float(s), 4) for s in std]
