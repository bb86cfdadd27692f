"""Asks the claims of a method about a user's own model, at the user's own input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from axplain.conformance.case import Axiom, Case, NotApplicable, Violation
from axplain.conformance.claims import Pair
from axplain.conformance.judgement import judge_rate
from axplain.conformance.report import Record
from axplain.conformance.runner import Effort, Tally, ask, record_of
from axplain.conformance.strategies import CONDITIONS
from axplain.conformance.subject import Subject
from axplain.errors import ArgumentError
from axplain.structure import structure_of

#: examples that are asked one at a time, where a check makes functions of the model
MOST_EXAMPLES = 4


def run_own(pair: Pair, effort: Effort, subject: Subject, asked: Case) -> Record:
    """Check one pair on one model and input and return its record.

    A claim that is made for smooth models, say, is reported where it does not hold: only the user knows what the model
    is.
    """
    violations: list[Violation] = []

    def body(axiom: Axiom, tally: Tally) -> None:
        try:
            _ask(pair, axiom, subject, asked, tally)
        except Violation as violation:
            violations.append(violation)
            raise

    record = record_of(pair, effort, body)
    condition = pair.claim.when if pair.claim else None
    if violations and condition in CONDITIONS:
        reason = (
            f"it is claimed for {condition.replace('_', ' ')} models, and does not hold on this one: {record.reason}"
        )
        return attrs.evolve(record, outcome="reported", reason=reason)
    return record


def own_case(subject: Subject, model: Callable[..., Any], x: Any, given: Mapping[str, Any]) -> Case:
    """Return the user's question as a case, its target settled.

    Raises:
        ArgumentError: x is no tensor, tuple or dict of tensors, or whatever `explain` refuses.
    """
    if structure_of(x) is None:
        raise ArgumentError("x", f"{type(x).__name__} came", "a tensor, a tuple of tensors or a dict of them")
    rest = {name: value for name, value in given.items() if name not in ("target", "baselines")}
    case = Case(
        subject, None, model, x, target=given.get("target"), baselines=given.get("baselines"), extra=rest,
        network=model if isinstance(model, nn.Module) else None,
    )  # fmt: skip
    aims = subject.call.innermost.spec.requires.target
    case = attrs.evolve(case, target=_settled(case)) if aims and case.target is None else case
    case.explain()  # what is wrong with the question itself is raised once, and no fault of the method
    return case


def _settled(case: Case) -> Any:
    """Return the predicted class of each example; None where the output is one number for each."""
    with torch.no_grad():
        output = case.output(*case.inputs)
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output[0].numel() == 1:
        return None
    if output.ndim != 2:
        raise ArgumentError("target", "None came", "a target: the output is no vector of classes")
    classes: list[int] = output.argmax(1).tolist()
    return classes


def _ask(pair: Pair, axiom: Axiom, subject: Subject, asked: Case, tally: Tally) -> None:
    claim = pair.claim
    if not axiom.own:
        raise NotApplicable("it is asked of models that the kit makes")
    if claim is not None and claim.kind == "inherited":
        raise NotApplicable("it is inherited: check the method inside")
    if claim is not None and "layer" in asked.extra and not subject.needs_layer:
        raise NotApplicable("it is claimed of attributions of the input: ask it without layer=")
    if claim is not None and claim.model_class is not None:
        raise NotApplicable(f"it is claimed for {claim.model_class.replace('_', ' ')} models only")
    for name, least in (claim.n_at_least if claim else {}).items():
        given = subject.parameters.get(name, least)
        if given < least:
            raise NotApplicable(f"it is claimed from {name} = {least}, and {given} came")
    subject = subject.quick() if claim is None else subject.claiming(claim)
    case = attrs.evolve(asked, subject=subject, claim=claim)
    cases = list(_one_by_one(case)) if axiom.wraps else [case]
    if claim is not None and claim.kind == "converges":
        assert claim.rate is not None, "the reader demands the rate of a claim that converges"
        tally.used, tally.gap = judge_rate(axiom.check, [each.with_parameters for each in cases], claim.rate)
        tally.cases = len(cases)
        return
    for number, each in enumerate(cases):
        ask(axiom.check, each, tally, f"example {number} of x" if axiom.wraps else "x as it came")


def _one_by_one(case: Case) -> Iterator[Case]:
    for i in range(min(len(case.inputs[0]), MOST_EXAMPLES)):
        yield case.example(i)
