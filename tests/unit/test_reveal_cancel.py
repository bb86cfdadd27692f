"""DeepLIFT's RevealCancel against its definition, layer by layer, and against the sum that it has to give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import axplain

RULES = "deeplift_reveal_cancel"


def drawn(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def seeded(model: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return model


def explained(model: Any, x: Tensor, **arguments: Any) -> axplain.Explanation:
    return axplain.explain(model, x, "deeplift", **{"rules": RULES, "target": 1, **arguments})


def shared(z: Tensor, z_reference: Tensor, parts: Tensor, function: Any) -> tuple[Tensor, Tensor]:
    """What the positive and the negative parts of a sum get, (examples, units): the mean over both orders."""
    up, down = parts.clamp(min=0).sum(-1), parts.clamp(max=0).sum(-1)
    f, start = function, z_reference
    first = (f(start + up) - f(start) + f(start + down + up) - f(start + down)) / 2
    second = (f(start + down) - f(start) + f(start + up + down) - f(start + up)) / 2
    assert torch.allclose(first + second, f(z) - f(start))
    return first / up, second / down


@pytest.mark.parametrize("function", [torch.relu, torch.tanh, functional.gelu, functional.leaky_relu])
def test_one_layer_is_its_definition(function: Any) -> None:
    first, last = seeded(nn.Linear(5, 4)), seeded(nn.Linear(4, 3))
    x, reference = drawn(3, 5), drawn(3, 5, key=1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(function(self.first(x)))  # type: ignore[no-any-return]

    with torch.no_grad():
        parts = (x - reference)[:, None, :] * first.weight[None]
        up, down = shared(first(x), first(reference), parts, function)
        share = torch.where(parts > 0, up[..., None] * parts, down[..., None] * parts)
        expected = (last.weight[1][None, :, None] * share).sum(1)
    assert torch.allclose(explained(Model(), x, baselines=reference).attributions, expected, atol=1e-12)


class Smaller(nn.Module):
    """The smaller of two numbers, the example of the paper: rescale gives all to one of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] - torch.relu(x[:, 0] - x[:, 1])


def test_the_smaller_of_two_numbers_is_shared_evenly() -> None:
    x = torch.tensor([[3.0, 5.0], [5.0, 3.0]], dtype=torch.float64)
    found = explained(Smaller(), x, target=None).attributions
    assert torch.allclose(found, torch.full_like(x, 1.5), atol=1e-14)
    rescaled = explained(Smaller(), x, target=None, rules="deeplift_rescale").attributions
    assert torch.allclose(rescaled, torch.tensor([[3.0, 0.0], [0.0, 3.0]], dtype=torch.float64), atol=1e-14)


class Residual(nn.Module):
    """Activations behind a convolution, behind batch normalisation, behind an addition, and behind a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.block, self.act, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = functional.relu(x + self.block(x))
        x = functional.max_pool2d(x, 2).tanh()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.transpose(0, 1)).mean(0))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("make", "shape"), [(Residual, (2, 6, 6)), (Encoder, (5, 8))], ids=["residual", "encoder"])
def test_the_change_of_the_output_is_told_to_the_last_digit(make: Any, shape: tuple[int, ...]) -> None:
    model, x = seeded(make()), drawn(3, *shape)
    for baselines in (
        None,
        drawn(1, *shape, key=1),
        drawn(3, *shape, key=2),
        axplain.distribution(drawn(4, *shape, key=3)),
    ):
        explanation = explained(model, x, baselines=baselines)
        assert explanation.difference is not None and explanation.delta is not None
        scale = explanation.difference.abs().max()
        assert explanation.delta.abs().max() < 1e-12 * (1 + scale)
    averaged = axplain.explain(model, x, "deeplift_shap", baselines=drawn(4, *shape, key=3), rules=RULES, target=1)
    assert torch.allclose(averaged.attributions, explanation.attributions, atol=1e-12)


def test_batch_normalisation_is_part_of_the_sum() -> None:
    model = seeded(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)))
    norm, merged = model[1], copy.deepcopy(model[0])
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():
        merged.weight.mul_(scale[:, None])
        merged.bias.copy_(norm.bias + (merged.bias - norm.running_mean) * scale)
    x = drawn(3, 4)
    twin = explained(nn.Sequential(merged, *list(model)[2:]), x).attributions
    assert torch.allclose(explained(model, x).attributions, twin, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(explained(model, x, rules="deeplift_rescale").attributions, twin, rtol=1e-3)


def test_where_all_parts_have_one_sign_it_is_rescale() -> None:
    model = seeded(nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 3)))
    with torch.no_grad():
        model[0].weight.abs_()
    x = drawn(3, 4).abs()
    found, rescaled = explained(model, x), explained(model, x, rules="deeplift_rescale")
    assert torch.allclose(found.attributions, rescaled.attributions, atol=1e-12)


def test_as_the_reference_comes_near_it_is_the_gradient_times_the_step() -> None:
    model, x = seeded(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))), drawn(3, 4)
    slope = axplain.explain(model, x, "saliency", target=1, absolute=False).attributions
    for size in (1e-3, 1e-5, 0.0):
        step = size * drawn(3, 4, key=5)
        found = explained(model, x, baselines=x - step).attributions
        assert torch.allclose(found, slope * step, atol=10 * size**2 + 1e-15)


def test_an_activation_behind_something_else_is_rescaled() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.amax(1, keepdim=True) * x)

    x = drawn(3, 4)
    found = explained(Model(), x).attributions
    assert torch.equal(found, explained(Model(), x, rules="deeplift_rescale").attributions)
