"""Layers and neurons of models that are compiled, scripted or run by threads are refused, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import axplain

X = torch.linspace(-1, 1, 128, dtype=torch.float64).view(2, 1, 8, 8)
UNIT = (0, 0, 0)
HIDERS: dict[str, Callable[[Any], Any]] = {
    "compiled": lambda part: torch.compile(part, backend="eager"),
    "scripted": torch.jit.script,
}


class Watched(nn.Conv2d):
    """A convolution that counts its passes."""

    runs: int = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


def network() -> nn.Sequential:
    inner = nn.Sequential(nn.Conv2d(2, 2, 3), nn.Tanh())
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), inner, nn.Flatten(), nn.Linear(32, 3)).double().eval()


def part_hidden(how: str, model: nn.Sequential) -> nn.Module:
    if how == "compiled in place":
        model[2].compile(backend="eager")
    else:
        model[2] = HIDERS[how](model[2])
    return model


def hidden(how: str) -> Any:
    model = network()
    if how == "parallel":
        return nn.DataParallel(model)
    if how != "compiled in place":
        return HIDERS[how](model)
    model.compile(backend="eager")
    return model


WORDS = {
    "compiled": "compiled: explain the module before torch.compile",
    "compiled in place": "compiled: explain the module before torch.compile",
    "scripted": "scripted: explain the module that was scripted",
    "parallel": "run by threads: explain model.module",
}


@pytest.mark.parametrize("how", WORDS)
def test_layers_and_neurons_of_hidden_code_are_refused_by_what_hides_it(how: str) -> None:
    model = hidden(how)
    inner = next(name for name, _ in model.named_modules() if name.endswith("0") and "2" not in name)
    neuron = axplain.neuron(inner, UNIT)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("integrated_gradients", {"layer": inner, "target": 1}),
        ("layer_activation", {"layer": inner}),
        ("layer_conductance", {"layer": inner, "target": 1}),
        ("gradcam", {"target": 1}),
        ("saliency", {"target": neuron}),
        ("neuron_conductance", {"neuron": neuron, "target": 1}),
    ]
    for method, given in calls:
        with pytest.raises(axplain.UncoveredOperation, match=f"^model: it is {WORDS[how]}"):
            axplain.explain(model, X, method, **given)


# torch.compile itself asks for the gradient of a tensor that is no leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("how", ["compiled", "compiled in place", "scripted"])
def test_a_hidden_part_is_named_and_neurons_outside_it_are_explained(how: str) -> None:
    plain = network()
    neuron = axplain.neuron("4", 1)
    expected = axplain.explain(plain, X, "saliency", target=neuron).attributions
    model = part_hidden(how, plain)
    torch.testing.assert_close(axplain.explain(model, X, "saliency", target=neuron).attributions, expected)
    refused: list[dict[str, Any]] = [{"layer": "0", "target": 1}, {"target": axplain.neuron("2", UNIT)}]
    for given in refused:
        with pytest.raises(axplain.UncoveredOperation, match=f"^model: module '2' is {WORDS[how]}"):
            axplain.explain(model, X, "integrated_gradients", **given)


def test_nothing_runs_before_the_refusal() -> None:
    model = network()
    model[0] = watched = Watched(1, 2, 3).double()
    part_hidden("scripted", model)
    for given in ({"layer": "1"}, {"target": axplain.neuron("2", UNIT)}):
        with pytest.raises(axplain.UncoveredOperation):
            axplain.explain(model, X, "integrated_gradients", **given)
    assert watched.runs == 0


def test_rules_refuse_a_module_that_was_compiled_in_place() -> None:
    with pytest.raises(axplain.UncoveredOperation, match="compiled: explain the module"):
        axplain.explain(hidden("compiled in place"), X, "lrp", target=1)


def test_an_unknown_layer_is_told_where_its_other_names_come_from() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"'0' came.*_orig_mod in them are torch.compile's"):
        axplain.explain(hidden("compiled"), X, "saliency", target=axplain.neuron("0", UNIT))
    with pytest.raises(axplain.ArgumentError) as caught:
        axplain.explain(network(), X, "saliency", target=axplain.neuron("9", UNIT))
    assert "_orig_mod" not in str(caught.value)
