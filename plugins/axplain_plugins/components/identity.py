"""The input itself, once."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Points


@attrs.frozen
class Identity:
    """Looks at the input where it is; its tangent is the input, so that gradients can be multiplied by it."""

    count: int = 1
    columns: Tensor | None = None

    def plan(self, problem: Problem) -> Identity:
        return self

    def draw(self, block: Problem, samples: range) -> Points:
        tangent = tuple(tensor.unsqueeze(0) for tensor in block.inputs)
        return Points(
            block.inputs, samples=1, weight=torch.ones(1, dtype=torch.float64, device=block.device), tangent=tangent
        )


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `identity`."""
    return Identity
