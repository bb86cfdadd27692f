"""Small plans are kept: whoever explains inputs one by one asks about the same coalitions in every call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Final, Protocol, TypeVar, cast

from axplain.memory import remembered
from axplain.problem import Problem
from axplain.protocols import Points

#: Plans of more numbers than this are drawn anew: a kept one takes about a megabyte at most.
MOST_NUMBERS: Final = 2**16
MOST_PLANS: Final = 8

T = TypeVar("T")


class SamePoints(Protocol):
    """A plan whose points are the same for every block."""

    @property
    def count(self) -> int:
        """Samples per example."""
        ...

    @property
    def features(self) -> int:
        """How many features there are."""
        ...


P = TypeVar("P", bound=SamePoints)


def drawn_once(draw: Callable[[P, Problem, range], Points]) -> Callable[[P, Problem, range], Points]:
    """Keep the points of a small plan that is drawn whole, as long as the plan lives."""

    @functools.wraps(draw)
    def drawn(plan: P, block: Problem, samples: range) -> Points:
        if len(samples) < plan.count or plan.count * plan.features > MOST_NUMBERS:
            return draw(plan, block, samples)
        return remembered(plan, ("points", block.device), lambda: draw(plan, block, samples))

    return drawn


def kept(numbers: int, make: Callable[..., T], *key: Hashable) -> T:
    """Return `make(*key)`, which nobody changes later: the one that was made before, where it has few numbers."""
    return cast(T, _kept(make, key)) if numbers <= MOST_NUMBERS else make(*key)


@functools.lru_cache(maxsize=MOST_PLANS)
def _kept(make: Callable[..., object], key: tuple[Hashable, ...]) -> object:
    return make(*key)
