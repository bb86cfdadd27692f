"""Small games in float64, and their values by brute force: loops over subsets, one model row at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import axplain

Function = Callable[[Tensor], Tensor]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(features: int, seed: int = 3) -> nn.Sequential:
    """Smooth, with interactions of every order, one number per example."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(features, 7), nn.Tanh(), nn.Linear(7, 1), nn.Flatten(0)).double()
    for i, parameter in enumerate(layers.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed + i)
    return layers.eval()


def attributions(model: Any, x: Any, method: str, **more: Any) -> Any:
    return axplain.explain(model, x, method, **more).attributions


def close(found: Tensor, expected: Tensor, bound: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=bound)


def value_of(function: Function, x: Tensor, absent: Tensor, present: tuple[int, ...]) -> Tensor:
    """Return F of x with the features in `present`, counted along the flattened example, and the others absent."""
    mixed = absent.expand_as(x).clone().flatten(1)
    columns = list(present)
    mixed[:, columns] = x.flatten(1)[:, columns]
    with torch.no_grad():
        return function(mixed.view_as(x))


def by_subsets(function: Function, x: Tensor, absent: Tensor, weight: Callable[[int, int], float]) -> Tensor:
    """Return sum over S without i of weight(|S|, d) (F(S + i) - F(S)), one subset at a time."""
    count = x[0].numel()
    worth = {
        subset: value_of(function, x, absent, subset)
        for size in range(count + 1)
        for subset in itertools.combinations(range(count), size)
    }
    columns = []
    for feature in range(count):
        total = torch.zeros(len(x), dtype=torch.float64)
        for subset, before in worth.items():
            if feature not in subset:
                total += weight(len(subset), count) * (worth[tuple(sorted((*subset, feature)))] - before)
        columns.append(total)
    return torch.stack(columns, 1).view_as(x)


def shapley(size: int, count: int) -> float:
    return math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)


def banzhaf(size: int, count: int) -> float:
    return 2.0 ** (1 - count)
