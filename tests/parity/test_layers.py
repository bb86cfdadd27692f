"""Layers and neurons against captum, class by class: the same numbers, or its fault by name (float64, 1e-9)."""

from __future__ import annotations

from typing import Any

import captum.attr as peer
import pytest
import torch
from tests.parity.captum_scene import Network
from tests.parity.networks import quietly
from torch import Tensor

import axplain

TARGET = torch.tensor([0, 2, 1])


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Network().double().eval()


MODEL, X, ONE, SET = made(), seeded(3, 1, 6, 6), seeded(1, 1, 6, 6, seed=2), seeded(4, 1, 6, 6, seed=3)
LAYERS = {"conv": MODEL.conv, "act": MODEL.act, "mid": MODEL.mid, "second": MODEL.second}


def ours(method: str, layer: str, **given: Any) -> Tensor:
    arguments: dict[str, Any] = {"target": TARGET, "layer": layer, "verify": False} | given
    answer: Tensor = axplain.explain(MODEL, X, method, **arguments).attributions
    return answer


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_gradient_x_activation(layer: str) -> None:
    theirs = quietly(peer.LayerGradientXActivation(MODEL, LAYERS[layer]).attribute, X, target=TARGET)
    close(ours("input_x_gradient", layer), theirs.detach())


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_integrated_gradients(layer: str) -> None:
    """V3: captum's quadrature weights are float32, which shows in the ninth digit."""
    theirs = quietly(peer.LayerIntegratedGradients(MODEL, LAYERS[layer]).attribute, X, ONE, TARGET, n_steps=20)
    found = ours("integrated_gradients", layer, baselines=ONE, n_steps=20)
    torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_deep_lift(layer: str) -> None:
    theirs = quietly(peer.LayerDeepLift(MODEL, LAYERS[layer]).attribute, X, ONE.expand_as(X), TARGET)
    close(ours("deeplift", layer, baselines=ONE), theirs.detach())


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_deep_lift_shap(layer: str) -> None:
    theirs = quietly(peer.LayerDeepLiftShap(MODEL, LAYERS[layer]).attribute, X, SET, TARGET)
    close(ours("deeplift_shap", layer, baselines=SET), theirs.detach())


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_feature_ablation(layer: str) -> None:
    values = LAYERS[layer]
    absent = 0.3
    theirs = quietly(peer.LayerFeatureAblation(MODEL, values).attribute, X, absent, TARGET)
    close(ours("feature_ablation", layer, baselines=axplain.at_seat(absent)), theirs)


@pytest.mark.parametrize("name", ["mid", "last"])
def test_neurons(name: str) -> None:
    """Every NeuronX class is the method X with a neuron as its target."""
    unit, layer = axplain.neuron(name, 1), getattr(MODEL, name)
    rows: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
        ("saliency", peer.NeuronGradient, {}, {"absolute": False}),
        (
            "integrated_gradients",
            peer.NeuronIntegratedGradients,
            {"baselines": ONE, "n_steps": 20},
            {"baselines": ONE, "n_steps": 20},
        ),
        ("deeplift", peer.NeuronDeepLift, {"baselines": ONE.expand_as(X)}, {"baselines": ONE}),
        ("deeplift_shap", peer.NeuronDeepLiftShap, {"baselines": SET}, {"baselines": SET}),
        ("guided_backprop", peer.NeuronGuidedBackprop, {}, {}),
        ("deconvolution", peer.NeuronDeconvolution, {}, {}),
        ("feature_ablation", peer.NeuronFeatureAblation, {"baselines": ONE}, {"baselines": ONE}),
    ]
    for method, theirs, its, mine in rows:
        expected = quietly(theirs(MODEL, layer).attribute, X, 1, **its).detach()
        found = axplain.explain(MODEL, X, method, target=unit, verify=False, **mine).attributions
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9), method


def test_v16_layer_gradient_shap_is_not_that_of_the_tail() -> None:
    """Captum walks between inputs and multiplies by the layer's difference: it never sums to F(x) - F(x')."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = quietly(peer.LayerGradientShap(MODEL, MODEL.act).attribute, X, SET, n_samples=2000, target=TARGET)
    found = axplain.explain(MODEL, X, "gradient_shap", layer="act", baselines=SET, target=TARGET, n_samples=2000)
    difference = found.difference
    assert difference is not None
    gap = (theirs.flatten(1).sum(1) - difference).abs() / difference.abs()
    own = (found.attributions.flatten(1).sum(1) - difference).abs() / difference.abs()
    assert float(own.max()) < 0.05 < float(gap.max())
