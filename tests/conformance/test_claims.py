"""Claims are held to what they say, and their absence to a reason: both ways, from the specs and from the cases."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from tests.conformance.planting import method

import axplain
from axplain.conformance import REQUIRED, Effort, Record, Subject
from axplain.conformance.claims import Pair, pairs_of
from axplain.conformance.networks import KINDS, Recipe, kinds_with
from axplain.conformance.runner import run
from axplain.formula import Formula
from axplain.specs import Claim, Rate, Spec

LITTLE = Effort(examples=8, contracts=2, seconds=30.0)


def claiming(*claims: Claim, base: str = "integrated_gradients", **changes: Any) -> Spec:
    return attrs.evolve(axplain.describe(base), **{"family": "", "axioms": claims, **changes})


def pair_of(spec: Spec, axiom: str) -> Pair:
    [pair] = [pair for pair in pairs_of(spec) if pair.axiom == axiom]
    return pair


def record_of(spec: Spec, axiom: str, **given: Any) -> Record:
    return run(pair_of(spec, axiom), LITTLE, Subject(spec, axplain.explain, parameters=given))


def test_an_unknown_axiom_fails_and_is_told_its_nearest_name() -> None:
    record = record_of(claiming(Claim("completness", "exact")), "completness")
    assert record.outcome == "fail" and record.cases == 0
    assert "no axiom 'completness', did you mean" in record.reason and "completeness" in record.reason


def test_an_unknown_axiom_that_is_near_none_is_told_all_names() -> None:
    reason = pair_of(claiming(Claim("xyzzy", "exact")), "xyzzy").fault
    assert reason.startswith("there is no axiom 'xyzzy'; there are affine_scale, batch_consistency")


def test_a_kind_that_the_axiom_does_not_have_fails() -> None:
    record = record_of(claiming(Claim("linearity", "statistical")), "linearity")
    assert record.outcome == "fail"
    assert record.reason == "it is claimed as statistical, and can be exact, for_class"


def test_a_kind_that_the_family_does_not_allow_fails() -> None:
    spec = claiming(Claim("affine_scale", "approximate"), family="path")
    assert pair_of(spec, "affine_scale").fault == "methods of the family 'path' claim it as exact"
    assert not pair_of(attrs.evolve(spec, family=""), "affine_scale").fault


@pytest.mark.parametrize("family", REQUIRED)
def test_a_family_owes_its_axioms_or_a_reason_for_each(family: str) -> None:
    silent = {pair.axiom: pair.fault for pair in pairs_of(claiming(family=family)) if pair.fault}
    assert silent.keys() == REQUIRED[family].keys()
    assert all(f"methods of the family {family!r} claim it" in fault for fault in silent.values())
    waived = [Claim(axiom, "not_claimed", reason="it is about another function") for axiom in REQUIRED[family]]
    said = [pair for pair in pairs_of(claiming(*waived, family=family)) if pair.axiom in REQUIRED[family]]
    assert len(said) == len(REQUIRED[family])
    assert all((pair.fault, pair.runs, pair.waived) == ("", False, "it is about another function") for pair in said)


def test_a_waived_axiom_is_skipped_with_its_reason() -> None:
    spec = claiming(Claim("dummy", "not_claimed", reason="it smooths"), family="path")
    record = record_of(spec, "dummy")
    assert (record.outcome, record.reason, record.cases) == ("skip", "it smooths", 0)


@pytest.mark.parametrize(("axiom", "family"), [("determinism", ""), ("dummy", "path")])
def test_what_is_owed_is_not_waived_without_a_reason(axiom: str, family: str) -> None:
    record = record_of(claiming(Claim(axiom, "not_claimed"), family=family), axiom)
    assert (record.outcome, record.reason) == ("fail", "it is not claimed and no reason is written")


def test_an_axiom_that_nobody_owes_needs_no_reason() -> None:
    record = record_of(claiming(Claim("shapley", "not_claimed")), "shapley")
    assert (record.outcome, record.reason) == ("skip", "not claimed")


def test_a_contract_is_waived_with_a_reason() -> None:
    record = record_of(claiming(Claim("determinism", "not_claimed", reason="it asks a service")), "determinism")
    assert (record.outcome, record.reason) == ("skip", "it asks a service")


def _known(base: str, axiom: str = "completeness") -> Spec:
    return claiming(Claim(axiom, "exact"), base=base, known_failures={axiom: "noticed in May"})


def test_a_known_failure_is_no_failure_and_says_both_reasons() -> None:
    record = record_of(_known("input_x_gradient"), "completeness")
    assert record.outcome == "known failure" and not record.failed
    assert record.reason.startswith("noticed in May: sum of the attributions against F(x) - F(x'): off by")


def test_a_known_failure_that_passes_is_a_failure() -> None:
    record = record_of(_known("deeplift"), "completeness")
    assert record.outcome == "fail" and record.cases > 0
    assert record.reason == "known_failures says 'noticed in May', and it holds: delete it"


def test_a_contract_can_be_a_known_failure() -> None:
    spec = claiming(base="saliency", signed=True, known_failures={"declarations": "magnitudes"})
    record = record_of(spec, "declarations")
    assert record.outcome == "known failure"
    assert record.reason == "magnitudes: no attribution is ever negative: declare signed = false"


def test_a_known_failure_of_no_axiom_is_a_failure() -> None:
    spec = claiming(known_failures={"completness": "noticed in May"})
    record = record_of(spec, "completness")
    assert record.outcome == "fail" and "known_failures names it" in record.reason and "completeness" in record.reason


def test_a_known_failure_of_an_axiom_that_is_not_claimed_is_a_failure() -> None:
    """Nothing would ever notice that it holds."""
    spec = claiming(known_failures={"shapley": "noticed in May"})
    faults = [pair for pair in pairs_of(spec) if pair.axiom == "shapley"]
    assert faults and run(faults[0], LITTLE, Subject(spec, axplain.explain)).outcome == "fail"


def _converging(order: float, axiom: str = "completeness") -> Claim:
    return Claim(axiom, "converges", rate=Rate("n_steps", order), when="smooth")


def test_a_rate_that_is_kept_passes() -> None:
    record = record_of(claiming(_converging(1.0)), "completeness", quadrature="left")
    assert record.outcome == "pass" and record.cases == 64 and 0.2 < record.used <= 1.0


def test_a_rate_that_is_not_kept_fails_with_both_gaps() -> None:
    record = record_of(claiming(_converging(2.0)), "completeness", quadrature="left")
    assert record.outcome == "fail"
    assert "16 times as much of n_steps leaves" in record.reason and "order 2 would leave 0.0039" in record.reason


def test_a_rate_without_a_parameter_fails() -> None:
    record = record_of(claiming(Claim("completeness", "converges")), "completeness")
    assert (record.outcome, record.reason) == ("fail", "the claim states no rate")


def _approximate(tolerance: str, nodes: int = 64) -> Claim:
    return Claim("completeness", "approximate", Formula(tolerance), when="smooth", n_at_least={"n_steps": nodes})


def test_a_tolerance_that_is_kept_passes_and_says_how_much_of_it_is_used() -> None:
    record = record_of(claiming(_approximate("1e-9 * (1 + abs_out)")), "completeness")
    assert record.outcome == "pass" and 0 < record.used < 1 and 0 < record.gap < 1e-8


def test_a_tolerance_that_is_too_tight_fails() -> None:
    record = record_of(claiming(_approximate("1e-9 * (1 + abs_out)", nodes=2)), "completeness")
    assert record.outcome == "fail" and "is allowed" in record.reason


def _models_of(claim: Claim, base: str = "integrated_gradients") -> set[str]:
    seen: list[str] = []

    def noticing(model: Any, x: Any, spec: Any, **more: Any) -> Any:
        seen.append(current[-1].kind)
        return axplain.explain(model, x, spec, **more)

    current: list[Recipe] = []
    build = Recipe.build

    def built(recipe: Recipe) -> Any:
        current.append(recipe)
        return build(recipe)

    subject = method(base, noticing, axioms=(claim,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "build", built)
        record = run(pair_of(subject.spec, claim.id), Effort(examples=30, seconds=30.0), subject)
    assert record.outcome == "pass" and record.cases > 0, record
    return set(seen)


def test_a_claim_for_a_class_is_asked_of_models_of_that_class_only() -> None:
    asked = _models_of(Claim("shapley", "for_class", model_class="multilinear"))
    assert asked == {"linear", "multilinear"}


def test_a_claim_on_smooth_models_is_asked_of_smooth_models_only() -> None:
    asked = _models_of(_approximate("1e-6 * (1 + abs_out)"))
    assert len(asked) > 1 and asked <= set(kinds_with("smooth", KINDS))


def test_a_claim_for_a_class_that_the_axiom_has_no_model_of_is_skipped() -> None:
    record = record_of(claiming(Claim("sensitivity", "for_class", model_class="multilinear")), "sensitivity")
    assert record.outcome == "skip" and record.reason and record.cases == 0


def test_an_inherited_claim_is_asked_of_every_method_inside_that_makes_it() -> None:
    inside: set[str] = set()

    def noticing(model: Any, x: Any, spec: Any, **more: Any) -> Any:
        inside.add(more["inner"]["use"])
        return axplain.explain(model, x, spec, **more)

    subject = method("smoothgrad", noticing, axioms=(Claim("linearity", "inherited"),))
    record = run(pair_of(subject.spec, "linearity"), LITTLE, subject)
    assert record.outcome == "pass" and record.cases > 0
    assert inside == {
        spec.name
        for spec in map(axplain.describe, axplain.methods())
        if spec.kind == "method" and spec.claim("linearity") is not None
    }
    assert "integrated_gradients" in inside and "saliency" not in inside


def test_a_claim_that_the_lift_breaks_is_not_inherited() -> None:
    """Squares of attributions do not add up, whatever is inside."""
    record = record_of(claiming(Claim("linearity", "inherited"), base="smoothgrad_sq"), "linearity")
    assert record.outcome == "fail" and "against a phi(F) + b phi(G)" in record.reason


def test_a_method_that_lifts_nothing_may_not_claim_to_inherit() -> None:
    """Otherwise one word would do for every axiom that a family owes."""
    record = record_of(claiming(Claim("linearity", "inherited")), "linearity")
    assert record.outcome == "fail" and "it inherits the axiom from no parameter" in record.reason


def test_claims_under_a_condition_are_pairs_of_their_own() -> None:
    spec = claiming(_approximate("1e-9"), attrs.evolve(_converging(1.0), when="piecewise_linear"))
    names = [str(pair) for pair in pairs_of(spec) if pair.axiom == "completeness"]
    assert names == [
        "integrated_gradients-completeness-approximate-smooth",
        "integrated_gradients-completeness-converges-piecewise_linear",
    ]


def test_a_counterexample_builds_the_case_that_failed() -> None:
    from axplain.conformance import Question, Violation
    from axplain.registry import registry

    spec = claiming(Claim("completeness", "exact"), base="input_x_gradient")
    record = record_of(spec, "completeness")
    question = eval(record.counterexample, {"Question": Question, "Recipe": Recipe})
    assert repr(question) == record.counterexample
    axiom = registry().build(axplain.describe("completeness", "axiom"), {})
    gap = axiom.check(question.case(Subject(spec, axplain.explain), spec.axioms[0]))
    assert gap.worst > 1e-6
    assert issubclass(Violation, AssertionError)
