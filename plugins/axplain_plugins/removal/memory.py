"""Small plans are kept: whoever explains inputs one by one asks about the same coalitions in every call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Final, TypeVar, cast

#: Plans of more numbers than this are drawn anew: a kept one takes about a megabyte at most.
MOST_NUMBERS: Final = 2**16
MOST_PLANS: Final = 8

T = TypeVar("T")


def kept(numbers: int, make: Callable[..., T], *key: Hashable) -> T:
    """Return `make(*key)`, which nobody changes later: the one that was made before, where it has few numbers."""
    return cast(T, _kept(make, key)) if numbers <= MOST_NUMBERS else make(*key)


@functools.lru_cache(maxsize=MOST_PLANS)
def _kept(make: Callable[..., object], key: tuple[Hashable, ...]) -> object:
    return make(*key)
