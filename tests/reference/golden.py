"""Reads golden files, compares ours with them and keeps what was compared for the page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor, nn

from attacks.base import Attack
from sweeper import models
from sweeper.core import catalog
from sweeper.core.types import ImageSet
from sweeper.models.base import Net
from tests.support.places import ROOT

FOLDER = Path(__file__).with_name("golden")
PAGE = ROOT / "docs" / "reference.md"
COMMAND = "python -m tests.reference"

rows: list[Row] = []
"""Everything compared in this process, in order."""
writing = False
"""Whether the page is being written, so that it need not list what is compared."""


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    """Golden file, as `attacks/blend-anp`."""
    what: str
    """What was compared, in words."""
    difference: float
    """The largest difference, in the unit of the arrays, or relative."""
    share: float
    """Share of the values that differ."""
    whole: bool
    """Whether the values are whole numbers: levels of 0..255, indices, labels, counts."""
    relative: bool = False
    why: str = ""
    """Why ours differs on purpose; empty where it may not."""


@dataclass(frozen=True)
class Golden:
    """One golden file: its arrays, as numpy stores them, and its `meta`."""

    name: str
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Tensor:
        """The array as a tensor of its own; a text array stays with `arrays`."""
        return torch.from_numpy(np.array(self.arrays[key]))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def agree(
        self,
        what: str,
        ours: ArrayLike | Tensor,
        theirs: str | ArrayLike | Tensor,
        *,
        within: float = 0.0,
        share: float = 1.0,
        relative: bool = False,
        modulo: int = 0,
    ) -> None:
        """Compare ours with the reference, and keep the largest difference for the page.

        Args:
            what: What is compared, in words, unique in the file; it stands on the page.
            ours: Values of our code.
            theirs: The reference's, or the name of its array.
            within: Largest difference allowed; 0: equal.
            share: Largest share of values that may differ at all.
            relative: Compare the norm of the difference with the norm of theirs.
            modulo: Where values wrap: a difference of `modulo` is none.
        """
        row = self._row(what, ours, theirs, relative, modulo)
        self._keep(row)
        assert row.difference <= within, f"{self.name}: {what}: {row.difference:.3g} > {within:g}"
        assert row.share <= share, f"{self.name}: {what}: {row.share:.2%} differ, not {share:.2%}"

    def deviates(
        self,
        what: str,
        ours: ArrayLike | Tensor,
        theirs: str | ArrayLike | Tensor,
        *,
        by: float,
        why: str,
        within: float = float("inf"),
        relative: bool = False,
    ) -> None:
        """Compare where ours differs on purpose; the page gives `why`.

        Args:
            by: The least difference; below it, the deviation is gone and so must be its sentence.
            why: One sentence that ends with a full stop.
            within: The largest difference.
        """
        row = self._row(what, ours, theirs, relative, 0, why)
        self._keep(row)
        assert row.difference >= by, f"{self.name}: {what}: agrees now, it does not deviate"
        assert row.difference <= within, f"{self.name}: {what}: {row.difference:.3g} > {within:g}"

    def _row(
        self, what: str, ours: Any, theirs: Any, relative: bool, modulo: int, why: str = ""
    ) -> Row:
        if isinstance(theirs, str):
            theirs = self.arrays[theirs]
        a, b = (np.asarray(x.detach() if isinstance(x, Tensor) else x) for x in (ours, theirs))
        whole = all(x.dtype.kind in "biu" for x in (a, b))
        a, b = a.astype(np.float64), b.astype(np.float64)
        assert a.shape == b.shape, f"{self.name}: {what}: shapes {a.shape} and {b.shape}"
        gap = np.abs(a - b)
        gap = np.minimum(gap, modulo - gap) if modulo else gap
        largest = float(gap.max(initial=0.0))
        if relative:
            largest = float(np.linalg.norm((a - b).ravel()) / np.linalg.norm(b.ravel()))
        return Row(self.name, what, largest, float((gap > 0).mean()), whole, relative, why)

    def _keep(self, row: Row) -> None:
        rows.append(row)
        if not writing:
            assert listed(row), f"{PAGE.name} lacks {row.name}: {row.what}: run `{COMMAND}`"

    def attack(self, preset: str | None = None, **options: Any) -> Attack:
        """Our attack as the file's meta names it, with a preset and options of one's own."""
        kind = catalog.method("attack", self.meta["attack"])
        chosen = self.meta.get("preset", "") if preset is None else preset
        given = {**kind.presets.get(chosen, {}), **self.meta.get("options", {}), **options}
        made: Attack = kind(**given)
        return made

    def net(self, prefix: str = "net", given: dict[str, Any] | None = None) -> Net:
        """Our network with the file's weights `prefix/...`, in eval mode."""
        given = given or self.meta["net"]
        model = models.build(
            given["model"],
            given["options"],
            classes=given["classes"],
            shape=tuple(given["shape"]),
            mean=given["mean"],
            std=given["std"],
            generator=Generator(),
        )
        head = prefix + "/"
        weights = {
            name.removeprefix(head): self[name].float()
            for name in self.arrays
            if name.startswith(head)
        }
        assert set(weights) <= set(model.state_dict())
        model.load_state_dict({**model.state_dict(), **weights})
        return model.eval()

    def data(self, images: str = "images", labels: str = "labels", classes: int = 10) -> ImageSet:
        """An image set of two arrays."""
        names = tuple(str(number) for number in range(classes))
        return ImageSet(self[images], self[labels].long(), names)


def load(name: str) -> Golden:
    """The golden file `attacks/NAME` or `defenses/NAME`."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return Golden(name, arrays, json.loads(str(arrays.pop("meta"))))


def names() -> list[str]:
    """All golden files."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in FOLDER.glob("*/*.npz"))


def uniform(tensor: int, shape: tuple[int, ...]) -> np.ndarray:
    """float64 in [-1, 1): the numbers tensor number `tensor` holds by rule (splitmix64)."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(tensor << 32)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1).reshape(shape)


def fill(net: nn.Module, names: np.ndarray, shapes: np.ndarray) -> nn.Module:
    """Give a network the weights that follow from its tensors' names and shapes; eval mode."""
    state = net.state_dict()
    own = [name for name in state if not name.endswith("num_batches_tracked")]
    assert own == names.tolist()
    for number, name in enumerate(own):
        shape = tuple(state[name].shape)
        assert shape == tuple(int(side) for side in shapes[number][: len(shape)])
        state[name] = torch.from_numpy(_ruled(name, number, shape).astype(np.float32))
    net.load_state_dict(state)
    return net.eval()


def _ruled(name: str, number: int, shape: tuple[int, ...]) -> np.ndarray:
    """float64 of this shape: a tensor's values by its last name and its number."""
    u = uniform(number, shape)
    last = name.rsplit(".", 1)[1]
    if last == "running_var":
        return 1 + 0.5 * u
    if last == "running_mean":
        return 0.2 * u
    if len(shape) > 1:
        return u * np.sqrt(6 / np.prod(shape[1:]))
    return 1 + 0.2 * u if last == "weight" else 0.1 * u


def listed(row: Row) -> bool:
    """Whether the page has this comparison."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    about = next((line for line in text.splitlines() if line.startswith(f"- `{row.name}`")), "")
    return row.what in about and row.why in text
