"""Attention rollout: the attention maps of all layers, multiplied from the input up."""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor, nn

from axplain import hookimpl
from axplain.engine import Engine
from axplain.problem import Problem
from axplain.protocols import Outcome, Settings
from axplain.seats.reading import Pass, Read, Reading
from axplain.structure import Tensors, accumulator
from axplain_plugins.attention.tokens import attended, explain_tokens, of_query

Fusion = Literal["mean", "max", "min"]
_FUSIONS: Final[dict[Fusion, Any]] = {"mean": Tensor.mean, "max": Tensor.amax, "min": Tensor.amin}


class AttentionRollout:
    """Explains no target: it says how much of each token's embedding arrives at the query token."""

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        """Return (batch, tokens), a share of 1 for each token."""
        values = settings.values
        reading = _Rollout(
            problem.model.module,
            values["query"],
            values["head_fusion"],
            values["residual_weight"],
            values["discard_ratio"],
        )
        return explain_tokens(problem, engine, "value", reading)


@attrs.frozen(eq=False)
class _Rollout(Reading):
    """Multiplies the maps while some rows pass; the target is not asked."""

    root: nn.Module | None
    query: int | None
    fusion: Fusion
    residual: float
    discard: float
    backward = False

    def take(self, x: Tensors, run: Pass) -> Read:
        """Return (rows, tokens)."""
        layers = attended(self.root, x, run)
        maps = [fused(layer.by_head(layer.weights), self.fusion) for layer in layers]
        rolled = rollout([discarded(weights, self.discard) for weights in maps], self.residual)
        return Read(None, (of_query(rolled, self.query, layers),))


def fused(weights: Tensor, fusion: Fusion) -> Tensor:
    """Return one map, (rows, tokens, tokens), of (rows, heads, tokens, tokens)."""
    weights = weights.to(accumulator(weights.dtype))
    one: Tensor = _FUSIONS[fusion](weights, 1)
    return one


def discarded(weights: Tensor, ratio: float) -> Tensor:
    """Set the smallest weights of each map to zero: that share of them, rounded down."""
    count = int(ratio * weights[0].numel())
    if not count:
        return weights
    flat = weights.flatten(1)
    smallest = flat.topk(count, 1, largest=False).indices
    return flat.scatter(1, smallest, 0.0).view_as(weights)


def rollout(maps: list[Tensor], residual: float) -> Tensor:
    """Return the product of all layers' `(1 - residual) A + residual I`, each row divided by its sum."""
    eye = torch.eye(maps[0].shape[-1], dtype=maps[0].dtype, device=maps[0].device)
    rolled = eye.expand_as(maps[0])
    for weights in maps:
        mixed = (1 - residual) * weights + residual * eye
        sums = mixed.sum(-1, keepdim=True)
        rolled = mixed / sums.where(sums > 0, 1.0) @ rolled  # a row is zero where a token looks at nothing
    return rolled


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `attention_rollout`."""
    return AttentionRollout
