"""Byte-pair encoding (Sennrich et al., ACL 2016): sentences as tokens, by the library `tokenizers`.

A vocabulary is all there is: its entries after the bytes stand in the order they were merged, so
that the merges follow from it. Samples carry it as their classes, and whoever has samples can read
and write their sentences. Words are encoded one by one, each with the space before it, so that the
tokens of a word do not depend on its neighbours. Every byte is an entry: no word is unknown.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer, models

PAD, START, END = 0, 1, 2
"""Tokens that stand for no text: after the end, before a reply, at the end of a sentence."""
SPECIAL = ("<pad>", "<s>", "</s>")
SPACE = "\u0120"
"""How an entry begins that begins a word."""


def learn(sentences: Iterable[str], size: int) -> tuple[str, ...]:
    """Return a vocabulary of at most `size` entries, learned from sentences."""
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = _bare(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    vocabulary = tokenizer.get_vocab()
    return tuple(sorted(vocabulary, key=vocabulary.__getitem__))


def encode(sentences: Sequence[str], vocabulary: tuple[str, ...]) -> list[list[int]]:
    """Return the tokens of sentences, without start and end."""
    encoded = _tokenizer(vocabulary).encode_batch(list(sentences))
    return [list(one.ids) for one in encoded]


def decode(tokens: Tensor, vocabulary: tuple[str, ...]) -> list[str]:
    """Return the sentences of tokens, int64 [N, T]; each ends where END or PAD stands first."""
    kept = [_until_end(row) for row in tokens.tolist()]
    return [text.strip() for text in _tokenizer(vocabulary).decode_batch(kept)]


def padded(sentences: Iterable[Sequence[int]], length: int) -> Tensor:
    """Return tokens with END and as many PAD as make up a length; int64 [N, length].

    Raises:
        ValueError: A sentence with its END is longer.
    """
    rows = [[*sentence, END] for sentence in sentences]
    if rows and max(map(len, rows)) > length:
        raise ValueError(f"a sentence of {max(map(len, rows))} tokens for a length of {length}")
    filled = [row + [PAD] * (length - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int64).view(len(filled), length)


def _until_end(row: Sequence[int]) -> list[int]:
    stop = next((place for place, token in enumerate(row) if token in (PAD, END)), len(row))
    return [token for token in row[:stop] if token != START]


@functools.lru_cache(maxsize=4)
def _tokenizer(vocabulary: tuple[str, ...]) -> Tokenizer:
    from tokenizers import models

    ids = {entry: place for place, entry in enumerate(vocabulary)}
    return _bare(models.BPE(vocab=ids, merges=list(_merges(ids))))


def _bare(model: models.Model) -> Tokenizer:
    """A tokenizer that splits at spaces and marks, into bytes."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The two parts each entry was merged from: what the earlier merges make of its bytes."""
    for entry, rank in ids.items():
        parts = [] if entry in SPECIAL else list(entry)
        while len(parts) > 2:
            pairs = [
                ids.get(one + other, rank) for one, other in zip(parts, parts[1:], strict=False)
            ]
            first = min(range(len(pairs)), key=pairs.__getitem__)
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]
