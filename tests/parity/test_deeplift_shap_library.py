"""DeepLIFT SHAP against `shap.DeepExplainer` 0.51.0, which hooks modules but keeps neighbours apart.

The two agree at ReLU and max-pooling, side by side or not. Where shap is wrong and says nothing unless it is asked to
check the sum, the test says so.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tests.parity.networks import seeded
from torch import Tensor, nn
from torch.nn import functional

import axplain

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    shap = pytest.importorskip("shap")

#: Distance per dtype; the largest attributions are about 3.
NEAR = {torch.float64: 1e-12, torch.float32: 2e-6}

PICTURE = (1, 8, 8)
NETWORKS: dict[str, tuple[tuple[nn.Module, ...], tuple[int, ...]]] = {
    "relu": ((nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (4,)),
    "max-pool": ((nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)), PICTURE),
    "relu, max-pool": ((nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)), PICTURE),
    "max-pool, relu": ((nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)), PICTURE),
    "max-pool 1d": ((nn.Conv1d(1, 3, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(9, 3)), (1, 8)),
    "max-pool 3d": ((nn.Conv3d(1, 2, 2), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(16, 3)), (1, 5, 5, 5)),
    "average pool": ((nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(27, 3)), PICTURE),
    "adaptive average pool and batch norm": (
        (
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        PICTURE,
    ),
    "tanh, relu": ((nn.Linear(4, 8), nn.Tanh(), nn.ReLU(), nn.Linear(8, 3)), (4,)),
    "vgg-like": (
        (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 8),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(8, 3),
        ),
        PICTURE,
    ),
}


def weighted(*layers: nn.Module) -> nn.Sequential:
    """Give weights N(0, 0.5^2) in float64."""
    model = nn.Sequential(*layers)
    for i, parameter in enumerate(model.parameters()):
        parameter.data = 0.5 * seeded(*parameter.shape, seed=500 + i)
    return model.double().eval()


def theirs(model: nn.Module, x: Tensor, references: Tensor, target: int) -> Tensor:
    """Return shap's values of one class; it computes all classes, and checks no sum here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = shap.DeepExplainer(model, references).shap_values(x.clone(), check_additivity=False)
    return torch.from_numpy(np.asarray(values)[..., target])


def ours(model: Any, x: Tensor, references: Tensor, target: int) -> Tensor:
    """Return axplain's attributions."""
    found = axplain.explain(model, x, "deeplift_shap", target=target, baselines=axplain.distribution(references))
    attributions: Tensor = found.attributions
    return attributions


def gap(attributions: Tensor, model: nn.Module, x: Tensor, references: Tensor, target: int) -> float:
    """Return by how much the worst example misses F(x) minus the mean of F over the references."""
    with torch.no_grad():
        risen = model(x)[:, target] - model(references)[:, target].mean()
    return float((attributions.flatten(1).sum(1) - risen).abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_deeplift_shap_equals_deep_explainer(name: str, dtype: torch.dtype) -> None:
    layers, shape = NETWORKS[name]
    model = weighted(*layers).to(dtype)
    x, references = seeded(3, *shape).to(dtype), seeded(5, *shape, seed=3).to(dtype)
    for target in (0, 2):
        found = ours(model, x, references, target)
        assert found.dtype == dtype
        assert float(found.abs().max()) > 0.05, "there is something to explain"
        torch.testing.assert_close(found.double(), theirs(model, x, references, target), rtol=0, atol=NEAR[dtype])
        assert gap(found, model, x, references, target) < 10 * NEAR[dtype]


def test_windows_that_overlap_are_complete_here_and_not_there() -> None:
    """Shap writes what an element won in one window over what it won in the one before."""
    model = weighted(nn.Conv2d(1, 3, 3), nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(48, 3))
    x, references = seeded(3, *PICTURE), seeded(5, *PICTURE, seed=3)
    assert gap(theirs(model, x, references, 1), model, x, references, 1) > 0.5
    assert gap(ours(model, x, references, 1), model, x, references, 1) < 1e-12


def test_a_functional_relu_is_complete_here_and_fails_the_check_there() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = weighted(nn.Linear(4, 8), nn.Linear(8, 3))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.last(functional.relu(self.first(x)))
            return logits

    model, x, references = Functional(), seeded(3, 4), seeded(5, 4, seed=3)
    twin = nn.Sequential(model.first, nn.ReLU(), model.last)
    assert gap(theirs(model, x, references, 1), model, x, references, 1) > 0.1
    with warnings.catch_warnings(), pytest.raises(AssertionError, match="do not sum up"):
        warnings.simplefilter("ignore")
        shap.DeepExplainer(model, references).shap_values(x.clone())
    found = ours(model, x, references, 1)
    torch.testing.assert_close(found, theirs(twin, x, references, 1), rtol=0, atol=1e-13)
    assert gap(found, model, x, references, 1) < 1e-13
