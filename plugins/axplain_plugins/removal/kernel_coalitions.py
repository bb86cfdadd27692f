"""Coalitions for least squares with the Shapley kernel: all of them where they fit, else drawn size by size."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.protocols import Points
from axplain_plugins.removal.strata import (
    Stratum,
    all_subsets,
    allotted,
    check_features,
    drawn_subsets,
    rounded,
    strata_of,
)


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
        generator = problem.key.at("coalitions").generator()
        strata = strata_of(features, paired=self.paired, by_leverage=self.law == "leverage")
        expected = allotted(strata, self.n // 2 if self.paired else self.n)
        parts = [
            _taken(*item, features, generator)
            for item in zip(strata, expected, rounded(expected, generator), strict=True)
        ]
        ends = torch.tensor([[True], [False]], device="cpu").expand(-1, features)
        nothing = torch.zeros(2, dtype=torch.float64, device="cpu")
        masks, weights, drawn = [ends], [nothing], [nothing]
        for mask, weight, left in parts:
            both = torch.cat([mask, ~mask]) if self.paired else mask
            masks.append(both)
            weights.append(
                torch.full((len(both),), weight / (2 if self.paired else 1), dtype=torch.float64, device="cpu")
            )
            drawn.append(torch.full((len(both),), left, dtype=torch.float64, device="cpu"))
        merged = _merged(torch.cat(masks), torch.cat(weights), torch.cat(drawn))
        _check_rank(merged[0][2:], self.n)
        return TablePlan(*merged)


def _check_rank(masks: Tensor, n: int) -> None:
    """Refuse before the model is asked what least squares could not solve; many coalitions need no look."""
    count, features = masks.shape
    if features > 1 and count < 8 * features and int(torch.linalg.matrix_rank(masks.double())) < features:
        raise ArgumentError(
            "n_samples", f"the {count} coalitions drawn for n_samples={n} do not tell {features} features apart",
            "more of them",
        )  # fmt: skip


def _taken(
    stratum: Stratum, expected: float, count: int, features: int, generator: torch.Generator
) -> tuple[Tensor, float, float]:
    """Return the subsets of a stratum, what each weighs with its complement, and whether they are all of it."""
    if expected >= stratum.capacity:
        return all_subsets(features, stratum.size, stratum.capacity), stratum.mass / stratum.capacity, 0.0
    masks = drawn_subsets(features, stratum.size, count, stratum.capacity, generator)
    return masks, stratum.mass / max(expected, 1e-300), 1 - count / stratum.capacity


def _merged(masks: Tensor, weights: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return every coalition once, with the weights of its draws together; the ends stay in front."""
    rest, place = torch.unique(masks[2:], dim=0, return_inverse=True)
    total = torch.zeros(len(rest), dtype=torch.float64, device="cpu").index_add_(0, place, weights[2:])
    sampled = torch.zeros(len(rest), dtype=torch.float64, device="cpu").index_put_((place,), drawn[2:])
    return torch.cat([masks[:2], rest]), torch.cat([weights[:2], total]), torch.cat([drawn[:2], sampled])


@attrs.frozen(eq=False)
class TablePlan:
    """A table of coalitions, the full and the empty one first: (samples, features), (samples,), (samples,)."""

    masks: Tensor
    weights: Tensor
    drawn: Tensor
    columns: Tensor | None = None

    @property
    def count(self) -> int:
        return len(self.masks)

    def draw(self, block: Problem, samples: range) -> Points:
        rows = slice(samples.start, samples.stop)
        return Points(
            None,
            len(samples),
            mask=self.masks[rows].to(block.device),
            weight=self.weights[rows].to(block.device),
            drawn=self.drawn[rows].to(block.device),
        )


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `kernel_coalitions`."""
    return KernelCoalitions
