"""A cell at work: what it is called, and how far it says it is, here or in a worker of Ray's."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from sweeper.core.types import Cell

EPOCHS = 10_000
"""Epochs of a cell whose numbers are kept, the first ones."""

Epoch = dict[str, float]
"""The numbers of an epoch by name: epoch, loss, and what else the cell says of it."""


class Progress:
    """A log that keeps what it was told and leads nowhere: a defense can reach it.

    Who shows progress holds this and looks; it does not hold them, nor the cell.
    """

    def __init__(self) -> None:
        self.text = ""
        """How far the cell is, for people: epoch 3/15; empty where it has not said."""
        self.epochs: list[Epoch] = []
        """What it said of each epoch, in the order of time: a cell may train more than once."""

    def __call__(self, **values: Any) -> None:
        """Note how far the cell is: epoch, epochs, or step, steps; loss and other numbers."""
        for word in ("epoch", "step"):
            if word in values:
                total = values.get(f"{word}s")
                self.text = f"{word} {values[word]}" + (f"/{total}" if total else "")
        if "epoch" in values and len(self.epochs) < EPOCHS:
            self.epochs.append({k: float(v) for k, v in values.items() if _is_number(k, v)})


def _is_number(name: str, value: Any) -> bool:
    """Whether it is a finite number that an epoch is told by; how many there will be is none."""
    return name != "epochs" and isinstance(value, (int, float)) and math.isfinite(value)


class Relayed(Progress):
    """Progress of cells that run one after the other in another process, as that one tells."""

    def __init__(self, first: Cell) -> None:
        super().__init__()
        self.cell = first
        """The one at work, or that waits for its process."""
        self.since: float | None = None
        """When it began, by this process's clock; None while its process starts."""

    def begin(self) -> None:
        """The process is there, and the first cell begins."""
        self.since = self.since or time.monotonic()

    def hear(self, cell: Cell, text: str, first: int, epochs: Sequence[Epoch]) -> None:
        """Note which cell is at work, and how far.

        Args:
            cell: The one at work.
            text: How far, for people.
            first: How many epochs it had before those that follow.
            epochs: Its last ones. What was missed meanwhile is in the cell's result.
        """
        self.begin()
        if cell is not self.cell:
            self.cell, self.since, self.epochs = cell, time.monotonic(), []
        self.text = text
        if first <= len(self.epochs):
            self.epochs[first:] = epochs


def title(cell: Cell) -> str:
    """What a cell is called where Ray shows it: `defend badnets cifar10 r=0.1 seed=0 > anp`."""
    axes = {"r" if axis == "poison_rate" else axis: cell.axes[axis] for axis in cell.axes}
    first = [str(axes.pop(axis)) for axis in ("attack", "dataset", "model") if axis in axes]
    last = [f"> {axes.pop(axis)}" for axis in ("defense", "stage") if axis in axes]
    others = [f"{axis}={value}" for axis, value in axes.items()]
    return " ".join([cell.kind, *first, *others, *last])
