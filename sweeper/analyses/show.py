"""What an attack does to samples, as one picture: clean, triggered, difference amplified."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sweeper.core import names
from sweeper.core.errors import SweepError
from sweeper.core.types import Cell, Samples
from sweeper.engine import task as tasks
from sweeper.plan.sweep import Sweep
from sweeper.run import cells, driver, present
from sweeper.run.job import Job
from sweeper.run.material import Context, Log, Material
from sweeper.run.walk import Walk
from sweeper.store.contents import Contents

MOST = 2_000_000
"""Bytes of the pictures of a page: with them it still opens at once and goes by mail."""
_NO_TRIGGER = "it has no trigger that can be drawn"


@dataclass(frozen=True)
class Quality:
    """How visible a trigger is, on average over images; pixels of 0..255."""

    psnr: float
    """Peak signal-to-noise ratio in dB; infinite where nothing changes."""
    ssim: float
    """Structural similarity, 1 where nothing changes."""
    linf: float
    """Largest change of a pixel."""


def quality(clean: Tensor, triggered: Tensor) -> Quality:
    """Compare uint8 images [B, C, H, W] before and after the trigger."""
    before, after = clean.double(), triggered.double()
    error = (before - after).square().mean((1, 2, 3))
    psnr = 10 * torch.log10(255**2 / error)
    return Quality(
        float(psnr.mean()), float(ssim(before, after)), float((before - after).abs().max())
    )


def ssim(clean: Tensor, triggered: Tensor, sigma: float = 1.5) -> Tensor:
    """Structural similarity of images [B, C, H, W] of 0..255, mean over all (Wang et al., 2004).

    A Gaussian window of 11 pixels, or the largest odd side that fits.
    """
    channels, side = clean.shape[1], min(clean.shape[2], clean.shape[3], 11)
    side -= 1 - side % 2
    taps = torch.arange(side, dtype=clean.dtype) - side // 2
    gaussian = torch.exp(-(taps**2) / (2 * sigma**2))
    gaussian = gaussian / gaussian.sum()
    window = (gaussian[:, None] * gaussian[None, :]).expand(channels, 1, side, side)

    def blur(x: Tensor) -> Tensor:
        return functional.conv2d(x, window, groups=channels)

    mean_clean, mean_triggered = blur(clean), blur(triggered)
    var_clean = blur(clean * clean) - mean_clean**2
    var_triggered = blur(triggered * triggered) - mean_triggered**2
    covariance = blur(clean * triggered) - mean_clean * mean_triggered
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_clean * mean_triggered + c1) * (2 * covariance + c2)
    denominator = (mean_clean**2 + mean_triggered**2 + c1) * (var_clean + var_triggered + c2)
    return (numerator / denominator).mean()


def triggered(
    sweep: Sweep, context: Context, log: Log | None = None, count: int = 8
) -> tuple[Samples, Samples]:
    """Return test samples and the same with the trigger.

    What the trigger needs is made first, and kept in the store: the attack's prepared state, and
    for an attack that controls training the victim itself.

    Args:
        sweep: One attack, one data set, one model.
        context: Where its cells run.
        log: Takes their progress.
        count: Most samples.

    Raises:
        SweepError: The attack does not apply to the data set, has no trigger, or its cells failed.
    """
    job = driver.prepare(sweep, context)
    for cell in job.plan.inapplicable:
        raise SweepError(f"{cell.axes['attack']} on {cell.axes['dataset']}: {cell.reason}")
    (defend,) = (cell for cell in job.plan.cells.values() if cell.kind == "defend")
    walk = Walk(job.plan.cells, [])
    needed = _needed(job, walk, defend)
    if needed:
        made = [*walk.ancestors(needed.key), needed]
        Contents(context.store).keep(sweep.name, {cell.key: cell.kind for cell in made})
        result = cells.run_here(needed, made[:-1], job.context, log)
        if result["status"] != "ok":
            why = result["error"].strip().splitlines()[-1]
            raise SweepError(
                f"show: {needed.kind} cell {needed.key} {result['status']}: {why}: change the "
                "attack's options, or run it in a sweep to see where"
            )
    clean, hit = _pair(job, walk, defend, count)
    if not len(hit):
        raise SweepError(
            f"show: {defend.axes['attack']} has no trigger to show: name an attack that has one"
        )
    return clean, hit


@dataclass(frozen=True)
class Gallery:
    """Triggers of a sweep."""

    pictures: tuple[tuple[str, bytes], ...]
    """Each attack with its data set, and the picture as PNG."""
    left_out: tuple[str, ...]
    """Why other attacks have none, a sentence each."""
    cells: Mapping[str, Mapping[str, Any]]
    """The matrix they are of, as `sweeper.run.present.outline` says it."""
    whole: bool
    """Whether another machine, or another day, would show no more."""


def gallery(sweep: Sweep, context: Context, count: int = 6, most: int = MOST) -> Gallery:
    """Draw each attack of a sweep on the first data set where that trains nothing.

    Left out: an attack without a trigger, one whose trigger is learned and not in the store, data
    that are not on this machine, and what would make the page too large.

    Args:
        sweep: Whose attacks.
        context: Store and data.
        count: Most samples of each.
        most: Bytes of all pictures together.
    """
    job = driver.prepare(sweep, context, need_data=False)
    walk = Walk(job.plan.cells, [])
    pictures: dict[str, tuple[str, bytes]] = {}
    reasons: dict[str, str] = {}
    large = f"the pictures before it have the {most / 1e6:g} MB of a page"
    for defend in job.plan.cells.values():
        label, dataset = defend.axes["attack"], defend.axes["dataset"]
        if defend.kind != "defend" or label in pictures or reasons.get(label) == _NO_TRIGGER:
            continue
        title = names.short("attack", label)  # a name of the sweep's own stays
        needed = _needed(job, walk, defend)
        if dataset in job.plan.unresolved:
            reasons[label] = f"{dataset} is not on this machine"
        elif needed and needed.key not in job.done:
            reasons[label] = "the trigger is learned, and the store does not have it"
        elif not (drawn := _drawn(title, job, walk, defend, count)):
            reasons[label] = _NO_TRIGGER
        elif sum(len(picture) for _, picture in pictures.values()) + len(drawn) > most:
            reasons[label] = large
        else:
            pictures[label] = f"{title}, {dataset}", drawn
    missing: dict[str, list[str]] = {}
    for label, reason in reasons.items():
        if label not in pictures:
            missing.setdefault(reason, []).append(names.short("attack", label))
    told = tuple(f"No picture of {', '.join(who)}: {why}." for why, who in missing.items())
    whole = missing.keys() <= {_NO_TRIGGER, large}
    matrix = present.outline(job.plan)["cells"]
    return Gallery(tuple(pictures.values()), told, matrix, whole)


def _drawn(title: str, job: Job, walk: Walk, defend: Cell, count: int) -> bytes:
    """The picture of a trigger as PNG; empty where there is none."""
    clean, triggered_samples = _pair(job, walk, defend, count)
    if not len(triggered_samples):
        return b""
    picture = io.BytesIO()
    figure(title, clean, triggered_samples).savefig(picture, dpi=80)
    return picture.getvalue()


def _needed(job: Job, walk: Walk, defend: Cell) -> Cell | None:
    """The cell that learns the trigger of a defense cell's victim; None for a given trigger."""
    victim = walk.cells[defend.params["victim"]]
    work = Material(victim, walk.ancestors(victim.key), job.context, job.store)
    if work.attack.controls != "data":
        return victim
    state = victim.params.get("state")
    return walk.cells[state] if state else None


def _pair(job: Job, walk: Walk, defend: Cell, count: int) -> tuple[Samples, Samples]:
    """At most `count` test samples and the same with the trigger."""
    victim = walk.cells[defend.params["victim"]]
    work = Material(victim, walk.ancestors(victim.key), job.context, job.store)
    if work.attack.controls != "data":  # its state is the victim's own
        work = Material(defend, walk.ancestors(defend.key), job.context, job.store)
    triggered, test = work.triggered(), work.dataset.test
    stamped = triggered.samples[triggered.counts]
    clean = test[triggered.counts] if len(triggered.counts) == len(test) else stamped
    return clean[:count], stamped[:count]


def figure(attack: str, before: Samples, after: Samples) -> Any:
    """Draw the rows clean, triggered and difference as a matplotlib figure, as tasks picture them.

    Args:
        attack: Its label.
        before: The samples without the trigger.
        after: The same with it.
    """
    from matplotlib.figure import Figure

    task, changed = tasks.of(before), change(before, after)
    if isinstance(changed, Quality):
        changed = (
            f"PSNR {changed.psnr:.1f} dB, SSIM {changed.ssim:.3f}, L-inf {changed.linf:.0f} of 255"
        )
    joined = {name: torch.cat([v, after.tensors[name]]) for name, v in before.tensors.items()}
    clean, triggered = task.pictures(before.changed(**joined)).split(len(before))
    difference, count = (triggered.float() - clean.float()).abs(), len(clean)
    factor = 255 / max(1.0, float(difference.max()))
    rows = {"clean": clean, "triggered": triggered}
    if before.labelled:
        rows[f"difference x {factor:.3g}"] = (difference * factor).to(torch.uint8)
    wide = clean.shape[3] / clean.shape[2]
    picture = Figure(layout="constrained")
    if wide > 2:  # lines of text: one sample below the other
        picture.set_size_inches(2 * 4.5 + 0.5, count * (4.5 / wide + 0.3) + 0.5)
        axes = picture.subplots(count, len(rows), squeeze=False).T
    else:
        side = 1.1 if before.labelled else 2.2
        picture.set_size_inches(side * wide * count + 1.2, (side + 0.3) * len(rows))
        axes = picture.subplots(len(rows), count, squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for panel, image in zip(row, images, strict=True):
            pixels = np.asarray(image.permute(1, 2, 0))
            grey = pixels.shape[2] == 1
            panel.imshow(pixels[..., 0] if grey else pixels, cmap="gray", vmin=0, vmax=255)
            panel.set_xticks([])
            panel.set_yticks([])
        named = row[0].set_title if wide > 2 else row[0].set_ylabel
        named(name)
    picture.suptitle(f"{attack}: {changed}")
    return picture


def lines(before: Samples, after: Samples) -> list[tuple[str, str]]:
    """Samples without and with the trigger, where they are made of words; else none."""
    task = tasks.of(before)
    return list(zip(task.lines(before), task.lines(after), strict=True))


def change(before: Samples, after: Samples) -> Quality | str:
    """How far samples are from themselves: the quality of pixels, else how much differs."""
    one, other = before.inputs, after.inputs
    if not before.labelled:
        differ = {
            name: int((value != after.tensors[name]).flatten(1).any(1).sum())
            for name, value in before.tensors.items()
        }
        return "changed: " + ", ".join(
            f"{name} of {count} of {len(one)}" for name, count in differ.items()
        )
    if one.dtype == torch.uint8:  # frames are images
        return quality(one.flatten(0, -4), other.flatten(0, -4))
    return f"{(one != other).double().mean():.1%} of the numbers changed"
