"""Walks from the reference to the input, one feature at a time, in drawn orders."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Coefficients, Points, Repeats
from axplain_plugins.removal.repeats import repeats_of_prefixes, shifted, within


@attrs.frozen
class PermutationWalks:
    """n orders of the features; a feature gets what the output rises by when it joins those before it.

    `antithetic`: every other walk is the one before, backwards; such a pair is one independent estimate.
    """

    n: int
    antithetic: bool

    def plan(self, problem: Problem) -> WalkPlan:
        features = problem.features().count
        generator = problem.key.at("walks").generator()
        pairs = max(self.n // 2, 1)
        drawn = pairs if self.antithetic else self.n
        orders = torch.rand(drawn, features, generator=generator, dtype=torch.float64, device="cpu").argsort(1)
        if self.antithetic:
            orders = torch.stack([orders, orders.flip(1)], 1).flatten(0, 1)[: self.n]
        return WalkPlan.of(orders, 2 if self.antithetic else 1)


@attrs.frozen(eq=False)
class WalkPlan:
    """Samples 0 and 1 are all and no features; then, walk by walk, the first 1, 2, ... features of its order.

    `orders`: (walks, features). `each`: walks of one independent estimate.
    """

    count: int
    orders: Tensor
    ranks: Tensor
    each: int
    repeats: Repeats | None
    columns: Tensor | None = None

    @classmethod
    def of(cls, orders: Tensor, each: int) -> WalkPlan:
        walks, features = orders.shape
        ranks = torch.empty_like(orders).scatter_(1, orders, torch.arange(features, device="cpu").expand(walks, -1))
        repeats = shifted(repeats_of_prefixes(orders), 2) if features > 1 else None
        return cls(2 + walks * (features - 1), orders, ranks, each, repeats)

    def draw(self, block: Problem, samples: range) -> Points:
        features = self.orders.shape[1]
        steps = torch.arange(max(samples.start, 2), max(samples.stop, 2), device="cpu") - 2
        walk, size = steps // max(features - 1, 1), steps % max(features - 1, 1) + 1
        ends = torch.tensor([[True], [False]], device="cpu")[min(samples.start, 2) : min(samples.stop, 2)].expand(
            -1, features
        )
        mask = torch.cat([ends, self.ranks[walk] < size[:, None]])
        return Points(
            None,
            len(samples),
            mask=mask.to(block.device),
            coefficients=self._coefficients(walk, size, samples, block.device),
            repeats=within(self.repeats, samples),
        )

    def _coefficients(self, walk: Tensor, size: Tensor, samples: range, device: torch.device) -> Coefficients:
        """The value of the first k features adds to the k-th, and is taken from the next one; the ends close a walk."""
        walks, features = self.orders.shape
        sample = torch.arange(len(walk), device="cpu") + len(samples) - len(walk)
        closing = walk[size == features - 1]
        if features == 1 and samples.stop == self.count:  # no steps: a walk is its two ends
            closing = torch.arange(walks, device="cpu")
        first = torch.arange(walks, device="cpu") // self.each * self.each
        shares = 1.0 / (walks - first).clamp(max=self.each).double()
        gains = [
            (sample, self.orders[walk, size - 1], shares[walk], walk),
            (sample, self.orders[walk, size] if features > 1 else walk, -shares[walk], walk),
            (torch.full_like(closing, -1), self.orders[closing, -1], shares[closing], closing),
            (torch.full_like(closing, -2), self.orders[closing, 0], -shares[closing], closing),
        ]
        where, feature, factor, of = (torch.cat(parts).to(device) for parts in zip(*gains, strict=True))
        done = int(closing[-1]) + 1 if len(closing) else int(walk[0]) if len(walk) else 0
        complete = -(-walks // self.each) if done == walks else done // self.each
        return Coefficients(where, feature, factor, of // self.each, complete)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `permutation_walks`."""
    return PermutationWalks
