"""Data: sources found by file, decoded to the same digest from anywhere."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import sweeper.data
from sweeper.core.errors import SweepError
from sweeper.data import check_options, known, open_dataset, sources
from tests.support.pictures import CLASSES, picture, png, write_folder, write_parquet

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"

# Sources and options


def test_sources_are_found_by_file_and_ordered():
    names = [kind.__name__ for kind in sources()]
    files = ["BoxFiles", "PairFiles", "FrameFolder", "PointFiles", "Parquet", "Folder"]
    assert names == [*files, "Torchvision", "Digits", "Moving", "Phrases", "Scenes", "Solids"]
    assert {"cifar10", "gtsrb", "tiny-imagenet", "digits", "mnist"} <= set(known())


def test_a_new_source_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "blank_source.py").write_text(
        "from dataclasses import dataclass\nimport torch\n"
        "from sweeper.data.base import Source, Splits\nfrom sweeper.core.types import ImageSet\n"
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
        ({"dataset": "fruit", "test_share": 1.0}, "test_share: needs a number below 1"),
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


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("moving", {"count": 3}, "count: needs a whole number of at least 8, not 3"),
        ("solids", {"points": 3}, "points: needs a whole number of at least 16, not 3"),
        ("solids", {"points": 9}, "points: needs a whole number of at least 16, not 9"),
        ("scenes", {"test_count": 0}, "test_count: needs a whole number of at least 1, not 0"),
        ("phrases", {"count": 10**12}, "count: needs a whole number of at most 1000000000"),
        *((name, {"size": 32}, "no option 'size'") for name in ("moving", "solids", "scenes")),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, options, words, tmp_path):
    with pytest.raises(SweepError, match=words):
        open_dataset({"dataset": name, **options}, tmp_path, tmp_path)


def test_unknown_data_sets_and_paths(tmp_path):
    with pytest.raises(SweepError, match="did you mean .*cifar10.*--data DIR"):
        open_dataset({"dataset": "cifra10"}, tmp_path, tmp_path)
    with pytest.raises(SweepError, match="not found under"):
        open_dataset({"dataset": "tiny-imagenet"}, tmp_path, tmp_path)
    with pytest.raises(SweepError, match="multi30k_en_de: .* with a column a language"):
        open_dataset({"dataset": "multi30k_en_de"}, tmp_path, tmp_path)
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
    images = [picture(0), picture(1, (9, 7))] * 2
    write_parquet(tmp_path / "mix/train.parquet", images, [0, 1] * 2, None)
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
        (lambda f: write_parquet(f, [picture(0)], [0.5], None, label="x"), "no label column"),
        (lambda f: pq.write_table(pa.table({"label": [1]}), f), "needs one image column"),
        (lambda f: write_parquet(f, [picture(0)] * 2, [0, 7]), "labels 0 to 7"),
        (lambda f: write_parquet(f, [picture(0)] * 2, [0, -1]), "without a label"),
        (lambda f: write_parquet(f, [picture(0)] * 2, [0, None]), "without a label"),
        (lambda f: write_parquet(f, [], []), "no images"),
        (lambda f: write_parquet(f, [picture(0)], [0], ("x", "y", "z")), "different classes"),
        (lambda f: f.write_bytes(POINTER), "pointer of Git LFS.*`git lfs pull`"),
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
        (POINTER, "image 1: is a pointer of Git LFS"),
        (None, "not embedded"),
    ):
        blobs = [png(picture(0)), blob, png(picture(2))]
        rows = [{"bytes": blob, "path": ""} for blob in blobs]
        table = pa.table({"image": pa.array(rows, kind), "label": [0, 1, 2]})
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
    with pytest.raises(SweepError, match="class 'n09', of which train has none"):
        open_dataset({"dataset": "tiny-imagenet"}, tmp_path, tmp_path / "cache")


def test_an_empty_class_folder_is_named(tmp_path):
    write_folder(tmp_path / "f/train", [picture(0), picture(1)], [0, 1])
    (tmp_path / "f/train/zebra").mkdir()
    with pytest.raises(SweepError, match="class 'zebra' has no training image.*renumber"):
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
