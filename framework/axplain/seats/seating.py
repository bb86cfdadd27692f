"""What a seat is in one model: the tensors that pass there, found by two small passes that are remembered."""

from __future__ import annotations

from typing import Any, Final

import attrs
import torch
from torch import Tensor

from axplain.errors import ArgumentError
from axplain.memory import remembered
from axplain.problem import Arguments, Problem, References
from axplain.propagation.operations import differentiable
from axplain.randomness import Key
from axplain.references import resolve_references
from axplain.seats.sites import Site, hooked
from axplain.seats.trace import Trace, Tracing
from axplain.specs import BaselineKind
from axplain.structure import Structure, Tensors, map_tensors
from axplain.targets import CallableTarget

#: Two passes of these sizes tell where the rows lie.
ROWS: Final = (1, 2)


@attrs.frozen
class Slot:
    """One tensor of a seat: which call of which site, which of its tensors, the axis of its rows, and what it is."""

    site: int
    call: int
    item: int
    axis: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@attrs.frozen(eq=False)
class Survey:
    """What the two passes told: the slots, how to skip what is before them, and whether x goes around them."""

    slots: tuple[Slot, ...]
    trace: Trace | None
    bypassed: bool


@attrs.frozen(eq=False)
class Seating:
    """Where a question's attributions land. `baselines`: given as values of the seat, for a method of this kind."""

    sites: tuple[Site, ...]
    structure: Structure
    survey: Survey
    baselines: Any = None
    baseline_kind: BaselineKind = "none"
    method: str = ""

    def __str__(self) -> str:
        return _words(self.sites)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The tensors of the seat."""
        return self.survey.slots

    @property
    def trace(self) -> Trace | None:
        """How to skip the operations before the seat."""
        return self.survey.trace

    @property
    def used(self) -> tuple[tuple[int, int], ...]:
        """Which results of before the seat are used behind it."""
        return tuple(self.trace.used) if self.trace is not None else ()

    @property
    def axes(self) -> tuple[int | None, ...]:
        """The axis of the rows of each of them; None where it has none."""
        return tuple(self.trace.used.values()) if self.trace is not None else ()

    def without_trace(self) -> Seating:
        """Return the same, for models that take another way for other data."""
        return attrs.evolve(self, survey=attrs.evolve(self.survey, trace=None))

    def resolve(self, values: Tensors, key: Key) -> References | None:
        """Turn baselines that were given as values of the seat into references."""
        x = self.structure.pack(values)
        return resolve_references(
            self.baselines, self.baseline_kind, x, values, self.structure, key.at("baselines"), self.method
        )

    @property
    def cut(self) -> bool:
        """Whether all that the target knows of x passes the seat, so that attributions can sum to F(x) - F(x')."""
        return not self.survey.bypassed


def survey(problem: Problem, sites: tuple[Site, ...]) -> Survey:
    """Find the slots of some sites, once for each model, shape of input and target that is no function.

    Raises:
        ArgumentError: a layer is never reached, runs after the target, or holds nothing that can be explained.
    """
    if any(isinstance(part, CallableTarget) for part in problem.target.parts):
        return _survey(problem, sites)  # no key would tell what else another function reads
    shapes = tuple((tensor.shape[1:], tensor.dtype, tensor.device) for tensor in problem.inputs)
    key = ("seat", sites, shapes, _kinds(problem.arguments), type(problem.target), str(problem.target.describe()))
    found: Survey = remembered(problem.model.function, key, lambda: _survey(problem, sites))
    return found


def _kinds(arguments: Arguments) -> tuple[Any, ...]:
    """Return what a model might decide by: its other arguments, tensors by their shape."""
    everything: dict[Any, Any] = {**dict(enumerate(arguments.positional)), **arguments.keyword}
    return tuple(
        (name, (value.shape, value.dtype) if isinstance(value, Tensor) else repr(value)[:200])
        for name, value in everything.items()
    )


def _survey(problem: Problem, sites: tuple[Site, ...]) -> Survey:
    (one, first, bypassed), (two, second, _) = (_traced(problem, sites, rows) for rows in ROWS)
    if first.keys() != second.keys():
        raise ArgumentError("layer", f"{_words(sites)} runs for some rows and not for others", "one that always runs")
    slots = tuple(_slot(sites[place[0]], place, tensor, second[place]) for place, tensor in first.items())
    return Survey(slots, Trace.of(one, two), bypassed)


def _traced(
    problem: Problem, sites: tuple[Site, ...], rows: int
) -> tuple[Tracing, dict[tuple[int, int, int], Tensor], bool]:
    """Run the first example, several times in one batch; return the trace, what was met, and whether x goes around."""
    index = torch.zeros(rows, dtype=torch.long, device=problem.device)
    x = map_tensors(lambda tensor: tensor[index], problem.inputs)
    tracing, met = Tracing(x), {}

    def see(site: int, call: int, leaves: list[Any]) -> list[Any]:
        with tracing.aside():  # a copy: what a layer hands through may be used elsewhere, too
            found = {place: leaf.clone() for place, leaf in _explained(sites[site], call, leaves, tracing).items()}
        met.update({(site, call, place): tensor for place, tensor in found.items()})
        tracing.reach(tuple(found.values()))
        return [found.get(place, leaf) for place, leaf in enumerate(leaves)]

    arguments = problem.arguments.rows(index)
    with tracing, hooked(sites, see), problem.target.watching(problem.model):
        raw = problem.model(x, arguments)
        tracing.give(raw)
        value = problem.target.select(raw, index)
    missing = [site for i, site in enumerate(sites) if not any(place[0] == i for place in met)]
    if missing:
        which = f" (call {missing[0].call})" if missing[0].call is not None else ""
        raise ArgumentError("layer", f"{missing[0]}{which} is never reached for this x", "a layer that runs")
    if not tracing.seated(value):
        raise ArgumentError(
            "layer", f"the target does not depend on {_words(sites)}", "a layer that runs before the target"
        )
    return tracing, met, tracing.depends(value)


def _explained(site: Site, call: int, leaves: list[Any], tracing: Tracing) -> dict[int, Tensor]:
    """Return the tensors of one call that get attributions, by their place: those that depend on x."""
    tensors = [(place, leaf) for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if site.item is not None:
        if site.item >= len(tensors):
            came = f"item={site.item} came and {site} has {len(tensors)} tensors"
            raise ArgumentError("layer", came, f"an item below {len(tensors)}")
        tensors = [tensors[site.item]]
    if any(tracing.seated(leaf) for _, leaf in tensors):
        raise ArgumentError(
            "layer", f"call {call} of {site} is computed from another call or layer that was asked for",
            "layers side by side", "Ask for one call, axplain.seat(layer, call=0), and for one layer at a time.",
        )  # fmt: skip
    found = {place: leaf for place, leaf in tensors if tracing.depends(leaf) and differentiable(leaf)}
    if not found:
        came = f"call {call} of {site} holds no floating tensor that depends on x"
        raise ArgumentError("layer", came, "a layer between x and the target")
    return found


def _slot(site: Site, place: tuple[int, int, int], one: Tensor, two: Tensor) -> Slot:
    differing = [axis for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]]
    if len(differing) != 1 or (one.shape[differing[0]], two.shape[differing[0]]) != ROWS:
        raise ArgumentError(
            "layer", f"{site} holds {tuple(one.shape)} for one row and {tuple(two.shape)} for two",
            "a tensor with one axis for the rows", "Choose one of several with axplain.seat(layer, item=0).",
        )  # fmt: skip
    axis = differing[0]
    return Slot(*place, axis, (*one.shape[:axis], *one.shape[axis + 1 :]), one.dtype)


def _words(sites: tuple[Site, ...]) -> str:
    return ", ".join(map(str, sites))


def structure_at(sites: tuple[Site, ...], slots: tuple[Slot, ...], *, several: bool) -> Structure:
    """Return how attributions are put together: a tensor, a tuple of one layer's, or a dict of those of several."""
    if several:
        return Structure("dict", tuple(_label(sites, slots, slot) for slot in slots))
    if len(slots) == 1:
        return Structure("tensor", ("x",))
    return Structure("tuple", tuple(map(str, range(len(slots)))))


def _label(sites: tuple[Site, ...], slots: tuple[Slot, ...], slot: Slot) -> str:
    """Return the layer's name, and what else tells its tensors apart."""
    site = sites[slot.site]
    mine = [other for other in slots if other.site == slot.site]
    calls, items = len({other.call for other in mine}), len({other.item for other in mine})
    twins = [other for other in sites if other.name == site.name]
    words = [
        site.name,
        site.of if len({twin.of for twin in twins}) > 1 else "",
        f"call {slot.call}" if calls > 1 or len({twin.call for twin in twins}) > 1 else "",
        f"item {slot.item}" if items > 1 or len({twin.item for twin in twins}) > 1 else "",
    ]
    return " ".join(filter(None, words))
