"""The recipes are the built-in methods with the arguments that they name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import axplain


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_blurred_baseline_is_used_where_the_call_says_none(model: nn.Module, x: torch.Tensor) -> None:
    blur = {"use": "blur", "sigma": 2.0}
    mine = axplain.explain(model, x, "blurred_integrated_gradients", target=1, sigma=2.0, n_steps=20)
    expected = axplain.explain(model, x, "integrated_gradients", target=1, baselines=blur, n_steps=20)
    torch.testing.assert_close(mine.attributions, expected.attributions, rtol=0, atol=0)
    assert mine.delta is not None and float(mine.delta.abs().max()) < 1e-9


def test_baselines_of_the_call_take_its_place(model: nn.Module, x: torch.Tensor) -> None:
    mine = axplain.explain(model, x, "blurred_integrated_gradients", target=1, baselines=0.5, n_steps=20)
    expected = axplain.explain(model, x, "integrated_gradients", target=1, baselines=0.5, n_steps=20)
    torch.testing.assert_close(mine.attributions, expected.attributions, rtol=0, atol=0)


def test_without_noise_the_smooth_one_is_the_other(model: nn.Module, x: torch.Tensor) -> None:
    given = {"target": 1, "sigma": 2.0, "n_steps": 20}
    smooth = axplain.explain(model, x, "smooth_blurred_gradients", stdev=0.0, n_samples=2, **given)
    plain = axplain.explain(model, x, "blurred_integrated_gradients", **given)
    torch.testing.assert_close(smooth.attributions, plain.attributions, rtol=1e-12, atol=1e-15)
    noisy = axplain.explain(model, x, "smooth_blurred_gradients", stdev=0.5, n_samples=2, **given)
    assert float((noisy.attributions - plain.attributions).abs().max()) > 1e-3


def test_the_middle_is_exact_where_the_gradient_is_linear() -> None:
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    references = torch.tensor([[0.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    answer = axplain.explain(
        lambda x: (x**2).sum(1), x, "baseline_averaged_gradients", baselines=axplain.distribution(references)
    )
    expected = (x**2 - references**2).mean(0, keepdim=True)
    torch.testing.assert_close(answer.attributions, expected, rtol=1e-12, atol=1e-15)


def test_a_vector_cannot_be_blurred_and_is_refused_by_name() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"x: shape \(1, 4\) came; expected at least 3 dimensions"):
        axplain.explain(lambda x: x.sum(1), torch.ones(1, 4), "blurred_integrated_gradients")
