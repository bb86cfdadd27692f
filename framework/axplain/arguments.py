"""The model's other arguments: which of them have a row for each example, and which are passed as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor

from axplain.errors import ArgumentError
from axplain.problem import Arguments
from axplain.structure import Structure, Tensors, usable


@attrs.frozen
class Shared:
    """An argument that is passed as it is; made by `axplain.shared`."""

    value: Any


def shared(value: Any) -> Any:
    """Pass an additional argument to the model as it is, even if its first dimension happens to equal the batch."""
    return Shared(value)


def resolve_arguments(
    positional: Any, keyword: Any, inputs: Tensors, structure: Structure, *, whole: bool
) -> Arguments:
    """Return the model's other arguments. `whole`: its rows are batches, so that every tensor needs a row for each."""
    if positional is None and keyword is None:
        return Arguments()
    values = () if positional is None else positional if isinstance(positional, tuple) else (positional,)
    named = {} if keyword is None else keyword
    if not isinstance(named, Mapping):
        raise ArgumentError("forward_kwargs", f"{type(named).__name__} came", "a dict of keyword arguments")
    if not all(isinstance(name, str) for name in named):
        raise ArgumentError("forward_kwargs", f"the keys {list(named)} came", "a dict of keyword arguments")
    both = sorted(named.keys() & set(structure.names)) if structure.kind == "dict" else []
    if both:
        raise ArgumentError(
            "forward_kwargs", f"{both[0]!r} came", "names that are not in x", "x is explained, these are not."
        )
    everything: dict[int | str, Any] = {**dict(enumerate(values)), **named}
    device, batch = inputs[0].device, len(inputs[0])
    for name, value in everything.items():
        if isinstance(value, Tensor) and value.device != device:
            raise ArgumentError(_label(name), f"a tensor on {value.device} came", f"one on {device}, where x is")
    for name, value in everything.items():
        if batch > 1 and isinstance(value, list | tuple | Mapping) and _has_a_row_each(value, batch):
            raise ArgumentError(
                _label(name), f"a {type(value).__name__} with one item for each of {batch} examples came",
                "a tensor, whose rows follow the examples", "axplain.shared(value) passes it as it is.",
            )  # fmt: skip
    for name, value in everything.items():
        tensor = value.value if isinstance(value, Shared) else value
        if whole and isinstance(tensor, Tensor) and (tensor is not value or tensor.ndim == 0 or len(tensor) != batch):
            raise ArgumentError(
                _label(name), f"a tensor of shape {tuple(tensor.shape)} came to a model of per_batch",
                f"a first dimension of {batch}, as in x", "Call .unsqueeze(0) on it, or close over it in the function.",
            )  # fmt: skip
    follow = frozenset(n for n, v in everything.items() if isinstance(v, Tensor) and v.ndim > 0 and len(v) == batch)
    plain = {name: usable(value.value if isinstance(value, Shared) else value) for name, value in everything.items()}
    return Arguments(tuple(plain[i] for i in range(len(values))), {name: plain[name] for name in named}, follow)


def _label(name: int | str) -> str:
    return f"additional_forward_args[{name}]" if isinstance(name, int) else f"forward_kwargs[{name!r}]"


def _has_a_row_each(value: Any, batch: int) -> bool:
    """Whether a container looks as if it had to follow the examples, which only tensors do."""
    items = list(value.values()) if isinstance(value, Mapping) else value
    if any(isinstance(item, Tensor) and item.ndim > 0 and len(item) == batch for item in items):
        return True
    return not isinstance(value, Mapping) and len(items) == batch
