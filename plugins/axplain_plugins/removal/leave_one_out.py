"""Everything but one feature, for each feature."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.problem import Problem
from axplain.protocols import Coefficients, Points
from axplain_plugins.removal.memory import drawn_once, kept


@attrs.frozen
class LeaveOneOut:
    """Sample 0 is x; sample 1 + f is x without feature f, whose drop is the feature's attribution."""

    def plan(self, problem: Problem) -> LeaveOneOutPlan:
        features = problem.features().count
        return kept(features * (features + 1), LeaveOneOutPlan, features + 1, features)


@attrs.frozen(eq=False)
class LeaveOneOutPlan:
    """One sample more than there are features."""

    count: int
    features: int
    columns: Tensor | None = None

    @drawn_once
    def draw(self, block: Problem, samples: range) -> Points:
        device = block.device
        own = torch.arange(samples.start, samples.stop, device=device)
        mask = own[:, None] != torch.arange(1, self.features + 1, device=device)
        sample = torch.arange(len(samples), device=device)
        left_out, factor = own - 1, torch.full((len(samples),), -1.0, dtype=torch.float64, device=device)
        if samples.start == 0:
            everyone = torch.arange(self.features, device=device)
            sample = torch.cat([torch.zeros_like(everyone), sample[1:]])
            factor = torch.cat([torch.ones(self.features, dtype=torch.float64, device=device), factor[1:]])
            left_out = torch.cat([everyone, left_out[1:]])
        return Points(None, len(samples), mask=mask, coefficients=Coefficients(sample, left_out, factor))


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `leave_one_out`."""
    return LeaveOneOut
