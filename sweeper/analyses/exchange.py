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

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attacks.parts import victim_folder
from sweeper import models
from sweeper.core import seeds
from sweeper.core.errors import SweepError, one_key
from sweeper.core.types import Role
from sweeper.core.weights import COUNTER, read_weights
from sweeper.plan.sweep import Sweep
from sweeper.run import driver
from sweeper.run.material import Context, Material
from sweeper.run.walk import Walk


def save(folder: Path, about: Mapping[str, Any], tensors: Mapping[str, dict[str, Tensor]]) -> None:
    """Write a victim's folder.

    Args:
        folder: Made where it is not there.
        about: What `victim.json` says.
        tensors: File name -> tensors.

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
        text = json.dumps(dict(about), indent=1)
        (folder / victim_folder.ABOUT).write_text(text + "\n", encoding="utf-8")
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
    cells = {c.params["victim"]: c for c in job.plan.cells.values() if c.kind == "defend"}
    key = one_key(cells, victim, f"victims of {sweep.name}")
    if not job.store.has("train", key):
        raise SweepError(f"victim {key} has not been trained: `sweeper run` does that first")
    ancestors = Walk(job.plan.cells, []).ancestors(cells[key].key)
    work = Material(cells[key], ancestors, job.context, job.store)
    if (task := work.dataset.train.task) != "image":
        raise SweepError(f"victim {key}: its samples are {task}: only images can be written")
    if work.attack.rule == "semantic":
        raise SweepError(
            f"victim {key}: a semantic backdoor has no trigger to write: choose another victim"
        )
    triggered, params = work.triggered(), work.victim.params
    tensors = {
        victim_folder.MODEL: work.model().state_dict(),
        victim_folder.TRIGGER: {
            name: getattr(triggered, name)
            for name in ("images", "labels", "true_labels", "counts", "leaks")
        },
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
        **{name: params[name] for name in ("attack", "poison_rate", "seed", "recipe", "reserve")},
        "metrics": {**job.store.meta("train", key)["result"], **work.measured()},
        "victim": key,
    }
    samples = _samples(work)
    if samples:
        tensors[victim_folder.POISON] = samples
    save(folder, about, tensors)
    listed = {name: value.tolist() for name, value in samples.items() if name != "images"}
    (folder / "poison.json").write_text(json.dumps(listed) + "\n", encoding="utf-8")
    return about


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
    """safetensors, or a file of torch that holds tensors alone."""
    trigger: Path
    """A picture with an alpha channel; .npz or .safetensors with a patch, or with images."""
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


def import_model(given: Foreign, folder: Path) -> dict[str, Any]:
    """Check a checkpoint and its trigger, and write them as a victim's folder.

    Returns:
        What `victim.json` says.

    Raises:
        SweepError: A file cannot be read, or they do not fit the architecture.
    """
    trigger = read_trigger(given.trigger)
    shown = trigger["pattern"] if "pattern" in trigger else trigger["images"][0]
    channels, height, width = shown.shape
    weights = read_weights(given.weights)
    matrices = [value for value in weights.values() if value.ndim >= 2]
    if not matrices:
        raise SweepError(f"{given.weights}: holds no weight matrix: name a whole model's weights")
    classes = len(matrices[-1])
    if given.rule not in ("all2one", "all2all"):
        raise SweepError(f"--rule: {given.rule!r} is not one of all2one, all2all")
    if not 0 <= given.target < classes:
        raise SweepError(f"--target: {given.target} is no label: the file has {classes} classes")
    for flag, numbers in (("--mean", given.mean), ("--std", given.std)):
        if numbers is not None and len(numbers) != channels:
            raise SweepError(
                f"{flag}: {len(numbers)} numbers, the trigger has {channels} channels: give one "
                "for each"
            )
    net = models.build(
        given.model,
        given.options,
        classes=classes,
        shape=(channels, height, width),
        mean=given.mean or [0.0] * channels,
        std=given.std or [1.0] * channels,
        generator=seeds.generator("import"),
    )
    named = {"model": given.model, **given.options}
    fitted = matched(net, weights, str(named if given.options else given.model))
    if given.mean is not None or given.std is not None:
        state = net.state_dict()
        fitted |= {name: state[name] for name in state if name.startswith("normalise.")}
    about = {
        "model": named if given.options else given.model,
        "shape": [channels, height, width],
        "classes": classes,
        "target": given.target,
        "rule": given.rule,
    }
    save(folder, about, {victim_folder.MODEL: fitted, victim_folder.TRIGGER: trigger})
    return about


def matched(net: nn.Module, weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Give foreign weights our names.

    Names that are ours stay. Others are paired in the order the two networks hold them, each with
    one of the same kind (weight, bias, running mean or variance) and shape.

    Raises:
        SweepError: The two networks do not have the same weights in the same order.
    """
    ours = net.state_dict()
    theirs = {name.removeprefix("module."): value for name, value in weights.items()}
    our_names = [name for name in ours if not name.startswith("normalise.")]
    if set(our_names) <= set(theirs) and all(theirs[n].shape == ours[n].shape for n in our_names):
        return {name: value for name, value in theirs.items() if name in ours}
    their_names = list(theirs)
    counted = any(name.endswith(COUNTER) for name in their_names)  # old files have no such entries
    expected = [name for name in our_names if counted or not name.endswith(COUNTER)]
    for place, (our, their) in enumerate(zip(expected, their_names, strict=False), start=1):
        kinds = our.rpartition(".")[2], their.rpartition(".")[2]
        if kinds[0] != kinds[1] or ours[our].shape != theirs[their].shape:
            raise SweepError(
                f"weight {place} of the file is {their} {list(theirs[their].shape)}, that of "
                f"{what} {our} {list(ours[our].shape)}: name the architecture with --model and its "
                "options with --option, such as width=16"
            )
    if len(expected) != len(their_names):
        raise SweepError(
            f"the file has {len(their_names)} weights, {what} has {len(expected)}: name the "
            "architecture with --model and its options with --option, such as width=16"
        )
    paired = {o: theirs[t].clone() for o, t in zip(expected, their_names, strict=True)}
    return {name: paired.get(name, ours[name]) for name in our_names}


def read_trigger(path: Path) -> dict[str, Tensor]:
    """Read a trigger as `trigger.safetensors` holds it.

    Raises:
        SweepError: The file is none of the kinds, or its tensors have other shapes.
    """
    try:
        if path.suffix == ".safetensors":
            trigger = dict(load_file(path))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                trigger = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            trigger = _picture(path)
    except SweepError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise SweepError(f"{path}: cannot be read ({error}): correct --trigger") from None
    if "pattern" in trigger and trigger["pattern"].ndim == 2:
        trigger["pattern"] = trigger["pattern"][None]
    if "pattern" in trigger and trigger["pattern"].ndim == 3 and "mask" in trigger:
        if not bool(((trigger["mask"] >= 0) & (trigger["mask"] <= 1)).all()):
            raise SweepError(f"{path}: mask: needs shares from 0 to 1: divide it by 255")
        if trigger["mask"].shape[-2:] == trigger["pattern"].shape[1:]:
            return {"pattern": trigger["pattern"].float(), "mask": trigger["mask"].float()}
    images = trigger.get("images")
    if images is not None and images.ndim == 4 and images.dtype == torch.uint8 and len(images):
        return {
            k: v if v.dtype in (torch.uint8, torch.bool) else v.long() for k, v in trigger.items()
        }
    raise SweepError(
        f"{path}: needs `pattern` [C, H, W] of 0..255 with `mask` [H, W] of 0..1, or uint8 `images`"
        f" [M, C, H, W] of the triggered test set; it holds "
        f"{', '.join(f'{name} {list(v.shape)}' for name, v in trigger.items()) or 'nothing'}"
    )


def _picture(path: Path) -> dict[str, Tensor]:
    """A patch from a picture as large as the images, its alpha channel the mask."""
    with Image.open(path) as image:
        if image.mode not in ("RGBA", "LA"):
            raise SweepError(
                f"{path}: a picture of mode {image.mode} says not where the trigger is: save it "
                "with an alpha channel (RGBA, or LA for grey images), transparent elsewhere"
            )
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    return {"pattern": pixels[:-1], "mask": pixels[-1] / 255}
