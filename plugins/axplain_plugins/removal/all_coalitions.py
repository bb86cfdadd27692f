"""Every coalition of the features, with the weights of an exact value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.protocols import Coefficients, Points
from axplain_plugins.removal.memory import drawn_once, kept


@attrs.frozen
class AllCoalitions:
    """All 2^features coalitions; `value` says how much a feature's joining one of size k counts."""

    value: Literal["shapley", "banzhaf"]
    most: int

    def plan(self, problem: Problem) -> AllPlan:
        features = problem.features().count
        if features > 62 or 2**features > self.most:
            raise ArgumentError(
                "max_evaluations",
                f"{self.most} came and {features} features have 2^{features} coalitions",
                f"at least 2^{features}",
                "Use shapley_value_sampling or kernel_shap, or group elements with feature_mask.",
            )
        return kept(2**features * features, AllCoalitions._plan, self, features, problem.device)

    def _plan(self, features: int, device: torch.device) -> AllPlan:
        weights = [_WEIGHTS[self.value](size, features) for size in range(features)]
        both = [[0.0, *weights], [*(-weight for weight in weights), 0.0]]
        return AllPlan(2**features, features, torch.tensor(both, dtype=torch.float64, device=device))


def _shapley(size: int, features: int) -> float:
    return 1.0 / (features * math.comb(features - 1, size))


def _banzhaf(size: int, features: int) -> float:
    return 0.5 ** (features - 1)


_WEIGHTS: Final[dict[str, Callable[[int, int], float]]] = {"shapley": _shapley, "banzhaf": _banzhaf}


@attrs.frozen(eq=False)
class AllPlan:
    """Sample 0 is all features, sample 1 none, then the others as binary numbers.

    `weights`: (2, features + 1) that a coalition of each size has for a feature in it, and for any other.
    """

    count: int
    features: int
    weights: Tensor
    columns: Tensor | None = None

    @drawn_once
    def draw(self, block: Problem, samples: range) -> Points:
        own = torch.arange(samples.start, samples.stop, device=block.device)
        code = (own - 1) % self.count
        mask = (code[:, None] >> torch.arange(self.features, device=block.device)) & 1 == 1
        joined, missed = self.weights.index_select(1, mask.sum(1)).unsqueeze(2)
        factor = torch.where(mask, joined, missed)
        sample = torch.arange(len(samples), device=block.device)[:, None].expand_as(mask)
        feature = torch.arange(self.features, device=block.device).expand_as(mask)
        return Points(
            None,
            len(samples),
            mask=mask,
            coefficients=Coefficients(sample.flatten(), feature.flatten(), factor.flatten()),
        )


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `all_coalitions`."""
    return AllCoalitions
