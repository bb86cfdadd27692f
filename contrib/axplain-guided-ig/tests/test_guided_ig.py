"""The mathematics of guided integrated gradients, in float64, against closed forms and a scalar loop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import axplain

SETTINGS = [(1, 0.25, 1.0), (7, 0.1, 1.0), (20, 0.25, 0.02), (12, 0.5, 0.3), (9, 1.0, 0.2)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64)


class Network(nn.Module):
    """Two hidden layers over one input, or over two that are joined."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = numbers(features, 8, seed=1), numbers(8, 2, seed=2)

    def forward(self, *x: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(torch.cat(x, 1) @ self.first) @ self.second)


def attributions(model: Any, x: Any, **more: Any) -> Any:
    return axplain.explain(model, x, "guided_ig", verify=False, **{"target": 0, **more}).attributions


def by_hand(model: nn.Module, x: Tensor, baseline: Tensor, n_steps: int, fraction: float, max_dist: float) -> Tensor:
    """Explain one example, (features,), feature by feature, in plain floats."""
    ends, starts = x.tolist(), baseline.tolist()
    here, sums, indices = list(starts), [0.0] * len(ends), range(len(ends))

    def on_line(i: int, part: float) -> float:
        return float(starts[i] + min(max(part, 0.0), 1.0) * (ends[i] - starts[i]))

    for step in range(1, n_steps + 1):
        leaf = torch.tensor([here], dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(model(leaf)[0, 0], leaf)[0][0].tolist()
        near = [on_line(i, step / n_steps - max_dist) for i in indices]
        far = [on_line(i, step / n_steps + max_dist) for i in indices]
        before = list(here)
        here = [near[i] if abs(ends[i] - near[i]) < abs(ends[i] - here[i]) else here[i] for i in indices]
        wanted = sum(abs(e - s) for e, s in zip(ends, starts, strict=True)) * (1 - step / n_steps)
        while (missing := sum(abs(ends[i] - here[i]) for i in indices) - wanted) > 1e-12:
            able = [i for i in indices if abs(far[i] - here[i]) > 1e-12]
            ranked = sorted(abs(slope[i]) for i in able)
            edge = ranked[math.ceil(fraction * len(able) - 1e-6) - 1]
            group = [i for i in able if abs(slope[i]) <= edge]
            share = min(missing / sum(abs(far[i] - here[i]) for i in group), 1.0)
            for i in group:
                here[i] += share * (far[i] - here[i])
        sums = [sums[i] + slope[i] * (here[i] - before[i]) for i in indices]
    return torch.tensor(sums, dtype=torch.float64)


@pytest.mark.parametrize(("n_steps", "fraction", "max_dist"), SETTINGS)
def test_every_example_gets_what_a_scalar_loop_finds(n_steps: int, fraction: float, max_dist: float) -> None:
    model, x, baselines = Network(9), numbers(4, 9, seed=3), numbers(4, 9, seed=4)
    x[1, 2] = baselines[1, 2]  # a feature that has nowhere to go
    parameters: dict[str, Any] = {"n_steps": n_steps, "fraction": fraction, "max_dist": max_dist}
    expected = torch.stack([by_hand(model, *rows, **parameters) for rows in zip(x, baselines, strict=True)])
    torch.testing.assert_close(attributions(model, x, baselines=baselines, **parameters), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("n_steps", "fraction", "max_dist"), SETTINGS)
def test_features_of_several_inputs_are_ranked_together(n_steps: int, fraction: float, max_dist: float) -> None:
    model, x = Network(9), numbers(3, 9, seed=5)
    parameters = {"n_steps": n_steps, "fraction": fraction, "max_dist": max_dist}
    parts = attributions(model, (x[:, :4], x[:, 4:]), **parameters)
    torch.testing.assert_close(torch.cat(parts, 1), attributions(model, x, **parameters), rtol=0, atol=1e-10)


def test_the_feature_with_the_small_gradient_goes_first() -> None:
    x = torch.ones(1, 2, dtype=torch.float64)
    got = attributions(lambda x: 2 * x[:, 0] + x[:, 1] + x.prod(1), x, target=None, n_steps=10, max_dist=1.0)
    torch.testing.assert_close(got, torch.tensor([[3.0, 1.0]], dtype=torch.float64))  # the straight line: 2.5 and 1.5


def test_without_a_corridor_to_stray_in_it_is_integrated_gradients() -> None:
    model, x, baselines = Network(6), numbers(3, 6, seed=6), numbers(3, 6, seed=7)
    line = axplain.explain(
        model, x, "integrated_gradients", target=0, baselines=baselines, n_steps=13, quadrature="left", verify=False
    )
    got = attributions(model, x, baselines=baselines, n_steps=13, max_dist=0.0)
    torch.testing.assert_close(got, line.attributions, rtol=0, atol=1e-12)


def test_a_linear_model_gets_weights_times_displacement() -> None:
    weights, x, baselines = numbers(5), numbers(2, 5, seed=8), numbers(1, 5, seed=9)
    got = attributions(lambda x: x @ weights, x, target=None, baselines=baselines, n_steps=3, max_dist=1.0)
    torch.testing.assert_close(got, weights * (x - baselines), rtol=0, atol=1e-13)


def test_separable_functions_get_their_differences_at_the_rate_one() -> None:
    x, scale = numbers(2, 4, seed=10), numbers(4, seed=11)
    expected = torch.tanh(x * scale) - x.square()

    def error(n_steps: int) -> float:
        got = attributions(
            lambda x: (torch.tanh(x * scale) - x.square()).sum(1), x, target=None, n_steps=n_steps, max_dist=1.0
        )
        return float((got - expected).abs().max())

    assert error(1600) < 0.01
    assert 12 < error(100) / error(1600) < 20


def test_equal_gradients_move_together_however_small_the_fraction_is() -> None:
    x = torch.full((1, 7), 0.7, dtype=torch.float64)
    got = attributions(lambda x: torch.tanh(x.sum(1)), x, target=None, n_steps=5, fraction=0.001, max_dist=1.0)
    torch.testing.assert_close(got, got[:, :1].expand(1, 7), rtol=0, atol=1e-15)


def test_the_path_stays_in_its_corridor_and_advances_evenly() -> None:
    model, x = Network(8), numbers(1, 8, seed=12)
    places: list[Tensor] = []

    def recording(rows: Tensor) -> Tensor:
        places.append(rows.detach() / x)
        return model.forward(rows)

    attributions(recording, x, n_steps=10, max_dist=0.15, batch_size=1)
    path = torch.cat(places)
    middle = torch.arange(10, dtype=torch.float64) / 10
    assert len(path) == 10
    assert float((path - middle[:, None]).abs().max()) == pytest.approx(0.15)
    assert bool((path.diff(dim=0) > -1e-12).all())
    torch.testing.assert_close((path * x.abs()).sum(1) / x.abs().sum(), middle)


def test_a_path_along_a_kink_keeps_an_error_that_a_narrow_corridor_bounds() -> None:
    x, baselines = torch.ones(1, 2, dtype=torch.float64), torch.tensor([[0.0, 0.3]], dtype=torch.float64)

    def kinked(x: Tensor) -> Tensor:
        return 2 * x.sum(1) + (x[:, 0] - x[:, 1]).abs()

    def residual(n_steps: int, max_dist: float) -> float:
        got = attributions(kinked, x, target=None, baselines=baselines, n_steps=n_steps, max_dist=max_dist)
        return abs(float(got.sum() - (kinked(x) - kinked(baselines))))

    assert residual(100, 1.0) > 1.0
    assert residual(1000, 1.0) > 1.0
    assert residual(1000, 0.0) < 0.01
    assert residual(1000, 0.01) < 0.1
    assert residual(1000, 0.1) < 1.0


def test_a_kept_error_is_told() -> None:
    x, baselines = torch.ones(1, 2, dtype=torch.float64), torch.tensor([[0.0, 0.3]], dtype=torch.float64)
    with pytest.warns(axplain.AxplainWarning, match="max_dist"):
        explanation = axplain.explain(
            lambda x: 2 * x.sum(1) + (x[:, 0] - x[:, 1]).abs(), x, "guided_ig", baselines=baselines, max_dist=1.0
        )
    assert float(explanation.residuals["completeness"][0].abs()) > 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs_sum_in_float32(dtype: torch.dtype) -> None:
    x = torch.linspace(0.1, 1.0, 10).to(dtype).unsqueeze(0)
    got = attributions(lambda x: x.sum(1), x, target=None, n_steps=300)
    torch.testing.assert_close(got, x)


@pytest.mark.parametrize(
    ("parameter", "value"), [("n_steps", 0), ("n_steps", 2.5), ("fraction", 0.0), ("fraction", 1.1), ("max_dist", -0.1)]
)
def test_parameters_out_of_bounds_are_refused_by_name(parameter: str, value: float) -> None:
    with pytest.raises(axplain.ArgumentError, match=parameter):
        attributions(Network(3), numbers(1, 3), **{parameter: value})


def test_whole_number_inputs_are_refused() -> None:
    with pytest.raises(axplain.ArgumentError, match="floating"):
        attributions(Network(3), torch.ones(1, 3, dtype=torch.long))


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(axplain.UnsupportedModel, match="gradient"):
        attributions(lambda x: x.sqrt().sum(1), torch.ones(1, 3, dtype=torch.float64), target=None)


def test_the_price_is_one_gradient_for_each_step_and_example() -> None:
    x = numbers(3, 4)
    explanation = axplain.explain(Network(4), x, "guided_ig", target=0, n_steps=11, verify=False)
    assert (explanation.cost.forward_rows, explanation.cost.backward_rows) == (33, 33)
