"""From what a layer holds to maps: (rows, ...) to (rows, channels, *grid), whatever the layer's own layout.

Convolutions hold maps already. Vision transformers hold (tokens, channels), with class and register tokens among them,
or (height, width, channels). Nothing is guessed: a layout that is not known for sure is refused, and `reshape` says it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from axplain.errors import ArgumentError
from axplain.problem import Problem
from axplain.seats.seating import Seating, Slot
from axplain_plugins.cam.course import Course, course_of, halved

#: (rows, ...) of a layer -> (rows, channels, *grid)
Reshape = Callable[[Tensor], Tensor]

CURE: Final = (
    "Pass reshape=, a function from (batch, *{shape}) to (batch, channels, height, width), such as "
    "lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (14, 14))."
)
NO_SPACE: Final = (
    "Choose a layer before the pooling or flattening: a convolution, its activation, or the block that it ends."
)

#: modules that have their channels last, and no subclass that permutes them first
PLAIN: Final = (nn.Linear, nn.LayerNorm, nn.RMSNorm)


def reshape_of(problem: Problem, given: Reshape | None) -> Reshape:
    """Return what makes maps of the layer's values: what the call gives, or what fits the layer.

    Raises:
        ArgumentError: the layer holds several tensors, or none with axes of space; or its layout is not known.
    """
    seating = problem.seating
    assert seating is not None, "the door refuses such a method without a layer"
    if len(seating.slots) != 1:
        came = f"{seating} holds {len(seating.slots)} tensors"
        raise ArgumentError("layer", came, "one", "Choose one: axplain.seat(layer, call=0, item=0).")
    (slot,) = seating.slots
    if given is not None:
        return lambda held: _checked(given, held)
    if len(slot.shape) < 2:
        raise _without_space(seating)
    first = (len(slot.shape) > 2 or _axes(problem) == 1) and _side(problem, seating, slot) == "first"
    if not first and len(slot.shape) == 2:
        return _of_tokens(problem, seating, slot)
    if max(slot.shape[1:] if first else slot.shape[:-1]) == 1:
        raise _without_space(seating)
    return _as_it_is if first else _channels_first


def channels_of_maps(problem: Problem, given: Reshape | None) -> int:
    """Return how many channels the maps of the layer have, before the model runs at x."""
    reshape = reshape_of(problem, given)
    assert problem.seating is not None, "the door refuses such a method without a layer"
    (slot,) = problem.seating.slots
    return reshape(torch.zeros(1, *slot.shape, dtype=slot.dtype, device=problem.device)).shape[1]


def _without_space(seating: Seating) -> ArgumentError:
    (slot,) = seating.slots
    came = f"{seating} holds {slot.shape} for each example"
    return ArgumentError("layer", came, "maps with axes of space that have more than one place", NO_SPACE)


def without_reader(layer: str) -> ArgumentError:
    """Return the refusal of a layer behind which the target reads class tokens alone: its map would be empty."""
    came = f"behind {layer} the target reads nothing from the tokens of x, but from class or register tokens alone"
    cure = "Choose one before the last attention: the first norm of the last block of a vision transformer is usual."
    return ArgumentError("layer", came, "a layer from which the tokens of x still reach the target", cure)


def _as_it_is(held: Tensor) -> Tensor:
    return held


def _channels_first(held: Tensor) -> Tensor:
    return held.movedim(-1, 1)


def _checked(given: Reshape, held: Tensor) -> Tensor:
    found: Any = given(held)
    if isinstance(found, Tensor) and len(found) == len(held) and 3 <= found.ndim <= 5:
        return found
    came = f"it made {tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__} of {tuple(held.shape)}"
    raise ArgumentError("reshape", came, f"({len(held)}, channels, *grid), with one to three axes of space")


def _axes(problem: Problem) -> int | None:
    """Return how many axes of space x has behind batch and channels; None where several inputs do not agree.

    A signal without channels has one.
    """
    found = {max(tensor.ndim - 2, 1) for tensor in problem.inputs if tensor.is_floating_point() and tensor.ndim > 1}
    return found.pop() if len(found) == 1 else None


def _side(problem: Problem, seating: Seating, slot: Slot) -> str:
    """Return whether the channels come first or last: as in the module that ended last and has as many.

    Raises:
        ArgumentError: modules with the channels on either side would fit.
    """
    shape, layer = slot.shape, seating.sites[0].layer
    if isinstance(layer, _ConvNd | _NormBase) and seating.sites[0].of == "output":
        return "first"
    if type(layer) in PLAIN and seating.sites[0].of == "output":
        return "last"
    course = course_of(problem, seating.sites[0], slot)
    fitting = [side for side, size in course.channels if size == shape[0 if side == "first" else -1]]
    if not fitting:
        if len(shape) - 1 == _axes(problem) != 1:  # a convolution's maps, pooled or shuffled
            return "first"
        raise _unknown(seating, "no module before it tells which axis holds the channels")
    if shape[0] == shape[-1] and len(set(fitting)) > 1:
        raise _unknown(seating, "its channels could be on either side")
    return fitting[-1]


def _unknown(seating: Seating, why: str) -> ArgumentError:
    (slot,) = seating.slots
    words = ", ".join(map(str, slot.shape))
    came = f"{seating} holds {slot.shape} for each example, and {why}"
    return ArgumentError("layer", came, "maps, or tokens that lie on a known grid", CURE.format(shape=f"({words})"))


def _of_tokens(problem: Problem, seating: Seating, slot: Slot) -> Reshape:
    """Return what puts the tokens of x on their grid, row after row, and drops all others."""
    course = course_of(problem, seating.sites[0], slot)
    if not _channels_are_last(course, slot.shape):
        raise _unknown(seating, "no module before it has as many channels")
    count = slot.shape[0]
    keep = course.of_x(count)
    if keep is None:
        raise _unknown(seating, "which of its tokens are those of x cannot be told")
    grids = _fitting(problem, course, keep)
    if len(grids) != 1:
        found = f"{len(grids)} grids fit" if grids else "no grid fits"
        raise _unknown(seating, f"{found} its {int(keep.sum())} tokens that depend on x")
    if not _in_rows(problem, course):
        raise _unknown(seating, "tokens do not lie on their grid row after row, here or before")
    (grid,) = grids
    places = keep.nonzero().flatten()
    if len(places) == 1 or prod(grid) == 1:
        raise _without_space(seating)

    def on_grid(held: Tensor) -> Tensor:
        return held[:, places.to(held.device)].transpose(1, 2).reshape(len(held), -1, *grid)

    return on_grid


def _channels_are_last(course: Course, shape: tuple[int, ...]) -> bool:
    """Whether a module before the layer has its channels last, or a convolution has as many, whose maps it holds."""
    return ("last", shape[1]) in course.channels or (("first", shape[1]) in course.channels and shape[0] != shape[1])


def _fitting(problem: Problem, course: Course, keep: Tensor) -> set[tuple[int, ...]]:
    """Return the grids that have as many places: of convolutions, merged or not; else of square patches that tile x."""
    axes, count = _axes(problem), int(keep.sum())
    if axes == 1:
        return {(count,)}
    found = [small for grid in course.grids if axes in (None, len(grid)) for small in halved(grid)]
    sizes = {tuple(tensor.shape[2:]) for tensor in problem.inputs if tensor.ndim > 2}
    if not found and axes is not None and len(sizes) == 1:
        (size,) = sizes
        sides = [side for side in range(1, min(size) + 1) if all(length % side == 0 for length in size)]
        found = [tuple(length // side for length in size) for side in sides]
    return {grid for grid in found if prod(grid) == count}


def _in_rows(problem: Problem, course: Course) -> bool:
    """Whether noise on a first half of x shows in the first quarter of each grid and, at first, not in the last."""
    for count, met in course.tokens.items():
        keep = course.of_x(count)
        grids = _fitting(problem, course, keep) if keep is not None else set()
        if keep is None or len(grids) != 1:
            continue
        (grid,) = grids
        for number, each in enumerate(met):
            for axis in range(len(grid)):
                shown = each.by_half[axis][keep].view(grid).movedim(axis, 0)
                if bool(shown.all()):  # tokens have been mixed
                    continue
                above, below = shown[: -(-len(shown) // 4)], shown[len(shown) - len(shown) // 4 :]
                if not bool(above.all()) or (number == 0 and bool(below.any())):
                    return False
    return True
