"""Tables of coalitions: the plan that draws them, their values until the last is known, and what regressions share."""

from __future__ import annotations

from abc import abstractmethod

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced, Repeats
from axplain.structure import wide
from axplain_plugins.removal.repeats import within


@attrs.frozen(eq=False)
class TablePlan:
    """Masks (samples, features), their weights and how much of what could be drawn was not: (samples,) each."""

    masks: Tensor
    weights: Tensor
    drawn: Tensor | None = None
    repeats: Repeats | None = None
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
            drawn=None if self.drawn is None else self.drawn[rows].to(block.device),
            repeats=within(self.repeats, samples),
        )


@attrs.frozen(eq=False)
class Table:
    """Masks (samples, features), weights and marks of what was drawn (samples,), values (samples, batch)."""

    plan: Plan
    masks: list[Tensor] = attrs.field(factory=list)
    weights: list[Tensor] = attrs.field(factory=list)
    drawn: list[Tensor] = attrs.field(factory=list)
    values: list[Tensor] = attrs.field(factory=list)
    ends: list[tuple[Tensor, Tensor]] = attrs.field(factory=list)

    def add(self, points: Points, answers: Answers) -> None:
        """Add some samples."""
        assert points.mask is not None and points.weight is not None and answers.value is not None, "checked at load"
        self.masks.append(points.mask)
        self.weights.append(points.weight)
        self.drawn.append(torch.zeros_like(points.mask[:, 0]) if points.drawn is None else points.drawn)
        self.values.append(answers.value.view(points.samples, -1))
        if answers.ends is not None and not self.ends:
            self.ends.append(answers.ends)

    def design(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return masks as numbers, weights and marks."""
        dtype = wide(self.masks[0])
        return torch.cat(self.masks).to(dtype), torch.cat(self.weights).to(dtype), torch.cat(self.drawn)

    def whole_values(self) -> Tensor:
        """Return all values, (samples, batch)."""
        return torch.cat(self.values).to(wide(self.values[0]))


@attrs.frozen
class Regression:
    """A model of the values of all coalitions of a plan, fitted when the last of them is known."""

    def start(self, block: Problem, plan: Plan) -> Table:
        return Table(plan)

    def update(self, state: Table, points: Points, answers: Answers) -> Table:
        state.add(points, answers)
        return state

    @abstractmethod
    def finish(self, state: Table, block: Problem) -> Reduced:
        """Return the coefficients."""


def factor_of(matrix: Tensor, coalitions: int, cure: str = "") -> Tensor:
    """Return the Cholesky factor of a regression's matrix, (features, features).

    Raises:
        ArgumentError: the coalitions do not tell all features apart.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    least, most = factor.diagonal().aminmax()
    if int(info) or float(least) < 1e-7 * float(most):
        raise ArgumentError(
            "n_samples", f"the {coalitions} coalitions that were drawn do not tell {len(matrix)} features apart",
            "more of them", cure,
        )  # fmt: skip
    return factor
