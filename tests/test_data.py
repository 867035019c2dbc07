"""Data: sources found by file, decoded once, the same digest from anywhere, fixed splits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sweeper.data
from sweeper.data import Dataset, check_options, known, open_dataset, sources
from sweeper.data._files import hold_out, number
from sweeper.data.parquet import Parquet
from sweeper.data.splits import budget_count, clean_set, split
from sweeper.data.torchvision_sets import _SETS, Torchvision, _Set
from sweeper.errors import SweepError
from sweeper.types import ImageSet

CLASSES = ("apple", "pear", "plum")


def picture(number: int, side: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    """A noise image of height, width `side` that depends on `number` alone."""
    shape = side if mode == "L" else (*side, 3)
    pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_parquet(file, images, labels, classes=CLASSES, paths=None, label="label", image="image"):
    """Write images in the Hugging Face layout."""
    paths = paths or [f"{i}.png" for i in range(len(images))]
    rows = [{"bytes": png(i), "path": p} for i, p in zip(images, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, kind), label: pa.array(labels, pa.int64())})
    if classes:
        info = {"info": {"features": {label: {"names": list(classes), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=7)


def write_folder(home, images, labels, names=CLASSES):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = home / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index:04}.png")


@pytest.fixture
def fruit(tmp_path):
    """A Parquet data set: 30 training and 9 test images, sorted by class."""
    labels, test_labels = [0] * 10 + [1] * 12 + [2] * 8, [0, 1, 2] * 3
    train = [picture(i) for i in range(30)]
    test = [picture(100 + i) for i in range(9)]
    write_parquet(tmp_path / "root/fruit/train.parquet", train, labels)
    write_parquet(tmp_path / "root/fruit/test.parquet", test, test_labels)
    return SimpleNamespace(
        root=tmp_path / "root",
        cache=tmp_path / "cache",
        train=train,
        labels=labels,
        test=test,
        test_labels=test_labels,
        open=lambda **more: open_dataset(
            {"dataset": "fruit", **more}, tmp_path / "root", tmp_path / "cache"
        ),
    )


def toy(n=60, groups=None, digest="toy") -> Dataset:
    """A data set of blank images for the splits, which look at sizes, groups and digest only."""
    images = ImageSet(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.zeros(n).long(), ("a",))
    return Dataset("toy", images, images, digest, (0.0,), (1.0,), groups)


# Sources and options


def test_sources_are_found_by_file_and_ordered():
    names = [kind.__name__ for kind in sources()]
    assert names == ["Parquet", "Folder", "Torchvision", "Digits"]
    assert {"cifar10", "gtsrb", "tiny-imagenet", "digits", "mnist"} <= set(known())


def test_a_new_source_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "blank_source.py").write_text(
        "from dataclasses import dataclass\nimport torch\n"
        "from sweeper.data.base import Source, Splits\nfrom sweeper.types import ImageSet\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Blank(Source):\n"
        "    shade: int = 3\n    names = {'blank': 'two grey images'}\n    order = 1\n"
        "    def serves(self, root): return self.name == 'blank'\n"
        "    def files(self, root): return []\n"
        "    def read(self, root):\n"
        "        images = torch.full((2, 1, 4, 4), self.shade, dtype=torch.uint8)\n"
        "        part = ImageSet(images, torch.tensor([0, 1]), ('a', 'b'))\n"
        "        return Splits(part, part)\n"
    )
    monkeypatch.setattr(sweeper.data, "__path__", [*sweeper.data.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "sweeper.data.blank_source", raising=False)
    assert "blank" in known()
    check_options({"dataset": "blank", "shade": 9})
    data = open_dataset({"dataset": "blank", "shade": 9}, tmp_path, tmp_path / "cache")
    assert int(data.train.images.max()) == 9, "a source's field is an option"
    monkeypatch.delitem(sys.modules, "sweeper.data.blank_source")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": "../etc"}, "no name of a data set"),
        ({"dataset": "a/b"}, "no name of a data set"),
        ({"dataset": ".hidden"}, "no name of a data set"),
        ({"dataset": None}, "no name of a data set"),
        ({"dataset": "fruit", "sise": 3}, "did you mean 'size'"),
        ({"dataset": "fruit", "size": "32"}, "size: needs a whole number"),
        ({"dataset": "fruit", "size": True}, "size: needs a whole number"),
        ({"dataset": "fruit", "size": 0}, "at least 1"),
        ({"dataset": "fruit", "train_size": -5}, "at least 1"),
        ({"dataset": "fruit", "train_size": 1.5}, "needs a whole number"),
        ({"dataset": "fruit", "test_share": 1.0}, "between 0 and 1"),
        ({"dataset": "fruit", "group_by": "colour"}, "'path-prefix'"),
        ({"dataset": "fruit", "classes": 2}, "no option 'classes'"),
    ],
)
def test_wrong_options_are_refused_before_any_work(options, words):
    with pytest.raises(SweepError, match=words):
        check_options(options)


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(SweepError) as told:
        check_options({"dataset": "fruit", "size": 0, "test_share": 2, "nope": 1})
    assert len(str(told.value).splitlines()) == 3


def test_options_of_another_source_are_refused_with_its_own_list(tmp_path):
    with pytest.raises(SweepError, match="read as digits.*no option 'group_by'.*size"):
        open_dataset({"dataset": "digits", "group_by": "none"}, tmp_path, tmp_path)


def test_unknown_data_sets_and_paths(tmp_path):
    with pytest.raises(SweepError, match="did you mean .*cifar10.*--data DIR"):
        open_dataset({"dataset": "cifra10"}, tmp_path, tmp_path)
    with pytest.raises(SweepError, match="not found under"):
        open_dataset({"dataset": "tiny-imagenet"}, tmp_path, tmp_path)
    with pytest.raises(SweepError, match="holds neither"):
        open_dataset({"dataset": "cifar10", "path": str(tmp_path / "no")}, tmp_path, tmp_path)


# Decoding


def test_parquet_decodes_to_the_stored_pixels(fruit):
    data = fruit.open()
    assert data.train.images.shape == (30, 3, 6, 5) and data.train.images.dtype == torch.uint8
    wanted = np.stack([np.asarray(image).transpose(2, 0, 1) for image in fruit.train])
    assert np.array_equal(data.train.images.numpy(), wanted)
    assert data.train.labels.tolist() == fruit.labels and data.train.labels.dtype == torch.int64
    assert data.test.labels.tolist() == fruit.test_labels
    assert data.train.classes == CLASSES and data.groups is None
    pixels = wanted.astype(np.float64) / 255
    assert data.mean == tuple(np.round(pixels.mean((0, 2, 3)), 4).tolist())
    assert data.std == tuple(np.round(pixels.std((0, 2, 3)), 4).tolist())


def test_folder_and_parquet_of_the_same_content_have_one_digest(fruit, tmp_path):
    home = tmp_path / "elsewhere" / "fruit"
    write_folder(home / "train", fruit.train, fruit.labels)
    ordered = sorted(zip(fruit.test_labels, fruit.test, strict=True), key=lambda pair: pair[0])
    write_folder(home / "val", [i for _, i in ordered], [y for y, _ in ordered])
    write_parquet(
        fruit.root / "fruit/test.parquet", [i for _, i in ordered], [y for y, _ in ordered]
    )
    parquet = fruit.open()
    folder = open_dataset({"dataset": "other", "path": str(home)}, fruit.root, fruit.cache)
    assert folder.digest == parquet.digest, "the digest is of the content, not of its container"
    assert torch.equal(folder.train.images, parquet.train.images)
    assert folder.mean == parquet.mean


def test_any_change_of_content_changes_the_digest(fruit):
    before = fruit.open().digest
    digests = {before, fruit.open(train_size=20).digest, fruit.open(test_size=5).digest}
    digests.add(fruit.open(size=4).digest)
    write_parquet(fruit.root / "fruit/train.parquet", fruit.train, fruit.labels[::-1])
    digests.add(fruit.open().digest)
    write_parquet(fruit.root / "fruit/train.parquet", fruit.train, fruit.labels, ("x", "y", "z"))
    write_parquet(fruit.root / "fruit/test.parquet", fruit.test, fruit.test_labels, ("x", "y", "z"))
    digests.add(fruit.open().digest)
    assert len(digests) == 6


def test_subsets_are_nested_and_fixed(fruit):
    whole, all_of_it = fruit.open(), fruit.open(train_size=30, test_size=9)
    assert all_of_it.digest == whole.digest, "all images are no subset"
    small, large = fruit.open(train_size=8), fruit.open(train_size=16)

    def rows(data):
        return {bytes(image.numpy()) for image in data.train.images}

    assert len(rows(small)) == 8 and rows(small) < rows(large) < rows(whole)
    assert torch.equal(small.train.images, fruit.open(train_size=8).train.images)
    with pytest.raises(SweepError, match="only 30 images"):
        fruit.open(train_size=31)


def test_shards_labels_and_names_are_found(tmp_path):
    images = [picture(i, mode="L") for i in range(12)]
    home = tmp_path / "some_set" / "data"
    for shard in range(2):
        part = slice(6 * shard, 6 * shard + 6)
        file = home / f"train-0000{shard}-of-00002.parquet"
        write_parquet(file, images[part], [0, 1, 2, 3, 4, 5], None, label="fine_label", image="img")
    write_parquet(
        home / "valid-00000-of-00001-0af3.parquet", images, [0] * 12, None, label="fine_label"
    )
    data = open_dataset({"dataset": "some-set"}, tmp_path, tmp_path / "cache")
    assert data.train.images.shape == (12, 1, 6, 5), "an all-grey split has one channel"
    assert data.train.classes == ("0", "1", "2", "3", "4", "5"), "no names: the numbers"
    (home / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(SweepError, match="1 train files where 2"):
        open_dataset({"dataset": "some-set"}, tmp_path, tmp_path / "cache")


def test_one_grey_image_among_colour_ones_becomes_rgb(tmp_path):
    images = [picture(0, mode="L"), picture(1), picture(2)]
    write_parquet(tmp_path / "one.parquet", images, [0, 1, 2])
    options = {"dataset": "one", "path": str(tmp_path / "one.parquet"), "test_share": 0.3}
    with pytest.raises(SweepError, match="there are no|0 images"):
        open_dataset(options, tmp_path, tmp_path / "cache")  # one image a class: none to hold out
    write_parquet(tmp_path / "one.parquet", images * 2, [0, 1, 2] * 2)
    data = open_dataset(options, tmp_path, tmp_path / "cache")
    assert data.train.images.shape == (3, 3, 6, 5)


def test_unequal_sizes_need_the_size_option(tmp_path):
    write_parquet(tmp_path / "mix/train.parquet", [picture(0), picture(1, (9, 7))] * 2, [0, 1] * 2)
    options = {"dataset": "mix", "test_share": 0.5}
    with pytest.raises(SweepError, match="give `size: N`"):
        open_dataset(options, tmp_path, tmp_path / "cache")
    data = open_dataset(options | {"size": 8}, tmp_path, tmp_path / "cache")
    assert data.train.images.shape == (2, 3, 8, 8)


def test_large_images_are_decoded_by_several_threads(tmp_path):
    images = [picture(i, (80, 70)) for i in range(9)] * 60
    write_parquet(tmp_path / "big/train.parquet", images, [0, 1, 2] * 180)
    data = open_dataset(
        {"dataset": "big", "test_share": 0.1, "size": 5}, tmp_path, tmp_path / "cache"
    )
    assert len({bytes(i.numpy()) for i in data.train.images}) == 9


def test_a_missing_test_split_asks_for_a_share(tmp_path, fruit):
    (fruit.root / "fruit/test.parquet").unlink()
    with pytest.raises(SweepError, match="test_share: 0.2"):
        fruit.open()
    data = fruit.open(test_share=0.2)
    assert len(data.train) == 23 and torch.bincount(data.test.labels).tolist() == [2, 3, 2]
    write_parquet(fruit.root / "fruit/test.parquet", fruit.test, fruit.test_labels)
    with pytest.raises(SweepError, match="leave `test_share` out"):
        fruit.open(test_share=0.2)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda f: f.write_bytes(b"not parquet"), "not a readable Parquet"),
        (lambda f: pq.write_table(pa.table({"x": [1.5]}), f), "no label column"),
        (lambda f: pq.write_table(pa.table({"label": [1]}), f), "needs one image column"),
        (lambda f: write_parquet(f, [picture(0)] * 2, [0, 7]), "labels 0 to 7"),
        (lambda f: write_parquet(f, [picture(0)] * 2, [0, -1]), "without a label"),
        (lambda f: write_parquet(f, [picture(0)] * 2, [0, None]), "without a label"),
        (lambda f: write_parquet(f, [], []), "no images"),
        (lambda f: write_parquet(f, [picture(0)], [0], ("x", "y", "z")), "different classes"),
    ],
)
def test_unusable_parquet_is_named(fruit, write, words):
    write(fruit.root / "fruit/train.parquet")
    with pytest.raises(SweepError, match=words):
        fruit.open()


def test_an_unreadable_image_is_named(fruit):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    broken = png(picture(1))[:60]
    for blob, words in (
        (b"junk", "image 1: is not"),
        (broken, "image 1: "),
        (None, "not embedded"),
    ):
        rows = [{"bytes": png(picture(0)), "path": ""}, {"bytes": blob, "path": ""}]
        table = pa.table({"image": pa.array(rows, kind), "label": [0, 1]})
        pq.write_table(table, fruit.root / "fruit/train.parquet")
        with pytest.raises(SweepError, match=words):
            fruit.open()


def test_folder_in_the_original_tiny_imagenet_layout(tmp_path):
    home = tmp_path / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        for i in range(3):
            folder = home / "train" / wnid / "images"
            folder.mkdir(parents=True, exist_ok=True)
            picture(i).save(folder / f"{wnid}_{i}.JPEG", "JPEG")
    (home / "val/images").mkdir(parents=True)
    (home / "test/images").mkdir(parents=True)
    for i in range(2):
        picture(i).save(home / f"val/images/val_{i}.JPEG", "JPEG")
        picture(i).save(home / f"test/images/test_{i}.JPEG", "JPEG")
    notes = home / "val/val_annotations.txt"
    notes.write_text("val_0.JPEG\tn02\t0\t0\t5\t5\nval_1.JPEG\tn01\t0\t0\t5\t5\n")
    data = open_dataset({"dataset": "tiny_imagenet"}, tmp_path, tmp_path / "cache")
    assert data.train.classes == ("n01", "n02") and data.train.labels.tolist() == [0] * 3 + [1] * 3
    assert data.test.labels.tolist() == [1, 0]
    notes.write_text("val_0.JPEG\tn09\n")
    with pytest.raises(SweepError, match="'n09' is not one of train's 2"):
        open_dataset({"dataset": "tiny-imagenet"}, tmp_path, tmp_path / "cache")


def test_an_empty_class_folder_is_named(tmp_path):
    write_folder(tmp_path / "f/train", [picture(0), picture(1)], [0, 1])
    (tmp_path / "f/train/zebra").mkdir()
    with pytest.raises(SweepError, match="zebra: has no images"):
        open_dataset({"dataset": "f", "test_share": 0.5}, tmp_path, tmp_path / "cache")


def test_tracks_become_groups_on_gtsrb_only(tmp_path):
    paths = [f"train/{i // 8:05}/{i // 4 % 2:05}_{i % 4:05}.jpg" for i in range(24)]
    for name in ("gtsrb", "signs"):
        file = tmp_path / name / "train.parquet"
        write_parquet(
            file, [picture(i) for i in range(24)], [i // 8 for i in range(24)], None, paths
        )
    cache = tmp_path / "cache"
    options = {"test_share": 0.5}
    data = open_dataset({"dataset": "gtsrb", **options}, tmp_path, cache)
    assert data.groups is not None
    sizes = torch.bincount(data.groups)
    assert sizes[sizes > 0].tolist() == [4, 4, 4], "a track is held out whole or not at all"
    assert open_dataset({"dataset": "signs", **options}, tmp_path, cache).groups is None
    asked = open_dataset(
        {"dataset": "signs", "group_by": "path-prefix", **options}, tmp_path, cache
    )
    assert asked.groups is not None and asked.digest == data.digest
    off = open_dataset({"dataset": "gtsrb", "group_by": "none", **options}, tmp_path, cache)
    assert off.groups is None and off.digest != data.digest, "groups change the splits: other key"


def test_digits_need_no_download(tmp_path):
    data = open_dataset({"dataset": "digits"}, tmp_path, tmp_path / "cache")
    assert len(data.train) + len(data.test) == 1797
    assert data.train.images.shape[1:] == (1, 8, 8) and int(data.train.images.max()) == 255
    share = torch.bincount(data.test.labels) / (
        torch.bincount(data.test.labels) + torch.bincount(data.train.labels)
    )
    assert bool(((share > 0.19) & (share < 0.22)).all()), "the test split is stratified"
    larger = open_dataset({"dataset": "digits", "size": 16}, tmp_path, tmp_path / "cache")
    assert larger.train.images.shape[1:] == (1, 16, 16)


# torchvision, without its downloads


def test_torchvision_arrays_and_counts(tmp_path, monkeypatch):
    from torchvision import datasets

    class Fake:
        classes = ["a", "b"]

        def __init__(self, root, train, download):
            assert download and root == str(tmp_path / "torchvision")
            self.data = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
            self.targets = [1, 0]

        def __len__(self):
            return 2

    monkeypatch.setattr(datasets, "CIFAR10", Fake)
    options = {"dataset": "cifar10"}
    with pytest.raises(SweepError, match="2 images where 50000 belong"):
        open_dataset(options, tmp_path, tmp_path / "cache")
    entry = _SETS["cifar10"]
    monkeypatch.setitem(_SETS, "cifar10", _Set("CIFAR10", "", (2, 2), entry.train, entry.test))
    data = open_dataset(options, tmp_path, tmp_path / "cache")
    assert data.train.images[1, 2, 0].tolist() == [29, 32, 35], "channels go first"
    assert data.train.classes == ("a", "b") and data.train.labels.tolist() == [1, 0]


def test_torchvision_gtsrb_has_tracks_and_one_size(tmp_path, monkeypatch):
    from torchvision import datasets

    for i in range(4):
        picture(i, (9 + i, 12)).save(tmp_path / f"{i // 2:05}_{i % 2:05}.ppm")
    samples = [(str(tmp_path / f"{i // 2:05}_{i % 2:05}.ppm"), i // 2) for i in range(4)]

    class Fake(list):
        def __init__(self, root, split, download):
            super().__init__(samples)
            self._samples = samples

    monkeypatch.setattr(datasets, "GTSRB", Fake)
    entry = _SETS["gtsrb"]
    fake = _Set("GTSRB", "", (4, 4), entry.train, entry.test, entry.size)
    monkeypatch.setitem(_SETS, "gtsrb", fake)
    data = open_dataset({"dataset": "gtsrb"}, tmp_path, tmp_path / "cache")
    assert data.train.images.shape == (4, 3, 32, 32)
    assert data.groups.tolist() == [0, 0, 1, 1] and data.train.classes == ("0", "1")


def test_a_failed_download_says_what_to_place_where(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "MNIST", fail)
    with pytest.raises(SweepError, match="no route.*train.parquet.*--data DIR"):
        open_dataset({"dataset": "mnist"}, tmp_path, tmp_path / "cache")
    with pytest.raises(SweepError, match="give `size: N`"):
        Torchvision(name="imagenette").read(tmp_path)


def test_files_of_the_user_come_before_torchvision(tmp_path):
    write_parquet(tmp_path / "cifar10/train.parquet", [picture(i) for i in range(6)], [0, 1, 2] * 2)
    data = open_dataset({"dataset": "cifar10", "test_share": 0.5}, tmp_path, tmp_path / "cache")
    assert len(data.train) == 3


# The cache


def test_a_cached_data_set_is_not_decoded_again(fruit, monkeypatch):
    first = fruit.open()

    def refuse(self, root):
        raise AssertionError("decoded again")

    monkeypatch.setattr(Parquet, "read", refuse)
    again = fruit.open()
    assert again.digest == first.digest and torch.equal(again.train.images, first.train.images)
    assert fruit.open(train_size=5).mean == first.mean, "a subset needs no decoding either"
    file = fruit.root / "fruit/train.parquet"
    os.utime(file, ns=(1, 1))
    with pytest.raises(AssertionError, match="decoded again"):
        fruit.open()


def truncate(entry):
    file = entry / "train_images.npy"
    os.truncate(file, file.stat().st_size - 1)


def reshape(entry):
    meta = json.loads((entry / "meta.json").read_text())
    meta["files"]["test_labels"]["shape"] = [8]
    (entry / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        reshape,
        lambda entry: (entry / "test_labels.npy").unlink(),
        lambda entry: (entry / "meta.json").write_text('{"digest": '),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").unlink(),
    ],
)
def test_a_damaged_entry_is_named_set_aside_and_rebuilt(fruit, damage):
    before = fruit.open().digest
    (entry,) = (path for path in fruit.cache.iterdir() if path.is_dir())
    damage(entry)
    with pytest.warns(UserWarning, match=f"{entry.name} is damaged"):
        assert fruit.open().digest == before
    assert entry.with_name(f"{entry.name}.damaged").is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fruit.open().digest == before, "the rebuilt entry is whole"


def test_what_a_killed_process_left_is_cleared(fruit, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "rename", die)
        fruit.open()
    assert [p for p in fruit.cache.iterdir() if p.name.endswith(".partial")]
    fruit.open()
    assert not [p for p in fruit.cache.iterdir() if p.name.endswith(".partial")]


def test_a_cache_that_cannot_be_written_is_named(fruit):
    fruit.cache.write_text("a file where the folder should be")
    with pytest.raises(SweepError, match="SWEEPER_CACHE"):
        fruit.open()


def test_the_environment_names_the_folders(fruit, monkeypatch):
    monkeypatch.setenv("SWEEPER_DATA", str(fruit.root))
    monkeypatch.setenv("SWEEPER_CACHE", str(fruit.cache))
    assert open_dataset({"dataset": "fruit"}).digest == fruit.open().digest


EIGHT = """
import multiprocessing, sys, time
from pathlib import Path
from sweeper.data import open_dataset, parquet

root, cache, counter = (Path(word) for word in sys.argv[1:])
read = parquet.Parquet.read

def counted(self, folder):
    with open(counter, "a") as file:
        file.write("x")
    time.sleep(0.3)
    return read(self, folder)

parquet.Parquet.read = counted

def work(barrier, queue):
    barrier.wait()
    queue.put(open_dataset({"dataset": "fruit"}, root, cache).digest)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(8), context.Queue()
    workers = [context.Process(target=work, args=(barrier, queue)) for _ in range(8)]
    for worker in workers:
        worker.start()
    print(*{queue.get(timeout=60) for _ in workers})
    for worker in workers:
        worker.join()
"""


@pytest.mark.slow
def test_eight_processes_at_once_decode_once(fruit, tmp_path):
    script, counter = tmp_path / "eight.py", tmp_path / "counter"
    script.write_text(EIGHT)
    repository = Path(sweeper.data.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, script, fruit.root, fruit.cache, counter],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert counter.read_text() == "x", "one process decodes, seven wait for it"
    assert done.stdout.split() == [fruit.open().digest], "all see the same data"


# Splits


@given(n=st.integers(2, 200), share=st.floats(0, 0.9), digest=st.text("ab", min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_split_covers_and_is_disjoint(n, share, digest):
    if round(share * n) == n:
        with pytest.raises(SweepError, match="leaves the attacker none"):
            split(toy(n, digest=digest), share)
        return
    attacker, reserve = split(toy(n, digest=digest), share)
    assert sorted([*attacker.tolist(), *reserve.tolist()]) == list(range(n))
    assert attacker.tolist() == sorted(attacker.tolist())
    assert len(reserve) == round(share * n)
    again = split(toy(n, digest=digest), share)
    assert torch.equal(reserve, again[1]), "the digest alone fixes it"


@given(groups=st.lists(st.integers(-3, 8), min_size=2, max_size=80), share=st.floats(0.01, 0.6))
@settings(max_examples=60, deadline=None)
def test_groups_stay_whole(groups, share):
    data = toy(len(groups), torch.tensor(groups))
    try:
        attacker, reserve = split(data, share)
    except SweepError:
        assert len(set(groups)) < 12, "only where the last group is needed to reach the share"
        return
    of = data.groups
    assert not set(of[attacker].tolist()) & set(of[reserve].tolist())
    assert sorted([*attacker.tolist(), *reserve.tolist()]) == list(range(len(groups)))
    assert len(reserve) >= round(share * len(groups))
    if len(reserve):
        last = int(of[reserve].unique(return_counts=True)[1].max())
        assert len(reserve) - last < round(share * len(groups)), "no group more than needed"


@given(
    n=st.integers(20, 150), seed=st.integers(0, 5), small=st.integers(0, 5), more=st.integers(0, 5)
)
@settings(max_examples=50, deadline=None)
def test_clean_sets_are_nested_and_come_from_the_reserve(n, seed, small, more):
    data = toy(n)
    _, reserve = split(data, 0.5)
    few, many = (clean_set(data, reserve, count, seed) for count in (small, small + more))
    assert torch.equal(many[:small], few), "a larger budget extends a smaller one"
    assert len(set(many.tolist())) == small + more and set(many.tolist()) <= set(reserve.tolist())


def test_another_seed_draws_other_clean_images():
    data = toy(400)
    _, reserve = split(data, 0.5)
    assert not torch.equal(clean_set(data, reserve, 50, 0), clean_set(data, reserve, 50, 1))


def test_a_larger_reserve_contains_a_smaller_one():
    small, large = split(toy(100), 0.1)[1], split(toy(100), 0.2)[1]
    assert torch.equal(large[:10], small)


def test_too_large_requests_say_what_to_change():
    _, reserve = split(toy(100), 0.1)
    with pytest.raises(SweepError, match="raise `reserve`"):
        clean_set(toy(100), reserve, 11, 0)
    for share in (1.0, -0.1, True):
        with pytest.raises(SweepError, match="reserve"):
            split(toy(100), share)
    with pytest.raises(SweepError, match="leaves the attacker none"):
        split(toy(10, torch.zeros(10, dtype=torch.int64)), 0.1)


def test_budgets_are_shares_or_counts():
    assert budget_count(0.05, 50000) == 2500 and budget_count(0.001, 100) == 1
    assert budget_count(1, 100) == 1 and budget_count(100, 100) == 100
    assert budget_count(50.0, 100) == 50
    for wrong in (0, -1, -0.1, 1.0, 1.5, True, float("nan"), float("inf"), 101, "0.1", None):
        with pytest.raises(SweepError, match="clean_budgets"):
            budget_count(wrong, 100)


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=60), share=st.floats(0.05, 0.9))
@settings(max_examples=50, deadline=None)
def test_a_share_is_held_out_of_every_class(labels, share):
    kept, held = hold_out(torch.tensor(labels), share)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert {labels[i] for i in kept.tolist()} == set(labels), "every class stays in training"


@given(keys=st.lists(st.sampled_from(["b", "a", "zz", "a/b"]), min_size=1, max_size=30))
@settings(deadline=None)
def test_groups_are_numbered_by_first_appearance(keys):
    order = list(dict.fromkeys(keys))
    assert number(keys).tolist() == [order.index(key) for key in keys]


# The real data sets


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Open a real data set with one cache for all tests, or skip."""
    beside = Path(sweeper.data.__file__).parents[3] / "shared" / "data"
    root = Path(os.environ.get("SWEEPER_DATA") or beside)
    if not (root / "cifar10").is_dir():
        pytest.skip("needs the Parquet data sets: set SWEEPER_DATA")
    cache = tmp_path_factory.mktemp("decoded")
    return lambda name: open_dataset({"dataset": name}, root, cache)


@pytest.mark.data
def test_cifar10(real):
    data = real("cifar10")
    assert (len(data.train), len(data.test)) == (50000, 10000)
    assert data.train.images.shape[1:] == (3, 32, 32) and data.train.classes[0] == "airplane"
    assert data.mean == pytest.approx((0.4913, 0.4821, 0.4465), abs=5e-4)
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10


@pytest.mark.data
def test_gtsrb_keeps_tracks_together(real):
    data = real("gtsrb")
    assert len(data.train) == 39209 and len(data.test) == 12630 and len(data.train.classes) == 43
    attacker, reserve = split(data, 0.1)
    assert not set(data.groups[attacker].tolist()) & set(data.groups[reserve].tolist())
    assert 0.1 <= len(reserve) / 39209 < 0.102
    labels = data.train.labels
    for group in data.groups.unique()[:50].tolist():
        assert len(labels[data.groups == group].unique()) == 1, "a track shows one sign"


@pytest.mark.data
def test_tiny_imagenet(real):
    data = real("tiny-imagenet")
    assert data.train.images.shape == (20000, 3, 64, 64) and len(data.test) == 10000
    assert len(data.train.classes) == 200
