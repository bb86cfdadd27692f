"""What stands for tensors that are not computed: it has their shape, and whoever asks for its numbers is stopped."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from axplain.propagation.operations import ABOUT, LIKE, SHAPED, name_of

#: How a tensor is in the graph, which one that is put in its place is not.
GRAPHED: Final = frozenset({"requires_grad", "is_leaf", "grad_fn", "grad", "retains_grad", "_base", "_is_view"})
#: What else but its numbers may differ: how it lies in memory.
UNLIKE: Final = GRAPHED | {"stride", "is_contiguous", "storage_offset"}
#: What may be asked of what stands for a tensor.
_BLIND: Final = (ABOUT | SHAPED) - UNLIKE


class Diverged(BaseException):
    """The operations before the seat were not those of the trace: the pass runs in full instead.

    No fault of anybody, and none that a model may take for one: it is not an `Exception`.
    """


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


class Blanks:
    """The blanks of one pass. They share one number of each type, which tells whether any of them is still held."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._made: list[weakref.ref[Tensor]] = []

    def make(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a tensor of a shape that takes no memory."""
        kind = like.dtype, like.device
        if kind not in self._numbers:
            self._numbers[kind] = _no_number(like)
        blank = self._numbers[kind].expand(shape).as_subclass(Blank)
        self._made.append(weakref.ref(blank))
        return blank

    def held(self) -> bool:
        """Forget them, and say whether anybody else has not: what is held raises nothing from now on."""
        memories = [memory_of(number) for number in self._numbers.values()]
        self._numbers.clear()
        if all(memory.expired() for memory in memories):
            return False
        for made in self._made:
            if (blank := made()) is not None:
                blank.__class__ = Tensor
        return True


def outline(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape and type that takes no memory."""
    return _no_number(tensor).expand(tensor.shape)


def _no_number(like: Tensor) -> Tensor:
    """Return what code gets that reads it unseen by torch: none, or zero where there is no such number."""
    none = math.nan if like.is_floating_point() or like.is_complex() else 0
    return torch.full((), none, dtype=like.dtype, device=like.device)


def memory_of(tensor: Tensor) -> Any:
    """Return what tells whether anybody holds a tensor's memory, by whatever name."""
    with torch._C.DisableTorchFunctionSubclass():
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
