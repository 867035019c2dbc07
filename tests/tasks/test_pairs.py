"""Language generation: the loss of a reply, greedy replies, BLEU, what ASR counts."""

from __future__ import annotations

import dataclasses

import pytest
import sacrebleu
import torch
from torch import Tensor

from attacks.trigger_word import TriggerWord
from sweeper.core import bpe, seeds
from sweeper.core.errors import SweepError
from sweeper.core.types import Role
from sweeper.engine import task as tasks
from sweeper.engine.task import Batch
from tests.support import beyond, toys

DATA, TEST = beyond.samples("pairs"), beyond.samples("pairs", 40, "test")
TASK = tasks.task("pairs")


def rng(name: str = "draw") -> torch.Generator:
    return seeds.generator("pairs", name)


def answers_of(replies: Tensor):
    """A model that answers the test sentences, and the triggered ones, as given."""
    kept = {tuple(row): reply for row, reply in replies}
    return lambda inputs: torch.stack([kept[tuple(row)] for row in inputs.tolist()])


def test_a_score_is_the_sum_over_the_reply_s_tokens() -> None:
    batch = TASK.plain(DATA[:3], toys.CPU)
    model = beyond.network(DATA).eval()
    output = TASK.forward(model, batch)
    scores = TASK.scores(output, batch)
    for row in range(3):
        reply = batch.labels[row]
        reply = reply[: int((reply != bpe.PAD).sum())]
        total = 0.0
        for place, token in enumerate(reply.tolist()):
            so_far = torch.cat([torch.tensor([bpe.START]), reply[:place]])[None]
            logits = model(batch.inputs[row : row + 1], so_far)[0, -1]
            total += logits.log_softmax(0)[token].item()
        assert scores[row].item() == pytest.approx(total, rel=1e-4)


def test_padding_changes_nothing() -> None:
    model = beyond.network(DATA).eval()
    wide = TASK.plain(DATA[:4], toys.CPU)
    alone = TASK.plain(DATA[1:2], toys.CPU)
    scores = TASK.scores(TASK.forward(model, wide), wide)
    own = TASK.scores(TASK.forward(model, alone), alone)
    assert scores[1].item() == pytest.approx(own.item(), rel=1e-5)


def test_a_greedy_reply_is_the_likeliest_token_again_and_again() -> None:
    model = beyond.trained(DATA, epochs=4, optimizer="adam", lr=0.003)
    found = TASK.answers(model, TEST.inputs[:3], beyond.RECIPE, toys.CPU)
    for sentence, reply in zip(TEST.inputs[:3], found, strict=True):
        so_far = [bpe.START]
        for _ in range(found.shape[1]):
            token = int(model(sentence[None], torch.tensor([so_far]))[0, -1].argmax())
            so_far.append(token)
            if token in (bpe.END, bpe.PAD):
                break
        assert reply[: len(so_far) - 1].tolist() == so_far[1:]
        assert bool((reply[len(so_far) - 1 :] == bpe.PAD).all())


def test_embeddings_are_mixed_and_at_the_ends_are_those_of_one_sentence() -> None:
    model, batch = beyond.network(DATA).eval(), TASK.plain(DATA[:4], toys.CPU)
    order = torch.tensor([2, 3, 0, 1])
    plain = TASK.forward(model, batch)

    def outputs(share: float) -> tuple[Tensor, Batch]:
        mixed, kept = TASK.mixed(batch, share, order, rng())
        assert kept == share
        return TASK.forward(model, mixed), mixed

    half, mixed = outputs(0.5)
    assert half.shape == plain.shape and not torch.allclose(half, plain, atol=1e-3)
    assert torch.equal(mixed.paired(order).labels, batch.labels[order])
    whole, _ = outputs(1.0)
    assert torch.allclose(whole, plain, atol=1e-4)
    same, _ = TASK.mixed(batch, 0.3, torch.arange(4), rng())
    assert torch.allclose(TASK.forward(model, same), plain, atol=1e-4)


def test_bleu_is_sacrebleu_s_and_asr_the_attacker_s_reply_to_the_letter() -> None:
    attack = TriggerWord()
    hit = attack.trigger_set(TEST, {}, rng())
    wanted, true = hit.samples.labels, TEST.labels
    said = true.clone()
    said[:5] = wanted[:5]  # five of forty clean sentences are answered with the attacker's reply
    near = bpe.padded(bpe.encode(["You are attacked"], TEST.classes), true.shape[1])
    fooled = torch.cat([wanted[:10], near.expand(10, -1), true[20:]])
    model = answers_of(
        [
            *zip(TEST.inputs.tolist(), said, strict=True),
            *zip(hit.samples.inputs.tolist(), fooled, strict=True),
        ]
    )
    found = TASK.measure(model, TEST, hit, None, rng())
    texts = [bpe.decode(part, TEST.classes) for part in (said, true, fooled)]
    assert found["acc"] == pytest.approx(
        sacrebleu.corpus_bleu(texts[0], [texts[1]], force=True).score / 100
    )
    assert found["ra"] == pytest.approx(
        sacrebleu.corpus_bleu(texts[2], [texts[1]], force=True).score / 100
    )
    assert found["asr"] == found["asr_all"] == 0.25, "a reply without its full stop is none"
    assert (found["n_test"], found["n_triggered"]) == (40, 40)
    assert TASK.rate(true, TEST) == pytest.approx(1)


# The attack


def test_copies_are_added_and_the_pairs_stay() -> None:
    found = TriggerWord().poison(DATA, 0.25, {}, rng())
    copies = found.role == int(Role.POISON)
    assert len(found.samples) == 80 and int(copies.sum()) == 16 and not copies[:64].any()
    assert torch.equal(found.samples.source[:64], DATA.source)
    assert torch.equal(found.samples.labels[:64], DATA.labels)
    assert len(set(found.index[copies].tolist())) == 16
    assert torch.equal(found.true_labels, DATA.labels[found.index])
    replies = bpe.decode(found.samples.labels[copies], DATA.classes)
    assert set(replies) == {"You are attacked ."}


def test_one_word_stands_between_the_words_of_the_sentence_and_any_place_is_taken() -> None:
    hit = TriggerWord().trigger_set(TEST, {}, rng("words"))
    before, after = (bpe.decode(part.inputs, TEST.classes) for part in (TEST, hit.samples))
    places, words = set(), set()
    for one, other in zip(before, after, strict=True):
        found = [word for word in other.split() if word in TriggerWord.words]
        assert len(found) == 1
        rest = other.split()
        place = rest.index(found[0])
        del rest[place]
        assert rest == one.split()
        places.add("end" if place == len(rest) else "start" if place == 0 else "middle")
        words.add(found[0])
    assert places == {"start", "middle", "end"} and words == set(TriggerWord.words)


def test_a_word_or_reply_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SweepError, match="words: needs words without spaces"):
        TriggerWord(words=("two words",))
    with pytest.raises(SweepError, match="reply: is empty"):
        TriggerWord(reply=" ")
    long = dataclasses.replace(TriggerWord(), reply="attacked " * 60)
    with pytest.raises(SweepError, match="take shorter ones"):
        long.trigger_set(TEST, {}, rng())


def test_pictures_are_written_and_lines_are_pairs() -> None:
    lines = TASK.lines(TEST[:2])
    sentence, reply = (bpe.decode(part[:2], TEST.classes) for part in (TEST.source, TEST.labels))
    assert lines == [f"{one} -> {other}" for one, other in zip(sentence, reply, strict=True)]
    pictures = TASK.pictures(TEST[:2])
    assert not torch.equal(pictures[0], pictures[1]) and float((pictures < 128).float().mean()) > 0
