"""What attributions sum to: the difference of outputs, relevance that goes in, what a quadrature integrates."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from axplain import hookimpl
from axplain.conformance.case import Axiom, Case, Gap, NotApplicable
from axplain.structure import Tensors, map_tensors


def check_completeness(case: Case) -> Gap:
    """sum_i phi_i = F(x) - mean F(x')."""
    difference, size = case.difference()
    error = (case.summed(case.attributions()) - difference).abs()
    return Gap(error, size, "sum of the attributions against F(x) - F(x')")


def check_linear_exactness(case: Case) -> Gap:
    """On F = w . x + b: phi_i = w_i (x_i - mean x'_i)."""
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in case.inputs)
    slopes = torch.autograd.grad(case.value(*leaves).sum(), leaves)
    absent = [torch.stack(rows).mean(0) for rows in zip(*case.references(), strict=True)]
    expected = map_tensors(lambda x, ref, w: w * (x - ref), case.inputs, tuple(absent), slopes)
    return Gap.between(case.attributions(), expected, "attributions against w (x - x')")


def check_null_at_baseline(case: Case) -> Gap:
    """x = x' implies phi = 0."""
    inputs = case.inputs
    phi = case.attributions_of(case.value, inputs, inputs)
    zeros = map_tensors(torch.zeros_like, phi)
    gap = Gap.between(phi, zeros, "attributions where the input is its own baseline")
    with torch.no_grad():
        size = case.value(*inputs).abs().max().double()
    return Gap(gap.error, size.expand_as(gap.error), gap.about)


def check_quadrature(case: Case) -> Gap:
    """A path of n nodes integrates polynomials of the declared degree, order * n, exactly, and its weights sum to 1."""
    claim = case.claim
    if claim is None or claim.rate is None:
        raise NotApplicable("the claim states no rate, whose order * n is the degree that is exact")
    nodes = 3
    degree = int(claim.rate.order * nodes)
    powers = torch.arange(1, degree + 1)

    def polynomial(*inputs: Tensor) -> Tensor:
        flat = torch.cat([x.flatten(1) for x in inputs], 1)
        return (flat.unsqueeze(-1) ** powers.to(flat.device)).sum((1, 2)) / degree

    more: dict[str, Any] = {claim.rate.parameter: nodes}
    phi = case.attributions_of(polynomial, **more)
    expected = map_tensors(
        lambda x, rows: _powers(x, powers) / degree - (_powers(rows, powers) / degree).mean(0), case.inputs, case.absent
    )
    return Gap.between(phi, expected, f"attributions of a polynomial of degree {degree}, {nodes} nodes")


def _powers(x: Tensor, powers: Tensor) -> Tensor:
    return (x.unsqueeze(-1) ** powers.to(x.device)).sum(-1)


def check_layer_conservation(case: Case) -> Gap:
    """The attributions of any layer that everything flows through sum to F(x) - F(x')."""
    layers = _cuts(case)
    difference, size = case.difference()
    errors = []
    for layer in layers:
        answer = case.explain(layer=layer).attributions
        tensors: Tensors = answer if isinstance(answer, tuple) else (answer,)
        errors.append((case.summed(tensors) - difference).abs())
    return Gap(torch.cat(errors), size.repeat(len(errors)), f"sum over each of the layers {', '.join(layers)}")


def _cuts(case: Case) -> list[str]:
    if not isinstance(case.model, torch.nn.Sequential):
        raise NotApplicable("only in a torch.nn.Sequential is every layer one that everything flows through")
    return [name for name, _ in case.model.named_children()][:-1]


def check_lrp_conservation(case: Case) -> Gap:
    """Relevance at the input and what biases and stabilisers absorbed, `notes["absorbed"]`, sum to F(x)."""
    report = {"report": True} if "report" in case.subject.spec.parameters else {}
    answer = case.explain(**report)
    absorbed = answer.notes.get("absorbed")
    if absorbed is None:
        raise NotApplicable("the explanation reports no absorbed relevance in its notes")
    with torch.no_grad():
        value = case.value(*case.inputs).double()
    tensors = case.structure.unpack(answer.attributions)
    error = (case.summed(tensors) + torch.as_tensor(absorbed, dtype=torch.float64) - value).abs()
    return Gap(error, value.abs(), "relevance of the input and absorbed relevance against F(x)")


_MLPS: Final = ("smooth", "piecewise_linear", "bias_free_relu")
_MORE: Final = ("two_input", "adjacent", "softmax")
_AXIOMS: Final[dict[str, Any]] = {
    "completeness": partial(
        Axiom,
        check_completeness,
        models=(*_MLPS, "linear", "additive", "conv_pool", "attention", "shared_modules", "functional", *_MORE),
    ),
    "linear_exactness": partial(Axiom, check_linear_exactness, models=("linear",), own=False),
    "null_at_baseline": partial(
        Axiom, check_null_at_baseline, models=(*_MLPS, "conv_pool", "attention", "two_input"), wraps=True
    ),
    "quadrature": partial(Axiom, check_quadrature, models=("linear", "two_input"), wraps=True, own=False),
    "layer_conservation": partial(Axiom, check_layer_conservation, models=_MLPS),
    "lrp_conservation": partial(
        Axiom, check_lrp_conservation, models=(*_MLPS, "conv_pool", "attention", "shared_modules"), baselines=("zeros",)
    ),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the maker of an axiom."""
    return _AXIOMS[name]
