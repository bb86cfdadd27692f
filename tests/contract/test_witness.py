"""The witness of the contract tests sees what it claims to see: each planted offence is reported by name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

Make = Callable[..., Any]


def leave_hook(model: nn.Module, x: Tensor) -> None:
    model.get_submodule("last").register_forward_hook(lambda *args: None)


def leave_backward_hook(model: nn.Module, x: Tensor) -> None:
    model.get_submodule("last").register_full_backward_hook(lambda *args: None)


def leave_attribute(model: nn.Module, x: Tensor) -> None:
    model.__dict__["cache"] = 3


def replace_forward(model: nn.Module, x: Tensor) -> None:
    model.forward = lambda x: x


def change_buffer(model: nn.Module, x: Tensor) -> None:
    model.get_buffer("scale").data.add_(1)


def replace_parameter(model: nn.Module, x: Tensor) -> None:
    model.get_submodule("last").register_parameter("weight", nn.Parameter(model.get_parameter("last.weight").clone()))


def move_storage(model: nn.Module, x: Tensor) -> None:
    weight = model.get_parameter("last.weight")
    weight.data = weight.data.clone()


def change_training(model: nn.Module, x: Tensor) -> None:
    model.get_submodule("norm").train()


def freeze(model: nn.Module, x: Tensor) -> None:
    model.get_parameter("last.weight").requires_grad_(False)


def leave_gradient(model: nn.Module, x: Tensor) -> None:
    model(x).sum().backward()


def require_gradient(model: nn.Module, x: Tensor) -> None:
    x.requires_grad_()


def write_input(model: nn.Module, x: Tensor) -> None:
    x.mul_(1.0)


def change_input(model: nn.Module, x: Tensor) -> None:
    x.data[0, 0] = 9.0


OFFENCES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "last.hooks": leave_hook,
    "last.weight.id": replace_parameter,
    ".__dict__": replace_forward,
    "last.weight.storage": move_storage,
    "scale.value": change_buffer,
    "norm.training": change_training,
    "last.weight.requires_grad": freeze,
    "last.weight.grad": leave_gradient,
    "input 0.requires_grad": require_gradient,
    "input 0.version": write_input,
    "input 0.value": change_input,
    "random.torch": lambda model, x: torch.rand(1),
    "random.numpy": lambda model, x: numpy.random.rand(),
    "random.python": lambda model, x: random.random(),
    "threads": lambda model, x: torch.set_num_threads(torch.get_num_threads() + 1),
    "grad mode": lambda model, x: torch.set_grad_enabled(False),
    "default dtype": lambda model, x: torch.set_default_dtype(torch.float64),
    "deterministic": lambda model, x: torch.use_deterministic_algorithms(True),
    "autocast": lambda model, x: torch.set_autocast_enabled("cpu", True),
    "modes": lambda model, x: torch._C._push_on_torch_function_stack(torch.overrides.BaseTorchFunctionMode()),
}


@pytest.fixture(autouse=True)
def restored() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.set_autocast_enabled("cpu", False)
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()


@pytest.mark.parametrize("name", OFFENCES)
def test_an_offence_is_seen(name: str, network: Make, draw: Make, unchanged: Make) -> None:
    model, x = network(), draw(5, 4)
    with pytest.raises(AssertionError) as caught, unchanged(model, x):
        OFFENCES[name](model, x)
    assert name in str(caught.value)


@pytest.mark.parametrize("offence", [leave_backward_hook, leave_attribute])
def test_other_offences_are_seen(
    offence: Callable[[nn.Module, Tensor], None], network: Make, draw: Make, unchanged: Make
) -> None:
    model, x = network(), draw(5, 4)
    with pytest.raises(AssertionError), unchanged(model, x):
        offence(model, x)


def test_looking_changes_nothing(network: Make, draw: Make, unchanged: Make) -> None:
    model, x = network(), draw(5, 4)
    with unchanged(model, x), unchanged(model, x):
        model(x)
