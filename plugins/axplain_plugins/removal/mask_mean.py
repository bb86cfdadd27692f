"""The mean of soft masks, each times the value of what it left visible."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced
from axplain.structure import accumulator


@attrs.frozen(eq=False)
class Moments:
    """Samples so far, and the mean and the summed squared deviations of their terms, (batch, ...) per input."""

    count: int
    means: tuple[Tensor, ...]
    spreads: tuple[Tensor, ...]


@attrs.frozen
class MaskMean:
    """`mean_s weight_s value_s mask_s`, with its standard error."""

    def start(self, block: Problem, plan: Plan) -> Moments | None:
        return None

    def update(self, state: Moments | None, points: Points, answers: Answers) -> Moments:
        assert points.soft is not None and points.weight is not None and answers.value is not None, "checked at load"
        value = answers.value.view(points.samples, -1) * points.weight[:, None]
        means, spreads = [], []
        for i, mask in enumerate(points.soft):
            wide = accumulator(mask.dtype)
            terms = mask.to(wide) * value.to(wide).view(*value.shape, *[1] * (mask.ndim - 2))
            mean = terms.mean(0)
            spread = (terms - mean).square().sum(0)
            if state is not None:
                step = mean - state.means[i]
                share = points.samples / (state.count + points.samples)
                mean, spread = state.means[i] + step * share, state.spreads[i] + spread + step**2 * state.count * share
            means.append(mean)
            spreads.append(spread)
        return Moments((state.count if state else 0) + points.samples, tuple(means), tuple(spreads))

    def finish(self, state: Moments, block: Problem) -> Reduced:
        pairs = zip(state.means, block.inputs, strict=True)
        attributions = tuple(mean.expand_as(x).contiguous() for mean, x in pairs)
        if state.count < 2:
            return Reduced(attributions)
        scale = state.count * (state.count - 1)
        errors = tuple(
            (s / scale).sqrt().expand_as(x).contiguous() for s, x in zip(state.spreads, block.inputs, strict=True)
        )
        return Reduced(attributions, errors)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `mask_mean`."""
    return MaskMean
