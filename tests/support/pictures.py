"""Small data sets of noise images, as files."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sweeper.data import open_dataset

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


def fruit(folder):
    """A Parquet data set: 30 training and 9 test images, sorted by class."""
    labels, test_labels = [0] * 10 + [1] * 12 + [2] * 8, [0, 1, 2] * 3
    train = [picture(i) for i in range(30)]
    test = [picture(100 + i) for i in range(9)]
    write_parquet(folder / "root/fruit/train.parquet", train, labels)
    write_parquet(folder / "root/fruit/test.parquet", test, test_labels)
    return SimpleNamespace(
        root=folder / "root",
        cache=folder / "cache",
        train=train,
        labels=labels,
        test=test,
        test_labels=test_labels,
        open=lambda **more: open_dataset(
            {"dataset": "fruit", **more}, folder / "root", folder / "cache"
        ),
    )
