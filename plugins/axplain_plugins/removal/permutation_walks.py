"""Walks from the reference to the input, one feature at a time, in drawn orders."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Coefficients, Points, Repeats
from axplain.randomness import Key
from axplain_plugins.removal.memory import drawn_once, kept
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
        return kept(self.n * features, PermutationWalks._plan, self, features, problem.key.at("walks"))

    def _plan(self, features: int, key: Key) -> WalkPlan:
        generator = key.generator()
        pairs = max(self.n // 2, 1)
        drawn = pairs if self.antithetic else self.n
        orders = torch.rand(drawn, features, generator=generator, dtype=torch.float64, device="cpu").argsort(1)
        if self.antithetic:
            orders = torch.stack([orders, orders.flip(1)], 1).flatten(0, 1)[: self.n]
        return WalkPlan.of(orders, 2 if self.antithetic else 1)


@attrs.frozen(eq=False)
class WalkPlan:
    """Samples 0 and 1 are all and no features; then, walk by walk, the first 1, 2, ... features of its order.

    `orders`: (walks, features). `ranks`: the place of each feature in each. `each`: walks of one independent estimate,
    of which a walk has its share, (walks,).
    """

    count: int
    orders: Tensor
    ranks: Tensor
    each: int
    shares: Tensor
    repeats: Repeats | None
    columns: Tensor | None = None

    @property
    def features(self) -> int:
        return self.orders.shape[1]

    @classmethod
    def of(cls, orders: Tensor, each: int) -> WalkPlan:
        walks, features = orders.shape
        ranks = torch.empty_like(orders).scatter_(1, orders, torch.arange(features, device="cpu").expand(walks, -1))
        repeats = shifted(repeats_of_prefixes(orders, ranks), 2) if features > 1 else None
        shares = torch.full((walks,), 1.0 / each, dtype=torch.float64, device="cpu")
        if walks % each:
            shares[-(walks % each) :] = 1.0 / (walks % each)
        return cls(2 + walks * (features - 1), orders, ranks, each, shares, repeats)

    @drawn_once
    def draw(self, block: Problem, samples: range) -> Points:
        features = self.orders.shape[1]
        steps = torch.arange(max(samples.start, 2), max(samples.stop, 2), device="cpu") - 2
        walk, size = steps // max(features - 1, 1), steps % max(features - 1, 1) + 1
        mask = self.ranks.index_select(0, walk) < size[:, None]
        if samples.start < 2:
            ends = torch.tensor([[True], [False]], device="cpu")[samples.start : min(samples.stop, 2)]
            mask = torch.cat([ends.expand(-1, features), mask])
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
        orders, place, share = self.orders.view(-1), walk * features + size, self.shares.index_select(0, walk)
        total = self.shares.index_select(0, closing)
        gains = [
            (sample, orders.index_select(0, place - 1), share, walk),
            (sample, orders.index_select(0, place) if features > 1 else walk, -share, walk),
            (torch.full_like(closing, -1), self.orders[:, -1].index_select(0, closing), total, closing),
            (torch.full_like(closing, -2), self.orders[:, 0].index_select(0, closing), -total, closing),
        ]
        where, feature, factor, of = (torch.cat(parts).to(device) for parts in zip(*gains, strict=True))
        done = int(closing[-1]) + 1 if len(closing) else int(walk[0]) if len(walk) else 0
        complete = -(-walks // self.each) if done == walks else done // self.each
        return Coefficients(where, feature, factor, of // self.each, complete)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `permutation_walks`."""
    return PermutationWalks
