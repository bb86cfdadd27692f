"""Max-pooling that is faster by way of another layout gives torch's own values, winners and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import axplain
from axplain_plugins.propagation import winners

POOL = winners.pool_with_winners("max_pool2d")
SHAPES: list[tuple[tuple[int, ...], tuple[Any, ...]]] = [
    ((2, 16, 28, 28), (2,)),
    ((1, 64, 33, 47), (3, 2, 1)),
    ((3, 4, 40, 40), (3, 1, 1)),
    ((2, 5, 30, 31), ((2, 3), (1, 2), (1, 0), (2, 1), True)),
]


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return numbers with many ties, half of them zero."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x.relu().mul(3).round()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "arguments"), SHAPES)
def test_values_and_winners_are_those_of_torch_for_ties_too(
    shape: tuple[int, ...], arguments: tuple[Any, ...], dtype: torch.dtype
) -> None:
    x = numbers(shape, dtype)
    assert winners.gains(x), "or there is nothing to compare"
    expected = functional.max_pool2d(x, *arguments, return_indices=True)
    for found, wanted in zip(POOL(None, x, *arguments), expected, strict=True):
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()


def test_values_that_are_no_numbers_win_as_they_do_in_torch() -> None:
    x = numbers((2, 16, 28, 28), torch.float32)
    x[0, 1, 2:4, 3], x[1, 2], x[1, 3, 5] = torch.nan, -torch.inf, torch.inf
    values, places = functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    found, at = POOL(None, x, 3, 2, 1)
    torch.testing.assert_close(found, values, rtol=0.0, atol=0.0, equal_nan=True)
    assert torch.equal(at, places)


@pytest.mark.parametrize("size", [28, 4])
@pytest.mark.parametrize("call", ["module", "function", "keyword", "torch", "indices"])
@pytest.mark.parametrize("method", ["guided_backprop", "lrp", "deeplift"])
def test_pooling_hands_on_to_the_winners_in_every_spelling(method: str, call: str, size: int) -> None:
    """Of a linear model with one pooling layer every method gives what the gradient tells, times x where it does so."""
    torch.manual_seed(0)
    last = nn.Linear(8 * (size // 2) ** 2, 3, bias=False).double()

    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if call == "module":
                x = nn.MaxPool2d(2)(x)
            elif call == "function":
                x = functional.max_pool2d(x, 2, 2, 0, 1, False, False)
            elif call == "keyword":
                x = functional.max_pool2d(input=x, kernel_size=2)
            elif call == "torch":
                x = torch.max_pool2d(x, 2)
            else:
                x, _ = functional.max_pool2d(x, 2, return_indices=True)
            out: Tensor = last(x.flatten(1))
            return out

    model, x = Pooled(), numbers((2, 8, size, size), torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    absent = -1.0 if method == "deeplift" else None
    found = axplain.explain(model, x, method, target=1, baselines=absent).attributions
    if method == "guided_backprop":
        assert torch.equal(found, gradient)
    elif method == "lrp":  # its epsilon takes a little
        torch.testing.assert_close(found, x * gradient, rtol=1e-4, atol=1e-9)
    else:
        torch.testing.assert_close(found, (x + 1) * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [28, 4])
def test_a_report_says_that_pooling_keeps_nothing(size: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * (size // 2) ** 2, 3)
    ).double()
    x = numbers((2, 1, size, size), torch.float64)
    found = axplain.explain(model, x, "lrp", target=1, report=True)
    kept = found.notes["absorbed by"]
    (pooling,) = [name for name in kept if name.startswith("max_pool2d")]
    assert kept[pooling] == pytest.approx([0.0, 0.0], abs=1e-12)
