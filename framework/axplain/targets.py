"""Which scalar per example is explained: the output itself, an index, a callable on the raw output.

Or several of them, from the same passes. Units of a layer are in `seats.neurons`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Protocol

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten  # containers, and the outputs of Hugging Face models

from axplain.errors import ArgumentError, UnsupportedModel, counted
from axplain.memory import remembered
from axplain.model import Model, output_tensor


class Target(Protocol):
    """Selects (rows,) values from the raw output of rows that belong to the examples of `index`."""

    @property
    def parts(self) -> tuple[Target, ...]:
        """The target itself, or the several that it is made of."""
        ...

    @property
    def indexes(self) -> bool:
        """Whether it takes rows of the output, on its first axis."""
        ...

    @property
    def operations(self) -> Hashable:
        """What tells the operations of its `select` from those of others; None where no name does."""
        ...

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one value per row; of several targets, (rows, targets)."""
        ...

    def take(self, index: Tensor) -> Target:
        """Return the target of some examples."""
        ...

    def codes(self, batch: int, device: torch.device) -> Tensor:
        """Return (batch,) integers, equal where two examples have the same target."""
        ...

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        ...

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        """Prepare the model for one pass and its `select`, and restore it afterwards."""
        ...


class Same:
    """A single target that is the same for every example and needs nothing of the model."""

    indexes: ClassVar = False

    @property
    def operations(self) -> Hashable:
        """None: no name tells."""
        return None

    @property
    def parts(self) -> tuple[Any, ...]:
        """The target itself."""
        return (self,)

    def take(self, index: Tensor) -> Any:
        """Return the target itself."""
        return self

    def codes(self, batch: int, device: torch.device) -> Tensor:
        """Return zeros, (batch,)."""
        return torch.zeros(batch, dtype=torch.long, device=device)

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        """Do nothing."""
        yield


@attrs.frozen(eq=False)
class NoTarget(Same):
    """For methods that explain none: all that the model returns, summed, tells one pass from another."""

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one number for all rows."""
        tensors = [leaf for leaf in tree_flatten(raw)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return torch.stack([tensor.sum() for tensor in tensors]).sum().expand(len(index))

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        return "none"


@attrs.frozen(eq=False)
class OutputTarget(Same):
    """The output itself, for models that return (batch,) or (batch, 1)."""

    indexes: ClassVar = True
    operations: ClassVar = "output"

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one value per row."""
        output = rows_of(output_tensor(raw), len(index))
        if output[0].numel() != 1:
            raise ArgumentError(
                "target",
                f"None came and the model returns {tuple(output.shape[1:])} per example",
                "an index into it",
                "Say which output is meant: target=3, or one index tuple per example.",
            )
        return output.reshape(-1)

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        return None


@attrs.frozen(eq=False)
class PredictedTarget(Same):
    """The largest output of each example; remembers which one it was, to become the target of the call."""

    indexes: ClassVar = True

    best: Tensor

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one value per row."""
        output = rows_of(output_tensor(raw), len(index))
        if output.ndim > 2:
            raise ArgumentError(
                "target",
                f"None came and the model returns {tuple(output.shape[1:])} per example",
                "an index tuple into it",
                "There is no predicted class in this shape: say which output is meant.",
            )
        value, best = output.reshape(len(index), -1).max(1)
        self.best[index.cpu()] = best.cpu() if output.ndim > 1 and output.shape[1] > 1 else -1
        return value

    def take(self, index: Tensor) -> PredictedTarget:
        """Return a target that remembers those of some examples."""
        return PredictedTarget(self.best[index.cpu()])

    def resolved(self) -> Target:
        """Return the predicted class of each example, or the output itself where there is one number."""
        return OutputTarget() if bool((self.best < 0).all()) else IndexTarget(self.best[:, None])

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        return self.best.tolist()


@attrs.frozen(eq=False)
class IndexTarget(Same):
    """`output[i, *indices[i]]`: (batch, depth) indices on the CPU, or (1, depth) for all examples alike."""

    indexes: ClassVar = True

    indices: Tensor
    _same: list[int] | None = attrs.field(init=False)  # where it is one for all

    @_same.default
    def _for_all(self) -> list[int] | None:
        return None if len(self.indices) > 1 else [int(item) for item in self.indices[0].tolist()]

    @property
    def operations(self) -> Hashable:
        """Whether there is one index for all, and how deep it is."""
        return "index", self._same is None, self.indices.shape[1]

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one value per row."""
        output, same = output_tensor(raw), self._same
        shape = shape_of_rows(output, index.shape[0])
        if same is None:
            self._check(shape)
            columns = self.indices.to(output.device)[index.to(output.device)]
            chosen: Tensor = output[(torch.arange(len(index), device=output.device), *columns.unbind(1))]
            return chosen
        if len(same) != len(shape) or not all(-size <= item < size for item, size in zip(same, shape, strict=True)):
            self._check(shape)
        place: tuple[int | slice, ...] = (slice(None), *same)
        return output[place]

    def _check(self, shape: torch.Size) -> None:
        depth = self.indices.shape[1]
        if depth != len(shape):
            raise ArgumentError(
                "target",
                f"{counted(depth, 'index', 'indices')} came and the model returns {tuple(shape)} per example",
                f"{len(shape)}, one for each dimension after the batch",
                ("Leave target out.", "Give one index: target=3.")[len(shape)] if len(shape) < 2 else "Give a tuple.",
            )
        for column, size in zip(self.indices.unbind(1), shape, strict=True):
            low, high = (int(end) for end in column.aminmax())
            if low < -size or high >= size:
                wrong = int(((column < -size) | (column >= size)).nonzero()[0])
                came = self.indices[wrong].tolist()
                raise ArgumentError(
                    "target",
                    f"{came[0] if len(came) == 1 else tuple(came)} came"
                    + (f" for example {wrong}" if len(self.indices) > 1 else ""),
                    f"indices inside {tuple(shape)}, what the model returns per example",
                )

    def take(self, index: Tensor) -> IndexTarget:
        """Return the target of some examples."""
        return self if len(self.indices) == 1 else IndexTarget(self.indices[index.cpu()])

    def codes(self, batch: int, device: torch.device) -> Tensor:
        """Return (batch,) integers, equal where two examples have the same target."""
        if len(self.indices) == 1:
            return torch.zeros(batch, dtype=torch.long, device=device)
        _, codes = torch.unique(self.indices, dim=0, return_inverse=True)
        return torch.as_tensor(codes, device=device)

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        lists = self.indices.tolist()
        plain = [row[0] if len(row) == 1 else row for row in lists]
        return plain[0] if len(plain) == 1 else plain


@attrs.frozen(eq=False)
class CallableTarget(Same):
    """A function of the model's raw output that returns one value per row."""

    function: Callable[[Any], Any]

    @property
    def operations(self) -> Hashable:
        """What stands for the function as long as it lives."""
        return remembered(self.function, "operations", object)

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one value per row."""
        value = self.function(raw)
        if not isinstance(value, Tensor) or value.shape not in ((len(index),), (len(index), 1)):
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(
                "target", f"the callable returned {got}", f"a tensor of shape ({len(index)},), one value a row"
            )
        return value.reshape(-1)

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        return f"callable {getattr(self.function, '__qualname__', type(self.function).__name__)}"


@attrs.frozen(eq=False)
class SeveralTargets:
    """Several targets of every example, selected from one pass."""

    parts: tuple[Target, ...]

    @property
    def indexes(self) -> bool:
        """Whether one of them takes rows of the output."""
        return any(part.indexes for part in self.parts)

    @property
    def operations(self) -> Hashable:
        """Those of each, where all have a name."""
        each = tuple(part.operations for part in self.parts)
        return None if None in each else each

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return (rows, targets) values."""
        return torch.stack([part.select(raw, index) for part in self.parts], 1)

    def take(self, index: Tensor) -> SeveralTargets:
        """Return the targets of some examples."""
        return SeveralTargets(tuple(part.take(index) for part in self.parts))

    def codes(self, batch: int, device: torch.device) -> Tensor:
        """Return (batch,) integers, equal where two examples have the same targets."""
        each = torch.stack([part.codes(batch, device) for part in self.parts], 1)
        codes: Tensor = torch.unique(each, dim=0, return_inverse=True)[1]
        return codes

    def describe(self) -> Any:
        """Return the targets as JSON can hold them."""
        return [part.describe() for part in self.parts]

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        """Prepare the model for all of them."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.watching(model))
            yield


def rows_of(output: Tensor, rows: int) -> Tensor:
    """Return the output if it has one row per input row.

    Raises:
        UnsupportedModel: it has not.
    """
    shape_of_rows(output, rows)
    return output


def shape_of_rows(output: Tensor, rows: int) -> torch.Size:
    """Return the shape of a row of the output.

    Raises:
        UnsupportedModel: it has not one row per input row.
    """
    shape = output.shape
    if not shape or shape[0] != rows:
        raise UnsupportedModel(
            f"model: {rows} rows went in and the output has the shape {tuple(shape)}; expected {rows} as its first "
            "dimension. For a model that returns one number for a batch, such as a mean loss, explain "
            "axplain.per_batch(model) at x.unsqueeze(0); sequence-first output needs a wrapper that puts the batch "
            "first."
        )
    return shape[1:]
