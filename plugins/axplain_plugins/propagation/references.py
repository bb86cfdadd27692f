"""Where propagation methods look: at the input, seen from one reference or from each of a set."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Points
from axplain.structure import map_tensors


@attrs.frozen
class FromReference:
    """Looks at the input where it is; its tangent is the difference to the reference of each example."""

    count: int = 1
    columns: Tensor | None = None

    def plan(self, problem: Problem) -> FromReference:
        return self

    def draw(self, block: Problem, samples: range) -> Points:
        steps = map_tensors(torch.sub, block.inputs, block.reference_table().column(0))
        weight = torch.ones(1, dtype=torch.float64, device=block.device)
        return Points(block.inputs, 1, weight, map_tensors(lambda step: step.unsqueeze(0), steps))


@attrs.frozen
class EachReference:
    """Gives an inner method the input once for each reference, with that reference."""

    def plan(self, problem: Problem) -> EachReferencePlan:
        count = problem.reference_table().count
        return EachReferencePlan(count, torch.arange(count, device="cpu"))


@attrs.frozen(eq=False)
class EachReferencePlan:
    """One sample for each column of the references."""

    count: int
    columns: Tensor

    def draw(self, block: Problem, samples: range) -> Points:
        number, examples = len(samples), block.repeated(len(samples))
        return Points(
            x=map_tensors(lambda tensor: tensor[examples], block.inputs),
            samples=number,
            weight=torch.full((number,), 1 / self.count, dtype=torch.float64, device=block.device),
            references=block.reference_table().paired(samples),
        )


_PERTURBATIONS = {"from_reference": FromReference, "each_reference": EachReference}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the class behind `from_reference` or `each_reference`."""
    return _PERTURBATIONS[name]
