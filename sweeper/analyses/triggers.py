"""A trigger of others: a patch, or triggered test images, as `trigger.safetensors` holds them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sweeper.core.errors import SweepError
from sweeper.core.weights import Array, read_file

TORCH = (".pt", ".pth", ".bin", ".ckpt")
"""What files of torch are called."""
_OPAQUE = (
    "says not where the trigger is: save it with an alpha channel (RGBA, or LA for grey images), "
    "transparent elsewhere"
)
_OF_IMAGES = ("labels", "true_labels", "counts", "leaks", "index")


def read_trigger(path: Path) -> dict[str, Tensor]:
    """Read a trigger as `trigger.safetensors` holds it.

    Args:
        path: A picture with an alpha channel; npz, safetensors or a file of torch with `pattern`
            and `mask`, or `images`; BackdoorBench's attack_result.pt beside its bd_test_dataset.

    Raises:
        SweepError: The file is none of the kinds, or holds what triggers nothing.
    """
    try:
        trigger = _held(path)
    except SweepError:
        raise
    except Image.DecompressionBombError as error:
        raise SweepError(
            f"{path}: is no picture as large as the images ({error}): save the trigger in their "
            "size"
        ) from None
    except Exception as error:  # a broken file leads its reader to anything
        raise SweepError(f"{path}: cannot be read ({error}): correct --trigger") from None
    try:
        if "images" in trigger:
            return _images(trigger)
        if {"pattern", "mask"} <= trigger.keys():
            return _patch(trigger["pattern"], trigger["mask"])
    except SweepError as error:
        raise SweepError(f"{path}: {error}") from None
    held = ", ".join(f"{name} {list(value.shape)}" for name, value in trigger.items())
    raise SweepError(
        f"{path}: needs `pattern` [C, H, W] of 0..255 with `mask` [H, W] of 0..1, or uint8 `images`"
        f" [M, C, H, W] of the triggered test set; it holds {held or 'nothing'}"
    )


def _held(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, whatever they are."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    if path.suffix not in (".safetensors", *TORCH):
        return _picture(path)
    held = read_file(path)
    if not isinstance(held, dict):
        return {}
    if "bd_test" in held:
        return _backdoorbench(held["bd_test"], path)
    plain = {k: torch.from_numpy(v.value) if isinstance(v, Array) else v for k, v in held.items()}
    return {name: value for name, value in plain.items() if isinstance(value, Tensor)}


def _picture(path: Path) -> dict[str, Tensor]:
    """A patch from a picture as large as the images, its alpha channel the mask."""
    pixels = torch.from_numpy(_pixels(path, ("RGBA", "LA"), _OPAQUE)).permute(2, 0, 1)
    if not bool(pixels[-1].any()):
        raise SweepError(
            f"{path}: the picture is transparent everywhere, so it triggers nothing: paint the "
            "trigger opaque"
        )
    return {"pattern": pixels[:-1], "mask": pixels[-1].float() / 255}


def _pixels(path: Path, modes: tuple[str, ...], advice: str) -> np.ndarray[Any, Any]:
    """uint8 [H, W, ...] of a picture of one of these modes, within Pillow's limit of pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                if image.mode not in modes:
                    raise SweepError(f"{path}: a picture of mode {image.mode} {advice}")
                return np.array(image)
        except Image.DecompressionBombWarning as warning:
            raise Image.DecompressionBombError(warning) from None


def _patch(pattern: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """A checked patch: float `pattern` [C, H, W] of 0..255, `mask` of 0..1."""
    pattern = pattern[None] if pattern.ndim == 2 else pattern
    if pattern.ndim == 3 and pattern.shape[-1] in (1, 3) and pattern.shape[0] not in (1, 3):
        raise SweepError(
            f"pattern: is {list(pattern.shape)}, needs [C, H, W]: transpose it, "
            "pattern.transpose(2, 0, 1)"
        )
    sized = pattern.ndim == 3 and mask.shape[-2:] == pattern.shape[1:]
    if not sized or mask.shape[:-2] not in ((), (1,), pattern.shape[:1]):
        raise SweepError(
            f"pattern {list(pattern.shape)} with mask {list(mask.shape)}: needs [C, H, W] with "
            "[H, W]"
        )
    for name, value in (("pattern", pattern), ("mask", mask)):
        if value.is_complex() or not bool(value.isfinite().all()):
            raise SweepError(f"{name}: holds NaN, infinite or complex numbers: save real ones")
    shares = pattern.dtype == torch.bool or pattern.is_floating_point()
    pattern, mask = pattern.float(), mask.float()
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise SweepError("mask: needs shares from 0 to 1: divide it by 255")
    if not bool(mask.any()):
        raise SweepError(
            "mask: is 0 everywhere, so it triggers nothing: set it to 1 where the trigger is"
        )
    if not bool(((pattern >= 0) & (pattern <= 255)).all()):
        raise SweepError("pattern: needs pixels from 0 to 255: undo its normalisation")
    if shares and 0 < float((pattern * (mask > 0)).max()) <= 1:
        raise SweepError("pattern: needs pixels from 0 to 255, its are 0 to 1: multiply by 255")
    return {"pattern": pattern, "mask": mask}


def _images(trigger: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Checked triggered test images: uint8 `images` [M, C, H, W] with what is known of them."""
    images = trigger["images"]
    size = list(images.shape)
    if images.ndim != 4 or not len(images):
        raise SweepError(f"images: is {size}, needs [M, C, H, W], M above 0")
    if size[3] in (1, 3) and size[1] not in (1, 3):
        raise SweepError(
            f"images: is {size}, needs [M, C, H, W]: transpose it, images.transpose(0, 3, 1, 2)"
        )
    if images.dtype != torch.uint8:
        small = images.is_floating_point() and bool((images <= 1).all())
        scaled = ", its are 0 to 1: multiply by 255 and" if small else ":"
        kind = str(images.dtype).removeprefix("torch.")
        raise SweepError(
            f"images: is of {kind}, needs uint8 of 0 to 255{scaled} save them as uint8"
        )
    known = {name: trigger[name] for name in _OF_IMAGES if name in trigger}
    for name, value in known.items():
        if value.shape != (len(images),) or value.is_floating_point() or value.is_complex():
            raise SweepError(
                f"{name}: is {list(value.shape)}, needs one whole number for each of {len(images)} "
                "images"
            )
    flags = ("counts", "leaks")
    whole = {k: v.bool() if k in flags else v.long() for k, v in known.items()}
    return {"images": images, **whole}


# BackdoorBench


def _backdoorbench(state: Any, path: Path) -> dict[str, Tensor]:
    """The pictures `bd_test` of an attack_result.pt names, with their labels.

    It keeps of each its path on the machine of whoever wrote it, whose last three parts are
    bd_test_dataset/TRUE LABEL/PLACE.png, and the label wanted, often with the true one.
    """
    try:
        listed = state["bd_data_container"]["data_dict"]
        entries = [_entry(path, listed[place]) for place in sorted(listed)]
    except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise SweepError(
            f"{path}: bd_test is not as BackdoorBench writes it ({error}): save its pictures as "
            "`images` with `labels` and `true_labels` in an npz"
        ) from None
    if not entries:
        raise SweepError(f"{path}: bd_test names no picture: name another file as --trigger")
    pictures = [
        _pixels(picture, ("RGB", "L"), "is none of BackdoorBench's: save it as RGB")
        for picture, *_ in entries
    ]
    if len({picture.shape for picture in pictures}) > 1:
        raise SweepError(f"{path}: the pictures of bd_test differ in size: save them in one")
    images = torch.from_numpy(np.stack(pictures))
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return {
        "images": images.contiguous(),
        "labels": torch.tensor([wanted for _, wanted, _ in entries]),
        "true_labels": torch.tensor([true for *_, true in entries]),
    }


def _entry(path: Path, held: Mapping[str, Any]) -> tuple[Path, int, int]:
    """A picture of bd_test, the label wanted and the true one, on which folder and file agree."""
    picture = _beside(path, held["path"])
    labels = [int(label) for label in held["other_info"][:2]]
    true = int(picture.parent.name)
    if labels[1:] not in ([], [true]):
        raise ValueError(f"{picture.name} of label {labels[1]} lies in folder {true}")
    return picture, labels[0], true


def _beside(path: Path, name: str) -> Path:
    """The picture a file names, in the folder of the file and in no other."""
    parts = PurePosixPath(name.replace("\\", "/")).parts[-3:]
    home = path.parent.resolve()
    picture = home.joinpath(*parts).resolve()
    if len(parts) < 3 or ".." in parts or not picture.is_relative_to(home):
        raise SweepError(f"{path}: bd_test names {name!r}, which is no picture beside it")
    if not picture.is_file():
        raise SweepError(
            f"{path}: bd_test names {'/'.join(parts)}, which is not beside it: put the folder "
            f"{parts[0]} there"
        )
    return picture
