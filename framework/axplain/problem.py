"""One normalised question. `problem.take(index)` is a block of its examples; everything of theirs follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from axplain.groups import Groups
from axplain.model import Model
from axplain.randomness import Key
from axplain.structure import Tensors, all_finite, map_tensors
from axplain.targets import Target

if TYPE_CHECKING:
    from axplain.seats.seating import Seating


@attrs.frozen(eq=False)
class References:
    """The resolved baselines: a table of rows and, per example, the rows that are its own.

    `rows`: (u, ...) per tensor. `index`: (batch, k). One index serves all tensors of a tuple, so joint laws hold.
    """

    rows: Tensors
    index: Tensor

    @property
    def count(self) -> int:
        """References per example."""
        return self.index.shape[1]

    def take(self, index: Tensor) -> References:
        """Return the references of some examples; the table stays whole."""
        return References(self.rows, self.index[index])

    def column(self, k: int) -> Tensors:
        """Return the k-th reference of each example: (batch, ...), or (1, ...) where all share one row."""
        if len(self.rows[0]) == 1:
            return self.rows
        return map_tensors(lambda rows: rows[self.index[:, k]], self.rows)

    def paired(self, columns: range) -> References:
        """Return one reference for each pair of column and example, the first column with all examples first."""
        return References(self.rows, self.index[:, columns.start : columns.stop].T.reshape(-1, 1))


@attrs.frozen(eq=False)
class Arguments:
    """The model's other arguments. Those named in `follow` have one row per example and follow the examples."""

    positional: tuple[Any, ...] = ()
    keyword: Mapping[str, Any] = attrs.field(factory=dict)
    follow: frozenset[int | str] = frozenset()

    def rows(self, index: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments for rows that belong to the examples of `index`."""
        follow = self.follow
        if not follow:
            return self.positional, dict(self.keyword)
        positional = tuple(a[index] if i in follow else a for i, a in enumerate(self.positional))
        return positional, {name: a[index] if name in follow else a for name, a in self.keyword.items()}

    def kinds(self) -> tuple[Any, ...]:
        """Return what a model might decide by: the arguments, tensors by their shape."""
        everything: dict[Any, Any] = {**dict(enumerate(self.positional)), **self.keyword}
        return tuple(
            (name, (value.shape, value.dtype) if isinstance(value, Tensor) else repr(value)[:200])
            for name, value in everything.items()
        )

    def take(self, index: Tensor) -> Arguments:
        """Return the arguments of some examples."""
        positional, keyword = self.rows(index)
        return attrs.evolve(self, positional=positional, keyword=keyword)


@attrs.frozen(eq=False)
class Problem:
    """Explain `target` of `model` at `inputs`, (batch, ...) each, against `references`.

    `clean` is F(x), (batch,), where it is known already: nobody asks for it twice. `groups`: the features of a method
    that switches them. `origin`: (batch,) where in the whole question the examples of a block are; None for all.
    `seating`: the layers that attributions land at; None for the input, and once the question is lowered to them.
    `ends`: F(x) and mean F(x') of each example, (batch,) in float64, where passes that carried both to a layer told.
    """

    model: Model
    inputs: Tensors
    target: Target
    references: References | None
    arguments: Arguments
    key: Key
    clean: Tensor | None = None
    groups: Groups | None = None
    origin: Tensor | None = None
    seating: Seating | None = None
    ends: tuple[Tensor, Tensor] | None = None

    @property
    def batch(self) -> int:
        """How many examples are explained."""
        return self.inputs[0].shape[0]  # torch's len() is many times slower, and this is asked often

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return self.inputs[0].device

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What a model might decide by of the inputs, whatever their number."""
        return tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in self.inputs)

    @property
    def targets(self) -> int:
        """How many targets every example has."""
        return len(self.target.parts)

    @property
    def seat_shapes(self) -> list[tuple[torch.Size, torch.dtype]]:
        """What attributions mirror: the inputs, or what the layers hold."""
        if self.seating is None:
            return [(tensor.shape, tensor.dtype) for tensor in self.inputs]
        return [(torch.Size((self.batch, *slot.shape)), slot.dtype) for slot in self.seating.slots]

    def everyone(self) -> Tensor:
        """Return the index of all examples."""
        return torch.arange(self.batch, device=self.device)

    def examples(self, index: Tensor) -> Tensors:
        """Return the inputs of some examples, in the order of `index`, repeated where it repeats."""
        return map_tensors(lambda tensor: tensor[index], self.inputs)

    def repeated(self, samples: int) -> Tensor:
        """Return the index of all examples, once for each sample, sample-major."""
        return self.everyone().expand(samples, self.batch).reshape(-1)

    def reference_table(self) -> References:
        """Return the references of a method that the door gave some."""
        if self.references is None:
            raise AssertionError("the door resolves references for every method whose spec takes baselines")
        return self.references

    def take(self, index: Tensor) -> Problem:
        """Return the question about some of the examples, in the order of `index`, repeated where it repeats."""
        return attrs.evolve(
            self,
            inputs=self.examples(index),
            target=self.target.take(index),
            references=self.references.take(index) if self.references else None,
            arguments=self.arguments.take(index),
            clean=self.clean[index] if self.clean is not None else None,
            groups=self.groups.take(index) if self.groups else None,
            origin=index if self.origin is None else self.origin[index],
            ends=(self.ends[0][index], self.ends[1][index]) if self.ends else None,
        )

    def features(self) -> Groups:
        """Return the groups of a method whose spec says that it takes them."""
        if self.groups is None:
            raise AssertionError("the door resolves groups for every method whose spec takes them")
        return self.groups

    def masked(self, mask: Tensor) -> Tensors:
        """Return rows, sample-major: x where a mask, (samples, features), is true, the reference elsewhere."""
        first = self.inputs[0].dtype
        number = mask.to(first) if first.is_floating_point else mask  # numbers are spread faster than truth values
        keep, absent = self.features().elements(number), self.reference_table().column(0)
        return map_tensors(lambda mine, *ends: _chosen(mine, *ends).flatten(0, 1), keep, self.inputs, absent)

    def by_target(self) -> Problem:
        """Return the question with an example for each pair of example and target, the targets of one side by side."""
        return self if self.targets == 1 else self.take(self.everyone().repeat_interleave(self.targets))

    def block(self, index: Tensor) -> Problem:
        """Return the question about a block of consecutive examples; all of them together are the problem itself."""
        return self if len(index) == self.batch else self.take(index)

    def at(self, inputs: Tensors) -> Problem:
        """Return the same question about other inputs, such as noisy copies of the examples."""
        return attrs.evolve(self, inputs=inputs, clean=None, ends=None)

    def variants(self) -> Tensor:
        """Return (batch,) codes that are equal where two examples ask the same question of an equal row."""
        if self.arguments.follow:
            return self.everyone()
        return self.target.codes(self.batch, self.device)


def _chosen(mask: Tensor, x: Tensor, absent: Tensor) -> Tensor:
    """Return (samples, batch, ...): x where the mask is true, else what stands for absence.

    `lerp` gives either end exactly, and is many times faster than `where` on masks that follow no pattern.
    """
    if x.is_floating_point() and all_finite(x - absent):
        return torch.lerp(absent.unsqueeze(0), x.unsqueeze(0), mask.to(x.dtype))
    return torch.where(mask.bool(), x.unsqueeze(0), absent.unsqueeze(0))
