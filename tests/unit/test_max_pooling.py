"""Max-pooling that is faster by way of another layout gives torch's own values, winners and gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import axplain
from axplain import pooling
from axplain_plugins.propagation import winners

POOL = winners.pool_with_winners("max_pool2d")
SHAPES: list[tuple[tuple[int, ...], tuple[Any, ...]]] = [
    ((2, 16, 28, 28), (2,)),
    ((1, 64, 33, 47), (3, 2, 1)),
    ((3, 4, 40, 40), (3, 1, 1)),
    ((4, 5, 30, 31), ((2, 3), (1, 2), (1, 0), (2, 1), True)),
]


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return numbers with many ties, half of them zero."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x.relu().mul(3).round()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "arguments"), SHAPES)
def test_values_and_winners_are_those_of_torch_for_ties_too(
    shape: tuple[int, ...], arguments: tuple[Any, ...], dtype: torch.dtype
) -> None:
    x = numbers(shape, dtype)
    assert pooling.gains(x), "or there is nothing to compare"
    expected = functional.max_pool2d(x, *arguments, return_indices=True)
    for found, wanted in zip(POOL(None, x, *arguments), expected, strict=True):
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()


def test_values_that_are_no_numbers_win_as_they_do_in_torch() -> None:
    x = numbers((2, 16, 28, 28), torch.float32)
    x[0, 1, 2:4, 3], x[1, 2], x[1, 3, 5] = torch.nan, -torch.inf, torch.inf
    values, places = functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    found, at = POOL(None, x, 3, 2, 1)
    torch.testing.assert_close(found, values, rtol=0.0, atol=0.0, equal_nan=True)
    assert torch.equal(at, places)


def call_of(pool: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what pooling gives, its gradient, and its derivative along a direction."""
    leaf, way = x.clone().requires_grad_(), torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    out = pool(leaf)
    (gradient,) = torch.autograd.grad(out, leaf, torch.linspace(1, 2, out.numel(), dtype=x.dtype).view_as(out))
    with forward_ad.dual_level():
        dual = pool(forward_ad.make_dual(x, way))  # type: ignore[no-untyped-call]
        return out.detach(), gradient, forward_ad.unpack_dual(dual).tangent.clone()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("shape", "arguments"), SHAPES)
def test_plain_derivatives_are_those_of_torch(
    shape: tuple[int, ...], arguments: tuple[Any, ...], dtype: torch.dtype
) -> None:
    """Where windows overlap a sum may be taken in another order."""
    x = numbers(shape, dtype)
    expected = call_of(lambda x: functional.max_pool2d(x, *arguments), x)
    with pooling.Pooling() as mode:
        found = call_of(lambda x: functional.max_pool2d(x, *arguments), x)
    assert mode.met
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[2], expected[2])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6 if dtype == torch.float32 else 1e-15, atol=0.0)


CALLS: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    "module": (lambda x: nn.MaxPool2d(2)(x), True),
    "torch": (lambda x: torch.max_pool2d(x, 2), True),
    "seventh argument": (lambda x: functional.max_pool2d(x, 2, 2, 0, 1, False, False), True),
    "keywords": (lambda x: functional.max_pool2d(input=x, kernel_size=2, ceil_mode=True), True),
    "few numbers": (lambda x: functional.max_pool2d(x[:1, :, :8, :8].contiguous(), 2), True),
    "few channels": (lambda x: functional.max_pool2d(x[:, :2].contiguous(), 2), False),
    "other layout": (lambda x: functional.max_pool2d(x.contiguous(memory_format=torch.channels_last), 2), False),
    "one picture": (lambda x: functional.max_pool2d(x[0], 2), False),
    "half": (lambda x: functional.max_pool2d(x.half(), 2), False),
    "volumes": (lambda x: functional.max_pool3d(x, 2), False),
    "indices": (lambda x: functional.max_pool2d(x, 2, return_indices=True), False),
    "vmap": (lambda x: torch.vmap(lambda each: functional.max_pool2d(each, 2))(x[None]), True),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_gives_what_torch_gives(name: str) -> None:
    """`met`: what may gain, if it were larger; under vmap torch cannot lay tensors in another way."""
    x, (call, met) = numbers((2, 16, 28, 28), torch.float32), CALLS[name]
    with pooling.Pooling() as mode:
        found = call(x)
    assert mode.met is met
    torch.testing.assert_close(found, call(x), rtol=0.0, atol=0.0)


def test_what_torch_refuses_it_refuses_in_its_own_words() -> None:
    x = numbers((2, 16, 28, 28), torch.float32)
    with pytest.raises(RuntimeError, match="pad should be at most half of") as expected:
        functional.max_pool2d(x, 2, padding=2)
    with pooling.Pooling(), pytest.raises(RuntimeError) as found:
        functional.max_pool2d(x, 2, padding=2)
    assert str(found.value) == str(expected.value)


class Convolving(nn.Module):
    """Two convolutions with pooling between; it may compute them again in the backward pass instead of keeping them."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 4, 3))
        self.last, self.again = nn.Linear(4, 3), again

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(self.body, x, use_reentrant=False) if self.again else self.body(x)
        out: Tensor = self.last(torch.tanh(h).mean((-2, -1)))
        return out


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("method", ["integrated_gradients", "saliency", "layer_conductance"])
def test_explanations_of_models_that_pool_are_those_of_smaller_chunks(
    method: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of a given size is not measured, and pools as torch does."""
    torch.manual_seed(0)
    model, x = Convolving(again=again).double(), torch.randn(6, 1, 24, 24, dtype=torch.float64)
    if again and method == "layer_conductance":
        pytest.skip("torch has no forward derivatives of what is computed again")
    used: list[Tensor] = []
    taken = pooling._taken

    def noted(x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        used.append(x)
        return taken(x, *arguments, **keywords)

    monkeypatch.setattr(pooling, "_taken", noted)
    more: dict[str, Any] = {"layer": model.body[3]} if method == "layer_conductance" else {}
    found = axplain.explain(model, x, method, target=1, **more)
    assert used
    used.clear()
    expected = axplain.explain(model, x, method, target=1, batch_size=6, **more)
    assert not used
    torch.testing.assert_close(found.attributions, expected.attributions, rtol=1e-10, atol=1e-14)


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "adds": lambda pooled: pooled.add_(1.0),
    "multiplies": lambda pooled: pooled.mul_(nn.Parameter(torch.ones_like(pooled[:1]))),
    "detaches": lambda pooled: pooled.detach_(),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_a_model_may_write_to_what_pooling_gives(name: str, frozen: bool) -> None:
    torch.manual_seed(0)

    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            with torch.no_grad() if frozen else nullcontext():
                pooled = functional.max_pool2d(h, 2)
            out: Tensor = self.last((h[..., ::2, ::2] * WRITES[name](pooled)).mean((2, 3)))
            return out

    model, x = Writing().double(), torch.randn(12, 1, 26, 26, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(axplain.explain(model, x, "input_x_gradient", target=1).attributions, x * gradient)


def test_models_that_take_gradients_inside_are_measured() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = functional.max_pool2d(self.first(x), 2).mean((2, 3))
            out: Tensor = self.last(h * torch.func.grad(lambda each: (each**3).sum())(h))
            return out

    torch.manual_seed(0)
    model, x = Inside().double(), torch.randn(12, 1, 26, 26, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(axplain.explain(model, x, "input_x_gradient", target=1).attributions, x * gradient)


@pytest.mark.parametrize("size", [28, 4])
@pytest.mark.parametrize("call", ["module", "function", "keyword", "torch", "indices"])
@pytest.mark.parametrize("method", ["guided_backprop", "lrp", "deeplift"])
def test_pooling_hands_on_to_the_winners_in_every_spelling(method: str, call: str, size: int) -> None:
    """Of a linear model with one pooling layer every method gives what the gradient tells, times x where it does so."""
    torch.manual_seed(0)
    last = nn.Linear(8 * (size // 2) ** 2, 3, bias=False).double()

    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if call == "module":
                x = nn.MaxPool2d(2)(x)
            elif call == "function":
                x = functional.max_pool2d(x, 2, 2, 0, 1, False, False)
            elif call == "keyword":
                x = functional.max_pool2d(input=x, kernel_size=2)
            elif call == "torch":
                x = torch.max_pool2d(x, 2)
            else:
                x, _ = functional.max_pool2d(x, 2, return_indices=True)
            out: Tensor = last(x.flatten(1))
            return out

    model, x = Pooled(), numbers((2, 8, size, size), torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    absent = -1.0 if method == "deeplift" else None
    found = axplain.explain(model, x, method, target=1, baselines=absent).attributions
    if method == "guided_backprop":
        assert torch.equal(found, gradient)
    elif method == "lrp":  # its epsilon takes a little
        torch.testing.assert_close(found, x * gradient, rtol=1e-4, atol=1e-9)
    else:
        torch.testing.assert_close(found, (x + 1) * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [28, 4])
def test_a_report_says_that_pooling_keeps_nothing(size: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * (size // 2) ** 2, 3)
    ).double()
    x = numbers((2, 1, size, size), torch.float64)
    found = axplain.explain(model, x, "lrp", target=1, report=True)
    kept = found.notes["absorbed by"]
    (pool,) = [name for name in kept if name.startswith("max_pool2d")]
    assert kept[pool] == pytest.approx([0.0, 0.0], abs=1e-12)
