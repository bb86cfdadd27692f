"""How pictures lie in memory: with the channels of each pixel side by side convolutions are faster on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from axplain.model import Model
from axplain.problem import Problem
from axplain.structure import alike, map_tensors

#: The first layers gain, where pixels are many and channels few; behind them the weights take longer to turn.
FEW_CHANNELS: Final = 16


@attrs.frozen
class Layout:
    """How the rows of a pass lie. `copied`: a tensor as the pass gets it; `usual`: what it gives, as it would lie."""

    copied: Callable[[Tensor], Tensor]
    usual: Callable[[Tensor], Tensor]


def _in_channels_last(tensor: Tensor) -> Tensor:
    """Return a copy in which, of a picture, the channels of each pixel lie side by side."""
    return tensor.clone(memory_format=torch.channels_last if tensor.ndim == 4 else torch.preserve_format)


USUAL: Final = Layout(Tensor.clone, lambda tensor: tensor)
CHANNELS_LAST: Final = Layout(_in_channels_last, Tensor.contiguous)


def runs_in_channels_last(problem: Problem) -> bool:
    """Whether the model gives the same values for pictures that lie so, where that may be faster.

    Passes for values take a third to nine tenths of the time. Gradients are left alone: where maxima tie, others would
    get them. Code that looks at strides, as `view` does, may fail or err: two passes over two rows tell, unless these
    are the same in either order.
    """
    pictures = any(
        tensor.ndim == 4 and tensor.dtype == torch.float32 and tensor.shape[1] <= FEW_CHANNELS
        for tensor in problem.inputs
    )
    if not (pictures and convolves(problem.model)) or problem.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    index = torch.arange(2) % problem.batch
    if not all(_differs(tensor) for tensor in problem.examples(index) if tensor.ndim == 4):
        return False
    usual = results(problem, index, USUAL)
    try:
        other = results(problem, index, CHANNELS_LAST)
    except RuntimeError as error:
        if not about_layout(error):
            raise
        return False
    return len(usual) == len(other) and all(map(alike, usual, other))


def convolves(model: Model) -> bool:
    """Whether there are convolutions over pictures among the modules of a model."""
    return any(isinstance(part, torch.nn.Conv2d) for part in model.parts.values())


def about_layout(error: RuntimeError) -> bool:
    """Whether an error says that elements do not lie as the code wants them."""
    return any(word in str(error) for word in ("stride", "contiguous", "memory format", "memory_format"))


def results(problem: Problem, index: Tensor, layout: Layout) -> list[Any]:
    """Return all that the model gives for some examples, and the target's value."""
    x = map_tensors(layout.copied, problem.examples(index))
    with problem.target.watching(problem.model):
        raw = problem.model(x, problem.arguments.rows(index))
        return [*tree_flatten(raw)[0], problem.target.select(raw, index)]


def _differs(pictures: Tensor) -> bool:
    """Whether the numbers of some pictures come in another order where channels lie side by side."""
    return not torch.equal(pictures.flatten(1), pictures.permute(0, 2, 3, 1).flatten(1)) or pictures.shape[1] == 1
