"""Models in training, and models that give two answers to one question, are explained with a warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]


def state(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before: dict[str, Any], model: nn.Module) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:the model (draws|is not):axplain.AxplainWarning")
@pytest.mark.filterwarnings("ignore:.*the attributions of example:axplain.AxplainWarning")
def test_batch_norm_and_dropout_in_training_are_said_and_their_state_is_kept(
    case: Case, network: Make, draw: Make
) -> None:
    model, x = network().train(), draw(5, 4)
    before = state(model)
    if case.by_rules:
        with (
            pytest.warns(axplain.AxplainWarning, match="training mode"),
            pytest.raises(axplain.UncoveredOperation, match=r"'batch_norm', called in module 'norm'.*model.eval\(\)"),
        ):
            case(model, x, target=1)
        return
    with pytest.warns(axplain.AxplainWarning, match=r"training mode, where norm \(BatchNorm1d\), hidden\.1") as caught:
        case(model, x, target=1)
    assert "model.eval()" in str(caught[0].message) and "axplain.evaluating(model)" in str(caught[0].message)
    assert same(before, model) and all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:the model (draws|is not|is in):axplain.AxplainWarning")
def test_the_state_of_a_model_in_training_is_kept_on_failure(case: Case, network: Make, draw: Make) -> None:
    model, x = network().train(), draw(5, 4)
    before = state(model)
    with pytest.raises(axplain.ArgumentError, match="target"):
        case(model, x, target=99)
    assert same(before, model) and all(module.training for module in model.modules())


def test_only_modules_that_behave_differently_are_reason_to_warn(case: Case, draw: Make) -> None:
    layers = (nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.0), nn.LayerNorm(5), nn.Linear(5, 3))
    model = nn.Sequential(*layers).double().train()
    case(model, draw(5, 4), target=1, verify=False)  # any warning is an error in these tests


def test_a_norm_in_evaluation_inside_a_model_in_training_is_no_reason_to_warn(
    case: Case, network: Make, draw: Make
) -> None:
    model = network().train()
    model.norm.eval()
    model.hidden.eval()
    case(model, draw(5, 4), target=1)


def test_evaluating_gives_the_answer_of_evaluation_and_leaves_the_mode(
    case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x).attributions
    model.train()
    model.hidden.eval()
    wrapped = axplain.evaluating(model)
    with unchanged(model, x):
        answer = case(wrapped, x)
        assert torch.equal(answer.attributions, expected)
        with pytest.raises(axplain.ArgumentError):
            case(wrapped, x, target=99)
    unit = axplain.neuron(model.last, 1)
    behind = case(wrapped, x, target=unit).attributions
    assert torch.equal(behind, case(model.eval(), x, target=unit).attributions)


def test_evaluating_passes_arguments_and_outputs_through(network: Make, draw: Make) -> None:
    model, x = network().train(), draw(5, 4)
    wrapped = axplain.evaluating(model)
    offset = draw(5, 4, key=1)
    inside = wrapped(x, offset=offset)
    assert model.training and torch.equal(inside, model.eval()(x, offset=offset))
    with pytest.raises(TypeError):
        model.train()
        wrapped(x, gain=None)
    assert model.training and model.norm.training


@attrs.define(eq=False)
class Restless:
    """A model whose answers drift with every pass, without any generator."""

    model: nn.Module
    passes: int = 0

    def __call__(self, x: Tensor) -> Any:
        self.passes += 1
        return self.model(x) * (1 + 0.1 * self.passes)


@pytest.mark.filterwarnings("ignore:.*the attributions of example:axplain.AxplainWarning")
@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_a_model_that_drifts_from_pass_to_pass_is_said_in_every_call(
    checked_case: Case, network: Make, draw: Make, batch_size: Any
) -> None:
    model = Restless(network())
    for _ in range(2):
        with pytest.warns(axplain.AxplainWarning, match="not deterministic"):
            checked_case(model, draw(5, 4), target=1, batch_size=batch_size)


def test_a_drifting_model_is_not_said_where_nobody_wants_to_know(checked_case: Case, network: Make, draw: Make) -> None:
    checked_case(Restless(network()), draw(5, 4), target=1, verify=False)


@pytest.mark.filterwarnings("ignore:the model is not deterministic:axplain.AxplainWarning")
@pytest.mark.filterwarnings("ignore:.*the attributions of example:axplain.AxplainWarning")
def test_a_model_that_draws_random_numbers_is_said(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    net, x = network(), draw(5, 4)
    with unchanged(net, x), pytest.warns(axplain.AxplainWarning, match="draws random numbers"):
        case(lambda x: net(x) + torch.rand(len(x), 1, dtype=x.dtype), x, target=1)


@pytest.mark.filterwarnings("ignore:the model draws:axplain.AxplainWarning")
def test_the_warning_points_at_the_caller(network: Make, draw: Make) -> None:
    with pytest.warns(axplain.AxplainWarning, match="training mode") as caught:
        axplain.explain(network().train(), draw(5, 4), "saliency", target=1, verify=False, batch_size=8)
    assert {warning.filename for warning in caught} == {__file__}
