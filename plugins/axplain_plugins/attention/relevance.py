"""Relevance of tokens from attention maps and the gradients that the target sends to them."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

from axplain import hookimpl
from axplain.engine import Engine
from axplain.problem import Problem
from axplain.protocols import Outcome, Settings
from axplain.seats.reading import Pass, Read, Reading
from axplain.structure import Tensors, accumulator
from axplain_plugins.attention.tokens import attended_with_gradient, explain_tokens, of_query


class AttentionRelevance:
    """Follows the target's positive gradients through the attention maps, layer by layer."""

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        """Return (batch, tokens), none of them negative."""
        return explain_tokens(problem, engine, "gradient", _Relevance(problem.model.module, settings.values["query"]))


@attrs.frozen(eq=False)
class _Relevance(Reading):
    """Takes the gradient at every attention map while some rows pass."""

    root: nn.Module | None
    query: int | None

    def take(self, x: Tensors, run: Pass) -> Read:
        """Return (rows, tokens), and the target's values."""
        value, layers, gradients = attended_with_gradient(self.root, x, run)
        maps = [
            positive(layer.by_head(layer.weights.detach()), layer.by_head(gradient))
            for layer, gradient in zip(layers, gradients, strict=True)
        ]
        return Read(value, (of_query(relevance(maps), self.query, layers),))


def positive(weights: Tensor, gradient: Tensor) -> Tensor:
    """Return the mean over heads of what is positive of weights times gradient: (rows, tokens, tokens)."""
    dtype = accumulator(weights.dtype)
    return (weights.to(dtype) * gradient.to(dtype)).clamp(min=0).mean(1)


def relevance(maps: list[Tensor]) -> Tensor:
    """Return R, from R = I by R <- R + A R for each layer's map A."""
    related = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device).expand_as(maps[0])
    for weights in maps:
        related = related + weights @ related
    return related


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `attention_relevance`."""
    return AttentionRelevance
