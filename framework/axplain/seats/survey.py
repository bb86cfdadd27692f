"""Finds what a seat is in a model, and remembers it: two small passes are watched, one that begins there is tried."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.engine import Engine
from axplain.errors import ArgumentError, counted, log
from axplain.guard import RandomStates, occupied, untouched
from axplain.layout import USUAL, results
from axplain.memory import remembered
from axplain.problem import Problem
from axplain.propagation.operations import differentiable
from axplain.seats.memories import version
from axplain.seats.neurons import NeuronTarget
from axplain.seats.seating import Seating, Slot, Survey, in_words, structure_at
from axplain.seats.sites import Site, hooked, never_reached
from axplain.seats.tail import lowered
from axplain.seats.trace import ROWS, Trace, Tracing
from axplain.structure import alike, map_tensors
from axplain.targets import CallableTarget, NoTarget


def survey(problem: Problem, sites: tuple[Site, ...], *, replaced: bool = True) -> Survey:
    """Find the slots of some sites, once for each model, shape of input and layer of a target's neurons.

    `replaced`: whether the method puts other values there. Where it only reads them, one may be computed from another.

    Raises:
        ArgumentError: a layer is never reached, runs after the target, or holds nothing that can be explained.
    """
    watched = tuple(part.site for part in problem.target.parts if isinstance(part, NeuronTarget))
    aimless = isinstance(problem.target, NoTarget)
    # any index of an output is told by any other
    hooks = _hooks(problem) if replaced else ()
    device = problem.device.type
    casts = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    key = ("seat", sites, problem.shapes, problem.arguments.kinds(), watched, aimless, replaced, hooks, casts)
    if any(isinstance(part, CallableTarget) for part in problem.target.parts):
        return _survey(problem, sites, replaced, key)  # no key would tell what else another function reads
    return remembered(problem.model.function, key, lambda: _survey(problem, sites, replaced, key))


def _hooks(problem: Problem) -> tuple[int, ...]:
    """Tell the hooks of the model from those that it had before: what one keeps is not left without numbers."""
    parts = problem.model.parts.values()
    return tuple(id(hook) for p in parts for hook in (*p._forward_hooks.values(), *p._forward_pre_hooks.values()))


def _survey(problem: Problem, sites: tuple[Site, ...], replaced: bool, key: Any) -> Survey:
    with occupied(problem.model.function, True), untouched(problem.model.parts, problem.device):
        found = _looked_at(problem, sites, replaced)
        tried = ("tried", key)  # whatever function is the target, the model is the same
        holds = found.trace is None or remembered(problem.model.function, tried, lambda: _holds(problem, sites, found))
    return found if holds else attrs.evolve(found, trace=None)


def _holds(problem: Problem, sites: tuple[Site, ...], found: Survey) -> bool:
    """Whether a pass that begins at the seat gives what a whole one does: a model may look at the class of a tensor."""
    some = torch.arange(ROWS[0], device=problem.device) % problem.batch
    whole = attrs.evolve(problem.take(some), references=None, groups=None)
    seating = Seating(sites, structure_at(sites, found.slots, several=True), found)
    states, everyone = RandomStates.capture(problem.device), whole.everyone()
    expected = results(whole, everyone, USUAL)
    states.restore()
    tail = lowered(attrs.evolve(whole, seating=seating), Engine(ROWS[0]))
    try:
        told = results(tail, everyone, USUAL)
        return len(told) == len(expected) and all(map(alike, told, expected))
    except Exception:
        try:
            results(tail, everyone, USUAL)
        except Exception as error:
            log.debug("%s: what runs before it is not skipped: %s", in_words(sites), error)
            return False
        raise  # it failed once, of itself


def _looked_at(problem: Problem, sites: tuple[Site, ...], replaced: bool) -> Survey:
    """Look at two passes."""
    (one, first, bypassed), (two, second, _) = (_traced(problem, sites, rows, replaced) for rows in ROWS)
    if first.keys() != second.keys():
        raise ArgumentError("layer", f"{in_words(sites)} runs for some rows and not for others", "one that always runs")
    slots = tuple(_slot(sites[place[0]], place, tensor, second[place]) for place, tensor in first.items())
    written = one.written or two.written
    switches, trace = one.switches, Trace.of(one, two) if replaced else None
    one.outlived()  # what the first pass left, the second one may have replaced
    return Survey(slots, None if two.outlived() else trace, bypassed, switches, written)


def _traced(
    problem: Problem, sites: tuple[Site, ...], rows: int, replaced: bool
) -> tuple[Tracing, dict[tuple[int, int, int], Tensor], bool]:
    """Run the first example, several times in one batch; return the trace, what was met, and whether x goes around."""
    index = torch.zeros(rows, dtype=torch.long, device=problem.device)
    arguments = problem.arguments.rows(index)
    own = map_tensors(Tensor.clone, problem.examples(index))  # it may write to them
    tracing, met, states = Tracing(own, (index, arguments)), {}, RandomStates.capture(problem.device)
    before: list[tuple[Tensor, Tensor]] = []

    def see(site: int, call: int, leaves: list[Any]) -> list[Any] | None:
        with tracing.aside():  # a copy: what a layer hands through may be used elsewhere, too
            found = {place: leaf.clone() for place, leaf in _explained(sites[site], call, leaves, tracing).items()}
            before.extend((leaf, leaf.clone()) for leaf in found.values())
        met.update({(site, call, place): tensor for place, tensor in found.items()})
        if not replaced:
            return None
        tracing.reach(tuple(found.values()))
        return [found.get(place, leaf) for place, leaf in enumerate(leaves)]

    with tracing, problem.target.watching(problem.model), hooked(sites, see):  # the target sees what is put there
        raw = problem.model(own, arguments)
        tracing.give(raw)
        value = problem.target.select(raw, index)
    # `.data` counts no versions, and relu_ may change no number
    tracing.written = not all(version(held) == 0 and torch.equal(held, copy) for held, copy in before)
    missing = [site for i, site in enumerate(sites) if not any(place[0] == i for place in met)]
    if missing:
        raise never_reached(missing[0], "layer")
    if rows == ROWS[0]:
        _check_handed_on(problem, sites, index, states, value)
    aims = not isinstance(problem.target, NoTarget)
    if aims and not tracing.seated(value) and not _moves(problem, sites, index, states, met.keys()):
        raise ArgumentError(
            "layer", f"the target does not depend on {in_words(sites)}", "a layer that runs before the target"
        )
    return tracing, met, tracing.depends(value)


def _check_handed_on(
    problem: Problem, sites: tuple[Site, ...], index: Tensor, states: RandomStates, value: Tensor
) -> None:
    """Refuse layers whose own value, put back as another tensor, changes the target.

    Such a layer hands on a tensor that has other names, and the model writes to it under one of them.
    """
    plain = [_plain_value(problem, index, states) for _ in range(2)]
    loose = 1e-2 if value.dtype.itemsize < 4 else 1e-4
    same = [torch.allclose(plain[0], other, rtol=loose, atol=loose) for other in (value, plain[1])]
    if not same[0] and same[1]:  # a model whose passes differ by themselves is told of elsewhere
        cure = "Choose the layer behind the operation that writes."
        came = f"the value of {in_words(sites)} is written to under another name of the same tensor"
        raise ArgumentError("layer", came, "a value that the model only reads", cure)


def _moves(
    problem: Problem,
    sites: tuple[Site, ...],
    index: Tensor,
    states: RandomStates,
    places: Collection[tuple[int, int, int]],
) -> bool:
    """Whether the target changes with what the layers hold in code that no mode sees, as within torch.func."""

    def move(site: int, call: int, leaves: list[Any]) -> list[Any]:
        return [_moved(leaf) if (site, call, place) in places else leaf for place, leaf in enumerate(leaves)]

    plain, again = (_plain_value(problem, index, states) for _ in range(2))
    with hooked(sites, move):
        moved = _plain_value(problem, index, states)
    return torch.equal(plain, again) and not torch.equal(plain, moved)


def _moved(value: Tensor) -> Tensor:
    """Return other numbers, which differ from the old ones by another step each."""
    return value + torch.linspace(1, 2, value.numel(), dtype=value.dtype, device=value.device).view(value.shape)


def _plain_value(problem: Problem, index: Tensor, states: RandomStates) -> Tensor:
    """Return the target's value as the model gives it, with the random numbers of another pass."""
    states.restore()
    value: Tensor = results(problem, index, USUAL)[-1]
    return value


def _explained(site: Site, call: int, leaves: list[Any], tracing: Tracing) -> dict[int, Tensor]:
    """Return the tensors of one call that get attributions, by their place: those that depend on x."""
    tensors = [(place, leaf) for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if site.item is not None:
        if site.item >= len(tensors):
            came = f"item={site.item} came and {site} has {counted(len(tensors), 'tensor')}"
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
            "layer", f"{site} holds {tuple(one.shape)} for {ROWS[0]} rows and {tuple(two.shape)} for {ROWS[1]}",
            "an axis of the rows alone, of all its tensors", "Of several choose one: axplain.seat(layer, item=0).",
        )  # fmt: skip
    axis = differing[0]
    return Slot(*place, axis, (*one.shape[:axis], *one.shape[axis + 1 :]), one.dtype)
