"""The tape of the references: what every operation with a rule saw when they ran, read again row by row.

Rows are not assumed on dimension 0: attention folds and moves them. Where examples share a reference, two small passes
tell on which axis of each recorded tensor the rows lie; where that cannot be told, references are repeated row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.errors import UncoveredOperation
from axplain.propagation.operations import Operation
from axplain.structure import Tensors

#: The row axis of each recorded tensor, record by record.
Axes = tuple[tuple[int, ...], ...]


class Kept:
    """Tensors that are read later: one that the model is about to overwrite is copied first."""

    def __init__(self) -> None:
        self._holders: dict[int, list[tuple[list[Tensor], int]]] = {}

    def keep(self, tensors: Tensors) -> list[Tensor]:
        """Return a list of the tensors, in which each stays as it is now."""
        held = [tensor.detach() for tensor in tensors]
        for place, tensor in enumerate(held):
            self._holders.setdefault(tensor.untyped_storage().data_ptr(), []).append((held, place))
        return held

    def before_writing(self, tensor: Tensor) -> None:
        """Copy what is kept of a tensor's storage."""
        for held, place in self._holders.pop(tensor.untyped_storage().data_ptr(), ()):
            held[place] = held[place].clone()


@attrs.define(eq=False)
class Record:
    """What one operation saw and gave, or a value that steered the model; `values` is for what left torch."""

    name: str
    tensors: list[Tensor]
    values: Any = None


@attrs.define(eq=False)
class Tape:
    """The records of one pass over the references, in the order of the calls.

    `axes`: where the rows lie, None where each row of the examples has its own row on the tape already.
    """

    records: list[Record] = attrs.field(factory=list)
    kept: Kept = attrs.field(factory=Kept)
    axes: Axes | None = None
    values: Tensor | None = None
    output: Any = None

    def add(self, name: str, tensors: Tensors, values: Any = None) -> None:
        """Append what an operation saw and gave."""
        self.records.append(Record(name, self.kept.keep(tensors), values))

    def aligned(self, number: int, rows: Tensor | None) -> Tensors:
        """Return the tensors of a record with one row for each row of the examples."""
        tensors = self.records[number].tensors
        if self.axes is None or rows is None:
            return tuple(tensors)
        return tuple(_spread(tensor, axis, rows) for tensor, axis in zip(tensors, self.axes[number], strict=True))

    def operation(self, number: int, new: Operation, rows: Tensor | None) -> Operation:
        """Return the record as the operation on the references, beside the one on the examples."""
        return _as_operation(self.aligned(number, rows), new)

    def broadcast(self, number: int, new: Operation, sizes: tuple[int, int]) -> Operation:
        """Return the same without a copy, for rows as (references, examples)."""
        tensors = self.records[number].tensors
        return _as_operation(tuple(t.unsqueeze(1).expand(*sizes, *t.shape[1:]) for t in tensors), new)


def _as_operation(tensors: Tensors, new: Operation) -> Operation:
    count = len(new.inputs)
    return attrs.evolve(new, inputs=tensors[:count], output=tensors[count], extras=tensors[count + 1 :])


def _spread(tensor: Tensor, axis: int, rows: Tensor) -> Tensor:
    if tensor.shape[axis] == 1:
        return tensor.expand(*tensor.shape[:axis], len(rows), *tensor.shape[axis + 1 :])
    return tensor.index_select(axis, rows)


def row_axes(fewer: Tape, more: Tape, sizes: tuple[int, int]) -> Axes | None:
    """Return the row axis of every recorded tensor from two passes of different size, or None where rows are folded."""
    if len(fewer.records) != len(more.records):
        return None
    axes = []
    for one, two in zip(fewer.records, more.records, strict=True):
        if one.name != two.name or len(one.tensors) != len(two.tensors) or one.values != two.values:
            return None
        found = [_row_axis(a, b, sizes) for a, b in zip(one.tensors, two.tensors, strict=True)]
        if None in found:
            return None
        axes.append(tuple(axis for axis in found if axis is not None))
    return tuple(axes)


def _row_axis(one: Tensor, two: Tensor, sizes: tuple[int, int]) -> int | None:
    if one.ndim != two.ndim:
        return None
    differing = [axis for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]]
    if len(differing) != 1 or (one.shape[differing[0]], two.shape[differing[0]]) != sizes:
        return None
    return differing[0]


@attrs.define(eq=False)
class Reader:
    """Reads a tape in step with the pass over the examples. `rows`: (n,) the row of the tape of each example row."""

    tape: Tape
    rows: Tensor | None
    position: int = 0
    _sizes: tuple[int, int] | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        if self.rows is not None and len(self.rows):
            references = int(self.rows[-1]) + 1
            examples, rest = divmod(len(self.rows), references)
            order = torch.arange(references, device=self.rows.device).repeat_interleave(examples)
            if not rest and torch.equal(order, self.rows):
                self._sizes = references, examples

    def shared(self, number: int) -> tuple[int, int] | None:
        """Return (references, examples) where every example meets every reference in order and rows come first."""
        axes, tensors = self.tape.axes, self.tape.records[number].tensors
        if self._sizes is None or axes is None or any(axes[number]) or len(tensors[0]) != self._sizes[0]:
            return None
        return self._sizes

    def next(self, name: str, where: Callable[[], str]) -> int:
        """Return the number of the next record.

        Raises:
            UncoveredOperation: the examples took another way through the model than the references.
        """
        records, number = self.tape.records, self.position
        if number >= len(records) or records[number].name != name:
            wanted = records[number].name if number < len(records) else "the end"
            raise UncoveredOperation(
                f"model: {where()} calls {name!r} where the references came to {wanted!r}: which operations run "
                "depends on the data, so example and reference cannot be compared step by step. Use a method without "
                "rules, such as integrated_gradients."
            )
        self.position += 1
        return number

    def finish(self) -> None:
        """Refuse examples that stopped earlier than the references."""
        if self.position < len(self.tape.records):
            self.next("nothing more", lambda: "the pass over the examples")

    def agrees(self, number: int, result: tuple[Tensor, ...], values: Any) -> bool:
        """Whether the references gave the same."""
        record = self.tape.records[number]
        expected = self.tape.aligned(number, self.rows)
        return record.values == values and all(
            one.shape == other.shape and torch.equal(one, other) for one, other in zip(result, expected, strict=True)
        )
