"""One step of the path: the features with the smallest gradients move, until the step is as long as it has to be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

#: gradients that are this near to each other, in roundings of the example's largest, are equal and move together
TIE: Final = 64.0


@dataclass(frozen=True)
class Corridor:
    """Where the features may be after a step, as parts of their ways: from `low` to `high`, `middle` in the mean."""

    low: float
    middle: float
    high: float

    @classmethod
    def after(cls, middle: float, width: float) -> Corridor:
        """Return the corridor of some width to both sides of the straight line."""
        return cls(max(middle - width, 0.0), middle, min(middle + width, 1.0))


@dataclass(frozen=True, eq=False)
class Ranking:
    """The features of each example in the order in which they move.

    `size`: (batch, features), how small the gradients are; infinite where a feature cannot move. `ranked`: the same,
    sorted. `reach`: (batch, 1 + features), how far the first none, one, two ... of them can take the path. `movable`:
    (batch, 1), how many can move. `tie`: (batch, 1), the distance up to which two gradients are equal.
    """

    size: Tensor
    ranked: Tensor
    reach: Tensor
    movable: Tensor
    tie: Tensor

    @classmethod
    def of(cls, slope: Tensor, room: Tensor) -> Ranking:
        """Rank gradients, where `room` is how far each feature can take the path."""
        size = torch.where(room > 0, slope.abs(), math.inf).nan_to_num(nan=math.inf, posinf=math.inf)
        ranked, order = size.sort(1)
        reach = torch.nn.functional.pad(room.gather(1, order).cumsum(1), (1, 0))
        largest = torch.where(ranked.isfinite(), ranked, 0.0).amax(1, keepdim=True)
        tie = TIE * torch.finfo(slope.dtype).eps * largest
        return cls(size, ranked, reach, (room > 0).sum(1, keepdim=True), tie)

    def group(self, done: Tensor, fraction: float) -> Tensor:
        """Return the end of the group that moves after the first `done`, with all ties of its last one: (batch, 1)."""
        left = (fraction * (self.movable - done)).sub(1e-6).ceil().long()  # 0.1 of 30 is 3, whatever it rounds to
        last = (done + left.clamp(min=1)).clamp(max=self.ranked.shape[1])
        edge = self.ranked.gather(1, last - 1) + self.tie
        return torch.searchsorted(self.ranked, edge, right=True)

    def first(self, count: Tensor) -> Tensor:
        """Mark the first features of each example, where the count cuts no tie: (batch, features)."""
        edge = self.ranked.gather(1, (count - 1).clamp(min=0))
        return (self.size <= edge) & (count > 0)


def advanced(place: Tensor, slope: Tensor, length: Tensor, corridor: Corridor, fraction: float) -> Tensor:
    """Return the place after a step.

    Features that are behind the corridor are pulled into it. Then groups move to its far end, a fraction of all that
    can, those with the smallest gradients first, until the path is where the corridor's middle is; the last group goes
    only as far as it takes.

    Args:
        place: (batch, features), where the features are, from 0 to 1.
        slope: (batch, features), the gradients there.
        length: (batch, features), the distances from baselines to inputs.
        corridor: where the features may be.
        fraction: of the features that can move, which move at a time.
    """
    if corridor.middle >= 1:
        return torch.ones_like(place)
    place = place.clamp(min=corridor.low)
    need = ((corridor.middle - place) * length).sum(1, keepdim=True)
    ranking = Ranking.of(slope, (corridor.high - place).clamp(min=0) * length)
    done = torch.zeros_like(ranking.movable)
    while True:
        end = ranking.group(done, fraction)
        short = (ranking.reach.gather(1, end) < need) & (end < ranking.movable)
        if not bool(short.any()):
            break
        done = torch.where(short, end, done)
    return _moved(place, ranking, (done, end), need, corridor.high)


def _moved(place: Tensor, ranking: Ranking, groups: tuple[Tensor, Tensor], need: Tensor, high: float) -> Tensor:
    """Move whole groups to the far end, and the last one by the share that is missing."""
    done, end = groups
    before, behind = ranking.reach.gather(1, done), ranking.reach.gather(1, end)
    share = ((need - before) / (behind - before).clamp(min=torch.finfo(place.dtype).tiny)).clamp(0, 1)
    whole = ranking.first(done)
    moved = torch.where(ranking.first(end), torch.lerp(place, torch.full_like(place, high), share), place)
    return torch.where(whole, high, moved)
