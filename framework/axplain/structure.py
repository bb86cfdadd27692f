"""How the user's inputs are put together, so that answers mirror them: one tensor, a tuple, or keyword inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, cast

import attrs
import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Part = TypeVar("Part", bound=Tensors)


@attrs.frozen(eq=False)
class Rows:
    """Rows to ask, (rows, ...) per tensor, and the example that each belongs to: (rows,)."""

    x: Tensors
    index: Tensor


@attrs.frozen
class Structure:
    """The shape of the user's `x`: what `pack` rebuilds and how errors name each tensor."""

    kind: Literal["tensor", "tuple", "dict"]
    names: tuple[str, ...]

    def pack(self, items: Sequence[Any]) -> Any:
        """Put one item per tensor back into the user's structure."""
        if self.kind == "dict":
            return dict(zip(self.names, items, strict=True))
        return tuple(items) if self.kind == "tuple" else items[0]

    def unpack(self, packed: Any) -> tuple[Any, ...]:
        """Return one item per tensor, in order: the inverse of `pack`."""
        if self.kind == "dict":
            return tuple(packed[name] for name in self.names)
        return tuple(packed) if self.kind == "tuple" else (packed,)

    def labels(self, argument: str) -> tuple[str, ...]:
        """Return how to write each item of an argument that mirrors `x`: x, x[1], x['pixels']."""
        if self.kind == "tensor":
            return (argument,)
        keys = self.names if self.kind == "dict" else range(len(self.names))
        return tuple(f"{argument}[{key!r}]" for key in keys)


def structure_of(x: Any) -> Structure | None:
    """Return the structure of `x`, or None where it is none that explain knows."""
    if isinstance(x, Tensor):
        return Structure("tensor", ("x",))
    if isinstance(x, tuple) and x:
        return Structure("tuple", tuple(map(str, range(len(x)))))
    if isinstance(x, dict) and x and all(isinstance(key, str) for key in x):
        return Structure("dict", tuple(x))
    return None


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype sums are kept in: at least float32, float64 stays float64."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float32


def map_tensors(function: Callable[..., Tensor], *groups: Tensors) -> Tensors:
    """Apply a function to the first tensors of each group, then to the second ones, and so on."""
    return tuple(function(*tensors) for tensors in zip(*groups, strict=True))


def concatenate(parts: Iterable[Part]) -> Part:
    """Join the rows of several parts, tensor by tensor."""
    return cast(Part, tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def rows_by_samples(tensor: Tensor, samples: int) -> Tensor:
    """View rows, which are sample-major, as (samples, examples, ...)."""
    shape = tensor.shape
    return tensor.reshape(samples, shape[0] // samples, *shape[1:])


def trailing(vector: Tensor, like: Tensor) -> Tensor:
    """View a vector so that it multiplies the first dimension of `like`."""
    return vector.view(-1, *[1] * (like.ndim - 1))


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or inf: such an element makes the sum one too, and a sum is one cheap operation."""
    return math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())


def wide(tensor: Tensor) -> torch.dtype:
    """Return the widest floating type of a tensor's device."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def total(tensors: Tensors) -> Tensor:
    """Sum everything but the first dimension, over all tensors, in the widest type of the device."""
    sums = [tensor.to(wide(tensor)).reshape(tensor.shape[0], -1).sum(1) for tensor in tensors]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)


def alike(one: Any, other: Any) -> bool:
    """Whether two results of a model are equal but for rounding; only floating ones are compared."""
    if not isinstance(one, Tensor) or not one.is_floating_point():
        return True
    scale = float(one.detach().abs().max()) if one.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=1e-4 * scale)


def usable(value: Any) -> Any:
    """Copy a tensor that was made in inference mode: autograd could not save it."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
