"""What a call says of its target, in every spelling: indices, callables, neurons, or several of these."""

from __future__ import annotations

import functools
import numbers
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from axplain.errors import ArgumentError, counted
from axplain.model import Model
from axplain.seats.neurons import Neuron, resolve_neuron
from axplain.targets import CallableTarget, IndexTarget, SeveralTargets, Target


@attrs.frozen(eq=False)
class Several:
    """The targets of one call that explains several; made by `axplain.explain_targets`."""

    targets: tuple[Any, ...]


TARGET_FORMS: Final = (
    "an int, a list or tensor of one int per example, an index tuple, a list of tuples, a callable or a neuron"
)


def resolve_target(given: Any, model: Model, batch: int) -> Target | None:
    """Turn `target` into what selects one value for each row; None where the predicted class is meant.

    Raises:
        ArgumentError: it is no target, or does not fit the batch.
    """
    if given is None:
        return None
    if isinstance(given, Several):
        return SeveralTargets(tuple(_one_of_several(i, item, model, batch) for i, item in enumerate(given.targets)))
    if isinstance(given, Neuron):
        return resolve_neuron(given, model)
    if callable(given) and not isinstance(given, Tensor):
        return CallableTarget(given)
    return IndexTarget(_indices(given, batch))


def _one_of_several(i: int, given: Any, model: Model, batch: int) -> Target:
    label = f"targets[{i}]"
    try:
        target = resolve_target(given, model, batch)
    except ArgumentError as error:
        raise error.of(label) from None
    if target is None:
        raise ArgumentError(label, "None came", TARGET_FORMS)
    return target


def _indices(given: Any, batch: int) -> Tensor:
    """Return (1 or batch, depth) indices on the CPU."""
    if isinstance(given, tuple):
        return _same(tuple(_index(item) for item in given))
    if isinstance(given, list):
        rows = [[_index(i) for i in item] if isinstance(item, tuple | list) else [_index(item)] for item in given]
        if len({len(row) for row in rows}) > 1:
            raise ArgumentError("target", f"{given!r} came", "index tuples of one length")
        return _per_example(torch.tensor(rows, device="cpu"), batch, given)
    if hasattr(given, "__array__") and getattr(given, "ndim", 0) > 0 and not isinstance(given, Tensor):
        given = torch.as_tensor(given, device="cpu")
    if isinstance(given, Tensor) and given.ndim > 0:
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool or given.ndim > 2:
            raise ArgumentError("target", f"a tensor of {given.dtype}, shape {tuple(given.shape)} came", TARGET_FORMS)
        return _per_example(given.detach().cpu().long(), batch, given)
    return _same((_index(given),))


@functools.lru_cache(maxsize=1024)  # nobody writes to it, and making it takes longer than a small model's pass
def _same(place: tuple[int, ...]) -> Tensor:
    return torch.tensor([place], device="cpu")


def _index(item: Any) -> int:
    whole = isinstance(item, numbers.Integral) and not isinstance(item, bool)
    if isinstance(item, Tensor) and item.ndim == 0:
        whole = not (item.is_floating_point() or item.is_complex() or item.dtype == torch.bool)
    if not whole or not -(2**63) <= int(item) < 2**63:
        raise ArgumentError("target", f"{item!r} ({type(item).__name__}) came", TARGET_FORMS)
    return int(item)


def _per_example(indices: Tensor, batch: int, given: Any) -> Tensor:
    if len(indices) not in (1, batch):
        came = (
            f"{counted(len(indices), 'target')} came for {counted(batch, 'example')}"
            if len(indices)
            else f"{given!r} came, 0 targets"
        )
        cure = "One index into several dimensions is a tuple, not a list."
        raise ArgumentError("target", came, "one for each example", cure)
    return indices.reshape(len(indices), -1)
