"""Relevance propagation and guided backpropagation as in `methods`; zennit's call beside captum's.

The bare pass is one forward and one backward pass of the model written with the rules in it, by hand for these models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import captum.attr
import torch
from captum.attr._utils.lrp_rules import EpsilonRule
from tests.benchmarks.methods import TARGET
from tests.benchmarks.models import Residual
from tests.parity.zennit_answers import absent_torchvision
from torch import Tensor, nn

EPSILON: Final = 1e-6


def _back(run: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, x: Tensor, *, relevance: bool) -> Tensor:
    """Return what goes back to x; `relevance`: it begins with the target itself instead of one."""
    leaf = x.detach().requires_grad_()
    value = run(model, leaf)[:, TARGET]
    sent = value.detach() if relevance else torch.ones_like(value)
    return torch.autograd.grad(value, leaf, sent)[0]


def _with_relevance(part: nn.Module, x: Tensor) -> Tensor:
    """Run a part of the models with the epsilon rule on the way back."""
    if isinstance(part, nn.Sequential):
        for inner in part:
            x = _with_relevance(inner, x)
        return x
    if isinstance(part, Residual):
        inner = _Kept.apply(_with_relevance(part.first, x))  # type: ignore[no-untyped-call]
        both = _with_relevance(part.second, inner), _with_relevance(part.shortcut, x)
        return _Kept.apply(_Over.apply(_Times.apply(both[0]) + _Times.apply(both[1])))  # type: ignore[no-any-return, no-untyped-call]
    if isinstance(part, nn.ReLU):
        return _Kept.apply(x)  # type: ignore[no-any-return, no-untyped-call]
    if isinstance(part, nn.MaxPool2d | nn.Flatten | nn.Identity):
        return part(x)  # type: ignore[no-any-return]
    return _Over.apply(part(_Times.apply(x)))  # type: ignore[no-any-return, no-untyped-call]


def _guided(model: nn.Module, x: Tensor) -> Tensor:
    for part in model.children():
        x = _Guided.apply(x) if isinstance(part, nn.ReLU) else part(x)  # type: ignore[no-untyped-call]
    return x


class _Kept(torch.autograd.Function):
    """ReLU that hands on relevance as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        return relevance


class _Times(torch.autograd.Function):
    """Before an operation: what goes on is multiplied by its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.saved_tensors[0]


class _Over(torch.autograd.Function):
    """Behind an operation: what arrives is divided by its output."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        moved = z.new_full((), EPSILON).copysign(z).add_(z)
        return torch.div(relevance, moved, out=moved)


class _Guided(torch.autograd.Function):
    """ReLU that hands on what is positive on the way back, where it was active on the way there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient.clamp(min=0) * (ctx.saved_tensors[0] > 0)


@dataclass(frozen=True)
class Relevance:
    """Layer-wise relevance propagation by the epsilon rule. captum has no rule for additions, and says nothing."""

    captum_runs: bool = True
    rows: int = 1
    sampled: bool = False
    captum_chunks: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"method": "lrp"}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([_back(_with_relevance, model, rows, relevance=True) for rows in torch.split(x, chunk)])

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        for module in model.modules():
            if isinstance(module, nn.Flatten):
                module.rule = EpsilonRule()  # each call deletes it
        return captum.attr.LRP(model).attribute(x, target=TARGET)

    def zennit(self, model: nn.Module, x: Tensor) -> Any:
        """Explain with zennit, whose composite gets every layer but the dense ones the epsilon rule too."""
        with absent_torchvision():
            from zennit.attribution import Gradient
            from zennit.canonizers import SequentialMergeBatchNorm
            from zennit.composites import LayerMapComposite
            from zennit.rules import Epsilon, Norm, Pass
            from zennit.types import Activation, AvgPool, BatchNorm, Linear
        layers = [(Activation, Pass()), (BatchNorm, Pass()), (AvgPool, Norm()), (Linear, Epsilon(1e-6))]
        composite = LayerMapComposite(layers, canonizers=[SequentialMergeBatchNorm()])
        with Gradient(model, composite) as attributor:
            return attributor(x, lambda output: output * torch.eye(output.shape[1])[[TARGET]])[1]


@dataclass(frozen=True)
class GuidedBackprop:
    """Guided backpropagation."""

    rows: int = 1
    sampled: bool = False
    captum_chunks: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"method": "guided_backprop"}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([_back(_guided, model, rows, relevance=False) for rows in torch.split(x, chunk)])

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        return captum.attr.GuidedBackprop(model).attribute(x, target=TARGET)
