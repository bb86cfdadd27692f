"""Float64 oracles that share no code with axplain nor captum: numpy's quadrature nodes, plain autograd, loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Rule = tuple[Any, Any]  # nodes in [0, 1] and weights, arrays of float64
Scalar = Callable[..., Tensor]  # from the input tensors, (rows, ...) each, to (rows,)


def gradients(function: Scalar, *x: Tensor) -> Tensors:
    """Return the gradient of the sum over rows, so one gradient per row; zeros for an input that is not used."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in x]
    found = torch.autograd.grad(function(*leaves).sum(), leaves, allow_unused=True)
    return tuple(
        torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
    )


def rule(name: str, n: int) -> Rule:
    """Return nodes in [0, 1] and weights that sum to 1, from the textbook definition of each rule."""
    if name == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(n)
        return (1 + nodes) / 2, weights / 2
    if name == "trapezoid":
        weights = np.full(n, 1 / (n - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, n), weights
    offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[name]
    return (np.arange(n) + offset) / n, np.full(n, 1 / n)


def single_precision(name: str, n: int) -> Rule:
    """Return the rule as captum 0.9.0 rounds it: float32 weights, and float32 nodes in the Riemann rules."""
    nodes, weights = rule(name, n)
    if name != "gauss_legendre":
        nodes = torch.linspace(float(nodes[0]), float(nodes[-1]), n).double().numpy()
    return nodes, weights.astype(np.float32).astype(np.float64)


def integrated_gradients(function: Scalar, x: Tensors, baseline: Tensors, nodes_and_weights: Rule) -> Tensors:
    """Return integrated gradients by one pass per node."""
    start = tuple(b.expand_as(t) for b, t in zip(baseline, x, strict=True))
    sums = [torch.zeros_like(tensor) for tensor in x]
    for node, weight in zip(*nodes_and_weights, strict=True):
        point = [b + float(node) * (t - b) for b, t in zip(start, x, strict=True)]
        for total, gradient in zip(sums, gradients(function, *point), strict=True):
            total += float(weight) * gradient
    return tuple((t - b) * total for t, b, total in zip(x, start, sums, strict=True))


def expected_gradients(function: Scalar, x: Tensors, baselines: Tensors, n: int = 64) -> Tensors:
    """Return the mean of integrated gradients over the joint rows of the baselines."""
    rows, nodes = range(len(baselines[0])), rule("gauss_legendre", n)
    parts = [integrated_gradients(function, x, tuple(b[k : k + 1] for b in baselines), nodes) for k in rows]
    return tuple(torch.stack(tensors).mean(0) for tensors in zip(*parts, strict=True))


def gaussian_grid(dimensions: int, order: int = 16) -> Iterator[tuple[Tensor, float]]:
    """Yield points and weights that integrate against a standard normal law of few dimensions (Gauss-Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    weights = weights / weights.sum()
    for places in itertools.product(range(order), repeat=dimensions):
        point = torch.tensor([float(nodes[i]) for i in places], dtype=torch.float64)
        yield point, float(np.prod([weights[i] for i in places]))


def noisy_moments(
    attribute: Callable[[Tensor], Tensor], x: Tensor, stdev: float, powers: range, order: int = 16
) -> list[Tensor]:
    """Return E[attribute(x + stdev * noise) ** p] for each power, exact to the order of the grid; x is (batch, d)."""
    sums = [torch.zeros_like(x) for _ in powers]
    for point, weight in gaussian_grid(x.shape[1], order):
        found = attribute(x + stdev * point)
        for total, power in zip(sums, powers, strict=True):
            total += weight * found**power
    return sums
