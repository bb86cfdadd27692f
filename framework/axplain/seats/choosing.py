"""Chooses the layer of a method that needs axes of space, where the call names none: the last convolution."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from axplain.errors import ArgumentError
from axplain.guard import occupied, untouched
from axplain.memory import remembered
from axplain.problem import Problem
from axplain.seats.sites import Site

#: where torch keeps what rectifies or normalises a map, element by element or channel by channel
FOLLOWING: Final = tuple(f"torch.nn.modules.{name}" for name in ("activation", "batchnorm", "instancenorm"))


def last_convolution(problem: Problem, method: str) -> Site:
    """Return the last module that gives the map of a convolution: it, its activation, or the block or stage it ends.

    One small pass looks for it, the first time for each model and shape of input; it is not counted.

    Raises:
        ArgumentError: there is none, or it only cuts the input into patches.
    """
    module = problem.model.module
    if module is None:
        raise ArgumentError("layer", "nothing came and the model is a plain callable", "a torch.nn.Module as the model")
    maps: list[tuple[str, int | None]] = remembered(
        problem.model.function, ("maps", problem.shapes), lambda: _maps(problem, module)
    )
    expected = f"a layer: {method} weights the maps of one"
    if not maps:
        came = "nothing came, and no convolution of the model gives a map with axes of space"
        raise ArgumentError("layer", came, expected)
    convolutions = [part for part in problem.model.parts.values() if isinstance(part, _ConvNd)]
    if len(convolutions) == 1 and _cuts(convolutions[0]):
        raise ArgumentError(
            "layer", "nothing came, and the only convolution cuts the input into patches", expected,
            "Name a layer that holds tokens: the first norm of the last block of a vision transformer is usual.",
        )  # fmt: skip
    name, call = maps[-1]
    return Site(module.get_submodule(name), name, "output", call, None)


def _maps(problem: Problem, module: nn.Module) -> list[tuple[str, int | None]]:
    """Return the names of the modules that give the maps of a convolution, in the order in which they end.

    One that holds the convolution, or an activation or norm right behind it, which leaves the map's shape as it is. Of
    one that runs several times also the call.
    """
    ended: list[tuple[nn.Module, str, int, torch.Size]] = []
    runs: Counter[nn.Module] = Counter()

    def note(part: nn.Module, arguments: Any, output: Any, name: str, dimensions: int) -> None:
        runs[part] += 1
        if not isinstance(output, Tensor):
            return
        follows = ended and not dimensions and output.shape == ended[-1][-1]
        if follows or (dimensions and output.ndim == dimensions + 2 and max(output.shape[2:]) > 1):
            ended.append((part, name, runs[part] - 1, output.shape))

    index = torch.zeros(1, dtype=torch.long, device=problem.device)
    with ExitStack() as stack:
        stack.enter_context(occupied(problem.model.function, True))
        stack.enter_context(untouched(problem.model.parts, problem.device))
        for name, part in problem.model.parts.items():
            inside = max((len(c.kernel_size) for c in part.modules() if isinstance(c, _ConvNd)), default=0)
            if name and (inside or type(part).__module__ in FOLLOWING):
                stack.callback(part.register_forward_hook(partial(note, name=name, dimensions=inside)).remove)
        problem.model(problem.examples(index), problem.arguments.rows(index))
    return [(name, call if runs[part] > 1 else None) for part, name, call, _ in ended]


def _cuts(layer: _ConvNd) -> bool:
    return layer.kernel_size == layer.stride and max(layer.stride) > 1
