"""A map from what a layer holds and its gradient: one engine, the formula is data."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Answers, Plan, Points, Reduced
from axplain.structure import accumulator, rows_by_samples
from axplain_plugins.cam.formulas import FORMULAS
from axplain_plugins.cam.layouts import Reshape, reshape_of, without_reader
from axplain_plugins.cam.upsampling import finished


@attrs.frozen(eq=False)
class _Sum:
    """The maps so far, summed: (examples, 1, *grid)."""

    layer: str
    reshape: Reshape
    samples: int = 0
    maps: Tensor | None = None


@attrs.frozen
class ClassActivationMap:
    """The mean over samples of a formula's map; `relu`: its positive part, `upsample`: at the size of x."""

    formula: str
    relu: bool
    upsample: bool
    reshape: Reshape | None = None

    def start(self, block: Problem, plan: Plan) -> _Sum:
        return _Sum(str(block.seating), reshape_of(block, self.reshape))

    def update(self, state: _Sum, points: Points, answers: Answers) -> _Sum:
        assert answers.terms is not None and answers.activation is not None, "checked when the spec was loaded"
        held, gradient = (
            state.reshape(rows.to(accumulator(rows.dtype))) for rows in (answers.activation[0], answers.terms[0])
        )
        if gradient.numel() < answers.terms[0].numel():  # class and register tokens are left out
            unread = ~gradient.flatten(1).any(1)
            if bool((unread & answers.terms[0].flatten(1).any(1)).any()):
                raise without_reader(state.layer)
        maps = FORMULAS[self.formula](held, gradient)
        summed = rows_by_samples(maps.clamp(min=0) if self.relu else maps, points.samples).sum(0)
        maps = summed if state.maps is None else state.maps + summed
        return _Sum(state.layer, state.reshape, state.samples + points.samples, maps)

    def finish(self, state: _Sum, block: Problem) -> Reduced:
        assert state.maps is not None, "a plan has samples"
        return Reduced((finished(state.maps / state.samples, block, relu=False, upsample=self.upsample),))


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `class_activation_map`."""
    return ClassActivationMap
