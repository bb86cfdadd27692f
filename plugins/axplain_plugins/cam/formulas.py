"""The mathematics of the maps, as functions of plain tensors.

`held` is what a layer holds, (batch, channels, *grid), over one, two or three axes of space; `gradient`, of the same
shape, is that of the target with respect to it. Each returns a signed map, (batch, 1, *grid); the papers take its
positive part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor


def over_space(tensor: Tensor) -> tuple[int, ...]:
    """Return the axes of space of a tensor (batch, channels, *grid)."""
    return tuple(range(2, tensor.ndim))


def weighted(weight: Tensor, held: Tensor) -> Tensor:
    """Return `sum_k w_k A_k`: weights that have the shape of the maps, or one for each channel."""
    return (weight * held).sum(1, keepdim=True)


def gradcam(held: Tensor, gradient: Tensor) -> Tensor:
    """Return the map of Grad-CAM (arXiv:1610.02391): a channel weighs what its gradient is on average over space."""
    return weighted(gradient.mean(over_space(held), keepdim=True), held)


def gradcam_plus_plus(held: Tensor, gradient: Tensor) -> Tensor:
    """Return the map of Grad-CAM++ (arXiv:1710.11063), without its factor exp(F), which scales all of it alike.

    Its `alpha_ij = g_ij^2 / (2 g_ij^2 + sum(A) g_ij^3)` is `1 / (2 + sum(A) g_ij)`, and only positive g count.
    """
    space, positive = over_space(held), gradient.clamp(min=0)
    weight = positive / (2 + held.sum(space, keepdim=True) * positive)
    return weighted(weight.sum(space, keepdim=True), held)


def hirescam(held: Tensor, gradient: Tensor) -> Tensor:
    """Return the map of HiResCAM (arXiv:2011.08891): each place weighs what its own gradient is."""
    return weighted(gradient, held)


def layercam(held: Tensor, gradient: Tensor) -> Tensor:
    """Return the map of LayerCAM (doi:10.1109/TIP.2021.3089943): each place weighs its own gradient's positive part."""
    return weighted(gradient.clamp(min=0), held)


def xgradcam(held: Tensor, gradient: Tensor) -> Tensor:
    """Return the map of XGrad-CAM (arXiv:2008.02312): gradients are averaged with a channel's values as weights."""
    space = over_space(held)
    total, empty = held.sum(space, keepdim=True), held.abs().amax(space, keepdim=True) == 0
    weight = (held * gradient).sum(space, keepdim=True) / torch.where(empty, 1, total)
    return weighted(weight, held)


def eigencam(held: Tensor, gradient: Tensor | None = None) -> Tensor:
    """Return the map of Eigen-CAM (arXiv:2008.00299): the values projected on their first principal component.

    As in the paper nothing is centred. A component has no sign of its own: here its map sums to a positive number.
    """
    flat = held.flatten(2)
    _, _, components = torch.linalg.svd(flat.transpose(1, 2), full_matrices=False)
    projected = components[:, :1] @ flat
    sign = torch.where(projected.sum(2, keepdim=True) < 0, -1.0, 1.0).to(held)
    signed: Tensor = sign * projected
    return signed.view(len(held), 1, *held.shape[2:])


def scorecam(held: Tensor, scores: Tensor) -> Tensor:
    """Return the map of Score-CAM (arXiv:1910.01279): `scores`, (batch, channels), are the target's values at the
    input seen through each channel; -inf leaves one out. A channel weighs their softmax.
    """
    none = scores.isneginf().all(1, keepdim=True)
    weight = torch.where(none, 0, scores.softmax(1))
    return weighted(weight.view(*weight.shape, *[1] * (held.ndim - 2)), held)


def ablationcam(held: Tensor, clean: Tensor, without: Tensor) -> Tensor:
    """Return the map of Ablation-CAM (doi:10.1109/WACV45572.2020.9093360): a channel weighs its relative drop.

    `clean`: (batch,), the target's value. `without`: (batch, channels), its values without each channel. The drop is
    taken relative to |F|, so that a negative F does not turn the map round.
    """
    weight = (clean[:, None] - without) / clean[:, None].abs()
    return weighted(weight.view(*weight.shape, *[1] * (held.ndim - 2)), held)


FORMULAS: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = MappingProxyType(
    {
        "gradcam": gradcam,
        "gradcam_plus_plus": gradcam_plus_plus,
        "hirescam": hirescam,
        "layercam": layercam,
        "xgradcam": xgradcam,
        "eigencam": eigencam,
    }
)
