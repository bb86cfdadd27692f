"""Asks for the values of coalitions of features, none twice: the value cache of every removal method."""

from __future__ import annotations

from typing import Literal

import attrs
import torch
from torch import Tensor

from axplain.engine import Engine
from axplain.problem import Problem
from axplain.protocols import Answers, Points, Repeats
from axplain.residuals import Ends
from axplain.structure import map_tensors


@attrs.define(eq=False)
class AskCoalitions:
    """Values where features of a mask are present and the others are the reference's.

    A coalition that comes again is answered from `kept`, all features from F(x) where that is known, no features once
    for each reference that is shared. Only what comes again is kept.
    """

    batched: bool = True
    need: Literal["value"] = "value"
    kept: dict[int, Tensor] = attrs.field(factory=dict)
    ends: dict[str, Tensor] = attrs.field(factory=dict)

    def __call__(self, engine: Engine, block: Problem, points: Points, samples: range) -> Answers:
        """Return (samples * batch * targets,) values, sample-major, and both ends once they are known."""
        assert points.mask is not None, "this evaluation is chosen for points that are masks"
        if samples.start == 0:
            self.kept.clear()
            self.ends.clear()
        width = block.batch * block.targets
        values = torch.full((len(samples), width), torch.nan, dtype=torch.float64, device=block.device)
        present = points.mask.sum(1)
        if block.clean is not None:
            values[present == block.features().count] = block.clean.double()
        known = self._repeated(values, points.repeats, samples) | ~values[:, 0].isnan()
        empty = (present == 0) & ~known
        shared = Ends.absent(block) if block.batch > 1 and bool(empty.any()) else None
        wanted = (~known & ~empty if shared else ~known).nonzero().flatten()
        told = self._ask(engine, block, points.mask[wanted], shared)
        values[wanted] = told[: len(wanted) * block.batch].reshape(-1, width)
        if shared:
            values[empty] = told[len(wanted) * block.batch :][shared.place].mean(1).flatten()
        self._remember(values, points.repeats, samples)
        self._note_ends(values, present, points.mask.shape[1])
        return Answers(value=values.flatten(), ends=self._told())

    def _ask(self, engine: Engine, block: Problem, mask: Tensor, shared: Ends | None) -> Tensor:
        """Return the values of coalitions, sample-major, and behind them those of references that examples share."""
        rows, index = block.masked(mask), block.everyone().repeat(len(mask))
        if shared is not None:
            rows = map_tensors(lambda points, more: torch.cat([points, more]), rows, shared.rows.x)
            index = torch.cat([index, shared.rows.index])
        if not len(index):
            return torch.empty(0, block.targets, dtype=torch.float64, device=block.device)
        value = engine.ask(block, rows, index, "value").value
        assert value is not None, "a value was asked for"
        return value.double()

    def _repeated(self, values: Tensor, repeats: Repeats | None, samples: range) -> Tensor:
        """Fill in what was asked in an earlier chunk; say which samples repeat one, of any chunk."""
        if repeats is None:
            return torch.zeros(len(samples), dtype=torch.bool, device=values.device)
        own = torch.arange(samples.start, samples.stop, device="cpu")
        for place in (repeats.first < samples.start).nonzero().flatten().tolist():
            values[place] = self.kept[int(repeats.first[place])]
        return (repeats.first != own).to(values.device)

    def _remember(self, values: Tensor, repeats: Repeats | None, samples: range) -> None:
        """Answer repetitions within the chunk; keep every value whose coalition comes again."""
        if repeats is None:
            return
        here = (repeats.first >= samples.start).nonzero().flatten().to(values.device)
        values[here] = values[repeats.first.to(values.device)[here] - samples.start]
        for place in repeats.again.nonzero().flatten().tolist():
            self.kept[samples.start + place] = values[place]

    def _note_ends(self, values: Tensor, present: Tensor, count: int) -> None:
        for name, found in (("clean", present == count), ("absent", present == 0)):
            if name not in self.ends and bool(found.any()):
                self.ends[name] = values[int(found.nonzero()[0])]

    def _told(self) -> tuple[Tensor, Tensor] | None:
        return (self.ends["clean"], self.ends["absent"]) if len(self.ends) == 2 else None
