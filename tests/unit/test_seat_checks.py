"""Whether a model answers as before is seen at a layer too: what runs before it is compared, or run once more."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import torch
from tests.unit.seat_models import ONE, X, made
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import axplain


class Growing(torch.autograd.Function):
    """Multiplies by a little more each time, and no mode sees it."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Growing.passes += 1
        return x * (1 + 0.1 * Growing.passes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Prefixed(nn.Module):
    """Changes what goes into its layer from pass to pass, or does not."""

    state: Tensor

    def __init__(self, change: Callable[[Prefixed, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 2)
        self.register_buffer("state", torch.ones(4))
        self.change, self.passes, self.kept = change, 0, torch.ones(4, dtype=torch.float64)
        self.torch, self.numpy = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        h = self.change(self, torch.tanh(self.first(x)))
        out: Tensor = self.last(torch.tanh(self.layer(h)))
        return out


def written(model: Prefixed, h: Tensor) -> Tensor:
    model.state.data.mul_(1.05)
    return h * model.state


def replaced(model: Prefixed, h: Tensor) -> Tensor:
    model.kept = model.kept * 1.05
    return h * model.kept


def more_rounds(model: Prefixed, h: Tensor) -> Tensor:
    for _ in range(model.passes):
        h = h * 0.9
    return h


def other_shape(model: Prefixed, h: Tensor) -> Tensor:
    return h.repeat(1, 1 + model.passes).view(len(h), -1)[:, -4:] * model.passes


DRIFTING: Final[dict[str, Callable[[Prefixed, Tensor], Tensor]]] = {
    "a number": lambda model, h: h * (1 + 0.1 * model.passes),
    "a keyword": lambda model, h: torch.add(h, h, alpha=model.passes),
    "a place": lambda model, h: h * torch.linspace(0, 1, 64)[model.passes],
    "a slice": lambda model, h: h * torch.linspace(0, 1, 64)[model.passes : model.passes + 4],
    "a generator": lambda model, h: h + torch.randn(4, generator=model.torch, dtype=h.dtype),
    "numpy": lambda model, h: h + torch.from_numpy(model.numpy.normal(size=4)),
    "numpy, copied": lambda model, h: h + torch.tensor(model.numpy.normal(size=4)),
    "a buffer that is written to": written,
    "a tensor that is replaced": replaced,
    "a function without a name": lambda model, h: Growing.apply(h),  # type: ignore[no-untyped-call]
    "more operations": lambda model, h: torch.stack([h] * model.passes).sum(0),
    "more rounds": more_rounds,
    "a shape": other_shape,
}


@pytest.mark.filterwarnings("ignore:.*the attributions of example:axplain.AxplainWarning")
@pytest.mark.parametrize("change", DRIFTING)
@pytest.mark.parametrize("method", ["integrated_gradients", "deeplift"])
def test_what_changes_before_a_layer_from_pass_to_pass_is_said(method: str, change: str) -> None:
    model = made(lambda: Prefixed(DRIFTING[change]))
    for _ in range(2):
        with pytest.warns(axplain.AxplainWarning, match="not deterministic"):
            axplain.explain(model, X, method, layer="layer", target=1, baselines=ONE)


class Executed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the products with the weights of a layer that are really computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() == "aten::addmm" and tuple(args[2].shape) == (4, 4):
            self.rows.append(len(args[1]))
        return func(*args, **(kwargs or {}))


STEADY: Final[dict[str, Callable[[Prefixed, Tensor], Tensor]]] = {
    "nothing": lambda model, h: h,
    "a buffer": lambda model, h: h * model.state,
    "a shape": lambda model, h: h.view(h.shape[0], 2, 2).reshape(len(h), -1).expand(len(h), 4),
    "a slice": lambda model, h: torch.cat([h[:, 2:], h[..., :2]], dim=1),
    "a constant": lambda model, h: h + torch.arange(4, dtype=h.dtype) * torch.tensor([1.0, 2.0, 3.0, 4.0]),
}


@pytest.mark.parametrize("change", STEADY)
def test_what_runs_before_a_layer_is_not_run_again_to_see_that_it_is_steady(change: str) -> None:
    model = made(lambda: Prefixed(STEADY[change]))

    def explain(**options: Any) -> Any:
        return axplain.explain(
            model, X, "integrated_gradients", layer="layer", target=1, baselines=ONE, batch_size=8, **options
        )

    explain()
    with Executed() as seen, warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain()
    assert seen.rows == [len(X) + 1], "one pass, which carries the examples and the baseline"
    assert found.cost.check_rows == 1
    assert torch.equal(found.attributions, explain(verify=False).attributions)


def test_what_changes_behind_a_layer_from_pass_to_pass_is_said() -> None:
    model = made(lambda: Prefixed(STEADY["nothing"]))
    model.last.register_forward_hook(lambda module, args, output: output * (1 + 0.1 * model.passes))
    with pytest.warns(axplain.AxplainWarning) as told:
        axplain.explain(model, X, "integrated_gradients", layer="layer", target=1, baselines=ONE, batch_size=8)
    assert any("not deterministic" in str(each.message) for each in told)
