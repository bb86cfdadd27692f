"""Recorded references and rule gradients of examples: what the engine runs instead of a plain gradient pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import attrs
import torch
from torch import Tensor

from axplain.errors import UncoveredOperation
from axplain.memory import remembered
from axplain.model import Model, finite_values, output_tensor
from axplain.problem import Problem
from axplain.propagation.graph import foreign_nodes
from axplain.propagation.mode import Following, Recording
from axplain.propagation.rules import Ledger, RuleSet
from axplain.propagation.tape import Axes, Reader, Tape, row_axes
from axplain.structure import Rows, Tensors, map_tensors

#: Two small passes of these sizes tell where the rows lie.
PROBE_ROWS: Final = (1, 2)

Run = Callable[[Tensors, Tensor], Any]


class Comparison(Protocol):
    """The rows of a rule pass, which can be cut before what they are compared with is run."""

    def part(self, chunk: slice) -> Comparison:
        """Return the comparison of some of the rows."""
        ...

    def ready(self) -> RulePass:
        """Return the pass; references that have not run yet run now."""
        ...


@attrs.frozen(eq=False)
class RulePass:
    """A rule set, the tape it compares with, and the row of the tape that belongs to each row that is asked.

    `rows`: (n,), or None where the tape has the same rows as the examples, or there is none. `notes` collects
    operations without a rule, `ledger` what operations keep of the relevance.
    """

    rules: RuleSet
    tape: Tape | None
    rows: Tensor | None
    notes: set[str]
    ledger: Ledger | None = None
    _nodes: set[Any] = attrs.field(factory=set, init=False)
    _own: set[Any] = attrs.field(factory=set, init=False)

    def part(self, chunk: slice) -> RulePass:
        """Return the pass for some of its rows."""
        return self if self.rows is None else attrs.evolve(self, rows=self.rows[chunk])

    def ready(self) -> RulePass:
        """Return the pass itself: its references have run."""
        return self

    def reference_values(self, problem: Problem, index: Tensor) -> Tensor | None:
        """Return F(x') of each row, (rows,), where references were run."""
        if self.tape is None:
            return None
        if self.tape.values is None:
            return finite_values(problem.target.select(self.tape.output[self.rows], index))
        return self.tape.values if self.rows is None else self.tape.values[self.rows]

    @contextmanager
    def following(self, model: Model, rows: Tensors) -> Iterator[None]:
        """Run a forward pass over examples in step with the tape."""
        reader = Reader(self.tape, self.rows) if self.tape is not None else None
        mode = Following(self.rules, model.module, self.notes, reader, self.ledger)
        mode.whole = model.key is None
        mode.depend(rows)
        try:
            with mode:
                yield
        finally:
            mode.marks.release()
        if mode.whole:
            self.rules.finish(mode.scratch)
        self._nodes.update(mode.nodes)
        self._own.update(mode.own)
        if reader is not None:
            reader.finish()

    def check(self, value: Tensor, leaves: Tensors) -> None:
        """Refuse a graph with nodes that are neither ours nor linear.

        Raises:
            UncoveredOperation: naming them.
        """
        nodes = sorted(set(foreign_nodes(value, leaves, self._nodes, self._own)))
        self._nodes.clear()
        self._own.clear()
        if nodes and self.rules.unknown == "gradient":
            self.notes.update(nodes)
        elif nodes:
            cure = "" if self.rules.relevance else ", or take the plain gradient with unknown='gradient'"
            raise UncoveredOperation(
                f"model: {', '.join(nodes)} in its graph never passed through the rules: a custom autograd function, "
                "scripted code, vmap, or another thread. Write it with torch operations, use a method without rules, "
                f"such as integrated_gradients{cure}."
            )


def record(problem: Problem, rows: Rows, rules: RuleSet, notes: set[str], run: Run, *, paired: bool) -> Tape:
    """Run references and return their tape, with the target's values, or with the output where they are chosen later.

    `run(x, index)` calls the model. `paired`: each row is the reference of one row of the examples.
    """
    tape = Tape()
    mode = Recording(rules, problem.model.module, notes, tape)
    x = map_tensors(Tensor.clone, rows.x)
    mode.depend(x)
    try:
        with problem.target.watching(problem.model), mode:
            raw = run(x, rows.index)
            if paired or not bool(problem.target.codes(problem.batch, problem.device).any()):
                tape.values = problem.target.select(raw, rows.index)
            else:
                tape.output = output_tensor(raw)
    finally:
        mode.marks.release()
    if tape.values is not None:
        finite_values(tape.values)
    return tape


def shared_axes(problem: Problem, rules: RuleSet, notes: set[str], run: Run) -> Axes | None:
    """Return where the rows lie on a tape that examples share, or None where they are folded; found once a model."""
    key = (problem.model.key, type(rules), rules, problem.shapes, problem.arguments.kinds(), problem.target.operations)

    def probe() -> Axes | None:
        tapes = []
        for count in PROBE_ROWS:
            first = torch.zeros(count, dtype=torch.long, device=problem.device)
            rows = Rows(map_tensors(lambda tensor, first=first: tensor[first], problem.inputs), first)
            tapes.append(record(problem, rows, rules, notes, run, paired=True))
        return row_axes(tapes[0], tapes[1], PROBE_ROWS)

    if problem.target.operations is None:
        return probe()
    return remembered(problem.model.function, key, probe)
