"""Gaussian scale space on a grid: blurring is diffusion, and diffusion is a factor on each cosine of the input.

On a grid, the blur that never makes a new extremum is the diffusion that neighbours exchange (Lindeberg 1990); for a
sigma of more than about one element it is the familiar Gaussian. Nothing flows over the border, so means are kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from axplain.structure import accumulator

#: batch and channels come first; what follows is space
FIRST_AXIS = 2


@dataclass(frozen=True, eq=False)
class ScaleSpace:
    """All blurs of a tensor (batch, channels, space ...).

    `spectrum`: the tensor in cosines along each axis of space. `decay`: (space ...), how fast each of them fades.
    """

    spectrum: Tensor
    decay: Tensor

    @classmethod
    def of(cls, x: Tensor) -> ScaleSpace:
        """Return the blurs of `x`, in float32 at least."""
        x = x.to(accumulator(x.dtype))
        space = x.shape[FIRST_AXIS:]
        decay = torch.zeros(space, dtype=x.dtype, device=x.device)
        for axis, length in enumerate(space):
            rates = 2 - 2 * torch.cos(math.pi * torch.arange(length, dtype=torch.float64, device="cpu") / length)
            decay += rates.to(decay).view(-1, *[1] * (len(space) - axis - 1))
            x = _along(x, cosines(length).to(x), FIRST_AXIS + axis)
        return cls(x, decay)

    def blurred(self, sigma: Tensor) -> Tensor:
        """Return x at some scales: (scales, batch, channels, space ...)."""
        return self._back(self._factor(sigma))

    def slope(self, sigma: Tensor) -> Tensor:
        """Return the derivative of `blurred` by sigma."""
        return self._back(-self._each(sigma) * self.decay * self._factor(sigma))

    def _factor(self, sigma: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._each(sigma).square() * self.decay)

    def _each(self, sigma: Tensor) -> Tensor:
        return sigma.to(self.spectrum).view(-1, *[1] * (self.spectrum.ndim))

    def _back(self, factor: Tensor) -> Tensor:
        x = self.spectrum * factor
        for axis in range(FIRST_AXIS + 1, x.ndim):
            x = _along(x, cosines(x.shape[axis]).to(x).T, axis)
        return x


def cosines(length: int) -> Tensor:
    """Return the orthonormal cosines of a grid as rows, the slowest first: (length, length), in float64."""
    grid = torch.arange(length, dtype=torch.float64, device="cpu")
    waves = torch.cos(math.pi / length * grid[:, None] * (grid + 0.5)) * math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply one axis by a matrix."""
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
