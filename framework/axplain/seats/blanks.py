"""What stands for tensors that are not computed: it has their shape, and whoever asks for its numbers is stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from axplain.propagation.operations import ABOUT, LIKE, SHAPED, name_of

#: How a tensor lies in memory, which what stands for it may not do.
LYING: Final = frozenset({"stride", "is_contiguous", "storage_offset"})
#: What may be asked of a tensor without looking at its numbers, nor at how they lie.
_BLIND: Final = (ABOUT | SHAPED) - LYING


class Diverged(Exception):  # noqa: N818 - no fault of anybody: the pass runs in full instead
    """The operations before the seat were not those of the trace."""


class Blank(Tensor):
    """A tensor without numbers. Operations meet it by its class, so that no mode need look for it behind the seat."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer what is asked about its shape; raise `Diverged` at everything else."""
        name = name_of(func).name
        if name not in _BLIND and (name not in LIKE or isinstance(args[0], Blank)):
            raise Diverged
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs or {})


def blank(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a tensor of a shape that takes no memory; code that reads it unseen by torch gets none or zero."""
    none = math.nan if like.is_floating_point() or like.is_complex() else 0
    return torch.full((), none, dtype=like.dtype, device=like.device).expand(shape)


def memory_of(tensor: Tensor) -> Any:
    """Return what tells whether anybody holds a tensor's memory, by whatever name."""
    with torch._C.DisableTorchFunctionSubclass():
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
