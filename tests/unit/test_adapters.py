"""Models that are no torch functions of rows: arrays in and out, and one number for a whole batch."""

from __future__ import annotations

import numpy
import pytest
import torch
from torch import Tensor

import axplain


def curve(x: numpy.ndarray, scale: float = 1.0) -> numpy.ndarray:
    assert isinstance(x, numpy.ndarray)
    return numpy.stack([numpy.tanh(x).sum(1), scale * (x[:, 0] * x[:, 1])], 1)


def test_a_function_of_arrays_is_explained_like_the_same_function_of_tensors() -> None:
    x = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5]], dtype=torch.float64)
    answer = axplain.explain(axplain.from_numpy(curve), x, "shapley_values", target=1)
    expected = torch.stack([x[:, 0] * x[:, 1] / 2] * 2 + [torch.zeros(2, dtype=torch.float64)], 1)
    torch.testing.assert_close(answer.attributions, expected, rtol=1e-12, atol=1e-15)
    named = axplain.explain(axplain.from_numpy(curve), {"x": x}, "shapley_values", target=1)
    assert torch.equal(named.attributions["x"], answer.attributions)
    scaled = axplain.explain(axplain.from_numpy(curve), x, "shapley_values", target=1, additional_forward_args=3.0)
    torch.testing.assert_close(scaled.attributions, 3 * expected, rtol=1e-12, atol=1e-15)


def test_a_classifier_of_scikit_learn_is_explained() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    x = torch.randn(40, 3, dtype=torch.float64)
    model = linear.LinearRegression().fit(x.numpy(), (x @ torch.tensor([2.0, -1.0, 0.5]).double()).numpy())
    answer = axplain.explain(axplain.from_numpy(model.predict), x[:4], "kernel_shap")
    expected = torch.from_numpy(model.coef_) * x[:4]
    torch.testing.assert_close(answer.attributions, expected, rtol=1e-9, atol=1e-12)


def test_gradients_of_arrays_are_refused() -> None:
    with pytest.raises(axplain.UnsupportedModel, match="does not depend differentiably"):
        axplain.explain(axplain.from_numpy(curve), torch.ones(1, 3), "saliency", target=0)


def mean_square(x: Tensor) -> Tensor:
    return x.square().sum(1).mean()


def test_a_loss_of_a_batch_is_explained_as_one_example() -> None:
    batch = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    answer = axplain.explain(axplain.per_batch(mean_square), batch[None], "feature_ablation")
    torch.testing.assert_close(answer.attributions[0], batch.square() / 2, rtol=1e-12, atol=1e-15)
    columns = torch.arange(2).expand(1, 2, 2)
    grouped = axplain.explain(axplain.per_batch(mean_square), batch[None], "shapley_values", feature_mask=columns)
    expected = (batch.square().sum(0) / 2).expand(1, 2, 2)
    torch.testing.assert_close(grouped.attributions, expected, rtol=1e-12, atol=1e-15)
    assert grouped.delta is not None and float(grouped.delta.abs()) < 1e-12, "a group counts once in the sum"


def test_a_model_that_reduces_its_batch_is_told_of_the_wrapper() -> None:
    with pytest.raises(axplain.UnsupportedModel, match=r"axplain\.per_batch\(model\)"):
        axplain.explain(mean_square, torch.ones(3, 2), "feature_ablation")
    with pytest.raises(axplain.UnsupportedModel, match=r"per_batch expects one number for a batch.*\(3,\)"):
        axplain.explain(axplain.per_batch(lambda x: x.sum(1)), torch.ones(1, 3, 2), "feature_ablation")
