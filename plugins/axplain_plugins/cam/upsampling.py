"""From a map to the answer: its positive part, and its grid stretched over x."""

from __future__ import annotations

from typing import Final

from torch import Tensor
from torch.nn import functional

from axplain.errors import ArgumentError
from axplain.problem import Problem

MODES: Final = {1: "linear", 2: "bilinear", 3: "trilinear"}
CURE: Final = "upsample=False gives the layer's own map."


def stretched(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return maps, (rows, channels, *grid), at another size of space, by linear interpolation between cell centres."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return functional.interpolate(maps, size=size, mode=MODES[len(size)], align_corners=False)


def finished(maps: Tensor, problem: Problem, *, relu: bool, upsample: bool) -> Tensor:
    """Return maps, (batch, 1, *grid), as they are asked for."""
    maps = maps.clamp(min=0) if relu else maps
    if not upsample:
        return maps
    size = size_of(problem)
    check_size(size, tuple(maps.shape[2:]), problem.inputs[0])
    return stretched(maps, size)


def size_of(problem: Problem) -> tuple[int, ...]:
    """Return the size of x in space, (batch, channels, *size).

    Raises:
        ArgumentError: there are several inputs, so that it is not clear which one is meant.
    """
    if len(problem.inputs) > 1:
        came = f"True came, and x has {len(problem.inputs)} inputs of which one would have to be meant"
        raise ArgumentError("upsample", came, "False", CURE)
    return tuple(problem.inputs[0].shape[2:])


def check_size(size: tuple[int, ...], grid: tuple[int, ...], x: Tensor, argument: str = "upsample") -> None:
    """Refuse to stretch a grid over an input whose axes of space are not those behind batch and channels.

    Raises:
        ArgumentError: x has other axes of space than the layer's map, or has its channels last.
    """
    came = f"True came, and x has the shape {tuple(x.shape)}, the layer's map {grid}"
    if argument != "upsample":
        came = f"the shape {tuple(x.shape)} came, and the layer's map is {grid}"
    expected = f"x with {len(grid)} axes of space behind batch and channels"
    if len(size) != len(grid):
        raise ArgumentError(argument, came, expected, CURE if argument == "upsample" else "")
    last = x.shape[-1] <= 4 < x.shape[1] if len(grid) > 1 else tuple(x.shape[1:-1]) == grid != size
    if last:
        came += ": its channels seem to be last"
        raise ArgumentError(argument, came, expected, CURE if argument == "upsample" else "")
