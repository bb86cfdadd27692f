"""Answers are detached and mirror the input: structure, shape, device, and dtype where it is floating."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_mirror(answer: Tensor, x: Tensor) -> None:
    assert answer.shape == x.shape and answer.dtype == x.dtype and answer.device == x.device
    assert not answer.requires_grad and answer.grad_fn is None
    assert bool(answer.isfinite().all()) and bool(answer.any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_is_mirrored_in_its_own_dtype(case: Case, network: Make, draw: Make, dtype: torch.dtype) -> None:
    x = draw(5, 4, dtype=dtype)
    answer = case(network(dtype=dtype), x, target=1, verify=dtype.itemsize > 2)
    check_mirror(answer.attributions, x)
    if answer.standard_errors is not None:
        check_mirror(answer.standard_errors, x)
    exact = case(network(), draw(5, 4), target=1).attributions
    error = (answer.attributions.double() - exact).abs().max() / exact.abs().max()
    assert error <= 64 * torch.finfo(dtype).eps


def test_a_tuple_is_mirrored_though_its_dtypes_differ(case: Case, network: Make, draw: Make) -> None:
    model = network(features=6)
    x = (draw(5, 4, dtype=torch.float32), draw(5, 2, key=1))
    answer = case(lambda a, b: model(a.double(), b), x, target=1)
    assert type(answer.attributions) is tuple and len(answer.attributions) == 2
    for attribution, tensor in zip(answer.attributions, x, strict=True):
        check_mirror(attribution, tensor)


def test_a_tuple_of_one_stays_a_tuple(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    answer = case(model, (x,), target=1)
    assert type(answer.attributions) is tuple
    assert torch.equal(answer.attributions[0], case(model, x, target=1).attributions)


def test_a_dict_is_mirrored_by_its_keys_in_their_order(case: Case, network: Make, draw: Make) -> None:
    model = network(features=6)
    x = {"right": draw(5, 4), "left": draw(5, 2, key=1)}
    answer = case(model, x, target=1)
    assert type(answer.attributions) is dict and list(answer.attributions) == ["right", "left"]
    for name, tensor in x.items():
        check_mirror(answer.attributions[name], tensor)
    positional = case(model, (x["right"], x["left"]), target=1)
    assert torch.equal(positional.attributions[0], answer.attributions["right"])
    assert torch.equal(positional.attributions[1], answer.attributions["left"])


def test_inputs_of_many_dimensions_are_mirrored(case: Case, network: Make, draw: Make) -> None:
    model, x = network(features=12), draw(2, 2, 3, 2)
    check_mirror(case(lambda image: model(image.flatten(1)), x, target=0).attributions, x)


def test_inputs_of_one_dimension_are_mirrored(case: Case, draw: Make) -> None:
    x = draw(5)
    answer = case(lambda x: torch.tanh(x) + x.square(), x)
    check_mirror(answer.attributions, x)
    one = case(lambda x: torch.tanh(x) + x.square(), x[2:3])
    torch.testing.assert_close(answer.attributions[2:3], one.attributions, rtol=1e-9, atol=1e-12)


def test_an_answer_is_the_callers_own_memory(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    model, x = network(), draw(5, 4)
    answer = case(model, x, target=1)
    again = answer.attributions.clone()
    with unchanged(model, x):
        answer.attributions.fill_(3.0)
    assert torch.equal(case(model, x, target=1).attributions, again)


def test_completeness_holds_where_it_is_claimed(checked_case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    target = [0, 1, 2, 1, 0]
    answer = checked_case(model, x, target=target, stdev=0.0)
    rows = torch.arange(5)
    difference = (model(x) - model(torch.full_like(x, 0.1)))[rows, target].detach()
    torch.testing.assert_close(answer.difference, difference, rtol=1e-9, atol=1e-12)
    residual = answer.attributions.sum(1) - difference
    torch.testing.assert_close(answer.residuals["completeness"], residual, rtol=1e-9, atol=1e-12)
    assert answer.residuals["completeness"].shape == (5,) and not answer.residuals["completeness"].requires_grad
    unchecked = checked_case(model, x, target=target, stdev=0.0, verify=False)
    assert unchecked.residuals == {} and unchecked.difference is None
    assert torch.equal(unchecked.attributions, answer.attributions)


def test_what_is_not_claimed_is_not_reported(case: Case, network: Make, draw: Make) -> None:
    answer = case(network(), draw(5, 4), target=1)
    assert ("completeness" in answer.residuals) == case.checked == (answer.difference is not None)


def test_an_answer_says_what_was_asked(case: Case, network: Make, draw: Make) -> None:
    answer = case(network(), draw(5, 4), target=[0, 1, 2, 1, 0])
    assert answer.method == (case.noise or case.method) and answer.target == [0, 1, 2, 1, 0]
    assert answer.spec_version == axplain.describe(answer.method).version
    assert answer.parameters.keys() == axplain.describe(answer.method).parameters.keys()
    if case.noise:
        assert answer.parameters["inner"]["use"] == case.method and answer.parameters["stdev"] == 0.1
    assert answer.provenance["seed"] == 7 and answer.provenance["torch"] == torch.__version__
    assert answer.seconds > 0


def test_the_predicted_class_is_resolved_per_example(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), 3 * draw(7, 4)
    predicted = model(x).argmax(1).tolist()
    assert len(set(predicted)) > 1, "a model that always says the same would prove nothing"
    asked, named = case(model, x), case(model, x, target=predicted)
    assert asked.target == named.target == predicted
    assert torch.equal(asked.attributions, named.attributions)


def test_repr_is_one_line_that_names_the_method(case: Case, network: Make, draw: Make) -> None:
    for x in (draw(5, 4), (draw(5, 1), draw(5, 3)), {"a": draw(5, 4)}):
        text = repr(case(network(), x, target=1))
        assert "\n" not in text and len(text) < 200
        assert repr(case.noise or case.method) in text and "target=1" in text


def test_the_dict_is_json(case: Case, network: Make, draw: Make) -> None:
    x = {"a": draw(2, 1), "b": draw(2, 3, key=1)}
    for target in (None, [0, 1], lambda output: output[:, 0], axplain.neuron("first", (1,))):
        answer = case(network(), x, target=target, batch_size=3)
        document = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
        assert document["attributions"]["b"] == answer.attributions["b"].tolist()
        assert document["method"] == answer.method and document["cost"]["forward_rows"] == answer.cost.forward_rows
        assert "attributions" not in answer.to_dict(tensors=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saving_and_loading_loses_nothing(
    case: Case, network: Make, draw: Make, tmp_path: Path, dtype: torch.dtype
) -> None:
    x = (draw(3, 1, dtype=dtype), draw(3, 3, key=1, dtype=dtype))
    model = network(dtype=dtype)  # held: an explanation refers to it weakly, and its fingerprint is taken on saving
    answer = case(model, x, target=[1, 0, 2], verify=dtype.itemsize > 2)
    loaded = axplain.Explanation.load(answer.save(tmp_path / "answer.safetensors"))
    for before, after in zip(answer.attributions, loaded.attributions, strict=True):
        assert torch.equal(before, after) and before.dtype == after.dtype
    document, expected = (json.loads(json.dumps(each.to_dict())) for each in (loaded, answer))
    assert len(document["provenance"].pop("fingerprint")) == 64 and document == expected
    assert repr(loaded) == repr(answer)


def test_the_fingerprint_follows_the_weights(network: Make, draw: Make, tmp_path: Path) -> None:
    def fingerprint(model: Any) -> Any:
        answer = axplain.explain(model, draw(5, 4), "saliency")
        return axplain.Explanation.load(answer.save(tmp_path / "f")).provenance["fingerprint"]

    model, other = network(), network()
    assert fingerprint(model) == fingerprint(other)
    other.scale.add_(1e-9)
    assert fingerprint(model) != fingerprint(other)


def test_top_gives_the_largest_magnitudes_over_all_inputs(case: Case, network: Make, draw: Make) -> None:
    x = (draw(3, 2), draw(3, 2, 2, key=1))
    model = network(features=6)
    answer = case(lambda a, b: model(a, b.flatten(1)), x, target=1)
    everything: dict[tuple[str, tuple[int, ...]], float]
    everything = {("x[0]", (i,)): float(answer.attributions[0][2, i]) for i in range(2)}
    everything |= {("x[1]", (i, j)): float(answer.attributions[1][2, i, j]) for i in range(2) for j in range(2)}
    ranked = sorted(everything, key=lambda place: -abs(everything[place]))
    for k in (1, 3, 6, 50):
        top = answer.top(k, example=2)
        assert [(feature.input, feature.index) for feature in top] == ranked[:k]
        assert all(feature.value == everything[feature.input, feature.index] for feature in top)
        assert all(feature.example == 2 and math.isfinite(feature.value) for feature in top)


def test_an_explanation_can_be_pickled_and_says_what_stood_for_absence(network: Make, draw: Make) -> None:
    answer = axplain.explain(network(), draw(5, 4), target=1, baselines=0.5, verify=False)
    copy = pickle.loads(pickle.dumps(answer))
    assert torch.equal(copy.attributions, answer.attributions) and copy.model is None
    assert copy.provenance["baselines"] == "0.5, 1 for each example"
