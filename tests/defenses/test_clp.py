"""CLP: channels' singular values, what is pruned, which convolutions belong to which norm."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defenses import clp
from defenses.clp import CLP
from defenses.clp_holdout import CLPHoldout
from sweeper.core import seeds
from sweeper.models.base import Net
from tests.support import toys
from tests.support.repairs import case, fresh, normal, pixels, rng


def pair(outputs: int, inputs: int = 4, kernel: int = 3, **options: Any) -> clp.Pair:
    conv = nn.Conv2d(inputs, outputs, kernel, **options)
    norm = nn.BatchNorm2d(outputs)
    with torch.no_grad():
        conv.weight.copy_(normal(*conv.weight.shape))
        norm.weight.copy_(1 + 0.1 * normal(outputs))
        norm.running_var = 1 + torch.rand(outputs, generator=rng("var"))
    return conv, norm


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_clp_scores_are_largest_singular_values(groups: int) -> None:
    conv, norm = pair(8, groups=groups)
    assert norm.running_var is not None
    found = clp.scores(conv, norm)
    gains = (norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()).tolist()
    for o, factor in enumerate(gains):
        matrix = factor * conv.weight[o].detach().reshape(4 // groups, 9)
        assert float(found[o]) == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-4)
    with torch.no_grad():
        conv.weight[3].neg_()
        norm.weight[5].neg_()
    assert torch.allclose(clp.scores(conv, norm), found)


def test_clp_of_a_1x1_kernel_is_its_norm_and_released_has_no_epsilon() -> None:
    conv, norm = pair(6, kernel=1)
    assert norm.running_var is not None
    lengths = conv.weight.detach().flatten(1).norm(dim=1) * norm.weight.detach().abs()
    assert torch.allclose(clp.scores(conv, norm, False), lengths / norm.running_var.sqrt())
    norm.running_var.zero_()
    assert clp.scores(conv, norm, False).isfinite().all(), "a variance of zero is no infinity"


def wide() -> Net:
    return fresh("tiny", width=12)


def dead(model: Net) -> list[Tensor]:
    return [norm.weight == 0 for _, norm in clp.by_graph(model)]


def test_clp_prunes_the_planted_channel_and_nothing_else() -> None:
    model = wide()
    chosen, norm = clp.by_graph(model)[3]
    with torch.no_grad():
        chosen.weight[7].mul_(50)
        norm.bias.fill_(0.5)
    victim = toys.weights(model)
    outcome = CLP().defend(toys.case(CLP.sees, model=model))
    found = dead(outcome.model)  # type: ignore[arg-type]
    assert [int(part.sum()) for part in found] == [0, 0, 0, 1, 0, 0, 0] and bool(found[3][7])
    assert outcome.notes["pruned"] == 1 and outcome.notes["too_small"] == 0
    assert outcome.model is not None
    name = next(n for n, part in model.named_modules() if part is norm)
    changed = {k for k, v in outcome.model.state_dict().items() if not torch.equal(v, victim[k])}
    assert changed <= {f"{name}.weight", f"{name}.bias"} and f"{name}.weight" in changed
    assert outcome.model.get_parameter(f"{name}.bias")[7].item() == 0


def test_clp_does_not_depend_on_the_scale_of_a_layer() -> None:
    models = [wide(), wide()]
    with torch.no_grad():
        for conv, norm in clp.by_graph(models[0]) + clp.by_graph(models[1]):
            conv.weight.mul_(torch.linspace(1, 2, conv.out_channels).exp().view(-1, 1, 1, 1))
            norm.eps = 0
        for _, norm in clp.by_graph(models[1]):
            norm.weight.mul_(7)
    for model in models:
        CLP().prune(model, 1.5)
    one, other = dead(models[0]), dead(models[1])
    assert sum(int(part.sum()) for part in one) > 0
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_clp_at_infinity_is_the_identity_and_small_layers_never_lose_a_channel() -> None:
    assert not toys.differing(
        CLP(u=math.inf).defend(toys.case(CLP.sees)).model,  # type: ignore[arg-type]
        toys.victim(),
    )
    scores = torch.ones(10)
    scores[0] = 1e6
    assert not clp.outliers(scores, 3.0).any(), "(n - 1) / sqrt(n) is below 3"
    assert clp.outliers(torch.cat([scores, torch.ones(1)]), 3.0).tolist() == [True] + 10 * [False]


@pytest.mark.parametrize(
    ("model", "count", "wrongly"),
    [("resnet18", 20, 0), ("preact-resnet18", 9, 8), ("densenet121", 59, 4)],
)
def test_clp_pairs_what_the_network_computes(model: str, count: int, wrongly: int) -> None:
    """By experiment: what a convolution puts out is what its BatchNorm reads."""
    net = fresh(model, **({} if model == "densenet121" else {"width": 8}))
    pairs, read = clp.by_graph(net), {}
    assert len(pairs) == count
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    handles = [
        part.register_forward_hook(lambda module, given, output: read.update({module: given[0]}))
        for part in net.modules()
        if isinstance(part, nn.BatchNorm2d)
    ] + [
        part.register_forward_hook(lambda module, given, output: read.update({module: output}))
        for part in net.modules()
        if isinstance(part, nn.Conv2d)
    ]
    net(pixels(2))
    for handle in handles:
        handle.remove()
    assert all(torch.equal(read[conv], read[norm]) for conv, norm in pairs)
    wrong = [n for c, n in clp.by_registration(net) if not torch.equal(read[c], read[n])]
    assert len(wrong) == wrongly
    assert len({id(norm) for _, norm in pairs}) == count <= len(norms)


def test_clp_pairs_every_norm_of_a_network_with_convolutions_of_our_own() -> None:
    net = toys.network(seeds.generator("net"), model="mobilenet-v2")
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    assert [norm for _, norm in clp.by_graph(net)] == norms


def test_clp_leaves_a_norm_alone_that_reads_no_convolution() -> None:
    trunk = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.Flatten())
    for found in (clp.by_graph(trunk), clp.by_registration(trunk)):
        assert [norm for _, norm in found] == [trunk[2]], "the first is before any convolution"


def test_clp_with_a_holdout_takes_the_smallest_coefficient_it_allows() -> None:
    held = case()
    notes = CLPHoldout().defend(held).notes
    tried = [u for u, _ in notes["curve"]]
    assert tried == [1 + k / 2 for k in range(len(tried))] and notes["u"] == tried[-1]
    least = notes["holdout_before"] - 0.03
    assert notes["curve"][-1][1] >= least > max(a for _, a in notes["curve"][:-1])
    nothing = CLPHoldout(most=1.0).defend(held)
    assert nothing.notes["u"] is None
    assert not toys.differing(nothing.model, toys.victim())  # type: ignore[arg-type]
