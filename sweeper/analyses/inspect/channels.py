"""Channels that stand out, by CLP's bound and by BNP's divergence, and where they lead.

Both papers prune such channels; neither says how many a clean model has. So it is tried what the
channels do: without them ACC and predictions are counted; with them raised, the class that most
images move to, beside as many channels of the same layers drawn at random.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

from defenses import bnp, clp
from defenses.parts.neurons import layers, prune
from defenses.parts.norm_inputs import above
from sweeper.analyses.inspect.evidence import MOST, Evidence, percent
from sweeper.analyses.inspect.suspect import PROBES, Suspect
from sweeper.core import seeds
from sweeper.models.base import Net
from sweeper.plan.matrix import misfit

RAISE = 5.0
"""Deviations by which a channel is raised, as its BatchNorm gives them."""
DRAWS = 19
"""Random choices of channels; a finding that none of them reaches has a chance of 1 in 20."""
SHOWN = 8
"""Channels that are listed, the farthest out first."""

Layers = dict[str, Tensor]
"""Name of a BatchNorm -> one value for each channel, on the CPU."""


def lipschitz(suspect: Suspect) -> Evidence:
    """Channels whose Lipschitz bound is beyond CLP's threshold."""
    detector = clp.CLP()
    if why := misfit(detector, suspect.needs, suspect.name):
        return Evidence(detector.title, f"does not apply: {why}")
    names = {module: name for name, module in suspect.model.named_modules()}
    values = {
        names[norm]: clp.scores(conv, norm).cpu() for conv, norm in clp.by_graph(suspect.model)
    }
    dead = {name: clp.outliers(value, detector.u) for name, value in values.items()}
    return _tried(suspect, detector.title, values, dead, detector.u)


def statistics(suspect: Suspect) -> Evidence:
    """Channels whose running statistics do not fit clean images, beyond BNP's threshold."""
    detector = bnp.BNP()
    assert detector.u is not None
    if why := misfit(detector, suspect.needs, suspect.name):
        return Evidence(detector.title, f"does not apply: {why}")
    found = bnp.divergences(suspect.model, suspect.clean.inputs[: detector.images], suspect.device)
    values = {name: value for (name, _), value in zip(layers(suspect.model), found, strict=True)}
    flat = above(values.values(), detector.u).split([len(value) for value in values.values()])
    return _tried(suspect, detector.title, values, dict(zip(values, flat, strict=True)), detector.u)


def _tried(suspect: Suspect, title: str, values: Layers, dead: Layers, u: float) -> Evidence:
    """What the channels beyond a threshold do when they are switched off, and when raised."""
    count, total = sum(int(part.sum()) for part in dead.values()), sum(map(len, dead.values()))
    rows = [
        {"layer": name, "channels": len(part), "beyond": int(part.sum())}
        for name, part in dead.items()
    ]
    details: dict[str, Any] = {"threshold": u, "beyond": count, "channels": total, "layers": rows}
    details["top"] = sorted(_listed(values, dead), key=lambda row: -row["deviations"])[:SHOWN]
    if not count:
        says = f"none of {total} channels is beyond {u:g} deviations of its layer"
        return Evidence(title, says, 0.0, u, details=details)
    details |= _effects(suspect, dead)
    label, share = details["leads_to"], details["share"]
    named = (label,) if share > MOST and not details["reached"] else ()
    beside = (
        "none of as many random channels does as much"
        if not details["reached"]
        else f"{details['reached']} of {DRAWS} random choices of as many do as much"
    )
    says = (
        f"{count} of {total} channels are beyond {u:g} deviations of their layers; raised, they "
        f"lead {percent(share)} of {PROBES} images to {suspect.called(label)} "
        f"({percent(details['before'])} as it is), and {beside}; without them "
        f"{percent(details['acc_without'])} of these are classified rightly, with them "
        f"{percent(details['acc_with'])}"
    )
    return Evidence(title, says, float(count), u, named, details=details)


def _listed(values: Layers, dead: Layers) -> Iterator[dict[str, Any]]:
    """The channels beyond the threshold, each with its deviations above its layer's mean."""
    for name, value in values.items():
        far = (value - value.mean()) / value.std()
        for channel in dead[name].nonzero().flatten().tolist():
            yield {"layer": name, "channel": channel, "deviations": float(far[channel])}


def _effects(suspect: Suspect, dead: Layers) -> dict[str, Any]:
    """Predictions on the probes as they are, without the channels, and with them raised."""
    probes, classes = suspect.probes, len(suspect.classes)

    def shares(model: Net) -> tuple[Tensor, float]:
        called = suspect.predict(model, probes.inputs)
        return called.bincount(minlength=classes) / len(called), float(
            (called == probes.labels).double().mean()
        )

    before, acc_with = shares(suspect.model)
    without, acc_without = shares(_pruned(suspect.model, dead))
    lost = int((before - without).argmax())
    after, _ = shares(raised(suspect.model, dead))
    label = int((after - before).argmax())
    rise = float((after - before)[label])
    rng = seeds.generator(suspect.key, "channels")
    others = [shares(raised(suspect.model, _drawn(dead, rng)))[0] for _ in range(DRAWS)]
    return {
        "leads_to": label,
        "share": float(after[label]),
        "before": float(before[label]),
        "reached": sum(bool((other - before).max() >= rise) for other in others),
        "draws": DRAWS,
        "acc_with": acc_with,
        "acc_without": acc_without,
        "loses_without": {"class": lost, "share": float((before - without)[lost])},
    }


def _pruned(model: Net, dead: Layers) -> Net:
    """A copy whose channels have a scale of zero."""
    changed = copy.deepcopy(model)
    zeros = [
        dead.get(name, torch.zeros(len(layer.weight), dtype=torch.bool))
        for name, layer in layers(changed)
    ]
    prune(changed, torch.cat(zeros))
    return changed


@torch.no_grad()
def raised(model: Net, chosen: Layers) -> Net:
    """A copy whose chosen channels (bool [C] by BatchNorm) answer `RAISE` deviations higher."""
    changed = copy.deepcopy(model)
    for name, channels in chosen.items():
        norm = changed.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        norm.bias.add_(RAISE * norm.weight.abs() * channels.to(norm.bias.device))
    return changed


def _drawn(dead: Layers, rng: Generator) -> Layers:
    """As many channels of each layer, at random."""
    return {name: part[torch.randperm(len(part), generator=rng)] for name, part in dead.items()}
