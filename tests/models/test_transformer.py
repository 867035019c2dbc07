"""The Transformer: what a token may see, and that two builds agree."""

from __future__ import annotations

import pytest
import torch

from sweeper import models
from sweeper.core.bpe import PAD
from sweeper.core.errors import SweepError
from sweeper.models.base import Net
from sweeper.models.transformer import SIZES, places


def built(name: str = "transformer-small", **options: float) -> Net:
    return models.build(
        name,
        options,
        classes=40,
        shape=(9,),
        mean=[],
        std=[],
        generator=torch.Generator().manual_seed(1),
    ).eval()


SOURCE = torch.tensor([[5, 6, 7, 2, PAD, PAD], [8, 9, 10, 11, 12, 2]])
REPLY = torch.tensor([[1, 20, 21, 22], [1, 23, 24, 25]])


@pytest.mark.parametrize("name", SIZES)
def test_logits_features_and_weights_from_the_generator_alone(name: str) -> None:
    net, again = built(name), built(name)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    assert net(SOURCE, REPLY).shape == (2, 4, 40)
    assert net.features(SOURCE).shape == (2, net.classifier.in_features)


def test_a_token_sees_those_before_it_and_the_whole_sentence() -> None:
    net = built()
    logits = net(SOURCE, REPLY)
    later = REPLY.clone()
    later[:, 2] = 30
    changed = net(SOURCE, later)
    assert torch.allclose(changed[:, :2], logits[:, :2], atol=1e-5)
    assert not torch.allclose(changed[:, 2:], logits[:, 2:], atol=1e-3)
    sentence = SOURCE.clone()
    sentence[:, 3] = 13
    assert not torch.allclose(net(sentence, REPLY)[:, 0], logits[:, 0], atol=1e-3)


def test_padding_is_not_seen_and_a_sample_does_not_see_its_neighbours() -> None:
    net = built()
    alone = net(SOURCE[:1, :4], REPLY[:1])
    assert torch.allclose(alone, net(SOURCE, REPLY)[:1], atol=1e-5)
    assert torch.allclose(net.features(SOURCE[:1, :4]), net.features(SOURCE)[:1], atol=1e-5)


def test_places_are_the_paper_s() -> None:
    found = places(5, 8, torch.zeros(1))
    assert found.shape == (5, 8) and found[0].tolist() == [0, 1] * 4
    assert found[3, 2].item() == pytest.approx(torch.tensor(3 / 10_000 ** (2 / 8)).sin().item())


def test_a_dropout_that_is_no_share_is_refused() -> None:
    with pytest.raises(SweepError, match="dropout: needs a number below 1, not 1.0"):
        built(dropout=1.0)
