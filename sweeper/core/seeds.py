"""Every random draw of a cell: a generator made from the cell's key and the name of the draw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> str:
    """Return the canonical JSON of `value`: sorted keys, no white space, no NaN."""
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """Return the 20 hexadecimal digits that identify `value` by its canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:20]


def digester(value: Mapping[str, Any], *names: str) -> Callable[..., str]:
    """Return `digest` for dicts that differ in other cells' keys alone; the rest is encoded once.

    Args:
        value: The dict.
        names: Where it names another cell, in alphabetical order.

    Returns:
        A function that takes those cells' keys, or None, in that order.
    """
    hole = "\0"  # which JSON writes as \u0000
    entries = [
        f"{canonical(name)}:{hole if name in names else canonical(part)}"
        for name, part in sorted(value.items())
    ]
    head, *rest = ("{" + ",".join(entries) + "}").split(hole)
    begun = hashlib.sha256(head.encode())

    def of(*keys: str | None) -> str:
        whole = begun.copy()
        for key, after in zip(keys, rest, strict=True):
            whole.update((f"null{after}" if key is None else f'"{key}"{after}').encode())
        return whole.hexdigest()[:20]

    return of


def drawn(params: Mapping[str, Any]) -> str:
    """Return what the draws of a defense's cell derive from, by what its key is made from.

    Neither an edit of the defense nor a repaired metric draws anew: of the code the version's
    number counts, and all metrics count as the first.
    """
    defense = params["defense"]
    number = int(str(defense["version"]).partition("+")[0])
    first = {"defense": {**defense, "version": number}, "versions": {"metrics": 1}}
    return digest({**params, **first})


def seed(*parts: str | int) -> int:
    """Return a 63-bit seed from the identity of a draw, such as (cell key, "poison")."""
    raw = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(raw[:8], "big") >> 1


def generator(*parts: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh torch generator for the draw named by `parts`."""
    return torch.Generator(device=device).manual_seed(seed(*parts))


def numpy_generator(*parts: str | int) -> np.random.Generator:
    """Return a fresh numpy generator for the draw named by `parts`."""
    return np.random.default_rng(seed(*parts))
