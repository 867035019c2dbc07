"""Methods that do not ship, named in sweep files as `tests.support.outside:Class`.

Some are shipped ones under another name; the others do what a method should not.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import gc
import inspect
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.badnets import BadNets
from attacks.wanet import WaNet
from defenses.anp_oracle import ANPOracle
from defenses.base import Case, Defense
from defenses.d_br import DBR
from defenses.fine_tuning import FineTuning
from defenses.scale_up import ScaleUp
from defenses.spectral_signatures import SpectralSignatures
from defenses.strip import STRIP
from sweeper.core.types import ImageSet, Outcome

OVER = threading.Event()
"""Ends the threads that were left behind."""


class Tuning(FineTuning):
    """A repair."""


class Filter(STRIP):
    """An input filter."""


class Scaling(ScaleUp):
    """A filter that only asks the model."""


class Detector(SpectralSignatures):
    """A detector."""


class Oracle(ANPOracle):
    """Asks for ACC and ASR on the test set."""


class Staged(DBR):
    """A defense with a stage."""


class Patch(BadNets):
    """An attack on data."""


class Warp(WaNet):
    """An attack in training."""


@dataclass(frozen=True, kw_only=True)
class Way(Defense):
    """Repairs nothing, and does one thing on the way."""

    way: str = "nothing"
    """Name of a function of `WAYS`."""
    path: str = ""
    """For ways that need one."""

    title = "a way"
    paper = "test"
    kind = "repair"
    sees = frozenset({"model", "clean"})

    def defend(self, case: Case) -> Outcome:
        notes = WAYS[self.way](self)
        return Outcome(model=case.fresh_model(), notes=notes or {})


@dataclass(frozen=True, kw_only=True)
class Counting(Way):
    """An input filter that counts its calls."""

    kind = "input filter"

    def defend(self, case: Case) -> Outcome:
        asked = [0]

        def score(images: Tensor) -> Tensor:
            asked[0] += len(images)
            return torch.arange(asked[0] - len(images), asked[0]).float()

        return Outcome(filter=score)


@dataclass(frozen=True, kw_only=True)
class Late(Way):
    """Ends its process when its model is measured, or just before."""

    def defend(self, case: Case) -> Outcome:
        model = case.fresh_model()
        if self.way == "before":
            threading.Timer(0.0, os._exit, [5]).start()
        else:
            model.register_forward_hook(lambda *_: os._exit(5))
        return Outcome(model=model)


@dataclass(frozen=True, kw_only=True)
class Patient(Way):
    """An input filter that opens the store only while it is measured."""

    kind = "input filter"

    def defend(self, case: Case) -> Outcome:
        def score(images: Tensor) -> Tensor:
            opens(self)
            return torch.zeros(len(images))

        return Outcome(filter=score)


def exits(way: Way) -> None:
    sys.exit(0)


def interrupts(way: Way) -> None:
    raise KeyboardInterrupt


def leaves(way: Way) -> None:
    raise GeneratorExit


def faults(way: Way) -> None:
    ctypes.string_at(0)


def ends_process(way: Way) -> None:
    os._exit(3)


def stubborn(way: Way) -> None:
    while True:
        try:
            time.sleep(60)
        except:  # noqa: E722  # that is the point
            pass


def dull(way: Way) -> None:
    try:
        time.sleep(60)
    except:  # noqa: E722
        time.sleep(60)


def shouts(way: Way) -> None:
    raise ValueError("lone \udcff surrogate " + "x" * 1_000_000)


def float64(way: Way) -> None:
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(False)
    np.seterr(all="ignore")
    os.environ["LEFT"] = "1"
    os.chdir("/")


def replaces(way: Way) -> None:
    nn.functional.cross_entropy = lambda *a, **k: torch.zeros((), requires_grad=True)  # type: ignore
    Case.fit = lambda *a, **k: []  # type: ignore[assignment,method-assign]


def thread(way: Way) -> None:
    threading.Thread(target=OVER.wait).start()


def allocates(way: Way) -> None:
    torch.ones(300 * 2**20 // 4)


def walks(way: Way) -> dict[str, Any]:
    """Go through the frames for anything that knows the target."""
    found, frame = [], sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            found.append(type(value).__name__)
        frame = frame.f_back  # type: ignore[assignment]
    return {"found": sorted(set(found))}


def objects(way: Way) -> dict[str, Any]:
    """List what kinds of objects are anywhere in the process."""
    kinds = {type(item).__name__ for item in gc.get_objects()}
    sets = [len(item) for item in gc.get_objects() if type(item) is ImageSet]
    return {"found": sorted(kinds), "sets": sets, "environment": sorted(os.environ)}


def opens(way: Way) -> None:
    for path in Path(way.path).rglob("manifest.json"):
        path.read_text(encoding="utf-8")


def imports(way: Way) -> dict[str, Any]:
    from sweeper import data

    test = data.open_dataset({"dataset": "digits"}, None, None).test
    return {"found": len(test)}


def ordinary(way: Way) -> dict[str, Any]:
    """What honest code does; some of it looks at frames, far from here."""
    import colorsys  # of Python's own, not loaded before

    warnings.warn("once", stacklevel=1)
    logging.getLogger("method").info("said")
    pair = collections.namedtuple("pair", "one two")  # type: ignore[name-match]  # noqa: PYI024
    made = dataclasses.make_dataclass("Made", ["one"])
    source = inspect.getsource(ordinary)
    return {"found": [pair(1, 2).one, made(2).one, colorsys.rgb_to_hsv(0, 0, 0)[0], len(source)]}


def asks_inspect(way: Way) -> dict[str, Any]:
    return {"found": len(inspect.stack())}


def nothing(way: Way) -> None:
    pass


WAYS: dict[str, Callable[[Way], dict[str, Any] | None]] = {
    item.__name__: item
    for item in (
        *(
            exits,
            interrupts,
            leaves,
            faults,
            ends_process,
            stubborn,
            dull,
            shouts,
            float64,
            replaces,
        ),
        *(thread, allocates, walks, objects, opens, imports, ordinary),
        *(asks_inspect, nothing),
    )
}
