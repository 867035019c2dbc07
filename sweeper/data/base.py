"""The contract of a source of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from sweeper.core.errors import SweepError
from sweeper.core.options import Count
from sweeper.core.types import Samples


@dataclass(frozen=True)
class Splits:
    """The official training and test split of a data set."""

    train: Samples
    """The training split."""
    test: Samples
    """The test split."""
    groups: Tensor | None = None
    """int64 [n_train]: images of one group (a GTSRB track) never fall on both sides of a split."""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A place data sets come from; its fields are its options. One file, one subclass."""

    name: str
    """The data set's name in the sweep file."""
    path: str | None = field(default=None, metadata={"path": True})
    """File or folder of the data; default: looked for under the data folder by name."""
    size: Count | None = None
    """Side in pixels to resize images to; default: as stored (all must then be of one size)."""

    names: ClassVar[dict[str, str]]
    """Data sets known by name to this source -> one-line description; may be empty."""
    version: ClassVar[int] = 1
    """Raised when the same files decode to other tensors."""
    order: ClassVar[int] = 50
    """Sources are asked in this order; the first that `serves` a data set provides it."""

    idle: ClassVar[frozenset[str]] = frozenset()
    """Inherited options that mean nothing to it: none may be given."""
    task: ClassVar[str] = "image"
    """What its samples are: a file of `sweeper/tasks/`."""
    shape: ClassVar[tuple[int, ...]] = (3, 32, 32)
    """Of what a model is shown of one sample, where the data are not on this machine yet."""
    forbids: ClassVar[frozenset[str]] = frozenset()
    """Augmentations of a recipe that would make other classes of its samples, such as flip."""
    wants: ClassVar[str] = (
        "train.parquet and test.parquet, or image folders train/<class>/ and test/<class>/,"
    )
    """The files it looks for, for who has none yet."""
    extra: ClassVar[str] = ""
    """The extra of pyproject.toml that holds `packages`."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What a sweep on its data sets imports beside what the project always needs."""
    downloads: ClassVar[bool] = False
    """Whether `read` may fetch the data from the network."""
    sizes: ClassVar[Mapping[str, int]] = {}
    """Data set known by name -> bytes that are fetched, roughly."""

    @classmethod
    def asked(cls, options: Mapping[str, Any]) -> bool:
        """Whether an entry of `datasets` may mean this source; one that shares files asks more."""
        return True

    @classmethod
    def require(cls, name: str) -> None:
        """See that `packages` are installed.

        Raises:
            SweepError: One is not.
        """
        lacking = [package for package in cls.packages if find_spec(package) is None]
        if lacking:
            raise SweepError(
                f"datasets: {name}: {cls.task} need {' and '.join(lacking)}: run `pip install "
                f"'.[{cls.extra}]'` in the checkout"
            )

    @abstractmethod
    def serves(self, root: Path) -> bool:
        """Whether the data set is there for this source, given the data folder `root`."""

    @abstractmethod
    def files(self, root: Path) -> list[Path]:
        """The files whose names, sizes and times decide whether a decoded copy is still good."""

    @abstractmethod
    def read(self, root: Path) -> Splits:
        """Decode (downloading first where the source does that) to tensors.

        Raises:
            SweepError: The files are missing or are not what they should be.
        """


class Fileless(Source):
    """A source of data sets that need no file: drawn, or part of a package."""

    def serves(self, root: Path) -> bool:
        """Whether it is asked for by name."""
        return self.name in self.names and self.path is None

    def files(self, root: Path) -> list[Path]:
        """None."""
        return []
