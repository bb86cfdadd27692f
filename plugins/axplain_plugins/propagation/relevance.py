"""Layer-wise relevance propagation for every operation: the target itself is shared out backwards.

What goes back through an operation is the relevance of its output, R_j; what goes on is R_i = x_i sum_j w_ij R_j / z_j,
with z_j the output: torch's own gradient between a division and a product, or another rule where a composite says so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.errors import ArgumentError, UncoveredOperation
from axplain.propagation.operations import CHOOSING, DIVISOR, FACTORS, LINEAR, Operation, flat, is_linear
from axplain.propagation.rules import CONSTANT, ONWARD, OWN_GRADIENT, Around, Call, Rule, RuleSet, Situation
from axplain_plugins.propagation import shares
from axplain_plugins.propagation.activations import ACTIVATIONS
from axplain_plugins.propagation.composites import COMPOSITES, Assigned, Composite, Met, read
from axplain_plugins.propagation.normalised import SPREADLESS
from axplain_plugins.propagation.shares import stabilised
from axplain_plugins.propagation.weighted import CONVOLUTIONS, Weighted
from axplain_plugins.propagation.winners import POOLED

#: linear operations that add elements up, so that relevance is shared; all others only move it
_SUMS: Final = frozenset(
    {
        *("add", "sub", "subtract", "rsub", "neg", "negative", "sum", "mean", "cumsum", "diff", "trace", "sum_to_size"),
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "col2im", "lerp"),
        *("adaptive_avg_pool3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "index_add"),
        *("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "scatter_add", "grid_sampler"),
        *("nll_loss_nd", "var", "std", "norm", "linalg_vector_norm"),
    }
)
#: what normalisations divide by: no relevance arrives there, unless a model is interested in the spread itself
_SPREADS: Final = frozenset({"var", "std", "norm", "linalg_vector_norm"})
_DENSE: Final = frozenset(FACTORS) - CONVOLUTIONS - {"mul", "multiply", "addcmul"}
_ELEMENTWISE: Final = ACTIVATIONS | {
    *("prelu", "hardshrink", "expm1", "log", "log1p", "sqrt", "rsqrt", "pow", "reciprocal", "absolute", "sin", "cos"),
}
_MAXIMA: Final = frozenset(
    {
        *(f"{name}{n}d{more}" for n in (1, 2, 3) for name, more in (("max_pool", ""), ("max_pool", "_with_indices"))),
        *(f"adaptive_max_pool{n}d" for n in (1, 2, 3)),
        *("max", "amax", "min", "amin", "maximum", "minimum", "fmax", "fmin"),
    }
)
#: kind -> the operations that a composite may give a rule to under that name
KINDS: Final[Mapping[str, frozenset[str]]] = MappingProxyType({"convolution": CONVOLUTIONS, "dense": _DENSE})


def passed(gradient: Tensor, new: Operation, old: None) -> tuple[Tensor]:
    """Return the relevance as it is: one element in, one element out."""
    return (gradient.sum_to_size(new.inputs[0].shape),)


def softmax(gradient: Tensor, new: Operation, old: None) -> tuple[Tensor]:
    """Return `x_i (R_i - y_i sum_j R_j)`, the first-order term of softmax at x (Achtibat et al. 2024)."""
    dim, x = new.argument(1, "dim"), new.inputs[0]
    slope = gradient - new.output * gradient.sum(dim, keepdim=True)
    return (torch.where(x == -math.inf, torch.zeros_like(x), x) * slope,)


@attrs.frozen(eq=False)
class Relevance(RuleSet):
    """Relevance by operation; products and sums by the rules of a composite, softmax by its first order."""

    composite: Composite
    attention: Literal["softmax", "constant"] = "softmax"
    report: bool = False
    relevance: bool = True
    fuses: bool = attrs.field(init=False)
    _rules: Mapping[str, Rule] = attrs.field(init=False)

    @fuses.default
    def _looks_back(self) -> bool:
        return self.composite.by_weights  # a batch normalisation is part of the weights in front of it

    @_rules.default
    def _made(self) -> Mapping[str, Rule]:
        chosen = Rule(choose=self._chosen, several=True, linear=True)
        attention = Rule(softmax) if self.attention == "softmax" else CONSTANT
        return {**_RULES, **dict.fromkeys(_CHOSEN, chosen), "softmax": attention}

    def rule(self, operation: str) -> Rule | None:
        return self._rules.get(operation)

    def finish(self, scratch: dict[Any, Any]) -> None:
        """Refuse a composite that speaks of layers or types that the model has not."""
        self.composite.check_used(scratch.get("met", Met()))

    def _chosen(self, situation: Situation) -> Rule | None:
        """Return the rule of a call of products, quotients, normalisations and sums; None where it is none of these."""
        name, call = situation.call.name, situation.call
        if name in _QUOTIENTS or name in ("mul", "multiply"):
            return self._of_quotient(situation)
        if name in FACTORS and name != "addcmul":
            return self._of_product(situation)
        if name == "batch_norm" and (folded := self._folded(situation)) is not None:
            return folded
        linear = is_linear(name, list(call.places), call.arguments, call.keywords)
        if not linear and name not in SPREADLESS and name not in _SPREADS:
            return None
        return self._epsilon(self.composite.otherwise, through=SPREADLESS.get(name))

    def _of_quotient(self, situation: Situation) -> Rule:
        """All goes to what is divided or scaled; two factors share evenly."""
        places, inverses = situation.call.places, situation.inverses
        if situation.call.name in _QUOTIENTS:
            if all(place[0] in (1, "other") for place in places):
                return Rule(passed, several=True, linear=True)  # one over something: who multiplies by it gives it none
            inverses = tuple(place[0] in (1, "other") for place in places)
        if all(inverses) or not any(inverses):
            return self._epsilon(self.composite.otherwise, shares=(1.0 / len(places),) * len(places))
        return self._epsilon(self.composite.otherwise, shares=tuple(0.0 if inverse else 1.0 for inverse in inverses))

    def _of_product(self, situation: Situation) -> Rule:
        call = situation.call
        factors = [place for place in call.places if place[0] in FACTORS[call.name]]
        if len(factors) > 1:  # two that depend on x, as in attention: each gets half
            count = len(factors)
            half = tuple(1.0 / count if place in factors else 1.0 for place in call.places)
            return self._epsilon(self.composite.otherwise, shares=half)
        met: Met = situation.scratch.setdefault("met", Met(first=situation.whole))
        kind = next((kind for kind, names in KINDS.items() if call.name in names), "")
        assigned = self.composite.assigned(kind, call.name, situation.module, met=met)
        met.first = False
        if assigned.rule == "zbox":
            _check_bounds(call, assigned)
        situation.scratch[id(call)] = call, assigned
        return self._assigned(assigned)

    def _assigned(self, assigned: Assigned) -> Rule:
        if assigned.rule == "epsilon":
            return self._epsilon(assigned)
        if assigned.rule == "pass":
            return Rule(_handed_on, linear=True, several=True)
        return Rule(functools.partial(_by_parts, assigned=assigned), linear=True, several=True)

    def _epsilon(self, assigned: Assigned, *, shares: tuple[float, ...] | None = None, through: Any = None) -> Rule:
        return _around(float(assigned.setting("epsilon")), shares, through)

    def _folded(self, situation: Situation) -> Rule | None:
        """Return the rule of a product and the batch normalisation behind it, where weights matter to it: as one."""
        source = situation.source(situation.call.arguments[0])
        product = None if source is None else Weighted.of(source)
        if source is None or product is None:
            return None
        _, assigned = situation.scratch[id(source)]
        if assigned.rule in ("epsilon", "pass") or (folded := product.normalised(situation.call)) is None:
            return None
        return attrs.evolve(self._assigned(assigned), fused=folded)


def _check_bounds(call: Call, assigned: Assigned) -> None:
    """Refuse a box that does not hold the input of the product.

    Raises:
        ArgumentError: a bound does not broadcast over it, or it lies outside.
    """
    (x,) = (tensor for place, tensor in flat(call.arguments, call.keywords) if place in call.places)
    slack = 1e-5 * x.detach().abs().amax()
    for name, side in (("low", 1), ("high", -1)):
        bound = torch.as_tensor(assigned.setting(name), dtype=x.dtype, device=x.device)
        try:
            room = (side * (x.detach() - bound.expand_as(x))).amin()
        except RuntimeError as error:
            came = f"shape {tuple(bound.shape)} came"
            raise ArgumentError(name, came, f"a number, or what broadcasts over {tuple(x.shape)}") from error
        if float(room) < -float(slack):
            came = f"x lies outside of it by {-float(room):.3g}"
            raise ArgumentError(name, came, "a bound of all that the model can be given, after its preprocessing")


@functools.lru_cache(maxsize=256)
def _around(epsilon: float, shares: tuple[float, ...] | None, through: Callable[..., Tensor] | None) -> Rule:
    """Return the rule of an operation's own gradient between a division by its output and a product with its input."""

    def behind(relevance: Tensor, z: Tensor) -> Tensor:
        moved = stabilised(z, epsilon)
        return torch.div(relevance, moved, out=moved) if relevance.dtype == moved.dtype else relevance / moved

    around = Around(behind, torch.mul, shares, through)
    return Rule(several=True, linear=True, around=around)


def _by_parts(relevance: Tensor, new: Operation, old: None, *, assigned: Assigned) -> tuple[Tensor]:
    """Share by the rule of a composite."""
    product = Weighted.of(new)
    if product is None:
        raise _not_applicable(new, assigned.rule, "is not written as an input times a weight")
    rule: Callable[..., Tensor] = getattr(shares, assigned.rule)
    settings = {name: value for name, value in assigned.settings.items() if name != "bias"}
    if assigned.rule == "gamma":  # the sign of what the layer gave, whether biases share in it or not
        settings["output"] = new.output
    bias = product.bias if assigned.settings.get("bias", True) else None
    return (rule(product.run, new.inputs[0], product.weight, bias, relevance, **settings),)


def _handed_on(relevance: Tensor, new: Operation, old: None) -> tuple[Tensor]:
    """Return the relevance as it is, where a composite wants a product skipped."""
    if len(new.inputs) > 1 or new.inputs[0].shape != new.output.shape:
        raise _not_applicable(new, "pass", "does not give one element for each element of one input")
    return (relevance,)


def _not_applicable(operation: Operation, rule: str, why: str) -> UncoveredOperation:
    return UncoveredOperation(
        f"model: operation {operation.name!r} {why}, so the rule {rule!r} cannot be applied to it; give it 'epsilon' "
        "by composite={'operations': {'" + operation.name + "': 'epsilon'}}."
    )


#: `addcdiv` is a sum, or written out
_QUOTIENTS: Final = DIVISOR.keys() - {"addcdiv"}
_SUMMED: Final = _SUMS & (LINEAR | CHOOSING.keys() | _SPREADS)
_CHOSEN: Final = _SUMMED | FACTORS.keys() | DIVISOR.keys() | SPREADLESS.keys() | {"batch_norm"}
_RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {**dict.fromkeys(_ELEMENTWISE, ONWARD), **dict.fromkeys(_MAXIMA, OWN_GRADIENT), "max_pool2d": POOLED}
)


_KNOWN: Final = frozenset(KINDS).union(*KINDS.values())


def _make(composite: Any, attention: Any, report: bool, **settings: Any) -> Relevance:
    return Relevance(read(composite, settings, _KNOWN), attention, report)


_remembered: Final = functools.lru_cache(maxsize=64)(_make)


@hookimpl
def axplain_plugin() -> Any:
    """Return what makes the rule set of relevance propagation, the same one for the same composite and numbers."""

    def make(composite: Any, attention: Any, report: bool, **settings: Any) -> Relevance:
        plain = all(isinstance(value, int | float | None) for value in settings.values())
        known = plain and isinstance(composite, str) and composite in COMPOSITES  # no file, which may change
        return (_remembered if known else _make)(composite, attention, report, **settings)

    return make
