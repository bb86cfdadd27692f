"""Two-dimensional max-pooling on a CPU, by way of the layout in which torch's kernel for it is vectorised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from axplain.hidden import hides_code
from axplain.layout import convolves
from axplain.problem import Problem
from axplain.propagation.operations import is_whole, transparent

#: Fewer numbers do not pay for the way there and back; of more of them memory is what takes the time.
FEW: Final = 2**14
MANY: Final = 2**23

_SPELLINGS: Final = frozenset({functional.max_pool2d, torch.max_pool2d})
#: What may run parts of a model again (torch.utils.checkpoint), which must pool there as they did.
_BACKWARD: Final = frozenset({torch.autograd.grad, Tensor.backward})


def gains(x: Any) -> bool:
    """Whether pooling is faster so: it then takes a third to nine tenths of the time."""
    return _fits(x) and FEW <= x.numel() <= MANY


def _fits(x: Any) -> bool:
    """Whether it may be, if the numbers are enough."""
    if type(x) is not Tensor or x.ndim != 4 or x.device.type != "cpu" or x.shape[1] < 4:
        return False
    return x.dtype in (torch.float32, torch.float64) and x.is_contiguous()


def pooled(x: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    """Return the largest element of each window, without a graph, and its place.

    Both are torch's own bit for bit, those of ties and of NaN too.
    """
    values, winners = _with_channels_last(x, *arguments, **keywords)
    return values.contiguous(), winners.contiguous()


def _taken(x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
    """Return the largest element of each window, taken from x itself, which gives them their derivatives.

    As what torch returns, it is no view: the model may write to it, and detach it in place.
    """
    winners = _with_channels_last(x, *arguments, **keywords)[1].contiguous()
    rows, channels, height, width = x.shape
    winners += torch.arange(0, x.numel(), height * width, device=x.device).view(rows, channels, 1, 1)
    return x.take(winners)


def _with_channels_last(x: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    laid = x.detach().contiguous(memory_format=torch.channels_last)
    values, winners = functional.max_pool2d(laid, *arguments, **{**keywords, "return_indices": True})
    return values, winners


class Pooling(TorchFunctionMode):
    """Pools so wherever it gains, for as long as it is entered. `met`: whether there was pooling that it may gain."""

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation."""
        keywords = kwargs or {}
        if func in _BACKWARD:
            with self:
                return transparent(func)(*args, **keywords)
        if func not in _SPELLINGS or not args or not is_whole("max_pool2d", args, keywords):
            return func(*args, **keywords)
        self.met |= _fits(args[0])
        if gains(args[0]):
            with suppress(RuntimeError):  # what torch refuses, or cannot do under vmap, it shall say of its own way
                return _taken(*args[:6], **keywords)
        return func(*args, **keywords)


def may_pool(problem: Problem) -> bool:
    """Whether it is worth a look if a model pools: one of pictures, on a CPU, whose operations can be seen."""
    return problem.device.type == "cpu" and convolves(problem.model) and not hides_code(problem.model)
