"""What is wrong with this model? Detectors, a verdict with its evidence, and what repairs cost.

No trigger is needed. `suspect.py` makes a model under suspicion of a checkpoint; `evidence.py` and
`channels.py` look at it; `verdict.py` has the rule; `repairs.py` tries repairs.
"""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defenses.neural_cleanse import NeuralCleanse, Triggers
from sweeper.analyses.inspect import channels, evidence, repairs, verdict
from sweeper.analyses.inspect.progress import Say, Steps
from sweeper.analyses.inspect.suspect import Suspect
from sweeper.core import options
from sweeper.core.text import without_homes
from sweeper.engine.isolation import isolated
from sweeper.run import record

INVERSION: dict[str, Any] = {"epochs": 60, "steps": 10, "batch": 16}
"""Of Neural Cleanse here: 60 epochs as its default, each a sixth of it: about a minute of one core
for `tiny` on CIFAR-10. `--epochs` changes the first."""
PICTURED = 20
"""Classes whose triggers are pictured: those of the smallest norms."""


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    facts: dict[str, Any]
    """All of it, as JSON has it."""
    pictures: dict[int, tuple[bytes, bytes]]
    """Class -> PNGs of its inverted trigger, and of a test image with it."""


def inspect(
    suspect: Suspect,
    *,
    inversion: Mapping[str, Any] | None = None,
    asked: Sequence[str] = repairs.USUAL,
    say: Say = lambda line, passing: None,
) -> Inspection:
    """Inspect a model.

    Args:
        suspect: The model, with its data.
        inversion: Options of Neural Cleanse that replace those of `INVERSION`.
        asked: Repairs to try, by name.
        say: Takes progress.

    Raises:
        SweepError: An option is out of range, or a repair is none.
    """
    detector = options.construct(NeuralCleanse, INVERSION | dict(inversion or {}), "inspect")
    defenses = repairs.chosen(asked)
    steps = Steps(4 + len(defenses), say)
    began = time.monotonic()
    groups = math.ceil(len(suspect.classes) / detector.group)
    with isolated(suspect.key, torch.get_num_threads()):
        steps.begin(f"ACC on {len(suspect.dataset.test):,} test images")
        acc = evidence.accuracy(suspect)
        steps.begin(f"the smallest trigger of each of {len(suspect.classes)} classes", groups)
        cleanse, triggers = evidence.neural_cleanse(suspect, detector, steps.log)
        steps.begin("attributions and noise")
        found = {"neural-cleanse": cleanse, "ratios": evidence.ratios(suspect, cleanse)}
        found["soda"] = evidence.soda(suspect, steps.log)
        noise = evidence.noise(suspect)
        steps.begin("channels that stand out")
        found |= {"clp": channels.lipschitz(suspect), "bnp": channels.statistics(suspect)}
        found["noise"] = noise
        judged = verdict.judge(suspect, found, acc["high"])
        watched = _watched(triggers, judged.attacked)
        costs = []
        for name, defense in defenses.items():
            steps.begin(f"repair {name}")
            costs.append(repairs.tried(suspect, name, defense, triggers, watched, steps.log))
    facts = {
        "model": {"label": without_homes(suspect.label), "name": suspect.name}
        | {"options": dict(suspect.options)},
        "data": _data(suspect),
        "accuracy": acc,
        "evidence": {name: _plain(item) for name, item in found.items()},
        "verdict": {
            **dataclasses.asdict(judged),
            "how_often": verdict.HOW_OFTEN,
            "never_clean": verdict.NEVER_CLEAN,
        },
        "repairs": costs,
        "watched": int(triggers.labels[watched]) if triggers is not None else None,
        "seconds": round(time.monotonic() - began, 1),
        "device": record.device_name(suspect.device.type),
        "threads": torch.get_num_threads(),
    }
    return Inspection(facts, _pictures(suspect, triggers) if triggers is not None else {})


def _plain(item: evidence.Evidence) -> dict[str, Any]:
    return {**dataclasses.asdict(item), "named": list(item.named)}


def _data(suspect: Suspect) -> dict[str, Any]:
    """The data of an inspection, for people and machines."""
    return {
        "name": suspect.dataset.name,
        "digest": suspect.dataset.digest,
        "classes": list(suspect.classes),
        "clean": len(suspect.clean),
        "origin": suspect.origin,
        "test": len(suspect.dataset.test),
        "probes": len(suspect.probes),
    }


def _watched(triggers: Triggers | None, attacked: Sequence[int]) -> int:
    """Place of the trigger that repairs are tried on: an attacked class's, else the smallest."""
    if triggers is None:
        return 0
    norms = triggers.norms.clone()
    if attacked:
        norms[~torch.isin(triggers.labels, torch.tensor(attacked))] = torch.inf
    return int(norms.argmin())


def _pictures(suspect: Suspect, triggers: Triggers) -> dict[int, tuple[bytes, bytes]]:
    """The triggers of the smallest norms: alone on black, and on a test image."""
    image = suspect.probes.inputs[:1]
    found = {}
    for place in triggers.norms.argsort(stable=True)[:PICTURED].tolist():
        if bool(triggers.norms[place].isfinite()):
            alone = (triggers.masks[place] * triggers.patterns[place] * 255).round()
            on_image = evidence.stamped(triggers, place, image)[0]
            pair = (_png(alone.to(torch.uint8)), _png(on_image))
            found[int(triggers.labels[place])] = pair
    return found


def _png(image: Tensor) -> bytes:
    """A PNG of a uint8 image [C, H, W]."""
    from PIL import Image

    pixels = np.asarray(image.permute(1, 2, 0).cpu())
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "png")
    return file.getvalue()
