"""Plugins of others that are broken: the kit names distribution, plugin, axiom and cause, and goes on with the rest."""

from __future__ import annotations

import re
import time

import pytest
from tests.conformance.conftest import Shelf

import axplain
from axplain.conformance import Record, Report

SPEC = """
spec = 1
kind = "method"
name = "{name}"
title = "A method"
version = "1.0.0"
summary = "The gradient, by hand."
requires = {{ input_dtype = "floating" }}
axioms = [{{ id = "{axiom}", kind = "exact" }}, {{ id = "implementation_invariance", kind = "exact" }}]
cost = {{ forward_rows = "batch", backward_rows = "batch" }}
"""
CODE = """
import time
from axplain import hookimpl
from axplain.protocols import Outcome

class Gradient:
    def run(self, problem, engine, settings):
        answer = engine.ask(problem, problem.inputs, problem.everyone(), "gradient").terms
        {step}
        return Outcome(answer)

@hookimpl
def axplain_plugin({given}):
    return Gradient
"""
GOOD = CODE.format(step="pass", given="kind, name")
BAD = {
    "raises_on_import": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "takes_other_arguments": (CODE.format(step="pass", given="kind, colour"), "hook that axplain does not know"),
    "returns_another_shape": (
        CODE.format(step="answer = tuple(t[:, :1] for t in answer)", given="kind, name"), r"returned the shape \("
    ),
    "sleeps": (CODE.format(step="time.sleep(60)", given="kind, name"), "it ran for more than 0.3 s"),
    "is_busy": (CODE.format(step="while True: pass", given="kind, name"), "it ran for more than 0.3 s"),
    "raises": (CODE.format(step="raise KeyError('depth')", given="kind, name"), "KeyError"),
    "exits": (CODE.format(step="raise SystemExit(3)", given="kind, name"), "SystemExit"),
}  # fmt: skip
AXIOMS = ("dummy", "implementation_invariance", "mirror", "batch_consistency", "cost")


def put(shelf: Shelf, name: str, axiom: str = "dummy") -> str:
    distribution = f"axplain-{name.replace('_', '-')}"
    good = f"good_beside_{name}"
    specs = {each: SPEC.format(name=each, axiom=axiom if each == name else "dummy") for each in (name, good)}
    shelf.put(distribution, specs, {name: BAD.get(name, (GOOD,))[0], good: GOOD})
    return distribution


def check(distribution: str, *axioms: str, seconds: float = 0.3) -> Report:
    return axplain.check([distribution, "saliency"], axioms=axioms, examples=2, contracts=2, seconds=seconds)


def of(report: Report, method: str) -> list[Record]:
    return [record for record in report if record.method == method]


@pytest.mark.parametrize("name", BAD)
def test_a_broken_plugin_is_named_with_its_cause_and_the_rest_goes_on(shelf: Shelf, name: str) -> None:
    distribution, cause = put(shelf, name), BAD[name][1]
    report = check(distribution, *AXIOMS, seconds=0.3 if "0.3" in cause else 30.0)
    bad = of(report, name)
    assert sorted(record.axiom for record in bad) == sorted(AXIOMS)
    for record in bad:
        assert (record.outcome, record.distribution) == ("fail", distribution), record
        assert record.reason and re.search(cause, record.reason), record.reason
        assert all(word in str(record) for word in (distribution, name, record.axiom))
    for method in (f"good_beside_{name}", "saliency"):
        rest = of(report, method)
        assert len(rest) == len(AXIOMS) and all(record.outcome == "pass" for record in rest), report


def test_a_plugin_that_never_ends_takes_no_longer_than_it_may(shelf: Shelf) -> None:
    distribution = put(shelf, "sleeps")
    started = time.monotonic()
    report = axplain.check(distribution, axioms=["mirror", "dtype"], contracts=1, seconds=0.2)
    assert time.monotonic() - started < 20, "it would sleep for a minute in each of the pairs"
    assert [record.reason.partition(",")[0] for record in of(report, "sleeps")] == ["it ran for more than 0.2 s"] * 2


def test_a_case_that_never_ends_is_told(shelf: Shelf) -> None:
    report = axplain.check(put(shelf, "is_busy"), axioms=["mirror"], contracts=1, seconds=0.2)
    [record] = of(report, "is_busy")
    assert record.reason == "it ran for more than 0.2 s, before it finished one case"
    assert record.counterexample.startswith("Question(model=Recipe(kind=")


def test_an_unknown_axiom_is_named_and_the_other_claims_are_checked(shelf: Shelf) -> None:
    distribution = put(shelf, "claims_too_much", axiom="compleetness")
    bad = {record.axiom: record for record in of(check(distribution), "claims_too_much")}
    unknown = bad.pop("compleetness")
    assert (unknown.outcome, unknown.distribution) == ("fail", distribution)
    assert "no axiom 'compleetness', did you mean" in unknown.reason
    assert bad["implementation_invariance"].outcome == "pass" and bad["implementation_invariance"].cases > 0
    assert not [record for record in bad.values() if record.failed]


def test_a_good_plugin_passes_everything(shelf: Shelf) -> None:
    put(shelf, "raises")
    report = axplain.check("good_beside_raises", examples=3, contracts=2)
    assert report.ok, report
    asked = {record.axiom for record in report if record.outcome == "pass"}
    assert {"dummy", "clean_model", "exception_safety", "cost", "declarations", "dtype"} <= asked
    assert {record.distribution for record in report} == {"axplain-raises"}


@pytest.mark.parametrize(
    ("text", "cause"),
    [("spec = = 1", "not TOML"), (SPEC.format(name="odd", axiom="dummy") + "colour = 1", "colour")],
    ids=["no TOML", "an unknown key"],
)
def test_a_broken_file_is_one_failure_and_the_rest_goes_on(shelf: Shelf, text: str, cause: str) -> None:
    good = SPEC.format(name="good_beside_odd", axiom="dummy")
    shelf.put("axplain-odd", {"odd": text, "good_beside_odd": good}, {"good_beside_odd": GOOD})
    report = check("axplain-odd", *AXIOMS)
    [record] = of(report, "odd")
    assert (record.outcome, record.axiom, record.distribution) == ("fail", "loads", "axplain-odd")
    assert cause in record.reason and "axplain_odd/odd.toml" in record.reason
    for method in ("good_beside_odd", "saliency"):
        assert [record.outcome for record in of(report, method)] == ["pass"] * len(AXIOMS), report


def test_a_broken_file_can_be_asked_for_by_its_name(shelf: Shelf) -> None:
    shelf.put("axplain-odd", {"odd": "spec = = 1"})
    report = axplain.check("odd")
    assert [record.method for record in report] == ["odd"] and not report.ok
