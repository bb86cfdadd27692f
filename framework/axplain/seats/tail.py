"""The model that begins at a seat, and the question about it: what `explain(layer=...)` is lowered to.

The values of the layer become the inputs; the model's own inputs follow the examples as arguments. What runs before
the seat is answered from memory where a trace tells how, and run again for every row where none does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.engine import Engine
from axplain.errors import ArgumentError, UnsupportedModel
from axplain.model import Model
from axplain.problem import Arguments, Problem, References
from axplain.randomness import Key
from axplain.references import resolve_references
from axplain.seats.seating import Seating
from axplain.seats.sites import hooked
from axplain.seats.trace import Diverged, Keeping, Skipping
from axplain.structure import Tensors, concatenate, map_tensors


@attrs.frozen(eq=False)
class TailModel(Model):
    """Calls a model with rows of the seat's values; `arguments` begin with the inputs of its own and what was kept."""

    whole: Model
    seating: Seating

    @property
    def key(self) -> Any:
        """What tells this model from the whole one, where something is remembered of both."""
        return self.seating.sites

    def __call__(self, inputs: Tensors, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """Return the raw output with the rows in the place of what the layers gave."""
        positional, keyword = arguments
        own, rest = len(self.whole.structure.names), len(self.seating.used)
        given, kept, more = positional[:own], positional[own : own + rest], positional[own + rest :]
        if self.seating.trace is not None:
            tensors = dict(zip(self.seating.used, map(_back, kept, self.seating.axes), strict=True))
            try:
                with Skipping(self.seating.trace, tensors, len(inputs[0])) as mode:
                    raw = self._run(inputs, given, (more, keyword), mode.reach)
                mode.check(raw)
                return raw
            except Diverged:
                pass  # it takes another way than the trace, or uses more of what is before the seat: in full, then
        return self._run(inputs, given, (more, keyword), lambda: None)

    def _run(self, rows: Tensors, given: Tensors, rest: Any, reach: Callable[[], None]) -> Any:
        placed = 0

        def put(site: int, call: int, leaves: list[Any]) -> list[Any] | None:
            nonlocal placed
            slots = self.seating.passing(site, call)
            if slots and not placed:
                reach()
            for i, slot in slots:
                leaves[slot.item] = rows[i].movedim(0, slot.axis).to(slot.dtype)
                placed += 1
            return leaves if slots else None

        with hooked(self.seating.sites, put):
            raw = self.whole(given, rest)
        if placed < len(self.seating.slots):
            raise UnsupportedModel(
                f"layer: {self.seating} was reached {placed} times where {len(self.seating.slots)} were expected: "
                "which layers run depends on the data. Choose a layer that always runs."
            )
        return raw


def lowered(problem: Problem, engine: Engine) -> Problem:
    """Return the question about the model that begins at the seat, with inputs and references carried there.

    Cost: one forward row for each example, and for each reference that is given at the input.
    """
    seating = problem.seating
    assert seating is not None, "asked for problems that have a seat"
    try:
        values, kept = _carry(problem, engine, problem.inputs, problem.everyone(), keep=True)
    except Diverged:  # another way through the model than the trace: every pass runs in full
        seating = seating.without_trace()
        problem = attrs.evolve(problem, seating=seating)
        values, kept = _carry(problem, engine, problem.inputs, problem.everyone())
    structure = seating.structure
    positional = (*problem.inputs, *kept, *problem.arguments.positional)
    before = len(problem.inputs) + len(kept)
    follow = {
        *(i for i in range(len(problem.inputs))),
        *(len(problem.inputs) + i for i, axis in enumerate(seating.axes) if axis is not None),
        *(before + name if isinstance(name, int) else name for name in problem.arguments.follow),
    }
    return attrs.evolve(
        problem,
        model=TailModel(problem.model.function, structure, problem.model, seating),
        inputs=values,
        references=_references(problem, engine, values),
        arguments=Arguments(positional, problem.arguments.keyword, frozenset(follow)),
        seating=None,
    )


def _references(problem: Problem, engine: Engine, values: Tensors) -> References | None:
    seating, references = problem.seating, problem.references
    assert seating is not None, "asked for problems that have a seat"
    if seating.baselines is not None:
        return resolved_at(seating, values, problem.key)
    if references is None:
        return None
    if not problem.arguments.follow:
        anyone = torch.zeros(len(references.rows[0]), dtype=torch.long, device=problem.device)
        return References(_carry(problem, engine, references.rows, anyone)[0], references.index)
    index = references.index.flatten()
    rows = map_tensors(lambda table: table[index], references.rows)
    of = problem.everyone().repeat_interleave(references.count)
    own = torch.arange(len(index), device=index.device).view_as(references.index)
    return References(_carry(problem, engine, rows, of)[0], own)


def resolved_at(seating: Seating, values: Tensors, key: Key) -> References | None:
    """Turn baselines that were given as values of the seat into references."""
    x, kind, structure = seating.structure.pack(values), seating.baseline_kind, seating.structure
    return resolve_references(seating.baselines, kind, x, values, structure, key.at("baselines"), seating.method)


def _carry(
    problem: Problem, engine: Engine, x: Tensors, index: Tensor, *, keep: bool = False
) -> tuple[Tensors, Tensors]:
    """Return the seat's values at rows of the input, and what is used behind it, the rows first."""
    seating = problem.seating
    assert seating is not None, "asked for problems that have a seat"
    values, kept = [], []
    for chunk in engine.chunks(problem, len(index)):
        rows = map_tensors(lambda tensor, chunk=chunk: tensor[chunk], x)
        found = _pass(problem, seating, rows, index[chunk], keep=keep)
        values.append(found[0])
        kept.append(found[1])
    parts = zip(zip(*kept, strict=True), seating.axes, strict=False)
    return concatenate(values), tuple(each[0] if axis is None else torch.cat(each) for each, axis in parts)


def _pass(problem: Problem, seating: Seating, x: Tensors, index: Tensor, *, keep: bool) -> tuple[Tensors, Tensors]:
    found: dict[int, Tensor] = {}
    keeping = Keeping(seating.trace) if keep and seating.trace is not None else None

    def see(site: int, call: int, leaves: list[Any]) -> None:
        slots = seating.passing(site, call)
        if slots and not found and keeping is not None:
            keeping.reach()
        for i, slot in slots:
            found[i] = leaves[slot.item].detach().movedim(slot.axis, 0).clone()

    rows, rest = map_tensors(Tensor.clone, x), problem.arguments.rows(index)
    with keeping or nullcontext(), problem.target.watching(problem.model), hooked(seating.sites, see):
        problem.model(rows, rest)
    if len(found) < len(seating.slots):
        raise ArgumentError("layer", f"{seating} is reached for some rows and not for others", "one that always runs")
    values = tuple(found[i] for i in range(len(seating.slots)))
    if keeping is None:
        return values, ()
    places = zip(seating.used, seating.axes, strict=True)
    return values, tuple(_forth(keeping.kept[place], axis) for place, axis in places)


def _forth(tensor: Tensor, axis: int | None) -> Tensor:
    return tensor if axis is None else tensor.movedim(axis, 0)


def _back(tensor: Tensor, axis: int | None) -> Tensor:
    """Put the rows where they were; what has none is every pass's own copy, which the model may write to."""
    return tensor.clone() if axis is None else tensor.movedim(0, axis)
