"""The mean of soft masks, each times the value of what it left visible."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import attrs
from torch import Tensor

from axplain import hookimpl
from axplain.moments import Moments, merged
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced
from axplain.structure import accumulator


@attrs.frozen
class MaskMean:
    """`mean_s weight_s value_s mask_s`, with its standard error."""

    def start(self, block: Problem, plan: Plan) -> tuple[Moments, ...] | None:
        return None

    def update(self, state: tuple[Moments, ...] | None, points: Points, answers: Answers) -> tuple[Moments, ...]:
        assert points.soft is not None and points.weight is not None and answers.value is not None, "checked at load"
        value = answers.value.view(points.samples, -1) * points.weight[:, None]
        before = state or [None] * len(points.soft)
        return tuple(merged(*pair) for pair in zip(before, map(_chunk, points.soft, repeat(value)), strict=True))

    def finish(self, state: tuple[Moments, ...], block: Problem) -> Reduced:
        pairs = list(zip(state, block.inputs, strict=True))
        attributions = tuple(of.mean.expand_as(x).contiguous() for of, x in pairs)
        if state[0].count < 2:
            return Reduced(attributions)
        return Reduced(attributions, tuple(of.standard_error.expand_as(x).contiguous() for of, x in pairs))


def _chunk(mask: Tensor, value: Tensor) -> Moments:
    wide = accumulator(mask.dtype)
    return Moments.of(mask.to(wide) * value.to(wide).view(*value.shape, *[1] * (mask.ndim - 2)))


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `mask_mean`."""
    return MaskMean
