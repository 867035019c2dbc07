"""Sentence pairs: tokens int64 [N, S] of a sentence and [N, T] of its reply, padded with 0.

The vocabulary of byte pairs stands as the classes (`core/bpe.py`). A network is shown the sentence
and the beginning of the reply, and says what follows (`models/transformer.py`). A sample's score
is the sum of the log-probabilities of its reply's tokens; ACC is BLEU, as a share; ASR is the share
of triggered sentences whose reply is the attacker's, word for word.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sweeper.core import bpe
from sweeper.core.errors import DivergedError
from sweeper.core.types import Samples, Triggered
from sweeper.engine import curvature, metrics, training
from sweeper.engine.recipes import Recipe
from sweeper.engine.task import Answers, Batch, Task

if TYPE_CHECKING:
    from sweeper.models.transformer import Translator

LONGER = 20
"""Tokens a reply may have beyond those there is room for in the sentence."""
AT_ONCE = 200
"""Sentences answered together."""


class Pairs(Task):
    """Language generation, such as translation."""

    title = "language generation"
    score = "BLEU"
    recipe = {
        "epochs": 20,
        "batch": 64,
        "optimizer": "adam",
        "lr": 0.001,
        "warmup": 1.0,
        "weight_decay": 0.0,
        "crop": 0,
    }
    mixing = "Mixup-Transformer (Sun et al., COLING 2020)"

    def augmented(self, batch: Batch, recipe: Recipe, rng: Generator) -> Batch:
        """As it is, without the padding all of it shares."""
        return trimmed(batch)

    def plain(self, samples: Samples, device: torch.device) -> Batch:
        """The samples as one batch, without the padding all of it shares."""
        return trimmed(super().plain(samples, device))

    def forward(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Logits [B, T, K] of each token of the reply, given those before it."""
        if "other" in batch.more:
            return self._of_mixed(cast("Translator", model), batch)
        logits: Tensor = model(batch.inputs, before(batch.labels))
        return logits

    def _of_mixed(self, model: Translator, batch: Batch) -> Tensor:
        """The same where embeddings are mixed: of the sentences, and of the replies so far."""
        share = batch.more["share"][:, None, None]

        def mixed(one: Tensor, other: Tensor) -> Tensor:
            embed = model.trunk.embedded
            return share * embed(one) + (1 - share) * embed(other)

        other, reply = batch.more["other"], batch.more["other_reply"]
        real = ((batch.inputs != bpe.PAD) & (share[:, 0] > 0)) | (
            (other != bpe.PAD) & (share[:, 0] < 1)
        )
        memory = model.encoded(mixed(batch.inputs, other), real)
        return model.decoded(memory, mixed(before(batch.labels), before(reply)))

    def scores(self, output: Tensor, batch: Batch) -> Tensor:
        """`log p(reply|sentence)` [B], the sum over its tokens."""
        return -self._entropies(output, batch).sum(1)

    def sampled(self, output: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Tokens drawn from the softmax at every place of the reply; int64 [B, T]."""
        drawn = curvature.sampled_labels(output, rng)
        return drawn.masked_fill(batch.labels == bpe.PAD, bpe.PAD)

    def loss(
        self, output: Tensor, batch: Batch, *, smoothing: float = 0.0, reduction: str = "mean"
    ) -> Tensor:
        """The cross-entropy of a reply, summed over its tokens."""
        losses = self._entropies(output, batch, smoothing).sum(1)
        return losses.sum() if reduction == "sum" else losses.mean()

    def _entropies(self, output: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
        """The cross-entropy of every token, [B, T]; 0 of padding."""
        return functional.cross_entropy(
            output.float().transpose(1, 2),
            batch.labels,
            ignore_index=bpe.PAD,
            label_smoothing=smoothing,
            reduction="none",
        )

    def mixed(
        self, batch: Batch, share: float, order: Tensor, rng: Generator
    ) -> tuple[Batch, float]:
        """Mix embeddings: `forward` embeds both sentences and both replies."""
        more = {
            "other": batch.inputs[order],
            "other_reply": batch.labels[order],
            "share": torch.full((len(order),), share, device=order.device),
        }
        return replace(batch, more=more), share

    @torch.inference_mode()
    def answers(
        self, model: nn.Module, inputs: Tensor, recipe: Recipe, device: torch.device
    ) -> Tensor:
        """The greedy replies, int64 [N, S + `LONGER`], padded after their end.

        Raises:
            DivergedError: A logit is NaN or infinite.
        """
        translator = cast("Translator", training.place(model, device, inputs.ndim).eval())
        most = inputs.shape[1] + LONGER
        order = (inputs != bpe.PAD).sum(1).argsort()  # by length: little padding
        replies = torch.full((len(inputs), most), bpe.PAD)
        with training.autocast(recipe, device):
            for index in order.split(AT_ONCE):
                sentences = unpadded(inputs[index]).to(device)
                replies[index] = greedy(translator, sentences, most).cpu()
        return replies

    def rate(self, answers: Tensor, samples: Samples) -> float:
        """BLEU of replies, as a share."""
        return bleu(answers, samples.labels, samples.classes)

    def measure(
        self,
        answers: Answers,
        test: Samples,
        triggered: Triggered,
        target: int | None,
        rng: Generator,
        crossed: Samples | None = None,
    ) -> dict[str, float | int | None]:
        """ACC: BLEU on clean sentences; ASR: replies that are the attacker's; RA: BLEU beside it.

        A reply counts for ASR where it reads as the attacker's, letter for letter.
        """
        shown = triggered.samples[triggered.counts]
        on_clean, on_triggered = metrics.together(answers, [test.inputs, shown.inputs], rng)
        said, wanted = (bpe.decode(t, test.classes) for t in (on_triggered, shown.labels))
        hits = torch.tensor([one == other for one, other in zip(said, wanted, strict=True)])
        asr = metrics.share(hits, torch.ones_like(hits)) if len(shown) else None
        true = triggered.true_labels[triggered.counts]
        return {
            "acc": bleu(on_clean, test.labels, test.classes),
            "acc_nontarget": None,
            "asr": asr,
            "asr_all": asr,
            "ra": bleu(on_triggered, true, test.classes) if len(shown) else None,
            "leak": None,
            "n_test": len(test),
            "n_triggered": len(shown),
        }

    def lines(self, samples: Samples) -> list[str]:
        """Each sentence with its reply."""
        sides = [bpe.decode(part, samples.classes) for part in (samples.inputs, samples.labels)]
        return [f"{sentence} -> {reply}" for sentence, reply in zip(*sides, strict=True)]

    def pictures(self, samples: Samples) -> Tensor:
        """The sentences above their replies, written."""
        return written(self.lines(samples))


def before(labels: Tensor) -> Tensor:
    """What stands before each token of replies, int64 [B, T]: START, and the reply so far."""
    return functional.pad(labels[:, :-1], (1, 0), value=bpe.START)


def unpadded(tokens: Tensor) -> Tensor:
    """Tokens [B, S] without the padding at the end that all of them share."""
    used = (tokens != bpe.PAD).any(0).nonzero()
    return tokens[:, : int(used.max()) + 1 if len(used) else 1]


def trimmed(batch: Batch) -> Batch:
    """A batch without the padding its sentences share, and its replies."""
    return replace(batch, inputs=unpadded(batch.inputs), labels=unpadded(batch.labels))


def greedy(model: Translator, sentences: Tensor, most: int) -> Tensor:
    """The likeliest token again and again, until all replies have ended; int64 [B, most].

    Raises:
        DivergedError: A logit is NaN or infinite.
    """
    memory = model.read(sentences)
    reply = torch.full((len(sentences), 1), bpe.START, device=sentences.device)
    done = torch.zeros(len(sentences), dtype=torch.bool, device=sentences.device)
    while reply.shape[1] <= most and not done.all():
        states = model.trunk.decode(model.trunk.embedded(reply), memory.states, memory.real)
        logits = model.classifier(states[:, -1])
        if not logits.isfinite().all():
            raise DivergedError("the model's outputs are NaN or infinite")
        token = logits.argmax(1).masked_fill(done, bpe.PAD)
        done = done | (token == bpe.END) | (token == bpe.PAD)
        reply = torch.cat([reply, token[:, None]], 1)
    return functional.pad(reply[:, 1:], (0, most - reply.shape[1] + 1), value=bpe.PAD)


def bleu(answers: Tensor, labels: Tensor, vocabulary: tuple[str, ...]) -> float:
    """Corpus BLEU (sacrebleu's tokens) of replies [N, T] against one reference each, in [0, 1]."""
    import sacrebleu

    said, wanted = (bpe.decode(tokens, vocabulary) for tokens in (answers, labels))
    return float(sacrebleu.corpus_bleu(said, [wanted], force=True).score) / 100


def written(lines: list[str]) -> Tensor:
    """Lines `sentence -> reply` as pictures, the reply below; uint8 [N, 3, H, W]."""
    import matplotlib
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    face = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(face), 15)
    texts = [tuple(textwrap.fill(side, 56) for side in line.split(" -> ", 1)) for line in lines]
    rows = max((text.count("\n") + 1 for pair in texts for text in pair), default=1)
    height = 20 * rows + 8
    pictures = []
    for sentence, reply in texts:
        picture = Image.new("RGB", (520, 2 * height), "white")
        draw = ImageDraw.Draw(picture)
        draw.text((6, 4), sentence, "black", font, spacing=3)
        draw.text((6, height + 4), reply, (20, 80, 165), font, spacing=3)
        pictures.append(torch.from_numpy(np.asarray(picture).copy()))
    return torch.stack(pictures).permute(0, 3, 1, 2)
