"""Weighted least squares over coalitions whose coefficients sum to F(x) - F(x'), in closed form."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced
from axplain_plugins.removal.table import Table


@attrs.frozen
class ConstrainedLeastSquares:
    """`argmin_phi sum_s w_s (v_s - F(x') - z_s phi)^2` with `sum phi = F(x) - F(x')`, factorised once for the batch."""

    def start(self, block: Problem, plan: Plan) -> Table:
        return Table()

    def update(self, state: Table, points: Points, answers: Answers) -> Table:
        state.add(points, answers)
        return state

    def finish(self, state: Table, block: Problem) -> Reduced:
        masks, weights, drawn, values = state.whole(block)
        clean, absent = (end.to(values) for end in state.ends[0])
        phi, errors = solved(masks[2:], weights[2:], drawn[2:], values[2:] - absent, clean - absent)
        groups = block.features()
        return Reduced(groups.spread(phi.T), None if errors is None else groups.spread(errors.T), phi.T)


def solved(z: Tensor, w: Tensor, drawn: Tensor, y: Tensor, total: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return (features, batch) coefficients and their standard errors, None where nothing was drawn.

    With A = Z'WZ and G = A^-1 - A^-1 1 1' A^-1 / 1' A^-1 1 the solution is G Z'Wy + A^-1 1 total / 1' A^-1 1, and the
    error of what was drawn is the sandwich G Z' W diag(r^2) W Z G n / (n - d + 1), r the residuals of n estimates;
    `pulls` is G Z'W.

    Raises:
        ArgumentError: the coalitions do not tell all features apart.
    """
    features = z.shape[1]
    if features == 1:
        return total[None], None
    weighted = w[:, None] * z
    a = z.T @ weighted
    factor, info = torch.linalg.cholesky_ex(a)
    least, most = factor.diagonal().aminmax()
    if int(info) or float(least) < 1e-7 * float(most):
        raise ArgumentError(
            "n_samples",
            f"the {len(z)} coalitions that were drawn do not tell {features} features apart",
            "more of them",
        )
    both = torch.cat([torch.ones(features, 1, dtype=z.dtype, device=z.device), weighted.T], 1)
    solution = torch.cholesky_solve(both, factor)
    ones, pulls = solution[:, :1] / solution[:, :1].sum(), solution[:, 1:]
    pulls = pulls - ones * pulls.sum(0)
    phi = pulls @ y + ones * total
    if not bool(drawn.any()):
        return phi, None
    residuals, left = y - z @ phi, drawn[:, None]
    if torch.equal(z, 1 - z.flip(0)):  # a pair is one draw; masks are sorted, so complements mirror each other
        half = len(z) // 2
        pulls, residuals, left = pulls[:, :half], residuals[:half] - residuals.flip(0)[:half], left[:half]
    estimates = len(residuals)
    spare = max(estimates - (features - 1), 1)  # the fit has taken up the rest: residuals are too small by this much
    return phi, (pulls.square() @ (left * residuals.square()) * (estimates / spare)).sqrt()


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `constrained_least_squares`."""
    return ConstrainedLeastSquares
