"""Coalitions for least squares with the Shapley kernel: all of them where they fit, else drawn size by size."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.randomness import Key
from axplain_plugins.removal.memory import kept
from axplain_plugins.removal.repeats import distinct
from axplain_plugins.removal.strata import (
    MOST_RANKED,
    allotted,
    check_features,
    random_subsets,
    rounded,
    strata_of,
    subsets_at,
)
from axplain_plugins.removal.table import TablePlan


@attrs.frozen
class KernelCoalitions:
    """n coalitions beside the empty and the full one, each with its weight.

    Every size keeps its weight in the kernel. A size whose coalitions all fit is used whole, each exactly once. The
    others are drawn, by `law`: as often as they weigh (kernel), or every size alike (leverage). `paired`: with the
    complement of each.
    """

    n: int
    law: Literal["kernel", "leverage"]
    paired: bool

    def plan(self, problem: Problem) -> TablePlan:
        features = problem.features().count
        check_features(features)
        return kept(self.n * features, KernelCoalitions._plan, self, features, problem.key.at("coalitions"))

    def _plan(self, features: int, key: Key) -> TablePlan:
        masks, weights, drawn = self._drawn(features, key.generator())
        if self.paired:
            masks, weights, drawn = torch.cat([masks, ~masks]), weights.repeat(2) / 2, drawn.repeat(2)
        masks, weights, drawn = _merged(masks, weights, drawn)
        _check_rank(masks, self.n)
        ends = torch.tensor([[True], [False]], device="cpu").expand(-1, features)
        nothing = torch.zeros(2, dtype=torch.float64, device="cpu")
        return TablePlan(torch.cat([ends, masks]), torch.cat([nothing, weights]), torch.cat([nothing, drawn]))

    def _drawn(self, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return coalitions, one of each pair, what each weighs with its complement, and how much is left to draw."""
        strata = strata_of(features, paired=self.paired, by_leverage=self.law == "leverage")
        shares = allotted(strata, self.n // 2 if self.paired else self.n)
        by_rank, at_random, masks = [], [], []
        for stratum, share, count in zip(strata, shares, rounded(shares, generator), strict=True):
            whole = share >= stratum.capacity
            taken = stratum.capacity if whole else count
            entry = (stratum.size, taken, stratum.mass / max(share, 1e-300), 1 - taken / stratum.capacity)
            if whole or stratum.capacity <= MOST_RANKED:
                ranks = torch.randperm(stratum.capacity, generator=generator, device="cpu")[:taken]
                masks.append(subsets_at(ranks, features, stratum.size))
                by_rank.append(entry)
            else:
                at_random.append(entry)
        table = torch.tensor(by_rank + at_random, dtype=torch.float64, device="cpu").view(-1, 4)
        sizes, weights, left = table[:, [0, 2, 3]].repeat_interleave(table[:, 1].long(), 0).unbind(1)
        ranked = sum(len(mask) for mask in masks)
        masks.append(random_subsets(sizes[ranked:], features, generator))
        return torch.cat(masks), weights, left


def _check_rank(masks: Tensor, n: int) -> None:
    """Refuse before the model is asked what least squares could not solve; many coalitions need no look."""
    count, features = masks.shape
    if features > 1 and count < 8 * features and int(torch.linalg.matrix_rank(masks.double())) < features:
        raise ArgumentError(
            "n_samples", f"the {count} coalitions drawn for n_samples={n} do not tell {features} features apart",
            f"more of them: {4 * features} nearly always do",
        )  # fmt: skip


def _merged(masks: Tensor, weights: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return every coalition once, in rising order, with the weights of its draws together."""
    first, place = distinct(masks)
    total = torch.zeros(len(first), dtype=torch.float64, device="cpu").index_add_(0, place, weights)
    return masks[first], total, drawn[first]


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `kernel_coalitions`."""
    return KernelCoalitions
