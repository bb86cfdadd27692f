"""Rescale rules in closed form of normalisations, softmax and logsumexp: exact, and finite on real networks.

Splitting these into elementwise parts, each with its own secant, is complete on paper and overflows in practice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from axplain.propagation.operations import Operation
from axplain_plugins.propagation.secants import Multipliers, exponential_slope


def normalised(
    gradient: Tensor, x: Tensor, reference: Tensor, dims: tuple[int, ...], eps: float, centred: bool
) -> Tensor:
    """Return the multipliers of `c / s`, c the (centred) slice over `dims` and s = sqrt(mean(c^2) + eps).

    `2/S (g - (c + c')/(2 S) mean(g (c/s + c'/s')))` with S = s + s', then minus its own mean where c is centred: the
    quotient c / s is split as a = y s solved for y, and s by the secants of root and square.
    """
    c = x - x.mean(dims, keepdim=True) if centred else x
    c_old = reference - reference.mean(dims, keepdim=True) if centred else reference
    s = (c.square().mean(dims, keepdim=True) + eps).sqrt()
    s_old = (c_old.square().mean(dims, keepdim=True) + eps).sqrt()
    both = s + s_old
    overlap = (gradient * (c / s + c_old / s_old)).mean(dims, keepdim=True)
    multipliers = 2 / both * (gradient - (c + c_old) / (2 * both) * overlap)
    return multipliers - multipliers.mean(dims, keepdim=True) if centred else multipliers


def layer_norm(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the multipliers of layer normalisation."""
    eps = new.argument(4, "eps", 1e-5)
    return _last_dimensions(gradient, new, old, eps, centred=True)


def rms_norm(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the multipliers of root-mean-square normalisation."""
    eps = new.argument(3, "eps")
    return _last_dimensions(
        gradient, new, old, torch.finfo(new.inputs[0].dtype).eps if eps is None else eps, centred=False
    )


def _last_dimensions(gradient: Tensor, new: Operation, old: Operation, eps: float, *, centred: bool) -> Multipliers:
    dims = tuple(range(-len(new.argument(1, "normalized_shape")), 0))
    weight = new.argument(2, "weight")
    weighted = gradient if weight is None else gradient * weight
    return (normalised(weighted, new.inputs[0], old.inputs[0], dims, eps, centred=centred),)


def group_norm(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the multipliers of group normalisation."""
    x, groups = new.inputs[0], new.argument(1, "num_groups")
    weighted = _by_channel(gradient, new.argument(2, "weight"))
    folded = [tensor.reshape(len(x), groups, -1) for tensor in (weighted, x, old.inputs[0])]
    return (
        normalised(folded[0], folded[1], folded[2], (-1,), new.argument(4, "eps", 1e-5), centred=True).reshape(x.shape),
    )


def instance_norm(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return the multipliers of instance normalisation by the statistics of the input."""
    weighted = _by_channel(gradient, new.argument(1, "weight"))
    dims = tuple(range(2, gradient.ndim))
    return (normalised(weighted, new.inputs[0], old.inputs[0], dims, new.argument(7, "eps", 1e-5), centred=True),)


def _by_channel(gradient: Tensor, weight: Tensor | None) -> Tensor:
    return gradient if weight is None else gradient * weight.view(-1, *[1] * (gradient.ndim - 2))


def softmax(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return `E / (s + s') (2 g - sum(g (y + y')))`, E the secant of exp and s the sums it is divided by."""
    dim = new.argument(1, "dim")
    slope, total, total_old = _exponentials(new, old, dim)
    overlap = (gradient * (new.output + old.output)).sum(dim, keepdim=True)
    return (slope / (total + total_old) * (2 * gradient - overlap),)


def log_softmax(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return `g - sum(g) E L`, the multipliers of x minus its logsumexp."""
    dim = new.argument(1, "dim")
    return (gradient - _log_sum(gradient.sum(dim, keepdim=True), new, old, dim),)


def logsumexp(gradient: Tensor, new: Operation, old: Operation) -> Multipliers:
    """Return `g E L`, E the secant of exp and L that of the logarithm of the sum."""
    dim = new.argument(1, "dim")
    if not new.argument(2, "keepdim", False):
        for axis in sorted(axis % new.inputs[0].ndim for axis in ((dim,) if isinstance(dim, int) else dim)):
            gradient = gradient.unsqueeze(axis)
    return (_log_sum(gradient, new, old, dim),)


def _log_sum(gradient: Tensor, new: Operation, old: Operation, dim: int | tuple[int, ...]) -> Tensor:
    """Return g E L: the secant of the logarithm is taken of the logarithms where the sums are far apart."""
    slope, total, total_old = _exponentials(new, old, dim)
    change = (total - total_old) / total_old
    near = torch.log1p(change) / change / total_old
    logs = [torch.logsumexp(row, dim, keepdim=True) for row in _shifted(new, old, dim)]  # sums alone may underflow
    far = (logs[0] - logs[1]) / (total - total_old)
    secant = torch.where(change == 0, 1 / total_old, torch.where(change.abs() < 0.5, near, far))
    return gradient * slope * secant


def _exponentials(new: Operation, old: Operation, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the secant of exp and the sums of both rows, all divided by the largest exponential of the two."""
    x, reference = _shifted(new, old, dim)
    powers, powers_old = x.exp(), reference.exp()
    slope = exponential_slope(x, reference, torch.maximum(powers, powers_old))
    return slope, powers.sum(dim, keepdim=True), powers_old.sum(dim, keepdim=True)


def _shifted(new: Operation, old: Operation, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return both rows less the largest element of the two: a shift of both costs no digits."""
    dtype = new.output.dtype  # softmax(..., dtype=) casts first
    x, reference = new.inputs[0].to(dtype), old.inputs[0].to(dtype)
    top = torch.maximum(x.amax(dim, keepdim=True), reference.amax(dim, keepdim=True))
    top = torch.where(top == -math.inf, torch.zeros_like(top), top)
    return x - top, reference - top
