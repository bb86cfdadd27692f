"""Runs a method: a spec's composition as plan, draw, ask, aggregate, or a plugin's own code; then checks and post.

`run_method` is the one way to run any method, from `explain` and from inside a lift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from axplain.coalitions import AskCoalitions
from axplain.discovery import catalog
from axplain.engine import Engine, Need
from axplain.evaluations import AskLayer, AskModel, AskRules, AskThrough
from axplain.guard import occupied, untouched
from axplain.parameters import Call, settle, settle_values, sized
from axplain.problem import Problem
from axplain.protocols import Aggregation, Answers, Counting, Method, Outcome, Plan, Points, Reduced, Settings
from axplain.registry import registry
from axplain.residuals import with_completeness
from axplain.seats.tail import lowered
from axplain.specs import Composition, FromParameter, Spec, Use
from axplain.structure import Tensors, concatenate, map_tensors, rows_by_samples

#: samples after which a tolerance looks at the standard errors for the first time, and how many more each time
FIRST_LOOK: Final = 64
NEXT_LOOK: Final = 1.25

POST: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {"abs": torch.abs}


def run_method(call: Call, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
    """Explain every example: run the method, check it, then apply `post`.

    A method that takes one reference per example and is given a set explains against each and averages.
    """
    spec = call.spec
    alone = problem.seating is None and call.innermost.spec.requires.min_batch == 1  # some compare examples
    if alone and problem.groups is not None and problem.groups.uneven:
        return _by_features(call, problem, engine, settings)
    verify = settings.verify and (problem.seating is None or problem.seating.cut)
    claim = spec.claim("completeness")
    claimed = claim is not None and claim.kind != "inherited"  # a lift aggregates the checks of its inner method
    # a lift disturbs the input, its method is at the seat
    if problem.seating is not None and spec.seats != "inner" and spec.perturb_at == "seat":
        tail = lowered(problem, engine, ends=verify and claimed, again=settings.verify and claimed)
        outcome = run_method(call, tail, engine, attrs.evolve(settings, verify=verify))
        return attrs.evolve(outcome, lowered=tail)
    checks = verify and claimed and problem.references is not None
    averages = spec.baseline == "reference" and problem.reference_table().count > 1
    settings = attrs.evolve(settings, values=call.values, ends=checks and not averages and problem.ends is None)
    if averages:
        outcome = _over_references(call, problem, engine, settings)
    else:
        outcome = _method(call).run(problem, engine, settings)
    if checks and not outcome.checks:
        outcome = with_completeness(problem, engine, outcome)
    return _post(spec, outcome, call.values)


def _by_features(call: Call, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
    """Explain examples that have the same number of features together: each gets what it gets alone."""
    counts = problem.features().counts
    assert counts is not None, "asked where examples have groups of their own"
    parts = [(counts == count).nonzero().flatten() for count in torch.unique(counts)]
    outcomes = []
    for index in parts:
        part = problem.take(index)
        part = attrs.evolve(part, origin=None, groups=part.features().alone())  # a whole question of its own
        outcomes.append(run_method(sized(call, part.features().count), part, engine, settings))
    back = torch.cat(parts).argsort()
    return _concatenate(outcomes).take(_each_target(back, problem.targets))


def _each_target(index: Tensor, targets: int) -> Tensor:
    """Return the same of pairs of an example and a target, the targets of one side by side."""
    return (index[:, None] * targets + torch.arange(targets, device=index.device)).flatten()


def run_targets(call: Call, problem: Problem, engine: Engine, settings: Settings) -> list[Outcome]:
    """Explain every target of the problem: from the same passes where the method asks for values alone."""
    parts = problem.target.parts
    if len(parts) == 1:
        return [run_method(call, problem, engine, settings)]
    if not shares_passes(call, settings.tolerance):
        return [run_method(call, attrs.evolve(problem, target=part), engine, settings) for part in parts]
    outcome = run_method(call, problem, engine, settings)
    return [outcome.select(place, len(parts)) for place in range(len(parts))]


def shares_passes(call: Call, tolerance: float | None) -> bool:
    """Whether the passes of one target tell several: a gradient is of one target, and so is what stops a method."""
    return tolerance is None and need_of(call) == "value" and call.inner is None


def planned_samples(call: Call, problem: Problem) -> int:
    """Return the samples of each example: of a composition's plan, or as a method's own code counts them."""
    if call.spec.composition is None:
        counting: Counting = registry().build(call.spec, {})
        model = problem.model
        with occupied(model.function, problem.seating is not None), untouched(model.parts, problem.device):
            return counting.samples(problem, call.values)
    plan: Plan = _component("perturbation", call.spec.composition.perturbation, call.values).plan(problem)
    return plan.count


def _method(call: Call) -> Method:
    """Return the plugin of a method: its composition, or its own code."""
    if call.spec.composition is not None:
        return Composed(call.spec, call.spec.composition)
    plugin: Method = registry().build(call.spec, {})
    return plugin


def _over_references(call: Call, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
    """Average a method over every reference of each example: as many pairs at a time as fit in a chunk."""
    references = problem.reference_table()
    count, sums = references.count, _Sums()
    for columns in engine.samples(problem, count, need_of(call)):
        examples = problem.repeated(len(columns))
        pairs = attrs.evolve(problem.take(examples), references=references.paired(columns), ends=None)
        outcome = _method(call).run(pairs, engine, settings)
        sums.add("attributions", outcome.attributions, len(columns))
        if outcome.standard_errors is not None:
            sums.add("standard_errors", outcome.standard_errors, len(columns))
        if outcome.features is not None:
            sums.add("features", (outcome.features,), len(columns))
        for name, values in outcome.checks.items():
            sums.add(name, (values,), len(columns))
    means = {name: map_tensors(lambda tensor: tensor / count, tensors) for name, tensors in sums.tensors.items()}
    return Outcome(
        means.pop("attributions"),
        means.pop("standard_errors", None),  # references share the draws, so the mean of errors bounds the error
        features=means.pop("features", (None,))[0],
        checks={name: values for name, (values,) in means.items()},
    )


def need_of(call: Call) -> Need:
    """Say what a method asks of the model in the end: values, gradients, or gradients under rules."""
    composition = call.spec.composition
    if composition is None:
        return "gradient"
    if composition.evaluation.method is not None:
        return need_of(_inner(composition.evaluation.method, call.values))
    if composition.evaluation.rules is not None:
        return "rules"
    return "value" if composition.evaluation.kind in ("value", "activation") else "gradient"


def _inner(use: Use, values: Mapping[str, Any]) -> Call:
    """Return the method inside a lift: a parameter of the call, or one that the spec names."""
    if isinstance(use.name, FromParameter):
        inner: Call = values[use.name.parameter]
        return inner
    return settle(use.name, use.resolve(values))


@attrs.frozen
class _Sums:
    """Running sums over samples, by name."""

    tensors: dict[str, Tensors] = attrs.field(factory=dict)

    def add(self, name: str, rows: Tensors, samples: int) -> None:
        """Add rows of several samples."""
        summed = map_tensors(lambda tensor: rows_by_samples(tensor, samples).sum(0), rows)
        self.tensors[name] = map_tensors(torch.add, self.tensors[name], summed) if name in self.tensors else summed


def _post(spec: Spec, outcome: Outcome, values: Mapping[str, Any]) -> Outcome:
    for name, switch in (spec.composition.post if spec.composition else {}).items():
        if values[switch.parameter] if isinstance(switch, FromParameter) else switch:
            outcome = attrs.evolve(outcome, attributions=map_tensors(POST[name], outcome.attributions))
    return outcome


@attrs.frozen
class Composed:
    """The method that a composition declares."""

    spec: Spec
    composition: Composition

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        """Explain every example, block by block, each block in chunks of samples."""
        composition, values = self.composition, settings.values
        perturbation = _component("perturbation", composition.perturbation, values)
        if settings.tolerance is not None and composition.refinement is not None:
            refinement = _component("refinement", composition.refinement, values)
            refined: Outcome = refinement.run(problem, engine, settings.tolerance)
            return refined
        if settings.tolerance is not None:
            assert composition.until, "the door refuses a tolerance that nothing answers"
            most = Use("", composition.until).resolve(values)
            perturbation = _component("perturbation", composition.perturbation, values, **most)
        aggregation = _component("aggregation", composition.aggregation, values)
        problem = attrs.evolve(problem, key=problem.key.at(self.spec.name))
        plan = perturbation.plan(problem)
        evaluation = self._evaluation(problem, engine, settings, plan)
        pipeline = _Pipeline(engine, plan, evaluation, aggregation, settings.tolerance)
        if isinstance(evaluation, _AskMethod) and evaluation.compares:
            parts = iter((problem.everyone(),))
        elif settings.tolerance is None:
            parts = engine.blocks(problem, pipeline.evaluation.need)
        else:  # one by one: how long an example is sampled is no other's business
            parts = iter(torch.split(problem.everyone(), 1))
        return _concatenate([pipeline.reduce(problem.block(index)) for index in parts])

    def _evaluation(self, problem: Problem, engine: Engine, settings: Settings, plan: Plan) -> Evaluating:
        kind, use = self.composition.evaluation.kind, self.composition.evaluation.method
        if self.composition.evaluation.rules is not None:
            rules = _component("rules", self.composition.evaluation.rules, settings.values)
            return AskRules.of(rules, problem, engine, ends=settings.ends and plan.count == 1)
        if kind == "value" and "mask" in _provides(self.composition.perturbation, settings.values):
            return AskCoalitions()
        if kind == "through":
            return AskThrough.of(self.composition.evaluation, settings.values, problem)
        if kind == "activation" or kind == "jvp" or (kind == "gradient" and problem.seating is not None):
            return AskLayer(kind)
        if kind != "method":
            return AskModel(kind, ends=settings.ends and plan.columns is None)
        assert use is not None, "an evaluation of kind 'method' names one"
        inner = _inner(use, settings.values)
        # checking the inner method pays only where its residual says something about ours
        verify = settings.verify and self.spec.claim("completeness") is not None
        several = "model" not in _provides(self.composition.perturbation, settings.values)
        return _AskMethod(inner, attrs.evolve(settings, verify=verify), several)


@attrs.frozen
class _AskMethod:
    """Explains the points with another method: they become the examples of a problem of their own."""

    inner: Call
    settings: Settings
    several: bool = True

    @property
    def need(self) -> Need:
        """What the inner method asks of the model, which bounds the rows of a chunk."""
        return need_of(self.inner)

    @property
    def batched(self) -> bool:
        """Whether several samples may share a chunk.

        A seeded method runs once per sample, with its own seed, and so does one whose samples bring a model each, or
        that would compare the examples of one sample with those of another.
        """
        return self.several and self.inner.spec.determinism.kind == "deterministic" and not self.compares

    @property
    def compares(self) -> bool:
        """Whether the inner method needs all examples together."""
        return self.inner.innermost.spec.requires.min_batch > 1

    def __call__(self, engine: Engine, block: Problem, points: Points, samples: range) -> Answers:
        problem = block.take(block.repeated(points.samples)).at(points.rows)
        if points.references is not None:
            problem = attrs.evolve(problem, references=points.references)
        if points.model is not None:
            problem = attrs.evolve(problem, model=points.model)
        if not self.batched:
            problem = attrs.evolve(problem, key=problem.key.at("sample", samples.start))
        outcome = run_method(self.inner, problem, engine, self.settings)
        return Answers(terms=outcome.attributions, checks=outcome.checks)


Evaluating = AskModel | AskLayer | AskThrough | AskRules | _AskMethod | AskCoalitions


@attrs.frozen
class _Pipeline:
    """The stages of one run, put together."""

    engine: Engine
    plan: Plan
    evaluation: Evaluating
    aggregation: Aggregation
    tolerance: float | None = None

    def reduce(self, block: Problem) -> Outcome:
        """Stream the samples of a block through the aggregation, and average the checks of inner methods.

        Under a tolerance, stop at the first look at which every standard error is within it.
        """
        pairs = block.by_target()
        state, sums, ends = self.aggregation.start(pairs, self.plan), _Sums(), None
        for samples, look in self._ranges(block):
            points = self.plan.draw(block, samples)
            answers = self.evaluation(self.engine, block, points, samples)
            if answers.value is not None and answers.value.ndim > 1:
                answers = attrs.evolve(answers, value=answers.value.flatten())
            state = self.aggregation.update(state, points, answers)
            ends = answers.ends or ends
            for name, values in answers.checks.items():
                sums.add(name, (values,), points.samples)
            if look and self._is_certain(self.aggregation.finish(state, pairs)):
                break
        checks = {name: values / self.plan.count for name, (values,) in sums.tensors.items()}
        reduced = self.aggregation.finish(state, pairs)
        return Outcome(
            reduced.attributions, reduced.standard_errors, checks, self.plan.columns, ends, features=reduced.features
        )

    def _ranges(self, block: Problem) -> Iterator[tuple[range, bool]]:
        """Yield ranges of samples, and after which of them to look: at the same samples whatever fits in a chunk."""
        if not self.evaluation.batched:
            yield from ((range(sample, sample + 1), False) for sample in range(self.plan.count))
            return
        start, stop = 0, self.plan.count if self.tolerance is None else min(FIRST_LOOK, self.plan.count)
        while start < self.plan.count:
            for samples in self.engine.samples(block, stop, self.evaluation.need, start):
                yield samples, self.tolerance is not None and samples.stop == stop
            start, stop = stop, min(math.ceil(stop * NEXT_LOOK), self.plan.count)

    def _is_certain(self, reduced: Reduced) -> bool:
        """Whether there are standard errors, and none is larger than the tolerance."""
        errors, tolerance = reduced.standard_errors, self.tolerance
        if errors is None or tolerance is None:
            return False
        return all(bool((tensor <= tolerance).all()) for tensor in errors)


def _named(use: Use, values: Mapping[str, Any]) -> str:
    name: str = values[use.name.parameter] if isinstance(use.name, FromParameter) else use.name
    return name


def _provides(use: Use, values: Mapping[str, Any]) -> frozenset[str]:
    return catalog().find(_named(use, values), "perturbation").provides


def _component(kind: str, use: Use, values: Mapping[str, Any], **instead: Any) -> Any:
    """Build a component from its spec, its own defaults, and the arguments that the composition gives it."""
    name = _named(use, values)
    spec = catalog().find(name, kind)
    return registry().build(spec, settle_values(spec, use.resolve(values) | instead, f"{name}[{{!r}}]"))


def _joined_features(parts: list[Tensor]) -> Tensor | None:
    """Join (batch, features) of parts that may have more or fewer features."""
    if not parts:
        return None
    most = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in parts])


def _concatenate(blocks: list[Outcome]) -> Outcome:
    if len(blocks) == 1:
        return blocks[0]
    errors = [block.standard_errors for block in blocks if block.standard_errors is not None]
    ends = [block.ends for block in blocks if block.ends is not None]
    return Outcome(
        attributions=concatenate([block.attributions for block in blocks]),
        standard_errors=concatenate(errors) if len(errors) == len(blocks) else None,
        checks={name: torch.cat([block.checks[name] for block in blocks]) for name in blocks[0].checks},
        columns=blocks[0].columns,
        ends=concatenate(ends) if len(ends) == len(blocks) else None,
        features=_joined_features([block.features for block in blocks if block.features is not None]),
    )
