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
from axplain.structure import Tensors, concatenate


@attrs.define(eq=False)
class AskCoalitions:
    """Values where features of a mask are present and the others are the reference's.

    A coalition that comes again is answered from `kept`, the places in the plan and the values, all features from F(x)
    where that is known, no features once for each reference that is shared. Only what comes again is kept.
    """

    batched: bool = True
    need: Literal["value"] = "value"
    kept: Tensors | None = None
    ends: dict[str, Tensor] = attrs.field(factory=dict)

    def __call__(self, engine: Engine, block: Problem, points: Points, samples: range) -> Answers:
        """Return (samples * batch * targets,) values, sample-major, and both ends once they are known."""
        assert points.mask is not None, "this evaluation is chosen for points that are masks"
        if samples.start == 0:
            self.kept = None
            self.ends.clear()
        present = points.mask.sum(1)
        repeats, alone = points.repeats, block.clean is None and block.batch == 1
        if repeats is None and (alone or (block.clean is None and bool(present.all()))):
            values = self._ask(engine, block, points.mask, None).view(len(samples), -1)
        elif repeats is not None and alone and repeats.whole:
            values = self._distinct(engine, block, points.mask, repeats)
        else:
            values = self._partly_known(engine, block, points, samples, present)
        self._note_ends(values, present, points.mask.shape[1])
        return Answers(value=values.flatten(), ends=self._told())

    def _distinct(self, engine: Engine, block: Problem, mask: Tensor, repeats: Repeats) -> Tensor:
        """Return (samples, targets) values of a whole plan, asking once for each coalition."""
        distinct, place = (tensor.to(mask.device) for tensor in repeats.packed)
        values = self._ask(engine, block, mask.index_select(0, distinct), None).view(len(distinct), -1)
        return values.index_select(0, place)

    def _partly_known(self, engine: Engine, block: Problem, points: Points, samples: range, present: Tensor) -> Tensor:
        """Return (samples, batch * targets) values, asking for those alone that nothing told before."""
        assert points.mask is not None, "this evaluation is chosen for points that are masks"
        width = block.batch * block.targets
        values = torch.empty(len(samples), width, dtype=torch.float64, device=block.device)
        known = self._repeated(values, points.repeats, samples)
        if block.clean is not None:
            full = present == points.mask.shape[1]
            values[full] = block.clean.double()
            known |= full
        empty = (present == 0) & ~known
        shared = Ends.absent(block) if block.batch > 1 and bool(empty.any()) else None
        wanted = (~known & ~empty if shared else ~known).nonzero().flatten()
        told = self._ask(engine, block, points.mask.index_select(0, wanted), shared)
        values[wanted] = told[: len(wanted) * block.batch].reshape(-1, width)
        if shared:
            values[empty] = told[len(wanted) * block.batch :][shared.place].mean(1).flatten()
        self._remember(values, points.repeats, samples)
        return values

    def _ask(self, engine: Engine, block: Problem, mask: Tensor, shared: Ends | None) -> Tensor:
        """Return the values of coalitions, sample-major, and behind them those of references that examples share."""
        rows, index = block.masked(mask), block.repeated(len(mask))
        if shared is not None:
            rows, index = concatenate([rows, shared.rows.x]), torch.cat([index, shared.rows.index])
        if not len(index):
            return torch.empty(0, block.targets, dtype=torch.float64, device=block.device)
        value = engine.ask(block, rows, index, "value").value
        assert value is not None, "a value was asked for"
        return value.double()

    def _repeated(self, values: Tensor, repeats: Repeats | None, samples: range) -> Tensor:
        """Fill in what was asked in an earlier chunk; say which samples repeat one, of any chunk."""
        if repeats is None:
            return torch.zeros(len(samples), dtype=torch.bool, device=values.device)
        earlier = (repeats.first < samples.start).nonzero().flatten()
        if len(earlier):
            assert self.kept is not None, "what comes again was kept"
            places, kept = self.kept
            found = torch.searchsorted(places, repeats.first.index_select(0, earlier))
            values[earlier.to(values.device)] = kept[found.to(kept.device)]
        return (repeats.first != _places(samples)).to(values.device)

    def _remember(self, values: Tensor, repeats: Repeats | None, samples: range) -> None:
        """Answer repetitions within the chunk; keep every value whose coalition comes again in a later one."""
        if repeats is None:
            return
        here = ((repeats.first >= samples.start) & (repeats.first != _places(samples))).nonzero().flatten()
        first = repeats.first.index_select(0, here) - samples.start
        values[here.to(values.device)] = values[first.to(values.device)]
        again = repeats.again.nonzero().flatten()
        more = (again + samples.start, values[again.to(values.device)])
        self.kept = more if self.kept is None else concatenate([self.kept, more])

    def _note_ends(self, values: Tensor, present: Tensor, count: int) -> None:
        if len(self.ends) == 2:
            return
        if present[:2].tolist() == [count, 0]:  # most plans begin with both ends
            self.ends.update(clean=values[0], absent=values[1])
            return
        for name, size in (("clean", count), ("absent", 0)):
            if name not in self.ends and len(found := (present == size).nonzero()):
                self.ends[name] = values[int(found[0])]

    def _told(self) -> tuple[Tensor, Tensor] | None:
        return (self.ends["clean"], self.ends["absent"]) if len(self.ends) == 2 else None


def _places(samples: range) -> Tensor:
    return torch.arange(samples.start, samples.stop, device="cpu")
