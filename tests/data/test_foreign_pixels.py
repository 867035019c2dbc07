"""Images of other people: more than 8 bits, floats, EXIF; every reader of pictures alike."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from attacks.blend import Blend
from attacks.parts import reflections
from sweeper.core.errors import SweepError
from sweeper.data import open_dataset
from tests.support.pictures import picture, write_blobs, write_boxes

RAMP = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
"""All of 16 bits."""
EIGHT = np.round(RAMP / 257).astype(np.uint8)
"""What it is with 8."""
Reader = Callable[[Path, Sequence[bytes]], Tensor]
"""Takes four encoded images; gives their pixels, uint8 [4, C, H, W]."""


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def tiff(bits: int, values: bytes, white: int = 1) -> bytes:
    """A grey TIFF of 6x8 pixels with so many bits each; `white` 0: 0 is white."""
    tags = [(256, 8), (257, 6), (258, bits), (259, 1), (262, white), (273, 8), (277, 1), (278, 6)]
    tags += [(279, len(values)), (339, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(values))
    return head + values + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


def colour_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, the same grey in each."""
    lines = b"".join(b"\0" + row.repeat(3).astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def packed_12(values: np.ndarray) -> bytes:
    bits = (values.reshape(-1, 1) >> np.arange(11, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


# The readers


def from_parquet(root: Path, blobs: Sequence[bytes], **options: object) -> Tensor:
    write_blobs(root / "own/train.parquet", blobs, [0, 0, 1, 1])
    entry = {"dataset": "own", "test_share": 0.5, **options}
    data = open_dataset(entry, root, root / "cache")
    return torch.cat([data.train.images, data.test.images])


def from_folder(root: Path, blobs: Sequence[bytes]) -> Tensor:
    for number, blob in enumerate(blobs):
        file = root / "own/train" / "ab"[number // 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(blob)
    data = open_dataset({"dataset": "own", "test_share": 0.5}, root, root / "cache")
    return torch.cat([data.train.images, data.test.images])


def from_clips(root: Path, blobs: Sequence[bytes]) -> Tensor:
    for number, blob in enumerate(blobs):
        file = root / "own/train" / "ab"[number // 2] / f"clip{number}" / "1.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(blob)
    entry = {"dataset": "own", "frames": 1, "test_share": 0.5}
    data = open_dataset(entry, root, root / "cache")
    return torch.cat([data.train.inputs, data.test.inputs]).flatten(0, 1)


def from_boxes(root: Path, blobs: Sequence[bytes]) -> Tensor:
    boxes = [[(0.0, 0.0, 2.0, 2.0, 0)]] * 4
    write_boxes(root / "own/train.parquet", blobs, boxes, ["a"])
    entry = {"dataset": "own", "test_share": 0.5, "size": 8}
    data = open_dataset(entry, root, root / "cache")
    return torch.cat([data.train.images, data.test.images])


READERS = [from_parquet, from_folder, from_clips, from_boxes]
SCALED = {
    "png16": saved(Image.fromarray(RAMP), "PNG"),
    "tiff16": saved(Image.fromarray(RAMP), "TIFF"),
    "tiff12": tiff(12, packed_12(RAMP >> 4)),
    "tiff16 from white to black": tiff(16, (65535 - RAMP).astype("<u2").tobytes(), white=0),
    "pgm of 4095": b"P5 8 6 4095\n" + (RAMP >> 4).astype(">u2").tobytes(),
    "png16 in colour": colour_png(RAMP),
}
REFUSED = {
    "float tiff": (
        saved(Image.fromarray(EIGHT / np.float32(255)), "TIFF"),
        "its pixels are floats",
    ),
    "tiff32": (saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "whole numbers of 32 bits"),
    "8 bits in 16": (saved(Image.fromarray(EIGHT.astype(np.uint16)), "PNG"), "fewer bits"),
    "12 bits in 16": (saved(Image.fromarray(RAMP >> 4), "PNG"), "fewer bits"),
    "12 bits in 16, in colour": (colour_png(RAMP >> 4), "fewer bits"),
    "two levels left": (
        saved(Image.fromarray(np.uint16([[0, 50, 65535]] * 3)), "PNG"),
        "hold more",
    ),
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("reader", READERS)
def test_deeper_pixels_are_scaled_by_the_depth_their_file_states(
    reader: Reader, kind: str, tmp_path: Path
) -> None:
    images = reader(tmp_path, [SCALED[kind]] * 4)
    if reader is from_boxes:  # resized
        assert int(images.min()) < 8 and int(images.max()) > 247
        return
    assert images.shape[2:] == (6, 8)
    assert int((images.int() - torch.from_numpy(EIGHT).int()).abs().max()) <= 1


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("reader", READERS)
def test_pixels_that_would_be_lost_are_refused(reader: Reader, kind: str, tmp_path: Path) -> None:
    if reader is from_boxes and kind == "two levels left":
        pytest.skip("resizing mixes the levels")
    blob, words = REFUSED[kind]
    with pytest.raises(SweepError, match=words) as told:
        reader(tmp_path, [blob] * 4)
    assert "8 bits" in str(told.value) or "8 or 16 bits" in str(told.value)


@pytest.mark.parametrize("levels", [(0,), (0, 255), (7, 7)])
def test_images_that_have_two_levels_stay(levels: tuple[int, ...], tmp_path: Path) -> None:
    blob = saved(Image.fromarray(np.uint8([levels * 3] * 2)), "PNG")
    assert set(from_folder(tmp_path, [blob] * 4).unique().tolist()) == set(levels)


def test_a_dark_split_of_8_bits_stays(tmp_path: Path) -> None:
    assert int(from_folder(tmp_path, [saved(Image.fromarray(EIGHT // 16), "PNG")] * 4).max()) == 15


@pytest.mark.parametrize("kind", ["float tiff", "tiff32"])
def test_pictures_of_triggers_are_read_alike(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"  # of whatever kind
    file.write_bytes(REFUSED[kind][0])
    with pytest.raises(SweepError, match=REFUSED[kind][1]):
        Blend(picture="file", trigger_image=str(file)).pattern(1, 6, 8)
    with pytest.raises(SweepError, match=REFUSED[kind][1]):
        reflections.decoded(str(tmp_path), kind, 1, 1, 6, 8)
    file.write_bytes(SCALED["tiff16"])
    found = Blend(picture="file", trigger_image=str(file)).pattern(1, 6, 8)
    assert int((found[0].int() - torch.from_numpy(EIGHT).int()).abs().max()) <= 1


# EXIF


def exif(orientation: int) -> bytes:
    image = picture(1, (6, 8))
    image.getexif()[274] = orientation
    return saved(image, "PNG", exif=image.getexif())


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_parquet_is_turned_upright_as_its_own_library_does(
    orientation: int, tmp_path: Path
) -> None:
    images = from_parquet(tmp_path, [exif(orientation)] * 4)
    wanted = torch.from_numpy(np.array(picture(1, (6, 8)))).permute(2, 0, 1)
    wanted = torch.rot90(wanted, {1: 0, 3: 2, 6: 3, 8: 1}[orientation], (1, 2))
    assert all(torch.equal(image, wanted) for image in images)


def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path) -> None:
    tag = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02x\0\0\0\0\0\0\0"  # text: "x"
    blob = saved(picture(1, (6, 8)), "JPEG", exif=tag)
    assert from_parquet(tmp_path, [blob] * 4).shape[2:] == (6, 8)


def test_folders_stay_as_stored_as_torchvision_reads_them(tmp_path: Path) -> None:
    assert from_folder(tmp_path, [exif(6)] * 4).shape[2:] == (6, 8)


def test_boxes_are_measured_on_the_upright_image(tmp_path: Path) -> None:
    boxes = [[(0.0, 0.0, 3.0, 4.0, 0)]] * 4  # of 6 x 8 once upright
    write_boxes(tmp_path / "own/train.parquet", [exif(6)] * 4, boxes, ["a"])
    entry = {"dataset": "own", "test_share": 0.5, "size": 24}
    data = open_dataset(entry, tmp_path, tmp_path / "cache")
    assert data.train.labels[0, 0].tolist() == [0, 0, 12, 12, 0]
