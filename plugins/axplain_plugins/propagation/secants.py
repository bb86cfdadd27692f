"""Rescale rules of elementwise operations: the slope of the secant between reference and example."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from axplain.propagation.operations import Operation

Multipliers = tuple[Tensor | None, ...]


def secant(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return `g * (f(x) - f(x')) / (x - x')` for functions that change on the scale of one."""
    return ((gradient * _slope(new, old, 1.0)).sum_to_size(new.inputs[0].shape),)


def relative_secant(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the same for functions that change on the scale of their argument: logarithms and powers."""
    slope = _slope(new, old, torch.maximum(new.inputs[0].abs(), old.inputs[0].abs()))
    return ((gradient * slope).sum_to_size(new.inputs[0].shape),)


def _slope(new: Operation, old: Operation, scale: Tensor | float) -> Tensor:
    """Return the slope of the secant; where rounding would eat it, the mean of the derivatives at both ends.

    Derivatives that differ by more than such a short step explains have a kink between them: the secant is right there.
    """
    (x,), (reference,) = new.inputs, old.inputs
    step = x - reference
    slope = (new.output - old.output) / step
    grain = 10 * torch.finfo(step.dtype).eps ** 0.5
    short = ~(step.abs() > grain * scale)  # a difference of two infinities is short, too
    if not bool(short.any()):
        return slope
    one, other = (derivative(new, point.expand_as(slope)) for point in (x, reference))
    smooth = (one - other).abs() <= 4 * grain * (1 + one.abs() + other.abs())
    return torch.where(short & (smooth | (step == 0)), (one + other) / 2, slope)


def derivative(operation: Operation, x: Tensor) -> Tensor:
    """Return the derivative of an elementwise operation at some points."""
    with torch.enable_grad():
        points = x.detach().clone().requires_grad_()
        return torch.autograd.grad(operation.at(points).sum(), points)[0]


def linear_pieces(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the secant of a function whose values are x, -x or constants: no rounding to avoid but 0 / 0."""
    (x,), (reference,) = new.inputs, old.inputs
    step = x - reference
    slope = (new.output - old.output).div_(step)
    if math.isnan(slope.sum()):  # 0 / 0, or two infinities; a sum is the cheapest way to see one
        slope = torch.where(slope.isnan(), derivative(new, x.expand_as(slope)), slope)
    return (slope.mul_(gradient).sum_to_size(x.shape),)


def exponential(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the secant of exp as `max(e^x, e^x') * (1 - e^-|d|) / |d|`, which neither cancels nor overflows."""
    return (gradient * exponential_slope(new.inputs[0], old.inputs[0], torch.maximum(new.output, old.output)),)


def exponential_slope(x: Tensor, reference: Tensor, larger: Tensor) -> Tensor:
    """Return the slope of exp between two points, given the larger of its two values; two -inf give 0."""
    distance = (x - reference).abs()
    share = -torch.expm1(-distance) / distance
    return larger * torch.where(distance > 0, share, torch.ones_like(share))


def square_root(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the secant of the square root, `1 / (y + y')`; 0 where both are 0."""
    both = new.output + old.output
    return (gradient * torch.where(both == 0, torch.zeros_like(both), 1 / both),)


def inverse_square_root(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the secant of `x^(-1/2)`: `-(y y')^2 / (y + y')`."""
    return (-gradient * (new.output * old.output).square() / (new.output + old.output),)


def reciprocal(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the secant of `1 / x`: `-y y'`."""
    return (-gradient * new.output * old.output,)


def square(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the secant of the square: `x + x'`."""
    return (gradient * (new.inputs[0] + old.inputs[0]),)


_POWERS = {2: square, 0.5: square_root, -0.5: inverse_square_root, -1: reciprocal}


def power(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the secant of a power, of an exponential where the exponent depends on x, or the split of both."""
    if len(new.inputs) > 1:
        return corrected(gradient, new, old)
    if new.places[0][0] == 1 or "exponent" in new.places[0]:
        return secant(gradient, new, old)
    exponent = new.argument(1, "exponent")
    rule = _POWERS.get(exponent) if isinstance(exponent, int | float) else None
    return (rule or relative_secant)(gradient, new, old)


def corrected(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the partial derivatives in the middle, corrected element by element until they tell the difference.

    For elementwise operations of several inputs: `m_i + r d_i / sum(d^2)` with the residual r of that element alone.
    """
    shape = new.output.shape
    points = [((a + b) / 2).expand(shape).clone() for a, b in zip(new.inputs, old.inputs, strict=True)]
    steps = [(a - b).expand(shape) for a, b in zip(new.inputs, old.inputs, strict=True)]
    with torch.enable_grad():
        leaves = [point.requires_grad_() for point in points]
        slopes = torch.autograd.grad(new.at(*leaves).sum(), leaves)
    slopes = tuple(slope.nan_to_num(0, 0, 0) for slope in slopes)  # the middle may be where there is no derivative
    residual = new.output - old.output
    size = torch.zeros_like(residual)
    for slope, step in zip(slopes, steps, strict=True):
        residual = residual - slope * step
        size = size + step.square()
    noise = 4 * torch.finfo(residual.dtype).eps * (new.output.abs() + old.output.abs())
    residual = torch.where(residual.abs() <= noise, torch.zeros_like(residual), residual)
    share = torch.where(size == 0, torch.zeros_like(size), residual / size)
    return tuple(
        (gradient * (slope + share * step)).sum_to_size(x.shape)
        for slope, step, x in zip(slopes, steps, new.inputs, strict=True)
    )
