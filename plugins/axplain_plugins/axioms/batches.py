"""Contracts on how a question is put: examples together or alone, in chunks of any size, one tensor or several."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import attrs
import numpy
import torch
from torch import Tensor

from axplain import distribution, hookimpl
from axplain.conformance.case import Axiom, Case, Gap, NotApplicable, Violation
from axplain.references import Distribution
from axplain.structure import Tensors

RUNS: Final = 32
#: of the largest attribution, for float64 and for everything narrower
CLOSE: Final = 1e-9
LOOSE: Final = 1e-4


def check_batch_consistency(case: Case) -> Gap:
    """Every example gets in a batch what it gets alone; targets, baselines and arguments follow the examples."""
    case = _following(case)
    whole = case.attributions()
    alone = [case.example(i).attributions() for i in range(len(case.inputs[0]))]
    joined = tuple(torch.cat(parts) for parts in zip(*alone, strict=True))
    return Gap.between(whole, joined, "a batch against one example at a time", within=_within(case))


def check_chunk_invariance(case: Case) -> Gap:
    """The number of rows in a pass changes memory, not numbers."""
    case = _following(case)
    whole = case.attributions(batch_size=10_000)
    gaps = [
        Gap.between(case.attributions(batch_size=size), whole, f"batch_size={size}", within=_within(case))
        for size in (1, 2, 5, "auto")
    ]
    return max(gaps, key=lambda gap: gap.worst)


def _within(case: Case) -> float:
    return CLOSE if all(x.dtype == torch.float64 for x in case.inputs) else LOOSE


def _following(case: Case) -> Case:
    """Give each example of a case of ours its own target and its own factor, an argument that follows the examples."""
    if case.recipe is None:
        return case
    batch = len(case.inputs[0])

    def scaled(*inputs: Tensor, factor: Tensor) -> Tensor:
        return case.model(*inputs) * factor[:, None]  # type: ignore[no-any-return]

    lacking = case.subject.lacks & {"forward_kwargs"}
    extra = {} if lacking else {"forward_kwargs": {"factor": case.numbers(batch).abs() + 0.5}}
    target = [(case.target + i) % case.recipe.outputs for i in range(batch)]
    return attrs.evolve(case, model=case.model if lacking else scaled, target=target, extra=extra)


def check_tuple_equivalence(case: Case) -> Gap:
    """One tensor, and its two halves as two inputs, get the same; so do their joint baselines.

    Noise is drawn for each tensor by itself, so what cannot be without it is equal in law only.
    """
    if len(case.inputs) > 1 or case.inputs[0].shape[-1] < 2:
        raise NotApplicable("only a single input of at least two columns can be cut in two")
    silence = case.subject.silence
    case = case.with_parameters(**silence)

    def joined(left: Tensor, right: Tensor, **named: Any) -> Any:
        return case.model(torch.cat([left, right], -1), **named)

    halves = attrs.evolve(case, model=joined, x=_halves(case.inputs[0]), baselines=_cut(case.baselines))
    parts = torch.cat(halves.attributions(), -1)
    gap = Gap.between(parts, case.attributions(), "two halves as two inputs", within=_within(case))
    assert gap.tolerance is not None, "it was given"
    noisy = case.subject.seeded and not silence
    return _equal_in_law(case, halves) if noisy and not bool((gap.error <= gap.tolerance).all()) else gap


def _equal_in_law(whole: Case, halves: Case) -> Gap:
    """Compare means over seeds, beside five standard errors."""
    one = whole.estimates(RUNS)
    pieces = [tensor.numel() for tensor in halves.inputs]
    parts = torch.split(halves.estimates(RUNS), pieces, 1)
    two = torch.cat([part.view(RUNS, *x.shape) for part, x in zip(parts, halves.inputs, strict=True)], -1).flatten(1)
    error = (one.mean(0) - two.mean(0)).abs()
    size = one.abs().max().expand_as(error)
    deviation = 5 * ((one.var(0) + two.var(0)) / RUNS).sqrt()
    return Gap(error, size, "two halves as two inputs, in the mean over seeds", deviation + 1e-9 * size)


def _halves(tensor: Tensor) -> Tensors:
    middle = tensor.shape[-1] // 2
    return tensor[..., :middle].contiguous(), tensor[..., middle:].contiguous()


def _cut(baselines: Any) -> Any:
    if isinstance(baselines, Distribution):
        return distribution(_halves(baselines.rows))
    return _halves(baselines) if isinstance(baselines, Tensor) else baselines


def check_target_forms(case: Case) -> None:
    """An index, a list, a tensor, an array, a tuple and a callable that mean one target give the same bits."""
    if not case.subject.call.innermost.spec.requires.target:
        raise NotApplicable("it explains no target")
    if not isinstance(case.target, int) or case.recipe is None:
        raise NotApplicable("the target is no single index")
    batch, index = len(case.inputs[0]), case.target
    forms = {
        "numpy integer": numpy.int64(index),
        "list": [index] * batch,
        "tensor": torch.full((batch,), index),
        "column": torch.full((batch, 1), index),
        "array": numpy.full(batch, index),
        "tuple": (index,),
        "list of tuples": [(index,)] * batch,
        "negative index": index - case.recipe.outputs,
        "callable": lambda output: output[:, index],
    }
    expected = case.attributions()
    faults = [fault for form, target in forms.items() if (fault := _form_fault(case, target, expected, form))]
    if faults:
        raise Violation(f"the target {index}: {'; '.join(faults)}")


def _form_fault(case: Case, target: Any, expected: Tensors, form: str) -> str:
    try:
        got = case.attributions(target=target)
    except NotApplicable:
        raise
    except Exception as error:
        return f"as a {form} it is refused ({type(error).__name__})"
    return "" if all(map(torch.equal, got, expected)) else f"as a {form} it gives other numbers than as an int"


_MODELS: Final = ("smooth", "conv_pool", "attention", "two_input", "adjacent", "softmax")
_AXIOMS: Final[dict[str, Any]] = {
    "batch_consistency": partial(Axiom, check_batch_consistency, models=_MODELS, batch=(2, 4)),
    "chunk_invariance": partial(Axiom, check_chunk_invariance, models=_MODELS, batch=(2, 4)),
    "tuple_equivalence": partial(Axiom, check_tuple_equivalence, models=("smooth", "conv_pool"), own=False),
    "target_forms": partial(Axiom, check_target_forms, models=_MODELS, own=False),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the maker of a contract."""
    return _AXIOMS[name]
