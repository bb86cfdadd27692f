"""Relevance of transformers as their users have them: MiniLM with its weights, tiny models from configurations."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import pytest
import torch
from torch import Tensor

import axplain

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model here is a package or a configuration
transformers: Any = pytest.importorskip("transformers")

from tests.integration.test_deeplift_text import (  # noqa: E402 - it imports what may be absent
    ROUNDED,
    ROUNDED_ALWAYS,
    SMOLLM2,
    TEXTS,
    TINY,
    Classes,
    Question,
    by_attention,
    needs_bert,
    tiny_question,
)

#: the largest gap, as a fraction of F(x)
WITHIN: Final = {torch.float32: 1e-5, torch.float64: 1e-10}
CLOSE: Final[dict[str, Any]] = {"rtol": 0, "atol": 1e-10}
#: where one spelling of a model has a sum more than another, and so a stabiliser
STABILISED: Final[dict[str, Any]] = {"rtol": 0, "atol": 5e-4}
question = cache(Question)


@pytest.fixture(scope="module", autouse=True)
def _models_are_let_go() -> Iterator[None]:
    yield
    question.cache_clear()


def explain(asked: Question, method: str = "attnlrp", x: Tensor | None = None, **arguments: Any) -> axplain.Explanation:
    arguments = {"additional_forward_args": (asked.mask,), **arguments}
    return axplain.explain(asked.model, asked.x if x is None else x, method, target=asked.score, **arguments)


def values(asked: Question) -> Tensor:
    with torch.no_grad():
        return asked.score(asked.model(asked.x, asked.mask))


def missed(explanation: axplain.Explanation, value: Tensor) -> Tensor:
    """Return by how much relevance and what was absorbed miss F(x), for each example."""
    absorbed = torch.tensor(explanation.notes["absorbed"], dtype=torch.float64)
    gap: Tensor = (explanation.attributions.double().flatten(1).sum(1) + absorbed - value.double()).abs()
    assert (explanation.residuals["conservation"].abs() - gap).abs().max() <= 1e-6 * value.abs().max()
    return gap


@needs_bert
@by_attention
@pytest.mark.parametrize("dtype", WITHIN, ids=["float32", "float64"])
@pytest.mark.parametrize("weights", ["softmax", "constant"])
def test_minilm_loses_nothing_of_the_target(weights: str, dtype: torch.dtype, attention: str) -> None:
    asked = question(attention, dtype)
    value = values(asked)
    found = explain(asked, "lrp", report=True, attention=weights)
    assert (missed(found, value) <= WITHIN[dtype] * value.abs().max()).all()


@needs_bert
@by_attention
def test_the_report_runs_row_by_row_and_changes_nothing(attention: str) -> None:
    """Without a stabiliser: eager attention adds a mask to a padded batch and none to a row alone, one sum less."""
    asked = question(attention, torch.float64)
    found = explain(asked, epsilon=0.0, report=True)
    torch.testing.assert_close(found.attributions, explain(asked, epsilon=0.0).attributions, **CLOSE)


@needs_bert
def test_a_text_about_eating_is_near_the_meal_because_of_its_words_for_eating_and_food() -> None:
    """Two words have most of the relevance, and no word has much against it. The gradient knows no such thing."""
    asked = question("sdpa", torch.float32)
    words = asked.tokens.tokenize(TEXTS[0], add_special_tokens=True)
    for attention in ("softmax", "constant"):
        strength = explain(asked, "lrp", attention=attention).attributions[0].sum(1)
        assert {words[i] for i in strength.topk(2).indices.tolist()} == {"eating", "food"}
        assert strength.topk(2).values.sum() > 0.7 * strength.sum()
        assert strength.min() > -0.01 * strength.sum()
    gradient = explain(asked, "input_x_gradient").attributions[0].sum(1)
    assert gradient.min() < -gradient.max()


@needs_bert
def test_both_kinds_of_attention_give_the_same_relevance() -> None:
    eager, fused = (explain(question(name, torch.float64), epsilon=0.0).attributions for name in ("eager", "sdpa"))
    torch.testing.assert_close(eager, fused, **CLOSE)
    for name in ("eager", "sdpa"):
        torch.testing.assert_close(explain(question(name, torch.float64)).attributions, fused, **STABILISED)


@needs_bert
@by_attention
def test_a_text_in_a_padded_batch_is_explained_as_if_it_were_alone(attention: str) -> None:
    asked = question(attention, torch.float64)
    together, stabilised = (explain(asked, epsilon=epsilon).attributions for epsilon in (0.0, 1e-6))
    for i, text in enumerate(TEXTS):
        x, mask = asked.embedded([text])
        length = x.shape[1]
        given: dict[str, Any] = {"x": x, "additional_forward_args": (mask,)}
        torch.testing.assert_close(together[i, :length], explain(asked, epsilon=0.0, **given).attributions[0], **CLOSE)
        torch.testing.assert_close(stabilised[i, :length], explain(asked, **given).attributions[0], **STABILISED)
        assert not together[i, length:].any() and not stabilised[i, length:].any(), "padding has no say"
    assert int(asked.mask.sum()) < asked.mask.numel(), "there is padding"


@by_attention
@pytest.mark.parametrize("name", TINY)
def test_models_from_configurations_lose_nothing_without_a_patch(name: str, attention: str) -> None:
    model, x, _, arguments = tiny_question(name, attention)
    with torch.no_grad():
        value = model(x, *arguments)[:, 1]
    found = axplain.explain(model, x, "attnlrp", target=1, report=True, additional_forward_args=arguments)
    within = 1e-6 if name in ROUNDED_ALWAYS or (name, attention) in ROUNDED else 1e-10
    assert (missed(found, value) <= within * value.abs().max()).all()


@pytest.mark.parametrize("name", TINY)
def test_both_kinds_of_attention_of_tiny_models_agree_where_nothing_is_stabilised(name: str) -> None:
    eager, x, _, arguments = tiny_question(name, "eager")
    fused = tiny_question(name, "sdpa")[0]
    fused.load_state_dict(eager.state_dict())
    given: dict[str, Any] = {"target": 1, "epsilon": 0.0, "additional_forward_args": arguments}
    one, other = (axplain.explain(model, x, "attnlrp", **given).attributions for model in (eager, fused))
    within = 1e-5 if name in ROUNDED_ALWAYS or any(name == rounded for rounded, _ in ROUNDED) else 1e-10
    torch.testing.assert_close(one, other, rtol=0, atol=within * float(one.abs().max()))


@pytest.mark.skipif(
    importlib.util.find_spec(SMOLLM2) is None or os.environ.get("AXPLAIN_LARGE") != "1",
    reason=f"needs {SMOLLM2}, gguf and accelerate, and AXPLAIN_LARGE=1",
)
def test_smollm2_says_paris_because_of_france() -> None:
    found = importlib.util.find_spec(SMOLLM2)
    assert found is not None and found.submodule_search_locations is not None
    where: dict[str, Any] = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    folder = found.submodule_search_locations[0]
    tokens = transformers.AutoTokenizer.from_pretrained(folder, **where)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()
    ids = tokens("The capital of France is", return_tensors="pt").input_ids
    paris = tokens(" Paris", add_special_tokens=False).input_ids[0]
    x = model.get_input_embeddings().weight.detach()[ids]
    causal, mask = Classes(model), torch.ones_like(ids)
    with torch.no_grad():
        value = causal(x, mask)[:, paris]
    explanation = axplain.explain(causal, x, "attnlrp", target=paris, report=True, additional_forward_args=(mask,))
    assert (missed(explanation, value) <= 1e-5 * value.abs()).all()
    words = [tokens.decode(token).strip() for token in ids[0].tolist()]
    before = explanation.attributions[0].sum(1)[:-1]  # the last token is where the next one is told
    assert words[int(before.argmax())] == "France"
