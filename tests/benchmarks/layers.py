"""Methods at layers three times, as in methods.py. The models are sequences, so that a layer cuts them in two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import captum.attr
import torch
import torch.autograd.forward_ad as forward_ad
from tests.benchmarks.methods import TARGET, gradient, nodes_and_weights
from torch import Tensor, nn


def cut(model: nn.Module, layer: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Return what runs up to a layer, and what runs behind it."""
    parts = list(model.children())
    return nn.Sequential(*parts[: layer + 1]), nn.Sequential(*parts[layer + 1 :])


@dataclass(frozen=True)
class LayerIntegratedGradients:
    """The straight path between what a layer holds of zero and of x; `rows` is the number of steps."""

    rows: int
    layer: int
    sampled: bool = False
    captum_chunks: bool = True

    def arguments(self) -> dict[str, Any]:
        return {"method": "integrated_gradients", "layer": str(self.layer), "n_steps": self.rows}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        head, tail = cut(model, self.layer)
        with torch.no_grad():
            away = head(torch.zeros_like(x[:1]))
            held = torch.cat([head(rows) for rows in torch.split(x, chunk)])
        return torch.cat(
            [self._block(tail, block, away, max(chunk // len(block), 1)) for block in torch.split(held, chunk)]
        )

    def _block(self, tail: nn.Module, held: Tensor, away: Tensor, steps: int) -> Tensor:
        nodes, weights = nodes_and_weights(self.rows)
        step, total = held - away, torch.zeros_like(held)
        for node, weight in zip(torch.split(nodes, steps), torch.split(weights, steps), strict=True):
            rows = gradient(tail, (away + node.view(-1, *[1] * held.ndim) * step).flatten(0, 1))
            total += (weight @ rows.view(len(node), -1)).view_as(held)
        return total * step

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        explainer = captum.attr.LayerIntegratedGradients(model, list(model.children())[self.layer])
        away = torch.zeros_like(x)
        return explainer.attribute(x, away, target=TARGET, n_steps=self.rows, internal_batch_size=chunk)


@dataclass(frozen=True)
class LayerConductance:
    """Gradient at a layer times its rate along the path from zero; `rows` is the number of steps.

    `rates`: whether the bare loop takes the rates, by dual numbers; without them the same rows give no answer.
    """

    rows: int
    layer: int
    rates: bool = True
    captum_chunks: bool = True

    @property
    def sampled(self) -> bool:
        """Whether the bare loop has no answer to compare."""
        return not self.rates

    def arguments(self) -> dict[str, Any]:
        return {"method": "layer_conductance", "layer": str(self.layer), "n_steps": self.rows}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        head, tail = cut(model, self.layer)
        return torch.cat(
            [self._block(head, tail, block, max(chunk // len(block), 1)) for block in torch.split(x, chunk)]
        )

    def _block(self, head: nn.Module, tail: nn.Module, x: Tensor, steps: int) -> Tensor:
        nodes, weights = nodes_and_weights(self.rows)
        total: Tensor | float = 0.0
        for node, weight in zip(torch.split(nodes, steps), torch.split(weights, steps), strict=True):
            rows = (node.view(-1, *[1] * x.ndim) * x).flatten(0, 1)
            held, rate = self._held(head, rows, x.repeat(len(node), *[1] * (x.ndim - 1)))
            terms = gradient(tail, held) * rate
            total = total + (weight @ terms.view(len(node), -1)).view(len(x), *terms.shape[1:])
        assert isinstance(total, Tensor)
        return total

    def _held(self, head: nn.Module, rows: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor | float]:
        with torch.no_grad():
            if not self.rates:
                return head(rows), 1.0
            with forward_ad.dual_level():
                held = forward_ad.unpack_dual(head(forward_ad.make_dual(rows, tangent)))  # type: ignore[no-untyped-call]
                return held.primal.clone(), held.tangent.clone()

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        explainer = captum.attr.LayerConductance(model, list(model.children())[self.layer])
        return explainer.attribute(x, target=TARGET, n_steps=self.rows, internal_batch_size=chunk)
