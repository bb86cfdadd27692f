"""Guided Grad-CAM: guided backpropagation where Grad-CAM sees the class."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

from axplain import hookimpl
from axplain.composition import run_method
from axplain.engine import Engine
from axplain.hidden import refuse_hidden_code
from axplain.parameters import settle
from axplain.problem import Problem
from axplain.protocols import Outcome, Settings
from axplain.structure import map_tensors
from axplain_plugins.cam.upsampling import check_size, stretched


@attrs.frozen
class GuidedGradCam:
    """The product of two methods: one attributes to the inputs, the other's map is stretched over each of them."""

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        refuse_hidden_code(problem.model)
        gradcam = settle("gradcam", {"upsample": False, "reshape": settings.values["reshape"]})
        guided = settle("guided_backprop", {"unknown": settings.values["unknown"]})
        (maps,) = run_method(gradcam, problem, engine, settings).attributions
        outcome = run_method(guided, attrs.evolve(problem, seating=None), engine, settings)
        grid = tuple(maps.shape[2:])

        def product(attributions: Tensor) -> Tensor:
            size = tuple(attributions.shape[2:])
            check_size(size, grid, attributions, "x")
            return attributions * stretched(maps, size).to(attributions.dtype)

        return attrs.evolve(outcome, attributions=map_tensors(product, outcome.attributions))


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `guided_gradcam`."""
    return GuidedGradCam
