"""Random masks that are coarse grids of zeros and ones, made smooth and shifted by chance."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.protocols import Points
from axplain.structure import map_tensors

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@attrs.frozen
class SmoothMasks:
    """Grids of `cells` along each spatial dimension, a cell kept with probability p, interpolated, cropped by chance.

    Where the mask is m the model sees m x + (1 - m) x'. All inputs have their own grid, drawn together.
    """

    n: int
    cells: int
    p: float

    def plan(self, problem: Problem) -> SmoothPlan:
        for tensor in problem.inputs:
            if not 3 <= tensor.ndim <= 5:
                raise ArgumentError(
                    "x", f"shape {tuple(tensor.shape)} came", "channels and one to three spatial dimensions"
                )
        generator = problem.key.at("masks").generator()
        grids, shifts = [], []
        for tensor in problem.inputs:
            dims = tensor.ndim - 2
            kept = torch.rand(self.n, *[self.cells + 1] * dims, generator=generator, dtype=torch.float64, device="cpu")
            grids.append(kept < self.p)
            shifts.append(torch.rand(self.n, dims, generator=generator, dtype=torch.float64, device="cpu"))
        return SmoothPlan(self.n, self.cells, self.p, tuple(grids), tuple(shifts))


@attrs.frozen(eq=False)
class SmoothPlan:
    """Per input: grids (samples, cells + 1, ...) and shifts within a cell (samples, dimensions)."""

    count: int
    cells: int
    p: float
    grids: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    columns: Tensor | None = None

    def draw(self, block: Problem, samples: range) -> Points:
        rows = slice(samples.start, samples.stop)
        soft = tuple(
            self._masks(grid[rows], shift[rows], x)
            for grid, shift, x in zip(self.grids, self.shifts, block.inputs, strict=True)
        )
        absent = block.reference_table().column(0)
        x = map_tensors(_mixed, soft, block.inputs, absent)
        weight = torch.full((len(samples),), 1.0 / self.p, dtype=torch.float64, device=block.device)
        return Points(x, len(samples), weight=weight, soft=soft)

    def _masks(self, grids: Tensor, shifts: Tensor, x: Tensor) -> Tensor:
        """Return (samples, 1, 1, space): the interpolated grids, one cell larger than the input, cropped."""
        space = x.shape[2:]
        steps = [-(-size // self.cells) for size in space]
        large = [step * (self.cells + 1) for step in steps]
        smooth = interpolate(
            grids.unsqueeze(1).to(x.device, x.dtype), large, mode=_MODES[len(space)], align_corners=False
        )
        starts = (shifts * torch.tensor(steps, dtype=shifts.dtype, device="cpu")).long()
        crops = [
            mask[(slice(None), *(slice(s, s + size) for s, size in zip(start, space, strict=True)))]
            for mask, start in zip(smooth, starts.tolist(), strict=True)
        ]
        return torch.stack(crops).unsqueeze(1)


def _mixed(mask: Tensor, x: Tensor, absent: Tensor) -> Tensor:
    return torch.lerp(absent.unsqueeze(0), x.unsqueeze(0), mask).flatten(0, 1)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `smooth_masks`."""
    return SmoothMasks
