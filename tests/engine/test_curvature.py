"""Curvature tools against matrices written out in full."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sweeper.core import seeds
from sweeper.core.types import ImageSet
from sweeper.engine import curvature
from tests.support import toys

SMALL = (3, 4, 4)


def rng(name: str = "curvature") -> torch.Generator:
    return seeds.generator("test", name)


class Flat(nn.Sequential):
    """A smooth network of 218 parameters: 48 pixels are averaged to 12."""

    def __init__(self) -> None:
        super().__init__(
            nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)
        )


def mlp() -> Flat:
    """Weights from a fixed draw."""
    model = Flat()
    with torch.no_grad():
        for number, value in enumerate(model.parameters()):
            value.copy_(torch.randn(value.shape, generator=rng(f"weight {number}")) * 0.7)
    return model.eval()


def data(count: int = 40) -> ImageSet:
    return toys.image_set(count, classes=4, shape=SMALL)


def quadratic(eigenvalues: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    square = torch.randn(len(eigenvalues), len(eigenvalues), generator=rng("basis"))
    basis, _ = torch.linalg.qr(square)
    return (basis * eigenvalues) @ basis.T


def exact_hessian(model: nn.Module, images: ImageSet) -> Tensor:
    """All second derivatives of the mean cross-entropy, float32 [P, P]."""
    named = dict(model.named_parameters())
    sizes, shapes = [v.numel() for v in named.values()], [v.shape for v in named.values()]
    x = images.images.float() / 255

    def loss(flat: Tensor) -> Tensor:
        parts = [p.view(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
        logits = functional_call(model, dict(zip(named, parts, strict=True)), (x,))
        return nn.functional.cross_entropy(logits, images.labels)

    point = torch.cat([v.detach().flatten() for v in named.values()])
    found: Tensor = torch.autograd.functional.hessian(loss, point)
    return found


def gradients(model: nn.Module, images: ImageSet) -> Tensor:
    """Per-sample gradients of log p(y|x), [N, P], one sample at a time."""
    rows = []
    for image, label in zip(images.images, images.labels, strict=True):
        score = model(image[None].float() / 255).log_softmax(1)[0, label]
        slopes = torch.autograd.grad(score, list(model.parameters()))
        rows.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(rows)


# The Hessian


@pytest.mark.parametrize("batch", [7, 100])
def test_products_are_those_of_the_exact_hessian(batch: int) -> None:
    model, images = mlp(), data()
    hessian = curvature.Hessian(model, images, toys.CPU, batch=batch)
    vector = torch.randn(hessian.size, generator=rng())
    assert torch.allclose(hessian(vector), exact_hessian(model, images) @ vector, atol=1e-5)
    wanted = nn.functional.cross_entropy(model(images.images.float() / 255), images.labels)
    assert hessian.loss() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_hessian_is_that_of_eval_mode_and_leaves_the_model_alone() -> None:
    model = toys.victim().train().requires_grad_(False)
    before, images = toys.weights(model), toys.image_set(24)
    vector = torch.randn(sum(p.numel() for p in model.parameters()), generator=rng())
    one = curvature.Hessian(model, images, toys.CPU, batch=5)(vector)
    other = curvature.Hessian(model.eval(), images, toys.CPU, batch=24)(vector)
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    assert toys.same(before, toys.weights(model))
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "values", [[5.0, 3.0, 1.0, 0.5, -2.0], [-9.0, 4.0, 1.0, 0.0, 2.0], [-3.0, -2.0, -1.0]]
)
def test_the_largest_eigenvalue_is_found_beside_a_larger_negative_one(values: list[float]) -> None:
    matrix = quadratic(torch.tensor(values))
    found = curvature.largest_eigenvalue(
        lambda v: matrix @ v, len(values), rng(), tolerance=1e-6, most=500
    )
    assert found == pytest.approx(max(values), rel=0.01)


def test_eigenvalue_trace_and_density_of_a_network_are_the_exact_ones() -> None:
    model, images = mlp(), data()
    matrix = exact_hessian(model, images)
    hessian = curvature.Hessian(model, images, toys.CPU)
    wanted = torch.linalg.eigvalsh(matrix)
    found = curvature.largest_eigenvalue(hessian, hessian.size, rng())
    assert found == pytest.approx(float(wanted[-1]), rel=0.01)
    mean, error = curvature.trace(hessian, hessian.size, rng(), vectors=60)
    assert abs(mean - float(matrix.trace())) < 3 * error
    assert error < 0.1 * float(wanted.abs().sum()), "a bound so wide would let any number pass"
    nodes, weights = curvature.lanczos(hessian, hessian.size, rng(), steps=40)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-9) and bool((weights >= 0).all())
    assert float(nodes.max()) == pytest.approx(float(wanted[-1]), rel=1e-3)
    grid, curve = curvature.density(nodes, weights)
    assert len(grid) == 10_000 and float(torch.trapezoid(curve, grid)) == pytest.approx(1, abs=0.01)


def test_lanczos_reproduces_a_small_spectrum_and_stops_when_it_is_exhausted() -> None:
    values = torch.tensor([4.0, 2.0, 2.0, -1.0, 0.0])
    matrix = quadratic(values)
    nodes, weights = curvature.lanczos(lambda v: matrix @ v, 5, rng(), steps=100)
    assert len(nodes) == 4, "a double eigenvalue is one node"
    assert nodes.tolist() == pytest.approx([-1, 0, 2, 4], abs=1e-4)
    matrix = quadratic(torch.ones(6))
    nodes, _ = curvature.lanczos(lambda v: matrix @ v, 6, rng())
    assert nodes.tolist() == pytest.approx([1.0])


def test_the_mean_of_many_lanczos_weights_is_the_density() -> None:
    """One start vector is random: over many, each eigenvalue weighs the same."""
    matrix = quadratic(torch.tensor([3.0, 1.0, -2.0]))
    runs = [curvature.lanczos(lambda v: matrix @ v, 3, rng(f"{k}"))[1] for k in range(300)]
    assert torch.stack(runs).mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.05)


# The Fisher matrix


def test_the_diagonal_is_the_mean_of_squared_gradients_of_single_samples() -> None:
    model, images = mlp(), data()
    rows = gradients(model, images)
    found = curvature.fisher_diagonal(model, images, toys.CPU, chunk=7)
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in model.named_parameters()
    }
    flat = torch.cat([value.flatten() for value in found.values()])
    assert torch.allclose(flat, rows.square().mean(0), rtol=1e-4, atol=1e-7)
    assert bool((flat >= 0).all())
    assert curvature.fisher_trace(model, images, toys.CPU) == pytest.approx(
        float(rows.square().sum(1).mean()), rel=1e-4
    )
    assert float(rows.mean(0).square().sum()) < 0.8 * float(rows.square().sum(1).mean())


def test_only_trainable_parameters_have_a_fisher_diagonal() -> None:
    model = toys.victim().requires_grad_(False)
    model.classifier.requires_grad_(True)
    found = curvature.fisher_diagonal(model, toys.image_set(10), toys.CPU)
    assert set(found) == {"classifier.weight", "classifier.bias"}


def scores(model: nn.Module, images: ImageSet) -> tuple[Tensor, list[Tensor]]:
    logits = model(images.images.float() / 255)
    return curvature.log_likelihood(logits, images.labels), list(model.parameters())


@pytest.mark.parametrize("size", [1, 4, 8])
def test_micro_batches_have_the_squared_norms_of_their_means(size: int) -> None:
    model, images = mlp(), data()
    rows = gradients(model, images)
    means = rows.view(-1, size, rows.shape[1]).mean(1)
    found = curvature.by_micro_batches(*scores(model, images), size)
    assert found.item() == pytest.approx(float(size * means.square().sum(1).mean()), rel=1e-4)
    if size == 1:
        assert found.item() == pytest.approx(float(rows.square().sum(1).mean()), rel=1e-4)


def test_micro_batches_larger_than_the_batch_and_remainders() -> None:
    model, images = mlp(), data(10)
    chosen, weights = scores(model, images)
    whole = curvature.by_micro_batches(chosen, weights, 64)
    assert whole.item() == pytest.approx(10 * curvature.by_batch(chosen, weights).item(), rel=1e-5)
    part = curvature.by_micro_batches(chosen, weights, 4)
    assert part.item() == pytest.approx(
        curvature.by_micro_batches(chosen[:8], weights, 4).item(), rel=1e-5
    )


def test_the_order_of_a_batch_does_not_matter_and_its_labels_do() -> None:
    model, images = mlp(), data()
    found = curvature.by_micro_batches(*scores(model, images), 1).item()
    order = torch.randperm(len(images), generator=rng())
    assert curvature.by_micro_batches(*scores(model, images[order]), 1).item() == pytest.approx(
        found, rel=1e-5
    )
    swapped = ImageSet(images.images, images.labels.roll(1), images.classes)
    other = curvature.by_micro_batches(*scores(model, swapped), 1).item()
    assert abs(other - found) > 0.01 * found


def test_squared_projections_go_to_the_squared_norm_and_plain_ones_to_zero() -> None:
    model, images = mlp(), data()
    chosen, weights = scores(model, images)
    norm = curvature.by_batch(chosen, weights).item()
    rows = gradients(model, images)
    assert norm == pytest.approx(float(rows.mean(0).square().sum()), rel=1e-4)
    generator, draws = torch.Generator().manual_seed(3), 3000
    found = curvature.by_projection(chosen, weights, generator, draws).item()
    assert found == pytest.approx(norm, rel=4 * (2 / draws) ** 0.5)
    single = [curvature.by_projection(chosen, weights, generator, 1).item() for _ in range(20)]
    assert min(single) >= 0
    slopes = curvature.gradient_of(chosen.mean(), weights)
    plain = torch.stack([curvature.projections(slopes, generator).sum() for _ in range(draws)])
    assert abs(plain.mean().item()) < 4 * norm**0.5 / draws**0.5


@pytest.mark.parametrize("estimator", ["micro", "signs", "batch"])
def test_the_gradient_of_an_estimate_agrees_with_finite_differences(estimator: str) -> None:
    model, images = mlp().double(), data(8)
    x, signs = images.images.double() / 255, torch.tensor([1.0, -1] * 4, dtype=torch.float64)

    def value() -> Tensor:
        chosen, weights = (
            curvature.log_likelihood(model(x), images.labels),
            list(model.parameters()),
        )
        if estimator == "micro":
            return curvature.by_micro_batches(chosen, weights, 2)
        if estimator == "signs":
            return curvature.by_rademacher(chosen, weights, signs)
        return curvature.by_batch(chosen, weights)

    weight = model[2].weight
    (slope,) = torch.autograd.grad(value(), [weight])
    for place in [(0, 0), (3, 7), (11, 2)]:
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += step
            sides.append(value().item())
            with torch.no_grad():
                weight[place] -= step
        assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(slope[place].item(), rel=1e-4)


def test_a_side_pass_moves_no_statistic_and_normalises_as_training_does() -> None:
    model = toys.victim().train()
    model.add_module("drop", nn.Dropout(0.5))
    x = toys.image_set(20).images.float() / 255
    before = toys.weights(model)
    with curvature.side_pass(model):
        found = model(x)
        assert not model.drop.training
    assert toys.same(before, toys.weights(model)), "num_batches_tracked included"
    assert model.drop.training
    assert torch.allclose(model(x), found, atol=1e-5), "the batch's own statistics"
    assert not toys.same(before, toys.weights(model)), "and afterwards they move again"


def test_attention_can_be_differentiated_twice() -> None:
    model = toys.network(rng("vit"), shape=toys.QUARTER, model="vit-tiny", depth=1).eval()
    images = toys.image_set(4)
    hessian = curvature.Hessian(model, images, toys.CPU)
    assert bool(hessian(torch.randn(hessian.size, generator=rng())).isfinite().all())


def test_a_negative_eigenvalue_of_larger_magnitude_does_not_end_the_search() -> None:
    """A random vector lies almost whole in the bulk about zero, which must not be taken for it."""
    for largest in (300.0, 3.0):
        values = torch.linspace(-0.01, 0.01, 20_000)
        values[0], values[1] = -400.0, largest
        found = curvature.largest_eigenvalue(
            lambda vector, values=values: values * vector, len(values), rng()
        )
        assert found == pytest.approx(largest, rel=0.01)
