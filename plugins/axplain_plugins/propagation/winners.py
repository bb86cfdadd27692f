"""Max-pooling that tells which element won each window, and the rule that hands everything on to it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor
from torch.nn import functional

from axplain.pooling import gains, pooled
from axplain.propagation.rules import OWN_GRADIENT, Rule, Situation


def pool_with_winners(name: str) -> Callable[..., tuple[Any, ...]]:
    """Return a function that pools and also tells which element won each window."""
    pool = getattr(functional, name)

    def run(_: Any, *arguments: Any, **keywords: Any) -> tuple[Any, ...]:
        arguments = arguments[:6]  # the seventh says whether to tell the winners
        if name == "max_pool2d" and arguments and gains(arguments[0]):
            return pooled(*arguments, **keywords)
        values, winners = pool(*arguments, **{**keywords, "return_indices": True})
        return values, winners

    return run


def keep_winners(function: Any, *arguments: Any, **keywords: Any) -> tuple[Any, ...]:
    """Run an operation that tells the winners anyway."""
    result = function(*arguments, **keywords)
    return result, result[1]


def _chosen(situation: Situation) -> Rule:
    arguments = situation.call.arguments
    return _to_winners(arguments[0].shape) if arguments and gains(arguments[0]) else OWN_GRADIENT


@functools.lru_cache(maxsize=256)
def _to_winners(shape: tuple[int, ...]) -> Rule:
    """Return the rule for an input of a shape: what arrives at a window goes to the element that won it."""
    rows = (*shape[:-2], shape[-2] * shape[-1])

    def onward(gradient: Tensor, winners: Tensor) -> Tensor:
        found = gradient.new_zeros(rows).scatter_add_(-1, winners.flatten(-2), gradient.flatten(-2))
        return found.view(shape)

    return Rule(run=pool_with_winners("max_pool2d"), onward=onward)


#: The gradient of max-pooling, in less time than torch takes.
POOLED: Final = Rule(choose=_chosen)
