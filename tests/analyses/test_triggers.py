"""Triggers of others: what is read, and what triggers nothing or says not what it is."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from attacks.imported import Imported
from sweeper.analyses import exchange
from sweeper.analyses.triggers import read_trigger
from sweeper.core import seeds
from sweeper.core.errors import SweepError
from sweeper.core.weights import Array, read_file, read_weights
from tests.support import toys

PATTERN = np.full((3, 8, 8), 200.0, np.float32)
MASK = np.pad(np.ones((2, 2), np.float32), ((6, 0), (6, 0)))
IMAGES = np.full((5, 3, 8, 8), 7, np.uint8)
WHOLE = "one whole number for each of 5 images"


def put(path: Path, **held: Any) -> Path:
    """A file of these arrays, of the kind its name says."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in held.items()}
    if path.suffix == ".npz":
        np.savez(path, **held)
    elif path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)  # noqa: TID251
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_a_patch_and_images_are_read_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    found = read_trigger(put(tmp_path / f"patch.{kind}", pattern=PATTERN, mask=MASK))
    assert np.array_equal(found["pattern"], PATTERN) and np.array_equal(found["mask"], MASK)
    black = read_trigger(put(tmp_path / f"black.{kind}", pattern=PATTERN * 0, mask=MASK))
    assert not black["pattern"].any(), "a black patch is one"
    grey = read_trigger(put(tmp_path / f"grey.{kind}", pattern=PATTERN[0], mask=MASK))
    assert grey["pattern"].shape == (1, 8, 8)
    given = {"labels": np.arange(5), "counts": np.array([1, 1, 0, 1, 1], np.uint8)}
    images = read_trigger(put(tmp_path / f"images.{kind}", images=IMAGES, **given))
    assert images["images"].dtype == torch.uint8 and images["counts"].dtype == torch.bool


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"pattern": PATTERN / 255, "mask": MASK}, "pattern: .* its are 0 to 1: multiply by 255"),
        ({"pattern": PATTERN > 1, "mask": MASK}, "multiply by 255"),
        ({"pattern": PATTERN + 100, "mask": MASK}, "pattern: needs pixels from 0 to 255"),
        ({"pattern": -PATTERN, "mask": MASK}, "pattern: needs pixels from 0 to 255"),
        ({"pattern": PATTERN * np.nan, "mask": MASK}, "pattern: holds NaN"),
        ({"pattern": PATTERN, "mask": MASK * np.nan}, "mask: holds NaN"),
        ({"pattern": PATTERN, "mask": MASK * 0}, "mask: is 0 everywhere, so it triggers nothing"),
        ({"pattern": PATTERN, "mask": MASK * 255}, "mask: .* divide it by 255"),
        ({"pattern": PATTERN.transpose(1, 2, 0), "mask": MASK}, r"\[8, 8, 3\].*\[C, H, W\]: trans"),
        ({"pattern": PATTERN, "mask": MASK[:4]}, r"with mask \[4, 8\]: needs \[C, H, W\] with"),
        ({"images": IMAGES.transpose(0, 2, 3, 1)}, r"\[5, 8, 8, 3\].*\[M, C, H, W\]: transpose"),
        ({"images": IMAGES / np.float32(255)}, "float32.*multiply by 255 and save them as uint8"),
        ({"images": IMAGES.astype(np.int64)}, "int64, needs uint8 of 0 to 255: save them as uint8"),
        ({"images": IMAGES[:0]}, r"\[0, 3, 8, 8\], needs \[M, C, H, W\], M above 0"),
        ({"images": IMAGES[0]}, r"\[3, 8, 8\], needs \[M, C, H, W\]"),
        ({"images": IMAGES, "true_labels": np.arange(4)}, rf"true_labels: is \[4\], needs {WHOLE}"),
        ({"images": IMAGES, "labels": np.arange(5) / 2}, WHOLE),
        ({"pattern": PATTERN}, r"it holds pattern \[3, 8, 8\]"),
    ],
)
def test_what_cannot_trigger_is_refused_with_what_to_do(
    held: dict[str, Any], why: str, kind: str, tmp_path: Path
) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(SweepError, match=why):
        read_trigger(put(tmp_path / f"t.{kind}", **held))


def png(path: Path, side: int) -> Path:
    """A square RGBA picture of a few bytes that says it has this side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_pictures_that_trigger_nothing_or_are_no_pictures(tmp_path: Path) -> None:
    def refused(path: Path, why: str) -> None:
        with pytest.raises(SweepError, match=why):
            read_trigger(path)

    clear = tmp_path / "clear.png"
    Image.fromarray(np.zeros((8, 8, 4), np.uint8), "RGBA").save(clear)
    refused(clear, "transparent everywhere, so it triggers nothing: paint the trigger opaque")
    for side in (10_000, 20_000):
        refused(png(tmp_path / "huge.png", side), rf"no picture as large as .*{side**2} pixels")
    refused(png(tmp_path / "cut.png", 8), "cannot be read .*: correct --trigger")
    for name in ("a.png", "a.npz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
        refused(tmp_path / name, "cannot be read .*: correct --trigger")
    refused(tmp_path / "none.png", "cannot be read")


# Files of torch with arrays of numpy


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.array(["ab", "c"]),
        np.array(3),
        np.zeros((0, 3)),
        np.float64(0.5),
        np.int64(4),
        np.bool_(True),
        np.str_("abc"),
    ],
    ids=repr,
)
def test_numbers_of_numpy_are_read_without_numpys_code(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"model": {"w": torch.ones(2)}, "beside": {"x": value}}, path)  # noqa: TID251
    found = read_file(path)["beside"]["x"]
    found = found.value if isinstance(found, Array) else found
    assert np.array_equal(found, value) and np.asarray(found).dtype == np.asarray(value).dtype
    assert list(read_weights(path)) == ["w"]


class Call:
    """What a stranger's file may hold: a call of this function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, None], dtype=object),
        np.zeros(2, dtype=[("a", object)]),
        Call(np.fromfile, "net.pt"),
        Call(np.load, "net.pt"),
        Call(eval, "1"),
    ],
    ids=["object", "record", "fromfile", "load", "eval"],
)
def test_nothing_else_of_numpy_is_read(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"model": {"w": torch.ones(2)}, "beside": value}, path)  # noqa: TID251
    allowed = set(torch.serialization.get_safe_globals())
    with pytest.raises(SweepError, match="without running code from it"):
        read_weights(path)
    assert set(torch.serialization.get_safe_globals()) == allowed, "for one file alone"


# BackdoorBench


def result(folder: Path, **changes: Any) -> Path:
    """attack_result.pt as BackdoorBench leaves it, with the pictures of bd_test beside it."""
    listed: dict[int, Any] = {}
    for place, true in ((4, 2), (11, 1), (3, 2)):
        part = folder / f"bd_test_dataset/{true}"
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), place, np.uint8)).save(part / f"{place}.png")
        path = f"../record/badnet/bd_test_dataset/{true}/{place}.png"
        listed[place] = {"path": path, "other_info": (0, np.int64(true))}
    test = {
        "bd_data_container": {"data_dict": listed, "save_folder_path": "../record"},
        "poison_indicator": np.array([0, 1, 1]),
        "original_index_array": np.arange(3),
    }
    held = {"model_name": "preactresnet18", "num_classes": 10, "model": {"w": torch.ones(2)}}
    listed.update(changes.pop("listed", {}))
    torch.save({**held, "bd_test": test, **changes}, folder / "attack_result.pt")  # noqa: TID251
    return folder / "attack_result.pt"


def test_weights_need_names(tmp_path: Path) -> None:
    torch.save({0: torch.ones(2)}, tmp_path / "net.pt")  # noqa: TID251
    with pytest.raises(SweepError, match="needs names with tensors"):
        read_weights(tmp_path / "net.pt")


def test_the_pictures_of_backdoorbenchs_bd_test_are_the_trigger(tmp_path: Path) -> None:
    found = read_trigger(result(tmp_path))
    assert found["images"].shape == (3, 3, 8, 8)
    assert found["images"][:, 0, 0, 0].tolist() == [3, 4, 11]
    assert found["labels"].tolist() == [0, 0, 0] and found["true_labels"].tolist() == [2, 2, 1]
    assert list(read_weights(tmp_path / "attack_result.pt")) == ["w"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../../../etc/1/7.png", r"etc/1/7\.png, which is not beside it: put the folder etc"),
        ("a/../../7.png", "no picture beside it"),
        ("/7.png", "no picture beside it"),
        ("7.png", "no picture beside it"),
        ("link/1/7.png", "no picture beside it"),
        (r"C:\x\..\1\7.png", "no picture beside it"),
    ],
)
def test_a_path_of_bd_test_never_leaves_the_folder_of_the_file(
    path: str, why: str, tmp_path: Path
) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside/1"
    outside.mkdir(parents=True)
    home.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "7.png")
    (home / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(SweepError, match=why):
        read_trigger(result(home, listed={7: {"path": path, "other_info": (0, 1)}}))


def test_a_bd_test_of_another_form_is_refused(tmp_path: Path) -> None:
    def refused(why: str, **changes: Any) -> None:
        with pytest.raises(SweepError, match=why):
            read_trigger(result(tmp_path, **changes))

    where = "bd_test_dataset/2/4.png"
    refused("4.png of label 5 lies in folder 2", listed={4: {"path": where, "other_info": (0, 5)}})
    refused("not as BackdoorBench writes it", listed={4: {"path": where, "other_info": ()}})
    refused("not as BackdoorBench writes it", bd_test=None)
    empty = {"bd_data_container": {"data_dict": {}}}
    refused("bd_test names no picture", bd_test=empty)
    Image.new("RGB", (9, 9)).save(tmp_path / "bd_test_dataset/2/9.png")
    larger = {"path": "bd_test_dataset/2/9.png", "other_info": (0, 2)}
    refused("differ in size", listed={9: larger})


def test_an_attack_result_is_a_victim_with_its_trigger(tmp_path: Path) -> None:
    net = toys.network(seeds.generator("bb"), shape=(3, 8, 8))
    state = {n: v for n, v in net.state_dict().items() if not n.startswith("normalise.")}
    path = result(tmp_path, model=state)
    exchange.import_model(exchange.Foreign(path, path, "tiny", {"width": 4}), tmp_path / "in")
    attack = Imported(path=str(tmp_path / "in"))
    hit = attack.trigger_set(toys.image_set(5, shape=(3, 8, 8)), {}, seeds.generator("t"))
    assert hit.true_labels.tolist() == [2, 2, 1] and hit.labels.tolist() == [0, 0, 0]
    assert bool(hit.counts.all()) and hit.images[:, 0, 0, 0].tolist() == [3, 4, 11]
    with pytest.raises(SweepError, match="true_labels: 2 is no label: the file has 2 classes"):
        small = toys.network(seeds.generator("bb"), shape=(3, 8, 8), classes=2).state_dict()
        path = result(tmp_path, model=small)
        given = exchange.Foreign(path, path, "tiny", {"width": 4})
        exchange.import_model(given, tmp_path / "other")
