"""Attention rollout and relevance: by hand, in every spelling of attention, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

import axplain
from axplain import ArgumentError, UnsupportedModel
from axplain.errors import UncoveredOperation

TOKENS, WIDTH, HEADS = 4, 6, 2
METHODS = ("attention_rollout", "attention_relevance")


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = seeded(3, TOKENS, WIDTH)
TARGET = torch.tensor([0, 1, 1])


def matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def functional(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.matmul(q, k.mT) * q.shape[-1] ** -0.5
    weights = fn.dropout(fn.softmax(scores, dim=-1, dtype=torch.float64).to(q.dtype), 0.1, False)
    return torch.matmul(weights, v)


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=3), v)


def folded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    flat = [t.flatten(0, 1) for t in (q, k, v)]
    weights = torch.bmm(flat[0] / math.sqrt(q.shape[-1]), flat[1].mT).softmax(-1)
    return torch.bmm(weights, flat[2]).view(q.shape)


def split(x: Tensor) -> Tensor:
    """(batch, heads, tokens, width of a head)."""
    heads: Tensor = x.reshape(len(x), x.shape[1], HEADS, -1).transpose(1, 2)
    return heads


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
SPELLINGS: dict[str, Attend] = {
    "matmul": matmul,
    "functional": functional,
    "einsum": einsum,
    "sdpa": fn.scaled_dot_product_attention,
}


class Block(nn.Module):
    """One encoder layer with weights of its own; `attend` is the spelling, None is `nn.MultiheadAttention`."""

    def __init__(
        self, attend: Attend | None, seed: int, need_weights: bool = False, sequence_first: bool = False
    ) -> None:
        super().__init__()
        self.attend, self.need_weights, self.sequence_first = attend, need_weights, sequence_first
        self.norm = nn.LayerNorm(WIDTH, dtype=torch.float64)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=not sequence_first, dtype=torch.float64)
        for i, parameter in enumerate(self.attention.parameters()):
            parameter.data = 0.7 * seeded(*parameter.shape, seed=10 * seed + i)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        if self.attend is None:
            normal = normal.transpose(0, 1) if self.sequence_first else normal
            new = self.attention(normal, normal, normal, need_weights=self.need_weights)[0]
            mixed: Tensor = new.transpose(0, 1) if self.sequence_first else new
            return x + mixed
        q, k, v = fn.linear(normal, self.attention.in_proj_weight, self.attention.in_proj_bias).chunk(3, -1)
        heads = [split(t) for t in (q, k, v)]
        out: Tensor = self.attention.out_proj(self.attend(*heads).transpose(1, 2).flatten(2))
        return x + out


class Encoder(nn.Module):
    def __init__(self, attend: Attend | None, **given: Any) -> None:
        super().__init__()
        self.first, self.second = Block(attend, 1, **given), Block(attend, 2, **given)
        self.head = nn.Linear(WIDTH, 2, dtype=torch.float64)
        self.head.weight.data = seeded(2, WIDTH, seed=5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(self.first(x))[:, 0]))
        return out


MODEL = Encoder(matmul).eval()


def maps(block: Block, x: Tensor) -> Tensor:
    """(batch, heads, tokens, tokens), written out."""
    normal = block.norm(x)
    q, k, _ = fn.linear(normal, block.attention.in_proj_weight, block.attention.in_proj_bias).chunk(3, -1)
    q, k = (split(t) for t in (q, k))
    return torch.softmax(q @ k.mT / math.sqrt(WIDTH // HEADS), -1)


def by_hand(fuse: Callable[[Tensor], Tensor], residual: float = 0.5) -> Tensor:
    eye = torch.eye(TOKENS, dtype=torch.float64)
    with torch.no_grad():
        first = (1 - residual) * fuse(maps(MODEL.first, X)) + residual * eye
        second = (1 - residual) * fuse(maps(MODEL.second, MODEL.first(X))) + residual * eye
    return (second / second.sum(-1, keepdim=True)) @ (first / first.sum(-1, keepdim=True))


def explained(model: Any, method: str, x: Tensor = X, **given: Any) -> Tensor:
    target = {"target": TARGET[: len(x)]} if method == "attention_relevance" else {}
    found: Tensor = axplain.explain(model, x, method, **(target | given)).attributions
    return found


def close(found: Tensor, expected: Tensor, within: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=within, atol=within)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("residual", [0.0, 0.5, 0.8, 1.0])
def test_rollout_of_two_layers_by_hand(fusion: str, residual: float) -> None:
    fuse: Any = {"mean": lambda w: w.mean(1), "max": lambda w: w.amax(1), "min": lambda w: w.amin(1)}[fusion]
    whole = by_hand(fuse, residual)
    given: dict[str, Any] = {"head_fusion": fusion, "residual_weight": residual}
    for query in (0, 1, -1):
        close(explained(MODEL, "attention_rollout", query=query, **given), whole[:, query])
    close(explained(MODEL, "attention_rollout", query=None, **given), whole.mean(1))


def test_rollout_gives_shares_of_one() -> None:
    close(explained(MODEL, "attention_rollout").sum(1), torch.ones(3, dtype=torch.float64))


def test_discarded_weights_are_the_smallest_of_each_map() -> None:
    def fuse(weights: Tensor) -> Tensor:
        one = weights.mean(1)
        for example in one:
            for place in sorted(range(TOKENS**2), key=lambda i: float(example.flatten()[i]))[:5]:
                example.view(-1)[place] = 0.0
        return one

    close(explained(MODEL, "attention_rollout", discard_ratio=0.34), by_hand(fuse)[:, 0])  # 0.34 * 16 = 5.4
    everything = explained(MODEL, "attention_rollout", discard_ratio=1.0)
    close(everything, torch.eye(TOKENS, dtype=torch.float64)[:1].expand(3, -1))


def relevance_by_hand(x: Tensor, target: int) -> Tensor:
    """The update rule for one example, its gradients by central differences of the maps, element by element."""

    def rest(first: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor]:
        """F where the maps of the layers are given; the second layer's own where they are not."""

        def through(block: Block, h: Tensor, weights: Tensor) -> Tensor:
            v = fn.linear(block.norm(h), block.attention.in_proj_weight, block.attention.in_proj_bias).chunk(3, -1)[2]
            mixed = weights @ split(v)
            out: Tensor = h + block.attention.out_proj(mixed.transpose(1, 2).flatten(2))
            return out

        hidden = through(MODEL.first, x, first)
        second = maps(MODEL.second, hidden) if second is None else second
        value = MODEL.head(torch.tanh(through(MODEL.second, hidden, second)[:, 0]))[0, target]
        return value, second

    def slopes(weights: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        found, step = torch.zeros_like(weights), 1e-6
        for place in range(weights.numel()):
            moved = torch.zeros_like(weights)
            moved.view(-1)[place] = step
            found.view(-1)[place] = (value(weights + moved) - value(weights - moved)) / (2 * step)
        return found

    with torch.no_grad():
        first = maps(MODEL.first, x)
        second = rest(first, None)[1]
        pairs = (
            (first, slopes(first, lambda w: rest(w, None)[0])),
            (second, slopes(second, lambda w: rest(first, w)[0])),
        )
        related = torch.eye(TOKENS, dtype=torch.float64)
        for weights, gradient in pairs:
            related = related + (weights * gradient).clamp(min=0).mean(1)[0] @ related
    return related


def test_relevance_of_two_layers_by_hand() -> None:
    whole = torch.stack([relevance_by_hand(X[i : i + 1], int(TARGET[i])) for i in range(3)])
    for query in (0, 2):
        close(explained(MODEL, "attention_relevance", query=query), whole[:, query], 1e-8)
    close(explained(MODEL, "attention_relevance", query=None), whole.mean(1), 1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spelling", [*SPELLINGS, "module", "module with weights", "sequence first", "frozen"])
def test_every_spelling_of_attention_gives_the_same(method: str, spelling: str) -> None:
    if spelling in SPELLINGS:
        twin = Encoder(SPELLINGS[spelling])
    elif spelling == "frozen":
        twin = Encoder(matmul).requires_grad_(False)
    else:
        twin = Encoder(None, need_weights="weights" in spelling, sequence_first="sequence" in spelling)
    close(explained(twin.eval(), method), explained(MODEL, method))


@pytest.mark.parametrize("method", METHODS)
def test_heads_folded_by_hand_are_refused_together_and_explained_one_by_one(method: str) -> None:
    twin = Encoder(folded).eval()
    with pytest.raises(UncoveredOperation, match=r"'first'.*folded into the 3 examples.*batch_size=1"):
        explained(twin, method)
    close(explained(twin, method, batch_size=1), explained(MODEL, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm_first", [False, True])
def test_fused_encoder_layers_are_seen_into(method: str, norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 8, 0.1, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer.double(), 2, enable_nested_tensor=not norm_first).eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    given: dict[str, Any] = {"forward_kwargs": {"src_key_padding_mask": torch.tensor([[False] * 3 + [True]] * 3)}}
    target: dict[str, Any] = {"target": (0, 1)} if method == "attention_relevance" else {}
    found = axplain.explain(encoder, X, method, **target, **given).attributions
    assert torch.backends.mha.get_fastpath_enabled() is fast
    assert found.shape == (3, TOKENS) and not found[:, 3].any() and bool(found[:, :3].all())


@pytest.mark.parametrize("method", METHODS)
def test_batch_chunks_and_one_at_a_time_agree(method: str) -> None:
    whole = explained(MODEL, method)
    for size in (1, 2):
        close(explained(MODEL, method, batch_size=size), whole)
    with torch.inference_mode():
        close(explained(MODEL, method), whole)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(method: str) -> None:
    model = Encoder(None).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = X.clone().requires_grad_()
    explained(model, method, x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(p.grad is not None or vars(p) for p in model.parameters()) and x.grad is None and not vars(x)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def causal(x: Tensor) -> Tensor:
    """A decoder of one layer: x sees what came before."""
    q = x.unsqueeze(1)
    out: Tensor = x + fn.scaled_dot_product_attention(q, q, q, is_causal=True).squeeze(1)
    return out[:, -1]


@pytest.mark.parametrize("method", METHODS)
def test_a_causal_decoder_is_explained_at_its_last_token(method: str) -> None:
    for query in (0, -TOKENS):
        with pytest.raises(ArgumentError, match=r"query: .* sees itself alone.*query=-1"):
            explained(causal, method, query=query)
    assert bool(explained(causal, method, query=-1).isfinite().all())
    seen = explained(causal, method, query=1) if method == "attention_rollout" else None
    assert seen is None or (not seen[:, 2:].any() and bool(seen[:, :2].all()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("query", [TOKENS, -TOKENS - 1])
def test_a_token_that_is_not_there_is_refused(method: str, query: int) -> None:
    with pytest.raises(ArgumentError, match=f"query: {query} came; expected one of 4 tokens, from -4 to 3"):
        explained(MODEL, method, query=query)


class Cross(nn.Module):
    """Queries from the first input, keys and values from the second; as many of each."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return matmul(x.unsqueeze(1), context.unsqueeze(1), context.unsqueeze(1))[:, 0, 0]


class Branches(nn.Module):
    """Two attentions side by side, of the same tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Block(matmul, 1), Block(matmul, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.left(x) + self.right(x)
        return out[:, 0]


def decoder(x: Tensor) -> Tensor:
    """An encoder, self-attention of another stream, then attention of that to the encoder: equal lengths."""
    q, other = x.unsqueeze(1), (x.flip(1) * 2).unsqueeze(1)
    memory, mine = matmul(q, q, q), matmul(other, other, other)
    return matmul(mine, memory, memory)[:, 0, 0]


def pooled(x: Tensor) -> Tensor:
    q = x.unsqueeze(1)
    h = matmul(q, q, q)
    return matmul(h[:, :, :1], h, h)[:, 0, 0]


def shrinking(x: Tensor) -> Tensor:
    q = x.unsqueeze(1)
    h = matmul(q, q, q)[:, :, ::2]
    return matmul(h, h, h)[:, 0, 0]


def transposed(x: Tensor) -> Tensor:
    return (x.mT @ (x @ x.mT).softmax(-1).mT).mT[:, 0]


def over_queries(x: Tensor) -> Tensor:
    return ((x @ x.mT).softmax(1) @ x)[:, 0]


def talking(x: Tensor) -> Tensor:
    q = split(x)
    mixed = (q @ q.mT).softmax(-1).permute(0, 2, 3, 1) @ torch.ones(HEADS, HEADS, dtype=torch.float64)
    return (mixed.permute(0, 3, 1, 2) @ q)[:, 0, 0]


def one_by_one(x: Tensor) -> Tensor:
    return ((x @ x.mT).softmax(-1).unsqueeze(-1) * x.unsqueeze(1)).sum(2)[:, 0]


TRACED = torch.jit.trace(nn.Linear(WIDTH, 2).double(), X)  # type: ignore[no-untyped-call]
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "cross": (Cross(), (X, X + 1), "cross-attention"),
    "branches": (Branches(), X, "'right'.*branches side by side"),
    "decoder": (decoder, X, "do not all come from the tokens of the layer before"),
    "pooled": (pooled, X, "1 queries look at 4 keys"),
    "shrinking": (shrinking, X, "it has 2 tokens and the first layer has 4"),
    "transposed": (transposed, X, "rearranged"),
    "over queries": (over_queries, X, "rearranged"),
    "talking heads": (talking, X, "rearranged"),
    "one by one": (one_by_one, X, "weighted one by one"),
    "none": (lambda x: x.sum(1).tanh(), X, "no attention weights were seen.*attn_implementation"),
    "class probabilities": (lambda x: x[:, 0].softmax(-1) @ X[0].T, X, "no attention weights were seen"),
    "scripted": (TRACED, X, "scripted.*attention weights must be seen"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", REFUSED)
def test_other_attention_is_refused_by_name(method: str, case: str) -> None:
    model, x, words = REFUSED[case]
    target: dict[str, Any] = {"target": lambda out: out.flatten(1)[:, 0]} if method == "attention_relevance" else {}
    with pytest.raises(UncoveredOperation, match=words):
        axplain.explain(model, x, method, **target)


def test_relevance_of_a_target_without_gradient_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="does not depend differentiably"):
        axplain.explain(lambda x: matmul(x, x, x)[:, 0].detach(), X, "attention_relevance", target=0)


def test_a_model_that_restores_its_grad_mode_is_explained() -> None:
    class Restoring(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                hidden = self.second(self.first(x))
            out: Tensor = self.head(torch.tanh(hidden[:, 0]))
            return out

    close(explained(Restoring(matmul).eval(), "attention_relevance"), explained(MODEL, "attention_relevance"))


def test_rollout_takes_no_target() -> None:
    with pytest.raises(ArgumentError, match="explains no target"):
        axplain.explain(MODEL, X, "attention_rollout", target=0)


def test_relevance_explains_a_neuron() -> None:
    found = axplain.explain(MODEL, X, "attention_relevance", target=axplain.neuron("head", 1)).attributions
    close(found, axplain.explain(MODEL, X, "attention_relevance", target=1).attributions)
