"""SmoothGrad, its square and VarGrad: what they average is recorded at the model and averaged again by numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import axplain
from axplain.randomness import Key

MODES = ["smoothgrad", "smoothgrad_sq", "vargrad"]
DETERMINISTIC: list[Any] = [
    "saliency",
    "input_x_gradient",
    {"use": "saliency", "absolute": False},
    {"use": "integrated_gradients", "n_steps": 6},
]


def _seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _network(seed: int = 1) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 1)).double().eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = 0.7 * _seeded(*parameter.shape, seed=100 * seed + i)
    return model


def _plain(inner: Any) -> tuple[str, dict[str, Any]]:
    """Return an inner method as the name and the parameters of a call of its own."""
    if isinstance(inner, str):
        return inner, {}
    return inner["use"], {name: value for name, value in inner.items() if name != "use"}


def _copies(x: Tensor, mode: str = "smoothgrad", **arguments: Any) -> Tensor:
    """Return the noisy copies that reach the model: (samples, examples, ...)."""
    seen: list[Tensor] = []

    def model(rows: Tensor) -> Tensor:
        seen.append(rows.detach().clone())
        return rows.flatten(1).sum(1)

    axplain.explain(model, x, mode, target=lambda output: output, batch_size=len(x), **arguments)
    return torch.stack(seen)


def _attributions(model: Any, copies: Tensor, inner: Any) -> Any:
    """Return the attributions of every copy, each explained on its own, as a float64 array."""
    name, parameters = _plain(inner)
    answers = [axplain.explain(model, copy, name, verify=False, **parameters).attributions for copy in copies]
    return torch.stack(answers).double().numpy()


READINGS: dict[str, Callable[[Any], Any]] = {
    "smoothgrad": lambda samples: samples.mean(0),
    "smoothgrad_sq": lambda samples: (samples**2).mean(0),
    "vargrad": lambda samples: samples.var(0),
}


@pytest.mark.parametrize("inner", DETERMINISTIC, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_numpys_reading_of_the_attributions_of_the_copies(mode: str, inner: Any) -> None:
    model, x = _network(), _seeded(3, 4)
    arguments: dict[str, Any] = {"n_samples": 12, "stdev": 0.3, "seed": 5}
    found = axplain.explain(model, x, mode, inner=inner, **arguments)
    exact = READINGS[mode](_attributions(model, _copies(x, mode, **arguments), inner))
    np.testing.assert_allclose(found.attributions.numpy(), exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("mode", "power"), [("smoothgrad", 1), ("smoothgrad_sq", 2)])
def test_standard_errors_are_those_of_the_averaged_terms(mode: str, power: int) -> None:
    model, x = _network(), _seeded(3, 4)
    arguments: dict[str, Any] = {"n_samples": 12, "stdev": 0.3}
    found = axplain.explain(model, x, mode, inner="input_x_gradient", **arguments)
    terms = _attributions(model, _copies(x, mode, **arguments), "input_x_gradient") ** power
    np.testing.assert_allclose(found.standard_errors.numpy(), terms.std(0, ddof=1) / 12**0.5, rtol=1e-12, atol=0)


def test_vargrad_states_no_standard_error() -> None:
    assert axplain.explain(_network(), _seeded(3, 4), "vargrad").standard_errors is None


@pytest.mark.parametrize("inner", DETERMINISTIC, ids=str)
def test_without_noise_a_mode_is_the_method_its_square_and_zero(inner: Any) -> None:
    model, x = _network(), _seeded(3, 4)
    name, parameters = _plain(inner)
    base = axplain.explain(model, x, name, verify=False, **parameters).attributions
    for mode, expected in (("smoothgrad", base), ("smoothgrad_sq", base**2), ("vargrad", torch.zeros_like(base))):
        found = axplain.explain(model, x, mode, inner=inner, n_samples=5, stdev=0.0).attributions
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)


def test_of_a_linear_model_the_gradient_is_kept_and_input_times_gradient_in_expectation() -> None:
    weight, x, stdev, samples = _seeded(4, seed=1), _seeded(3, 4), 0.5, 4000

    def model(rows: Tensor) -> Tensor:
        return rows @ weight

    arguments: dict[str, Any] = {"n_samples": samples, "stdev": stdev}
    slope = axplain.explain(model, x, "smoothgrad", inner={"use": "saliency", "absolute": False}, **arguments)
    torch.testing.assert_close(slope.attributions, weight.expand(3, 4), rtol=0, atol=1e-13)
    mean = axplain.explain(model, x, "smoothgrad", inner="input_x_gradient", **arguments)
    spread = stdev * weight.abs() / samples**0.5
    assert bool(((mean.attributions - weight * x).abs() <= 5 * spread).all())
    torch.testing.assert_close(mean.standard_errors, spread.expand(3, 4), rtol=0.06, atol=0)
    variance = axplain.explain(model, x, "vargrad", inner="input_x_gradient", **arguments).attributions
    torch.testing.assert_close(variance, (stdev * weight).square().expand(3, 4), rtol=5 * (2 / samples) ** 0.5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("batch_size", [20, 60, 1000])
def test_vargrad_is_never_negative(batch_size: int, scale: float, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 1)).eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = _seeded(*parameter.shape, seed=300 + i)
    model, x = model.to(dtype), (scale * _seeded(20, 4)).to(dtype)
    arguments: dict[str, Any] = {"n_samples": 16, "stdev": 1e-3}
    found = axplain.explain(model, x, "vargrad", inner="input_x_gradient", batch_size=batch_size, **arguments)
    assert bool((found.attributions >= 0).all())
    samples = _attributions(model, _copies(x, "vargrad", **arguments), "input_x_gradient")
    rounding = torch.finfo(dtype).eps * np.abs(samples).max(0)  # of the attributions themselves
    off = found.attributions.double().sqrt().numpy() - samples.std(0)
    assert (np.abs(off) <= 4 * rounding).all()


def test_noise_is_one_draw_of_a_standard_normal_for_each_sample_and_tensor() -> None:
    copies = _copies(torch.zeros(1, 50).double(), n_samples=400, stdev=2.0) / 2
    assert len(set(copies.flatten().tolist())) > 19_900, "no number is used twice"
    assert float(copies.mean()) == pytest.approx(0, abs=5 / 20_000**0.5)
    assert float(copies.square().mean()) == pytest.approx(1, abs=5 * (2 / 20_000) ** 0.5)
    assert float((copies**4).mean()) == pytest.approx(3, abs=5 * (96 / 20_000) ** 0.5)


def test_noise_is_drawn_by_key() -> None:
    """So that anybody can redraw it: from the seed, the mode, the tensor and the sample."""
    x = _seeded(2, 4)
    for sample, copy in enumerate(_copies(x, "vargrad", n_samples=6, stdev=0.7, seed=11)):
        noise = Key(11, ("vargrad", "noise", 0, sample)).normal(x)
        torch.testing.assert_close(copy, x + 0.7 * noise, rtol=0, atol=1e-15)


def test_more_samples_keep_the_first_ones_and_another_seed_keeps_none() -> None:
    x = _seeded(2, 4)
    few, many = _copies(x, n_samples=5, stdev=0.1), _copies(x, n_samples=9, stdev=0.1)
    assert torch.equal(many[:5], few)
    assert not bool((_copies(x, n_samples=5, stdev=0.1, seed=1) == few).any())


def test_noise_is_shared_by_the_examples_so_a_batch_equals_one_at_a_time() -> None:
    model, x = _network(), _seeded(4, 4)
    noise = _copies(torch.zeros(3, 4).double(), n_samples=3, stdev=0.1)
    assert torch.equal(noise[:, 0], noise[:, 1])
    for mode in MODES:
        together = axplain.explain(model, x, mode, inner="integrated_gradients", n_samples=6).attributions
        alone = [
            axplain.explain(model, x[i : i + 1], mode, inner="integrated_gradients", n_samples=6).attributions
            for i in range(4)
        ]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_chunks_do_not_change_the_answer(mode: str) -> None:
    model, x = _network(), _seeded(5, 4)
    answers = [
        axplain.explain(model, x, mode, inner="input_x_gradient", n_samples=7, batch_size=rows)
        for rows in (1, 3, 5, 10, 11, 35)
    ]
    for answer in answers[1:]:
        torch.testing.assert_close(answer.attributions, answers[0].attributions, rtol=0, atol=1e-14)
        assert answer.cost == answers[0].cost


def test_a_standard_deviation_in_units_of_the_range_follows_each_example() -> None:
    x = torch.tensor([[0.0, 1.0, 0.5], [-10.0, 10.0, 3.0], [2.0, 2.0, 2.0]]).double()
    moved = _copies(x, n_samples=1500, stdev=0.1, unit="range") - x
    torch.testing.assert_close(moved[:, 1], 20 * moved[:, 0], rtol=1e-9, atol=1e-12)
    assert not moved[:, 2].any(), "a constant example has no range"
    assert float(moved[:, 1].std()) == pytest.approx(2.0, rel=0.05)
    absolute = _copies(x, n_samples=10, stdev=0.1) - x
    torch.testing.assert_close(absolute[:, 1], absolute[:, 0], rtol=0, atol=1e-13)


def _pair(**arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the noise on two inputs, the second of which has the range 8."""
    seen: list[tuple[Tensor, Tensor]] = []

    def model(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a.detach().clone(), b.detach().clone()))
        return (a + b).sum(1)

    x = (torch.zeros(1, 3).double(), torch.tensor([[0.0, 8.0, 4.0]]).double())
    axplain.explain(model, x, "smoothgrad", n_samples=2000, batch_size=1, target=lambda output: output, **arguments)
    a, b = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return a - x[0], b - x[1]


def test_a_standard_deviation_for_each_input() -> None:
    a, b = _pair(stdev=(0.5, 2.0))
    assert float(a.std()) == pytest.approx(0.5, rel=0.05)
    assert float(b.std()) == pytest.approx(2.0, rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.07, "drawn apart"
    still, moving = _pair(stdev=(0, 2))
    assert not still.any()
    torch.testing.assert_close(moving, b, rtol=0, atol=1e-12)


def test_the_range_is_that_of_each_tensor() -> None:
    a, b = _pair(stdev=0.25, unit="range")
    assert not a.any()
    assert float(b.std()) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    ("stdev", "named"),
    [
        ((0.1,), "1 values came"),
        ((0.1, 0.2, 0.3), "3 values came"),
        (-0.1, "-0.1 came"),
        ("0.1", "'0.1'"),
        (True, "True"),
    ],
)
def test_a_standard_deviation_that_does_not_fit_is_refused(stdev: Any, named: str) -> None:
    x = (torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(axplain.ArgumentError, match=f"^stdev: {named}"):
        axplain.explain(lambda a, b: (a + b).sum(1), x, "smoothgrad", stdev=stdev)
    with pytest.raises(axplain.ArgumentError, match=r"^stdev: "):
        axplain.explain(lambda a, b: (a + b).sum(1), x, "saliency", noise={"mode": "vargrad", "stdev": stdev})


@pytest.mark.parametrize("mode", MODES)
def test_noise_and_inner_say_the_same(mode: str) -> None:
    model, x = _network(), _seeded(3, 4)
    around = axplain.explain(
        model, x, "integrated_gradients", n_steps=7, noise={"mode": mode, "n_samples": 4, "stdev": 0.2}
    )
    inside = axplain.explain(
        model, x, mode, inner={"use": "integrated_gradients", "n_steps": 7}, n_samples=4, stdev=0.2
    )
    assert torch.equal(around.attributions, inside.attributions)
    assert around.cost == inside.cost
    assert around.method == inside.method == mode
    assert around.parameters == inside.parameters
    short = axplain.explain(model, x, "input_x_gradient", noise=mode)
    assert torch.equal(short.attributions, axplain.explain(model, x, mode, inner="input_x_gradient").attributions)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"method": "smoothgrad", "noise": "vargrad"}, "noise: 'vargrad' came and method='smoothgrad' is a noise mode"),
        ({"method": "saliency", "noise": "smoothgrad", "inner": "saliency"}, "inner: saliency has no such parameter"),
        ({"method": "saliency", "noise": {"mode": "smoothgrad", "inner": "saliency"}}, "noise: the key 'inner' came"),
        ({"method": "saliency", "noise": {"n_samples": 3}}, "noise: .*'mode'|noise: .*name of a noise mode"),
        ({"method": "saliency", "noise": 0.1}, "noise: 0.1 came"),
        ({"method": "saliency", "noise": {"mode": "smoothgrad", "samples": 3}}, "samples: smoothgrad has no such"),
        ({"method": "saliency", "noise": {"mode": "smoothgrad", "n_samples": 0}}, "n_samples: 0 came"),
        ({"method": "smoothgrad", "inner": {"n_steps": 3}}, "inner: .*'use'"),
        ({"method": "smoothgrad", "inner": "integrated_gradients", "n_steps": 3}, "n_steps: smoothgrad has no such"),
        ({"method": "smoothgrad", "unit": "percent"}, "unit: 'percent'.*absolute, range"),
    ],
)
def test_two_ways_at_once_and_what_no_way_knows_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=f"^(?:{named})"):
        axplain.explain(_network(), _seeded(2, 4), **arguments)


@pytest.mark.parametrize("name", ["smoothgrat", "saliency"])
def test_a_name_that_is_no_noise_mode_is_refused(name: str) -> None:
    with pytest.raises(axplain.UnknownMethod, match=f"'{name}' is not a noise.*smoothgrad"):
        axplain.explain(_network(), _seeded(2, 4), "saliency", noise=name)


def _drawn_points(samples: int, inner_samples: int, **arguments: Any) -> Tensor:
    """Return the points of gradient SHAP inside a noise mode without noise: x = 0, baselines 1 and 2."""
    seen: list[Tensor] = []

    def model(rows: Tensor) -> Tensor:
        seen.append(rows.detach().clone())
        return rows.sum(1)

    noise = {"mode": "smoothgrad", "n_samples": samples, "stdev": 0.0}
    axplain.explain(
        model, torch.zeros(1, 1).double(), "gradient_shap", baselines=torch.tensor([[1.0], [2.0]]).double(),
        n_samples=inner_samples, noise=noise, verify=False, target=lambda output: output, **arguments,
    )  # fmt: skip
    return torch.cat(seen).flatten()


def test_a_seeded_method_inside_noise_draws_afresh_for_every_copy() -> None:
    points = _drawn_points(30, 2, batch_size=1)
    assert len(points) == 60
    assert len(set(points.tolist())) == 60, "positions repeat"
    assert torch.equal(points, _drawn_points(30, 2, batch_size=1)), "the same seed, the same points"
    torch.testing.assert_close(points, _drawn_points(30, 2, batch_size=7), rtol=0, atol=1e-15)
    assert not bool(torch.isin(_drawn_points(30, 2, batch_size=1, seed=1), points).any())


def test_noise_over_gradient_shap_averages_many_draws() -> None:
    """20 copies of 25 draws without noise are 500 draws: the error is that of 500, stated from between the copies."""
    model, x, rows = _network(), _seeded(2, 4), _seeded(6, 4, seed=1)
    exact = axplain.explain(model, x, baselines=axplain.distribution(rows), n_steps=64).attributions
    noise = {"mode": "smoothgrad", "n_samples": 20, "stdev": 0.0}
    found = axplain.explain(model, x, "gradient_shap", baselines=rows, n_samples=25, noise=noise, verify=False)
    single = axplain.explain(model, x, "gradient_shap", baselines=rows, n_samples=500, verify=False)
    assert bool(((found.attributions - exact).abs() <= 5 * found.standard_errors).all())
    ratio = (found.standard_errors / single.standard_errors).mean()
    assert float(ratio) == pytest.approx(1, abs=0.3)
    variance = axplain.explain(
        model, x, "gradient_shap", baselines=rows, n_samples=25, noise=noise | {"mode": "vargrad"}, verify=False
    )
    assert bool((variance.attributions > 0).all()), "draws differ between copies"


def test_noise_inside_noise_adds_its_variance() -> None:
    """F = x^2, so x times its gradient is 2 x^2, and E[2 (x + e + e')^2] = 2 (x^2 + 0.3^2 + 0.4^2)."""
    x, samples = torch.tensor([[0.5]]).double(), 100
    found = axplain.explain(
        lambda rows: rows.square().sum(1), x, "smoothgrad", n_samples=samples, stdev=0.3,
        inner={"use": "smoothgrad", "inner": "input_x_gradient", "n_samples": samples, "stdev": 0.4},
    )  # fmt: skip
    assert found.cost.forward_rows == samples**2
    assert abs(float(found.attributions) - 2 * (0.25 + 0.09 + 0.16)) <= 5 * float(found.standard_errors)
    assert float(found.standard_errors) < 0.1


def test_noise_inside_noise_is_not_the_same_noise() -> None:
    seen: list[Tensor] = []

    def model(rows: Tensor) -> Tensor:
        seen.append(rows.detach().clone())
        return rows.sum(1)

    axplain.explain(
        model, torch.zeros(1, 3).double(), "smoothgrad", n_samples=10, stdev=0.0, batch_size=1,
        inner={"use": "smoothgrad", "inner": "saliency", "n_samples": 10, "stdev": 1.0},
        target=lambda output: output,
    )  # fmt: skip
    assert len(set(torch.cat(seen).flatten().tolist())) == 300


def test_completeness_of_the_method_inside_is_inherited() -> None:
    """The mean over copies of complete attributions sums to the mean of F over the copies, minus F(x')."""
    model, x, baselines = _network(), _seeded(3, 4), _seeded(3, 4, seed=2)
    arguments: dict[str, Any] = {"n_samples": 6, "stdev": 0.3}
    found = axplain.explain(
        model, x, "smoothgrad", inner={"use": "integrated_gradients", "n_steps": 64}, baselines=baselines, **arguments
    )
    with torch.no_grad():
        mean = torch.stack([model(copy).squeeze(1) for copy in _copies(x, **arguments)]).mean(0)
        difference = mean - model(baselines).squeeze(1)
    assert found.delta is not None and found.difference is not None
    torch.testing.assert_close(found.difference, difference, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.attributions.sum(1), difference, rtol=0, atol=1e-13)
    assert float(found.delta.abs().max()) < 1e-13
    for mode in ("smoothgrad_sq", "vargrad"):
        assert axplain.explain(model, x, mode, inner="integrated_gradients").delta is None


def test_a_set_of_baselines_inside_noise_is_averaged_for_every_copy() -> None:
    model, x, rows = _network(), _seeded(3, 4), _seeded(4, 4, seed=2)
    arguments: dict[str, Any] = {"noise": {"mode": "smoothgrad", "n_samples": 5, "stdev": 0.3}, "n_steps": 64}
    each = [axplain.explain(model, x, baselines=row[None], **arguments) for row in rows]
    found = axplain.explain(model, x, baselines=axplain.distribution(rows), **arguments)
    mean = torch.stack([part.attributions for part in each]).mean(0)
    torch.testing.assert_close(found.attributions, mean, rtol=0, atol=1e-14)
    assert found.delta is not None
    assert float(found.delta.abs().max()) < 1e-13


def test_the_class_that_is_explained_is_that_of_the_clean_input() -> None:
    """Not that of each copy, which noise of this size changes."""
    rows, x = _seeded(3, 4, seed=1), 0.1 * _seeded(6, 4)

    def model(features: Tensor) -> Tensor:
        return (features @ rows.T).softmax(1)

    predicted = model(x).argmax(1)
    changed = model(_copies(x, n_samples=10, stdev=2.0).flatten(0, 1)).argmax(1) != predicted.repeat(10)
    assert float(changed.double().mean()) > 0.3
    noise = {"mode": "smoothgrad", "n_samples": 10, "stdev": 2.0}
    found = axplain.explain(model, x, "input_x_gradient", noise=noise)
    asked = axplain.explain(model, x, "input_x_gradient", noise=noise, target=predicted)
    assert found.target == predicted.tolist()
    torch.testing.assert_close(found.attributions, asked.attributions, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_samples_times_those_of_the_method_inside(mode: str) -> None:
    model, x = _network(), _seeded(3, 4)
    noise = {"mode": mode, "n_samples": 4}
    found = axplain.explain(model, x, noise=noise, n_steps=5, verify=False)
    assert found.cost.forward_rows == found.cost.backward_rows == 3 * 4 * 5
    assert axplain.estimate(model, x, noise=noise, n_steps=5).forward_rows == 60
