"""Calls work wherever they are made and whatever the inputs' memory looks like; models may write over their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]
CONTEXTS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
}


@pytest.mark.parametrize("target", [None, 1])
def test_the_callers_grad_mode_does_not_matter(
    case: Case, network: Make, draw: Make, unchanged: Make, target: Any
) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x, target=target).attributions
    for name, context in CONTEXTS.items():
        with context(), unchanged(model, x):
            assert torch.equal(case(model, x, target=target).attributions, expected), name


def test_everything_may_be_made_in_inference_mode(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    def ask(model: nn.Module) -> Tensor:
        x, offset, gain = draw(5, 4), draw(5, 4, key=1), draw(5, key=2)
        baselines = draw(5, 4, key=3)
        with unchanged(model, x, offset, gain, baselines):
            answer = case(
                model,
                x,
                target=torch.tensor([2, 0, 1, 1, 0]),
                baselines=baselines,
                forward_kwargs={"offset": offset, "gain": gain},
                verify=False,
            )
        attributions: Tensor = answer.attributions
        return attributions

    model = network()
    expected = ask(model)
    with torch.inference_mode():
        assert torch.equal(ask(model), expected)
        made_inside = draw(5, 4)
    assert made_inside.is_inference()
    assert torch.equal(case(model, made_inside, target=1).attributions, case(model, draw(5, 4), target=1).attributions)


def test_what_a_model_keeps_from_a_call_does_not_break_its_training(case: Case, network: Make, draw: Make) -> None:
    """A tensor that a model makes in its first pass and keeps must be of use in a later backward pass."""
    net, x, kept = network(), draw(5, 4), {}

    def model(x: Tensor) -> Tensor:
        if "table" not in kept:
            kept["table"] = torch.ones(3, dtype=torch.float64) * 2
        out: Tensor = net(x) * kept["table"] * net.last.bias
        return out

    with torch.inference_mode():
        case(model, x, target=1)
    torch.autograd.backward(model(x).sum())
    assert net.last.bias.grad is not None


def test_the_default_device_does_not_matter(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    """Everything lies where the inputs are, though new tensors would be made elsewhere."""
    model, x, baselines = network(), draw(5, 4), draw(1, 4, key=1)
    given = {"target": [2, 0, 1, 1, 0], "baselines": baselines, "verify": True, "batch_size": 3}
    expected = case(model, x, **given)
    with torch.device("meta"), unchanged(model, x, baselines):
        answer = case(model, x, **given)
        predicted = case(model, x)
    assert torch.equal(answer.attributions, expected.attributions) and predicted.attributions.device == x.device


def test_a_call_may_be_made_from_the_progress_of_another(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x, target=1, batch_size=2).attributions
    inner: list[Tensor] = []

    def ask(done: int, total: int) -> None:
        inner.append(case(model, x, target=1, batch_size=2).attributions)

    outer = case(model, x, target=1, batch_size=64, progress=ask).attributions
    torch.testing.assert_close(outer, expected, rtol=1e-9, atol=1e-12)
    assert inner and all(torch.equal(answer, expected) for answer in inner)


def test_autocast_of_the_caller_is_used_and_kept(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    model, x = network(dtype=torch.float32), draw(5, 4, dtype=torch.float32)
    full = case(model, x, target=1).attributions
    with torch.autocast("cpu", torch.bfloat16), unchanged(model, x):
        answer = case(model, x, target=1, verify=False).attributions
    assert answer.dtype == torch.float32
    error = (answer - full).abs().max() / full.abs().max()
    assert 0 < error <= 0.5, "bfloat16 passes round, and stay close"


def test_training_goes_on_inside_the_same_autocast(case: Case, network: Make, draw: Make) -> None:
    """Autocast keeps low-precision copies of weights; copies made without a graph would end the training."""
    model, x = network(dtype=torch.float32), draw(5, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        case(model, x, target=1, verify=False)
        case(model, x, verify=False)
        loss = model(x).float().square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "not contiguous": lambda x: x.t().contiguous().t(),
    "strided": lambda x: torch.stack([x, x], 2)[..., 1],
    "offset": lambda x: torch.cat([x[:1], x])[1:],
    "flipped twice": lambda x: x.flip(1).flip(1),
    "requires grad": lambda x: x.clone().requires_grad_(),
    "not a leaf": lambda x: x.clone().requires_grad_() * 1.0,
    "a view of a leaf": lambda x: x.clone().requires_grad_()[:],
    "a parameter": lambda x: nn.Parameter(x.clone()),
    "a subclass": lambda x: x.as_subclass(type("Marked", (Tensor,), {})),
}


def test_the_memory_of_an_input_does_not_matter(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x, target=1, batch_size=3).attributions
    for kind, make in MEMORY.items():
        other = make(x)
        with unchanged(model, other):
            answer = case(model, other, target=1, batch_size=3).attributions
        assert torch.equal(answer, expected) and not answer.requires_grad, kind


def test_an_expanded_input_is_explained(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    model, row, column = network(), draw(1, 4), draw(5, 1)
    for x in (row.expand(5, 4), column.expand(5, 4)):
        with unchanged(model, x):
            answer = case(model, x, target=1, batch_size=3).attributions
        assert torch.equal(answer, case(model, x.clone(), target=1, batch_size=3).attributions)


def test_arguments_that_require_gradients_are_used_as_they_are(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    plain = {"offset": draw(5, 4, key=1), "gain": draw(5, key=2)}
    graph = {name: value.clone().requires_grad_() * 1.0 for name, value in plain.items()}
    expected = case(model, x, target=1, forward_kwargs=plain, verify=False).attributions
    answer = case(model, x, target=1, forward_kwargs=graph, verify=False).attributions
    assert torch.equal(answer, expected) and not answer.requires_grad


class InPlace(nn.Module):
    """Writes over its own input first, then over what its layers return."""

    def __init__(self, inner: nn.Module, form: str) -> None:
        super().__init__()
        self.inner, self.form = inner, form
        self.rectify = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "function":
            nn.functional.relu_(x)
        elif self.form == "module":
            self.rectify(x)
        elif self.form == "item":
            x[:, 0] = x[:, 0] * 2.0
            x += 1.0
        else:
            x = x.relu()
        out: Tensor = self.inner(x)
        return out.mul_(2.0)


@pytest.mark.parametrize("form", ["function", "module"])
def test_a_model_that_rectifies_its_input_in_place_is_explained_as_one_that_does_not(
    case: Case, network: Make, draw: Make, unchanged: Make, form: str
) -> None:
    net, x = network(), draw(5, 4)
    model, plain = InPlace(net, form), InPlace(net, "copy")
    for target, size in ((None, 3), (1, "auto")):
        expected = case(plain, x, target=target, verify=False).attributions
        with unchanged(model, x):
            answer = case(model, x, target=target, verify=False, batch_size=size).attributions
        torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-12)


def test_a_model_that_writes_over_every_input_leaves_them_alone(
    case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    model, x = InPlace(network(), "item"), draw(5, 4)
    baselines = draw(5, 4, key=2)
    with unchanged(model, x, baselines):
        first = case(model, x, target=1, baselines=baselines, verify=False).attributions
        again = case(model, x, target=1, baselines=baselines, verify=False).attributions
    assert torch.equal(first, again)


def test_a_model_that_writes_over_its_arguments_leaves_them_alone(
    case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    net, x, offset = network(), draw(5, 4), draw(5, 4, key=1)

    def model(x: Tensor, offset: Tensor) -> Any:
        return net(x + offset.mul_(0.5))

    expected = case(lambda x, offset: net(x + offset * 0.5), x, target=1, additional_forward_args=offset)
    with unchanged(net, x, offset):
        answer = case(model, x, target=1, additional_forward_args=offset)
    assert torch.equal(answer.attributions, expected.attributions)


def test_a_scripted_model_is_explained(case: Case, draw: Make, unchanged: Make) -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval(), draw(5, 4)
    expected = case(model, x, batch_size=3).attributions
    scripted = torch.jit.script(model)
    if case.by_rules:
        with pytest.raises(axplain.UncoveredOperation, match="it is scripted: explain the module that was scripted"):
            case(scripted, x)
        return
    with unchanged(scripted, x):
        answer = case(scripted, x, batch_size=3).attributions
    torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-12)


def test_a_traced_model_is_explained(case: Case, draw: Make) -> None:
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval(), draw(5, 4)
    expected = case(model, x, batch_size=3).attributions
    traced = torch.jit.trace(model, x)  # type: ignore[no-untyped-call]
    if case.by_rules:
        with pytest.raises(axplain.UncoveredOperation, match="scripted"):
            case(traced, x)
        return
    answer = case(traced, x, batch_size=3).attributions
    torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-12)


def test_a_frozen_model_is_explained(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x).attributions
    model.requires_grad_(False)
    assert torch.equal(case(model, x).attributions, expected)


def test_a_callable_is_explained_as_the_module_it_calls(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x).attributions
    for function in (model.forward, lambda x: model(x), model.__call__):
        assert torch.equal(case(function, x).attributions, expected)


def test_a_parameterised_model_is_explained(case: Case, draw: Make, unchanged: Make) -> None:
    """A parametrisation computes the weight anew in each pass."""
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval(), draw(5, 4)
    nn.utils.parametrizations.weight_norm(model[0])
    with unchanged(model, x):
        answer = case(model, x, target=1, batch_size=3).attributions
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    torch.testing.assert_close(answer, case(model, x, target=1).attributions, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch.nn.DataParallel copies models between accelerators only"
)
def test_a_data_parallel_model_is_explained(case: Case, network: Make, draw: Make) -> None:
    model, x = network().cuda(), draw(5, 4).cuda()
    expected = case(model, x, target=1, verify=False).attributions
    answer = case(nn.DataParallel(model), x, target=1, verify=False).attributions
    torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-12)
