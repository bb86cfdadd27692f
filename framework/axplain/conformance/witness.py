"""A witness of everything that a call must leave as it was: the model, tensors, and the state of the process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import numpy
import torch
from torch import Tensor, nn


@attrs.frozen(eq=False)
class Witness:
    """Everything that a call must leave as it was; `differences` compares."""

    model: nn.Module
    tensors: tuple[Tensor, ...]
    before: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module, *tensors: Tensor) -> Witness:
        """Look at a model, some tensors and the process."""
        return cls(model, tensors, {**_modules(model), **_tensors(tensors), **_process()})

    def differences(self) -> list[str]:
        """Return the names of all that has changed since."""
        now = {**_modules(self.model), **_tensors(self.tensors), **_process()}
        moved = sorted(now.keys() ^ self.before.keys())
        return moved + [n for n, value in self.before.items() if n in now and not _same(value, now[n])]


def _modules(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        attributes = {key: id(value) for key, value in vars(module).items()}
        hooks = {key: len(value) for key, value in vars(module).items() if key.endswith("_hooks")}
        state |= {f"{name}.__dict__": attributes, f"{name}.hooks": hooks, f"{name}.training": module.training}
    owned = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in owned.items():
        state |= {f"{name}.{key}": value for key, value in _tensor(tensor).items()}
    for key, value in vars(torch.nn.modules.module).items():
        if key.startswith("_global_") and key.endswith("_hooks"):
            state[key] = len(value)
    return state


def _tensors(tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    return {f"input {i}.{key}": value for i, t in enumerate(tensors) for key, value in _tensor(t).items()}


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "id": id(tensor),
        "storage": tensor.data_ptr(),
        "strides": tensor.stride(),
        "value": tensor.detach().clone(),
        "version": None if tensor.is_inference() else tensor._version,
        "requires_grad": tensor.requires_grad,
        "grad": tensor.grad.clone() if tensor.is_leaf and tensor.grad is not None else None,
        "hooks": bool(tensor._backward_hooks),
    }


def _process() -> dict[str, Any]:
    state = numpy.random.get_state()
    assert isinstance(state, tuple), "asked for the tuple, not the dict"
    return {
        "random.python": random.getstate(),
        "random.numpy": (state[0], state[1].tolist(), *state[2:]),
        "random.torch": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic, warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "anomaly": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "saved tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(True) is None,
    }


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return bool(left == right)


@contextmanager
def generators_at(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python, and put them back afterwards."""
    states = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        numpy.random.set_state(states[1])
        random.setstate(states[2])
