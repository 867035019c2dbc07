"""Victims in and out: a foreign checkpoint as a victim's folder, and ours as plain tensors.

`attacks.parts.victim_folder` is its format; a sweep names it `{attack: imported, path: FOLDER}`.
`export` adds `poison.json`, the poisoned samples' places for tools of others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from attacks.parts import victim_folder
from sweeper import models
from sweeper.analyses.triggers import read_trigger
from sweeper.core import advice, seeds, text
from sweeper.core.errors import SweepError, one_key
from sweeper.core.namings import fitted, heads, refuse
from sweeper.core.types import Cell, Role
from sweeper.core.weights import read_weights
from sweeper.plan.sweep import Sweep
from sweeper.run import driver
from sweeper.run.job import Job
from sweeper.run.material import Context, Material
from sweeper.run.walk import Walk

PLACES = "poison.json"
"""The file that is for tools of others alone."""
ADVICE = "name the architecture with --model and its options with --option, such as width=16"


def save(
    folder: Path,
    about: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    listed: Mapping[str, Any] | None = None,
) -> None:
    """Write a victim's folder; its texts tell no home.

    Args:
        folder: Made where it is not there.
        about: What `victim.json` says.
        tensors: File name -> tensors.
        listed: What `poison.json` says; None: no such file.

    Raises:
        SweepError: A victim is there already, or the place cannot be written to.
    """
    if (folder / victim_folder.ABOUT).exists():
        raise SweepError(f"{folder} holds a victim: name another folder, or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, group in tensors.items():
            plain = {key: value.detach().cpu().contiguous() for key, value in group.items()}
            save_file(plain, folder / name)
        if listed is not None:
            (folder / PLACES).write_text(json.dumps(listed) + "\n", encoding="utf-8")
        said = text.without_homes(json.dumps(dict(about), indent=1))
        (folder / victim_folder.ABOUT).write_text(said + "\n", encoding="utf-8")
    except OSError as error:
        raise SweepError(
            f"{folder}: cannot be written to ({error.strerror or error}): name another folder"
        ) from None


# Out


def export(sweep: Sweep, context: Context, victim: str, folder: Path) -> dict[str, Any]:
    """Write a trained victim of a sweep as plain files.

    Args:
        sweep: The sweep.
        context: Store and data folder.
        victim: The victim's key, or its first digits.
        folder: Where to.

    Returns:
        What `victim.json` says.

    Raises:
        SweepError: No such victim, it has not been trained, or it has no trigger to write.
    """
    job = driver.prepare(sweep, context)
    cells = victims(job)
    cell = cells[one_key(cells, victim, f"victims of {sweep.name}")]
    about, tensors, listed = read(job, cell)
    save(folder, about, tensors, listed)
    return about


def victims(job: Job) -> dict[str, Cell]:
    """Return the key of each victim of a sweep -> a defense cell that is run on it."""
    return {c.params["victim"]: c for c in job.plan.cells.values() if c.kind == "defend"}


def read(
    job: Job, cell: Cell
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return what `save` writes of the victim of a defense cell.

    Raises:
        SweepError: It has not been trained, or it has no trigger to write.
        DamagedError: Its files in the store are not what was written.
    """
    key = cell.params["victim"]
    if not job.store.has("train", key):
        run = advice.command("run", where={"store": job.context.store})
        raise SweepError(f"victim {key} has not been trained: {run} does that first")
    ancestors = Walk(job.plan.cells, []).ancestors(cell.key)
    work = Material(cell, ancestors, job.context, job.store)
    if (task := work.dataset.train.task) != "image":
        raise SweepError(f"victim {key}: its samples are {task}: only images can be written")
    if work.attack.rule == "semantic":
        raise SweepError(
            f"victim {key}: a semantic backdoor has no trigger to write: choose another victim"
        )
    params = work.victim.params
    tensors = {victim_folder.MODEL: dict(work.model().state_dict())}
    if work.attack.triggers:
        triggered = work.triggered()
        tensors[victim_folder.TRIGGER] = {
            name: getattr(triggered, name)
            for name in ("images", "labels", "true_labels", "counts", "leaks")
        }
    model = {k: v for k, v in work.victim.local["model"].items() if k != "weights"}
    about = {
        "model": model if len(model) > 1 else model["model"],
        "dataset": work.victim.local["dataset"],
        "shape": list(work.attacker.inputs.shape[1:]),
        "classes": len(work.attacker.classes),
        "class_names": list(work.attacker.classes),
        "target": params["target"],
        "rule": "all2one" if work.attack.targeted else work.attack.rule,
        "trigger": work.attack.triggers,
        **{name: params[name] for name in ("attack", "poison_rate", "seed", "recipe", "reserve")},
        "metrics": {**job.store.meta("train", key)["result"], **work.measured()},
        "victim": key,
    }
    samples = _samples(work)
    if samples:
        tensors[victim_folder.POISON] = samples
    return about, tensors, {k: v.tolist() for k, v in samples.items() if k != "images"}


def _samples(work: Material) -> dict[str, Tensor]:
    """The samples of the training set that are not clean; none where they are not in its order."""
    poisoned = work.poisoned()
    index = (poisoned.role != int(Role.CLEAN)).nonzero().flatten()
    if not len(index) or not torch.equal(poisoned.index, torch.arange(len(work.attacker))):
        return {}
    names = ("images", "labels", "true_labels", "role", "index")
    samples = {name: getattr(poisoned, name)[index] for name in names}
    if work.attacker.positions is not None:
        samples["positions"] = work.attacker.positions[index]  # in the split as published
    return samples


# In


@dataclass(frozen=True)
class Foreign:
    """What is said of a checkpoint."""

    weights: Path
    """safetensors, or a file of torch that holds tensors, and numbers beside them."""
    trigger: Path | None
    """What `read_trigger` reads; None: it is not known, nor is any ASR."""
    model: str
    """Architecture."""
    options: Mapping[str, Any]
    """Its options."""
    target: int = 0
    """Target label."""
    rule: str = "all2one"
    """all2one | all2all."""
    mean: Sequence[float] | None = None
    """What its inputs were normalised by, in [0, 1]; None: as the sweep's data set is."""
    std: Sequence[float] | None = None
    """Likewise."""
    shape: Sequence[int] | None = None
    """(C, H, W) of an image; None: the trigger's."""
    classes: int | None = None
    """Number of classes; None: that of the file's one head."""


def import_model(given: Foreign, folder: Path) -> dict[str, Any]:
    """Check a checkpoint and its trigger, and write them as a victim's folder.

    Returns:
        What `victim.json` says.

    Raises:
        SweepError: A file cannot be read, or they do not fit the architecture.
    """
    trigger = read_trigger(given.trigger) if given.trigger else {}
    shape = _shape(given, trigger)
    if given.rule not in ("all2one", "all2all"):
        raise SweepError(f"--rule: {given.rule!r} is not one of all2one, all2all")
    for flag, numbers in (("--mean", given.mean), ("--std", given.std)):
        if numbers is not None and len(numbers) != shape[0]:
            raise SweepError(
                f"{flag}: {len(numbers)} numbers, the images have {shape[0]} channels: give one "
                "for each"
            )
    weights, classes = named(given, read_weights(given.weights), shape)
    labels = {f"--target: {given.target}": given.target}
    for name in ("labels", "true_labels"):
        if name in trigger:
            labels |= {f"{given.trigger}: {name}: {int(v)}": int(v) for v in trigger[name].unique()}
    for label, value in labels.items():
        if not 0 <= value < classes:
            raise SweepError(
                f"{label} is no label: the file has {classes} classes, 0 to {classes - 1}"
            )
    about = {
        "model": {"model": given.model, **given.options} if given.options else given.model,
        "shape": list(shape),
        "classes": classes,
        "target": given.target,
        "rule": given.rule,
        "trigger": bool(trigger),
    }
    tensors = {victim_folder.MODEL: weights, victim_folder.TRIGGER: trigger}
    save(folder, about, {name: group for name, group in tensors.items() if group})
    return about


def _shape(given: Foreign, trigger: Mapping[str, Tensor]) -> tuple[int, ...]:
    """(C, H, W) of the images: the trigger's, or what is said.

    Raises:
        SweepError: Nothing says it, or the two differ.
    """
    said = tuple(given.shape) if given.shape else None
    if said is not None and (len(said) != 3 or min(said) < 1):
        raise SweepError(f"--shape: {list(said)} is no C,H,W: write 3,32,32 for small images")
    if not trigger:
        if said is None:
            raise SweepError("--shape: is needed where there is no --trigger: write C,H,W, 3,32,32")
        return said
    shown = tuple(trigger["pattern"].shape if "pattern" in trigger else trigger["images"].shape[1:])
    if said not in (None, shown):
        raise SweepError(f"--shape: {list(said)}, the trigger is {list(shown)}: leave it out")
    return shown


def named(
    given: Foreign, weights: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[dict[str, Tensor], int]:
    """Give the weights of a file our names.

    Returns:
        The weights by our names, with `normalise.*` where it is known, and the number of classes.

    Raises:
        SweepError: They are not those of the architecture, or of another number of classes.
    """
    if (known := models.families().get(given.model)) and "image" not in known.tasks:
        raise SweepError(f"--model: {given.model} takes no images: name one that does")
    channels = shape[0]
    net = models.build(
        given.model,
        given.options,
        classes=2,
        shape=shape,
        mean=given.mean or [0.0] * channels,
        std=given.std or [1.0] * channels,
        generator=seeds.generator("import"),
    )
    options = ", ".join(f"{name}={value}" for name, value in given.options.items())
    what = f"{given.model} with {options}" if options else given.model
    trunk, left = fitted(net.trunk.state_dict(), weights, what, ADVICE)
    normaliser = {f"normalise.{name}": value for name, value in net.normalise.state_dict().items()}
    kept = {our: left.pop(n) for our in normaliser for n in [*left] if n.endswith(our)}
    if given.mean is not None or given.std is not None:
        kept = normaliser
    head = _head(left, net.classifier.state_dict(), what, given.classes)
    whole = {f"trunk.{name}": value for name, value in trunk.items()}
    whole |= {f"classifier.{name}": value for name, value in head.items()}
    return {name: v.clone() for name, v in (whole | kept).items()}, len(head["weight"])


def _head(
    left: Mapping[str, Tensor], like: Mapping[str, Tensor], what: str, classes: int | None
) -> dict[str, Tensor]:
    """The head among what is left of a file: its one, or the one of so many classes.

    Raises:
        SweepError: There is none, or there are several.
    """
    found = heads(left, like)
    refuse({n: v for n, v in left.items() if not n.startswith(tuple(found))}, what, ADVICE)
    sizes = {prefix.rstrip("."): len(module["weight"]) for prefix, module in found.items()}
    fits = [module for module in found.values() if classes in (None, len(module["weight"]))]
    if len(fits) == 1:
        return fits[0]
    if not found:
        raise SweepError(f"the file has no head for {what}: name a whole model's weights")
    heads_said = " and ".join(f"{name} of {size} classes" for name, size in sizes.items())
    if not fits:
        raise SweepError(f"--classes: {classes}, the file has {heads_said}: correct it")
    raise SweepError(f"the file has {heads_said}: say with --classes which is the head")
