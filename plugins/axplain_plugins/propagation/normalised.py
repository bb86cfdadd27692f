"""Normalisations whose spread is a constant: what relevance sees of them is a linear map at the same values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor


def _scaled(x: Tensor, dims: tuple[int, ...], eps: float, *, centred: bool) -> Tensor:
    """Return the (centred) slice over its root mean square, the latter without a gradient."""
    slice_ = x - x.mean(dims, keepdim=True) if centred else x
    return slice_ / (slice_.detach().square().mean(dims, keepdim=True) + eps).sqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Return layer normalisation."""
    return _affine(_scaled(input, tuple(range(-len(normalized_shape), 0)), eps, centred=True), weight, bias)


def rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Tensor:
    """Return root-mean-square normalisation."""
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(_scaled(input, tuple(range(-len(normalized_shape), 0)), eps, centred=False), weight, None)


def group_norm(
    input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """Return group normalisation."""
    folded = input.reshape(len(input), num_groups, -1)
    x = _scaled(folded, (-1,), eps, centred=True).reshape(input.shape)
    along = (-1, *[1] * (input.ndim - 2))
    return _affine(x, *(None if each is None else each.view(along) for each in (weight, bias)))


def instance_norm(
    input: Tensor, weight: Any = None, bias: Any = None, running_mean: Any = None, running_var: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *_: Any,
) -> Tensor:  # fmt: skip
    """Return instance normalisation; by the statistics of the input, else by those that are kept."""
    along = (-1, *[1] * (input.ndim - 2))
    if use_input_stats:
        x = _scaled(input, tuple(range(2, input.ndim)), eps, centred=True)
    else:
        x = (input - running_mean.view(along)) / (running_var.view(along) + eps).sqrt()
    return _affine(x, *(None if each is None else each.view(along) for each in (weight, bias)))


SPREADLESS: Final[Mapping[str, Callable[..., Tensor]]] = MappingProxyType(
    {"layer_norm": layer_norm, "rms_norm": rms_norm, "group_norm": group_norm, "instance_norm": instance_norm}
)
