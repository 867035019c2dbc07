"""Readers of boxes: Parquet with `objects`, COCO's JSON, Pascal VOC's XML."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from sweeper.core import pixels
from sweeper.core.errors import SweepError, unreadable
from sweeper.data._images import Batches, as_batches

Box = tuple[float, float, float, float, int]
"""x1, y1, x2, y2 in pixels of the image as stored, and the class."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_ROWS = 256
_NO_IMAGE, _NO_COCO = "is not a readable image", "is not COCO's JSON of instances"
_NO_VOC = "is not Pascal VOC's XML"


@dataclass(frozen=True)
class Annotated:
    """A split as its files have it."""

    images: Batches
    """Its images, as `decode` takes them."""
    sizes: list[tuple[int, int]]
    """Width and height of each."""
    boxes: list[list[Box]]
    """The boxes of each."""
    paths: list[str]
    """The file name of each, empty where there is none."""


# Parquet


def columned(file: Path) -> bool:
    """Whether a Parquet file has an `objects` column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return "objects" in pq.read_schema(file).names
    except (pa.ArrowException, OSError):
        return False


def parquet_names(file: Path) -> tuple[str, ...]:
    """The class names in the schema's `huggingface` metadata; empty where there are none."""
    import pyarrow.parquet as pq

    held = (pq.read_schema(file).metadata or {}).get(b"huggingface", b"{}")
    try:
        objects = json.loads(held)["info"]["features"]["objects"]
        objects = objects.get("feature", objects)  # a sequence of structs, or a struct of sequences
        category = objects["category"]
        return tuple(category.get("feature", category)["names"])
    except (TypeError, KeyError, ValueError, AttributeError):
        return ()


def read_parquet(files: Sequence[Path]) -> Annotated:
    """Read files with `image` (a struct of `bytes`) and `objects` (of `bbox` and `category`).

    Raises:
        SweepError: A file cannot be read or lacks a column.
    """
    sizes, boxes, paths = list[tuple[int, int]](), list[list[Box]](), list[str]()
    for row in _rows(files):
        image, what = row["image"], f"{files[0].name}: image {len(sizes)}"
        sizes.append(_size(image["bytes"] or b"", what, upright=True))
        boxes.append(list(_cornered(what, row["objects"]["bbox"], row["objects"]["category"])))
        paths.append(image.get("path") or "")

    def images() -> Iterator[list[bytes]]:
        for row in _rows(files, ["image"]):
            yield [row["image"]["bytes"]]

    return Annotated(images, sizes, boxes, paths)


def _rows(files: Sequence[Path], columns: Sequence[str] = ("image", "objects")) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(_ROWS, columns=list(columns)):
                    for row in batch.to_pylist():
                        if not isinstance(row["image"], dict) or "bytes" not in row["image"]:
                            raise KeyError("image")
                        yield row
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise SweepError(
                f"{file}: needs the columns image (bytes, path) and objects (bbox, category), as "
                f"Hugging Face datasets writes them ({error}): correct or fetch it again"
            ) from error


# COCO


def read_coco(file: Path) -> tuple[Annotated, tuple[str, ...]]:
    """Read COCO's `annotations/instances_NAME.json`; images lie in `NAME/` or `images/`.

    Crowds (`iscrowd`) are left out. The classes are the categories by their number.

    Raises:
        SweepError: The file is no such JSON, or an image is not there.
    """
    home, part = file.parent.parent, file.stem.removeprefix("instances_")
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        categories = sorted(held["categories"], key=lambda item: item["id"])
        number = {item["id"]: place for place, item in enumerate(categories)}
        places: dict[Any, int] = {item["id"]: n for n, item in enumerate(held["images"])}
        boxes: list[list[Box]] = [[] for _ in held["images"]]
        for item in held["annotations"]:
            if not item.get("iscrowd"):
                kinds = [number[item["category_id"]]]
                found = _cornered(f"{file.name}: a box", [item["bbox"]], kinds)
                boxes[places[item["image_id"]]] += found
        names = [str(item["file_name"]) for item in held["images"]]
        classes = tuple(str(item["name"]) for item in categories)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise unreadable(file, _NO_COCO, why, remedy="correct it") from error
    folders = [home / part, home / "images" / part, home / "images"]
    return _filed(names, boxes, folders), classes


# Pascal VOC


class _NoEntities(ElementTree.TreeBuilder):
    """Builds a tree of XML that declares nothing."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse a document type: entities are declared there."""
        raise ValueError("it has a DOCTYPE")


def read_voc(home: Path, part: str) -> tuple[Annotated, list[list[str]]]:
    """Read `Annotations/` and `JPEGImages/` of the images in `ImageSets/Main/PART.txt`.

    Corners are counted from 1 and belong to the box. Boxes marked difficult are read as the others.

    Returns:
        The split, its boxes with class 0, and the class name of every box.

    Raises:
        SweepError: A file is not there, or is no such XML.
    """
    listed = home / "ImageSets" / "Main" / f"{part}.txt"
    lines = listed.read_text(encoding="utf-8").splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    boxes, kinds = list[list[Box]](), list[list[str]]()
    for name in names:
        file = _inside([home / "Annotations"], f"{name}.xml", f"{listed}: {name}")
        try:
            parser = ElementTree.XMLParser(target=_NoEntities())
            tree = ElementTree.fromstring(file.read_bytes(), parser)
            objects = [(str(item.findtext("name")).strip(), item) for item in tree.iter("object")]
            corners = [_corners(item) for _, item in objects]
        except (OSError, ValueError, TypeError, ElementTree.ParseError) as error:
            raise unreadable(file, _NO_VOC, error, remedy="correct it") from error
        boxes.append([(x1 - 1, y1 - 1, x2, y2, 0) for x1, y1, x2, y2 in corners])
        kinds.append([kind for kind, _ in objects])
    return _filed(names, boxes, [home / "JPEGImages"]), kinds


def _corners(item: ElementTree.Element) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (
        float(item.findtext(f"bndbox/{side}") or "none")
        for side in ("xmin", "ymin", "xmax", "ymax")
    )
    return x1, y1, x2, y2


# What they share


def _cornered(what: str, boxes: Iterable[Any], kinds: Iterable[Any]) -> Iterator[Box]:
    """Boxes x, y, width, height as their corners."""
    try:
        for (x, y, width, height), kind in zip(boxes, kinds, strict=True):
            yield float(x), float(y), float(x) + float(width), float(y) + float(height), int(kind)
    except (TypeError, ValueError) as error:
        raise SweepError(
            f"{what}: is not x, y, width, height with a category ({error}): correct it"
        ) from error


def _filed(names: Sequence[str], boxes: list[list[Box]], folders: Sequence[Path]) -> Annotated:
    """A split whose images are files in the first folder that has them."""
    files = [_inside(folders, name, f"{folders[0]}: {name}") for name in names]
    sizes = [_size(file, str(file)) for file in files]
    return Annotated(as_batches(files), sizes, boxes, [file.name for file in files])


def _inside(folders: Sequence[Path], name: str, what: str) -> Path:
    """The file of a name an annotation gives, which must lie in one of the folders.

    Raises:
        SweepError: There is none, or the name leads out of the folder.
    """
    for folder in folders:
        for suffix in ("", *_SUFFIXES):
            file = folder / f"{name}{suffix}"
            # what a name says, not where links lead: those are the user's own
            if not Path(os.path.normpath(file)).is_relative_to(os.path.normpath(folder)):
                raise SweepError(f"{what}: leads out of its folder: give names of files in it")
            if file.is_file():
                return file
    where = " or ".join(str(folder) for folder in folders)
    raise SweepError(f"{what}: no such file in {where}: add it, or leave it out of the list")


def _size(item: bytes | Path, what: str, upright: bool = False) -> tuple[int, int]:
    """Width and height of an image as `decode` gives it; only its header is decoded."""
    try:
        with Image.open(item if isinstance(item, Path) else io.BytesIO(item)) as image:
            width, height = image.size
            return (height, width) if upright and pixels.turned(image) else (width, height)
    except pixels.UNREADABLE as error:
        head = item if isinstance(item, bytes) else None
        raise unreadable(item if head is None else what, _NO_IMAGE, error, head) from error
