"""Integrates the gradient along the straight path to a given accuracy, putting nodes where the error is.

Completeness is local: on any piece [a, b] of the path the exact integral of the directional derivative is
F(b) - F(a), and a gradient pass tells F as well. So the error of Simpson's rule on each piece is known, not
estimated. Pieces with the largest error are halved; both halves keep the three old nodes and add one new node each,
so no evaluation is lost. At a kink of a piecewise linear model the error halves with every two passes, where a
uniform rule would have to double its nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from axplain import Engine, hookimpl
from axplain.problem import Problem
from axplain.protocols import Outcome
from axplain.structure import Tensors, accumulator, concatenate, map_tensors, total, trailing

FIRST_PIECES: Final = 4
KEPT_BYTES: Final = 256 * 2**20  # gradients are kept until the end, so examples go in blocks that bound them


@attrs.frozen
class Bisection:
    """Halves pieces of each example's path until the sum of their errors, its residual, is small and not by luck."""

    max_steps: int

    def run(self, problem: Problem, engine: Engine, tolerance: float) -> Outcome:
        parts = [self._block(problem.take(index), engine, tolerance) for index in self._blocks(problem)]
        names = ("completeness", "difference")
        return Outcome(
            attributions=concatenate(part.attributions for part in parts),
            checks={name: torch.cat([part.checks[name] for part in parts]) for name in names},
        )

    def _blocks(self, problem: Problem) -> Iterator[Tensor]:
        one = sum(tensor[0].numel() * tensor.element_size() for tensor in problem.inputs) * self.max_steps
        yield from torch.split(problem.everyone(), max(KEPT_BYTES // one, 1))

    def _block(self, problem: Problem, engine: Engine, tolerance: float) -> Outcome:
        path = _Path.of(problem, engine)
        pieces = path.first_pieces(min(FIRST_PIECES, (self.max_steps - 1) // 2))
        while True:
            split = self._worst(path, pieces, tolerance)
            if not split.any():
                return path.outcome(pieces)
            pieces = torch.cat([pieces[~split], path.halve(pieces[split])])

    def _worst(self, path: _Path, pieces: Tensor, tolerance: float) -> Tensor:
        """Mark the pieces to halve of the examples whose residual is too large, within each example's budget.

        A residual can be small because errors of both signs happen to cancel. So the root of the sum of squares, what
        errors of random signs would leave, must be within the tolerance too. At most every second piece is halved
        before both are looked at again.
        """
        error = path.errors(pieces)
        owner = path.examples[pieces[:, 0]]
        marked = torch.zeros_like(owner, dtype=torch.bool)
        for example in torch.unique(owner).tolist():
            mine = (owner == example).nonzero().squeeze(1)
            if abs(float(error[mine].sum())) <= tolerance and float(error[mine].norm()) <= tolerance:
                continue
            order = mine[error[mine].abs().argsort(descending=True)]
            rest = error[order].square().flip(0).cumsum(0).flip(0).sqrt()  # what this piece and all smaller ones leave
            wanted = min(max(int((rest > tolerance / 2).sum()), 1), (len(mine) + 1) // 2)
            affordable = (self.max_steps - int((path.examples == example).sum())) // 2
            marked[order[: min(wanted, affordable)]] = True
        return marked


@attrs.define(eq=False)
class _Path:
    """The evaluated nodes: scalars of all of them on the CPU in float64, gradients by the pass that gave them."""

    problem: Problem
    engine: Engine
    start: Tensors
    step: Tensors
    examples: Tensor
    positions: Tensor
    values: Tensor
    slopes: Tensor
    gradients: list[Tensors]

    @classmethod
    def of(cls, problem: Problem, engine: Engine) -> _Path:
        """Return the path of each example, without nodes."""
        start = map_tensors(lambda s, x: s.expand_as(x), problem.reference_table().column(0), problem.inputs)
        step = map_tensors(torch.sub, problem.inputs, start)
        empty = torch.empty(0, dtype=torch.float64, device="cpu")
        return cls(problem, engine, start, step, empty.long(), empty, empty, empty, [])

    def first_pieces(self, count: int) -> Tensor:
        """Evaluate an even grid and return its pieces: (pieces, 3) nodes left, middle, right."""
        batch, nodes = self.problem.batch, 2 * count + 1
        grid = torch.linspace(0, 1, nodes, dtype=torch.float64, device="cpu")
        everyone = torch.arange(batch, device="cpu")
        self._evaluate(everyone.repeat(nodes), grid.repeat_interleave(batch))
        left = torch.arange(0, 2 * count, 2, device="cpu")
        pieces = torch.stack([left, left + 1, left + 2], 1) * batch
        return (pieces[:, None] + everyone[None, :, None]).flatten(0, 1)

    def halve(self, pieces: Tensor) -> Tensor:
        """Evaluate the two new middles of each piece and return its halves."""
        left, middle, right = pieces.unbind(1)
        before = (self.positions[left] + self.positions[middle]) / 2
        after = (self.positions[middle] + self.positions[right]) / 2
        first = len(self.positions)
        self._evaluate(self.examples[left].repeat(2), torch.cat([before, after]))
        new = torch.arange(first, first + 2 * len(pieces), device="cpu").view(2, -1)
        return torch.cat([torch.stack([left, new[0], middle], 1), torch.stack([middle, new[1], right], 1)])

    def errors(self, pieces: Tensor) -> Tensor:
        """Return, for each piece, Simpson's integral of the slope minus the true F(b) - F(a)."""
        left, middle, right = pieces.unbind(1)
        width = self.positions[right] - self.positions[left]
        simpson = width / 6 * (self.slopes[left] + 4 * self.slopes[middle] + self.slopes[right])
        return simpson - (self.values[right] - self.values[left])

    def outcome(self, pieces: Tensor) -> Outcome:
        """Sum the gradients with their Simpson weights, and take the residual from values that are known."""
        left, middle, right = pieces.unbind(1)
        share = (self.positions[right] - self.positions[left]) / 6
        weights = torch.zeros_like(self.positions)
        for nodes, factor in ((left, 1.0), (middle, 4.0), (right, 1.0)):
            weights.index_add_(0, nodes, share * factor)
        attributions = map_tensors(lambda step, sums: step * sums, self.step, self._weighted(weights))
        difference = (self._values_at(1.0) - self._values_at(0.0)).to(self.problem.device)
        residual = total(attributions) - difference
        return Outcome(attributions, checks={"completeness": residual, "difference": difference})

    def _values_at(self, position: float) -> Tensor:
        """Return F at one position of the path, per example: (batch,)."""
        nodes = self.positions == position
        return self.values[nodes][self.examples[nodes].argsort()]

    def _weighted(self, weights: Tensor) -> Tensors:
        sums = map_tensors(lambda x: torch.zeros_like(x, dtype=accumulator(x.dtype)), self.problem.inputs)
        first = 0
        for gradients in self.gradients:
            rows = slice(first, first + len(gradients[0]))
            owner = self.examples[rows].to(self.problem.device)
            for total_, gradient in zip(sums, gradients, strict=True):
                weight = trailing(weights[rows].to(gradient.device, total_.dtype), gradient)
                total_.index_add_(0, owner, gradient.to(total_.dtype) * weight)
            first = rows.stop
        return sums

    def _evaluate(self, examples: Tensor, positions: Tensor) -> None:
        index = examples.to(self.problem.device)

        def place(start: Tensor, step: Tensor) -> Tensor:
            return start[index] + trailing(positions.to(step.device, step.dtype), step) * step[index]

        answers = self.engine.ask(self.problem, map_tensors(place, self.start, self.step), index, "gradient")
        assert answers.value is not None and answers.terms is not None, "a gradient pass gives both"
        slopes = total(map_tensors(lambda g, step: g.double() * step[index].double(), answers.terms, self.step))
        self.examples = torch.cat([self.examples, examples])
        self.positions = torch.cat([self.positions, positions])
        self.values = torch.cat([self.values, answers.value.double().cpu()])
        self.slopes = torch.cat([self.slopes, slopes.cpu()])
        self.gradients.append(answers.terms)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `bisection`."""
    return Bisection
