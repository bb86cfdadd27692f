"""Mean, mean square and variance over samples: three readings of one streaming engine that never subtracts squares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.moments import Moments, merged
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced
from axplain.structure import Tensors, accumulator, rows_by_samples


@attrs.frozen(eq=False)
class Terms:
    """The moments of every input's terms so far, of the terms minus `origin`, the first sample's.

    Where the mean is far above the spread, sums of the terms themselves would lose the spread's digits.
    """

    origin: Tensors
    moments: tuple[Moments, ...]

    @property
    def count(self) -> int:
        """Samples so far."""
        return self.moments[0].count


@attrs.frozen
class MomentAggregation:
    """Streams terms, each multiplied by its tangent and put through `transform`, into one reading of the moments."""

    read: Callable[[Terms], Tensors]
    transform: Callable[[Tensor], Tensor] | None = None
    errors: bool = False
    multiply_by: Literal["tangent"] | None = None

    def start(self, block: Problem, plan: Plan) -> Terms | None:
        return None

    def update(self, state: Terms | None, points: Points, answers: Answers) -> Terms:
        assert answers.terms is not None, "checked when the spec was loaded"
        samples = []
        for i, rows in enumerate(answers.terms):
            terms = rows_by_samples(rows, points.samples)
            terms = terms.to(accumulator(terms.dtype))
            if self.multiply_by == "tangent" and points.tangent is not None:
                terms = terms * points.tangent[i]
            samples.append(self.transform(terms) if self.transform else terms)
        origin = state.origin if state else tuple(terms[0] for terms in samples)
        chunk = [Moments.of(terms - first) for terms, first in zip(samples, origin, strict=True)]
        before = state.moments if state else [None] * len(chunk)
        return Terms(origin, tuple(merged(*pair) for pair in zip(before, chunk, strict=True)))

    def finish(self, state: Terms, block: Problem) -> Reduced:
        certain = self.errors and state.count > 1
        return Reduced(self.read(state), tuple(of.standard_error for of in state.moments) if certain else None)


def _means(terms: Terms) -> Tensors:
    return tuple(first + of.mean for first, of in zip(terms.origin, terms.moments, strict=True))


def _variances(terms: Terms) -> Tensors:
    return tuple(of.variance for of in terms.moments)


_READINGS: dict[str, Callable[..., MomentAggregation]] = {
    "mean": functools.partial(MomentAggregation, _means, errors=True),
    "mean_square": functools.partial(MomentAggregation, _means, torch.square, errors=True),
    "variance": functools.partial(MomentAggregation, _variances),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return what makes `mean`, `mean_square` or `variance`."""
    return _READINGS[name]
