"""What a pass over rows of the input tells at a layer: its values, the gradient there, its rate along a path.

For methods that look at the model at points of the input and attribute to a layer, or through a neuron. Gradients are
taken behind the layer only: what runs before it keeps no graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import attrs
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from axplain.errors import ArgumentError, UnsupportedModel
from axplain.forward_mode import dual_level, lacks_forward_derivative, unfused
from axplain.seats.neurons import NeuronTarget
from axplain.seats.seating import Seating, Slot
from axplain.seats.sites import hooked
from axplain.structure import Tensors, map_tensors

#: rows, and what to look at them with, inside of what the target itself looks with -> the target's value at them
Pass = Callable[[Tensors, AbstractContextManager[None]], Tensor]


@attrs.frozen(eq=False)
class Read:
    """What one pass told: (rows,) values of the target; (rows, ...) terms and, of a layer, what it held."""

    value: Tensor | None
    terms: Tensors
    activation: Tensors | None = None


class Reading(ABC):
    """A way to look at a layer while rows of the input pass. `backward`: whether it takes a gradient."""

    backward = True

    def part(self, chunk: slice) -> Reading:
        """Return the reading of some of the rows."""
        return self

    @abstractmethod
    def take(self, x: Tensors, run: Pass) -> Read:
        """Run the rows and return what was read."""


@attrs.frozen(eq=False)
class Activation(Reading):
    """The values of the layer; the target is not asked."""

    seating: Seating
    backward = False

    def take(self, x: Tensors, run: Pass) -> Read:
        """Return the layer's values as terms."""
        found: dict[int, Tensor] = {}

        def see(site: int, call: int, leaves: list[Any]) -> None:
            for i, slot in self.seating.passing(site, call):
                found[i] = leaves[slot.item].detach().movedim(slot.axis, 0).clone()

        run(map_tensors(Tensor.clone, x), hooked(self.seating.sites, see))
        values = _all(self.seating, found)
        return Read(None, values, values)


@attrs.frozen(eq=False)
class Gradient(Reading):
    """The gradient with respect to the layer's values; with tangents, times the layer's derivative along them.

    `tangents`: (rows, ...) per input, the direction in which each row moves.
    """

    seating: Seating
    tangents: Tensors | None = None

    def part(self, chunk: slice) -> Gradient:
        """Return the reading of some of the rows."""
        if self.tangents is None:
            return self
        return Gradient(self.seating, map_tensors(lambda tangent: tangent[chunk], self.tangents))

    def take(self, x: Tensors, run: Pass) -> Read:
        """Return the gradients, (rows, ...) per tensor of the layer, or their products with the rates."""
        cut = _Cut(self.seating, self.tangents is not None)
        # a model that ends a block of no_grad behind the layer puts back the mode that it found before it
        with self._moving(x) as rows, torch.set_grad_enabled(self.seating.survey.switches):
            value = run(rows, hooked(self.seating.sites, cut.meet))
        leaves = _all(self.seating, cut.leaves)
        terms = _gradients(value, leaves, f"the target does not depend differentiably on {self.seating}")
        if self.tangents is not None:
            terms = map_tensors(torch.mul, terms, _all(self.seating, cut.rates))
        return Read(value.detach(), self._in_front(terms), self._in_front(map_tensors(Tensor.detach, leaves)))

    def _in_front(self, tensors: Tensors) -> Tensors:
        return tuple(t.movedim(slot.axis, 0) for t, slot in zip(tensors, self.seating.slots, strict=True))

    @contextmanager
    def _moving(self, x: Tensors) -> Iterator[Tensors]:
        """Give copies of the rows, which a model may write to; with tangents, as dual numbers."""
        if self.tangents is None:
            yield map_tensors(Tensor.clone, x)
            return
        with forward_derivatives(), dual_level():
            yield map_tensors(_dual, x, self.tangents)


@attrs.frozen(eq=False)
class ThroughNeuron(Reading):
    """The gradient with respect to the input of the part of the target that passes one neuron: `dF/dh * dh/dx`."""

    neuron: NeuronTarget

    def take(self, x: Tensors, run: Pass) -> Read:
        """Return (rows, ...) per input."""
        met: list[tuple[Tensor, Tensor]] = []
        layer = self.neuron.site

        def meet(site: int, call: int, leaves: list[Any]) -> list[Any]:
            before = self.neuron.value_in(leaves)
            leaf = before.detach().clone().requires_grad_()
            met.append((before, leaf))
            place = next(i for i, item in enumerate(leaves) if item is before)
            return [*leaves[:place], leaf.clone(), *leaves[place + 1 :]]

        with torch.enable_grad():
            inputs = tuple(tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in x)
            value = run(map_tensors(Tensor.clone, inputs), hooked((layer,), meet))
            self.neuron.check_calls(len(met))
            before, leaf = met[0]
            onward = _gradients(value, (leaf,), f"the target does not depend differentiably on {layer}")[0]
            through = self.neuron.pick(self.neuron.rows_first(before * onward, len(x[0]))).sum()
            terms = _gradients(through, inputs, f"{layer} does not depend differentiably on x")
        return Read(value.detach(), terms)


@attrs.define(eq=False)
class _Cut:
    """Puts a fresh leaf in the place of each of the layer's values, and keeps a graph from there on."""

    seating: Seating
    moving: bool
    leaves: dict[int, Tensor] = attrs.field(factory=dict)
    rates: dict[int, Tensor] = attrs.field(factory=dict)

    def meet(self, site: int, call: int, leaves: list[Any]) -> list[Any] | None:
        slots = self.seating.passing(site, call)
        if not slots:
            return None
        torch.set_grad_enabled(True)  # until the block around the pass ends
        for i, slot in slots:
            leaves[slot.item] = self._leaf(i, slot, leaves[slot.item])
        return leaves

    def _leaf(self, i: int, slot: Slot, value: Tensor) -> Tensor:
        if self.moving:
            value, rate = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
            self.rates[i] = torch.zeros_like(value) if rate is None else rate.detach().clone()
        leaf = value.detach().clone()
        self.leaves[i] = leaf.requires_grad_(leaf.is_floating_point())
        return leaf.clone()  # the model may write to it


def _all(seating: Seating, found: dict[int, Tensor]) -> Tensors:
    if len(found) < len(seating.slots):
        raise ArgumentError("layer", f"{seating} is reached for some rows and not for others", "one that always runs")
    return tuple(found[i] for i in range(len(seating.slots)))


def _gradients(value: Tensor, leaves: Tensors, fault: str) -> Tensors:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    told: Tensors = ()
    if value.requires_grad and wanted:
        told = torch.autograd.grad(value, wanted, torch.ones_like(value), allow_unused=True)
    if all(gradient is None for gradient in told):
        raise UnsupportedModel(
            f"model: {fault}: it comes before it, or a step between them detaches, rounds, or is under no_grad. Choose "
            "a target, or a layer, on the same side of that step."
        )
    given = iter(told)
    each = (next(given) if leaf.requires_grad else None for leaf in leaves)
    return tuple(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(each, leaves, strict=True))


def _dual(row: Tensor, tangent: Tensor) -> Tensor:
    if not row.is_floating_point():
        return row.clone()
    dual: Tensor = forward_ad.make_dual(row.clone(), tangent.to(row.dtype))  # type: ignore[no-untyped-call]
    return dual


@contextmanager
def forward_derivatives() -> Iterator[None]:
    """Let forward derivatives run: attention as plain mathematics, no fused encoder layers; restored afterwards.

    Raises:
        UnsupportedModel: an operation has no forward derivative.
    """
    try:
        with unfused():
            yield
    except (NotImplementedError, RuntimeError) as error:
        if not lacks_forward_derivative(error):
            raise
        raise UnsupportedModel(
            "model: an operation before the layer has no forward derivative, which the rate of a layer along a path "
            f"needs: {str(error).splitlines()[0].rstrip('.')}. A method that looks at the layer's own values, "
            "integrated gradients with layer= for one, needs none."
        ) from error
