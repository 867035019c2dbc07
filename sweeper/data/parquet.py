"""Parquet files in the Hugging Face image layout.

Looked for are `train.parquet` or all its shards (`train-00000-of-00004.parquet`, also with a hash
behind), in the data set's folder or in `data/` below it; the test split likewise under the names
test, val, valid or validation. `path` may also name one `.parquet` file. The image column is a
struct of `bytes` (an encoded image file) and `path`; class names come from the `huggingface`
metadata of the schema, else the classes are called by their numbers. An integer column `position`
says where each image stands in the split as published; without one the file is in that order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from sweeper.core.errors import SweepError
from sweeper.core.types import ImageSet
from sweeper.data._files import TEST_NAMES, FileSource
from sweeper.data._images import decode
from sweeper.data.base import Splits

_FILE = re.compile(r"(?P<split>[a-z]+)(-\d{5}-of-(?P<shards>\d{5})(-[0-9a-f]+)?)?\.parquet")
_LABELS = ("label", "labels", "fine_label")
_POSITION = "position"
_BATCH = 8192


@dataclass(frozen=True, kw_only=True)
class Parquet(FileSource):
    """A folder of Parquet files, or one file."""

    label_column: str | None = None
    """Column of the integer labels; default: label, labels, fine_label or the only integers."""

    names: ClassVar[dict[str, str]] = {}
    order: ClassVar[int] = 10
    version: ClassVar[int] = 2

    def serves(self, root: Path) -> bool:
        """Whether there is a training file."""
        return bool(self.splits(root))

    def files(self, root: Path) -> list[Path]:
        """Return the files of both splits."""
        return [file for files in self.splits(root).values() for file in files]

    def read(self, root: Path) -> Splits:
        """Decode the training files and the test files.

        Raises:
            SweepError: A shard or a column is missing, or an image or a label cannot be used.
        """
        files = self.splits(root)
        for split, shards in files.items():
            self.whole(split, shards)
        classes, labels = self._labels(files["train"])
        test_files = files.get("test")
        test_labels = None
        if test_files is not None:
            test_classes, test_labels = self._labels(test_files)
            if test_classes and classes and test_classes != classes:
                raise SweepError(
                    f"{self.name}: train and test files name different classes: give one data set's"
                )
        if not classes:
            all_labels = labels if test_labels is None else torch.cat([labels, test_labels])
            highest = int(all_labels.max()) if len(all_labels) else 0
            classes = tuple(str(number) for number in range(highest + 1))
        images = self._images(files["train"], len(labels))
        train = ImageSet(images, labels, classes, self._positions(files["train"], len(labels)))
        test = None
        if test_files is not None and test_labels is not None:
            test_images = self._images(test_files, len(test_labels), like=images)
            positions = self._positions(test_files, len(test_labels))
            test = ImageSet(test_images, test_labels, classes, positions)
        return self.assemble(train, test, self._paths(files["train"]))

    def splits(self, root: Path) -> dict[str, list[Path]]:
        """Return the files of "train" and, where there are any, of "test"; {} where no train."""
        for place in self.places(root):
            if place.is_file():
                return {"train": [place]} if place.suffix == ".parquet" else {}
            for folder in (place, place / "data"):
                named: dict[str, list[Path]] = {}
                for file in sorted(folder.glob("*.parquet")):
                    match = _FILE.fullmatch(file.name)
                    if match:
                        named.setdefault(match["split"], []).append(file)
                if "train" in named:
                    test = next((named[name] for name in TEST_NAMES if name in named), None)
                    return {"train": named["train"]} | ({} if test is None else {"test": test})
        return {}

    def whole(self, split: str, files: list[Path]) -> None:
        """See that all shards of a split are there.

        Raises:
            SweepError: Some are not, or there are those of two splits.
        """
        matches = [_FILE.fullmatch(file.name) for file in files]
        shards = {match["shards"] for match in matches if match}
        expected = int(next(iter(shards)) or 1) if len(shards) == 1 else 1
        if len(files) != expected:
            raise SweepError(
                f"{self.name}: {files[0].parent} holds {len(files)} {split} files where {expected} "
                "make one split: complete the shards or move the others away"
            )

    def _labels(self, files: list[Path]) -> tuple[tuple[str, ...], Tensor]:
        """Return the class names (empty where the file has none) and the labels, int64 [N]."""
        with _opened(files[0]) as opened:
            schema = opened.schema_arrow
        name = self._label_column(schema, files[0])
        labels = _integers(files, name)
        if bool((labels < 0).any()):
            raise SweepError(
                f"{files[0]}: has images without a label (null or negative): leave the file out"
            )
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = metadata.get("info", {}).get("features", {}).get(name, {})
        return tuple(str(c) for c in feature.get("names") or ()), labels

    def _positions(self, files: list[Path], count: int) -> Tensor:
        """Return the place of each image in the split as published, int64 [N]."""
        with _opened(files[0]) as opened:
            schema = opened.schema_arrow
        labels = self._label_column(schema, files[0])
        if _POSITION not in _integer_columns(schema) or labels == _POSITION:
            return torch.arange(count)
        positions = _integers(files, _POSITION)
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
            if self.label_column in integers:
                return self.label_column
        else:
            for name in _LABELS:
                if name in integers:
                    return name
            if len(integers) == 1:
                return str(integers[0])
        raise SweepError(
            f"{file}: no label column found (integer columns: {', '.join(integers) or 'none'}): "
            "give `label_column`; only image classification can be read"
        )

    def _images(self, files: list[Path], count: int, like: Tensor | None = None) -> Tensor:
        what = f"{self.name}: {files[0].name}"
        return decode(partial(_batches, files, "bytes"), count, what, self.size, like)

    def _paths(self, files: list[Path]) -> list[str]:
        if not self.grouped:
            return []
        return [path or "" for batch in _batches(files, "path") for path in batch]


def _integer_columns(schema: Any) -> list[str]:
    import pyarrow as pa

    return [field.name for field in schema if pa.types.is_integer(field.type)]


def _integers(files: list[Path], name: str) -> Tensor:
    """Return a column of integers, int64 [N]; -1 for null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = pa.concat_tables(pq.read_table(f, columns=[name]) for f in files)[name]
        return torch.tensor(column.fill_null(-1).to_numpy().astype("int64"))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise SweepError(
            f"{files[0]}: column {name!r} cannot be read ({error}): fetch it again"
        ) from error


def _opened(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise SweepError(
            f"{file}: is not a readable Parquet file ({error}): fetch it again"
        ) from error


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
