"""Changes of the output along a path, shared out by squared gradients: what IDGI sums."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced
from axplain.structure import Tensors, accumulator, map_tensors, rows_by_samples, total, trailing


@attrs.frozen(eq=False)
class Steps:
    """The sums so far, and of the last sample its value and its shares, which wait for the next value."""

    sums: Tensors
    value: Tensor
    shares: Tensors


@attrs.frozen
class GradientShares:
    """`sum_k (F_{k+1} - F_k) g_k^2 / |g_k|^2`: a step of n samples, in their order, goes by its first gradient.

    Where that is zero, and has no direction, the step goes by its last. Where both are zero and F changes all the
    same the change is left out, and the residual shows it.
    """

    def start(self, block: Problem, plan: Plan) -> Steps | None:
        return None

    def update(self, state: Steps | None, points: Points, answers: Answers) -> Steps:
        assert answers.terms is not None and answers.value is not None, "checked when the spec was loaded"
        value = rows_by_samples(answers.value, points.samples)
        shares = map_tensors(lambda share: rows_by_samples(share, points.samples), _shares(answers.terms))
        if state is None:
            sums = map_tensors(lambda share: torch.zeros_like(share[0]), shares)
        else:
            sums = state.sums
            value = torch.cat([state.value.unsqueeze(0), value])
            shares = map_tensors(lambda last, new: torch.cat([last.unsqueeze(0), new]), state.shares, shares)
        changes, known = value.diff(dim=0), _known(shares)[:-1]
        sums = map_tensors(lambda before, share: before + _weighted(_of_steps(share, known), changes), sums, shares)
        return Steps(sums, value[-1].clone(), map_tensors(lambda share: share[-1].clone(), shares))

    def finish(self, state: Steps, block: Problem) -> Reduced:
        return Reduced(state.sums)


def _shares(gradients: Tensors) -> Tensors:
    """Return `g^2 / |g|^2` of each row, the length over all tensors; zeros where the gradient is zero."""
    largest = torch.stack([g.abs().reshape(len(g), -1).amax(1) for g in gradients]).amax(0)
    unit = largest.where(largest > 0, 1.0)  # squares of small gradients would be zero
    squares = map_tensors(lambda g: (g.to(accumulator(g.dtype)) / trailing(unit, g)).square(), gradients)
    length = total(squares)
    length = length.where(length > 0, 1.0)
    return map_tensors(lambda square: square / trailing(length.to(square.dtype), square), squares)


def _known(shares: Tensors) -> Tensor:
    """Return where, (samples, examples), any tensor has a share."""
    return torch.stack([share.reshape(*share.shape[:2], -1).any(2) for share in shares]).any(0)


def _of_steps(share: Tensor, known: Tensor) -> Tensor:
    """Return the shares of the steps between samples: the first sample's where they are known, else the last one's."""
    return torch.where(known.view(*known.shape, *[1] * (share.ndim - 2)), share[:-1], share[1:])


def _weighted(shares: Tensor, changes: Tensor) -> Tensor:
    """Sum (steps, examples, ...) shares, each times the change of its step, (steps, examples)."""
    return (shares * changes.to(shares.dtype).view(*changes.shape, *[1] * (shares.ndim - 2))).sum(0)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `gradient_shares`."""
    return GradientShares
