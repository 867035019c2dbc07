"""How sharp a minimum is: Hessian and Fisher matrix of a model's loss, without ever forming them.

The Hessian is that of the mean cross-entropy over a fixed set of images, with the model in eval
mode: largest eigenvalue by power iteration, trace by Hutchinson's estimator, spectral density by
Lanczos. Compare models on identical images only, and print the loss beside: a model that fits badly
is sharp too. The Fisher matrix has per-sample gradients `g = grad log p(y|x)`: its diagonal is the
mean of their squares, its trace the mean of their squared norms. The estimators of the trace at the
end are cheap and differentiable, for use as a penalty while training.

All of it in single precision: bfloat16 has too few digits for second derivatives.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sweeper.core.types import Samples
from sweeper.engine import task as tasks
from sweeper.engine.task import Batch

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix as its product with a vector [P]."""


@contextlib.contextmanager
def second_order(device: torch.device) -> Iterator[None]:
    """Single precision, and attention that can be differentiated twice."""
    with (
        torch.autocast(device.type, enabled=False),
        nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
    ):
        yield


@contextlib.contextmanager
def side_pass(model: nn.Module, *, running: bool = False) -> Iterator[None]:
    """A forward pass beside the training one: no running statistic moves, nothing is dropped.

    A BatchNorm in train mode still normalises by the batch, unless `running` has it do so by its
    running statistics.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    tracked = [part.track_running_stats for part in norms]
    kinds = (
        (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
        if running
        else nn.modules.dropout._DropoutNd
    )
    still = [part for part in model.modules() if isinstance(part, kinds)]
    modes = [part.training for part in still]
    for part in still:
        part.eval()
    for norm in norms:
        norm.track_running_stats = not norm.training and norm.track_running_stats
    try:
        yield
    finally:
        for norm, flag in zip(norms, tracked, strict=True):
            norm.track_running_stats = flag
        for part, mode in zip(still, modes, strict=True):
            part.train(mode)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


# The Hessian


class Hessian:
    """The loss Hessian of a model on fixed images; call it to multiply by a vector [P]."""

    def __init__(
        self, model: nn.Module, data: Samples, device: torch.device, *, batch: int = 250
    ) -> None:
        """Take a copy of the model, in eval mode, with all its parameters.

        Args:
            model: Left as it is.
            data: On these images, without augmentation.
            device: Where to compute.
            batch: Images of which a graph is kept at a time; changes no more than rounding.
        """
        self.model = copy.deepcopy(model).to(device).float().eval().requires_grad_(True)
        self.weights = [*self.model.parameters()]
        self.size = sum(weight.numel() for weight in self.weights)
        self.device = device
        self._parts, self._count = data.split(batch), len(data)

    def _losses(self) -> Iterator[Tensor]:
        """Each batch's share of the mean loss."""
        for part in self._parts:
            task = tasks.of(part)
            batch = task.plain(part, self.device)
            output = task.forward(self.model, batch)
            yield task.loss(output, batch, reduction="sum").div(self._count)

    def loss(self) -> float:
        """The mean loss itself."""
        with torch.no_grad():
            return torch.stack([*self._losses()]).sum().item()

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply by a vector [P]; float [P] on the device."""
        pieces = vector.to(self.device).split([weight.numel() for weight in self.weights])
        shaped = [p.view_as(w) for p, w in zip(pieces, self.weights, strict=True)]
        total = torch.zeros(self.size, device=self.device, dtype=vector.dtype)
        with second_order(self.device):
            for loss in self._losses():
                gradients = torch.autograd.grad(loss, self.weights, create_graph=True)
                products = torch.autograd.grad(
                    gradients, self.weights, shaped, materialize_grads=True
                )
                total += torch.cat([part.flatten() for part in products])
        return total


def largest_eigenvalue(
    product: Product, size: int, rng: Generator, *, most: int = 100, tolerance: float = 1e-4
) -> float:
    """The algebraically largest eigenvalue, by power iteration from a Gaussian vector.

    Stops at a relative change of the Rayleigh quotient below `tolerance`, or after `most` products.
    The released scripts of FIP stop at 1e-3: 1.5 % short of the exact value on a tanh network of
    208 weights, where 1e-4 is within 1 % (`tests/engine/test_curvature.py`).
    The iteration goes to the eigenvalue of largest magnitude; where that is negative, ARPACK finds
    the largest: shifted power iteration takes the bulk about zero for it.
    """
    vector = torch.randn(size, generator=rng)
    vector = vector / vector.norm()
    value = 0.0
    for _ in range(most):
        multiplied = product(vector)
        vector = vector.to(multiplied.device)
        before, value = value, torch.dot(vector, multiplied).item()
        norm = multiplied.norm()
        if abs(value - before) < tolerance * abs(before) or norm == 0:
            break
        vector = multiplied / norm
    return value if value >= 0 else _largest(product, size, rng, tolerance)


def _largest(product: Product, size: int, rng: Generator, tolerance: float) -> float:
    """The algebraically largest eigenvalue, by ARPACK; it keeps 20 vectors [P]."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    def multiplied(vector: Any) -> Any:
        given = torch.from_numpy(vector.astype("float32").ravel())
        return product(given).cpu().numpy()

    if size < 3:  # ARPACK wants more rows than eigenvalues
        columns = [product(row).cpu() for row in torch.eye(size)]
        return float(torch.linalg.eigvalsh(torch.stack(columns)).max())
    start = torch.randn(size, generator=rng).numpy()
    operator = LinearOperator((size, size), multiplied, dtype="float32")
    values = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)
    return float(values[0])


def trace(product: Product, size: int, rng: Generator, *, vectors: int = 50) -> tuple[float, float]:
    """The trace and its standard error, by Hutchinson's estimator with Rademacher vectors."""
    estimates = []
    for _ in range(vectors):
        signs = torch.randint(2, (size,), generator=rng) * 2.0 - 1
        multiplied = product(signs)
        estimates.append(torch.dot(signs.to(multiplied.device), multiplied))
    values = torch.stack(estimates).double()
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def lanczos(
    product: Product, size: int, rng: Generator, *, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Nodes and weights that stand for the spectrum: eigenvalues of a `steps` x `steps` matrix.

    Full re-orthogonalisation, one Gaussian start vector; the basis takes `steps` x P numbers.

    Returns:
        (nodes, weights), float64 [at most steps] on the CPU; the weights sum to 1.
    """
    from scipy.linalg import eigh_tridiagonal

    vector = torch.randn(size, generator=rng)
    basis: list[Tensor] = [vector / vector.norm()]
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    for step in range(min(steps, size)):
        multiplied = product(basis[-1])
        basis[-1] = basis[-1].to(multiplied.device)
        diagonal.append(torch.dot(basis[-1], multiplied))
        orthonormal = torch.stack(basis)
        for _ in range(2):  # once leaves rounding of the order it removes
            multiplied = multiplied - orthonormal.T @ (orthonormal @ multiplied)
        norm = multiplied.norm()
        if step + 1 == min(steps, size) or norm < 1e-6 * torch.stack(diagonal).abs().max():
            break
        off_diagonal.append(norm)
        basis.append(multiplied / norm)
    values = [
        torch.stack(part).double().cpu() if part else torch.zeros(0)
        for part in (diagonal, off_diagonal)
    ]
    nodes, vectors = eigh_tridiagonal(values[0].numpy(), values[1].numpy())
    return torch.from_numpy(nodes), torch.from_numpy(vectors[0] ** 2)


def density(
    nodes: Tensor, weights: Tensor, *, points: int = 10_000, sharpness: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The spectral density: a Gaussian of variance `sharpness * max(1, range)` at every node.

    Args:
        nodes: As `lanczos` returns them.
        weights: Likewise.
        points: Of the grid, which reaches 0.1 beyond the nodes to either side.
        sharpness: Variance for a range of at most 1.

    Returns:
        (grid, density), float64 [points].
    """
    low, high = nodes.min(), nodes.max()
    variance = sharpness * max(1.0, float(high - low))
    grid = torch.linspace(float(low) - 0.1, float(high) + 0.1, points, dtype=torch.float64)
    curve = torch.zeros_like(grid)
    for node, weight in zip(nodes, weights, strict=True):
        curve += weight * torch.exp(-((grid - node) ** 2) / (2 * variance))
    return grid, curve / (2 * torch.pi * variance) ** 0.5


# The Fisher matrix


def fisher_diagonal(
    model: nn.Module, data: Samples, device: torch.device, *, chunk: int = 16
) -> dict[str, Tensor]:
    """The exact diagonal of the empirical Fisher matrix: the labels given, in the model's mode.

    Args:
        model: In eval mode, as samples of a batch must not depend on each other.
        data: On these images, without augmentation.
        device: Where to compute.
        chunk: Per-sample gradients held at a time; changes no more than rounding.

    Returns:
        Trainable parameter's name -> mean over samples of the squared gradient, in its shape.
    """
    values = {name: value.detach() for name, value in trainable(model).items()}

    task = tasks.of(data)

    def log_probability(
        weights: Mapping[str, Tensor], inputs: Tensor, labels: Tensor, more: dict[str, Tensor]
    ) -> Tensor:
        one = {name: value[None] for name, value in more.items()}
        index = torch.zeros(1, dtype=torch.int64, device=device)
        batch = Batch(inputs[None], labels[None], index, 0, 0, data.task, one)

        def weighted(*given: Tensor) -> Any:
            return torch.func.functional_call(model, dict(weights), given)

        output = task.forward(weighted, batch)
        return task.scores(output, batch)[0]

    gradients_of = torch.func.vmap(torch.func.grad(log_probability), in_dims=(None, 0, 0, 0))
    total = {name: torch.zeros_like(value) for name, value in values.items()}
    with second_order(device):
        for part in data.split(chunk):
            batch = task.plain(part, device)
            gradients = gradients_of(values, batch.inputs, batch.labels, dict(batch.more))
            for name, gradient in gradients.items():
                total[name] += gradient.square().sum(0)
    return {name: value / len(data) for name, value in total.items()}


def fisher_trace(
    model: nn.Module, data: Samples, device: torch.device, *, chunk: int = 16
) -> float:
    """The exact trace of the empirical Fisher matrix; see `fisher_diagonal`."""
    diagonal = fisher_diagonal(model, data, device, chunk=chunk)
    return torch.stack([value.double().sum() for value in diagonal.values()]).sum().item()


# Estimators of its trace that can be differentiated


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """`log p(y|x)` [B]: what each sample's logits [B, K] say of its label (int64 [B])."""
    return functional.log_softmax(logits, 1).gather(1, labels[:, None]).flatten()


def sampled_labels(logits: Tensor, rng: Generator) -> Tensor:
    """Draw labels from the softmax of logits [..., K] (Gumbel's trick, on any device); int64."""
    uniform = torch.rand(logits.shape, generator=rng).clamp(1e-9, 1 - 1e-7)
    return (logits - (-uniform.log()).log().to(logits.device)).argmax(-1)


def gradient_of(value: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a scalar, which can be differentiated again."""
    return list(torch.autograd.grad(value, weights, create_graph=True))


def squared_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The squared norm of a gradient in pieces."""
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum()


def by_micro_batches(log_likelihoods: Tensor, weights: Sequence[Tensor], size: int = 8) -> Tensor:
    """E1: squared gradient norms of micro-batches; mean `Tr F + (size - 1) |mean g|^2`.

    Args:
        log_likelihoods: [B], as `log_likelihood` returns them; what fills no micro-batch is left
            out.
        weights: The parameters the matrix is over.
        size: Samples of a micro-batch; at 1 the estimate is exact.
    """
    size = min(size, len(log_likelihoods))
    parts = log_likelihoods[: len(log_likelihoods) // size * size].view(-1, size).mean(1)
    return size * torch.stack([squared_norm(gradient_of(part, weights)) for part in parts]).mean()


def by_rademacher(log_likelihoods: Tensor, weights: Sequence[Tensor], signs: Tensor) -> Tensor:
    """Random signs cancel the products of different samples (Hutchinson): the mean is Tr F.

    Args:
        log_likelihoods: [B], as `log_likelihood` returns them.
        weights: The parameters the matrix is over.
        signs: [B] of independent -1 and 1; over all of them the mean of the estimates is
            `mean_i |grad log p(y_i|x_i)|^2` exactly.
    """
    return squared_norm(gradient_of((signs * log_likelihoods).sum(), weights)) / len(
        log_likelihoods
    )


def by_projection(
    log_likelihoods: Tensor, weights: Sequence[Tensor], rng: Generator, draws: int = 20
) -> Tensor:
    """E2: the mean of `(v . g)^2` over Gaussian v and the batch gradient g; its mean is |g|^2.

    Args:
        log_likelihoods: [B], as `log_likelihood` returns them.
        weights: The parameters the matrix is over.
        rng: On the device of the weights.
        draws: Vectors v.
    """
    gradients = gradient_of(log_likelihoods.mean(), weights)
    return torch.stack([projections(gradients, rng).sum().square() for _ in range(draws)]).mean()


def by_batch(log_likelihoods: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """E3: the squared norm of the batch gradient, the limit of E2."""
    return squared_norm(gradient_of(log_likelihoods.mean(), weights))


def projections(gradients: Sequence[Tensor], rng: Generator) -> Tensor:
    """Inner products with one Gaussian vector, one a piece of the gradient."""
    return torch.stack(
        [
            (gradient * torch.randn(gradient.shape, generator=rng, device=gradient.device)).sum()
            for gradient in gradients
        ]
    )


def as_released(
    logits: Tensor, labels: Tensor, weights: Sequence[Tensor], rng: Generator, draws: int = 20
) -> Tensor:
    """What FIP's released code computes in place of the trace: a number of mean zero.

    Every sample is scored with every label of the batch; inner products are not squared; partial
    sums over the P parameter tensors are added up, so that the first counts P times, the last once.

    Args:
        logits: [B, K].
        labels: int64 [B].
        weights: The parameters, in the model's order.
        rng: On the device of the weights.
        draws: Gaussian vectors, of which the mean is taken.
    """
    gradients = gradient_of(logits.log_softmax(1)[:, labels].mean(), weights)
    sums = [projections(gradients, rng).cumsum(0).sum() for _ in range(draws)]
    return torch.stack(sums).mean()
