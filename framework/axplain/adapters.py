"""Models that are no torch functions of rows: arrays in and out, and one number for a whole batch."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import attrs
import numpy
import torch
from torch import Tensor

from axplain.errors import ArgumentError, UnsupportedModel


@attrs.frozen(eq=False)
class NumpyModel:
    """A function of arrays as a model; made by `axplain.from_numpy`."""

    function: Callable[..., Any]

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        """Return what the function returns for arrays, as a tensor on the device of the first input."""
        tensors = [value for value in (*inputs, *named.values()) if isinstance(value, Tensor)]
        arrays = {name: _array(value) for name, value in named.items()}
        output = numpy.asarray(self.function(*map(_array, inputs), **arrays))
        return torch.from_numpy(numpy.ascontiguousarray(output)).to(tensors[0].device)


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def from_numpy(function: Callable[..., Any]) -> NumpyModel:
    """Make a model of a function of numpy arrays, such as `classifier.predict_proba` of scikit-learn.

    It has no gradients: methods that ask for values only, those of the removal family, explain it.

    Args:
        function: takes arrays, (rows, ...) each, and returns one of (rows,) or (rows, outputs).
    """
    if not callable(function):
        cure = "Of an estimator pass predict_proba, decision_function or predict."
        raise ArgumentError("function", f"{type(function).__name__} came", "a function of arrays", cure)
    return NumpyModel(function)


@attrs.frozen(eq=False)
class BatchModel:
    """A model whose rows are batches; made by `axplain.per_batch`."""

    model: Callable[..., Any]

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        """Return one number for each row: (rows,), from inputs of (rows, batch, ...).

        The door lets no tensor in that has no row for each batch.
        """
        rows = len(inputs[0] if inputs else next(iter(named.values())))
        return torch.stack([self._number(i, inputs, named) for i in range(rows)])

    def _number(self, i: int, inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
        output = self.model(*(_row(x, i) for x in inputs), **{name: _row(x, i) for name, x in named.items()})
        if isinstance(output, numbers.Real):
            output = torch.tensor(float(output), dtype=torch.float64)
        if not isinstance(output, Tensor) or output.numel() != 1:
            came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UnsupportedModel(f"model: per_batch expects one number for a batch, and it returned {came}.")
        return output.reshape(())


def _row(value: Any, i: int) -> Any:
    return value[i] if isinstance(value, Tensor) else value


def per_batch(model: Callable[..., Any]) -> BatchModel:
    """Make a model whose examples are batches of one that returns one number for a batch, such as a loss.

    Explain it at `x.unsqueeze(0)`: one example, of the shape (1, batch, ...). A `feature_mask` of that shape says which
    elements of the batch are one feature. What else the model takes, such as labels, is closed over by the function, or
    given with the same first dimension: `additional_forward_args=labels.unsqueeze(0)`.

    Args:
        model: takes (batch, ...) per input and returns one number.
    """
    return BatchModel(model)
