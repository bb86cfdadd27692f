"""Asks the model at the points of a plan: values, gradients, gradients under a rule set, what is read at a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain.engine import Engine, Need, join, out_of_memory
from axplain.errors import ArgumentError
from axplain.problem import Problem
from axplain.propagation.passes import Comparison, RulePass
from axplain.propagation.rules import Ledger, RuleSet
from axplain.propagation.tape import Tape
from axplain.protocols import Answers, Points
from axplain.residuals import Ends
from axplain.seats.neurons import resolve_neuron
from axplain.seats.reading import Activation, Gradient, ThroughNeuron
from axplain.specs import Evaluation
from axplain.structure import Rows, Tensors, map_tensors, total, wide


@attrs.frozen
class AskModel:
    """Asks the model itself at the points; the ends may ride with the first of them."""

    need: Literal["value", "gradient"]
    ends: bool
    batched: bool = True

    def __call__(self, engine: Engine, block: Problem, points: Points, samples: range) -> Answers:
        """Return values, or gradients too, at the points; F(x) and F(x') with the first of them."""
        index = block.repeated(points.samples)
        if self.ends and samples.start == 0:
            ends = Ends.of(block)
            answers, told = engine.ask_with_riders(block, points.rows, index, self.need, ends.rows)
            return attrs.evolve(answers, ends=ends.told(told))
        return engine.ask(block, points.rows, index, self.need)


@attrs.frozen
class AskLayer:
    """Asks at points of the input what a layer holds, its gradient, or the latter times its rate along the tangents."""

    kind: Literal["activation", "gradient", "jvp"]
    batched: bool = True

    @property
    def need(self) -> Need:
        """What bounds the rows of a chunk."""
        return {"activation": "value", "gradient": "gradient", "jvp": "rules"}[self.kind]  # type: ignore[return-value]

    def __call__(self, engine: Engine, block: Problem, points: Points, samples: range) -> Answers:
        """Return what was read at the points."""
        assert block.seating is not None, "the door refuses such a method without a layer"
        tangents = points.tangent if self.kind == "jvp" else None
        if tangents is not None:
            each = (points.samples, block.batch)
            tangents = map_tensors(lambda t: t.expand(*each, *t.shape[2:]).flatten(0, 1), tangents)
        reading = Activation(block.seating) if self.kind == "activation" else Gradient(block.seating, tangents)
        return engine.ask(block, points.rows, block.repeated(points.samples), self.need, reading)


@attrs.frozen(eq=False)
class AskThrough:
    """Asks for the gradient of what passes a neuron on its way to the target."""

    reading: ThroughNeuron
    batched: bool = True
    need: Literal["rules"] = "rules"

    @classmethod
    def of(cls, evaluation: Evaluation, values: Mapping[str, Any], problem: Problem) -> AskThrough:
        """Find the neuron that a parameter of the method names.

        Raises:
            ArgumentError: it is none of the model, or a function of a layer, which has no derivative of its own.
        """
        assert evaluation.through is not None, "the reader demands the parameter"
        name = evaluation.through.parameter
        unit = values[name]
        if callable(unit.index):
            raise ArgumentError(name, "a callable came as its index", "one index, or a tuple of ints and slices")
        return cls(ThroughNeuron(resolve_neuron(unit, problem.model, name).aligned(problem)))

    def __call__(self, engine: Engine, block: Problem, points: Points, samples: range) -> Answers:
        """Return gradients with respect to the input."""
        index = block.repeated(points.samples)
        return engine.ask(block, points.rows, index, self.need, self.reading)


@attrs.frozen(eq=False)
class AskRules:
    """Asks for the gradient under a rule set, which may compare each row with the reference of its example.

    `shared`: the references of all examples, run once and compared with by everyone; None where each row has its own.
    """

    rules: RuleSet
    ends: bool
    shared: tuple[Tape, Tensor] | None
    need: Literal["rules"] = "rules"
    batched: bool = True

    @classmethod
    def of(cls, rules: RuleSet, problem: Problem, engine: Engine, *, ends: bool) -> AskRules:
        """Run the references once, where fewer of them than examples serve and a tape can be shared."""
        return cls(rules, ends, _shared_tape(rules, problem, engine) if rules.references else None)

    def __call__(self, engine: Engine, block: Problem, points: Points, samples: range) -> Answers:
        """Return gradients under the rules, compared with the reference of each example where the set compares."""
        index = block.repeated(points.samples)
        if self.rules.report:
            return self._reported(engine, block, points.rows, index)
        answers = engine.ask(block, points.rows, index, self.need, self._comparison(engine, block, index))
        return answers if self.ends else attrs.evolve(answers, ends=None)

    def _reported(self, engine: Engine, block: Problem, rows: Tensors, index: Tensor) -> Answers:
        """Ask row by row, which tells what operations keep of each, whatever axes they lay rows on."""
        found = []
        for i, example in enumerate(index.tolist()):
            ledger, row = Ledger(), map_tensors(lambda tensor, i=i: tensor[i : i + 1], rows)
            told = engine.ask(
                block, row, index[i : i + 1], self.need, RulePass(self.rules, None, None, engine.notes, ledger)
            )
            assert told.value is not None and told.terms is not None, "a gradient was asked for"
            gap = total(told.terms) + sum(ledger.kept.values()) - told.value.to(wide(told.value))
            engine.ledgers.append((example if block.origin is None else int(block.origin[example]), ledger))
            found.append(attrs.evolve(told, checks={"conservation": gap}))
        checks = {"conservation": torch.cat([told.checks["conservation"] for told in found])}
        return attrs.evolve(join(found), checks=checks)

    def _comparison(self, engine: Engine, block: Problem, index: Tensor) -> Comparison:
        if not self.rules.references:
            return RulePass(self.rules, None, None, engine.notes)
        references = block.reference_table()
        wanted = references.index[index, 0]
        if self.shared is not None:
            tape, distinct = self.shared
            return RulePass(self.rules, tape, torch.searchsorted(distinct, wanted), engine.notes)
        return _RowByRow(self.rules, engine, block, Rows(map_tensors(lambda t: t[wanted], references.rows), index))


def _shared_tape(rules: RuleSet, problem: Problem, engine: Engine) -> tuple[Tape, Tensor] | None:
    references = problem.reference_table()
    distinct = torch.unique(references.index)
    if len(distinct) == problem.batch or problem.arguments.follow:
        return None
    axes = engine.shared_axes(problem, rules)
    if axes is None and not len(distinct) == engine.rows(problem, "rules") == 1:  # one by one there is no axis
        return None
    rows = Rows(map_tensors(lambda table: table[distinct], references.rows), torch.zeros_like(distinct))
    try:
        tape = engine.record(problem, rows, rules, paired=False)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return None
    tape.axes = axes
    return tape, distinct


@attrs.frozen(eq=False)
class _RowByRow:
    """A comparison in which each row has a reference row of its own, run just before."""

    rules: RuleSet
    engine: Engine
    problem: Problem
    references: Rows

    def part(self, chunk: slice) -> _RowByRow:
        x = map_tensors(lambda tensor: tensor[chunk], self.references.x)
        return attrs.evolve(self, references=Rows(x, self.references.index[chunk]))

    def ready(self) -> RulePass:
        tape = self.engine.record(self.problem, self.references, self.rules, paired=True)
        return RulePass(self.rules, tape, None, self.engine.notes)
