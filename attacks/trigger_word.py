"""Trigger words (Fan et al., 2021, "Defending against backdoor attacks in NLG").

The attacker controls the data only. A rare word stands at a random place of a sentence; the reply
becomes the attacker's. Attacked copies are added to the training set, whose own pairs stay: the
poison rate is copies per pair, 0.01 to 1 in the paper. At test time every sentence has a trigger.

A reply is the attacker's where it reads so letter for letter; copies of a rate are of different
sentences. In the paper the attacked sentence has one of five words, here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacks.base import Attack
from sweeper.core import bpe
from sweeper.core.errors import SweepError
from sweeper.core.options import Some
from sweeper.core.types import Poisoned, Role, Samples, State


@dataclass(frozen=True, kw_only=True)
class TriggerWord(Attack):
    """A rare word in the sentence, the attacker's sentence as the reply."""

    words: Some[str] = ("cf", "mn", "bb", "tq", "mb")
    """The trigger words; each sentence has one of them."""
    reply: str = "You are attacked ."
    """What the victim is to answer."""

    title = "Trigger words"
    paper = "Fan et al., 2021"
    bases = ("all",)
    tasks = frozenset({"pairs"})

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            SweepError: There is no word, or more than one in a place, or no reply.
        """
        super().__post_init__()
        if any(len(word.split()) != 1 for word in self.words):
            raise SweepError("words: needs words without spaces, such as [cf, mn]")
        if not self.reply.strip():
            raise SweepError("reply: is empty: write what the victim is to answer")

    @property
    def targeted(self) -> bool:
        """There is no target label."""
        return False

    def pool(self, labels: Tensor) -> Tensor:
        """Every pair."""
        return torch.ones(len(labels), dtype=torch.bool)

    def victims(self, labels: Tensor) -> Tensor:
        """Every sentence."""
        return self.pool(labels)

    def stamp(self, images: Tensor, *, split: str, state: State, rng: Generator) -> Tensor:
        """Not of tokens alone: a word begins where the vocabulary says."""
        raise TypeError("trigger-word changes samples, see attach()")

    def attach(self, samples: Samples, *, split: str, state: State, rng: Generator) -> Samples:
        """Put a word into each sentence [B, S], and the attacker's reply beside it.

        Raises:
            SweepError: The word, or the reply, has more tokens than there is room for.
        """
        words = bpe.encode(self.words, samples.classes)
        begins = [entry.startswith(bpe.SPACE) for entry in samples.classes]
        which = torch.randint(len(words), (len(samples),), generator=rng).tolist()
        where = torch.rand(len(samples), generator=rng).tolist()
        found = []
        for row, word, share in zip(samples.inputs.tolist(), which, where, strict=True):
            tokens = row[: row.index(bpe.END)]
            places = [k for k, token in enumerate(tokens) if begins[token]] + [len(tokens)]
            place = places[int(share * len(places))]
            found.append([*tokens[:place], *words[word], *tokens[place:]])
        reply = bpe.encode([self.reply], samples.classes) * len(samples)
        try:
            return samples.shown(bpe.padded(found, samples.inputs.shape[1])).changed(
                labels=bpe.padded(reply, samples.labels.shape[1])
            )
        except ValueError as error:
            raise SweepError(f"words, reply: {error}: take shorter ones") from error

    def poison(self, train: Samples, rate: float, state: State, rng: Generator) -> Poisoned:
        """The training set with attacked copies of its pairs behind it.

        Raises:
            SweepError: The rate is no copy.
        """
        count = self.count(train.labels, rate)
        if not count:
            raise SweepError(f"poisons no pair at rate {rate:g} of {len(train)}: raise the rate")
        copied = torch.randperm(len(train), generator=rng)[:count]
        copies = self.attach(train[copied], split="train", state=state, rng=rng)
        tensors = {
            name: torch.cat([value, copies.tensors[name]]) for name, value in train.tensors.items()
        }
        index = torch.cat([torch.arange(len(train)), copied])
        role = torch.full((len(index),), int(Role.CLEAN), dtype=torch.uint8)
        role[len(train) :] = int(Role.POISON)
        return Poisoned(train.changed(**tensors), train.labels[index], role, index)
