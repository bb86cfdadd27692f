"""Noise modes against captum's NoiseTunnel 0.9.0: equal without noise; with noise, both near the exact moments.

The moments of the attributions under Gaussian noise are integrated by Gauss-Hermite rules over two features. Their
fourth powers give the standard errors, of the variance too, so the bounds come from mathematics and not from samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, NoiseTunnel, Saliency
from tests.parity.networks import quietly, rectified, seeded, smooth, two_inputs
from tests.parity.oracles import gradients, integrated_gradients, noisy_moments, rule
from torch import Tensor, nn

import axplain

MODES = ["smoothgrad", "smoothgrad_sq", "vargrad"]
X = seeded(5, 4)
PEERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "saliency": (Saliency, {}, {}),
    "input_x_gradient": (InputXGradient, {}, {}),
    "integrated_gradients": (
        IntegratedGradients,
        {"n_steps": 16, "quadrature": "midpoint"},
        {"n_steps": 16, "method": "riemann_middle"},
    ),
}


@pytest.mark.parametrize("make", [smooth, rectified])
@pytest.mark.parametrize("inner", PEERS)
@pytest.mark.parametrize("mode", MODES)
def test_without_noise_every_mode_agrees(mode: str, inner: str, make: Callable[[], nn.Module]) -> None:
    model, (peer, ours, theirs) = make(), PEERS[inner]
    noise = {"mode": mode, "n_samples": 3, "stdev": 0.0}
    explanation = axplain.explain(model, X, inner, target=[0, 1, 2, 0, 1], noise=noise, verify=False, **ours)
    tunnel = NoiseTunnel(peer(model))
    expected = quietly(tunnel.attribute, X, nt_type=mode, nt_samples=3, stdevs=0.0, target=[0, 1, 2, 0, 1], **theirs)
    torch.testing.assert_close(explanation.attributions, expected.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_without_noise_tuple_inputs_baselines_and_arguments_agree(mode: str) -> None:
    model, pair = two_inputs(), (X, seeded(5, 2, 3, seed=2))
    shared: dict[str, Any] = {
        "target": 1,
        "baselines": (seeded(5, 4, seed=3), 0.5),
        "additional_forward_args": (seeded(5, 3, seed=4), 1.5),
        "n_steps": 8,
    }
    noise = {"mode": mode, "n_samples": 2, "stdev": (0.0, 0.0)}
    ours = axplain.explain(model, pair, noise=noise, quadrature="midpoint", verify=False, **shared).attributions
    tunnel = NoiseTunnel(IntegratedGradients(model))
    theirs = quietly(
        tunnel.attribute, pair, nt_type=mode, nt_samples=2, stdevs=(0.0, 0.0), method="riemann_middle", **shared
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-12)


def _two_features() -> nn.Sequential:
    """A smooth model of two features: noise over it can be integrated out."""
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double().eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = 0.7 * seeded(*parameter.shape, seed=50 + i)
    return model


def _exact(inner: str, model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the attribution as a function of the input."""

    def scalar(x: Tensor) -> Tensor:
        value: Tensor = model(x).squeeze(1)
        return value

    if inner == "saliency":
        return lambda x: gradients(scalar, x)[0].abs()
    if inner == "input_x_gradient":
        return lambda x: x * gradients(scalar, x)[0]
    nodes = rule("gauss_legendre", 6)
    return lambda x: integrated_gradients(scalar, (x,), (torch.zeros_like(x),), nodes)[0]


@pytest.mark.parametrize("inner", ["input_x_gradient", "integrated_gradients"])
def test_with_noise_every_mode_is_near_the_exact_moments_in_both(inner: str) -> None:
    model, x, stdev, samples = _two_features(), seeded(3, 2, seed=9), 0.3, 3000
    mean, second, third, fourth = noisy_moments(_exact(inner, model), x, stdev, range(1, 5))
    variance = second - mean**2
    central_fourth = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
    exact = {
        "smoothgrad": (mean, variance.sqrt()),
        "smoothgrad_sq": (second, (fourth - second**2).sqrt()),
        "vargrad": (variance, (central_fourth - variance**2).sqrt()),
    }
    peer, ours, _ = PEERS[inner]
    for mode, (expected, spread) in exact.items():
        noise = {"mode": mode, "n_samples": samples, "stdev": stdev}
        steps: dict[str, Any] = {"n_steps": 6} if ours else {}
        found = axplain.explain(model, x, inner, noise=noise, verify=False, **steps).attributions
        with torch.random.fork_rng():
            torch.manual_seed(5)
            theirs = quietly(
                NoiseTunnel(peer(model)).attribute, x, nt_type=mode, nt_samples=samples, stdevs=stdev, **steps
            )
        bound = 5 * spread / samples**0.5 + 1.01 * expected.abs() / samples  # the population variance is biased by 1/n
        assert bool(((found - expected).abs() <= bound).all()), mode
        assert bool(((theirs.detach() - expected).abs() <= bound).all()), mode
        assert float(bound.max()) < 0.2 * float(expected.abs().max()), "too few samples to tell right from wrong"


def test_smoothed_saliency_is_near_its_exact_mean_in_both() -> None:
    """Of a model that rises in one feature and falls in the other: its absolute gradient is smooth."""
    model, x, stdev, samples = _two_features(), seeded(3, 2, seed=9), 0.3, 3000
    into, _, out, _ = model.parameters()
    into.data = into.data.abs() * torch.tensor([1.0, -1.0]).double()
    out.data = out.data.abs()
    mean, second = noisy_moments(_exact("saliency", model), x, stdev, range(1, 3))
    bound = 5 * (second - mean**2).sqrt() / samples**0.5
    found = axplain.explain(model, x, "smoothgrad", n_samples=samples, stdev=stdev).attributions
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = quietly(NoiseTunnel(Saliency(model)).attribute, x, nt_samples=samples, stdevs=stdev)
    assert bool(((found - mean).abs() <= bound).all())
    assert bool(((theirs - mean).abs() <= bound).all())
    assert float(bound.max()) < 0.2 * float(mean.max()), "too few samples to tell right from wrong"
