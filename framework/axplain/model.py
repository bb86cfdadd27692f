"""The user's model behind one call: how inputs are passed, and which tensor is its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.errors import UnsupportedModel
from axplain.structure import Structure, Tensors, all_finite


@attrs.define
class RowCount:
    """Rows counted at the model: the method's own, and apart from them those of checks and predictions."""

    forward: int = 0
    backward: int = 0
    check_forward: int = 0


@attrs.frozen(eq=False)
class Model:
    """Calls `function` with rows in the user's structure: positional, or by keyword where `x` is a dict."""

    function: Callable[..., Any]
    structure: Structure

    @property
    def key(self) -> Any:
        """What tells this model from others that are made of the same function, where something is remembered of it."""
        return None

    @property
    def module(self) -> torch.nn.Module | None:
        """The model as a module, where it is one."""
        return self.function if isinstance(self.function, torch.nn.Module) else None

    def __call__(self, inputs: Tensors, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """Return the raw output at some rows."""
        positional, keyword = arguments
        if self.structure.kind == "dict":
            return self.function(*positional, **self.structure.pack(inputs), **keyword)
        return self.function(*inputs, *positional, **keyword)


def output_tensor(raw: Any) -> Tensor:
    """Return the tensor that a target indexes: the output, its `logits`, or the first element of a tuple.

    Raises:
        UnsupportedModel: there is no such tensor, or a dict leaves open which one is meant.
    """
    if isinstance(raw, Tensor):
        return raw
    logits = raw.get("logits") if isinstance(raw, Mapping) else getattr(raw, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(raw, Mapping):
        tensors = [value for value in raw.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        found = f"a dict with the keys {list(raw)}"
    elif isinstance(raw, tuple | list) and raw and isinstance(raw[0], Tensor):
        return raw[0]
    else:
        found = f"{type(raw).__name__} without logits"
    raise UnsupportedModel(
        f"model: it returned {found}; expected a tensor, a tuple whose first element is one, a dict with one tensor or "
        "`logits`, or an object with `logits`. Pass target=lambda output: ... to choose one value per example yourself."
    )


def finite_values(value: Tensor) -> Tensor:
    """Return the target's values if they are numbers.

    Raises:
        UnsupportedModel: some are NaN or inf.
    """
    if not all_finite(value):
        bad = int((~value.isfinite()).sum())
        raise UnsupportedModel(
            f"model: the target is NaN or inf at {bad} of {len(value)} rows; look for a division by zero, an overflow "
            "in half precision, or points that the model was never meant to see."
        )
    return value
