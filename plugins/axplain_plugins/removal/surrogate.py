"""A weighted linear model of the values of coalitions; its coefficients are the attributions."""

from __future__ import annotations

import random
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, MissingExtra, hookimpl
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced
from axplain_plugins.removal.table import Table


@attrs.frozen
class Surrogate:
    """`argmin_b sum_s w_s (v_s - b_0 - z_s b)^2 + penalty`: none, alpha |b|_2^2 (ridge) or alpha |b|_1 (lasso)."""

    kind: Literal["ridge", "lasso", "linear"]
    alpha: float

    def __attrs_post_init__(self) -> None:
        """Miss an extra before the model is asked, not after."""
        if self.kind == "lasso":
            _estimator()

    def start(self, block: Problem, plan: Plan) -> Table:
        return Table(plan)

    def update(self, state: Table, points: Points, answers: Answers) -> Table:
        state.add(points, answers)
        return state

    def finish(self, state: Table, block: Problem) -> Reduced:
        (z, w, _), v = state.design(), state.whole_values()
        if self.kind == "lasso":
            b = _lasso(z, w, v, self.alpha)
        else:
            b = _ridge(z, w, v, self.alpha if self.kind == "ridge" else 0.0)
        return Reduced(block.features().spread(b.T), None, b.T)


def _ridge(z: Tensor, w: Tensor, v: Tensor, alpha: float) -> Tensor:
    """Return (features, batch): the intercept is not penalised, so both sides are centred."""
    share = (w / w.sum())[:, None]
    z, v = z - (share * z).sum(0), v - (share * v).sum(0)
    a = z.T @ (w[:, None] * z) + alpha * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    factor, info = torch.linalg.cholesky_ex(a)
    if int(info) or float(factor.diagonal().min()) < 1e-7 * float(factor.diagonal().max()):
        raise ArgumentError(
            "n_samples", f"the {len(z)} coalitions that were drawn do not tell {z.shape[1]} features apart",
            "more of them", "Or choose surrogate='ridge', whose penalty settles what they leave open.",
        )  # fmt: skip
    return torch.cholesky_solve(z.T @ (w[:, None] * v), factor)


def _estimator() -> Any:
    try:
        state = random.getstate()
        from sklearn.linear_model import Lasso  # which draws random numbers where it is imported

        random.setstate(state)
    except ImportError as error:
        raise MissingExtra("surrogate='lasso'", "tabular") from error
    return Lasso


def _lasso(z: Tensor, w: Tensor, v: Tensor, alpha: float) -> Tensor:
    estimator = _estimator()
    x, weight, columns = z.cpu().numpy(), w.cpu().numpy(), v.T.cpu().numpy()
    fitted = [estimator(alpha=alpha, random_state=0).fit(x, column, sample_weight=weight).coef_ for column in columns]
    return torch.stack([torch.as_tensor(coefficients) for coefficients in fitted], 1).to(z)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `surrogate`."""
    return Surrogate
