"""Mean, mean square and variance over samples: three readings of one streaming engine that never subtracts squares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced
from axplain.structure import Tensors, accumulator, map_tensors, rows_by_samples


@attrs.frozen(eq=False)
class Moments:
    """Count, mean, and sum of squared deviations of each element so far (Welford; Chan et al. 1983 for chunks).

    Both are of the samples minus `origin`, the first sample: where the mean is far above the spread, sums of the
    samples themselves would lose the spread's digits.
    """

    count: int
    origin: Tensors
    means: Tensors
    spreads: Tensors

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of samples together."""
        count = self.count + other.count
        share = other.count / count
        shift = map_tensors(torch.sub, other.means, self.means)
        means = map_tensors(lambda mean, step: mean + step * share, self.means, shift)
        cross = self.count * share
        spreads = map_tensors(lambda a, b, step: a + b + step * step * cross, self.spreads, other.spreads, shift)
        return Moments(count, self.origin, means, spreads)


@attrs.frozen
class MomentAggregation:
    """Streams terms, each multiplied by its tangent and put through `transform`, into one reading of the moments."""

    read: Callable[[Moments], Tensors]
    transform: Callable[[Tensor], Tensor] | None = None
    errors: bool = False
    multiply_by: Literal["tangent"] | None = None

    def start(self, block: Problem, plan: Plan) -> Moments | None:
        return None

    def update(self, state: Moments | None, points: Points, answers: Answers) -> Moments:
        assert answers.terms is not None, "checked when the spec was loaded"
        samples = []
        for i, rows in enumerate(answers.terms):
            terms = rows_by_samples(rows, points.samples)
            terms = terms.to(accumulator(terms.dtype))
            if self.multiply_by == "tangent" and points.tangent is not None:
                terms = terms * points.tangent[i]
            samples.append(self.transform(terms) if self.transform else terms)
        origin = state.origin if state else tuple(terms[0] for terms in samples)
        chunk = _moments(map_tensors(torch.sub, tuple(samples), origin), origin)
        return chunk if state is None else state.merge(chunk)

    def finish(self, state: Moments, block: Problem) -> Reduced:
        return Reduced(self.read(state), _standard_errors(state) if self.errors and state.count > 1 else None)


def _moments(samples: Tensors, origin: Tensors) -> Moments:
    means = map_tensors(lambda terms: terms.mean(0), samples)
    spreads = map_tensors(lambda terms, mean: (terms - mean).square().sum(0), samples, means)
    return Moments(len(samples[0]), origin, means, spreads)


def _means(moments: Moments) -> Tensors:
    return map_tensors(torch.add, moments.origin, moments.means)


def _variances(moments: Moments) -> Tensors:
    return map_tensors(lambda spread: spread / moments.count, moments.spreads)


def _standard_errors(moments: Moments) -> Tensors:
    pairs = moments.count * (moments.count - 1)
    return map_tensors(lambda spread: (spread / pairs).sqrt(), moments.spreads)


_READINGS: dict[str, Callable[..., MomentAggregation]] = {
    "mean": functools.partial(MomentAggregation, _means, errors=True),
    "mean_square": functools.partial(MomentAggregation, _means, torch.square, errors=True),
    "variance": functools.partial(MomentAggregation, _variances),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return what makes `mean`, `mean_square` or `variance`."""
    return _READINGS[name]
