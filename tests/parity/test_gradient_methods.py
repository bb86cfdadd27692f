"""Saliency, input x gradient and neuron gradients against captum 0.9.0: the same arithmetic, so 1e-12."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, NeuronGradient, Saliency
from tests.parity.networks import convolutional, grid, quietly, rectified, seeded, smooth, two_inputs
from torch import Tensor, nn

import axplain

X = seeded(5, 4)
PICTURES = seeded(3, 1, 8, 8)
PER_EXAMPLE = [0, 2, 1, 1, 0]

#: a target, and how captum has to be told the same
TARGETS: dict[str, tuple[Any, Any]] = {
    "int": (1, 1),
    "negative": (-1, -1),
    "numpy integer": (np.int64(1), 1),
    "0-d tensor": (torch.tensor(2), torch.tensor(2)),
    "tensor of one": (torch.tensor([2]), torch.tensor([2])),
    "list": (PER_EXAMPLE, PER_EXAMPLE),
    "list of numpy integers": ([np.int64(i) for i in PER_EXAMPLE], PER_EXAMPLE),
    "array": (np.array(PER_EXAMPLE), PER_EXAMPLE),
    "tensor": (torch.tensor(PER_EXAMPLE), torch.tensor(PER_EXAMPLE)),
    "column": (torch.tensor(PER_EXAMPLE)[:, None], torch.tensor(PER_EXAMPLE)),
    "tuple": ((1,), (1,)),
    "list of tuples": ([(i,) for i in PER_EXAMPLE], [(i,) for i in PER_EXAMPLE]),
}


def _same(ours: Any, theirs: Any, atol: float = 1e-12) -> None:
    ours, theirs = (item if isinstance(item, tuple) else (item,) for item in (ours, theirs))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("model", [smooth, rectified])
@pytest.mark.parametrize("form", TARGETS)
def test_saliency_agrees_for_every_target_form(model: Callable[[], nn.Module], form: str) -> None:
    ours, theirs = TARGETS[form]
    explanation = axplain.explain(model(), X, "saliency", target=ours)
    _same(explanation.attributions, quietly(Saliency(model()).attribute, X, target=theirs))


def test_signed_saliency_agrees() -> None:
    explanation = axplain.explain(smooth(), X, "saliency", target=1, absolute=False)
    _same(explanation.attributions, quietly(Saliency(smooth()).attribute, X, target=1, abs=False))
    assert bool((explanation.attributions < 0).any())


@pytest.mark.parametrize("form", TARGETS)
def test_input_x_gradient_agrees_for_every_target_form(form: str) -> None:
    ours, theirs = TARGETS[form]
    explanation = axplain.explain(rectified(), X, "input_x_gradient", target=ours)
    _same(explanation.attributions, quietly(InputXGradient(rectified()).attribute, X, target=theirs))


@pytest.mark.parametrize("target", [(2, 3), (0, -1), [(0, 1), (2, 4), (1, 1), (0, 0), (2, 2)]])
def test_index_tuples_into_several_dimensions_agree(target: Any) -> None:
    explanation = axplain.explain(grid(), X, "input_x_gradient", target=target)
    _same(explanation.attributions, quietly(InputXGradient(grid()).attribute, X, target=target))


@pytest.mark.parametrize("width", [0, 1])
def test_a_model_of_one_number_needs_no_target_in_either(width: int) -> None:
    inner = smooth()

    def model(x: Tensor) -> Tensor:
        logits: Tensor = inner(x)
        return logits[:, 1:2] if width else logits[:, 1]

    explanation = axplain.explain(model, X, "saliency")
    _same(explanation.attributions, quietly(Saliency(model).attribute, X))


def test_the_predicted_class_is_the_default_target() -> None:
    predicted = smooth()(X).argmax(1)
    assert len(set(predicted.tolist())) > 1, "the example must not be the same class throughout"
    explanation = axplain.explain(smooth(), X, "saliency")
    _same(explanation.attributions, quietly(Saliency(smooth()).attribute, X, target=predicted))


@pytest.mark.parametrize(("name", "peer"), [("saliency", Saliency), ("input_x_gradient", InputXGradient)])
def test_pictures_through_convolution_and_max_pooling_agree(name: str, peer: Any) -> None:
    explanation = axplain.explain(convolutional(), PICTURES, name, target=[0, 1, 2])
    _same(explanation.attributions, quietly(peer(convolutional()).attribute, PICTURES, target=[0, 1, 2]))


@pytest.mark.parametrize(("name", "peer"), [("saliency", Saliency), ("input_x_gradient", InputXGradient)])
def test_tuple_inputs_with_additional_arguments_agree(name: str, peer: Any) -> None:
    x = (seeded(5, 4, seed=1), seeded(5, 2, 3, seed=2))
    extra = (seeded(5, 3, seed=3), 1.5)
    model = two_inputs()
    explanation = axplain.explain(model, x, name, target=PER_EXAMPLE, additional_forward_args=extra)
    theirs = quietly(peer(model).attribute, x, target=PER_EXAMPLE, additional_forward_args=extra)
    _same(explanation.attributions, theirs)


def test_neuron_gradients_agree() -> None:
    model = smooth()
    for unit in range(8):
        ours = axplain.explain(model, X, "saliency", target=axplain.neuron("1", unit), absolute=False)
        _same(ours.attributions, quietly(NeuronGradient(model, model[1]).attribute, X, neuron_selector=unit))


def _corner(activation: Tensor) -> Tensor:
    return activation[:, 1, 0, 0] - 2 * activation[:, 2, 1, 1]


@pytest.mark.parametrize("unit", [(2, 1, 1), (slice(None), 1, slice(0, 2)), _corner])
def test_neuron_gradients_agree_for_units_slices_and_callables(unit: Any) -> None:
    model = convolutional()
    ours = axplain.explain(model, PICTURES, "saliency", target=axplain.neuron(model[2], unit), absolute=False)
    theirs = quietly(NeuronGradient(model, model[2]).attribute, PICTURES, neuron_selector=unit)
    _same(ours.attributions, theirs)
    assert bool((ours.attributions != 0).any())
