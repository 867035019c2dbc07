"""Parquet files in the Hugging Face image layout.

`_shards` says where they may lie. The image column is a struct of `bytes` (an encoded image file)
and `path`; images are turned upright as their EXIF orientation says, as `datasets` does. Labels are
whole numbers of any type, or text. Class names come from the `huggingface` metadata of the schema;
without it the classes are called by their numbers, or by the texts in sorted order. An integer
column `position` says where each image stands in the split as published; without one the file is in
that order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sweeper.core.errors import SweepError, unknown, unreadable
from sweeper.core.types import ImageSet
from sweeper.data import _shards
from sweeper.data._files import ClassFiles, used
from sweeper.data._images import decode
from sweeper.data.base import Splits

_LABELS = ("label", "labels", "fine_label", "coarse_label")
"""What a column of labels is called, best first; of another name only whole numbers are guessed."""
_POSITION = "position"
_BATCH = 8192
_AGAIN = "fetch it again"

_Values = NDArray[Any]
"""A column of labels, int64 [N] or text [N]."""


@dataclass(frozen=True, kw_only=True)
class Parquet(ClassFiles):
    """A folder of Parquet files, or one file."""

    label_column: str | None = None
    """Column of the labels, whole numbers or text; default: label, labels, fine_label, coarse_label
    or the only whole numbers."""

    names: ClassVar[dict[str, str]] = {}
    order: ClassVar[int] = 10
    version: ClassVar[int] = 3

    def serves(self, root: Path) -> bool:
        """Whether there is a training file."""
        return bool(self.splits(root))

    def files(self, root: Path) -> list[Path]:
        """Return the files of both splits."""
        return [file for files in self.splits(root).values() for file in files]

    def splits(self, root: Path) -> dict[str, list[Path]]:
        """Return the files of "train" and, where there are any, of "test"; {} where no train."""
        return _shards.splits(self.places(root))

    def read(self, root: Path) -> Splits:
        """Decode the training files and the test files.

        Raises:
            SweepError: A shard or a column is missing, or an image or a label cannot be used.
        """
        files = self.splits(root)
        for split, shards in files.items():
            _shards.whole(self.name, split, shards)
        labels, test_labels, classes = self._labels(files["train"], files.get("test", []))
        images = self._images(files["train"], len(labels))
        train = ImageSet(images, labels, classes, self._positions(files["train"], len(labels)))
        test = None
        if "test" in files:
            test_images = self._images(files["test"], len(test_labels), like=images)
            positions = self._positions(files["test"], len(test_labels))
            test = ImageSet(test_images, test_labels, classes, positions)
        return self.assemble(train, test, self._paths(files["train"]))

    def _labels(
        self, train: list[Path], test: list[Path]
    ) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return the labels of both splits, int64, and the class names."""
        with _opened(train[0]) as opened:
            schema = opened.schema_arrow
        _image_column(schema, train[0])
        name = self._label_column(schema, train[0])
        parts = [_values(files, name) for files in (train, test) if files]
        named = [tuple(_names(file, name)) for file in (train[0], *test[:1])]
        if len(set(filter(None, named))) > 1:
            raise SweepError(
                f"{self.name}: train and test files name different classes: give one data set's"
            )
        names = next(filter(None, named), ())
        if len({part.dtype.kind for part in parts}) > 1:
            raise SweepError(
                f"{self.name}: column {name!r} is text in one split and numbers in the other: "
                "write both alike"
            )
        if parts[0].dtype.kind == "O":
            texts = {text for part in parts for text in part.tolist()}
            names = names if texts <= set(names) else tuple(sorted(texts))
            parts = [np.array([names.index(text) for text in part], np.int64) for part in parts]
        if self.label_column is None and name not in _LABELS:
            _check_guess(train[0], name, schema.names, *parts)
        if any(part.size and part.min() < 0 for part in parts):
            raise SweepError(
                f"{train[0]}: has images without a label (null or negative): leave the file out"
            )
        labels, held = map(torch.from_numpy, [*parts, parts[0][:0]][:2])
        return used(self.name, labels, held, names, self.renumber)

    def _positions(self, files: list[Path], count: int) -> Tensor:
        """Return the place of each image in the split as published, int64 [N]."""
        with _opened(files[0]) as opened:
            schema = opened.schema_arrow
        if _POSITION not in schema.names or self._label_column(schema, files[0]) == _POSITION:
            return torch.arange(count)
        positions = torch.from_numpy(_values(files, _POSITION))
        if bool((positions < 0).any()) or len(positions.unique()) < count:
            raise SweepError(
                f"{files[0]}: column {_POSITION!r} has null, negative or repeated values: give "
                "each image its place, or leave the column out"
            )
        return positions

    def _label_column(self, schema: Any, file: Path) -> str:
        integers = _integer_columns(schema)
        integers = [name for name in integers if name != _POSITION] or integers
        if self.label_column is not None:
            if self.label_column in schema.names:
                return self.label_column
            raise SweepError(f"{file}: {unknown('column', self.label_column, schema.names)}")
        for name in (*_LABELS, *(integers if len(integers) == 1 else ())):
            if name in schema.names:
                return str(name)
        raise SweepError(
            f"{file}: no label column found (columns: {', '.join(schema.names)}): give "
            "`label_column`; only image classification can be read"
        )

    def _images(self, files: list[Path], count: int, like: Tensor | None = None) -> Tensor:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        what = f"{self.name}: {files[0].name}{more}"
        return decode(partial(_batches, files, "bytes"), count, what, self.size, like, upright=True)

    def _paths(self, files: list[Path]) -> list[str]:
        if not self.grouped:
            return []
        return [path or "" for batch in _batches(files, "path") for path in batch]


def _check_guess(file: Path, name: str, columns: Sequence[str], *parts: _Values) -> None:
    """Refuse whole numbers that are no labels: row numbers, ids, counts."""
    train, classes = parts[0], np.unique(parts[0])
    why = ""
    if len(classes) == len(train):
        why = f"has as many values as images, {len(train)}"
    elif classes.max() >= len(train):
        why = f"goes up to {classes.max()}, more than the {len(train)} images"
    elif stray := sorted(set(np.unique(parts[-1]).tolist()) - set(classes.tolist())):
        why = f"has values in the test files that those of train lack, such as {stray[0]}"
    if why:
        raise SweepError(
            f"{file}: no column is called label, and the only whole numbers, {name!r}, are none: "
            f"it {why}. The columns are {', '.join(columns)}: give `label_column`"
        )


def _integer_columns(schema: Any) -> list[str]:
    import pyarrow as pa

    def kind(column: Any) -> Any:
        return column.value_type if pa.types.is_dictionary(column) else column

    return [field.name for field in schema if pa.types.is_integer(kind(field.type))]


def _names(file: Path, column: str) -> list[str]:
    """The class names in the `huggingface` metadata of the schema; none where it has none."""
    with _opened(file) as opened:
        held = (opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        return [str(name) for name in json.loads(held)["info"]["features"][column]["names"]]
    except (ValueError, KeyError, TypeError):
        return []


def _values(files: list[Path], name: str) -> _Values:
    """Return a column of whole numbers, int64 [N], -1 for null; or of text, as objects [N].

    The files may store it as different types: each is read as its own.
    """
    parts = [_column(file, name) for file in files]
    if len({part.dtype.kind for part in parts}) > 1:
        raise SweepError(
            f"{files[0]}: column {name!r} is text in some of the {len(files)} files and numbers in "
            "others: write them alike"
        )
    return np.concatenate(parts)


def _column(file: Path, name: str) -> _Values:
    import pyarrow as pa

    try:
        with _opened(file) as opened:
            column = opened.read(columns=[name]).column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            if column.null_count:
                raise SweepError(f"{file}: has images without a label (null): leave them out")
            return np.array(column.to_pylist(), dtype=object)
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            return np.asarray(column.cast(pa.int64()).fill_null(-1).to_numpy(), dtype=np.int64)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise unreadable(file, f"column {name!r} cannot be read", error, remedy=_AGAIN) from error
    raise SweepError(f"{file}: column {name!r} is {kind}: labels are whole numbers or text")


def _opened(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, "is not a readable Parquet file", error, remedy=_AGAIN) from error


def _batches(files: list[Path], part: str) -> Iterator[list[Any]]:
    """Yield `bytes` or `path` of the image column; only that part is read from the disk."""
    import pyarrow as pa

    for file in files:
        with _opened(file) as opened:
            column = _image_column(opened.schema_arrow, file)
            if opened.schema_arrow.field(column).type.get_field_index(part) < 0:
                yield [None] * opened.metadata.num_rows
                continue
            try:
                for batch in opened.iter_batches(_BATCH, columns=[f"{column}.{part}"]):
                    values = batch.column(0).field(part)
                    if part == "bytes" and values.null_count:
                        raise SweepError(
                            f"{file}: has images not embedded (`bytes` is null): embed them"
                        )
                    yield values.to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise SweepError(f"{file}: is damaged ({error}): fetch it again") from error


def _image_column(schema: Any, file: Path) -> str:
    import pyarrow as pa

    images = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    if len(images) != 1:
        raise SweepError(
            f"{file}: needs one image column, a struct of `bytes` and `path` as Hugging Face "
            f"datasets writes it; found {', '.join(images) or 'none'}"
        )
    return str(images[0])
