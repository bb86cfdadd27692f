"""FullGrad: networks decomposed by hand, biases in every spelling, and what is refused because it is not seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

import axplain
from axplain import ArgumentError
from axplain.errors import UncoveredOperation


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = seeded(3, 2, 6, 6)
TARGET = torch.tensor([0, 2, 1])


class Network(nn.Module):
    """Convolution, batch normalisation, rectifiers, a residual connection, pooling and a linear head."""

    def __init__(self, rectify: Callable[[Tensor], Tensor] = fn.relu) -> None:
        super().__init__()
        self.rectify = rectify
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        for i, (name, tensor) in enumerate((*self.named_parameters(), *self.named_buffers())):
            if tensor.is_floating_point():
                tensor.data = seeded(*tensor.shape, seed=i)
                if name == "norm.running_var":
                    tensor.data = tensor.data.abs() + 0.5
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectify(self.norm(self.first(x)))
        x = fn.max_pool2d(self.rectify(self.second(x)) + x, 2)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


MODEL = Network()


def psi(term: Tensor) -> Tensor:
    """Of one example: absolute, stretched over all channels, each channel upsampled alone, summed."""
    size = term.abs()
    size = (size - size.min()) / (size.max() - size.min())
    maps = [fn.interpolate(channel[None, None], (6, 6), mode="bilinear")[0, 0] for channel in size]
    return torch.stack(maps).sum(0)


def by_hand(x: Tensor, target: int) -> tuple[Tensor, float, float]:
    """The map of one example, what the input and what the biases sum to, from added biases that are leaves."""
    model = MODEL
    leaf = x.unsqueeze(0).clone().requires_grad_()
    variance, mean = model.norm.running_var, model.norm.running_mean
    assert variance is not None and mean is not None
    scale = model.norm.weight / (variance + model.norm.eps).sqrt()
    shift = model.norm.bias - scale * mean

    def spread(bias: Tensor) -> Tensor:
        return bias.detach().view(1, -1, 1, 1).expand(1, -1, 6, 6).clone().requires_grad_()

    assert model.first.bias is not None and model.second.bias is not None
    one, two, three = spread(model.first.bias), spread(shift), spread(model.second.bias)
    hidden = fn.conv2d(leaf, model.first.weight, padding=1) + one
    hidden = fn.relu(hidden * scale.view(1, -1, 1, 1) + two)
    pooled = fn.max_pool2d(fn.relu(fn.conv2d(hidden, model.second.weight, padding=1) + three) + hidden, 2)
    last = model.head.bias.detach()[target]
    value = (pooled.mean((2, 3)) @ model.head.weight[target])[0] + last
    torch.testing.assert_close(value, model(x.unsqueeze(0))[0, target])
    gradients = torch.autograd.grad(value, [leaf, one, two, three])
    terms = [(t.detach() * g)[0] for t, g in zip((leaf, one, two, three), gradients, strict=True)]
    sums = [float(term.sum()) for term in terms]
    return torch.stack([psi(term) for term in terms]).sum(0), sums[0], sum(sums[1:]) + float(last)


def test_map_and_decomposition_by_hand() -> None:
    found = axplain.explain(MODEL, X, "fullgrad", target=TARGET)
    maps, inputs, biases = zip(*(by_hand(x, int(t)) for x, t in zip(X, TARGET, strict=True)), strict=True)
    torch.testing.assert_close(found.attributions, torch.stack(maps).unsqueeze(1))
    assert found.notes["decomposition"]["input"] == pytest.approx(inputs)
    assert found.notes["decomposition"]["biases"] == pytest.approx(biases)
    assert float(found.residuals["decomposition"].abs().max()) < 1e-11


def in_place(x: Tensor) -> Tensor:
    return x.relu_()


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "in place": in_place,
    "functional in place": lambda x: fn.relu(x, inplace=True),
    "clamp": lambda x: x.clamp(min=0),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "mask": lambda x: x * (x > 0),
    "module": nn.ReLU(inplace=True),
    "identities": lambda x: ((x + 3.0) - 3).relu().reshape(x.shape).clone(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_rectifier_gives_the_decomposition(spelling: str) -> None:
    found = axplain.explain(Network(SPELLINGS[spelling]), X, "fullgrad", target=TARGET)
    expected = axplain.explain(MODEL, X, "fullgrad", target=TARGET)
    for part in ("input", "biases"):
        assert found.notes["decomposition"][part] == pytest.approx(expected.notes["decomposition"][part])
    if spelling != "identities":  # it has biases of its own, whose maps are added
        torch.testing.assert_close(found.attributions, expected.attributions)


@pytest.mark.parametrize(
    "smooth", [fn.silu, torch.tanh, fn.relu6, nn.SiLU(inplace=True), fn.softplus, nn.GroupNorm(2, 4)]
)
def test_what_is_not_piecewise_linear_has_implicit_biases(smooth: Any) -> None:
    network = Network(smooth).double()
    found = axplain.explain(network, X, "fullgrad", target=TARGET)
    with torch.no_grad():
        value = network(X)[torch.arange(3), TARGET]
    told = found.notes["decomposition"]
    parts = torch.tensor([told["input"], told["biases"]], dtype=torch.float64)
    torch.testing.assert_close(parts.sum(0), value)


def test_written_sums_and_constants_are_biases() -> None:
    """F = sum(2 x + 3) over a picture that is written into zeros, plus a constant row."""

    def model(x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 2, 6, 6, dtype=x.dtype)
        out += 2 * x
        out[:, 1] = out[:, 1] + 1.5
        out = torch.cat([out, torch.ones(len(x), 1, 6, 6, dtype=x.dtype)], 1)
        return fn.pad(out, (1, 1, 1, 1), value=0.25).sum((1, 2, 3))

    found = axplain.explain(model, X, "fullgrad")
    told = found.notes["decomposition"]
    assert told["input"] == pytest.approx((2 * X.sum((1, 2, 3))).tolist())
    assert told["biases"] == pytest.approx([1.5 * 36 + 36 + 0.25 * 3 * 28] * 3)


def test_without_biases_the_input_is_all() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(48, 1, bias=False))
    found = axplain.explain(network.double(), X, "fullgrad")
    plain = axplain.explain(network, X, "input_x_gradient").attributions
    assert found.notes["decomposition"]["biases"] == [0.0] * 3
    torch.testing.assert_close(found.attributions[:, 0], torch.stack([psi(term) for term in plain]))


class Hidden(torch.autograd.Function):
    """Adds one, where nobody sees it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).sum((1, 2, 3)) + (x * 3).detach().sum((1, 2, 3))


def hidden(x: Tensor) -> Tensor:
    out: Tensor = Hidden.apply(x)  # type: ignore[no-untyped-call]
    return out.sum((1, 2, 3))


def test_what_is_not_seen_is_refused_by_what_is_missing() -> None:
    with pytest.raises(UncoveredOperation, match="account for all but 72 of the output"):
        axplain.explain(hidden, X, "fullgrad")


def test_a_detached_value_that_is_added_is_a_constant() -> None:
    found = axplain.explain(Detached(), X, "fullgrad")
    assert found.notes["decomposition"]["biases"] == pytest.approx((3 * X.sum((1, 2, 3))).tolist())


def test_training_scripted_and_other_shapes_are_refused() -> None:
    training = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 1)).double()
    with pytest.raises(UncoveredOperation, match=r"'batch_norm', called in module '0'.*training mode"), pytest.warns():
        axplain.explain(training, X, "fullgrad")
    with pytest.raises(UncoveredOperation, match="scripted"):
        axplain.explain(torch.jit.trace(MODEL, X), X, "fullgrad", target=0)  # type: ignore[no-untyped-call]
    with pytest.raises(ArgumentError, match=r"x: \[.* came; expected one tensor of images"):
        axplain.explain(lambda a, b: (a + b).sum((1, 2, 3)), (X, X), "fullgrad")
    with pytest.raises(ArgumentError, match=r"x: .* came; expected one tensor of images"):
        axplain.explain(lambda x: x.sum((1, 2, 3, 4)), X.unsqueeze(-1), "fullgrad")


def test_nothing_is_left_behind_and_chunks_agree() -> None:
    x = X.clone().requires_grad_()
    before = {name: tensor.clone() for name, tensor in MODEL.state_dict().items()}
    whole = axplain.explain(MODEL, x, "fullgrad", target=TARGET).attributions
    for size in (1, 2):
        one = axplain.explain(MODEL, x, "fullgrad", target=TARGET, batch_size=size).attributions
        torch.testing.assert_close(one, whole)
    assert x.grad is None and not vars(x) and all(p.grad is None and not vars(p) for p in MODEL.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in MODEL.state_dict().items())


def test_a_neuron_inside_the_network_is_decomposed() -> None:
    found = axplain.explain(MODEL, X, "fullgrad", target=axplain.neuron("second", (1, 2, 3)))
    assert float(found.residuals["decomposition"].abs().max()) < 1e-11
