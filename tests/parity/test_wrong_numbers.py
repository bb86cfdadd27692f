"""Where captum 0.9.0, as released, returns wrong numbers without a word. Each test asserts the fault, so that a release
that mends it is noticed, and shows axplain's result right by mathematics that neither library takes part in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import GradientShap, InputXGradient, IntegratedGradients, NoiseTunnel
from tests.parity.networks import quietly, seeded, smooth
from tests.parity.oracles import gradients, integrated_gradients, rule, single_precision
from torch import Tensor, nn

import axplain


@pytest.mark.parametrize("n", [2, 5, 50])
def test_v1_trapezoid_weights_sum_to_one(n: int) -> None:
    """Captum's sum to (n - 1) / n. For a linear model every rule is exact: attributions are w * x."""
    model, x = nn.Linear(4, 1, bias=False).double(), seeded(3, 4)
    exact = model.weight.detach() * x
    theirs = quietly(IntegratedGradients(model).attribute, x, n_steps=n, method="riemann_trapezoid")
    torch.testing.assert_close(theirs, exact * (n - 1) / n, rtol=1e-6, atol=0)
    ours = axplain.explain(model, x, n_steps=n, quadrature="trapezoid")
    torch.testing.assert_close(ours.attributions, exact, rtol=0, atol=1e-15)


def test_v3_quadrature_keeps_double_precision() -> None:
    """Captum's weights are float32: its residual stays above 1e-9 where the rule itself is exact to rounding."""
    model, x = smooth(), seeded(5, 4)

    def first(rows: Tensor) -> Tensor:
        logits: Tensor = model(rows)
        return logits[:, 0]

    zero = torch.zeros_like(x)
    difference = (first(x) - first(zero)).detach()
    theirs = quietly(IntegratedGradients(model).attribute, x, target=0, n_steps=200)
    assert float((theirs.sum(1) - difference).abs().max()) > 1e-9
    rounded = integrated_gradients(first, (x,), (zero,), single_precision("gauss_legendre", 200))[0]
    torch.testing.assert_close(theirs, rounded, rtol=0, atol=1e-14)
    ours = axplain.explain(model, x, target=0, n_steps=200)
    assert float((ours.attributions.sum(1) - difference).abs().max()) < 1e-14
    exact = integrated_gradients(first, (x,), (zero,), rule("gauss_legendre", 200))[0]
    torch.testing.assert_close(ours.attributions, exact, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "vargrad"])
def test_v5_results_have_the_dtype_of_the_input(name: str, dtype: torch.dtype) -> None:
    """Captum's integrated gradients of a bfloat16 model are float32; its removal methods turn float64 into float32."""
    model, x = smooth().to(dtype), seeded(3, 4).to(dtype)
    if name == "integrated_gradients" and dtype == torch.bfloat16:
        assert quietly(IntegratedGradients(model).attribute, x, target=0).dtype == torch.float32
    baselines = x if name == "gradient_shap" else None
    ours = axplain.explain(model, x, name, target=0, baselines=baselines, verify=False)
    assert ours.attributions.dtype == dtype
    assert ours.standard_errors is None or ours.standard_errors.dtype == dtype


def test_v6_gradient_shap_follows_its_seed_and_no_global_one() -> None:
    """Captum draws baselines and positions from numpy's generator: `torch.manual_seed` does not fix its result."""
    model, x, background = smooth(), seeded(3, 4), seeded(6, 4, seed=1)

    def theirs(numpy_seed: int) -> Tensor:
        torch.manual_seed(0)
        np.random.seed(numpy_seed)
        found: Tensor = quietly(GradientShap(model).attribute, x, background, target=0, n_samples=5)
        return found.detach()

    def ours(global_seed: int, seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        found: Tensor = axplain.explain(
            model, x, "gradient_shap", target=0, baselines=background, n_samples=5, seed=seed, verify=False
        ).attributions
        return found

    with torch.random.fork_rng():
        assert float((theirs(1) - theirs(2)).abs().max()) > 0.05
        assert torch.equal(ours(1, seed=7), ours(2, seed=7))
        assert not torch.equal(ours(1, seed=7), ours(1, seed=8))


def test_v7_gradient_shap_keeps_the_joint_law_of_tuple_baselines() -> None:
    """F = (a - b)^2 with a = b in every baseline row, so F(x') = 0 for all of them and attributions sum to F(x).

    On the path from a joint row a - b is alpha (x_a - x_b), so the gradient is known, and its mean over alpha:
    (a - a', b' - b) (x_a - x_b) for the displacement from row (a', b'). Captum pairs a of one row with b of another.
    """

    def model(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().squeeze(1)

    x = (torch.tensor([[2.0]]).double(), torch.tensor([[1.0]]).double())
    rows = 30 * seeded(40, 1, seed=1)
    np.random.seed(0)
    theirs = quietly(GradientShap(model).attribute, x, (rows, rows.clone()), n_samples=200)
    assert abs(float(sum(part.sum() for part in theirs)) - 1.0) > 100
    ours = axplain.explain(model, x, "gradient_shap", baselines=(rows, rows.clone()), n_samples=4000)
    exact = (2.0 - rows.mean()) * 1.0, (1.0 - rows.mean()) * -1.0
    assert float(sum(exact)) == pytest.approx(1.0)
    for found, error, truth in zip(ours.attributions, ours.standard_errors, exact, strict=True):
        assert abs(float(found) - float(truth)) <= 5 * float(error)
    # a and b always move together, so the errors of the two cancel in the sum but for the position alpha
    assert float(sum(part.sum() for part in ours.attributions)) == pytest.approx(1.0, abs=5 * 2 * 12**-0.5 / 4000**0.5)


def test_v8_vargrad_is_never_negative() -> None:
    """Captum subtracts the square of the mean from the mean of the squares, which cancels where the mean is large."""
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)).eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = seeded(*parameter.shape, seed=70 + i).float()
    x = 1000 * seeded(100, 8, seed=1).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tunnel = NoiseTunnel(InputXGradient(model))
        theirs = quietly(tunnel.attribute, x, nt_type="vargrad", nt_samples=20, stdevs=1e-3)
    assert int((theirs < 0).sum()) > 20
    seen: list[Tensor] = []

    def recording(rows: Tensor) -> Tensor:
        seen.append(rows.detach().clone())
        value: Tensor = model(rows)
        return value

    ours = axplain.explain(
        recording, x, "vargrad", inner="input_x_gradient", n_samples=20, stdev=1e-3, batch_size=len(x)
    )
    copies = torch.stack(seen[-20:])
    parts = [copy * gradients(lambda rows: model(rows).squeeze(1), copy)[0] for copy in copies]
    samples = torch.stack(parts).double()
    assert bool((ours.attributions >= 0).all())
    # right to a rounding of the attributions, which are float32 themselves
    rounding = torch.finfo(torch.float32).eps * samples.abs().mean(0)
    off = ours.attributions.double().sqrt() - samples.std(0, unbiased=False)
    assert bool((off.abs() <= rounding).all())


def test_v9_noise_draws_a_fresh_baseline_for_every_sample() -> None:
    """Captum's `draw_baseline_from_distrib` draws once and keeps that row for all chunks."""
    background, x = torch.arange(1.0, 17.0).double()[:, None] * torch.ones(1, 3).double(), torch.zeros(1, 3).double()
    seen: list[Tensor] = []

    def model(rows: Tensor) -> Tensor:
        seen.append(rows.detach().clone())
        return rows.sum(1)

    tunnel = NoiseTunnel(IntegratedGradients(model))
    np.random.seed(0)
    quietly(
        tunnel.attribute, x, nt_samples=8, nt_samples_batch_size=1, stdevs=0.0, draw_baseline_from_distrib=True,
        baselines=background, n_steps=2, method="riemann_left",
    )  # fmt: skip
    starts = {float(rows[0, 0]) for rows in seen}  # the left rule begins at the baseline
    assert len(starts) == 1
    seen.clear()
    ours: dict[str, Any] = {"baselines": background, "n_samples": 1, "noise": {"mode": "smoothgrad", "n_samples": 64}}
    ours["noise"]["stdev"] = 0.0
    found = axplain.explain(model, x, "gradient_shap", verify=False, batch_size=1, **ours)
    # each sample is one point alpha between its baseline and 0; F is linear, so its attribution is minus the baseline
    drawn = 64 - sum(len(set(rows.flatten().tolist())) != 1 for rows in seen)
    assert drawn == 64
    assert len({float(rows[0, 0]) for rows in seen}) > 32, "positions are drawn afresh"
    mean, spread = float(background.mean()), float(background[:, 0].std())
    assert float(found.attributions.mean()) == pytest.approx(-mean, abs=5 * spread / 8)
    assert float(found.standard_errors.mean()) == pytest.approx(spread / 8, rel=0.3), "baselines are drawn afresh"
