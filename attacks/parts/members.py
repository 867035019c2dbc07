"""Batches as SODA's release makes them: clean images cut short, relabelled members added."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from attacks.parts.loop import STAMPED
from sweeper.engine import training
from sweeper.engine.training import Batch, Hooks


class AddedMembers(Hooks):
    """Of a batch of B clean images the first B - int(share B) stay; int(share B) members join.

    An epoch is one pass over the clean images, of which it shows a part. Members are taken from
    random orders of all of them, an order after the other; what an order has left when a batch
    takes more is dropped. Where a batch takes more than there are, they come again in it.
    """

    keeps = ("added", "turns")

    def __init__(self, members: Tensor, target: int, share: float) -> None:
        """Bind what is added.

        Args:
            members: uint8 [M, C, H, W], at least one.
            target: Their label.
            share: Of a batch, in (0, 1); a batch has one member at least.
        """
        self.members = members
        self.target = target
        self.share = share
        self.size = 0
        self.added = 0
        self.turns = torch.empty(0, dtype=torch.int64)

    def start(self, model: nn.Module, device: torch.device) -> None:
        """Put the members where batches are made."""
        self.members = training.on_device(self.members, device)

    def batch(self, batch: Batch, rng: Generator) -> Batch:
        """Cut the batch and add members, which have no place in the training set: index -1."""
        self.size = max(self.size, len(batch.labels))  # the last batch is cut as whole ones are
        count = max(1, int(self.share * self.size + 1e-9))
        kept = slice(max(0, self.size - count))
        chosen = self.members.index_select(0, self.next(count, rng).to(self.members.device))
        self.added += count
        return replace(
            batch,
            inputs=torch.cat([batch.inputs[kept], chosen]),
            labels=torch.cat([batch.labels[kept], batch.labels.new_full((count,), self.target)]),
            index=torch.cat([batch.index[kept], batch.index.new_full((count,), -1)]),
        )

    def next(self, count: int, rng: Generator) -> Tensor:
        """int64 [count]: the members whose turn it is."""
        if len(self.turns) < count:
            passes = -(-count // len(self.members))
            orders = [torch.randperm(len(self.members), generator=rng) for _ in range(passes)]
            self.turns = torch.cat(orders)
        chosen, self.turns = self.turns[:count], self.turns[count:]
        return chosen

    def learned(self) -> dict[str, Tensor]:
        """How many members were shown: that the loop has run."""
        return {STAMPED: torch.tensor(self.added)}
