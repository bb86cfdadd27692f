"""Explains a unit of a layer instead of an output, on whichever axis the layer holds the rows."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.errors import ArgumentError, UnsupportedModel, counted
from axplain.hidden import refuse_hidden_code
from axplain.memory import remembered
from axplain.model import Model, output_tensor
from axplain.problem import Problem
from axplain.seats.sites import Seat, Site, hooked, never_reached, resolve_site
from axplain.seats.trace import ROWS
from axplain.targets import CallableTarget, Same


@attrs.frozen(eq=False)
class Neuron:
    """One unit of a layer, for `explain(target=...)`; make it with `axplain.neuron(layer, index)`."""

    layer: torch.nn.Module | str | Seat
    index: int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]


def neuron(
    layer: torch.nn.Module | str | Seat, index: int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]
) -> Neuron:
    """Explain a unit of a layer instead of an output: `explain(model, x, target=neuron("features.3", (7, 2, 2)))`.

    Args:
        layer: a module of the model or its dotted name; it must run exactly once in a forward pass. Or
            `axplain.seat(layer, of="input", call=1, item=0)`: what it is given, one of several calls, one of several
            tensors; of several the first one is meant where nothing is said.
        index: the unit behind the batch dimension; slices are summed over; or a callable from the layer's value,
            (batch, ...), to (batch,). Of a layer that holds the batch on another axis, it is moved to the front.
    """
    return Neuron(layer, index)


@attrs.frozen(eq=False)
class NeuronTarget(Same):
    """Selects a unit from what a layer returned, or was given, during the model's pass. `axis`: where its rows lie."""

    site: Site
    index: int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]
    argument: str = "target"
    axis: int = 0
    _seen: list[Tensor] = attrs.field(factory=list)

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one value per row."""
        seen = self._seen
        self.check_calls(len(seen))
        output = self.rows_first(seen[0], len(index))
        if callable(self.index):
            return CallableTarget(self.index).select(output, index)
        picked = self.pick(output)
        return picked if picked.ndim == 1 else picked.reshape(len(index), -1).sum(1)

    def aligned(self, problem: Problem) -> NeuronTarget:
        """Return the target with the axis on which its layer holds the rows.

        Two small passes tell, the first time for each model, shape of input and layer; they are not counted. The pass
        itself would not: a sequence may be as long as the batch.

        Raises:
            ArgumentError: the layer is never reached, or has no axis of the rows alone.
        """
        key = ("rows", self.site, problem.shapes, problem.arguments.kinds())
        one, two = remembered(problem.model.function, key, lambda: [self._shape(problem, rows) for rows in ROWS])
        differing = [axis for axis, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
        if len(one) != len(two) or [(one[axis], two[axis]) for axis in differing] != [ROWS]:
            raise ArgumentError(
                self.argument, f"{self.site} holds {one} for {ROWS[0]} rows and {two} for {ROWS[1]}",
                "a layer with an axis of the rows alone", "Choose one before or behind the step that folds them.",
            )  # fmt: skip
        return attrs.evolve(self, axis=differing[0])

    def _shape(self, problem: Problem, rows: int) -> tuple[int, ...]:
        """Return the shape of what the layer holds in a pass of that size."""
        shapes: list[tuple[int, ...]] = []

        def see(site: int, call: int, leaves: list[Any]) -> None:
            shapes.append(tuple(self.value_in(leaves).shape))

        index = torch.arange(rows, device=problem.device) % problem.batch
        x = problem.examples(index)
        try:
            with hooked((self.site,), see):
                problem.model(x, problem.arguments.rows(index))
        except Exception as error:
            error.add_note(
                f"axplain: the model failed on {rows} rows, which were to tell where {self.site} holds the batch; a "
                "neuron needs a model that takes any number of rows."
            )
            raise
        self.check_calls(len(shapes))
        return shapes[0]

    def check_calls(self, count: int) -> None:
        """Refuse a layer that did not run exactly once in a pass."""
        if not count:
            raise never_reached(self.site, self.argument)
        if count != 1:
            raise UnsupportedModel(
                f"{self.argument}: {self.site} ran {count} times in one forward pass; a neuron's layer runs exactly "
                "once. Choose a layer that does, or one call of it: axplain.seat(layer, call=0)."
            )

    def rows_first(self, value: Tensor, rows: int) -> Tensor:
        """Return the layer's value, its rows first, if it has one per input row.

        Raises:
            ArgumentError: it has not.
        """
        if value.ndim <= self.axis or value.shape[self.axis] != rows:
            came = f"{self.site} holds {tuple(value.shape)} for {rows} rows"
            raise ArgumentError(self.argument, came, f"{rows} on axis {self.axis}, as in smaller passes")
        return value.movedim(self.axis, 0)

    def pick(self, output: Tensor) -> Tensor:
        """Return the unit, or the units, of each row: an index that is no callable."""
        wanted = self.index if isinstance(self.index, tuple) else (self.index,)
        verb = "returns" if self.site.of == "output" else "is given"
        if len(wanted) != output.ndim - 1:
            raise ArgumentError(
                self.argument,
                f"neuron index {self.index!r} came and layer {self.site.name!r} {verb} {tuple(output.shape)}",
                f"{counted(output.ndim - 1, 'index', 'indices')}, one for each dimension after the batch",
            )
        inside = f"indices inside {tuple(output.shape[1:])}, the {self.site.of} of layer {self.site.name!r}"
        try:
            picked = output[(slice(None), *wanted)]
        except IndexError as error:
            raise ArgumentError(self.argument, f"neuron index {self.index!r} came", inside) from error
        if not picked.numel():
            raise ArgumentError(self.argument, f"neuron index {self.index!r} came", inside)
        return picked

    @property
    def operations(self) -> Hashable:
        """The layer and the index; None where that is a function."""
        return None if callable(self.index) else (self.site, self.axis, _index_text(self.index))

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        site, index = self.site, "callable" if callable(self.index) else _index_text(self.index)
        words = [site.name, "input" if site.of == "input" else "", "" if site.call is None else f"call {site.call}"]
        words.append("" if site.item is None else f"item {site.item}")
        return f"neuron {' '.join(filter(None, words))}[{index}]"

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        """Keep the layer's value while one pass runs."""

        def see(site: int, call: int, leaves: list[Any]) -> None:
            self._seen.append(self.value_in(leaves).clone())  # the next layer may write over it

        try:
            with hooked((self.site,), see):
                yield
        finally:
            self._seen.clear()

    def value_in(self, leaves: list[Any]) -> Tensor:
        """Return the tensor that the neuron is a unit of, among what the layer returned or was given."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors:  # an object that is no container of torch's
            return output_tensor(leaves[0] if leaves else None)
        item = self.site.item or 0
        if item >= len(tensors):
            came = f"item={item} came and {self.site} has {counted(len(tensors), 'tensor')}"
            raise ArgumentError(self.argument, came, f"an item below {len(tensors)}")
        return tensors[item]


def _index_text(index: int | tuple[int | slice, ...]) -> str:
    """Return an index as Python writes it between brackets."""
    if not isinstance(index, tuple):
        return str(index)
    return ", ".join(str(item) if not isinstance(item, slice) else _slice_text(item) for item in index)


def _slice_text(given: slice) -> str:
    ends = ["" if end is None else str(end) for end in (given.start, given.stop, given.step)]
    return ":".join(ends if given.step is not None else ends[:2])


def resolve_neuron(unit: Neuron, model: Model, argument: str = "target") -> NeuronTarget:
    """Find the neuron's layer in the model; `argument` is what an error says that it is.

    Raises:
        ArgumentError: the model has no such layer.
        UncoveredOperation: what runs it is compiled, scripted or a thread, so that it is not seen.
    """
    wanted = unit.index if isinstance(unit.index, tuple) else (unit.index,)
    known = all(isinstance(item, numbers.Integral | slice) and not isinstance(item, bool) for item in wanted)
    if not callable(unit.index) and not (known and wanted):
        expected = "one index, a tuple of ints and slices, or a callable"
        raise ArgumentError(argument, f"neuron index {unit.index!r} came", expected)
    module = model.module
    if module is None:
        raise ArgumentError(
            argument, "a neuron came and the model is a plain callable", "a torch.nn.Module as the model"
        )
    site = resolve_site(unit.layer, module, argument)
    refuse_hidden_code(model, f"The layer of {argument}= must be seen.", around=site.layer)
    return NeuronTarget(site, unit.index, argument)
