"""Byte pairs: text there and back, and merges that follow from a vocabulary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.core import bpe

TEXTS = [
    "the old house and the older horse .",
    "das alte Haus und das ältere Pferd .",
    "he has house after house",
] * 20
VOCABULARY = bpe.learn(TEXTS, 320)


def test_the_merges_that_follow_from_a_vocabulary_are_those_it_was_learned_by() -> None:
    from tokenizers import models, pre_tokenizers, trainers

    learned = bpe._bare(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(bpe.SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(TEXTS, trainer)
    for text in [*TEXTS[:3], "houses hurt, oldest!", "Häuser"]:
        assert bpe.encode([text], VOCABULARY) == [learned.encode(text).ids]
    assert 259 < len(VOCABULARY) <= 320 and VOCABULARY[:3] == bpe.SPECIAL


@given(st.text(st.characters(codec="utf-8"), max_size=20).map(str.strip))
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_back_as_it_was(text: str) -> None:
    tokens = bpe.encode([text], VOCABULARY)[0]
    assert bpe.decode(bpe.padded([tokens], len(tokens) + 3), VOCABULARY) == [text]


def test_a_word_has_the_same_tokens_in_any_place() -> None:
    word = bpe.encode(["cf"], VOCABULARY)[0]
    parts = [bpe.encode([text], VOCABULARY)[0] for text in ("the old", "house")]
    assert bpe.encode(["the old cf house"], VOCABULARY)[0] == [*parts[0], *word, *parts[1]]
    assert VOCABULARY[word[0]].startswith(bpe.SPACE)


def test_a_sentence_ends_once() -> None:
    tokens = torch.tensor([[5, 6, bpe.END, 7], [bpe.START, 5, bpe.PAD, 7]])
    assert bpe.decode(tokens, VOCABULARY) == bpe.decode(
        torch.tensor([[5, 6, 2], [5, 0, 0]]), VOCABULARY
    )
    assert bpe.padded([[5, 6], []], 4).tolist() == [[5, 6, 2, 0], [2, 0, 0, 0]]
    assert bpe.padded([], 4).shape == (0, 4)
    with pytest.raises(ValueError, match="a sentence of 3 tokens for a length of 2"):
        bpe.padded([[5, 6]], 2)
