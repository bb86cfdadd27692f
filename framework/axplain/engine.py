"""Asks the model: any rows, in chunks that fit in memory, counted, under the right grad mode, with progress."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import attrs
import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from axplain.errors import AxplainError, UncoveredOperation, UnsupportedModel, log
from axplain.layout import CHANNELS_LAST, USUAL, Layout, about_layout, runs_in_channels_last
from axplain.memory import Measured, remembered, rows_within_budget, saved_bytes
from axplain.model import RowCount, finite_values, output_tensor
from axplain.pooling import Pooling, may_pool
from axplain.problem import Problem
from axplain.propagation.passes import PROBE_ROWS, Comparison, RulePass, Run, record, shared_axes
from axplain.propagation.rules import Ledger, RuleSet
from axplain.propagation.tape import Axes, Tape
from axplain.protocols import Answers
from axplain.seats.reading import Reading
from axplain.structure import Rows, Tensors, accumulator, concatenate, map_tensors

#: "rules" is a gradient under a rule set: its graph keeps about half as much again
Need = Literal["value", "gradient", "rules"]
Progress = Callable[[int, int], None]
T = TypeVar("T")

#: Below this many rows in all there is nothing to chunk, and measuring would cost as much as the work.
UNMEASURED_ROWS = 4

#: What a model that runs without autograd is taken to need for a row, in sizes of the row.
HIDDEN = 32

_UNSEEN: AbstractContextManager[None] = nullcontext()


@attrs.define(eq=False)
class Engine:
    """One call's access to the model. It runs under `guard.plain_mode`: no graph but where a gradient is asked for.

    `batch_size`: rows of a chunk, or "auto". `most_rows`: about how many rows the whole call needs. `differentiates`:
    whether the call asks for gradients, also after values. `notes`: operations whose plain gradient was taken under a
    rule set. `ledgers`: what operations kept of the relevance, and of which example, where that was asked for.
    """

    batch_size: int | Literal["auto"] = "auto"
    progress: Progress | None = None
    most_rows: int = 0
    differentiates: bool = False
    count: RowCount = attrs.field(factory=RowCount)
    notes: set[str] = attrs.field(factory=set)
    ledgers: list[tuple[int, Ledger]] = attrs.field(factory=list)
    _checking: bool = attrs.field(default=False, init=False)
    _limit: dict[Any, int] = attrs.field(factory=dict, init=False)
    _sizes: set[int] = attrs.field(factory=set, init=False)
    _channels_last: set[Any] = attrs.field(factory=set, init=False)
    _pooled: set[Any] = attrs.field(factory=set, init=False)
    _doubted: bool = attrs.field(default=False, init=False)
    _passes: int = attrs.field(default=0, init=False)
    _measured: Measured | None = attrs.field(default=None, init=False)

    def ask(
        self, problem: Problem, x: Tensors, index: Tensor, need: Need, under: Comparison | Reading | None = None
    ) -> Answers:
        """Return the target's value, and its gradient if needed, at rows that belong to the examples of `index`.

        `under` replaces the gradient by the one of a rule set, or by what is read at a layer. Rows are split to what
        fits in memory; where memory runs out the chunk is halved and the work goes on.

        Raises:
            UnsupportedModel: the output has no gradient, is not finite, or one row does not fit in memory.
        """
        limit = self.rows(problem, need)
        if len(index) > limit:
            pieces = []
            for start in range(0, len(index), limit):
                chunk = slice(start, start + limit)
                rows = map_tensors(lambda tensor, chunk=chunk: tensor[chunk], x)
                pieces.append(self.ask(problem, rows, index[chunk], need, under and under.part(chunk)))
            return join(pieces)
        forward, backward = self.count.forward, self.count.backward
        try:
            plain = under is None or isinstance(under, Reading)  # rules meet pooling themselves
            with Pooling() if plain and _shape_key(problem, need) in self._pooled else _UNSEEN:
                if isinstance(under, Reading):
                    answers = self._read(problem, x, index, under)
                elif need == "value":
                    answers = self._value(problem, x, index)
                else:
                    answers = self._gradient(problem, x, index, under.ready() if under else None)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(index) == 1:
                raise UnsupportedModel(
                    "model: memory ran out on a single row; use a smaller input or another device."
                ) from error
        else:
            self._passes += not self._checking
            self._report()
            return answers
        self.count.forward, self.count.backward = forward, backward
        self._limit[_shape_key(problem, need)] = len(index) // 2
        log.info("memory ran out at %d rows; going on with %d", len(index), len(index) // 2)
        return self.ask(problem, x, index, need, under)

    def record(self, problem: Problem, rows: Rows, rules: RuleSet, *, paired: bool) -> Tape:
        """Run references for a rule set and return their tape; see `passes.record`."""
        tape = record(problem, rows, rules, self.notes, self._runner(problem), paired=paired)
        self._count(len(rows.index), 0)
        return tape

    def shared_axes(self, problem: Problem, rules: RuleSet) -> Axes | None:
        """Return how a tape can be shared between examples, from two small passes that are not counted.

        None: it cannot, or there is no memory for two rows.
        """
        if self.rows(problem, "rules") < max(PROBE_ROWS):
            return None
        try:
            return shared_axes(problem, rules, self.notes, self._runner(problem))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None

    def _runner(self, problem: Problem) -> Run:
        return lambda x, index: self._pass(problem, x, index)

    def ask_with_riders(
        self, problem: Problem, x: Tensors, index: Tensor, need: Need, riders: Rows
    ) -> tuple[Answers, Tensor]:
        """Ask, and return the values at some more rows too, rows of the check: from the same pass where they fit."""
        count = len(riders.index)
        if len(index) + count > self.rows(problem, need):
            value = self.check_values(problem, riders)
            return self.ask(problem, x, index, need), value
        self.count.check_forward += count
        self.count.forward -= count
        self.count.backward -= count if need != "value" else 0
        rows = map_tensors(lambda points, more: torch.cat([points, more]), x, riders.x)
        answers = self.ask(problem, rows, torch.cat([index, riders.index]), need)
        assert answers.value is not None, "a model always gives a value"
        terms = map_tensors(lambda term: term[:-count], answers.terms) if answers.terms else None
        return Answers(value=answers.value[:-count], terms=terms), answers.value[-count:]

    def check_values(self, problem: Problem, rows: Rows) -> Tensor:
        """Return the target's values at some rows, which count as rows of the check, not of the method."""
        before, self._checking = self._checking, True
        try:
            value = self.ask(problem, rows.x, rows.index, "value").value
        finally:
            self._checking = before
        assert value is not None, "a value was asked for"
        return value

    @property
    def witness(self) -> tuple[float, float] | None:
        """Return two values of one input from the passes that measured the model, where the method took only one."""
        return self._measured.values if self._measured and self._passes <= 1 else None

    def rows(self, problem: Problem, need: Need) -> int:
        """Return how many rows one chunk may have for this problem."""
        key = _shape_key(problem, need)
        if key not in self._limit:
            self._limit[key] = self._choose_rows(problem, need)
        return self._limit[key]

    def chunks(self, problem: Problem, count: int) -> Iterator[slice]:
        """Yield slices of rows that a pass without a graph may have, and count them as rows of the method."""
        start = 0
        while start < count:
            stop = min(start + self.rows(problem, "value"), count)
            yield slice(start, stop)
            self._count(stop - start, 0)
            start = stop

    def blocks(self, problem: Problem, need: Need) -> Iterator[Tensor]:
        """Yield the examples in blocks that fit in a chunk, as index tensors."""
        everyone, rows = problem.everyone(), self.rows(problem, need)
        yield from (everyone,) if problem.batch <= rows else torch.split(everyone, rows)

    def samples(self, block: Problem, count: int, need: Need, start: int = 0) -> Iterator[range]:
        """Yield ranges of samples that fit in a chunk together with the block's examples."""
        while start < count:
            most = max(self.rows(block, need) // block.batch, 1)  # asked each time: memory may have run out
            left = count - start
            step = math.ceil(left / math.ceil(left / most))  # of even size: a small last chunk costs more a row
            yield range(start, start + step)
            start += step

    def _choose_rows(self, problem: Problem, need: Need) -> int:
        if self.batch_size != "auto":
            return self.batch_size
        if self.most_rows <= UNMEASURED_ROWS:
            return max(self.most_rows, 1)
        # a plain callable may have no graph to keep
        graph = need != "value" or self.differentiates or problem.model.module is not None
        key = (_shape_key(problem, "gradient"), graph, torch.is_autocast_enabled(problem.device.type))
        self._measured = remembered(problem.model.function, key, lambda: self._measure(problem, graph=graph))
        if need == "value" and self._measured.values is not None:
            wanted = ("layout", key, problem.arguments.kinds())
            if remembered(problem.model.function, wanted, lambda: runs_in_channels_last(problem)):
                self._channels_last.add(_shape_key(problem, need))
        if need != "value" and self._measured.pools:
            self._pooled.add(_shape_key(problem, need))
        each = self._measured.bytes_per_row
        each = each * 3 // 2 if need == "rules" else each
        return rows_within_budget(each, problem.device, values=need == "value")

    def _measure(self, problem: Problem, *, graph: bool) -> Measured:
        """Return bytes per row as the difference of two small passes, where weights and constants cancel.

        Both passes ask for the first example: they are witnesses that the model gives one value for one input. A model
        that saves nothing, since it runs without autograd, hides what it needs: it gets a multiple of its input.
        """
        values: list[float] = []
        pooling = Pooling()
        looking = pooling if may_pool(problem) else _UNSEEN

        def run(rows: int) -> int:
            index = torch.zeros(rows, dtype=torch.long, device=problem.device)
            x = problem.examples(index)
            rows_of_x = map_tensors(Tensor.clone, _leaves(x)) if graph else x
            with torch.enable_grad(), problem.target.watching(problem.model), looking:
                raw, size = saved_bytes(lambda: self._pass(problem, rows_of_x, index))
                values.append(float(problem.target.select(raw, index).detach().flatten()[0]))
            self._looked(problem, raw, rows)
            return size

        inputs = sum(tensor[0].numel() * tensor.element_size() for tensor in problem.inputs)
        try:
            growth = run(3) - run(2)
        except RuntimeError as error:
            if "saved tensor hooks" in str(error):  # torch.func has none: it hides what it needs, too
                return Measured((HIDDEN + 1) * inputs, None)
            if not out_of_memory(error):
                raise
            return Measured(sys.maxsize, None)  # not even three rows fit: one at a time
        each = (growth if growth > 0 else HIDDEN * inputs) + inputs
        return Measured(each, (values[0], values[1]), pooling.met)

    def _value(self, problem: Problem, x: Tensors, index: Tensor) -> Answers:
        value = self.in_layout(problem, lambda layout: self._select(problem, map_tensors(layout.copied, x), index))
        self._count(len(index), 0)
        return Answers(value=finite_values(value))

    def in_layout(self, problem: Problem, run: Callable[[Layout], T]) -> T:
        """Run a pass for values with rows that lie as it is faster, where that is known to do, else as usual."""
        if self._channels_last and (key := _shape_key(problem, "value")) in self._channels_last:
            try:
                return run(CHANNELS_LAST)
            except RuntimeError as error:
                if not about_layout(error):
                    raise
                self._channels_last.discard(key)  # code that these rows alone reach
        return run(USUAL)

    def _read(self, problem: Problem, x: Tensors, index: Tensor, reading: Reading) -> Answers:
        def run(rows: Tensors, looking: AbstractContextManager[None]) -> Any:
            if reading.backward:
                return self._select(problem, rows, index, looking)
            with looking:
                return self._pass(problem, rows, index)

        read = reading.take(x, run)
        self._count(len(index), len(index) if reading.backward else 0)
        value = None if read.value is None else finite_values(read.value)
        return Answers(value=value, terms=read.terms, activation=read.activation)

    def _gradient(self, problem: Problem, x: Tensors, index: Tensor, under: RulePass | None = None) -> Answers:
        with torch.enable_grad():
            leaves = _leaves(x)
            value = self._uncopied(problem, leaves, index) if problem.model.spares and under is None else None
            if value is None:
                rows = map_tensors(Tensor.clone, leaves)
                seen = under.following(problem.model, rows) if under else nullcontext()
                value = self._select(problem, rows, index, seen)
            if under:
                under.check(value, leaves)
            sent = value.detach() if under and under.rules.relevance else torch.ones_like(value)
            gradients = _gradients(value, sent, leaves) if value.requires_grad else ()
            if all(gradient is None for gradient in gradients):
                raise UnsupportedModel(
                    "model: its output does not depend differentiably on x: it detaches, rounds, or is under no_grad. "
                    "Choose a target before that step: target=axplain.neuron(layer, index)."
                )
            self._count(len(index), len(index))
        terms = tuple(
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, gradients, strict=True)
        )
        value = finite_values(value.detach())
        baseline = under.reference_values(problem, index) if under else None
        ends = None if baseline is None else (value.double(), baseline.double())
        return Answers(value=value, terms=terms, ends=ends)

    def _uncopied(self, problem: Problem, leaves: Tensors, index: Tensor) -> Tensor | None:
        """Select values from a pass over the rows themselves; None where torch says that the model writes to them."""
        try:
            return self._select(problem, leaves, index)
        except RuntimeError as error:
            if "in-place operation" not in str(error):
                raise
            return None

    def _select(
        self, problem: Problem, rows: Tensors, index: Tensor, seen: AbstractContextManager[Any] = _UNSEEN
    ) -> Tensor:
        with problem.target.watching(problem.model), seen:
            raw = self._pass(problem, rows, index)
            value = problem.target.select(raw, index)
        self._looked(problem, raw, len(index))
        return value.to(accumulator(value.dtype))

    def _looked(self, problem: Problem, raw: Any, count: int) -> None:
        """Note a pass: an output that followed the batch in two of different sizes does so by no chance."""
        if count not in self._sizes:
            self._sizes.add(count)
            self._doubted |= problem.target.indexes and count > 1 and count in output_tensor(raw).shape[1:]

    def settle_doubt(self, problem: Problem) -> None:
        """Refuse an output whose first axis was as long as the batch by chance, as a sequence before it may be.

        Where another axis was as long in passes that were all of one size, a small one of another tells, the first time
        for each model and shape of input; it is not counted.

        Raises:
            UnsupportedModel: its first axis does not follow the batch.
        """

        def probe() -> None:
            if len(self._sizes) > 1:
                return
            index = torch.zeros(2 if 2 not in self._sizes else 3, dtype=torch.long, device=problem.device)
            x = problem.examples(index)
            try:
                raw = self._pass(problem, x, index)
            except Exception as error:
                error.add_note(
                    "axplain: the output is as long on another axis as the batch is, so another number of rows must "
                    "tell which is which. Of a model that takes this number alone choose a value yourself: "
                    "target=lambda output: output[:, 1]."
                )
                raise
            problem.target.select(raw, index)

        if self._doubted:
            remembered(problem.model.function, ("output", problem.shapes, problem.arguments.kinds()), probe)

    def _pass(self, problem: Problem, rows: Tensors, index: Tensor) -> Any:
        try:
            return problem.model(rows, problem.arguments.rows(index))
        except AxplainError:  # what looks on at a layer refuses what it sees: no failure of the model
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in problem.inputs)
            error.add_note(
                f"axplain: the model failed on {len(index)} rows; x has the shape {shapes}, and its first dimension is "
                "the batch: for one example call x.unsqueeze(0)."
            )
            raise

    def _count(self, forward: int, backward: int) -> None:
        if self._checking:
            self.count.check_forward += forward
        else:
            self.count.forward += forward
            self.count.backward += backward

    def _report(self) -> None:
        if self.progress and not self._checking:
            self.progress(min(self.count.forward, self.most_rows), self.most_rows)


def _gradients(value: Tensor, sent: Tensor, leaves: Tensors) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(value, leaves, sent, allow_unused=True)
    except CheckpointError as error:
        raise UncoveredOperation(
            "model: activation checkpointing (torch.utils.checkpoint) runs parts of it again where no rule sees them. "
            "Switch it off, or use a method without rules, such as integrated_gradients."
        ) from error


def _leaves(x: Tensors) -> Tensors:
    """Return leaves that require gradients; a model may change copies of them in place, and not these."""
    return tuple(tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in x)


def _shape_key(problem: Problem, need: Need) -> Any:
    return need, problem.model.key, problem.shapes


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "not enough memory" in text


def join(pieces: list[Answers]) -> Answers:
    """Return the answers at the rows of several passes, one after the other."""
    values = [piece.value for piece in pieces if piece.value is not None]
    terms = [piece.terms for piece in pieces if piece.terms is not None]
    held = [piece.activation for piece in pieces if piece.activation is not None]
    ends = [piece.ends for piece in pieces if piece.ends is not None]
    return Answers(
        value=torch.cat(values) if values else None,
        terms=concatenate(terms) if terms else None,
        activation=concatenate(held) if held else None,
        ends=concatenate(ends) if ends else None,
    )
