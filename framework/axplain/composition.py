"""Runs a method: a spec's composition as plan, draw, ask, aggregate, or a plugin's own code; then checks and post.

`run_method` is the one way to run any method, from `explain` and from inside a lift.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from axplain.check import completeness
from axplain.discovery import catalog
from axplain.engine import Engine
from axplain.errors import ArgumentError
from axplain.parameters import Call, settle
from axplain.problem import Problem
from axplain.protocols import Answers, Method, Outcome, Plan, Points, Reduced, Settings
from axplain.registry import registry
from axplain.specs import Composition, FromParameter, Spec, Use
from axplain.structure import Tensors, map_tensors, rows_by_samples

POST: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {"abs": torch.abs}


def run_method(call: Call, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
    """Explain every example: run the method, check it, then apply `post`.

    A method that takes one reference per example and is given a set explains against each and averages.
    """
    spec = call.spec
    settings = attrs.evolve(settings, values=call.values)
    if spec.baseline == "reference" and problem.reference_table().count > 1:
        outcome = _over_references(call, problem, engine, settings)
    else:
        outcome = _method(call).run(problem, engine, settings)
    claim = spec.claim("completeness")
    claimed = claim is not None and claim.kind != "inherited"  # a lift has aggregated the checks of its inner method
    if settings.verify and claimed and problem.references and not outcome.checks:
        outcome = attrs.evolve(outcome, checks=completeness(problem, engine, outcome))
    return _post(spec, outcome, call.values)


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
    for columns in engine.samples(problem, count, "gradient"):
        examples = problem.everyone().repeat(len(columns))
        column = torch.arange(columns.start, columns.stop, device=problem.device).repeat_interleave(problem.batch)
        pairs = attrs.evolve(problem.take(examples), references=references.take(examples).only(column))
        outcome = _method(call).run(pairs, engine, settings)
        sums.add("attributions", outcome.attributions, len(columns))
        for name, values in outcome.checks.items():
            sums.add(name, (values,), len(columns))
    means = {name: map_tensors(lambda tensor: tensor / count, tensors) for name, tensors in sums.tensors.items()}
    return Outcome(means.pop("attributions"), checks={name: values for name, (values,) in means.items()})


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
        if settings.tolerance is not None:
            if composition.refinement is None:
                raise ArgumentError(
                    "tolerance", f"{settings.tolerance} came", f"nothing: {self.spec.name} cannot refine"
                )
            refined: Outcome = _component("refinement", composition.refinement, values).run(
                problem, engine, settings.tolerance
            )
            return refined
        perturbation = _component("perturbation", composition.perturbation, values)
        problem = attrs.evolve(problem, key=problem.key.at(self.spec.name))
        plan: Plan = perturbation.plan(problem)
        stages = _Stages(engine, plan, self._ask(settings), _component("aggregation", composition.aggregation, values))
        blocks = [
            stages.reduce(problem.take(index), self._batched(values)) for index in engine.blocks(problem, "gradient")
        ]
        return _concatenate(blocks, plan)

    def _ask(self, settings: Settings) -> Callable[[Engine, Problem, Points, Tensor, range], Answers]:
        """Return what answers at the points: the model, or an inner method."""
        evaluation = self.composition.evaluation
        if evaluation.kind == "method":
            inner = self._inner(settings.values)
            settings = attrs.evolve(settings, verify=settings.verify and self.spec.claim("completeness") is not None)

            def lifted(engine: Engine, block: Problem, points: Points, index: Tensor, samples: range) -> Answers:
                return _ask_method(inner, settings, engine, block, points, index, samples)

            return lifted
        need = evaluation.kind

        def asked(engine: Engine, block: Problem, points: Points, index: Tensor, samples: range) -> Answers:
            return engine.ask(block, points.x, index, need)

        return asked

    def _inner(self, values: Mapping[str, Any]) -> Call:
        use = self.composition.evaluation.method
        assert use is not None, "an evaluation of kind 'method' names one"
        if isinstance(use.name, FromParameter):
            call: Call = values[use.name.parameter]
            return call
        return settle(use.name, use.resolve(values))

    def _batched(self, values: Mapping[str, Any]) -> bool:
        """Whether several samples may share a chunk: a seeded inner method runs once per sample, with its own seed."""
        return (
            self.composition.evaluation.kind != "method" or self._inner(values).spec.determinism.kind == "deterministic"
        )


@attrs.frozen
class _Stages:
    """The stages of one run, put together."""

    engine: Engine
    plan: Plan
    ask: Callable[[Engine, Problem, Points, Tensor, range], Answers]
    aggregation: Any

    def reduce(self, block: Problem, batched: bool) -> tuple[Reduced, dict[str, Tensor]]:
        """Stream the samples of one block of examples through the aggregation."""
        state, sums = self.aggregation.start(block, self.plan), _Sums()
        everyone = block.everyone()
        for whole in self.engine.samples(block, self.plan.count, "gradient"):
            for samples in [whole] if batched else [range(s, s + 1) for s in whole]:
                points = self.plan.draw(block, samples)
                answers = self.ask(self.engine, block, points, everyone.repeat(points.samples), samples)
                state = self.aggregation.update(state, points, answers)
                for name, values in answers.checks.items():
                    sums.add(name, (values,), points.samples)
        checks = {name: values / self.plan.count for name, (values,) in sums.tensors.items()}
        return self.aggregation.finish(state, block), checks


def _ask_method(
    inner: Call, settings: Settings, engine: Engine, block: Problem, points: Points, index: Tensor, samples: range
) -> Answers:
    """Explain the points with another method: they become the examples of a problem of their own."""
    problem = block.take(index).at(points.x)
    if inner.spec.determinism.kind != "deterministic":
        problem = attrs.evolve(problem, key=problem.key.at("sample", samples.start))
    outcome = run_method(inner, problem, engine, settings)
    return Answers(terms=outcome.attributions, checks=outcome.checks)


def _component(kind: str, use: Use, values: Mapping[str, Any]) -> Any:
    """Build a component from its spec, its own defaults, and the arguments that the composition gives it."""
    name = values[use.name.parameter] if isinstance(use.name, FromParameter) else use.name
    spec = catalog().find(name, kind)
    given = use.resolve(values)
    return registry().build(
        spec, {key: given.get(key, parameter.default) for key, parameter in spec.parameters.items()}
    )


def _concatenate(blocks: list[tuple[Reduced, dict[str, Tensor]]], plan: Plan) -> Outcome:
    reduced = [block for block, _ in blocks]
    errors = [block.standard_errors for block in reduced if block.standard_errors is not None]
    return Outcome(
        attributions=_join([block.attributions for block in reduced]),
        standard_errors=_join(errors) if errors else None,
        checks={name: torch.cat([checks[name] for _, checks in blocks]) for name in blocks[0][1]},
        columns=plan.columns,
    )


def _join(parts: list[Tensors]) -> Tensors:
    return parts[0] if len(parts) == 1 else tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
