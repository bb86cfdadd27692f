"""Settles a question whose attributions land at a layer: what the layer holds decides about features and parameters."""

from __future__ import annotations

import attrs
import torch

from axplain.door import Question, check_requirements
from axplain.groups import resolve_groups
from axplain.guard import occupied, untouched
from axplain.parameters import sized
from axplain.problem import Problem, References
from axplain.seats.choosing import last_convolution
from axplain.seats.neurons import NeuronTarget
from axplain.seats.seating import Seating, structure_at
from axplain.seats.survey import survey
from axplain.seats.tail import resolved_at
from axplain.specs import Spec
from axplain.structure import Tensors
from axplain.targets import PredictedTarget, SeveralTargets


def seated(asked: Question) -> Question:
    """Return the question about its layers: their shapes, groups of their elements, defaults and bounds that follow.

    A few small passes look at the model, the first time that this layer, or neuron, of it is asked for; they are not
    counted.

    Raises:
        ArgumentError: a layer is never reached, runs after the target, or cannot be what the method needs.
    """
    asked = _aligned(asked)
    problem, request = asked.problem, asked.layers
    if request is None:
        return asked
    target = asked.target or PredictedTarget(torch.zeros(problem.batch, dtype=torch.long, device="cpu"))
    spec = asked.call.innermost.spec
    sites = request.sites or (last_convolution(problem, spec.name),)
    found = survey(attrs.evolve(problem, target=target), sites, replaced=not _only_read(spec))
    structure = structure_at(sites, found.slots, several=request.several)
    seating = Seating(sites, structure, found, request.baselines, spec.baseline, spec.name)
    like = _like(seating, problem.batch, problem.device)
    if spec.perturb_at == "seat":
        check_requirements(like, structure, [each for each in asked.call.specs if each.seats != "inner"], "layer")
    groups, call = None, asked.call
    if spec.requires.features != "none":
        groups = resolve_groups(request.feature_mask, like, structure)
        call = sized(call, groups.count)
    problem = attrs.evolve(problem, groups=groups, seating=seating)
    structure = asked.structure if spec.mirrors == "input" else structure
    return attrs.evolve(asked, call=call, problem=problem, structure=structure)


def _aligned(asked: Question) -> Question:
    """Return the question with neurons that know where the rows of their layers lie."""
    problem, parts = asked.problem, asked.target.parts if asked.target is not None else ()
    if not any(isinstance(part, NeuronTarget) for part in parts):
        return asked
    with occupied(problem.model.function, True), untouched(problem.model.parts, problem.device):
        found = tuple(part.aligned(problem) if isinstance(part, NeuronTarget) else part for part in parts)
    return attrs.evolve(asked, target=found[0] if len(found) == 1 else SeveralTargets(found))


def _only_read(spec: Spec) -> bool:
    """Whether a method asks what its layers hold, and nothing of what is made of it."""
    composition = spec.composition
    return composition is not None and composition.evaluation.kind == "activation" and not spec.requires.target


def shaped(asked: Question) -> Problem:
    """Return a question of the shape that the method will see, for plans that are only counted."""
    problem = asked.problem
    if problem.seating is None or asked.call.innermost.spec.perturb_at == "input":
        return problem
    return attrs.evolve(problem, inputs=_like(problem.seating, problem.batch, problem.device), seating=None)


def carried_rows(asked: Question) -> int:
    """Return the rows that carry inputs and references to the seat."""
    problem = asked.problem
    references: References | None = problem.references
    if problem.seating is None or asked.call.innermost.spec.perturb_at == "input":
        return 0
    if references is None:
        return problem.batch
    table = problem.batch * references.count if problem.arguments.follow else len(references.rows[0])
    return problem.batch + table


def references_of(asked: Question) -> int:
    """Return how many references each example has; those that are functions of the layer's values count as one."""
    problem = asked.problem
    if problem.references is not None:
        return problem.references.count
    if problem.seating is None or problem.seating.baselines is None:
        return 0
    if callable(problem.seating.baselines) and not isinstance(problem.seating.baselines, torch.Tensor):
        return 1
    like = _like(problem.seating, problem.batch, problem.device)
    resolved = resolved_at(problem.seating, like, problem.key)
    return resolved.count if resolved is not None else 0


def _like(seating: Seating, batch: int, device: torch.device) -> Tensors:
    """Return tensors of the shapes of the seat that take no memory."""
    return tuple(torch.zeros((), dtype=slot.dtype, device=device).expand(batch, *slot.shape) for slot in seating.slots)
