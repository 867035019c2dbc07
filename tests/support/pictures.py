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
    write_blobs(file, [png(i) for i in images], labels, classes, paths, label, image)


def write_blobs(file, blobs, labels, classes=None, paths=None, label="label", image="image"):
    """Write encoded images in the Hugging Face layout."""
    paths = paths or [f"{i}.png" for i in range(len(blobs))]
    rows = [{"bytes": blob, "path": path} for blob, path in zip(blobs, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array(labels, None if len(labels) else pa.int64())
    table = pa.table({image: pa.array(rows, kind), label: column})
    if classes:
        info = {"info": {"features": {label: {"names": list(classes), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=7)


def write_boxes(file, blobs, boxes, names=None):
    """Write encoded images with boxes (x, y, width, height, class) in the Hugging Face layout."""
    rows = [
        {
            "image": {"bytes": blob, "path": f"{number}.png"},
            "objects": {
                "bbox": [list(box[:4]) for box in given],
                "category": [box[4] for box in given],
            },
        }
        for number, (blob, given) in enumerate(zip(blobs, boxes, strict=True))
    ]
    kind = pa.struct(
        [("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.int64()))]
    )
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.Table.from_pylist(rows, schema=pa.schema([("image", image), ("objects", kind)]))
    if names is not None:
        feature = {"category": {"feature": {"names": names, "_type": "ClassLabel"}}}
        held = {"info": {"features": {"objects": feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(held)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


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
