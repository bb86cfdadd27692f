"""Small float64 models for the comparison with captum, and how its calls are made quiet."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers of a generator of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call captum without its warnings (it sets requires_grad on the caller's inputs and says so each time)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


def smooth(seed: int = 7) -> nn.Sequential:
    """From 4 features to 3 classes, infinitely often differentiable."""
    return _weighted(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), seed)


def rectified(seed: int = 2) -> nn.Sequential:
    """From 4 features to 3 classes, piecewise linear."""
    return _weighted(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), seed)


def convolutional(seed: int = 3) -> nn.Sequential:
    """From (1, 8, 8) pictures to 3 classes, with max-pooling."""
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return _weighted(nn.Sequential(*layers), seed)


def grid(seed: int = 4) -> nn.Sequential:
    """From 4 features to an output of shape (3, 5)."""
    return _weighted(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 15), nn.Unflatten(1, (3, 5))), seed)


class TwoInputs(nn.Module):
    """Mixes (batch, 4) and (batch, 2, 3); takes a row per example and a number as additional arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor, shift: Tensor | None = None, gain: float = 1.0) -> Tensor:
        hidden = torch.tanh(self.first(a)) * torch.sigmoid(self.second(b.flatten(1)))
        logits: Tensor = self.last(hidden * gain)
        return logits if shift is None else logits * shift


def two_inputs(seed: int = 5) -> TwoInputs:
    """Return the model of two inputs."""
    return _weighted(TwoInputs(), seed)


def _weighted(model: Network, seed: int) -> Network:
    """Give weights N(0, 0.7^2), so that saturation and kinks occur."""
    for i, parameter in enumerate(model.parameters()):
        parameter.data = 0.7 * seeded(*parameter.shape, seed=1000 * seed + i)
    return model.eval()
