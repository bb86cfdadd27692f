"""How attributions follow the function: sums and twins of functions, scaled and shifted inputs."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from axplain import hookimpl
from axplain.conformance.case import Axiom, Case, Gap, NotApplicable
from axplain.structure import Tensors, map_tensors

SCALE: Final = 3.0
MIX: Final = (2.0, -0.7)


def check_linearity(case: Case) -> Gap:
    """phi(a F + b G) = a phi(F) + b phi(G), with one seed."""
    a, b = MIX
    width = sum(tensor[0].numel() for tensor in case.numeric)
    direction = case.numbers(width) / width**0.5

    def other(*inputs: Tensor) -> Tensor:
        return torch.tanh(torch.cat([x.flatten(1) for x in inputs], 1) @ direction)

    mixed = case.attributions_of(lambda *inputs: a * case.value(*inputs) + b * other(*inputs))
    first, second = case.attributions_of(case.value), case.attributions_of(other)
    expected = map_tensors(lambda f, g: a * f + b * g, first, second)
    return Gap.between(mixed, expected, "phi(aF + bG) against a phi(F) + b phi(G)")


def check_implementation_invariance(case: Case) -> Gap:
    """Equal functions get equal attributions: other spellings and, for a claim on all models, other structures."""
    if case.recipe is None:
        raise NotApplicable("the kit can rewrite its own models only")
    twins = [("spelled with other operators", case.recipe.respelled())]
    if case.claim is None or case.claim.model_class != "respelled":
        twins.append(("made of other layers", case.recipe.rewritten()))
    gaps = [
        Gap.between(case.attributions(model), case.attributions(), f"an equal function, {how}")
        for how, model in twins
        if model is not None
    ]
    if not gaps:
        raise NotApplicable(f"there is no twin of a {case.recipe.kind} model")
    return max(gaps, key=lambda gap: gap.worst)


def check_affine_scale(case: Case) -> Gap:
    """phi(F(c .), x / c, x' / c) = phi(F, x, x')."""

    def scaled(*inputs: Tensor) -> Tensor:
        return case.value(*(SCALE * x for x in inputs))

    small = case.attributions_of(scaled, _divided(case.numeric), _divided(case.absent))
    return Gap.between(small, case.attributions_of(case.value), "attributions in other units of the input")


def _divided(tensors: Tensors) -> Tensors:
    return map_tensors(lambda tensor: tensor / SCALE, tensors)


def check_shift(case: Case) -> Gap:
    """phi(F(. + s), x - s, x' - s) = phi(F, x, x')."""
    steps = tuple(case.numbers(*tensor.shape[1:]) for tensor in case.numeric)

    def shifted(*inputs: Tensor) -> Tensor:
        return case.value(*map_tensors(torch.add, inputs, steps))

    moved = case.attributions_of(
        shifted, map_tensors(torch.sub, case.inputs, steps), map_tensors(torch.sub, case.absent, steps)
    )
    return Gap.between(moved, case.attributions_of(case.value), "attributions after a shift of the input")


_MODELS: Final = ("smooth", "piecewise_linear", "conv_pool", "attention", "shared_modules", "functional", "two_input")
#: rows of their own: at a constant one every maximum is tied, at zero every kink without a bias is met
_UNTIED: Final = ("one", "each", "set")
_AXIOMS: Final[dict[str, Any]] = {
    "linearity": partial(Axiom, check_linearity, models=_MODELS, wraps=True),
    "implementation_invariance": partial(
        Axiom,
        check_implementation_invariance,
        models=("smooth", "piecewise_linear", "bias_free_relu", "conv_pool"),
        baselines=_UNTIED,
        own=False,
    ),
    "affine_scale": partial(Axiom, check_affine_scale, models=_MODELS, baselines=_UNTIED, wraps=True),
    "shift": partial(Axiom, check_shift, models=_MODELS, baselines=_UNTIED, wraps=True),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the maker of an axiom."""
    return _AXIOMS[name]
