"""One question asked in many forms gets one answer: forms of a target, of inputs, of arguments and of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import numpy
import pytest
import torch
from torch import Tensor, nn

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]
EACH = [2, 0, 1, 1, 0]

ONE_FOR_ALL: dict[str, Any] = {
    "numpy integer": numpy.int64(2),
    "list": [2] * 5,
    "tensor": torch.tensor([2] * 5),
    "column": torch.full((5, 1), 2),
    "int32 tensor": torch.full((5,), 2, dtype=torch.int32),
    "0-d tensor": torch.tensor(2),
    "tensor of one": torch.tensor([2]),
    "tuple": (2,),
    "list of tuples": [(2,)] * 5,
    "negative": -1,
    "array": numpy.full(5, 2),
    "callable": lambda output: output[:, 2],
    "callable that keeps a dimension": lambda output: output[:, 2:],
}
ONE_EACH: dict[str, Any] = {
    "tensor": torch.tensor(EACH),
    "column": torch.tensor(EACH)[:, None],
    "array": numpy.array(EACH),
    "list of tuples": [(index,) for index in EACH],
    "list of 0-d tensors": list(torch.tensor(EACH)),
    "list of numpy integers": list(numpy.array(EACH)),
}


def test_every_form_of_one_target_gives_the_same_bits(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x, target=2, batch_size=4).attributions
    for form, target in ONE_FOR_ALL.items():
        assert torch.equal(case(model, x, target=target, batch_size=4).attributions, expected), form


def test_every_form_of_a_target_each_gives_the_same_bits(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x, target=EACH, batch_size=4).attributions
    for form, target in ONE_EACH.items():
        assert torch.equal(case(model, x, target=target, batch_size=4).attributions, expected), form


def test_indices_into_two_dimensions_are_those_of_the_flat_output(case: Case, network: Make, draw: Make) -> None:
    flat, deep, x = network(classes=6), network(classes=6, depth=2), draw(5, 4)
    pairs = [(2, 0), (0, 1), (1, 1), (1, 0), (0, 0)]
    expected = case(flat, x, target=[2 * i + j for i, j in pairs]).attributions
    for target in (pairs, [list(pair) for pair in pairs], torch.tensor(pairs), numpy.array(pairs)):
        assert torch.equal(case(deep, x, target=target).attributions, expected)
    assert torch.equal(case(deep, x, target=(1, 1)).attributions, case(flat, x, target=3).attributions)


@attrs.define(eq=False)
class Outputs:
    """An object with logits, as language models return."""

    logits: Tensor
    loss: None = None


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda out: (out, None, "more"),
    "list": lambda out: [out],
    "dict of one tensor": lambda out: {"scores": out, "name": "x"},
    "dict with logits": lambda out: {"hidden": out * 2, "logits": out},
    "object with logits": Outputs,
}


@pytest.mark.parametrize("target", [None, 1])
def test_every_form_of_output_gives_the_same_bits(case: Case, network: Make, draw: Make, target: Any) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x, target=target).attributions
    for form, wrap in OUTPUTS.items():
        answer = case(lambda x, wrap=wrap: wrap(model(x)), x, target=target)
        assert torch.equal(answer.attributions, expected), form


def test_a_neuron_of_the_last_layer_is_the_output(case: Case, draw: Make) -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), draw(5, 4)
    expected = case(model, x, target=1, batch_size=2).attributions
    for unit in (axplain.neuron("2", 1), axplain.neuron(model[2], (1,)), axplain.neuron(model, lambda out: out[:, 1])):
        assert torch.equal(case(model, x, target=unit, batch_size=2).attributions, expected)


def test_a_tuple_is_the_concatenated_input(case: Case, network: Make, draw: Make) -> None:
    """Without noise, which is drawn for each tensor of a tuple by itself; see the next test."""
    model, x = network(), draw(5, 4)
    shapes: list[Any] = [0.3, draw(1, 4, key=1), draw(5, 4, key=2), axplain.distribution(draw(3, 4, key=3))]
    for baselines in shapes:
        given: dict[str, Any] = {"target": EACH, "stdev": 0.0, "baselines": baselines, "verify": False}
        whole = case(model, x, **given).attributions
        given["baselines"] = split(baselines)
        parts = case(model, (x[:, :3], x[:, 3:]), **given).attributions
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-9, atol=1e-12)


def split(baselines: Any) -> Any:
    if isinstance(baselines, Tensor):
        return baselines[:, :3], baselines[:, 3:]
    if isinstance(baselines, float):
        return baselines, baselines
    return axplain.distribution((baselines.rows[:, :3], baselines.rows[:, 3:]))


def test_noise_on_one_input_leaves_the_others_as_further_arguments(
    seeded_case: Case, network: Make, draw: Make
) -> None:
    model, x, other = network(), draw(5, 3), torch.full((5, 1), 0.4, dtype=torch.float64)
    if not any("stdev" in spec.parameters for spec in seeded_case.specs):
        pytest.skip("draws no noise")
    given = {"target": 1, "verify": False}
    both = seeded_case(model, (x, other), baselines=(0.1, 0.4), stdev=(0.2, 0.0), **given).attributions
    alone = seeded_case(model, x, additional_forward_args=other, stdev=0.2, **given).attributions
    torch.testing.assert_close(both[0], alone, rtol=1e-9, atol=1e-12)


def test_keyword_inputs_are_positional_inputs(case: Case, network: Make, draw: Make) -> None:
    model, x, y = network(features=6), draw(5, 4), draw(5, 2, key=1)
    dicts = {"baselines": {"b": 0.2, "a": 0.5}} if case.baseline != "none" else {}
    tuples = {"baselines": (0.5, 0.2)} if case.baseline != "none" else {}
    named = case(model, {"a": x, "b": y}, target=1, **dicts).attributions
    placed = case(model, (x, y), target=1, **tuples).attributions
    assert torch.equal(named["a"], placed[0]) and torch.equal(named["b"], placed[1])


def test_an_additional_argument_is_passed_by_position_or_by_keyword(case: Case, draw: Make) -> None:
    x, gain = draw(5, 4), draw(5, 4, key=1)

    def model(x: Tensor, gain: Tensor, power: int = 1) -> Tensor:
        return (torch.tanh(x * gain) ** power).sum(1)

    placed = case(model, x, additional_forward_args=(gain, 2), batch_size=2).attributions
    named = case(model, x, forward_kwargs={"gain": gain, "power": 2}, batch_size=2).attributions
    mixed = case(model, x, additional_forward_args=gain, forward_kwargs={"power": 2}, batch_size=2).attributions
    assert torch.equal(placed, named) and torch.equal(placed, mixed)
    for i in range(5):
        one = case(lambda x, i=i: model(x, gain[i], 2), x[i : i + 1]).attributions
        torch.testing.assert_close(placed[i : i + 1], one, rtol=1e-9, atol=1e-12)


def test_noise_around_a_method_is_the_mode_with_that_method_inside(noise_case: Case, network: Make, draw: Make) -> None:
    model, x, case = network(), draw(5, 4), noise_case
    assert case.noise, "the fixture gives cases with a noise mode around"
    outside = case(model, x, target=1)
    arguments = case.arguments()
    noise = {name: value for name, value in arguments.pop("noise").items() if name != "mode"}
    inner = {"use": arguments.pop("method")}
    inner |= {name: arguments.pop(name) for name in axplain.describe(case.method).parameters if name in arguments}
    inside = axplain.explain(model, x, case.noise, target=1, inner=inner, **noise, **arguments)
    assert torch.equal(outside.attributions, inside.attributions)
    assert outside.parameters == inside.parameters and outside.cost == inside.cost
