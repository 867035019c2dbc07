"""What speaks for a backdoor in a model: inverted triggers, attributions, noise.

Detectors with a published threshold vote: Neural Cleanse (index above 2, norm below the median),
the same norms as ratios (index above 3.5), and SODA (index above 3). Noise and channels
(`channels.py`) have none, and clean models show some of the same: they are told beside the votes
and raise no alarm alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from defenses.neural_cleanse import NeuralCleanse, Triggers, judged, listed, painted
from defenses.parts.mad import anomaly, outliers
from defenses.soda import SODA
from sweeper.analyses.inspect.suspect import Suspect
from sweeper.core import seeds
from sweeper.engine.task import floats
from sweeper.plan.matrix import misfit
from sweeper.run.material import Log
from sweeper.tables.stats import wilson

MOST = 0.5
"""Share of images above which they are said to lead to one class."""
RATIO = 3.5
"""Anomaly index of the norms' logarithms above which a class is named: the threshold of Iglewicz
and Hoaglin (1993) for outliers by the median absolute deviation. Norms are positive and unequal:
their own index cannot exceed median / deviation, which was 1.3 for a BadNets victim whose trigger
was 35 times smaller than the median; its logarithms have no such ceiling."""
NOISE = 0.2
"""Standard deviation of strong noise; pixels are in [0, 1]."""


@dataclass(frozen=True)
class Evidence:
    """What one way of looking has found."""

    title: str
    """Its name in the literature."""
    says: str
    """The finding in a sentence."""
    number: float | None = None
    """The largest of its statistic; None where there is none."""
    threshold: float | None = None
    """What is unusual, by its paper; None where nothing is published."""
    named: tuple[int, ...] = ()
    """The classes it points at."""
    votes: bool = False
    """Whether it can raise an alarm alone, and could be applied."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """All it measured, as JSON has it."""

    @property
    def applies(self) -> bool:
        """Whether it could be applied at all."""
        return bool(self.details)


def percent(share: float) -> str:
    """A share as people read it."""
    return f"{100 * share:.0f} %"


def accuracy(suspect: Suspect) -> dict[str, Any]:
    """ACC on all test images, with Wilson's interval of 95 %."""
    test = suspect.dataset.test
    right = int((suspect.predict(suspect.model, test.inputs) == test.labels).sum())
    low, high = wilson(right, len(test))
    return {"acc": right / len(test), "n": len(test), "low": low, "high": high}


@dataclass(frozen=True)
class Standing:
    """How the norms of inverted triggers stand to each other, a value a class."""

    index: Tensor
    """Anomaly index; NaN where no trigger was found."""
    small: Tensor
    """Whether the norm is at most the median."""
    named: tuple[int, ...]
    """The classes whose norm is abnormally small."""
    median: float
    """Of the norms; NaN where no trigger was found."""

    @classmethod
    def of(cls, triggers: Triggers, theta: float) -> Standing:
        """Compare the triggers; a small one of an index above `theta` names its class."""
        index, flagged = judged(triggers.norms, theta)
        found = triggers.norms.isfinite()
        median = triggers.norms.double().masked_fill(~found, torch.nan).nanquantile(0.5)
        small = found & (triggers.norms <= median)
        return cls(index, small, tuple(triggers.labels[flagged].tolist()), float(median))

    @property
    def highest(self) -> float | None:
        """The largest index of a small trigger; None where no trigger was found."""
        return float(self.index[self.small].max()) if bool(self.small.any()) else None


def stamped(triggers: Triggers, place: int, images: Tensor) -> Tensor:
    """uint8 images [N, C, H, W] with the trigger at one place of `triggers`, uint8."""
    shown = painted(floats(images), triggers.masks[place], triggers.patterns[place])
    return _bytes(shown)


def success(suspect: Suspect, triggers: Triggers, place: int) -> float:
    """Share of the probes of other classes that the model calls a trigger's class under it."""
    label, probes = int(triggers.labels[place]), suspect.probes
    others = probes[probes.labels != label]
    called = suspect.predict(suspect.model, stamped(triggers, place, others.inputs))
    return float((called == label).double().mean())


def neural_cleanse(
    suspect: Suspect, detector: NeuralCleanse, log: Log
) -> tuple[Evidence, Triggers | None]:
    """Invert a trigger for every class; those far smaller than the median name a target."""
    title, theta = NeuralCleanse.title, detector.theta
    if why := misfit(detector, suspect.needs, suspect.name):
        return Evidence(title, f"does not apply: {why}", threshold=theta), None
    case = suspect.case(log)
    triggers = detector.invert(case, case.fresh_model(), suspect.clean)
    standing = Standing.of(triggers, theta)
    values = zip(
        triggers.labels.tolist(),
        listed(triggers.norms),
        listed(standing.index),
        standing.small.tolist(),
        strict=True,
    )
    classes = [
        {"class": label, "norm": norm, "index": index, "small": small}
        for label, norm, index, small in values
    ]
    for place, entry in enumerate(classes):
        found = entry["norm"] is not None
        entry["success"] = success(suspect, triggers, place) if found else None
    says = _of_triggers(suspect, classes, standing, theta)
    options = {name: getattr(detector, name) for name in ("epochs", "steps", "batch")}
    details = {"classes": classes, "median": listed(torch.tensor([standing.median]))[0], **options}
    return Evidence(title, says, standing.highest, theta, standing.named, True, details), triggers


def _of_triggers(
    suspect: Suspect, classes: list[dict[str, Any]], standing: Standing, theta: float
) -> str:
    """The finding of Neural Cleanse in words."""
    without = sum(entry["norm"] is None for entry in classes)
    if without == len(classes):
        return "no trigger was found for any class, so none can stand out; give it more --epochs"
    named = [entry for entry in classes if entry["class"] in standing.named]
    least = min((entry for entry in classes if entry["small"]), key=lambda entry: entry["norm"])
    parts = []
    for entry in named or [least]:
        small = "far smaller than those of the others" if named else "the smallest"
        parts.append(
            f"the inverted trigger of {suspect.called(entry['class'])} is {small} (norm "
            f"{entry['norm']:.1f}, median {standing.median:.1f}; anomaly index "
            f"{entry['index']:.1f}; above {theta:g} is unusual)"
        )
    if without:
        parts.append(f"for {without} of {len(classes)} classes no trigger was found")
    return "; ".join(parts)


def ratios(suspect: Suspect, cleanse: Evidence) -> Evidence:
    """The norms Neural Cleanse has found, compared by their ratios to the median."""
    title = "Trigger norms as ratios"
    known = [e for e in cleanse.details.get("classes", ()) if e["norm"] is not None]
    if not known:
        return Evidence(title, "does not apply: there are no norms", threshold=RATIO)
    logs = torch.tensor([entry["norm"] for entry in known]).double().clamp(min=1e-6).log()
    index, flagged = anomaly(logs), outliers(-logs, RATIO)
    rows = [
        {"class": entry["class"], "times": float((logs.quantile(0.5) - log).exp()), "index": value}
        for entry, log, value in zip(known, logs, index.tolist(), strict=True)
    ]
    named = tuple(row["class"] for row, flag in zip(rows, flagged, strict=True) if flag)
    least = max(rows, key=lambda row: float(row["times"]))
    parts = [
        f"the trigger of {suspect.called(row['class'])} is {row['times']:.1f} times smaller than "
        f"the median (index of the logarithms {row['index']:.1f}; above {RATIO:g} is unusual)"
        for row in rows
        if row["class"] in (named or (least["class"],))
    ]
    return Evidence(title, "; ".join(parts), least["index"], RATIO, named, True, {"classes": rows})


def soda(suspect: Suspect, log: Log) -> Evidence:
    """Which class's causal attribution over the penultimate neurons differs from the others'."""
    title, detector = "SODA, causal attribution", SODA()
    theta = detector.theta1
    if why := detector.applies(suspect.needs):
        return Evidence(title, f"does not apply: {why}", threshold=theta)
    _, _, notes = detector.detect(suspect.case(log))
    scores, index = notes["s"], notes["anomaly"]
    raised = scores >= scores.quantile(0.5)
    top = int(index.masked_fill(~raised, -1.0).argmax())
    named = tuple(notes["flagged"].tolist())
    details = {
        "classes": [
            {"class": label, "score": float(score), "index": float(value)}
            for label, (score, value) in enumerate(zip(scores, index, strict=True))
        ]
    }
    how = "stands out" if named else "stands out most, yet not enough"
    says = (
        f"the attribution of {' and '.join(map(suspect.called, named or (top,)))} {how} (anomaly "
        f"index {float(index[top]):.1f}; above {theta:g} is unusual)"
    )
    return Evidence(title, says, float(index[top]), theta, named, True, details)


def noise(suspect: Suspect) -> Evidence:
    """To which class noise leads, and how far beyond chance."""
    count, rows = len(suspect.classes), list[dict[str, Any]]()
    for name, images in _noisy(suspect).items():
        shares = suspect.predict(suspect.model, images).bincount(minlength=count) / len(images)
        rows.append({"shown": name, "class": int(shares.argmax()), "share": float(shares.max())})
    by_chance = chance(len(suspect.probes), count)
    tops = {row["class"] for row in rows}
    named = tuple(tops) if len(tops) == 1 and all(row["share"] > MOST for row in rows) else ()
    parts = [
        f"{suspect.called(row['class'])} to {row['shown']} ({percent(row['share'])})"
        for row in rows
    ]
    lead = "one class draws all of it" if named else "no one class draws all of it"
    said = f"most answers are {', '.join(parts)}: {lead}"
    says = f"{said}; without a preference no class has more than {percent(by_chance)}"
    details = {"rows": rows, "by_chance": by_chance, "deviation": NOISE}
    return Evidence("Noise", says, max(row["share"] for row in rows), named=named, details=details)


def _noisy(suspect: Suspect) -> dict[str, Tensor]:
    """Images of noise alone, and the probes with strong noise; uint8."""
    rng, data = seeds.generator(suspect.key, "noise"), suspect.dataset
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (data.mean, data.std))
    images = floats(suspect.probes.inputs)
    drawn = {
        "uniform noise": torch.rand(images.shape, generator=rng),
        "Gaussian noise": mean + std * torch.randn(images.shape, generator=rng),
        "images with strong noise": images + NOISE * torch.randn(images.shape, generator=rng),
    }
    return {name: _bytes(value) for name, value in drawn.items()}


def _bytes(images: Tensor) -> Tensor:
    """Pixels in [0, 1], or beyond, as uint8."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def chance(draws: int, classes: int, level: float = 0.01) -> float:
    """The share that the most frequent of equally likely classes exceeds with this probability.

    Binomial, with Bonferroni's correction for the choice of the class.
    """
    from scipy import stats

    most: float = stats.binom.ppf(1 - level / classes, draws, 1 / classes) / draws
    return 1.0 if math.isnan(most) else most
