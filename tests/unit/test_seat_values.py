"""What a seat may be: one call, an item, the input of a layer, layers side by side, below token ids; neurons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.seat_models import (
    IDS,
    MODEL,
    ONE,
    Recurrent,
    Shared,
    Twins,
    Words,
    X,
    close,
    made,
)
from torch import Tensor, nn

import axplain


def test_one_of_several_calls_in_front_of_operations_that_write() -> None:
    model = made(Shared)
    for call in range(3):
        seat = axplain.seat(model.layer, call=call)
        found = axplain.explain(model, X, "integrated_gradients", layer=seat, baselines=ONE, target=2, n_steps=200)
        assert found.delta is not None and float(found.delta.abs().max()) < 1e-2
        clean, absent = (rows(model, call, x) for x in (X, ONE))
        expected = axplain.explain(
            lambda h, call=call: behind(model, call, h), clean, "integrated_gradients", baselines=absent, target=2,
            n_steps=200,
        )  # fmt: skip
        close(found.attributions, expected.attributions)


def rows(model: Any, call: int, x: Tensor) -> Tensor:
    h: Tensor = model.layer(x)
    for k in range(call):
        h = model.layer(torch.relu(h + 0.3 * (k == 1)))
    return h.detach()


def behind(model: Any, call: int, h: Tensor) -> Tensor:
    for k in range(call, 2):
        h = model.layer(torch.relu(h + 0.3 * (k == 1)))
    return h * 1.5 * 2.0


def test_the_input_of_a_layer_given_by_keyword() -> None:
    model = made(Shared)
    found = axplain.explain(model, X, "input_x_gradient", layer=axplain.seat("last", of="input"), target=0)
    close(found.attributions[:, 0], model(X)[:, 0].detach())
    assert not found.attributions[:, 1:].any()


def test_calls_that_feed_each_other_are_refused_together() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"computed from another call.*call=0"):
        axplain.explain(made(Shared), X, "saliency", layer="layer", target=0)


def test_below_an_embedding_token_ids_are_explained_by_gradients() -> None:
    model = made(Words)
    found = axplain.explain(model, IDS, "integrated_gradients", layer="words", baselines=0, target=1)
    assert found.attributions.shape == (2, 5, 8) and found.attributions.dtype == torch.float64
    assert found.delta is not None and float(found.delta.abs().max()) < 1e-2 * float(found.difference.abs().max())  # type: ignore[union-attr]
    groups = torch.arange(5)[None, :, None]
    shapley = axplain.explain(model, IDS, "shapley_values", layer="words", baselines=0, target=1, feature_mask=groups)
    at_input = axplain.explain(model, IDS, "shapley_values", baselines=0, target=1)
    close(shapley.attributions[..., 0], at_input.attributions.double(), atol=1e-6)  # ids get float32


def test_rows_may_lie_on_another_axis() -> None:
    """A layer that puts the sequence first gets attributions with the batch first."""
    batch_first, sequence_first = made(Words), made(lambda: Words(first=False))
    for method in ("integrated_gradients", "deeplift"):
        one = axplain.explain(batch_first, IDS, method, layer="body", baselines=0, target=1)
        two = axplain.explain(sequence_first, IDS, method, layer="body", baselines=0, target=1)
        assert two.attributions.shape == (2, 5, 8)
        close(two.attributions, one.attributions)


def test_layers_side_by_side_are_one_seat() -> None:
    model = made(Twins)
    found = axplain.explain(model, X, "shapley_values", layer=["left", "right"], baselines=ONE, target=0)
    assert list(found.attributions) == ["left", "right"]
    assert found.delta is not None and float(found.delta.abs().max()) < 1e-12
    expected = axplain.explain(
        lambda a, b: model.last(torch.tanh(a) * torch.tanh(b)), (model.left(X).detach(), model.right(X).detach()),
        "shapley_values", baselines=(model.left(ONE).detach(), model.right(ONE).detach()), target=0,
    )  # fmt: skip
    close(found.attributions["left"], expected.attributions[0])
    close(found.attributions["right"], expected.attributions[1])
    assert found.provenance["layer"] == "layer 'left', layer 'right'"


def test_a_tuple_is_explained_whole_or_by_item() -> None:
    model = made(Recurrent)
    whole = axplain.explain(model, X, "integrated_gradients", layer="core", baselines=ONE, target=0)
    assert [tuple(part.shape) for part in whole.attributions] == [(3, 1, 3), (3, 1, 3), (3, 1, 3)]
    assert whole.delta is not None and float(whole.delta.abs().max()) < 1e-12
    assert not whole.attributions[2].any(), "the cell state is not used"
    one = axplain.explain(model, X, "integrated_gradients", layer=axplain.seat("core", item=0), target=0)
    assert one.delta is None and "does not apply" in one.notes["completeness"], "the hidden state goes around it"
    with pytest.raises(axplain.ArgumentError, match="item=3 came and layer 'core' has 3 tensors"):
        axplain.explain(model, X, "saliency", layer=axplain.seat("core", item=3), target=0)


def test_a_neuron_behind_the_layer_is_a_target() -> None:
    found = axplain.explain(MODEL, X, "input_x_gradient", layer="head", target=axplain.neuron("tail.0", 2))
    weight = MODEL.tail[0].weight[2].detach()
    close(found.attributions, weight * MODEL.head(X).detach())


def test_a_neuron_of_one_call_of_an_input_or_of_an_item() -> None:
    model = made(Shared)
    for call in range(3):
        unit = axplain.neuron(axplain.seat("layer", call=call), 2)
        found = axplain.explain(model, X, "input_x_gradient", target=unit)
        expected = axplain.explain(lambda x, call=call: unit_of(model, call, x), X, "input_x_gradient")
        close(found.attributions, expected.attributions)
        assert found.target == f"neuron layer call {call}[2]"
    with pytest.raises(axplain.UnsupportedModel, match=r"ran 3 times.*axplain.seat\(layer, call=0\)"):
        axplain.explain(model, X, "saliency", target=axplain.neuron("layer", 2))
    given = axplain.explain(model, X, "saliency", target=axplain.neuron(axplain.seat("last", of="input"), 1))
    logit = axplain.explain(model, X, "saliency", target=1)
    close(given.attributions * 2, logit.attributions)
    recurrent = made(Recurrent)
    first = axplain.explain(recurrent, X, "saliency", target=axplain.neuron(axplain.seat("core", item=0), (0, 2)))
    output = axplain.explain(recurrent, X, "saliency", target=axplain.neuron("core", (0, 2)))
    close(first.attributions, output.attributions)
    with pytest.raises(axplain.ArgumentError, match="item=5 came and layer 'core' has 3 tensors"):
        axplain.explain(recurrent, X, "saliency", target=axplain.neuron(axplain.seat("core", item=5), 0))


def unit_of(model: Any, call: int, x: Tensor) -> Tensor:
    h: Tensor = model.layer(x)
    for k in range(call):
        h = model.layer(torch.relu(h) + 0.3 * (k == 1)) if k == 0 else model.layer(torch.relu(h + 0.3))
    return h[:, 2]


def test_a_neuron_of_the_layer_itself_is_the_seat() -> None:
    found = axplain.explain(MODEL, X, "input_x_gradient", layer="head", target=axplain.neuron("head", 3))
    expected = torch.zeros(3, 6, dtype=torch.float64)
    expected[:, 3] = MODEL.head(X)[:, 3].detach()
    close(found.attributions, expected)


def test_a_model_in_training_is_surveyed_with_more_than_one_row() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
    with pytest.warns(axplain.AxplainWarning, match="training mode"):
        found = axplain.explain(model, X, "saliency", layer="0", target=0)
    assert found.attributions.shape == (3, 6)
