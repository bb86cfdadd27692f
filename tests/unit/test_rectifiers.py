"""Guided backpropagation and deconvolution against networks written out by hand, in every spelling of a rectifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

import axplain

METHODS = ("guided_backprop", "deconvolution")
PEERS = {"guided_backprop": captum.attr.GuidedBackprop, "deconvolution": captum.attr.Deconvolution}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, W1, W2, W3 = seeded(5, 4), seeded(6, 4, seed=1), seeded(6, 6, seed=2), seeded(3, 6, seed=3)


def by_hand(method: str, x: Tensor, target: int) -> Tensor:
    """The backward pass of `W3 relu(W2 relu(W1 x))`, line by line."""
    first = x @ W1.T
    second = first.clamp(min=0) @ W2.T
    back = W3[target].expand(len(x), -1)
    for before, weight in ((second, W2), (first, W1)):
        back = back.clamp(min=0)
        if method == "guided_backprop":
            back = back * (before > 0)
        back = back @ weight
    return back


def network(rectify: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: rectify(rectify(x @ W1.T) @ W2.T) @ W3.T


class Renamed(nn.ReLU):
    """A subclass that a hook by type does not know."""


SHARED = nn.ReLU()
SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "functional": fn.relu,
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "in place": lambda x: x.relu_(),
    "functional in place": lambda x: fn.relu(x, inplace=True),
    "shared module": SHARED,
    "subclass": Renamed(),
    "module in place": nn.ReLU(inplace=True),
    "clamp": lambda x: x.clamp(min=0),
    "torch.clamp": lambda x: torch.clamp(x, 0),
    "clamp_min": lambda x: x.clamp_min(0.0),
    "clamp at a tensor": lambda x: x.clamp(min=torch.zeros(())),
    "clip": lambda x: torch.clip(x, min=0),
    "relu6 far from six": lambda x: fn.relu6(x / 100) * 100,
    "hardtanh from zero": lambda x: fn.hardtanh(x, 0.0, 1e6),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_rectifier_gets_the_rule(method: str, spelling: str) -> None:
    found = axplain.explain(network(SPELLINGS[spelling]), X, method, target=1)
    torch.testing.assert_close(found.attributions, by_hand(method, X, 1), rtol=1e-12, atol=1e-14)
    assert not found.notes


@pytest.mark.parametrize("method", METHODS)
def test_a_bound_that_is_not_zero_is_no_rectifier(method: str) -> None:
    def model(x: Tensor) -> Tensor:
        return fn.hardtanh(x @ W1.T, -1.0, 1.0).clamp(min=0.3) @ W2.T

    x = X.clone().requires_grad_()
    (plain,) = torch.autograd.grad(model(x)[:, 2].sum(), x)
    torch.testing.assert_close(axplain.explain(model, X, method, target=2).attributions, plain, rtol=1e-12, atol=1e-14)


class Convolutional(nn.Module):
    """Pooling, normalisation, a residual sum, a gate and softmax keep their own gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.act, self.last = nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4 * 9, 3)
        self.pool, self.other = nn.MaxPool2d(2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(self.act(self.norm(self.first(x))))
        h = self.other(self.second(h) + h) * torch.sigmoid(h.mean((2, 3), keepdim=True))
        return torch.softmax(self.last(h.flatten(1)), 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captum_agrees_where_every_rectifier_is_a_module_of_its_own(method: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = Convolutional().double().eval()
    x = seeded(4, 1, 6, 6, seed=5)
    found = axplain.explain(model, x, method, target=[0, 1, 2, 0])
    peer = PEERS[method](model).attribute(x, target=torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(found.attributions, peer, rtol=1e-10, atol=1e-14)
    assert (found.cost.forward_rows, found.cost.backward_rows) == (4, 4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_v4f_captum_misses_functional_rectifiers(method: str) -> None:
    """Its answer is the plain gradient, bit for bit, without a warning."""

    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return network(fn.relu)(x)

    peer = PEERS[method](Functional()).attribute(X, target=1)
    saliency = axplain.explain(Functional(), X, "saliency", target=1, absolute=False).attributions
    assert torch.equal(peer, saliency) and not torch.allclose(peer, by_hand(method, X, 1), atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_rectifiers_that_the_papers_do_not_define_are_refused_by_name(method: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)).double()
    with pytest.raises(axplain.UncoveredOperation, match=r"'gelu', called in module '1' \(GELU\).*unknown='gradient'"):
        axplain.explain(model, X, method, target=0)
    noted = axplain.explain(model, X, method, target=0, unknown="gradient")
    saliency = axplain.explain(model, X, "saliency", target=0, absolute=False)
    torch.testing.assert_close(noted.attributions, saliency.attributions, rtol=1e-12, atol=1e-14)
    assert noted.notes["plain gradient"] == ["gelu in module '1' (GELU)"]


@pytest.mark.parametrize("method", METHODS)
def test_code_that_no_mode_sees_is_refused(method: str) -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0]

    apply: Any = Own.apply
    with pytest.raises(axplain.UncoveredOperation):
        axplain.explain(lambda x: apply(x @ W1.T) @ W2.T, X, method, target=0)
    with pytest.raises(axplain.UncoveredOperation, match="scripted"):
        axplain.explain(torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()), X, method, target=0)


@pytest.mark.parametrize("method", METHODS)
def test_at_a_layer_and_for_a_neuron(method: str) -> None:
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)
    )
    model = model.double().eval()
    at_layer = axplain.explain(model, X, method, target=2, layer="1")
    tail = axplain.explain(model[2:], model[:2](X).detach(), method, target=2)
    torch.testing.assert_close(at_layer.attributions, tail.attributions, rtol=1e-12, atol=1e-14)
    neuron = axplain.explain(model, X, method, target=axplain.neuron("2", 3))
    head = axplain.explain(model[:3], X, method, target=3)
    torch.testing.assert_close(neuron.attributions, head.attributions, rtol=1e-12, atol=1e-14)
