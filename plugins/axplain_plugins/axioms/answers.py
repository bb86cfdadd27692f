"""Contracts on the answer itself: it mirrors the input, in its dtype, and carries no graph."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from axplain import hookimpl
from axplain.conformance.case import Axiom, Case, Gap, NotApplicable, Violation
from axplain.structure import map_tensors, structure_of

#: between two inputs of which the attributions of a float64 call differ by their slope, not by rounding
STEP: Final = 1e-6


def check_mirror(case: Case) -> None:
    """Attributions have the structure, shape and device of the input, and are finite; nobody else's memory."""
    answer = case.explain().attributions
    spec = case.subject.call.innermost.spec
    at_layer = spec.seats == ("layer",) and spec.mirrors != "input" and case.recipe is not None
    if "layer" in case.extra and spec.mirrors is True:
        expected: Any = _held(case)
    else:
        expected = case.held_at(*case.inputs) if at_layer else case.x
    if type(answer) is not type(expected):
        what = "x" if expected is case.x else "what the layer holds"
        raise Violation(f"{what} is a {type(expected).__name__} and the attributions are a {type(answer).__name__}")
    structure = structure_of(expected)
    assert structure is not None, "it is x, or a tensor"
    tensors, mirrored = structure.unpack(answer), structure.unpack(expected)
    if len(tensors) != len(mirrored):
        raise Violation(f"{len(tensors)} attributions came for {len(mirrored)} inputs")
    for got, x in zip(tensors, mirrored, strict=True):
        free = not spec.mirrors and got.ndim > 1 and len(got) == len(x)  # a number for each place or token
        if not (free or got.shape == x.shape) or got.device != x.device:
            raise Violation(
                f"an input {tuple(x.shape)} on {x.device} got attributions {tuple(got.shape)} on {got.device}"
            )
        if not bool(got.isfinite().all()):
            raise Violation(f"{int((~got.isfinite()).sum())} of {got.numel()} attributions are not finite")
        if got.data_ptr() == x.data_ptr():
            raise Violation("the attributions are the memory of the input")


def _held(case: Case) -> Tensor:
    """Return what the user's layer holds."""
    layer, found = case.extra["layer"], []
    layer = case.made.get_submodule(layer) if isinstance(layer, str) else layer
    if not isinstance(layer, nn.Module):
        raise NotApplicable("the kit reads the output of one layer, no seats or lists")
    with layer.register_forward_hook(lambda _, __, output: found.append(output)), torch.no_grad():
        case.output(*case.inputs)
    if len(found) != 1 or not isinstance(found[0], Tensor) or len(found[0]) != len(case.inputs[0]):
        raise NotApplicable("the kit reads layers that run once and return one tensor with the examples first")
    return found[0]


def check_detached(case: Case) -> None:
    """Attributions carry no graph, whatever the input does."""
    inputs = map_tensors(lambda x: x.detach().clone().requires_grad_(x.is_floating_point()), case.inputs)
    for x in (case.x, case.structure.pack(inputs)):
        answer = case.explain(x=x).attributions
        structure = structure_of(answer)
        if structure is None:
            raise Violation(f"the attributions are a {type(answer).__name__}")
        for got in structure.unpack(answer):
            if got.requires_grad or got.grad_fn is not None:
                raise Violation("the attributions carry a graph: .numpy() fails, and the model stays in memory")


def check_dtype(case: Case) -> Gap:
    """The dtype of the answer is the input's; float64 keeps its digits, float32 is close to it, bfloat16 runs."""
    exact = case.attributions()
    for got, x in zip(exact, case.inputs, strict=True):
        if got.dtype != x.dtype:
            raise Violation(f"an input of {x.dtype} got attributions of {got.dtype}")
    _check_digits(case, exact)
    single = _in(case, torch.float32)
    _in(case, torch.bfloat16)
    return Gap.between(single, exact, "float32 attributions against float64", within=1e-4)


def _check_digits(case: Case, middle: tuple[Tensor, ...]) -> None:
    """Over steps of 1e-6 attributions bend by their curvature times 1e-12; single precision shows as 1e-8."""
    left, right = (case.attributions(x=case.structure.pack([x + step for x in case.inputs])) for step in (-STEP, STEP))
    for low, here, high in zip(left, middle, right, strict=True):
        bend = (low - 2 * here + high).abs()
        if float(bend.median()) > 2e-9 * float(here.abs().max()):
            raise Violation(
                "the attributions of a float64 call are no more exact than float32: something accumulates in float32"
            )


def _in(case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    if not isinstance(case.model, nn.Module) or (case.baselines is not None and not isinstance(case.baselines, float)):
        raise NotApplicable("only a module is moved to another dtype")
    model = copy.deepcopy(case.model).to(dtype)
    x = case.structure.pack(map_tensors(lambda tensor: tensor.to(dtype), case.inputs))
    answer = case.attributions(model, x)
    for got in answer:
        if got.dtype != dtype or not bool(got.isfinite().all()):
            raise Violation(f"in {dtype} the attributions are of {got.dtype}, finite: {bool(got.isfinite().all())}")
    return answer


_MODELS: Final = ("smooth", "conv_pool", "attention", "shared_modules", "functional", "two_input")
_AXIOMS: Final[dict[str, Any]] = {
    "mirror": partial(Axiom, check_mirror, models=_MODELS),
    "detached": partial(Axiom, check_detached, models=_MODELS),
    "dtype": partial(
        Axiom, check_dtype, models=("smooth", "attention", "two_input"), baselines=("zeros", "number"), own=False
    ),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the maker of a contract."""
    return _AXIOMS[name]
