"""All features of all inputs side by side, and where each is between its baseline and its input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from axplain.structure import Tensors, accumulator, map_tensors


@dataclass(frozen=True, eq=False)
class Line:
    """The straight line of each example, from which its path strays.

    `begin`, `end`: (batch, ...) per input. `step`: (batch, features), `end - begin` over all inputs. A place on the way
    is (batch, features) numbers from 0, the baseline, to 1, the input; a path may have another one for each feature.
    """

    begin: Tensors
    end: Tensors
    step: Tensor

    @classmethod
    def of(cls, begin: Tensors, end: Tensors) -> Line:
        """Return the line from baselines, (1 or batch, ...) each, to inputs."""
        begin = map_tensors(Tensor.expand_as, begin, end)
        return cls(begin, end, _flat(end) - _flat(begin))

    def start(self) -> Tensor:
        """Return the place of the baselines."""
        return torch.zeros_like(self.step)

    def at(self, place: Tensor) -> Tensors:
        """Return the rows at a place; both ends are met exactly."""
        return map_tensors(
            lambda begin, end, part: torch.lerp(begin, end, part.to(begin.dtype)),
            self.begin,
            self.end,
            self.split(place),
        )

    def flat(self, tensors: Tensors) -> Tensor:
        """Return one tensor per input as (batch, features), in the order of `step`."""
        return _flat(tensors)

    def split(self, features: Tensor) -> Tensors:
        """Return (batch, features) as one tensor per input: the inverse of `flat`."""
        widths = [tensor[0].numel() for tensor in self.end]
        return map_tensors(Tensor.view_as, torch.split(features, widths, 1), self.end)


def _flat(tensors: Tensors) -> Tensor:
    """Join tensors in a dtype that sums keep their digits in."""
    dtype = accumulator(reduce(torch.promote_types, (tensor.dtype for tensor in tensors)))
    return torch.cat([tensor.reshape(len(tensor), -1).to(dtype) for tensor in tensors], 1)
