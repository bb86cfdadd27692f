"""Runs pairs of a method and an axiom: draws cases, shrinks a counter-example, keeps the time, makes the record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

from axplain.conformance import strategies
from axplain.conformance.case import Axiom, Case, Gap, NotApplicable, Question, Violation
from axplain.conformance.claims import Pair
from axplain.conformance.judgement import judge, judge_rate
from axplain.conformance.limits import TooLong, limited
from axplain.conformance.networks import Kind
from axplain.conformance.report import Record
from axplain.conformance.subject import Subject, inner_parameter
from axplain.discovery import catalog, describe
from axplain.errors import ArgumentError, AxplainError, MissingExtra, UncoveredOperation
from axplain.registry import registry
from axplain.specs import EXPLAINS, Claim

try:
    from hypothesis import HealthCheck, Phase, Verbosity, assume, given, settings
    from hypothesis.errors import Flaky, Unsatisfiable
except ImportError as error:
    raise MissingExtra("the conformance kit", "conformance") from error

#: cases that a rate is measured over; fewer let correct code fail by chance
RATE_CASES = 64
#: rows that one call of a drawn case may cost
MOST_ROWS = 5_000


@attrs.frozen
class Effort:
    """How much work a check may be: drawn cases per claim and per contract, and seconds per pair.

    `random`: draw other cases in every run; otherwise they are the same each time.
    """

    examples: int = 20
    contracts: int = 5
    seconds: float = 60.0
    random: bool = False


@attrs.define
class Tally:
    """What the cases of one pair have shown so far."""

    cases: int = 0
    used: float = 0.0
    gap: float = 0.0
    sum: float = 0.0
    last: Any = None
    silent: str = ""
    failed: Any = None
    found: str = ""


def run(pair: Pair, effort: Effort, subject: Subject | None = None) -> Record:
    """Check one pair on drawn cases and return its record; nothing that a plugin does comes through as an exception."""
    return record_of(pair, effort, lambda axiom, tally: _search(pair, axiom, subject, effort, tally))


def record_of(pair: Pair, effort: Effort, body: Callable[[Axiom, Tally], None]) -> Record:
    """Return the record of whatever a body of checks does, raises or takes too long for."""
    record = Record(pair.method, pair.distribution, pair.axiom, pair.kind, "pass")
    if pair.fault:
        return attrs.evolve(record, outcome="fail", reason=pair.fault)
    if not pair.runs:
        return attrs.evolve(record, outcome="skip", reason=pair.waived)
    started, tally, failure = time.perf_counter(), Tally(), ""
    try:
        with limited(effort.seconds):
            body(_axiom(pair.axiom), tally)
    except TooLong:
        failure = f"it ran for more than {effort.seconds:g} s" + _within(tally)
    except NotApplicable as nothing:
        record = attrs.evolve(record, outcome="skip", reason=str(nothing))
    except Violation as violation:
        failure = str(violation)
    except (Exception, SystemExit) as error:
        failure = _cause(error)
        if isinstance(error, Flaky) and tally.found:
            tally.last, failure = tally.failed, f"{tally.found}; {failure}"
    seconds = time.perf_counter() - started
    record = attrs.evolve(record, cases=tally.cases, used=tally.used, gap=tally.gap, seconds=seconds)
    return _concluded(record, pair, failure, tally)


def _concluded(record: Record, pair: Pair, failure: str, tally: Tally) -> Record:
    """Say what the outcome is, given what failed and what was expected to."""
    if failure:
        found = attrs.evolve(record, outcome="fail", reason=failure, counterexample=str(tally.last or ""))
        return attrs.evolve(found, outcome="known failure", reason=f"{pair.known}: {failure}") if pair.known else found
    if pair.known and record.outcome == "pass":
        return attrs.evolve(
            record, outcome="fail", reason=f"known_failures says {pair.known!r}, and it holds: delete it"
        )
    if record.outcome == "pass" and not pair.asserted:
        return attrs.evolve(record, outcome="reported", reason=f"{tally.sum / max(tally.cases, 1):.2f} on average")
    return record


def _within(tally: Tally) -> str:
    return f", in case {tally.cases + 1}" if tally.cases else ", before it finished one case"


def _cause(error: BaseException) -> str:
    """Say what went wrong in other people's code: our own errors say it already."""
    if isinstance(error, Flaky):
        return "the same case fails and passes: it depends on something besides its arguments and its seed"
    if isinstance(error, AxplainError):
        return str(error).replace("\n", " ")[:600]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f" (at {'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno})"
    return f"{type(error).__name__}: {error}".strip().replace("\n", " ")[:600] + place


def _axiom(name: str) -> Axiom:
    axiom: Axiom = registry().build(describe(name, "axiom"), {})
    return axiom


def _search(pair: Pair, axiom: Axiom, subject: Subject | None, effort: Effort, tally: Tally) -> None:
    """Ask the cases of a pair; those of an inherited claim once for each inner method that makes it."""
    claim, subject = pair.claim, subject or Subject.of(pair.method)
    if claim is None:
        _draw(axiom, subject.quick(), None, effort.contracts, effort, tally)
    elif claim.kind == "inherited":
        inner = list(_heirs(subject, claim))
        if not inner:
            raise NotApplicable("no installed method claims it, that could be inside")
        for each, inherited in inner:
            with suppress(NotApplicable):
                _draw(axiom, each.claiming(claim), inherited, max(effort.examples // 4, 2), effort, tally)
        if not tally.cases:
            raise NotApplicable(tally.silent or "none of the methods inside has a case")
    else:
        _claimed(axiom, subject, claim, effort, tally)


def _heirs(subject: Subject, claim: Claim) -> Iterator[tuple[Subject, Claim]]:
    """Yield a lift around every method that claims its axiom, with that method's own claim."""
    parameter = inner_parameter(subject.spec)
    if parameter is None:
        raise Violation("it inherits the axiom from no parameter: no method is inside it")
    for spec in catalog().specs.values():
        own = spec.claim(claim.id) if spec.kind in EXPLAINS and inner_parameter(spec) is None else None
        if own is not None and own.kind in ("exact", "approximate", "for_class") and not Subject.of(spec).needs_layer:
            inner = {"use": spec.name, **Subject.of(spec).quick().parameters, **own.n_at_least}
            yield subject.quick().evolve(**{parameter: inner}), own


def _claimed(axiom: Axiom, subject: Subject, claim: Claim, effort: Effort, tally: Tally) -> None:
    if claim.kind == "converges":
        if claim.rate is None:
            raise Violation("the claim states no rate")
        questions = strategies.fixed_questions(axiom, claim, subject, RATE_CASES)
        cases = [partial(_case_with, question, subject, claim) for question in questions]
        tally.used, tally.gap = judge_rate(axiom.check, cases, claim.rate)
        tally.cases = len(cases)
    else:
        _draw(axiom, subject.quick().claiming(claim), claim, effort.examples, effort, tally)


def _case_with(question: Question, subject: Subject, claim: Claim, **parameters: Any) -> Case:
    return question.case(subject.evolve(**parameters), claim)


def _draw(axiom: Axiom, subject: Subject, claim: Claim | None, examples: int, effort: Effort, tally: Tally) -> None:
    """Ask drawn cases, of every kind of model; the first that fails is shrunk, and is the last that the tally knows."""
    kinds = strategies.kinds_of(axiom, claim, subject)
    if not kinds:
        raise NotApplicable("the axiom is asked of no model that the claim is about and the method takes")
    for question in strategies.one_of_each(axiom, kinds, subject):
        try:
            _ask_question(axiom, question, subject, claim, tally)
        except Exception:
            found = tally.last
            _search_case(axiom, subject, claim, (question.model.kind,), examples, effort, tally)  # a smaller one, maybe
            tally.last = found
            raise
    _search_case(axiom, subject, claim, kinds, examples, effort, tally)
    if not tally.cases:
        raise NotApplicable(tally.silent or "no case could be drawn")


def _search_case(
    axiom: Axiom,
    subject: Subject,
    claim: Claim | None,
    kinds: tuple[Kind, ...],
    examples: int,
    effort: Effort,
    tally: Tally,
) -> None:
    """Let Hypothesis draw cases, and shrink one that fails."""

    @settings(
        max_examples=examples,
        derandomize=not effort.random,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.questions(axiom, kinds, subject))
    def probe(question: Question) -> None:
        assume(_ask_question(axiom, question, subject, claim, tally))

    with suppress(Unsatisfiable):
        probe()


def _ask_question(axiom: Axiom, question: Question, subject: Subject, claim: Claim | None, tally: Tally) -> bool:
    """Ask one case; return whether the axiom has anything to say of it."""
    try:
        case = question.case(subject, claim)
        _check_price(case)
        ask(axiom.check, case, tally, _named(question, subject))
    except NotApplicable as nothing:
        tally.silent = str(nothing)
        return False
    except UncoveredOperation as refusal:
        if subject.call.innermost.spec.requires.operations == "any":
            raise
        tally.silent = str(refusal)
        return False
    return True


def _named(question: Question, subject: Subject) -> str:
    """Return a question as what builds it again, with the parameters that the method was asked with."""
    parameters = ", ".join(f"{name}={value!r}" for name, value in subject.parameters.items())
    return f"{question!r}" + (f" with {parameters}" if parameters else "")


def _check_price(case: Case) -> None:
    """Leave out cases that would cost too many rows, such as all subsets of many features."""
    if case.subject.spec.cost is None:  # adapters of other libraries may state none
        return
    try:
        rows = case.price().forward_rows
    except ArgumentError as refusal:
        if refusal.argument not in case.subject.call.innermost.spec.parameters:
            raise
        raise NotApplicable(str(refusal)) from None  # the method itself says that the case is too large
    if rows > MOST_ROWS:
        raise NotApplicable(f"a case would cost {rows} rows")


def ask(check: Callable[[Case], Gap | None], case: Case, tally: Tally, label: Any) -> None:
    """Ask one case and add what it shows to the tally.

    Raises:
        Violation: the axiom does not hold in it.
    """
    tally.last = label
    try:
        gap = check(case)
        if gap is not None and not isinstance(gap, Gap):
            raise TypeError(f"the check returned {type(gap).__name__}; expected a Gap, or None")
        tally.cases += 1
        if gap is not None and gap.error.numel():
            tally.gap, tally.sum = max(tally.gap, gap.worst), tally.sum + float(gap.error.mean())
        tally.used = max(tally.used, judge(gap, case.claim, eps_of(case)))
    except Violation as violation:
        tally.failed, tally.found = label, str(violation)
        raise
    tally.last = None


def eps_of(case: Case) -> float:
    """Return the rounding of the coarsest input."""
    return max((torch.finfo(x.dtype).eps for x in case.inputs if x.is_floating_point()), default=1e-7)
