"""Rescale rules of maxima: what a maximum gains goes to the winner of the example, what it loses to the reference's."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from axplain.propagation.operations import Operation
from axplain_plugins.propagation.secants import Multipliers, secant


def attributed(
    gradient: Tensor, values: tuple[Tensor, Tensor], winners: tuple[Tensor, Tensor], x: Tensor, reference: Tensor
) -> Tensor:
    """Return the multipliers of maxima over the last dimension of `x`.

    All but x and its reference, (..., elements), are (..., windows); windows that overlap add up. Each window's change
    y - y' is the change of one element times a share between 0 and 1.
    """
    (y, y_old), (winner, winner_old) = values, winners
    element = torch.where(y > y_old, winner, winner_old)
    moved = x.gather(-1, element) - reference.gather(-1, element)
    share = (y - y_old).div_(moved)
    if math.isnan(share.sum()):  # 0 / 0: nothing moved
        share = torch.where(moved == 0, torch.ones_like(share), share)
    return torch.zeros_like(x).scatter_add_(-1, element, share.mul_(gradient))


def pooling(dimensions: int) -> Callable[[Tensor, Operation, Operation], Multipliers]:
    """Return the rule of max-pooling over the last dimensions."""

    def rule(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
        x = new.inputs[0]
        flat = [tensor.flatten(-dimensions) for tensor in (gradient, new.output, new.extras[0], x)]
        flat_old = [tensor.flatten(-dimensions) for tensor in (old.output, old.extras[0], old.inputs[0])]
        found = attributed(flat[0], (flat[1], flat_old[0]), (flat[2], flat_old[1]), flat[3], flat_old[2])
        return (found.view(x.shape),)

    return rule


def reduction(*, smallest: bool = False) -> Callable[[Tensor, Operation, Operation], Multipliers]:
    """Return the rule of `max`, `amax` and their opposites: of one tensor over some dimensions, or of two tensors."""
    sign = -1 if smallest else 1

    def rule(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
        second = new.argument(1, "other") if "dim" not in new.keywords else None
        if isinstance(second, Tensor):
            return larger(smallest=smallest)(gradient, new, old)
        x = new.inputs[0]
        given = new.argument(1, "dim")
        axes = tuple(range(x.ndim)) if given is None or given == () else (given,) if isinstance(given, int) else given
        axes = tuple(sorted(axis % x.ndim for axis in axes))
        if gradient.ndim < x.ndim:
            for axis in axes:
                gradient = gradient.unsqueeze(axis)
        order = (*(axis for axis in range(x.ndim) if axis not in axes), *axes)
        flat, flat_old = (sign * t.expand(x.shape).permute(order).flatten(-len(axes)) for t in (x, old.inputs[0]))
        (value, winner), (value_old, winner_old) = flat.max(-1, keepdim=True), flat_old.max(-1, keepdim=True)
        rows = gradient.permute(order).flatten(-len(axes))
        found = attributed(rows, (value, value_old), (winner, winner_old), flat, flat_old)
        back = found.view([x.shape[axis] for axis in order])
        return (back.permute([order.index(axis) for axis in range(x.ndim)]),)

    return rule


def larger(*, smallest: bool = False, tie: float = 0.5) -> Callable[[Tensor, Operation, Operation], Multipliers]:
    """Return the rule of `maximum(a, b) = b + relu(a - b)` and of its opposite; of a tie the first gets `tie`."""

    def rule(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
        if len(new.inputs) == 1:
            return secant(gradient, new, old)
        (a, b), (a_old, b_old) = new.inputs, old.inputs
        ahead, ahead_old = (b - a, b_old - a_old) if smallest else (a - b, a_old - b_old)
        step = ahead - ahead_old
        slope = (ahead.relu() - ahead_old.relu()) / step
        share = torch.where(slope.isnan(), (ahead > 0).to(slope.dtype) + (ahead == 0).to(slope.dtype) * tie, slope)
        return (gradient * share).sum_to_size(a.shape), (gradient * (1 - share)).sum_to_size(b.shape)

    return rule
