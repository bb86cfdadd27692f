"""The model that begins at a seat, and the question about it: what `explain(layer=...)` is lowered to.

The values of the layer become the inputs; the model's own inputs follow the examples as arguments. What runs before
the seat is answered from memory where a trace tells how, and run again for every row where none does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.engine import Engine
from axplain.errors import ArgumentError, UnsupportedModel, counted
from axplain.layout import USUAL, Layout
from axplain.model import Model, finite_values
from axplain.problem import Arguments, Problem, References
from axplain.randomness import Key
from axplain.references import resolve_references
from axplain.seats.blanks import Diverged
from axplain.seats.operands import Operands
from axplain.seats.seating import Seating
from axplain.seats.sites import hooked
from axplain.seats.trace import Keeping, Repeating, Skipping, Trace
from axplain.structure import Tensors, concatenate, map_tensors, usable


@attrs.frozen(eq=False)
class TailModel(Model):
    """Calls a model with rows of the seat's values; `arguments` begin with the rows' examples and what was kept.

    `own`: the inputs of each example, as the whole model takes them. `noted`: what the operations before the seat were
    given in the pass that carried the first rows there.
    """

    whole: Model
    seating: Seating
    own: Tensors
    noted: Operands | None = None

    @property
    def key(self) -> Any:
        """What tells this model from the whole one, where something is remembered of both."""
        return self.seating.sites, tuple(tensor.shape[1:] for tensor in self.own)

    @property
    def steady(self) -> bool:
        """Whether a pass was seen to compute before the seat what the pass computed that carried rows there."""
        return self.noted is not None and bool(self.noted.repeated)

    @property
    def spares(self) -> bool:
        """Whether nothing behind the seat wrote to what the survey put there."""
        return not self.seating.survey.written

    def __call__(self, inputs: Tensors, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """Return the raw output with the rows in the place of what the layers gave."""
        examples, kept, rest = self._parted(arguments)
        if self.seating.trace is not None:
            try:
                return self._answered(inputs, examples, rest, self._mode(self.seating.trace, kept, len(inputs[0])))
            except Diverged:
                pass  # it takes another way than the trace, or uses more of what is before the seat: in full, then
        given = map_tensors(lambda tensor: tensor[examples], self.own)
        return self._run(inputs, given, rest, lambda: None)

    def _mode(self, trace: Trace, kept: dict[tuple[int, int], Tensor], rows: int) -> Skipping:
        """Return what answers the operations before the seat, and compares them the first time."""
        if self.noted is None or self.noted.repeated is not None:
            return Skipping(trace, kept, rows)
        return Repeating(trace, kept, rows, self.noted)

    def _parted(
        self, arguments: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> tuple[Tensor, dict[tuple[int, int], Tensor], Any]:
        """Return the example of each row, what is kept of before the seat, and the whole model's other arguments."""
        (examples, *positional), keyword = arguments
        used = self.seating.used
        kept = map(_back, positional[: len(used)], self.seating.axes)
        return examples, dict(zip(used, kept, strict=True)), (tuple(positional[len(used) :]), keyword)

    def _answered(self, rows: Tensors, examples: Tensor, rest: Any, mode: Skipping) -> Any:
        given = mode.inputs(self.own, examples, rest)
        with mode:
            raw = self._run(rows, given, rest, mode.reach)
        del given
        mode.end()
        return raw

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
                f"layer: {self.seating} was reached {counted(placed, 'time')} where {len(self.seating.slots)} were "
                "expected: which layers run depends on the data. Choose a layer that always runs."
            )
        return raw


def lowered(problem: Problem, engine: Engine, *, ends: bool = False, again: bool = False) -> Problem:
    """Return the question about the model that begins at the seat, with inputs and references carried there.

    `ends`: the passes that carry them shall tell F(x) and F(x'), too, of a question about one target. `again`: whether
    the model shall tell if it is `steady`.
    Cost: one forward row for each example, and for each reference that is given at the input.
    """
    seating = problem.seating
    assert seating is not None, "asked for problems that have a seat"
    load = _Load.of_problem(problem, ends=ends and problem.targets == 1)
    try:
        carried = _carry(problem, engine, load, keep=True, note=again)
    except Diverged:  # another way through the model than the trace: every pass runs in full
        seating = seating.without_trace()
        problem = attrs.evolve(problem, seating=seating)
        carried = _carry(problem, engine, load, keep=False, note=False)
    structure, kept, batch = seating.structure, carried.kept, problem.batch
    positional = (problem.everyone(), *kept, *problem.arguments.positional)
    before = 1 + len(kept)
    follow = {
        0,
        *(1 + i for i, axis in enumerate(seating.axes) if axis is not None),
        *(before + name if isinstance(name, int) else name for name in problem.arguments.follow),
    }
    values = map_tensors(lambda tensor: tensor[:batch], carried.values)
    if seating.baselines is not None:
        references = resolved_at(seating, values, problem.key)
    else:
        rows = map_tensors(lambda tensor: tensor[batch:], carried.values)
        references = None if load.index is None else References(rows, load.index)
    return attrs.evolve(
        problem,
        model=TailModel(problem.model.function, structure, problem.model, seating, problem.inputs, carried.noted),
        inputs=values,
        references=references,
        arguments=Arguments(positional, problem.arguments.keyword, frozenset(follow)),
        seating=None,
        ends=load.ends(carried.told),
    )


@attrs.frozen(eq=False)
class _Load:
    """What is carried to a seat: the examples, then every reference row that is given at the input.

    `of`: (rows,) the example that each row belongs to. `index`: (batch, k), which of the reference rows are an
    example's. `askers`: (rows,) each, examples whose target is selected from the output of each row. `column`: (batch,)
    which of them asks for an example's references.
    """

    x: Tensors
    of: Tensor
    index: Tensor | None
    askers: tuple[Tensor, ...]
    column: Tensor | None

    @classmethod
    def of_problem(cls, problem: Problem, *, ends: bool) -> _Load:
        """Put together what a question needs."""
        everyone, references = problem.everyone(), problem.references
        if references is None:
            return cls(problem.inputs, everyone, None, (), None)
        column = torch.zeros_like(everyone)
        if problem.arguments.follow:  # a reference is another one for each example
            flat = references.index.flatten()
            rows = map_tensors(lambda table: table[flat], references.rows)
            owners = everyone.repeat_interleave(references.count)
            index = torch.arange(len(flat), device=flat.device).view_as(references.index)
        else:
            rows, index = references.rows, references.index
            owners = torch.zeros(len(rows[0]), dtype=torch.long, device=problem.device)
        x = map_tensors(lambda clean, more: torch.cat([clean, more]), problem.inputs, rows)
        of = torch.cat([everyone, owners])
        askers: tuple[Tensor, ...] = (of,) if ends else ()
        if ends and problem.batch > 1 and not problem.arguments.follow:
            distinct, code = torch.unique(problem.variants(), return_inverse=True)
            if len(distinct) > 1:
                first = torch.empty_like(distinct).scatter_(0, code, everyone)
                askers = (of, *(torch.full_like(of, int(example)) for example in first))
                column = code + 1
        return cls(x, of, index, askers, column)

    def ends(self, told: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return F(x) and mean F(x') of each example from the targets that were told, (rows, askers)."""
        if not self.askers or self.index is None or self.column is None:
            return None
        batch = self.column.shape[0]
        if told.shape == (batch + 1, 1):  # one reference for all, which a small model would notice to be looked for
            return told[:batch, 0], told[batch].expand(batch)
        return told[:batch, 0], told[batch:][self.index, self.column[:, None]].mean(1)


def resolved_at(seating: Seating, values: Tensors, key: Key) -> References | None:
    """Turn baselines that were given as values of the seat into references."""
    x, kind, structure = seating.structure.pack(values), seating.baseline_kind, seating.structure
    return resolve_references(seating.baselines, kind, x, values, structure, key.at("baselines"), seating.method)


@attrs.frozen(eq=False)
class _Carried:
    """What passes over rows of the input gave: the seat's values, what is used behind it, (rows, askers) targets.

    `noted`: what the operations of the first pass were given, where that was asked for.
    """

    values: Tensors
    kept: Tensors
    told: Tensor
    noted: Operands | None


def _carry(problem: Problem, engine: Engine, load: _Load, *, keep: bool, note: bool) -> _Carried:
    """Run the rows up to the seat and behind it; `keep`: what is used there, of the examples."""
    seating = problem.seating
    assert seating is not None, "asked for problems that have a seat"
    found = []
    for chunk in engine.chunks(problem, len(load.of)):
        rows = map_tensors(lambda tensor, chunk=chunk: tensor[chunk], load.x)
        askers = tuple(asker[chunk] for asker in load.askers)
        found.append(engine.in_layout(problem, _Passing(problem, rows, load.of[chunk], askers, keep, note).run))
    joined = found[0] if len(found) == 1 else _joined(found, seating.axes)
    kept = (
        each if axis is None else each[: problem.batch] for each, axis in zip(joined.kept, seating.axes, strict=False)
    )
    return attrs.evolve(joined, kept=tuple(kept))


def _joined(parts: Sequence[_Carried], axes: Sequence[int | None]) -> _Carried:
    """Join the rows of several passes; what has none is that of the first."""
    each = zip(zip(*(part.kept for part in parts), strict=True), axes, strict=False)
    kept = tuple(tensors[0] if axis is None else torch.cat(tensors) for tensors, axis in each)
    told = torch.cat([part.told for part in parts])
    return _Carried(concatenate(part.values for part in parts), kept, told, parts[0].noted)


@attrs.frozen(eq=False)
class _Passing:
    """One pass over rows that belong to the examples of `index`."""

    problem: Problem
    x: Tensors
    index: Tensor
    askers: tuple[Tensor, ...]
    keep: bool
    note: bool

    def run(self, layout: Layout) -> _Carried:
        """Run the rows up to the seat and behind it; what they give lies as it usually does."""
        problem, seating = self.problem, self.problem.seating
        assert seating is not None, "asked for problems that have a seat"
        rows, rest = map_tensors(layout.copied, self.x), problem.arguments.rows(self.index)
        found: dict[int, Tensor] = {}
        operands = Operands(len(self.index)) if self.note else None
        if operands is not None:
            operands.called_with(rows, rest)
        keeping = Keeping(seating.trace, operands) if self.keep and seating.trace is not None else None

        def see(site: int, call: int, leaves: list[Any]) -> list[Any] | None:
            slots = seating.passing(site, call)
            if slots and not found and keeping is not None:
                keeping.reach()
            for i, slot in slots:
                leaves[slot.item] = layout.usual(leaves[slot.item])  # behind a layer the usual one is the faster
                found[i] = leaves[slot.item].detach().movedim(slot.axis, 0).clone()
            return leaves if slots and layout is not USUAL else None

        with problem.target.watching(problem.model):
            with keeping or nullcontext(), hooked(seating.sites, see):
                raw = problem.model(rows, rest)
            told = [finite_values(problem.target.select(raw, of)).double() for of in self.askers]
        if len(found) < len(seating.slots):
            raise ArgumentError(
                "layer", f"{seating} is reached for some rows and not for others", "one that always runs"
            )
        values = tuple(usable(found[i]) for i in range(len(seating.slots)))
        chosen = torch.stack(told, 1) if told else torch.empty(len(self.index), 0, device=self.index.device)
        if keeping is None:
            return _Carried(values, (), chosen, None)
        places = zip(seating.used, seating.axes, strict=True)
        kept = tuple(layout.usual(_forth(keeping.kept[place], axis)) for place, axis in places)
        return _Carried(values, kept, chosen, keeping.operands)


def _forth(tensor: Tensor, axis: int | None) -> Tensor:
    return tensor if axis is None else tensor.movedim(axis, 0)


def _back(tensor: Tensor, axis: int | None) -> Tensor:
    """Put the rows where they were; what has none is every pass's own copy, which the model may write to."""
    return tensor.clone() if axis is None else tensor.movedim(0, axis)
