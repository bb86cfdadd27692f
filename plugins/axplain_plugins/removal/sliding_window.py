"""A window that slides over each input, everything inside it absent."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.problem import Problem
from axplain.protocols import Coefficients, Points
from axplain_plugins.removal.memory import kept

Shape = int | tuple[int, ...]


@attrs.frozen
class SlidingWindow:
    """Sample 0 is x; each other sample lacks one window. An element's drop is the mean over the windows on it.

    Windows start at every `stride`; the last one of a dimension is cut at the edge, so that every element is covered.
    """

    window: Shape | tuple[Shape, ...]
    stride: Shape | tuple[Shape, ...] | None = None

    def plan(self, problem: Problem) -> WindowPlan:
        shapes = tuple(tuple(tensor.shape[1:]) or (1,) for tensor in problem.inputs)  # a number is one element
        return kept(sum(map(math.prod, shapes)), SlidingWindow._plan, self, shapes, problem.device)

    def _plan(self, shapes: tuple[tuple[int, ...], ...], device: torch.device) -> WindowPlan:
        windows = _per_input(self.window, shapes, "window")
        strides = windows if self.stride is None else _per_input(self.stride, shapes, "stride")
        inside = []
        for shape, window, stride in zip(shapes, windows, strides, strict=True):
            _check(shape, window, stride)
            sizes = zip(shape, window, stride, strict=True)
            inside.append([_membership(*size).to(device) for size in sizes])
        return WindowPlan.of(inside)


def _per_input(given: Any, shapes: tuple[tuple[int, ...], ...], name: str) -> list[tuple[int, ...]]:
    """Return a full shape for each input; see `_full`."""
    several = isinstance(given, tuple) and any(isinstance(item, tuple) for item in given)
    each = given if several else (given,) * len(shapes)
    if len(each) != len(shapes):
        raise ArgumentError(name, f"{len(each)} shapes came", f"one, or {len(shapes)}: one for each input")
    return [_full(item, shape, name) for item, shape in zip(each, shapes, strict=True)]


def _full(item: Shape, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """A number holds for every dimension behind the channels, if there are any; a short shape for the last ones."""
    if isinstance(item, int):
        item = (item,) * (len(shape) - 1 if len(shape) > 2 else len(shape))
    if len(item) > len(shape):
        raise ArgumentError(name, f"{item} came for an input of shape {shape}", f"at most {len(shape)} sizes")
    return shape[: len(shape) - len(item)] + item


def _check(shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...]) -> None:
    for size, wide, step in zip(shape, window, stride, strict=True):
        if not 1 <= wide <= size:
            raise ArgumentError("window", f"{window} came for an input of shape {shape}", f"sizes from 1 to {shape}")
        if not 1 <= step <= wide:
            cure = "A step beyond the window would leave elements uncovered."
            raise ArgumentError("stride", f"{stride} came for the window {window}", f"steps from 1 to {window}", cure)


def _membership(size: int, window: int, stride: int) -> Tensor:
    """Return (windows, size): whether an index of one dimension lies in each window."""
    starts = torch.arange(math.ceil((size - window) / stride) + 1, device="cpu")[:, None] * stride
    index = torch.arange(size, device="cpu")
    return (index >= starts) & (index < starts + window)


@attrs.frozen(eq=False)
class WindowPlan:
    """`inside`: for each input and dimension, (windows, size). `coverage`: windows on each element, over all inputs."""

    count: int
    inside: list[list[Tensor]]
    firsts: list[int]
    coverage: Tensor
    columns: Tensor | None = None

    @classmethod
    def of(cls, inside: list[list[Tensor]]) -> WindowPlan:
        counts = [math.prod(len(dimension) for dimension in dimensions) for dimensions in inside]
        coverage = torch.cat([_product([d.sum(0, keepdim=True) for d in dimensions])[0] for dimensions in inside])
        firsts = [1 + sum(counts[:i]) for i in range(len(counts) + 1)]
        return cls(firsts[-1], inside, firsts, coverage.double())

    def draw(self, block: Problem, samples: range) -> Points:
        covered = torch.zeros(len(samples), len(self.coverage), dtype=torch.bool, device=block.device)
        left = 0
        for dimensions, first, end in zip(self.inside, self.firsts, self.firsts[1:], strict=False):
            width = math.prod(dimension.shape[1] for dimension in dimensions)
            start, stop = max(samples.start, first), min(samples.stop, end)
            if start < stop:
                rows = slice(start - samples.start, stop - samples.start)
                covered[rows, left : left + width] = _windows(
                    dimensions, torch.arange(start - first, stop - first, device=block.device)
                )
            left += width
        return Points(None, len(samples), mask=~covered, coefficients=self._coefficients(covered, samples))

    def _coefficients(self, covered: Tensor, samples: range) -> Coefficients:
        sample, feature = covered.nonzero(as_tuple=True)
        factor = -1.0 / self.coverage[feature]
        if samples.start == 0:
            everyone = torch.arange(len(self.coverage), device=sample.device)
            sample = torch.cat([torch.zeros_like(everyone), sample])
            feature = torch.cat([everyone, feature])
            factor = torch.cat([torch.ones_like(self.coverage), factor])
        return Coefficients(sample, feature, factor)


def _windows(dimensions: list[Tensor], index: Tensor) -> Tensor:
    """Return (windows, elements) for some windows of one input, the last dimension fastest."""
    places = torch.unravel_index(index, [len(dimension) for dimension in dimensions])
    return _product([dimension[place] for dimension, place in zip(dimensions, places, strict=True)])


def _product(rows: list[Tensor]) -> Tensor:
    """Return the outer product of rows of each dimension: (rows, elements)."""
    out = rows[0]
    for more in rows[1:]:
        out = (out.unsqueeze(-1) * more.unsqueeze(1)).flatten(1)
    return out


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `sliding_window`."""
    return SlidingWindow
