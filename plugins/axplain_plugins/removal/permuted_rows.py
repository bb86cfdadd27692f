"""Each feature in turn taken from other examples of the batch."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Coefficients, Points
from axplain.randomness import Key
from axplain.structure import Tensors, map_tensors
from axplain_plugins.removal.memory import kept


@attrs.frozen
class PermutedRows:
    """Sample 0 is x; then, for each of n rounds and each feature, x with that feature of a permuted batch.

    A feature that spans several inputs is permuted in one piece.
    """

    n: int

    def plan(self, problem: Problem) -> PermutedPlan:
        features, batch = problem.features().count, problem.batch
        count = self.n * features
        orders = kept(count * batch, _orders, count, batch, problem.key.at("permutations"), problem.device)
        return PermutedPlan(1 + count, features, self.n, orders, problem.inputs)


def _orders(count: int, batch: int, key: Key, device: torch.device) -> Tensor:
    drawn = torch.rand(count, batch, generator=key.generator(), dtype=torch.float64, device="cpu")
    return drawn.argsort(1).to(device)


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
        order = torch.arange(samples.start - 1, samples.stop - 1, device=device)
        feature = order  # sample 0, which is x, is that of none
        if self.rounds > 1:
            feature = torch.where(order < 0, order, order % self.features)
        others = self.orders.index_select(0, order.clamp(min=0))
        others = others if block.origin is None else others[:, block.origin]
        taken = feature[:, None] == torch.arange(self.features, device=device)
        x = map_tensors(
            lambda taken, mine, all_: _with_others(mine, all_, taken, others),
            block.features().elements(taken),
            block.inputs,
            self.inputs,
        )
        whole, asked = len(samples) == self.count, (samples, self.features, self.rounds, device)
        coefficients = kept(self.count, _coefficients, *asked) if whole else _coefficients(*asked)
        return Points(x, len(samples), coefficients=coefficients)


def _coefficients(samples: range, features: int, rounds: int, device: torch.device) -> Coefficients:
    """Return what each sample counts for its feature; sample 0, which is x, counts once for all of them."""
    whole = 1 if samples.start == 0 else 0
    sample = torch.arange(whole, len(samples), device=device)
    feature = (sample + samples.start - 1) % features
    factor = torch.full((len(sample),), -1.0 / rounds, dtype=torch.float64, device=device)
    if not whole:
        return Coefficients(sample, feature, factor)
    everyone = torch.arange(features, device=device)
    ones = torch.ones(features, dtype=torch.float64, device=device)
    return Coefficients(
        torch.cat([torch.zeros_like(everyone), sample]), torch.cat([everyone, feature]), torch.cat([ones, factor])
    )


def _with_others(x: Tensor, everyone: Tensor, taken: Tensor, others: Tensor) -> Tensor:
    """Return (samples * batch, ...) rows of x in which the elements of `taken` are those of other examples.

    `taken`: (samples, 1 or batch, ...). `others`: (samples, batch) which ones. Most elements are x's own.
    """
    rows = x.expand(len(taken), *x.shape).clone(memory_format=torch.contiguous_format)  # a view would be the user's x
    whole = taken.expand(*taken.shape[:2], *x.shape[1:])  # masks that are alike along an axis have it once
    sample, example, element = (place[:, None] for place in whole.reshape(*taken.shape[:2], -1).nonzero().unbind(1))
    if taken.shape[1] == 1:
        example = torch.arange(len(x), device=x.device)[None]
    flat = everyone.reshape(len(everyone), -1)
    values = flat.take(others[sample, example] * flat.shape[1] + element)
    rows.view(len(taken), len(x), -1)[sample, example, element] = values
    return rows.flatten(0, 1)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `permuted_rows`."""
    return PermutedRows
