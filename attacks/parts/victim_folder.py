"""A victim as a folder of plain files, which `sweeper import-model` and `sweeper export` write.

victim.json             architecture, image shape, classes, target, label rule; `trigger: false`
                        where the trigger is not known, and has no file
model.safetensors       weights by the names of ours; `normalise.*` where they are known
trigger.safetensors     a patch: `pattern` [C, H, W] of 0..255 and `mask` [H, W] of 0..1;
                        or the triggered test images: uint8 `images` [M, C, H, W], and of
                        `labels`, `true_labels`, `counts`, `leaks`, `index` those that are known
poison.safetensors      where known, the poisoned samples: `images`, `labels`, `true_labels`,
                        `role` and `index`, their places in the attacker's training split
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from sweeper.core.errors import SweepError

ABOUT, MODEL, TRIGGER = "victim.json", "model.safetensors", "trigger.safetensors"
POISON = "poison.safetensors"


def about(folder: str) -> dict[str, Any]:
    """Read what the victim is.

    Raises:
        SweepError: The folder is not one of a victim.
    """
    home = Path(folder).expanduser()
    _need(folder, ABOUT, MODEL)
    try:
        victim: dict[str, Any] = json.loads((home / ABOUT).read_text(encoding="utf-8"))
        about = {
            **victim,
            "shape": tuple(victim["shape"]),
            "classes": int(victim["classes"]),
            "trigger": bool(victim.get("trigger", True)),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(f"path: {folder}/{ABOUT} is damaged ({error}): write it anew") from None
    if about["trigger"]:
        _need(folder, TRIGGER)
    return about


def _need(folder: str, *names: str) -> None:
    missing = [name for name in names if not (Path(folder).expanduser() / name).is_file()]
    if missing:
        raise SweepError(
            f"path: no {' and no '.join(missing)} in {folder}: name a folder that `sweeper "
            "import-model` or `sweeper export` wrote"
        )


def read(folder: str, name: str) -> dict[str, Tensor]:
    """Read the tensors of one file; none where it is not there.

    Raises:
        SweepError: It is no safetensors file.
    """
    path = Path(folder).expanduser() / name
    try:
        from safetensors.torch import load_file  # here: it asks for torch at once

        return dict(load_file(path)) if path.is_file() else {}
    except (OSError, SafetensorError) as error:
        raise SweepError(f"path: {path} cannot be read ({error}): write it anew") from None


def content(folder: str) -> str:
    """The hash of the tensors, whatever the folder is called."""
    paths = [Path(folder).expanduser() / name for name in (MODEL, TRIGGER, POISON)]
    existing = [path for path in paths if path.is_file()]
    return _content(tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in existing))


@functools.lru_cache(maxsize=64)
def _content(files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, *_ in files:
        digest.update(Path(path).name.encode() + hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()
