"""A weighted linear model of the values of coalitions; its coefficients are the attributions."""

from __future__ import annotations

import random
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain import MissingExtra, hookimpl
from axplain.problem import Problem
from axplain.protocols import Reduced
from axplain_plugins.removal.table import Regression, Table, factor_of


@attrs.frozen
class Surrogate(Regression):
    """`argmin_b sum_s w_s (v_s - b_0 - z_s b)^2 + penalty`: none, alpha |b|_2^2 (ridge) or alpha |b|_1 (lasso)."""

    kind: Literal["ridge", "lasso", "linear"]
    alpha: float

    def __attrs_post_init__(self) -> None:
        """Miss an extra before the model is asked, not after."""
        if self.kind == "lasso":
            _estimator()

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
    factor = factor_of(a, len(z), "Or choose surrogate='ridge', whose penalty settles what they leave open.")
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
