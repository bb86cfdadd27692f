"""What the methods of this room share: one pass that tells the weights of all layers, and the token that is asked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from axplain import ArgumentError
from axplain.engine import Engine, Need
from axplain.errors import UncoveredOperation, UnsupportedModel
from axplain.hidden import refuse_hidden_code
from axplain.problem import Problem
from axplain.protocols import Outcome
from axplain.seats.reading import Pass, Reading
from axplain.structure import Tensors, map_tensors
from axplain_plugins.attention.capture import Capturing, Layer


def explain_tokens(problem: Problem, engine: Engine, need: Need, reading: Reading) -> Outcome:
    """Ask once for each example; (batch, tokens).

    Raises:
        UncoveredOperation: the model has no attention that can be seen, or of another kind than covered.
    """
    refuse_hidden_code(problem.model, "Its attention weights must be seen.")
    answers = engine.ask(problem, problem.inputs, problem.everyone(), need, reading)
    assert answers.terms is not None, "the readings of this room give them"
    return Outcome(answers.terms)


def attended(root: torch.nn.Module | None, x: Tensors, run: Pass) -> list[Layer]:
    """Return the attention of every layer for some rows, without a graph."""
    rows = map_tensors(Tensor.clone, x)
    with Capturing(root, rows, graph=False) as mode:
        run(rows, nullcontext())
    return _found(mode)


def attended_with_gradient(root: torch.nn.Module | None, x: Tensors, run: Pass) -> tuple[Tensor, list[Layer], Tensors]:
    """Return (rows,) values of the target, the attention of every layer, and its gradients.

    Raises:
        UnsupportedModel: the target does not depend differentiably on any of them.
    """
    value, layers = _graphed(root, x, run, torch.no_grad())
    if not value.requires_grad:  # a part of the model restored the mode that it had found
        value, layers = _graphed(root, x, run, torch.enable_grad())
    weights = [layer.weights for layer in layers]
    told: Sequence[Tensor | None] = ()
    if value.requires_grad:
        try:
            told = torch.autograd.grad(value, weights, torch.ones_like(value), allow_unused=True)
        except CheckpointError as error:
            raise UncoveredOperation(
                "model: activation checkpointing (torch.utils.checkpoint) runs its attention again where nobody sees "
                "it. Switch it off."
            ) from error
    if all(gradient is None for gradient in told):
        raise UnsupportedModel(
            "model: the target does not depend differentiably on its attention weights: it detaches, rounds, or is "
            "under no_grad. Choose a target before that step: target=axplain.neuron(layer, index)."
        )
    gradients = tuple(torch.zeros_like(w) if g is None else g for w, g in zip(weights, told, strict=True))
    return value.detach(), layers, gradients


def _graphed(
    root: torch.nn.Module | None, x: Tensors, run: Pass, before: torch.no_grad | torch.enable_grad
) -> tuple[Tensor, list[Layer]]:
    """Run the rows; what is before the first attention keeps no graph, or one if `before` says so."""
    rows = map_tensors(Tensor.clone, x)
    with before, Capturing(root, rows, graph=True) as mode:
        value = run(rows, nullcontext())
    return value, _found(mode)


def _found(mode: Capturing) -> list[Layer]:
    if mode.layers:
        return mode.layers
    raise UncoveredOperation(
        "model: no attention weights were seen in it: it has no attention, or computes it in code of its own, such as "
        "a flash kernel. For a transformers model pass attn_implementation='eager' or 'sdpa' to from_pretrained; "
        "integrated_gradients explains any model."
    )


def of_query(relevance: Tensor, query: int | None, layers: list[Layer]) -> Tensor:
    """Return the row of one token, or the mean of all: (rows, tokens) of (rows, queries, tokens).

    Raises:
        ArgumentError: there is no such token, or it is the first where no token sees those behind it.
    """
    if query is None:
        return relevance.mean(1)
    tokens = relevance.shape[1]
    if not -tokens <= query < tokens:
        raise ArgumentError("query", f"{query} came", f"one of {tokens} tokens, from {-tokens} to {tokens - 1}")
    if tokens > 1 and query in (0, -tokens) and not any(bool(layer.weights.triu(1).any()) for layer in layers):
        raise ArgumentError(
            "query",
            f"{query} came, and attention is causal: the first token sees itself alone",
            "a later one",
            "The last token, query=-1, is what predicts the next.",
        )
    return relevance[:, query]
