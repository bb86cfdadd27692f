"""DeepLIFT's RevealCancel: what pushes an activation up and what pushes it down get multipliers of their own.

An activation and the sum in front of it are one operation here: a product with weights, with or without batch
normalisation behind it, or an addition. The change of the sum has a positive and a negative part, d+ and d-, and the
change of the activation is shared between them by the mean over both orders in which they can happen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain import describe, hookimpl
from axplain.propagation.operations import Operation
from axplain.propagation.rules import Call, Rule, RuleSet, Situation
from axplain.registry import registry
from axplain_plugins.propagation.activations import ACTIVATIONS
from axplain_plugins.propagation.secants import Multipliers
from axplain_plugins.propagation.weighted import PRODUCTS, Weighted


def shares(
    function: Callable[[Tensor], Tensor], start: Tensor, up: Tensor, down: Tensor, values: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the multipliers of the positive and of the negative part of a change.

    `dy+ = (f(x' + d+) - f(x') + f(x) - f(x' + d-)) / 2`, over d+; likewise dy-. `values`: f(x) and f(x').
    """
    y, y_start = values
    above, below = function(start + up), function(start + down)
    risen, fallen = (above - y_start + y - below) / 2, (below - y_start + y - above) / 2
    return _ratio(function, start, risen, up), _ratio(function, start, fallen, down)


def _ratio(function: Callable[[Tensor], Tensor], start: Tensor, change: Tensor, step: Tensor) -> Tensor:
    """Return change / step; where there is hardly a step, the slope at the reference."""
    short = step.abs() <= 1e2 * torch.finfo(step.dtype).eps * (1 + start.abs())
    if not bool(short.any()):
        return change / step
    with torch.enable_grad():
        at = start.detach().clone().requires_grad_()
        slope = torch.autograd.grad(function(at).sum(), at)[0]
    return torch.where(short, slope, change / torch.where(short, torch.ones_like(step), step))


def revealed(gradient: Tensor, new: Operation, old: Operation, *, activation: Call) -> Multipliers:
    """Return the multipliers of the inputs of the sum in front of an activation."""
    function = _function(activation)
    if new.name in PRODUCTS:
        return _through_product(gradient, new, old, function)
    return _through_addition(gradient, new, old, function)


def _through_product(
    gradient: Tensor, new: Operation, old: Operation, function: Callable[[Tensor], Tensor]
) -> Multipliers:
    found = Weighted.of(new)
    assert found is not None, "chosen for products that have weights"
    product, weight, bias = found.run, found.weight, found.bias
    reference = old.inputs[0].expand_as(new.inputs[0])
    step = new.inputs[0] - reference
    rising, falling, up, down = step.clamp(min=0), step.clamp(max=0), weight.clamp(min=0), weight.clamp(max=0)
    with torch.enable_grad():
        leaves = [part.requires_grad_() for part in (rising.clone(), falling.clone())]
        added = [product(leaf, w, None) for leaf in leaves for w in (up, down)]
        positive, negative = added[0] + added[3], added[1] + added[2]
        values = new.output, old.output.expand_as(new.output)
        start = product(reference, weight, bias)
        m_up, m_down = shares(function, start.detach(), positive.detach(), negative.detach(), values)
        back = torch.autograd.grad([positive, negative], leaves, [gradient * m_up, gradient * m_down])
    # where an input did not move, it is on neither side
    return (torch.where(step > 0, back[0], torch.where(step < 0, back[1], (back[0] + back[1]) / 2)),)


def _through_addition(
    gradient: Tensor, new: Operation, old: Operation, function: Callable[[Tensor], Tensor]
) -> Multipliers:
    shape = new.output.shape
    signs = (1.0, -1.0 if new.name in ("sub", "subtract") else 1.0)
    steps = [s * (a - b).expand(shape) for s, a, b in zip(signs, new.inputs, old.inputs, strict=True)]
    up, down = steps[0].clamp(min=0) + steps[1].clamp(min=0), steps[0].clamp(max=0) + steps[1].clamp(max=0)
    start = new.at(*(b.expand_as(a) for a, b in zip(new.inputs, old.inputs, strict=True)))
    m_up, m_down = shares(function, start, up, down, (new.output, old.output.expand(shape)))
    found = []
    for sign, step, x in zip(signs, steps, new.inputs, strict=True):
        m = torch.where(step > 0, m_up, torch.where(step < 0, m_down, (m_up + m_down) / 2))
        found.append((sign * gradient * m).sum_to_size(x.shape))
    return tuple(found)


def _function(call: Call) -> Callable[[Tensor], Tensor]:
    """Return the activation as a function that writes to nothing."""
    return lambda x: call.function(x.clone(), *call.arguments[1:], **call.keywords)


@attrs.frozen
class RevealCancel(RuleSet):
    """Rescale, but for activations right behind a sum."""

    rescale: RuleSet
    unknown: Literal["refuse", "gradient"] = "refuse"
    references: bool = True
    fuses: bool = True

    def rule(self, operation: str) -> Rule | None:
        rescale = self.rescale.rule(operation)
        if rescale is None or operation not in ACTIVATIONS:
            return rescale
        return attrs.evolve(rescale, choose=partial(_chosen, rescale))


def _chosen(rescale: Rule, situation: Situation) -> Rule:
    call = situation.call
    source = situation.source(call.arguments[0]) if call.places == ((0,),) else None
    norm = None
    if source is not None and source.name == "batch_norm":
        norm, source = source, situation.source(source.arguments[0])
    if source is None or not _adds(source):
        return rescale
    if norm is not None:
        product = Weighted.of(source)
        source = None if product is None else product.normalised(norm)
    if source is None:
        return rescale
    return Rule(partial(revealed, activation=call), several=True, fused=source)


def _adds(source: Call) -> bool:
    """Whether a call is a sum of which both signs of the parts are known."""
    if source.name in PRODUCTS:
        return Weighted.of(source) is not None
    plain = source.name in ("add", "sub", "subtract") and source.argument(2, "alpha", 1) == 1
    return plain and source.places == ((0,), (1,))


@hookimpl
def axplain_plugin() -> Any:
    """Return what makes `deeplift_reveal_cancel`, over the rules of `deeplift_rescale`."""

    def make(**settings: Any) -> RevealCancel:
        rescale = registry().build(describe("deeplift_rescale", "rules"), settings)
        return RevealCancel(rescale, **settings)

    return make
