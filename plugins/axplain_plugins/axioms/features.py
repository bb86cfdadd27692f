"""What single features get: those that matter, those that do not, those that are exchanged or only raise the output."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from axplain import hookimpl
from axplain.conformance.case import Axiom, Case, Gap, NotApplicable, Violation
from axplain.structure import Tensors, map_tensors

#: a difference of outputs below this, beside their size, proves nothing
NOTICEABLE: Final = 1e-3


def check_sensitivity(case: Case) -> Gap:
    """Where x and x' differ in one feature and F differs, that feature's attribution is not zero."""
    first = case.numeric[0]
    place = case.whole(first[0].numel())
    moved = first.flatten(1).clone()
    moved[:, place] += 1.0 + case.numbers(1).abs() * 2  # beyond where gradients saturate, at the far end
    absent = case.inputs
    inputs = (moved.view_as(first), *absent[1:])
    with torch.no_grad():
        there, here = case.value(*inputs).double(), case.value(*absent).double()
    change = (there - here).abs()
    if not float(change) > NOTICEABLE * (1 + float(there.abs())):
        raise NotApplicable("the feature does not change the output")
    got = case.attributions_of(case.value, inputs, absent)[0].flatten(1)[:, place].double().abs()
    missed = torch.where(got > 1e-9 * change, 0.0, change)
    return Gap(missed, torch.zeros_like(missed), f"attribution of the only feature that differs, number {place}")


def check_dummy(case: Case) -> Gap:
    """A feature that F does not depend on gets nothing."""
    if case.recipe is not None and case.recipe.kind == "with_dummy":
        phi = case.attributions()
        return Gap.between(phi[0][:, 0], torch.zeros(len(phi[0])), "attribution of a feature with a weight of zero")
    extra = case.numbers(len(case.inputs[0]), *[1] * (case.inputs[0].ndim - 2), 3)

    def blind(*inputs: Tensor) -> Tensor:
        return case.value(*inputs[:-1]) + 0.0 * inputs[-1].flatten(1).sum(1)

    absent = (*case.absent, extra.new_zeros(len(case.absent[0]), *extra.shape[1:]))
    got = case.attributions_of(blind, (*case.inputs, extra), absent)[-1]
    return Gap.between(got, torch.zeros_like(got), "attributions of an input that is multiplied by zero")


def check_symmetry(case: Case) -> Gap:
    """Features that F, x and x' do not tell apart get equal attributions."""
    first = case.inputs[0]
    if first[0].numel() < 2:
        raise NotApplicable("one feature is symmetric to none")
    inputs, absent = _evened(case.inputs), _evened(case.absent)
    function = case.value if _tied(case) else lambda *rows: case.value(*rows) + case.value(*_swapped(rows))
    flat = case.attributions_of(function, inputs, absent)[0].flatten(1)
    return Gap.between(flat[:, 0], flat[:, 1], "attributions of two features that nothing tells apart")


def _tied(case: Case) -> bool:
    return case.recipe is not None and case.recipe.kind == "symmetric"


def _evened(tensors: Tensors) -> Tensors:
    """Give the first two features of the first tensor one value."""
    flat = tensors[0].flatten(1).clone()
    flat[:, 1] = flat[:, 0]
    return (flat.view_as(tensors[0]), *tensors[1:])


def _swapped(tensors: Tensors) -> Tensors:
    """Exchange the first two features of the first tensor."""
    flat = tensors[0].flatten(1)
    return (torch.cat([flat[:, 1:2], flat[:, 0:1], flat[:, 2:]], 1).view_as(tensors[0]), *tensors[1:])


def check_positivity(case: Case) -> Gap:
    """Where F never falls as features rise, and x >= x', no attribution is negative."""
    absent = tuple(x - rows.abs() for x, rows in zip(case.inputs, case.absent, strict=True))
    phi = case.attributions_of(case.value, case.inputs, absent)
    below = tuple(values.clamp(max=0.0) for values in phi)
    return Gap.between(below, map_tensors(torch.zeros_like, below), "negative attributions on a monotone model")


def check_strong_monotonicity(case: Case) -> Gap:
    """Where a feature adds at least as much to G as to F, whatever the others are, phi_i(G) >= phi_i(F)."""
    first = case.inputs[0]
    place = case.whole(first[0].numel())
    slope = case.numbers(first[0].numel()).abs()
    slope[place] = 1.0
    rising = torch.maximum(first, case.absent[0].amax(0, keepdim=True)) + 0.5
    inputs = (rising, *case.inputs[1:])

    def more(*rows: Tensor) -> Tensor:
        flat = rows[0].flatten(1)
        others = torch.cat([flat[:, :place], flat[:, place + 1 :]], 1).square().sum(1)
        return case.value(*rows) + flat[:, place] * (1 + others)

    least, most = (case.attributions_of(f, inputs)[0].flatten(1)[:, place].double() for f in (case.value, more))
    lost = (least - most).clamp(min=0.0)
    return Gap(lost, least.abs(), "attribution that was lost though the feature adds more")


def check_feature_masks(case: Case) -> Gap:
    """Numbers of groups mean nothing but which elements go together, and a group has one attribution."""
    counts = [tensor[0].numel() for tensor in case.inputs]
    each = torch.arange(sum(counts)).split(counts)  # type: ignore[no-untyped-call]
    single = [ids.view(1, *tensor.shape[1:]) for ids, tensor in zip(each, case.inputs, strict=True)]
    plain = case.attributions()
    named = case.attributions(feature_mask=case.structure.pack([7 * ids - 9 for ids in single]))
    pairs = [ids // 2 for ids in single]  # neighbours go together, also across inputs
    grouped = case.attributions(feature_mask=case.structure.pack(pairs))
    flat = torch.cat([tensor.flatten(1) for tensor in grouped], 1)
    first, second = flat[:, : 2 * (flat.shape[1] // 2) : 2], flat[:, 1::2]
    if not torch.equal(first, second):
        raise Violation("elements of one group have different attributions")
    return Gap.between(named, plain, "every element a group, by sparse and negative numbers", within=1e-9)


_MODELS: Final = ("smooth", "piecewise_linear", "conv_pool", "attention", "shared_modules", "functional", "two_input")
_FLAT: Final = ("smooth", "piecewise_linear", "additive", "two_input")
_AXIOMS: Final[dict[str, Any]] = {
    "feature_masks": partial(
        Axiom, check_feature_masks, models=("smooth", "attention", "two_input"), features=(2, 4), own=False
    ),
    "sensitivity": partial(Axiom, check_sensitivity, models=("saturated", "smooth", "attention"), wraps=True),
    "dummy": partial(Axiom, check_dummy, models=("with_dummy", *_MODELS), wraps=True),
    "symmetry": partial(Axiom, check_symmetry, models=("symmetric", *_MODELS), wraps=True),
    "positivity": partial(Axiom, check_positivity, models=("monotone",), wraps=True, own=False),
    "strong_monotonicity": partial(Axiom, check_strong_monotonicity, models=_FLAT, wraps=True, own=False),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the maker of an axiom."""
    return _AXIOMS[name]
