"""Which scalar per example is explained: the output itself, an index, a callable on the raw output, a neuron.

Or several of them, from the same passes.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten  # containers, and the outputs of Hugging Face models

from axplain.errors import ArgumentError, UnsupportedModel, counted
from axplain.hidden import refuse_hidden_code
from axplain.model import Model, output_tensor
from axplain.seats.sites import Seat, Site, hooked, never_reached, resolve_site


class Target(Protocol):
    """Selects (rows,) values from the raw output of rows that belong to the examples of `index`."""

    @property
    def parts(self) -> tuple[Target, ...]:
        """The target itself, or the several that it is made of."""
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


class _Same:
    """A single target that is the same for every example and needs nothing of the model."""

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self,)

    def take(self, index: Tensor) -> Any:
        return self

    def codes(self, batch: int, device: torch.device) -> Tensor:
        return torch.zeros(batch, dtype=torch.long, device=device)

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        yield


@attrs.frozen(eq=False)
class NoTarget(_Same):
    """For methods that explain none: all that the model returns, summed, tells one pass from another."""

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one number for all rows."""
        tensors = [leaf for leaf in tree_flatten(raw)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        return torch.stack([tensor.sum() for tensor in tensors]).sum().expand(len(index))

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        return "none"


@attrs.frozen(eq=False)
class OutputTarget(_Same):
    """The output itself, for models that return (batch,) or (batch, 1)."""

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
class PredictedTarget(_Same):
    """The largest output of each example; remembers which one it was, to become the target of the call."""

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

    def resolved(self) -> Target:
        """Return the predicted class of each example, or the output itself where there is one number."""
        return OutputTarget() if bool((self.best < 0).all()) else IndexTarget(self.best[:, None])

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        return self.best.tolist()


@attrs.frozen(eq=False)
class IndexTarget(_Same):
    """`output[i, *indices[i]]`: (batch, depth) indices on the CPU, or (1, depth) for all examples alike."""

    indices: Tensor

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one value per row."""
        output = rows_of(output_tensor(raw), len(index))
        shape = output.shape[1:]
        if len(self.indices) > 1:
            self._check(shape)
            columns = self.indices.to(output.device)[index.to(output.device)]
            return output[(torch.arange(len(index), device=output.device), *columns.unbind(1))]
        same = self.indices[0].tolist()
        if len(same) != len(shape) or not all(-size <= item < size for item, size in zip(same, shape, strict=True)):
            self._check(shape)
        picked: Tensor = output[:, *same]
        return picked

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
class CallableTarget(_Same):
    """A function of the model's raw output that returns one value per row."""

    function: Callable[[Any], Any]

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
            (batch, ...), to (batch,).
    """
    return Neuron(layer, index)


@attrs.frozen(eq=False)
class NeuronTarget(_Same):
    """Selects a unit from what a layer returned, or was given, during the model's pass."""

    site: Site
    index: int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]
    argument: str = "target"
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
        """Return the layer's value if it has one row per input row.

        Raises:
            ArgumentError: it has not, as a layer that puts a sequence or heads before the rows.
        """
        if value.ndim == 0 or len(value) != rows:
            cure = "Choose a layer before or behind the step that moves the rows; layer= takes them on any axis."
            came = f"{self.site} holds {tuple(value.shape)} for {rows} rows"
            raise ArgumentError(self.argument, came, f"a layer with {rows} as its first dimension", cure)
        return value

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


def rows_of(output: Tensor, rows: int) -> Tensor:
    """Return the output if it has one row per input row.

    Raises:
        UnsupportedModel: it has not.
    """
    if output.ndim == 0 or len(output) != rows:
        shape = tuple(output.shape)
        raise UnsupportedModel(
            f"model: {rows} rows went in and the output has the shape {shape}; expected {rows} as its first dimension. "
            "For a model that returns one number for a batch, such as a mean loss, explain axplain.per_batch(model) at "
            "x.unsqueeze(0); sequence-first output needs a wrapper that puts the batch first."
        )
    return output


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
