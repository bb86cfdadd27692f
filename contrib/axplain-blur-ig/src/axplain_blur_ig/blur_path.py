"""The path of an input through its scale space, from blurred to sharp, at the nodes of a quadrature rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.protocols import Points
from axplain.structure import map_tensors
from axplain_blur_ig.scale_space import FIRST_AXIS, ScaleSpace


@dataclass(frozen=True)
class BlurPath:
    """`x` blurred with sigma = max_sigma (1 - a), at n nodes a in [0, 1] with their weights."""

    n: int
    max_sigma: float

    def plan(self, problem: Problem) -> BlurPlan:
        """Settle the nodes."""
        for x in problem.inputs:
            if x.ndim <= FIRST_AXIS:
                raise ArgumentError("x", f"shape {tuple(x.shape)} came", "(batch, channels, space ...) to blur along")
        nodes, weights = gauss_legendre(self.n)
        return BlurPlan(self.n, self.max_sigma, self.max_sigma * (1 - nodes), weights)


@dataclass(frozen=True, eq=False)
class BlurPlan:
    """`sigma` and `weight` of each node."""

    count: int
    max_sigma: float
    sigma: Tensor
    weight: Tensor
    columns: Tensor | None = None

    def draw(self, block: Problem, samples: range) -> Points:
        """Return blurred examples, and how they change along the path: d(sigma)/da is -max_sigma."""
        sigma = self.sigma[samples.start : samples.stop]
        weight = self.weight[samples.start : samples.stop].to(block.device)
        spaces = tuple(ScaleSpace.of(x) for x in block.inputs)
        rows = tuple(space.blurred(sigma).flatten(0, 1) for space in spaces)
        return Points(
            x=map_tensors(lambda row, x: row.to(x.dtype), rows, block.inputs),
            samples=len(samples),
            weight=weight,
            tangent=tuple(-self.max_sigma * space.slope(sigma) for space in spaces),
        )


def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Return n nodes in [0, 1] and their weights, in float64: the eigenvalues of a tridiagonal matrix."""
    k = torch.arange(1, n, dtype=torch.float64, device="cpu")
    beside = k / (4 * k * k - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return (1 + nodes) / 2, vectors[0].square()


@hookimpl
def axplain_plugin() -> type[BlurPath]:
    """Return the class behind `blur_path`."""
    return BlurPath
