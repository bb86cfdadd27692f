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


def error(batch: Tensor, labels: Tensor) -> Tensor:
    return (batch.sum(1) - labels).square().mean()


def test_labels_of_a_loss_come_with_a_row_for_each_batch() -> None:
    batch, labels = torch.randn(4, 3, dtype=torch.float64), torch.arange(4.0, dtype=torch.float64)
    columns = torch.arange(3).expand(1, 4, 3)
    loss, asked = axplain.per_batch(error), {"method": "feature_ablation", "feature_mask": columns}
    expected = axplain.explain(axplain.per_batch(lambda b: error(b, labels)), batch[None], **asked).attributions  # type: ignore[arg-type]
    for given in ({"additional_forward_args": labels[None]}, {"forward_kwargs": {"labels": labels[None]}}):
        found = axplain.explain(loss, batch[None], **asked, **given)  # type: ignore[arg-type]
        torch.testing.assert_close(found.attributions, expected, rtol=1e-12, atol=1e-14)
    drops = [error(batch, labels) - error(batch * (torch.arange(3) != column), labels) for column in range(3)]
    torch.testing.assert_close(expected[0, 0], torch.stack(drops), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_labels_without_a_row_for_each_batch_are_refused(shared: bool) -> None:
    """They would be handed out one by one, and the numbers would be wrong."""
    batch, labels = torch.randn(4, 3), torch.arange(4.0)
    given = axplain.shared(labels) if shared else labels
    with pytest.raises(axplain.ArgumentError, match=r"additional_forward_args\[0\].*\(4,\).*unsqueeze\(0\)"):
        axplain.explain(axplain.per_batch(error), batch[None], "feature_ablation", additional_forward_args=given)


def test_a_loss_may_be_a_plain_number() -> None:
    batch = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    answer = axplain.explain(axplain.per_batch(lambda x: float(mean_square(x))), batch[None], "feature_ablation")
    torch.testing.assert_close(answer.attributions[0], batch.square() / 2, rtol=1e-12, atol=1e-15)


def test_an_estimator_is_no_function() -> None:
    with pytest.raises(axplain.ArgumentError, match="predict_proba"):
        axplain.from_numpy(3)  # type: ignore[arg-type]
