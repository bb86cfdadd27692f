"""The straight line from the reference to the input, at the nodes of a quadrature rule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.protocols import Points
from axplain.structure import map_tensors, trailing

#: rules are computed on the CPU in float64, whatever the default device and dtype
DOUBLE: Final[dict[str, Any]] = {"dtype": torch.float64, "device": "cpu"}


@attrs.frozen
class StraightPath:
    """`x' + alpha (x - x')` at n nodes alpha with their weights; the tangent is `x - x'`."""

    n: int
    rule: str

    def plan(self, problem: Problem) -> PathPlan:
        return PathPlan(self.n, *nodes_and_weights(self.rule, self.n))


@attrs.frozen(eq=False)
class PathPlan:
    """The nodes of one rule."""

    count: int
    nodes: Tensor
    weights: Tensor
    columns: Tensor | None = None

    def draw(self, block: Problem, samples: range) -> Points:
        picked = slice(samples.start, samples.stop)
        start = block.reference_table().column(0)
        tangent = map_tensors(torch.sub, block.inputs, start)
        x = map_tensors(lambda origin, step: line(origin, step, self.nodes[picked]), start, tangent)
        weight = self.weights[picked].to(block.device)
        return Points(x, len(samples), weight=weight, tangent=map_tensors(lambda step: step.unsqueeze(0), tangent))


def line(origin: Tensor, step: Tensor, nodes: Tensor) -> Tensor:
    """Return `origin + alpha step` for each node, sample-major: (nodes * examples, ...)."""
    alpha = trailing(nodes.to(step.device, step.dtype), step.unsqueeze(0))
    return torch.addcmul(origin.unsqueeze(0), alpha, step.unsqueeze(0)).flatten(0, 1)


def nodes_and_weights(rule: str, n: int) -> tuple[Tensor, Tensor]:
    """Return n nodes in [0, 1] and weights that sum to 1, in float64.

    Raises:
        ArgumentError: the trapezoid rule has both ends and needs n >= 2.
    """
    if rule == "trapezoid" and n < 2:
        raise ArgumentError("n_steps", f"{n} came with quadrature='trapezoid'", "at least 2, the two ends")
    nodes, weights = _RULES[rule](n)
    return nodes, weights / weights.sum()


def _evenly(offset: float) -> Callable[[int], tuple[Tensor, Tensor]]:
    def rule(n: int) -> tuple[Tensor, Tensor]:
        return (torch.arange(n, **DOUBLE) + offset) / n, torch.ones(n, **DOUBLE)

    return rule


def _trapezoid(n: int) -> tuple[Tensor, Tensor]:
    weights = torch.ones(n, **DOUBLE)
    weights[[0, -1]] = 0.5
    return torch.linspace(0, 1, n, **DOUBLE), weights


@functools.lru_cache(maxsize=32)
def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Find the roots of the Legendre polynomial by Newton's method from Tricomi's estimate; all roots at once."""
    k = torch.arange(1, n + 1, **DOUBLE)
    x = torch.cos(math.pi * (k - 0.25) / (n + 0.5))
    for _ in range(8):  # quadratic: four are enough for n = 10,000
        value, slope = _legendre(n, x)
        x = x - value / slope
    slope = _legendre(n, x)[1]
    weights = 2 / ((1 - x * x) * slope * slope)
    return ((1 + x) / 2).flip(0), weights.flip(0)


def _legendre(n: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return P_n(x) and its derivative by the three-term recurrence."""
    before, now = torch.ones_like(x), x
    for k in range(2, n + 1):
        before, now = now, ((2 * k - 1) * x * now - (k - 1) * before) / k
    return now, n * (x * now - before) / (x * x - 1)


_RULES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "gauss_legendre": _gauss_legendre,
    "left": _evenly(0.0),
    "right": _evenly(1.0),
    "midpoint": _evenly(0.5),
    "trapezoid": _trapezoid,
}


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `straight_path`."""
    return StraightPath
