"""The values of a table of coalitions, kept until the last is known: plain data for the regressions of this room."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from axplain.protocols import Answers, Plan, Points


@attrs.frozen(eq=False)
class Table:
    """Masks (samples, features), weights and marks of what was drawn (samples,), values (samples, batch)."""

    plan: Plan
    masks: list[Tensor] = attrs.field(factory=list)
    weights: list[Tensor] = attrs.field(factory=list)
    drawn: list[Tensor] = attrs.field(factory=list)
    values: list[Tensor] = attrs.field(factory=list)
    ends: list[tuple[Tensor, Tensor]] = attrs.field(factory=list)

    def add(self, points: Points, answers: Answers) -> None:
        """Add some samples."""
        assert points.mask is not None and points.weight is not None and answers.value is not None, "checked at load"
        self.masks.append(points.mask)
        self.weights.append(points.weight)
        self.drawn.append(torch.zeros_like(points.mask[:, 0]) if points.drawn is None else points.drawn)
        self.values.append(answers.value.view(points.samples, -1))
        if answers.ends is not None and not self.ends:
            self.ends.append(answers.ends)

    def design(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return masks as numbers, weights and marks."""
        wide = torch.float32 if self.masks[0].device.type == "mps" else torch.float64
        return torch.cat(self.masks).to(wide), torch.cat(self.weights).to(wide), torch.cat(self.drawn)

    def whole_values(self) -> Tensor:
        """Return all values, (samples, batch)."""
        wide = torch.float32 if self.values[0].device.type == "mps" else torch.float64
        return torch.cat(self.values).to(wide)
