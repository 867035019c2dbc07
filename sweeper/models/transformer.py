"""The encoder-decoder Transformer (Vaswani et al., NeurIPS 2017, arXiv 1706.03762).

Sentences are tokens int64 [B, S], 0 where they are padded; both languages share one embedding. The
layers normalise what they are given (Xiong et al., ICML 2020, arXiv 2002.04745), which trains
without a long warm-up. Queries, keys and values are linear layers of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sweeper.core.bpe import PAD
from sweeper.core.options import ProperShare
from sweeper.models.base import Family, Net, Shape


class Size(NamedTuple):
    """What a member of the family has."""

    layers: int
    """Of the encoder, and of the decoder."""
    width: int
    """Entries of a token's state."""
    heads: int
    """Parts its attention is divided into."""


SIZES = {"transformer-small": Size(2, 128, 4), "transformer-base": Size(6, 512, 8)}


@dataclass(frozen=True, kw_only=True)
class Transformer(Family):
    """As many layers in the encoder as in the decoder; the inner ones are 4 times as wide."""

    names: ClassVar[tuple[str, ...]] = tuple(SIZES)
    tasks = frozenset({"pairs"})
    usual = (32,)

    dropout: ProperShare = 0.1
    """Share of a layer's output, and of the embeddings, dropped in training."""

    def build(self, classes: int, shape: Shape) -> tuple[nn.Module, nn.Module]:
        """Build the layers, and the head that says which token follows.

        Args:
            classes: Entries of the vocabulary.
            shape: Of a sentence; any length fits.
        """
        size = SIZES[self.name]
        return Layers(classes, size, self.dropout), nn.Linear(size.width, classes)

    def joined(
        self, trunk: nn.Module, classifier: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> Net:
        """A network that is shown a sentence and the beginning of its reply."""
        return Translator(trunk, classifier, mean, std)


class Memory(NamedTuple):
    """A sentence as the encoder leaves it."""

    states: Tensor
    """[B, S, D]."""
    real: Tensor
    """bool [B, S], where there is a token."""


class Translator(Net):
    """What token follows each of a reply's, given a sentence."""

    trunk: Layers
    """Embedding, encoder and decoder."""

    def forward(self, source: Tensor, reply: Tensor) -> Tensor:  # type: ignore[override]
        """Logits [B, T, K] of the token after each of `reply`, int64 [B, T], to `source` [B, S]."""
        return self.answer(self.read(source), reply)

    def read(self, source: Tensor) -> Memory:
        """Encode sentences, int64 [B, S]."""
        return self.encoded(self.trunk.embedded(source), source != PAD)

    def encoded(self, embedded: Tensor, real: Tensor) -> Memory:
        """Encode embedded sentences [B, S, D]."""
        return Memory(self.trunk.encode(embedded, real), real)

    def answer(self, memory: Memory, reply: Tensor) -> Tensor:
        """Logits [B, T, K] of what follows each token of `reply`, int64 [B, T]."""
        return self.decoded(memory, self.trunk.embedded(reply))

    def decoded(self, memory: Memory, embedded: Tensor) -> Tensor:
        """The same of embedded tokens [B, T, D]."""
        out: Tensor = self.classifier(self.trunk.decode(embedded, memory.states, memory.real))
        return out

    def features(self, x: Tensor) -> Tensor:
        """The mean state [B, D] of the tokens of sentences, int64 [B, S]."""
        states, real = self.read(x)
        weight = real[..., None].to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class Layers(nn.Module):
    """Embedding, encoder and decoder."""

    def __init__(self, classes: int, size: Size, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, size.width)
        nn.init.normal_(self.embedding.weight, std=size.width**-0.5)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(Block(size, dropout) for _ in range(size.layers))
        self.decoder = nn.ModuleList(Block(size, dropout, True) for _ in range(size.layers))
        self.norms = nn.ModuleList([nn.LayerNorm(size.width), nn.LayerNorm(size.width)])

    def embedded(self, tokens: Tensor) -> Tensor:
        """Embed tokens, int64 [B, S], with their places: [B, S, D]."""
        out = self.embedding(tokens)
        width = out.shape[-1]
        dropped: Tensor = self.dropout(out * math.sqrt(width) + places(out.shape[1], width, out))
        return dropped

    def encode(self, x: Tensor, real: Tensor) -> Tensor:
        """Map embedded sentences [B, S, D] of which `real` (bool [B, S]) are tokens."""
        for block in self.encoder:
            x = block(x, real[:, None, None])
        out: Tensor = self.norms[0](x)
        return out

    def decode(self, x: Tensor, states: Tensor, real: Tensor) -> Tensor:
        """Map embedded replies [B, T, D], each token given those before it and the sentence."""
        count = x.shape[1]
        before = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        for block in self.decoder:
            x = block(x, before, states, real[:, None, None])
        out: Tensor = self.norms[1](x)
        return out


class Block(nn.Module):
    """Attention, in a decoder also to the encoder's states, and two dense layers."""

    def __init__(self, size: Size, dropout: float, crossed: bool = False) -> None:
        super().__init__()
        self.attention = Attention(size)
        self.crossed = Attention(size) if crossed else None
        self.dense = nn.Sequential(
            nn.Linear(size.width, 4 * size.width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * size.width, size.width),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size.width) for _ in range(2 + crossed))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        states: Tensor | None = None,
        states_mask: Tensor | None = None,
    ) -> Tensor:
        """Map [B, T, D] to the same shape; masks (bool) are true where one may look."""
        inner = self.norms[0](x)
        x = x + self.dropout(self.attention(inner, inner, mask))
        if self.crossed is not None:
            x = x + self.dropout(self.crossed(self.norms[2](x), states, states_mask))
        out: Tensor = x + self.dropout(self.dense(self.norms[1](x)))
        return out


class Attention(nn.Module):
    """Scaled dot products of `heads` parts of the width."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.query = nn.Linear(size.width, size.width)
        self.key = nn.Linear(size.width, size.width)
        self.value = nn.Linear(size.width, size.width)
        self.out = nn.Linear(size.width, size.width)

    def forward(self, x: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """What each of x [B, T, D] finds in states [B, S, D]."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(states), self.value(states))
        )
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return out


def places(count: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines that tell the places of tokens apart (section 3.5); [count, width]."""
    place = torch.arange(count, device=like.device, dtype=torch.float32)[:, None]
    pitch = torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width
    angle = place / 10_000**pitch
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1).to(like.dtype)
