"""Hessian and Fisher matrix against dense float64 derivatives."""

from __future__ import annotations

import torch
from torch import Generator

from sweeper.engine import curvature
from tests.reference.golden import Golden, load
from tests.support.toys import CPU


def hessian(z: Golden, batch: int = 60) -> curvature.Hessian:
    return curvature.Hessian(z.net(), z.data(), CPU, batch=batch)


def start(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def test_hessian() -> None:
    z = load("defenses/curvature")
    product = hessian(z, batch=25)
    z.agree("mean loss", product.loss(), "loss", within=1e-6)
    z.agree("Hessian times a vector", product(z["vector"]), "hv", within=1e-5, relative=True)
    z.agree(
        "the same beside PyHessian's",
        product(z["vector"]),
        "hv_pyhessian",
        within=1e-5,
        relative=True,
    )
    one = torch.zeros(product.size).index_fill_(0, torch.tensor([7]), 1.0)
    z.agree("an entry of its diagonal", product(one)[7], z["diagonal"][7], within=1e-5)
    top = z["top_vector"]
    z.agree(
        "Hessian times its first eigenvector",
        product(top.float()),
        top * z["eigenvalues"][-1],
        within=1e-5,
        relative=True,
    )


def test_eigenvalues() -> None:
    z = load("defenses/curvature")
    product, exact = hessian(z), z["eigenvalues"]
    found = [curvature.largest_eigenvalue(product, product.size, start(k)) for k in range(5)]
    z.agree(
        "largest eigenvalue from five starts",
        found,
        exact[-1].expand(5),
        within=1e-3,
        relative=True,
    )
    z.agree(
        "largest eigenvalue beside PyHessian's",
        found,
        "eigen_pyhessian",
        within=1e-3,
        relative=True,
    )
    nodes, _ = curvature.lanczos(product, product.size, start(0), steps=30)
    ends = torch.stack([nodes.min(), nodes.max()])
    z.agree("ends of Lanczos' spectrum", ends, exact[[0, -1]], within=1e-4, relative=True)


def test_trace() -> None:
    z = load("defenses/curvature")
    product = hessian(z)
    mean, error = curvature.trace(product, product.size, start(0), vectors=30)
    wanted = float(z.arrays["trace"])
    z.agree("trace of the Hessian in standard errors", (mean - wanted) / error, 0.0, within=5.0)


def test_fisher() -> None:
    z = load("defenses/curvature")
    model, data = z.net(), z.data()
    found = curvature.fisher_diagonal(model, data, CPU)
    ours = torch.cat([found[name].flatten() for name, _ in model.named_parameters()])
    z.agree("Fisher diagonal", ours, "fisher_diagonal", within=1e-5, relative=True)
    total = curvature.fisher_trace(model, data, CPU)
    z.agree("its trace", total, "fisher_trace", within=1e-5, relative=True)
