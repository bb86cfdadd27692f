"""Gaussian copies of the input, for SmoothGrad and its relatives."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.protocols import Points
from axplain.randomness import Key
from axplain.structure import map_tensors


@attrs.frozen
class GaussianNoise:
    """`x + stdev * noise`, n copies; one generator per sample and tensor, shared by the examples of a batch."""

    n: int
    stdev: float | tuple[float, ...]
    unit: Literal["absolute", "range"]

    def plan(self, problem: Problem) -> NoisePlan:
        inputs = len(problem.inputs)
        stdevs = self.stdev if isinstance(self.stdev, tuple) else (self.stdev,) * inputs
        if len(stdevs) != inputs:
            raise ArgumentError("stdev", f"{len(stdevs)} values came", f"one number, or {inputs}: one for each input")
        return NoisePlan(self.n, stdevs, self.unit == "range", problem.key)


@attrs.frozen(eq=False)
class NoisePlan:
    """The copies of one question."""

    count: int
    stdevs: tuple[float, ...]
    of_range: bool
    key: Key
    columns: Tensor | None = None

    def draw(self, block: Problem, samples: range) -> Points:
        scales = [self._scale(x, stdev) for x, stdev in zip(block.inputs, self.stdevs, strict=True)]
        copies = []
        for sample in samples:
            keys = [self.key.at("noise", i, sample) for i in range(len(scales))]
            copies.append(
                tuple(
                    x + scale * key.normal(x) if stdev else x
                    for x, scale, key, stdev in zip(block.inputs, scales, keys, self.stdevs, strict=True)
                )
            )
        return Points(map_tensors(lambda *rows: torch.cat(rows), *copies), samples=len(samples))

    def _scale(self, x: Tensor, stdev: float) -> float | Tensor:
        if not self.of_range:
            return stdev
        flat = x.flatten(1)
        return (stdev * (flat.amax(1) - flat.amin(1))).view(-1, *[1] * (x.ndim - 1))


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `gaussian_noise`."""
    return GaussianNoise
