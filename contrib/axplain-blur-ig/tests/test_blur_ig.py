"""The mathematics of blur integrated gradients, in float64, against power series and finite differences."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import axplain
from axplain_blur_ig.blur_path import BlurPath, gauss_legendre
from axplain_blur_ig.scale_space import ScaleSpace


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64)


def diffusion(length: int, sigma: float) -> Tensor:
    """Return the blur of one axis: the exponential of what neighbours exchange, by its series and 12 squarings."""
    beside = torch.diag(torch.ones(length - 1, dtype=torch.float64), 1)
    exchange = beside + beside.T
    exchange = (exchange - torch.diag(exchange.sum(1))) * sigma**2 / 2**13
    result = one = torch.eye(length, dtype=torch.float64)
    for k in range(20, 0, -1):
        result = one + exchange @ result / k
    for _ in range(12):
        result = result @ result
    return result


def blur(x: Tensor, sigma: float) -> Tensor:
    """Blur (batch, channels, space ...) one axis after the other."""
    for axis in range(2, x.ndim):
        x = (x.movedim(axis, -1) @ diffusion(x.shape[axis], sigma)).movedim(-1, axis)
    return x


class Smooth(nn.Module):
    """Convolution, tanh, and a tanh of a linear layer, over images of 7 by 5."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.last = numbers(4, 2, 3, 3, seed=1) / 2, numbers(4 * 5 * 3, 3, seed=2) / 4

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(torch.conv2d(x, self.filters)).flatten(1) @ self.last)


IMAGES = numbers(3, 2, 7, 5, seed=3)


def attributions(model: Any, x: Any, **more: Any) -> Any:
    return axplain.explain(model, x, "blur_ig", verify=False, **{"target": 0, **more}).attributions


@pytest.mark.parametrize("shape", [(2, 3, 9), (1, 2, 6, 5), (1, 1, 3, 4, 2), (1, 1, 1)])
@pytest.mark.parametrize("sigma", [0.0, 0.4, 2.0, 30.0])
def test_the_blur_is_the_diffusion_of_every_axis(shape: tuple[int, ...], sigma: float) -> None:
    x = numbers(*shape)
    got = ScaleSpace.of(x).blurred(torch.tensor([sigma, 1.0], dtype=torch.float64))
    torch.testing.assert_close(got, torch.stack([blur(x, sigma), blur(x, 1.0)]), rtol=0, atol=1e-11)


def test_the_blur_is_a_gaussian_far_from_the_border() -> None:
    point = torch.zeros(1, 1, 101, dtype=torch.float64)
    point[..., 50] = 1.0
    distance = torch.arange(-50, 51, dtype=torch.float64)
    gaussian = torch.exp(-(distance**2) / 50) / math.sqrt(50 * math.pi)
    got = ScaleSpace.of(point).blurred(torch.tensor([5.0]))[0, 0, 0]
    torch.testing.assert_close(got, gaussian, rtol=0, atol=5e-4)  # of 0.08 at the top
    assert float((got * distance**2).sum()) == pytest.approx(25.0)


def test_a_wide_blur_leaves_the_mean_of_each_channel() -> None:
    got = ScaleSpace.of(IMAGES).blurred(torch.tensor([100.0]))[0]
    torch.testing.assert_close(got, IMAGES.mean((2, 3), keepdim=True).expand_as(IMAGES), rtol=0, atol=1e-12)


def test_the_slope_is_the_derivative_by_sigma() -> None:
    space, sigma, step = ScaleSpace.of(IMAGES), torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64), 1e-5
    expected = (space.blurred(sigma + step) - space.blurred(sigma - step)) / (2 * step)
    torch.testing.assert_close(space.slope(sigma), expected, rtol=0, atol=1e-9)


def test_the_tangent_is_the_derivative_of_the_path() -> None:
    nodes = gauss_legendre(5)[0]
    block: Any = SimpleNamespace(inputs=(IMAGES,), device=IMAGES.device)
    points = BlurPath(5, 3.0).plan(block).draw(block, range(5))

    def at(places: Tensor) -> Tensor:
        return torch.stack([blur(IMAGES, 3.0 * (1 - float(a))) for a in places])

    assert points.x is not None
    assert points.tangent is not None
    torch.testing.assert_close(points.x[0].view(5, *IMAGES.shape), at(nodes), rtol=0, atol=1e-12)
    expected = (at(nodes + 1e-4) - at(nodes - 1e-4)) / 2e-4
    torch.testing.assert_close(points.tangent[0], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_the_rule_integrates_polynomials_of_twice_its_nodes(n: int) -> None:
    nodes, weights = gauss_legendre(n)
    powers = torch.arange(2 * n)
    got = (weights[:, None] * nodes[:, None] ** powers).sum(0)
    torch.testing.assert_close(got, 1.0 / (powers + 1.0).double(), rtol=0, atol=1e-13)


def test_attributions_are_the_line_integral_by_small_steps() -> None:
    model, places = Smooth(), [2.0 * (1 - i / 1000) for i in range(1001)]
    path = torch.stack([blur(IMAGES, sigma) for sigma in places])
    middles = ((path[1:] + path[:-1]) / 2).flatten(0, 1).requires_grad_()
    slopes = torch.autograd.grad(model(middles)[:, 1].sum(), middles)[0].view(1000, *IMAGES.shape)
    expected = (slopes * path.diff(dim=0)).sum(0)
    got = attributions(model, IMAGES, target=1, n_steps=30, max_sigma=2.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("max_sigma", [0.5, 2.0, 4.0])
def test_the_sum_is_the_output_less_that_of_the_blurred_input(max_sigma: float) -> None:
    model = Smooth()
    difference = (model(IMAGES) - model(blur(IMAGES, max_sigma)))[:, 2]
    assert float(difference.abs().min()) > 0.005

    def error(n_steps: int) -> float:
        got = attributions(model, IMAGES, target=2, n_steps=n_steps, max_sigma=max_sigma)
        return float((got.sum((1, 2, 3)) - difference).abs().max())

    assert error(64) < 1e-9
    assert error(64) < error(4) / 1e3


def test_a_linear_model_gets_its_weights_times_what_the_blur_took() -> None:
    weights = numbers(2, 7, 5, seed=4)
    got = attributions(lambda x: (x * weights).sum((1, 2, 3)), IMAGES, target=None, n_steps=40, max_sigma=4.0)
    torch.testing.assert_close(got, weights * (IMAGES - blur(IMAGES, 4.0)), rtol=0, atol=1e-11)


def test_an_input_without_edges_gets_nothing() -> None:
    got = attributions(Smooth(), torch.full((1, 2, 7, 5), 0.8, dtype=torch.float64))
    torch.testing.assert_close(got, torch.zeros_like(got), rtol=0, atol=1e-13)


def test_a_brighter_input_of_a_model_that_expects_it_gets_the_same() -> None:
    model = Smooth()
    got = attributions(lambda x: model(x - 0.6), IMAGES + 0.6, max_sigma=3.0)
    torch.testing.assert_close(got, attributions(model, IMAGES, max_sigma=3.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("axes", [(2,), (3,), (2, 3)])
def test_a_mirrored_input_of_a_model_that_mirrors_gets_the_mirror_image(axes: tuple[int, ...]) -> None:
    model = Smooth()
    got = attributions(lambda x: model(x.flip(axes)), IMAGES.flip(axes), max_sigma=3.0)
    torch.testing.assert_close(got, attributions(model, IMAGES, max_sigma=3.0).flip(axes), rtol=0, atol=1e-12)


def test_a_convolution_in_other_words_gets_the_same() -> None:
    model = Smooth()

    def unfolded(x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, 3)
        hidden = torch.tanh(torch.einsum("ok,bkp->bop", model.filters.flatten(1), patches)).flatten(1)
        return 2 * torch.sigmoid(2 * (hidden @ model.last)) - 1

    torch.testing.assert_close(attributions(unfolded, IMAGES), attributions(model, IMAGES), rtol=0, atol=1e-12)


def test_inputs_of_different_kinds_are_blurred_each_along_its_own_axes() -> None:
    sound, film = numbers(2, 1, 11, seed=5), numbers(2, 2, 3, 4, 5, seed=6)
    first, second = numbers(1, 11, seed=7), numbers(2, 3, 4, 5, seed=8)

    def model(left: Tensor, right: Tensor) -> Tensor:
        return (left * first).flatten(1).sum(1) + (right * second).flatten(1).sum(1)

    got = attributions(model, (sound, film), target=None, n_steps=40, max_sigma=2.0)
    torch.testing.assert_close(got[0], first * (sound - blur(sound, 2.0)), rtol=0, atol=1e-11)
    torch.testing.assert_close(got[1], second * (film - blur(film, 2.0)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_inputs_are_blurred_in_float32(dtype: torch.dtype) -> None:
    x = IMAGES.to(dtype)
    got = attributions(lambda x: x.sum((1, 2, 3)), x, target=None, n_steps=40, max_sigma=4.0)
    assert got.dtype == dtype
    expected = (x.double() - blur(x.double(), 4.0)).to(dtype)
    torch.testing.assert_close(got, expected, rtol=0, atol=4e-6 if dtype == torch.float32 else 0.02)


def test_the_path_serves_other_specs(tmp_path: Path) -> None:
    spec = tmp_path / "blur_saliency.toml"
    spec.write_text(BLUR_SALIENCY, "utf-8")
    got = axplain.explain(lambda x: x.square().sum((1, 2, 3)), IMAGES, spec).attributions
    nodes, weights = gauss_legendre(4)
    expected = sum(2 * w * blur(IMAGES, float(1 - a)) for a, w in zip(nodes, weights, strict=True))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    with pytest.raises(axplain.ArgumentError, match="blur along"):
        axplain.explain(lambda x: x.sum(1), numbers(2, 3), spec)


BLUR_SALIENCY = """
spec = 1
kind = "method"
name = "blur_saliency"
title = "Blur saliency"
version = "1.0.0"
summary = "The mean gradient over the scales of an input."
requires = { input_dtype = "floating" }
cost = { forward_rows = "batch * 4", backward_rows = "batch * 4" }

[composition]
perturbation = { use = "blur_path", n = 4, max_sigma = 1.0 }
evaluation = "gradient"
aggregation = "weighted_sum"
"""


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (numbers(2, 7), "at least 3 dimensions"),
        ((IMAGES, numbers(3, 7)), "x\\[1\\].*at least 3 dimensions"),
        (torch.ones(1, 2, 7, 5, dtype=torch.long), "floating"),
    ],
)
def test_inputs_that_cannot_be_blurred_are_refused(x: Any, words: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=words):
        attributions(Smooth(), x)


@pytest.mark.parametrize(
    ("argument", "value"), [("max_sigma", 0.0), ("max_sigma", math.inf), ("n_steps", 0), ("baselines", 0.0)]
)
def test_arguments_that_mean_nothing_here_are_refused_by_name(argument: str, value: float) -> None:
    with pytest.raises(axplain.ArgumentError, match=argument):
        attributions(Smooth(), IMAGES, **{argument: value})


def test_the_price_is_one_gradient_for_each_node_and_example() -> None:
    explanation = axplain.explain(Smooth(), IMAGES, "blur_ig", target=0, n_steps=11, verify=False)
    assert (explanation.cost.forward_rows, explanation.cost.backward_rows) == (33, 33)
