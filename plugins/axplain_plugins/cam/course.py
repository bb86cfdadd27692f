"""What runs before a layer: which of its axes hold channels, which grids of patches there are, which tokens x makes.

One small pass tells: an example, the same behind noise, and behind noise on its first half along each axis. A token
that noise does not change is a class or register token; the halves say in which order the others lie.
"""

from __future__ import annotations

from contextlib import ExitStack
from math import prod
from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_flatten

from axplain.memory import remembered
from axplain.problem import Problem
from axplain.randomness import Key
from axplain.seats.seating import Slot
from axplain.seats.sites import Site
from axplain.structure import Tensors

#: the example, noise, and noise on the half along each of up to three axes
AXES: Final = 3
ROWS: Final = 2 + AXES
Side = Literal["first", "last"]


@attrs.frozen(eq=False)
class Tokens:
    """How tokens depend on x where they came by: whether noise on x shows, (tokens,), and on halves, (axes, tokens)."""

    moved: Tensor
    by_half: Tensor

    @property
    def mixed(self) -> bool:
        """Whether every token has seen all of x."""
        return bool(self.moved.all()) and bool(self.by_half.all())


@attrs.frozen(eq=False)
class Course:
    """What was met up to a layer, in the order in which modules ended.

    `channels`: on which side of its output a module has its channels, and how many.
    `grids`: the axes of space of what convolutions returned. `tokens`: by their number, whatever held as many.
    """

    channels: tuple[tuple[Side, int], ...]
    grids: tuple[tuple[int, ...], ...]
    tokens: dict[int, tuple[Tokens, ...]]

    def of_x(self, count: int) -> Tensor | None:
        """Return which of so many tokens are those of x and not class or register tokens, (tokens,); None: unknown.

        Where these tokens were mixed before they came by first, as behind a merger of patches, as many are left out in
        front as stood there before that.
        """
        met = self.tokens.get(count)
        if met and not met[0].mixed:
            return met[0].moved
        added = next((each[0].moved for each in self.tokens.values() if not bool(each[0].moved.all())), None)
        leading = 0 if added is None else int((~added).sum())
        if added is not None and not bool(added[leading:].all()):
            return None
        return torch.arange(count, device="cpu") >= leading


def course_of(problem: Problem, site: Site, slot: Slot) -> Course:
    """Run the pass, the first time for each model, layer and shape of input; its rows are not counted."""
    shapes = tuple((tensor.shape[1:], tensor.dtype) for tensor in problem.inputs)
    key = ("course", site.name, site.of, slot.call, shapes)
    course: Course = remembered(problem.model.function, key, lambda: _Watch(site, slot.call).run(problem))
    return course


@attrs.define(eq=False)
class _Watch:
    """Collects a course while the pass runs, until the layer is reached."""

    site: Site
    call: int
    channels: list[tuple[Side, int]] = attrs.field(factory=list)
    grids: list[tuple[int, ...]] = attrs.field(factory=list)
    tokens: dict[int, list[Tokens]] = attrs.field(factory=dict)
    reached: int = 0

    def run(self, problem: Problem) -> Course:
        module, index = problem.model.module, torch.zeros(ROWS, dtype=torch.long, device=problem.device)
        assert module is not None, "a layer was found in it"
        with ExitStack() as stack:
            if self.site.of == "input":
                stack.callback(self.site.layer.register_forward_pre_hook(lambda *_: self._reach()).remove)
            for part in module.modules():
                stack.callback(part.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                stack.callback(part.register_forward_hook(self._note).remove)
            problem.model(_behind_noise(problem), problem.arguments.rows(index))
        tokens = {count: tuple(met) for count, met in self.tokens.items()}
        return Course(tuple(self.channels), tuple(self.grids), tokens)

    def _reach(self) -> None:
        self.reached += 1

    def _enter(self, part: nn.Module, arguments: Any, named: Any) -> None:
        if self.reached <= self.call:
            self._see_tokens((arguments, named))

    def _note(self, part: nn.Module, arguments: Any, output: Any) -> None:
        if self.reached > self.call:
            return
        told = channels_of(part)
        if told is not None:
            self.channels.append(told)
        if isinstance(part, _ConvNd) and output.ndim == len(part.kernel_size) + 2:
            self.grids.append(tuple(output.shape[2:]))
        self._see_tokens(output)
        if part is self.site.layer and self.site.of == "output":
            self._reach()

    def _see_tokens(self, values: Any) -> None:
        for value in tree_flatten(values)[0]:
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3 and ROWS in value.shape[:2]:
                rows = value if len(value) == ROWS else value.transpose(0, 1)
                moved = (rows[1:] != rows[:1]).any(2).cpu()
                if bool(moved[0].any()):  # a table of positions is no token of x
                    self.tokens.setdefault(rows.shape[1], []).append(Tokens(moved[0], moved[1:]))


def channels_of(part: nn.Module) -> tuple[Side, int] | None:
    """Return where a module has its channels: behind the batch, or last."""
    match part:
        case _ConvNd():
            return "first", part.out_channels
        case _NormBase():
            return "first", part.num_features
        case nn.GroupNorm():
            return "first", part.num_channels
        case nn.Linear():
            return "last", part.out_features
        case nn.LayerNorm() | nn.RMSNorm():
            return "last", part.normalized_shape[-1]
        case nn.Embedding():
            return "last", part.embedding_dim
    return None


def _behind_noise(problem: Problem) -> Tensors:
    """Return the three rows of each input; noise is as large as the largest number of the example."""
    rows = []
    for i, tensor in enumerate(problem.inputs):
        row = tensor[:1].repeat(ROWS, *[1] * (tensor.ndim - 1))
        if tensor.is_floating_point():
            noise = Key(0, ("course", i)).normal(tensor) * tensor[:1].abs().amax().clamp(min=1)
            row[1] += noise
            for number in range(AXES):  # of space, behind the channels; where there are fewer the last one again
                axis = min(1 + number, noise.ndim - 1)
                half = noise.shape[axis] // 2
                row[2 + number].narrow(axis, 0, half).add_(noise.narrow(axis, 0, half))
        rows.append(row)
    return tuple(rows)


def halved(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return a grid and those that merging pairs of neighbours makes of it, rounded up, as padding does."""
    found = [grid]
    while prod(found[-1]) > 1:
        found.append(tuple(-(-size // 2) for size in found[-1]))
    return found
