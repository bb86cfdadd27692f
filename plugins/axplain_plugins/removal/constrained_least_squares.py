"""Weighted least squares over coalitions whose coefficients sum to F(x) - F(x'), in closed form."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.memory import remembered
from axplain.problem import Problem
from axplain.protocols import Reduced
from axplain_plugins.removal.table import Regression, Table, factor_of


@attrs.frozen
class ConstrainedLeastSquares(Regression):
    """`argmin_phi sum_s w_s (v_s - F(x') - z_s phi)^2` with `sum phi = F(x) - F(x')`, factorised once for the batch."""

    def finish(self, state: Table, block: Problem) -> Reduced:
        values, groups = state.whole_values(), block.features()
        clean, absent = (end.to(values) for end in state.ends[0])
        key = ("least squares", block.device)
        fit: Fit = remembered(state.plan, key, lambda: Fit.of(*(part[2:] for part in state.design())))
        phi, errors = fit.solved(values[2:] - absent, clean - absent)
        return Reduced(groups.spread(phi.T), None if errors is None else groups.spread(errors.T), phi.T)


@attrs.frozen(eq=False)
class Fit:
    """What the coalitions alone say: the same for every example, block and call of a plan.

    With A = Z'WZ and G = A^-1 - A^-1 1 1' A^-1 / 1' A^-1 1 the solution is G Z'Wy + A^-1 1 total / 1' A^-1 1, and the
    error of what was drawn is the sandwich G Z' W diag(r^2) W Z G n / (n - d + 1), r the residuals of n estimates.
    `share`: A^-1 1 / 1' A^-1 1. `pulls`: G Z'W. `paired`: whether complements are one estimate. `left`: (samples, 1)
    how much of what could be drawn was not; None where nothing was drawn.
    """

    z: Tensor
    share: Tensor
    pulls: Tensor
    paired: bool
    left: Tensor | None

    @classmethod
    def of(cls, z: Tensor, w: Tensor, drawn: Tensor) -> Fit:
        """Factorise a table of coalitions.

        Raises:
            ArgumentError: the coalitions do not tell all features apart.
        """
        features = z.shape[1]
        left = drawn[:, None] if bool(drawn.any()) else None
        if features == 1:
            return cls(z, torch.ones(1, 1, dtype=z.dtype, device=z.device), torch.zeros_like(z.T), False, None)
        weighted = w[:, None] * z
        factor = factor_of(z.T @ weighted, len(z))
        both = torch.cat([torch.ones(features, 1, dtype=z.dtype, device=z.device), weighted.T], 1)
        solution = torch.cholesky_solve(both, factor)
        share, pulls = solution[:, :1] / solution[:, :1].sum(), solution[:, 1:]
        mirrored = left is not None and torch.equal(z, 1 - z.flip(0))  # masks are sorted: complements mirror each other
        return cls(z, share, pulls - share * pulls.sum(0), mirrored, left)

    def solved(self, y: Tensor, total: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (features, batch) coefficients and their standard errors, None where nothing was drawn."""
        phi = self.pulls @ y + self.share * total
        if self.left is None:
            return phi, None
        residuals, pulls, left = y - self.z @ phi, self.pulls, self.left
        if self.paired:
            half = len(y) // 2
            residuals, pulls, left = residuals[:half] - residuals.flip(0)[:half], pulls[:, :half], left[:half]
        estimates = len(residuals)
        spare = max(estimates - len(phi) + 1, 1)  # the fit has taken up the rest: residuals are too small by this much
        return phi, (pulls.square() @ (left * residuals.square()) * (estimates / spare)).sqrt()


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `constrained_least_squares`."""
    return ConstrainedLeastSquares
