"""Relevance propagation and guided backpropagation as in `methods`; zennit's call beside captum's.

The bare pass takes the plain gradient times the input, so answers are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import captum.attr
import torch
from captum.attr._utils.lrp_rules import EpsilonRule
from tests.benchmarks.methods import TARGET, gradient
from tests.parity.zennit_answers import absent_torchvision
from torch import Tensor, nn


@dataclass(frozen=True)
class Relevance:
    """Layer-wise relevance propagation by the epsilon rule. captum has no rule for additions, and says nothing."""

    captum_runs: bool = True
    rows: int = 1
    sampled: bool = True
    captum_chunks: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"method": "lrp"}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([gradient(model, rows.clone()) * rows for rows in torch.split(x, chunk)])

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
    sampled: bool = True
    captum_chunks: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"method": "guided_backprop"}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([gradient(model, rows.clone()) for rows in torch.split(x, chunk)])

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        return captum.attr.GuidedBackprop(model).attribute(x, target=TARGET)
