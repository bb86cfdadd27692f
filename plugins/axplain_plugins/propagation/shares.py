"""How products with constant weights share out relevance: the rules of LRP as plain functions of tensors.

Each splits the relevance of an output among what adds up to it: `R_i = sum_j x_i w_ij / z_j R_j`. The rules differ in
the inputs x, the weights w and the sum z that they take.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from axplain_plugins.propagation.weighted import Product


@attrs.frozen(eq=False)
class Part:
    """Some of what adds up to an output: an input, weights, a bias, and the sign that they are taken with."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    sign: float = 1.0


def stabilised(z: Tensor, epsilon: float) -> Tensor:
    """Return z a little further from zero, `z + epsilon sign(z)`; where both are zero nothing is to be divided."""
    if epsilon:
        return z.new_full((), epsilon).copysign(z).add_(z)
    return torch.where(z == 0, torch.full_like(z, float("inf")), z)


def shared(product: Product, parts: Sequence[Part], relevance: Tensor, epsilon: float) -> Tensor:
    """Return `sum over parts of sign x (w^T (R / z))`, z the sum of the outputs of all parts."""
    with torch.enable_grad():
        leaves = [part.x.detach().requires_grad_() for part in parts]
        outputs = [part.sign * product(x, part.weight, part.bias) for part, x in zip(parts, leaves, strict=True)]
        z = functools.reduce(torch.add, outputs)
        back = torch.autograd.grad(z, leaves, relevance / stabilised(z.detach(), epsilon))  # signs are in z
    return functools.reduce(torch.add, (part.x * each for part, each in zip(parts, back, strict=True)))


def norm(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, epsilon: float) -> Tensor:
    """Share by what each input adds, the bias left out, so that nothing is absorbed by it."""
    return shared(product, [Part(x, weight)], relevance, epsilon)


def zplus(
    product: Product, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, epsilon: float
) -> Tensor:
    """Share by what adds to the output, and not by what takes from it (Montavon et al. 2017)."""
    return shared(product, _adding(x, weight, bias), relevance, epsilon)


def alpha_beta(
    product: Product, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, epsilon: float,
    alpha: float, beta: float,
) -> Tensor:  # fmt: skip
    """Share alpha R by what adds to the output and -beta R by what takes from it (Bach et al. 2015)."""
    adding = shared(product, _adding(x, weight, bias), alpha * relevance, epsilon)
    if not beta:
        return adding
    below = None if bias is None else bias.clamp(max=0)
    taking = _halves(x, weight.clamp(max=0), weight.clamp(min=0), below)
    return adding - shared(product, taking, beta * relevance, epsilon)


def gamma(
    product: Product, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, epsilon: float,
    gamma: float, output: Tensor,
) -> Tensor:  # fmt: skip
    """Share with what agrees with the output's sign made larger by gamma (Montavon et al. 2019; signed by Andeol 2021).

    Of a positive output that is `w + gamma max(w, 0)` for positive inputs and `w + gamma min(w, 0)` for negative ones.
    """
    up, down = weight + gamma * weight.clamp(min=0), weight + gamma * weight.clamp(max=0)
    positive = output >= 0
    above = None if bias is None else bias + gamma * bias.clamp(min=0)
    below = None if bias is None else bias + gamma * bias.clamp(max=0)
    zero = torch.zeros_like(relevance)
    agreeing = shared(product, _halves(x, up, down, above), torch.where(positive, relevance, zero), epsilon)
    if bool(positive.all()):
        return agreeing
    return agreeing + shared(product, _halves(x, down, up, below), torch.where(positive, zero, relevance), epsilon)


def zbox(
    product: Product, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, epsilon: float,
    low: Tensor | float, high: Tensor | float,
) -> Tensor:  # fmt: skip
    """Share by `x w - low max(w, 0) - high min(w, 0)`, for inputs between two bounds (Montavon et al. 2017)."""
    least, most = (torch.as_tensor(bound, dtype=x.dtype, device=x.device).expand_as(x) for bound in (low, high))
    parts = [Part(x, weight), Part(least, weight.clamp(min=0), sign=-1), Part(most, weight.clamp(max=0), sign=-1)]
    return shared(product, parts, relevance, epsilon)


def flat(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, epsilon: float) -> Tensor:
    """Share evenly among all inputs of an output (Bach et al. 2016)."""
    return shared(product, [Part(torch.ones_like(x), torch.ones_like(weight))], relevance, epsilon)


def wsquare(
    product: Product, x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, epsilon: float
) -> Tensor:
    """Share by the squares of the weights, whatever the inputs are (Montavon et al. 2017)."""
    return shared(product, [Part(torch.ones_like(x), weight.square())], relevance, epsilon)


def _adding(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Part]:
    return _halves(x, weight.clamp(min=0), weight.clamp(max=0), None if bias is None else bias.clamp(min=0))


def _halves(x: Tensor, positive: Tensor, negative: Tensor, bias: Tensor | None) -> list[Part]:
    """Return the parts of positive inputs and of negative ones, each with weights of their own."""
    parts = [Part(x.clamp(min=0), positive, bias)]
    below = x.clamp(max=0)
    return [*parts, Part(below, negative)] if bool(below.any()) else parts
