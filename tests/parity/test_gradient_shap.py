"""Gradient SHAP against captum 0.9.0: other random numbers, so both are held against the exact expectation.

Exact means: integrated gradients to each baseline by 64 Gauss-Legendre nodes, averaged; with noise, once more over
Gauss-Hermite nodes. Both libraries sample one law, so axplain's standard errors judge captum's answer, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import GradientShap, NeuronGradientShap
from tests.parity.networks import quietly, rectified, seeded, smooth, two_inputs
from tests.parity.oracles import Tensors, expected_gradients, gaussian_grid
from torch import Tensor, nn

import axplain

SAMPLES = 4000
X = seeded(3, 4)
BACKGROUND = 0.5 * seeded(7, 4, seed=1) + 1


def _peer(model: Any, x: Any, baselines: Any, **arguments: Any) -> Any:
    np.random.seed(3)  # captum draws baselines and positions from numpy's generator, noise from torch's
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return quietly(GradientShap(model).attribute, x, baselines, n_samples=SAMPLES, **arguments)


def _within_five_errors(found: Any, exact: Tensors, errors: Any) -> None:
    found, errors = (item if isinstance(item, tuple) else (item,) for item in (found, errors))
    for one, truth, error in zip(found, exact, errors, strict=True):
        assert bool((error > 0).all()), "an error of zero would judge nothing"
        assert bool(((one.detach() - truth).abs() <= 5 * error).all())
        assert float(error.max()) < 0.05 * float(truth.abs().max()), "too few samples to tell right from wrong"


@pytest.mark.parametrize("make", [smooth, rectified])
def test_both_agree_with_the_exact_expectation(make: Any) -> None:
    model = make()
    exact = expected_gradients(lambda x: model(x)[:, 1], (X,), (BACKGROUND,), n=256)
    ours = axplain.explain(model, X, "gradient_shap", target=1, baselines=BACKGROUND, n_samples=SAMPLES)
    _within_five_errors(ours.attributions, exact, ours.standard_errors)
    _within_five_errors(_peer(model, X, BACKGROUND, target=1), exact, ours.standard_errors)


def test_both_agree_for_a_target_per_example() -> None:
    model, target = smooth(), torch.tensor([0, 2, 1])
    exact = expected_gradients(lambda x: model(x).gather(1, target[:, None]).squeeze(1), (X,), (BACKGROUND,))
    ours = axplain.explain(model, X, "gradient_shap", target=target, baselines=BACKGROUND, n_samples=SAMPLES)
    _within_five_errors(ours.attributions, exact, ours.standard_errors)
    _within_five_errors(_peer(model, X, BACKGROUND, target=target), exact, ours.standard_errors)


def test_both_agree_with_noise_on_the_input() -> None:
    """Two features, so that the noise can be integrated out by a product of Gauss-Hermite rules."""
    first = smooth()
    model = nn.Sequential(nn.Linear(2, 4, bias=False), *first).double()
    model[0].weight.data = seeded(4, 2, seed=5)
    x, background, stdev = X[:, :2].clone(), BACKGROUND[:, :2].clone(), 0.4
    exact = torch.zeros_like(x)
    for point, weight in gaussian_grid(2, order=12):
        noisy = x + stdev * point
        exact += weight * expected_gradients(lambda z: model(z)[:, 1], (noisy,), (background,), n=24)[0]
    ours = axplain.explain(model, x, "gradient_shap", target=1, baselines=background, n_samples=SAMPLES, stdev=stdev)
    _within_five_errors(ours.attributions, (exact,), ours.standard_errors)
    _within_five_errors(_peer(model, x, background, target=1, stdevs=stdev), (exact,), ours.standard_errors)


def test_a_single_baseline_is_integrated_gradients_in_expectation_for_both() -> None:
    model, baseline = smooth(), BACKGROUND[:1]
    exact = expected_gradients(lambda x: model(x)[:, 1], (X,), (baseline,))
    ours = axplain.explain(model, X, "gradient_shap", target=1, baselines=baseline, n_samples=SAMPLES)
    _within_five_errors(ours.attributions, exact, ours.standard_errors)
    _within_five_errors(_peer(model, X, baseline, target=1), exact, ours.standard_errors)


def test_both_agree_for_tuple_inputs_that_do_not_meet() -> None:
    """An additive model, for which captum's loss of the joint law (V7) does not show."""
    one, two = smooth(), smooth(seed=8)

    def model(a: Tensor, b: Tensor) -> Tensor:
        total: Tensor = one(a)[:, 0] + two(b)[:, 1]
        return total

    pair, backgrounds = (X, seeded(3, 4, seed=6)), (BACKGROUND, seeded(7, 4, seed=7))
    exact = expected_gradients(model, pair, backgrounds)
    ours = axplain.explain(model, pair, "gradient_shap", baselines=backgrounds, n_samples=SAMPLES)
    _within_five_errors(ours.attributions, exact, ours.standard_errors)
    _within_five_errors(_peer(model, pair, backgrounds), exact, ours.standard_errors)


def test_tuple_inputs_that_meet_follow_the_joint_expectation() -> None:
    model, extra = two_inputs(), (seeded(3, 3, seed=3), 1.5)
    pair, backgrounds = (X, seeded(3, 2, 3, seed=6)), (BACKGROUND, seeded(7, 2, 3, seed=7))
    exact = expected_gradients(lambda a, b: model(a, b, *extra)[:, 2], pair, backgrounds)
    ours = axplain.explain(
        model, pair, "gradient_shap", target=2, baselines=backgrounds, n_samples=SAMPLES, additional_forward_args=extra
    )
    _within_five_errors(ours.attributions, exact, ours.standard_errors)


def test_both_agree_for_a_neuron() -> None:
    model = smooth()
    hidden = model[:2]
    exact = expected_gradients(lambda x: hidden(x)[:, 3], (X,), (BACKGROUND,))
    ours = axplain.explain(
        model, X, "gradient_shap", target=axplain.neuron("1", 3), baselines=BACKGROUND, n_samples=SAMPLES
    )
    _within_five_errors(ours.attributions, exact, ours.standard_errors)
    np.random.seed(3)
    theirs = quietly(NeuronGradientShap(model, model[1]).attribute, X, 3, BACKGROUND, n_samples=SAMPLES)
    _within_five_errors(theirs, exact, ours.standard_errors)
