"""Labels of other people: other types, guesses, classes without images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import sweeper
from sweeper.core.errors import SweepError
from sweeper.data import Dataset, open_dataset
from sweeper.data._files import used
from tests.support import sweeps
from tests.support.pictures import picture, png, write_folder, write_parquet

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(file: Path, count: int, **columns: Any) -> None:
    """Images with these columns, as a stranger's script writes them: no class names."""
    rows = [{"bytes": png(picture(number)), "path": f"{number}.png"} for number in range(count)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(rows, IMAGE), **columns}), file)


def opened(root: Path, **options: Any) -> Dataset:
    return open_dataset({"dataset": "own", **options}, root, root / "cache")


# Types

NUMBERS = [0, 2, 1, 1, 0, 2]
TYPES = {
    **{str(kind): pa.array(NUMBERS, kind) for kind in (pa.int8(), pa.uint16(), pa.uint64())},
    "nullable": pa.array(np.array(NUMBERS, np.int32), mask=np.zeros(6, bool)),
    "dictionary": pa.array(NUMBERS).dictionary_encode(),
    "float": pa.array(NUMBERS, pa.float32()),
    "truth": pa.array([False, True, True, False, True, True]),
    "text": pa.array(["cat", "fly", "dog", "dog", "cat", "fly"]),
    "large text": pa.array(["cat", "fly", "dog", "dog", "cat", "fly"], pa.large_string()),
    "category": pa.array(["cat", "fly", "dog", "dog", "cat", "fly"]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", TYPES)
def test_labels_of_any_whole_numbers_and_of_text_are_read(kind: str, tmp_path: Path) -> None:
    for part in ("train", "test"):
        table(tmp_path / f"own/{part}.parquet", 6, row_id=pa.array(range(6)), label=TYPES[kind])
    data = opened(tmp_path)
    if kind == "truth":
        assert data.train.labels.tolist() == [0, 1, 1, 0, 1, 1]
    else:
        assert data.train.labels.tolist() == NUMBERS == data.test.labels.tolist()
    named = pa.types.is_integer(TYPES[kind].type) or kind in ("float", "dictionary")
    names = ("0", "1", "2") if named else ("0", "1") if kind == "truth" else ("cat", "dog", "fly")
    assert data.train.classes == names


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (pa.array([0.5, 1, 2, 0, 1, 2]), "column 'label' cannot be read.*truncated"),
        (pa.array([float("nan"), 1, 2, 0, 1, 2]), "column 'label' cannot be read"),
        (pa.array([[0]] * 6), "labels are whole numbers or text"),
        (pa.array(["cat", None] * 3), "images without a label"),
        (pa.array([2**63, 1, 0, 0, 1, 2], pa.uint64()), "column 'label' cannot be read"),
    ],
)
def test_what_is_no_label_is_refused(labels: Any, words: str, tmp_path: Path) -> None:
    table(tmp_path / "own/train.parquet", 6, label=labels)
    with pytest.raises(SweepError, match=words):
        opened(tmp_path, test_share=0.5)


# Which column


@pytest.mark.parametrize("name", ["label", "labels", "fine_label", "coarse_label"])
def test_a_name_wins_over_any_guess(name: str, tmp_path: Path) -> None:
    columns = {"row_id": pa.array(range(4)), name: pa.array(["b", "a"] * 2)}
    table(tmp_path / "own/train.parquet", 4, **columns)
    assert opened(tmp_path, test_share=0.5).train.classes == ("a", "b")


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([10, 11, 12, 13], None, "as many values as images, 4"),
        ([7, 7, 9_000_000, 7], None, "goes up to 9000000, more than the 4 images"),
        ([0, 1, 0, 1], [0, 3], "values in the test files that those of train lack, such as 3"),
    ],
)
def test_a_guess_that_cannot_be_labels_is_refused_with_the_columns(
    train: list[int], test: list[int] | None, words: str, tmp_path: Path
) -> None:
    for part, ids in (("train", train), ("test", test)):
        if ids:
            columns = {"weight": pa.array([0.5] * len(ids)), "image_id": pa.array(ids)}
            table(tmp_path / f"own/{part}.parquet", len(ids), **columns)
    options = {} if test else {"test_share": 0.5}
    with pytest.raises(SweepError, match=words) as told:
        opened(tmp_path, **options)
    assert "image, weight, image_id: give `label_column`" in str(told.value)


def test_a_guess_that_can_be_is_taken_and_a_named_column_always(tmp_path: Path) -> None:
    columns = {"id": pa.array(["x", "y", "z", "w"]), "kind": pa.array([0, 1, 0, 1])}
    table(tmp_path / "own/train.parquet", 4, **columns)
    assert opened(tmp_path, test_share=0.5).train.classes == ("0", "1")
    found = opened(tmp_path, test_share=0.5, label_column="kind", renumber=True)
    assert found.train.classes == ("0", "1")
    with pytest.raises(SweepError, match="no column 'kin', did you mean 'kind'"):
        opened(tmp_path, test_share=0.5, label_column="kin")


def test_ids_in_a_column_called_label_make_no_millions_of_classes(tmp_path: Path) -> None:
    table(tmp_path / "own/train.parquet", 4, label=pa.array([0, 9_000_000, 0, 9_000_000]))
    with pytest.raises(SweepError, match="class 1 has no training image .labels 0 to 9000000"):
        opened(tmp_path, test_share=0.5)
    ids = torch.arange(0, 200_000, 2)
    with pytest.raises(SweepError, match="class 0 has no training image"):
        used("many", ids + 2, ids + 2, (), renumber=False)  # at once, not class by class
    found = opened(tmp_path, test_share=0.5, renumber=True).train
    assert found.classes == ("0", "9000000") and sorted(found.labels.tolist()) == [0, 1]


# Classes without images: one rule for all readers


def parquet(root: Path, train: list[int], test: list[int]) -> dict[str, Any]:
    for part, labels in (("train", train), ("test", test)):
        table(root / f"own/{part}.parquet", len(labels), label=pa.array(labels))
    return {}


def named_parquet(root: Path, train: list[int], test: list[int]) -> dict[str, Any]:
    for part, labels in (("train", train), ("test", test)):
        images = [picture(number) for number in range(len(labels))]
        write_parquet(root / f"own/{part}.parquet", images, labels, tuple("0123"))
    return {}


def folder(root: Path, train: list[int], test: list[int]) -> dict[str, Any]:
    for part, labels in (("train", train), ("test", test)):
        images = [picture(number) for number in range(len(labels))]
        write_folder(root / "own" / part, images, labels, tuple("0123"))
    for label in range(max(train)):
        (root / "own/train" / str(label)).mkdir(exist_ok=True)
    return {}


def clips(root: Path, train: list[int], test: list[int]) -> dict[str, Any]:
    for part, labels in (("train", train), ("test", test)):
        for number, label in enumerate(labels):
            place = root / "own" / part / str(label) / str(number)
            place.mkdir(parents=True)
            picture(number).save(place / "0.png")
    for label in range(max(train)):
        (root / "own/train" / str(label)).mkdir(exist_ok=True)
    return {"frames": 1}


def points(root: Path, train: list[int], test: list[int]) -> dict[str, Any]:
    (root / "own").mkdir()
    for part, labels in (("train", train), ("test", test)):
        cloud = np.random.default_rng(0).normal(size=(len(labels), 8, 3))
        np.save(root / f"own/{part}_points.npy", cloud)
        np.save(root / f"own/{part}_labels.npy", np.array(labels))
    return {"points": 8}


READERS = [parquet, named_parquet, folder, clips, points]


@pytest.mark.parametrize("write", READERS)
@pytest.mark.parametrize(
    ("train", "missing"), [([1, 2, 3, 1], "0"), ([0, 2, 3, 0], "1"), ([0, 1, 3, 3], "2")]
)
def test_a_class_without_training_images_is_refused_or_left_out(
    write: Any, train: list[int], missing: str, tmp_path: Path
) -> None:
    options = write(tmp_path, train, [3, train[0]])
    with pytest.raises(SweepError, match=rf"class '?{missing}'? has no training image.*`renumber"):
        opened(tmp_path, **options)
    found = opened(tmp_path, **options, renumber=True)
    assert found.train.classes == tuple(sorted({str(label) for label in train}))
    given = [found.train.classes[label] for label in found.train.labels.tolist()]
    assert sorted(given) == sorted(map(str, train))
    tested = [found.test.classes[label] for label in found.test.labels.tolist()]
    assert sorted(tested) == sorted(["3", str(train[0])])


@pytest.mark.parametrize("write", READERS)
@pytest.mark.parametrize("renumber", [False, True])
def test_a_class_of_test_images_alone_is_refused(
    write: Any, renumber: bool, tmp_path: Path
) -> None:
    options = write(tmp_path, [0, 1, 0, 1], [0, 3])
    with pytest.raises(SweepError, match="test has images of class '?3'?, of which train has none"):
        opened(tmp_path, **options, renumber=renumber)


# Files of one split that differ


def shards(home: Path, *columns: dict[str, Any]) -> None:
    for number, given in enumerate(columns):
        file = home / f"train-{number:05}-of-{len(columns):05}.parquet"
        table(file, len(next(iter(given.values()))), **given)


def test_shards_whose_schemas_drift_are_joined(tmp_path: Path) -> None:
    shards(
        tmp_path / "own",
        {"label": pa.array([0, 1], pa.int32())},
        {"label": pa.array([1, 0], pa.int64()), "extra": pa.array(["a", "b"])},
        {"extra": pa.array([1, 2]), "label": pa.array([2.0, 2.0])},
        {"label": pa.array([0, 1]).dictionary_encode()},
    )
    found = opened(tmp_path, test_share=0.3, group_by="none")
    assert len(found.train) + len(found.test) == 8 and found.train.classes == ("0", "1", "2")


def test_shards_of_text_and_of_numbers_are_refused(tmp_path: Path) -> None:
    shards(tmp_path / "own", {"label": pa.array([0, 1])}, {"label": pa.array(["0", "1"])})
    with pytest.raises(SweepError, match="text in some of the 2 files and numbers in others"):
        opened(tmp_path, test_share=0.5)


def test_two_data_sets_of_one_name_do_not_look_alike(tmp_path: Path) -> None:
    found = []
    for side in ("here", "there"):
        images = [picture(number + (side == "there")) for number in range(6)]
        write_parquet(tmp_path / side / "mine/train.parquet", images, [0, 1, 2] * 2)
        entry = {"dataset": "mine", "test_share": 0.5}
        found.append(open_dataset(entry, tmp_path / side, tmp_path / "cache").digest)
    assert found[0] != found[1]
    shutil.rmtree(tmp_path / "cache")


# Before a run


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"row_id": pa.array(range(4))}, "as many values as images"),
        ({"label": pa.array([1, 2, 1, 2])}, "class 0 has no training image"),
    ],
)
def test_a_plan_says_so_too(columns: dict[str, Any], words: str, tmp_path: Path) -> None:
    table(tmp_path / "own/train.parquet", 4, **columns)
    own = {"dataset": "own", "test_share": 0.5}
    sweep = sweeper.Sweep.from_values({**sweeps.SMALL, "datasets": [own]})
    with pytest.raises(SweepError, match=words):
        sweep.plan(store=tmp_path / "store", data=tmp_path)
    shutil.rmtree(tmp_path / "own")
    found = sweep.plan(store=tmp_path / "store", data=tmp_path)
    assert found["unresolved"] == ["own"], "what is not here may lie on a cluster"
