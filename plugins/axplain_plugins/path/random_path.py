"""Random points on lines from drawn references to noisy inputs: expected gradients."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.protocols import Points
from axplain.randomness import Key
from axplain.structure import map_tensors, trailing


@attrs.frozen
class RandomPath:
    """`x'_k + alpha (x + noise - x'_k)` with k and alpha uniform: one k for all inputs, so joint laws hold."""

    n: int
    stdev: float | tuple[float, ...]

    def plan(self, problem: Problem) -> RandomPlan:
        inputs = len(problem.inputs)
        stdevs = self.stdev if isinstance(self.stdev, tuple) else (self.stdev,) * inputs
        if len(stdevs) != inputs:
            raise ArgumentError("stdev", f"{len(stdevs)} values came", f"one number, or {inputs}: one for each input")
        generator = problem.key.at("path").generator()
        columns = torch.randint(problem.reference_table().count, (self.n,), generator=generator, device="cpu")
        alphas = torch.rand(self.n, generator=generator, dtype=torch.float64, device="cpu")
        return RandomPlan(self.n, columns, alphas, stdevs, problem.key)


@attrs.frozen(eq=False)
class RandomPlan:
    """The drawn references and positions; noise is drawn with the points."""

    count: int
    columns: Tensor
    alphas: Tensor
    stdevs: tuple[float, ...]
    key: Key

    def draw(self, block: Problem, samples: range) -> Points:
        starts = [block.reference_table().column(int(self.columns[sample])) for sample in samples]
        start = map_tensors(lambda *rows: torch.stack(rows), *starts)
        ends = tuple(self._end(x, i, samples) for i, x in enumerate(block.inputs))
        tangent = map_tensors(torch.sub, ends, start)
        alpha = self.alphas[samples.start : samples.stop]
        x = map_tensors(lambda origin, step: _along(origin, step, alpha), start, tangent)
        return Points(x, len(samples), tangent=tangent)

    def _end(self, x: Tensor, i: int, samples: range) -> Tensor:
        """Return (samples or 1, examples, ...): the input with its noise."""
        stdev = self.stdevs[i]
        if not stdev:
            return x.unsqueeze(0)
        return torch.stack([x + stdev * self.key.at("noise", i, sample).normal(x) for sample in samples])


def _along(origin: Tensor, step: Tensor, alpha: Tensor) -> Tensor:
    return torch.addcmul(origin, trailing(alpha.to(step.device, step.dtype), step), step).flatten(0, 1)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `random_path`."""
    return RandomPath
