"""Rescale rules of products, quotients and whatever else is quadratic in its inputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from axplain.propagation.operations import Operation
from axplain_plugins.propagation.secants import Multipliers


def midpoint(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the vector-Jacobian product halfway: exact for everything quadratic, d(ab) = mean(a) db + mean(b) da."""
    if len(new.inputs) > 2:
        return _multilinear(gradient, new, old)
    with torch.enable_grad():
        middle = [((a + b) / 2).requires_grad_() for a, b in zip(new.inputs, old.inputs, strict=True)]
        return torch.autograd.grad(new.at(*middle), middle, gradient)


def _multilinear(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the vector-Jacobian product averaged over Gauss nodes of the segment: exact for products of many."""
    nodes, weights = np.polynomial.legendre.leggauss((len(new.inputs) + 1) // 2)
    found = [torch.zeros_like(x) for x in new.inputs]
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        with torch.enable_grad():
            points = [
                torch.lerp(b.expand_as(a), a, (node + 1) / 2).requires_grad_()
                for a, b in zip(new.inputs, old.inputs, strict=True)
            ]
            parts = torch.autograd.grad(new.at(*points), points, gradient)
        found = [total + part * (weight / 2) for total, part in zip(found, parts, strict=True)]
    return tuple(found)


def product(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the split of an elementwise product; a factor that stands for 1/s is treated as the division by s.

    With y = x r and r = 1/s that is `2 r r' / (r + r')` for x and `(y + y') / (r + r')` for r, where r keeps its sign.
    """
    if new.inverses.count(True) != 1 or len(new.inputs) != 2:
        return midpoint(gradient, new, old)
    place = new.inverses.index(True)
    (x, r), (x_old, r_old) = ((operation.inputs[1 - place], operation.inputs[place]) for operation in (new, old))
    both, same = r + r_old, r.sign() * r_old.sign() > 0
    for_x = torch.where(same, 2 / (1 / r + 1 / r_old), both / 2)
    for_r = torch.where(same, (new.output + old.output) / both, (x + x_old) / 2)
    split = ((gradient * for_x).sum_to_size(x.shape), (gradient * for_r).sum_to_size(r.shape))
    return split if place == 1 else split[::-1]


def quotient(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the split of y = a / s: `2 / (s + s')` for a and `-(y + y') / (s + s')` for s.

    It is the rule of the product a = y s solved for y. Where s changes its sign, it is that of a times 1/s.
    """
    divisor, divisor_old = _operand(new, 1, "other"), _operand(old, 1, "other")
    dividend, dividend_old = _operand(new, 0, "input"), _operand(old, 0, "input")
    both, same = divisor + divisor_old, divisor.sign() * divisor_old.sign() > 0
    for_dividend = torch.where(same, 2 / both, (1 / divisor + 1 / divisor_old) / 2)
    middle = (dividend + dividend_old) / 2 / (divisor * divisor_old)
    for_divisor = -torch.where(same, (new.output + old.output) / both, middle)
    split = {0: for_dividend, "input": for_dividend, 1: for_divisor, "other": for_divisor}
    return tuple(
        (gradient * split[place[0]]).sum_to_size(x.shape) for place, x in zip(new.places, new.inputs, strict=True)
    )


def _operand(operation: Operation, position: int, name: str) -> Tensor:
    """Return an operand as the operation saw it, constant or not."""
    for place, tensor in zip(operation.places, operation.inputs, strict=True):
        if place[0] in (position, name):
            return tensor
    return torch.as_tensor(
        operation.argument(position, name), dtype=operation.output.dtype, device=operation.output.device
    )


def root_of_quadratic(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the split of y = sqrt(q), q quadratic: standard deviations and Euclidean norms."""
    both = new.output + old.output
    inner = torch.where(both == 0, torch.zeros_like(both), gradient / both)
    with torch.enable_grad():
        middle = ((new.inputs[0] + old.inputs[0]) / 2).requires_grad_()
        return torch.autograd.grad(new.at(middle).square(), middle, inner)
