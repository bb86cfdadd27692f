"""Passes for values over pictures: channels side by side where convolutions gain by it, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import axplain


class Network(nn.Module):
    """A convolution and a head; `head` says how the maps become a vector."""

    def __init__(self, head: str = "flatten") -> None:
        super().__init__()
        self.convolution, self.last, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 2), head
        self.layouts: list[bool] = []
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4

    def forward(self, x: Tensor) -> Tensor:
        side_by_side = x.is_contiguous(memory_format=torch.channels_last)
        self.layouts.append(side_by_side)
        maps = self.convolution(x).relu()
        if self.head == "view":  # fails where the elements of a map do not lie side by side
            flat = maps.view(len(maps), -1)
        elif self.head == "strides":  # errs there
            flat = maps.as_strided((len(maps), 144), (144, 1))
        else:
            flat = maps.flatten(1)
        out: Tensor = self.last(flat)
        return out


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def ablation(model: Any, x: Tensor = X, **given: Any) -> Tensor:
    found = axplain.explain(model, x, "occlusion", window=(3, 2, 2), stride=(3, 2, 2), target=0, **given)
    attributions: Tensor = found.attributions
    return attributions


def test_values_of_pictures_are_asked_with_channels_side_by_side() -> None:
    model, before = Network(), X.clone()
    found = ablation(model)
    looking, asking = model.layouts[:4], model.layouts[4:]
    assert looking == [False, False, False, True] and asking and all(asking)
    assert torch.equal(X, before) and X.is_contiguous() and found.is_contiguous()
    torch.testing.assert_close(found, ablation(Network(), batch_size=64), rtol=1e-5, atol=1e-6)
    again = len(model.layouts)
    assert torch.equal(ablation(model), found) and all(model.layouts[again:])


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("head", ["view", "strides"])
def test_a_model_that_looks_at_strides_gets_the_usual_layout(head: str, scale: float) -> None:
    model = Network(head)
    model.last.weight.data *= scale  # however small its outputs are
    model.last.bias.data *= scale
    found = ablation(model)
    assert model.layouts[3] and model.layouts[4:] and not any(model.layouts[4:])
    torch.testing.assert_close(found / scale, ablation(Network()), rtol=1e-4, atol=1e-5)


def test_gradients_float64_and_networks_without_convolutions_keep_the_usual_layout() -> None:
    model = Network()
    axplain.explain(model, X, "integrated_gradients", target=0)
    assert not any(model.layouts)
    exact = Network().double()
    ablation(exact, X.double())
    assert not any(exact.layouts)
    flat, layouts = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), []
    flat.register_forward_pre_hook(
        lambda module, given: layouts.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    ablation(flat)
    assert layouts and not any(layouts)


def test_pictures_that_are_the_same_in_either_layout_tell_nothing() -> None:
    """The first examples are blank, so any layout gives the same for them."""
    x = X.repeat(2, 1, 1, 1)
    x[:2] = 0.5
    model = Network("strides")
    found = ablation(model, x)
    assert not any(model.layouts)
    torch.testing.assert_close(found, ablation(Network(), x, batch_size=64), rtol=1e-5, atol=1e-6)


class Wandering(Network):
    """Looks at strides only where a picture is bright."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        bright: Tensor = x.view(len(x), -1).amax(1) if bool(x.amax() > 9) else x.amax((1, 2, 3))
        return out + bright[:, None]


def test_a_pass_that_fails_in_the_faster_layout_runs_in_the_usual_one() -> None:
    x = X.repeat(2, 1, 1, 1)
    x[3, 0, 0, 0] = 10.0
    model = Wandering()
    found = ablation(model, x)
    assert any(model.layouts[4:]) and not all(model.layouts[4:])
    torch.testing.assert_close(found, ablation(Wandering(), x, batch_size=64), rtol=1e-5, atol=1e-6)


def test_another_argument_is_looked_at_anew() -> None:
    class Choosing(Network):
        def forward(self, x: Tensor, flat: bool = False) -> Tensor:
            self.head = "view" if flat else "flatten"
            return super().forward(x)

    model = Choosing()
    first = ablation(model, forward_kwargs={"flat": False})
    torch.testing.assert_close(ablation(model, forward_kwargs={"flat": True}), first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", ["flatten", "view", "strides"])
def test_pictures_are_carried_to_a_layer_so_and_what_it_holds_lies_as_usual(head: str) -> None:
    model, behind = Network(head), []
    model.convolution.register_forward_hook(lambda module, given, output: behind.append(output.stride()))

    def explain(network: nn.Module, x: Tensor) -> Tensor:
        found = axplain.explain(network, x, "integrated_gradients", layer="convolution", target=0)
        attributions: Tensor = found.attributions
        return attributions

    found = explain(model, X)
    del model.layouts[:], behind[:]
    assert torch.equal(explain(model, X), found) and found.is_contiguous()
    carried = head == "flatten"  # the others want their rows as usual from the first layer on
    assert model.layouts[0] is carried and not any(model.layouts[1:])
    assert behind and all(strides == (144, 36, 6, 1) for strides in behind)
    torch.testing.assert_close(found.double(), explain(Network(head).double(), X.double()), rtol=1e-4, atol=1e-6)


def test_maps_of_a_layer_are_disturbed_in_the_usual_layout() -> None:
    """They have many channels: turning the weights for them costs more than it gains."""
    deep = nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.Flatten(), nn.Linear(288, 2)).eval()
    layouts: list[bool] = []
    deep[2].register_forward_pre_hook(lambda module, given: layouts.append(given[0].is_contiguous()))
    axplain.explain(deep, X, "feature_ablation", layer="1", target=0, feature_mask=torch.arange(32).view(1, 32, 1, 1))
    assert len(layouts) > 4 and all(layouts[-3:])
