"""Each feature in turn taken from other examples of the batch."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Coefficients, Points
from axplain.structure import Tensors, map_tensors


@attrs.frozen
class PermutedRows:
    """Sample 0 is x; then, for each of n rounds and each feature, x with that feature of a permuted batch.

    A feature that spans several inputs is permuted in one piece.
    """

    n: int

    def plan(self, problem: Problem) -> PermutedPlan:
        features = problem.features().count
        generator = problem.key.at("permutations").generator()
        drawn = torch.rand(self.n * features, problem.batch, generator=generator, dtype=torch.float64, device="cpu")
        orders = drawn.argsort(1).to(problem.device)
        return PermutedPlan(1 + self.n * features, features, self.n, orders, problem.inputs)


@attrs.frozen(eq=False)
class PermutedPlan:
    """`orders`: (rounds * features, batch) the example that each example takes a feature from, in all of `inputs`."""

    count: int
    features: int
    rounds: int
    orders: Tensor
    inputs: Tensors
    columns: Tensor | None = None

    def draw(self, block: Problem, samples: range) -> Points:
        device = block.device
        own = torch.arange(samples.start, samples.stop, device=device)
        feature = (own - 1) % self.features
        others = self.orders.index_select(0, (own - 1).clamp(min=0))
        others = (others if block.origin is None else others[:, block.origin]).flatten()
        keep = (own[:, None] == 0) | (feature[:, None] != torch.arange(self.features, device=device))
        x = map_tensors(
            lambda mine, x, everyone: torch.where(
                mine, x.unsqueeze(0), everyone.index_select(0, others).view(len(own), *x.shape)
            ).flatten(0, 1),
            block.features().elements(keep),
            block.inputs,
            self.inputs,
        )
        return Points(x, len(samples), coefficients=self._coefficients(own, feature))

    def _coefficients(self, own: Tensor, feature: Tensor) -> Coefficients:
        drops = own > 0
        sample = torch.arange(len(own), device=own.device)[drops]
        factor = torch.full((len(sample),), -1.0 / self.rounds, dtype=torch.float64, device=own.device)
        if len(sample) < len(own):  # sample 0 is among them
            everyone = torch.arange(self.features, device=own.device)
            ones = torch.ones(self.features, dtype=torch.float64, device=own.device)
            return Coefficients(
                torch.cat([torch.zeros_like(everyone), sample]),
                torch.cat([everyone, feature[drops]]),
                torch.cat([ones, factor]),
            )
        return Coefficients(sample, feature[drops], factor)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `permuted_rows`."""
    return PermutedRows
