"""A weighted sum over samples: what quadrature rules need."""

from __future__ import annotations

from typing import Any, Literal

import attrs
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced
from axplain.structure import Tensors, accumulator, map_tensors, rows_by_samples


@attrs.frozen
class WeightedSum:
    r"""`sum_s weight_s * term_s`, each term times the tangent of its sample where `multiply_by` says so.

    A tangent that is the same for all samples is factored out, so that a chunk is one matrix product.
    """

    multiply_by: Literal["tangent"] | None = None

    def start(self, block: Problem, plan: Plan) -> Tensors | None:
        return None

    def update(self, state: Tensors | None, points: Points, answers: Answers) -> Tensors:
        assert points.weight is not None and answers.terms is not None, "checked when the spec was loaded"
        weight = points.weight
        tangents = points.tangent if self.multiply_by == "tangent" else None
        sums = []
        for i, rows in enumerate(answers.terms):
            terms = rows_by_samples(rows, points.samples)
            tangent = tangents[i] if tangents is not None else None
            sums.append(_contract(weight, terms, tangent))
        return tuple(sums) if state is None else map_tensors(Tensor.add_, state, tuple(sums))

    def finish(self, state: Tensors, block: Problem) -> Reduced:
        return Reduced(state)


def _contract(weight: Tensor, terms: Tensor, tangent: Tensor | None) -> Tensor:
    """Sum (samples, examples, ...) terms with (samples,) weights; the tangent has 1 or `samples` as its first size."""
    terms = terms.to(accumulator(terms.dtype))
    if tangent is not None and len(tangent) > 1:
        terms = terms * tangent
    weight = weight.to(terms.device, terms.dtype)
    summed = terms[0] * weight if len(terms) == 1 else (weight @ terms.flatten(1)).view(terms.shape[1:])
    return summed * tangent[0] if tangent is not None and len(tangent) == 1 else summed


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `weighted_sum`."""
    return WeightedSum
