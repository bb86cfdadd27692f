"""What plugins implement, shapes written out: perturbation, aggregation, baseline, refinement, modality, method.

Rows are sample-major: the points of s samples of a block of b examples are tensors of s * b rows, sample 0 first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import torch
from torch import Tensor

from axplain.structure import Tensors, map_tensors

if TYPE_CHECKING:
    from axplain.engine import Engine
    from axplain.model import Model
    from axplain.problem import Problem, References
    from axplain.randomness import Key


@attrs.frozen(eq=False)
class Points:
    """Where the model is looked at, and what couples the stages.

    `x`: (samples * examples, ...) per tensor; None where `mask` says it: x where a feature is present, the reference
    where it is absent. `mask`: (samples, features), shared by the examples. `repeats`: masks that come several times.
    `drawn`: (samples,), which masks were drawn by chance and not because all fit. `soft`: (samples, 1, ...) per tensor,
    how much of x shows. `coefficients`: what each value adds to each feature. `weight`: (samples,) float64. `tangent`:
    (1 or samples, examples, ...) per tensor, the derivative of the path. `references`: for an inner method, one
    reference of each row. `model`: what answers in the place of the user's model; points that bring one come alone.
    """

    x: Tensors | None
    samples: int
    weight: Tensor | None = None
    tangent: Tensors | None = None
    references: References | None = None
    mask: Tensor | None = None
    coefficients: Coefficients | None = None
    repeats: Repeats | None = None
    drawn: Tensor | None = None
    soft: Tensors | None = None
    model: Model | None = None

    @property
    def rows(self) -> Tensors:
        """The rows themselves, of points that are no masks."""
        if self.x is None:
            raise AssertionError("points that are masks are asked for as coalitions")
        return self.x


@attrs.frozen(eq=False)
class Repeats:
    """Which coalitions come several times: (samples,) each, on the CPU.

    `first`: the number of the first sample with the same mask, of the whole plan. `again`: whether a later one has it.
    `whole`: whether these are all samples of the plan.
    """

    first: Tensor
    again: Tensor
    whole: bool = True

    @functools.cached_property
    def packed(self) -> tuple[Tensor, Tensor]:
        """Of a whole plan: the samples that come first, and where among them each sample finds its own."""
        new = self.first == torch.arange(len(self.first), device="cpu")
        return new.nonzero().flatten(), (new.cumsum(0) - 1)[self.first]


@attrs.frozen(eq=False)
class Coefficients:
    """A sparse matrix: the value of `sample` adds `factor` times itself to `feature`; (entries,) each.

    `sample` counts from the first of these points; -1 is F(x), -2 is F(x'). `unit`: numbers that rise; the entries of
    one unit are one independent estimate, such as a walk, and all of them are averaged. None: entries are summed.
    `complete`: how many units are whole once these entries are in.
    """

    sample: Tensor
    feature: Tensor
    factor: Tensor
    unit: Tensor | None = None
    complete: int = 0


@attrs.frozen(eq=False)
class Answers:
    """What the model, or an inner method, said at the points, row by row.

    `value`: (rows,); of several targets, (rows, targets), which an aggregation gets as (rows * targets,): pairs of an
    example and a target are its examples. `terms`: (rows, ...) per tensor: the gradients, or an inner method's
    attributions. `activation`: (rows, ...) per tensor of the layer, where it was read there. `checks`: (rows,) each: an
    inner method's own checks. `ends`: (examples * targets,) float64 each, F(x) and mean F(x'), where they were asked on
    the way.
    """

    value: Tensor | None = None
    terms: Tensors | None = None
    activation: Tensors | None = None
    checks: Mapping[str, Tensor] = attrs.field(factory=dict)
    ends: tuple[Tensor, Tensor] | None = None


class Plan(Protocol):
    """What a perturbation settles once for the whole question: nodes, orders, masks, reference columns."""

    @property
    def count(self) -> int:
        """Samples per example."""
        ...

    @property
    def columns(self) -> Tensor | None:
        """(samples,) the drawn column of the references of each sample; None where every example has one."""
        ...

    def draw(self, block: Problem, samples: range) -> Points:
        """Draw any sub-range of samples for a block of examples: the same numbers whatever the range."""
        ...


class Perturbation(Protocol):
    """Where the model is looked at."""

    def plan(self, problem: Problem) -> Plan:
        """Settle everything that is small and random once, from the whole question."""
        ...


class Aggregation(Protocol):
    """A streaming reduction: memory does not grow with the number of samples."""

    def start(self, block: Problem, plan: Plan) -> Any:
        """Return the empty state for a block of examples."""
        ...

    def update(self, state: Any, points: Points, answers: Answers) -> Any:
        """Return the state after some more samples."""
        ...

    def finish(self, state: Any, block: Problem) -> Reduced:
        """Return the attributions of the block."""
        ...


@attrs.frozen(eq=False)
class Reduced:
    """What an aggregation returns: attributions, and their standard errors where samples were averaged.

    `features`: (batch, features), where groups of elements share an attribution, which sums count once.
    """

    attributions: Tensors
    standard_errors: Tensors | None = None
    features: Tensor | None = None


@attrs.frozen(eq=False)
class Outcome:
    """What a method returns.

    `checks`: (batch,) float64 each: `completeness`, the residual, and `difference`, the F(x) - F(x') it is judged by;
    a method leaves them to the kernel. `columns`: the drawn columns of the references. `ends`: (batch,) float64 each,
    F(x) and mean F(x'), where the method's own passes told them. `features`: as in `Reduced`. `notes` go to the
    explanation. `lowered`: the question about the model that begins at a layer, where it was that one that was asked.
    """

    attributions: Tensors
    standard_errors: Tensors | None = None
    checks: Mapping[str, Tensor] = attrs.field(factory=dict)
    columns: Tensor | None = None
    ends: tuple[Tensor, Tensor] | None = None
    features: Tensor | None = None
    notes: Mapping[str, Any] = attrs.field(factory=dict)
    lowered: Problem | None = None

    def select(self, place: int, targets: int) -> Outcome:
        """Return what is said of one of several targets; every tensor has the targets of an example side by side."""

        return self._mapped(lambda tensor: tensor[place::targets])

    def take(self, index: Tensor) -> Outcome:
        """Return what is said of some examples."""
        return self._mapped(lambda tensor: tensor[index.to(tensor.device)])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Outcome:
        return attrs.evolve(
            self,
            attributions=map_tensors(change, self.attributions),
            standard_errors=map_tensors(change, self.standard_errors) if self.standard_errors else None,
            checks={name: change(values) for name, values in self.checks.items()},
            ends=(change(self.ends[0]), change(self.ends[1])) if self.ends else None,
            features=None if self.features is None else change(self.features),
        )


@attrs.frozen
class Settings:
    """The resolved parameters of one call, and what belongs to every method.

    `tolerance` is in units of the target; None asks for the spec's own number of samples. `ends`: let F(x) and F(x')
    ride in the method's own passes, for the check.
    """

    values: Mapping[str, Any]
    tolerance: float | None = None
    verify: bool = True
    ends: bool = False


class Method(Protocol):
    """An algorithm that attributes the target to features, as plain code on the engine."""

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        """Explain every example of the problem."""
        ...


class Counting(Protocol):
    """What a method's own code also tells, where the cost formula of its spec names `samples`."""

    def samples(self, problem: Problem, values: Mapping[str, Any]) -> int:
        """Return the samples of each example, for the parameters of a call, before it runs."""
        ...


class Refinement(Protocol):
    """A loop with feedback that answers `tolerance=` instead of a fixed number of samples."""

    def run(self, problem: Problem, engine: Engine, tolerance: float) -> Outcome:
        """Explain every example of the problem, to within the tolerance or to the end of the budget."""
        ...


class Baseline(Protocol):
    """What stands for absence, one input tensor at a time."""

    def references(self, x: Tensor, key: Key) -> Tensor:
        """Return (1 or batch, k, ...): k references shared by all examples, or k for each of them."""
        ...


class Modality(Protocol):
    """How things that are not tensors become model inputs."""

    def encode(self, x: Any) -> Any:
        """Return `x` as a tensor, a tuple or a dict of tensors, with the batch first."""
        ...
