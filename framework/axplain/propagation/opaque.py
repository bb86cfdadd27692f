"""Operations of torch that hide several: written out, so that each part meets its own rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from axplain.errors import UncoveredOperation


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(scale * query @ key^T + mask) @ value; a query that may look at nothing gets zeros."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        attn_mask = allowed if attn_mask is None else attn_mask
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        blocked = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask == -math.inf
        shifted = scores if attn_mask.dtype == torch.bool else scores + attn_mask
        blind = blocked.all(-1, keepdim=True)
        weights = shifted.masked_fill(blocked, -math.inf).masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
    return functional.dropout(weights, dropout_p, True) @ value if dropout_p else weights @ value


def gated_linear_unit(input: Tensor, dim: int = -1) -> Tensor:
    """Return the first half times the sigmoid of the second."""
    values, gates = input.chunk(2, dim)
    return values * gates.sigmoid()


def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """Return the input between two bounds that may depend on x themselves."""
    below = input if min is None else torch.maximum(input, min) if isinstance(min, Tensor) else input.clamp_min(min)
    return below if max is None else torch.minimum(below, max) if isinstance(max, Tensor) else below.clamp_max(max)


def added_product(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1.0) -> Tensor:
    """Return `addcmul`: input + value * tensor1 * tensor2."""
    return input + value * (tensor1 * tensor2)


def interpolated(input: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Return `lerp` with a weight that depends on x: input + weight * (end - input)."""
    return input + weight * (end - input)


def divided_product(
    input: Tensor,
    tensor1: Tensor,
    tensor2: Tensor,
    *,
    value: float = 1.0,
) -> Tensor:
    """Return `addcdiv`: input + value * tensor1 / tensor2."""
    return input + value * (tensor1 / tensor2)


def variance_and_mean(input: Tensor, *arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    """Return `var_mean` as two operations."""
    reduced = {name: keywords[name] for name in ("dim", "keepdim") if name in keywords}
    dims = [argument for argument in arguments[:1] if not isinstance(argument, bool)]
    return input.var(*arguments, **keywords), input.mean(*dims, **reduced)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Return the product of two vectors over the product of their lengths."""
    lengths = x1.norm(dim=dim, keepdim=True).clamp_min(eps), x2.norm(dim=dim, keepdim=True).clamp_min(eps)
    similarity: Tensor = ((x1 / lengths[0]) * (x2 / lengths[1])).sum(dim)
    return similarity


def vector_norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return `linalg.vector_norm` as sums, roots and maxima."""
    x = x if dtype is None else x.to(dtype)
    dims = tuple(range(x.ndim)) if dim is None else dim
    if ord == 2:
        return x.square().sum(dims, keepdim).sqrt()
    if ord == 0:
        raise UncoveredOperation("model: a norm of order 0 counts elements and has no slope. Use another order.")
    size = x.abs()
    if abs(ord) == math.inf:
        return size.amax(dims, keepdim) if ord > 0 else size.amin(dims, keepdim)
    return size.sum(dims, keepdim) if ord == 1 else size.pow(ord).sum(dims, keepdim).pow(1 / ord)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the cross entropy of class indices as log-softmax and a choice of its elements."""
    if label_smoothing or target.is_floating_point():
        raise UncoveredOperation("model: cross_entropy is covered for class indices without label smoothing only.")
    words = {0: "none", 1: "mean", 2: "sum"}[reduction]
    rows = input.log_softmax(1 if input.ndim > 1 else 0)
    return functional.nll_loss(rows, target, weight, ignore_index=ignore_index, reduction=words)


#: Name -> the same in parts. Consulted where no rule of that name exists and the call is not linear.
OPAQUE: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        "scaled_dot_product_attention": attention,
        "linalg_vector_norm": vector_norm,
        "cross_entropy_loss": cross_entropy,
        "glu": gated_linear_unit,
        "clamp": clamp,
        "clip": clamp,
        "addcdiv": divided_product,
        "addcmul": added_product,
        "lerp": interpolated,
        "var_mean": variance_and_mean,
        "cosine_similarity": cosine_similarity,
    }
)
