"""Contracts on answers, questions and declarations find the faults planted for them, and let right methods pass."""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest
import torch
from tests.conformance.plain import Answer, asked, sampled
from tests.conformance.planting import Garden, Planted, changed, each
from torch import Tensor

import axplain
from axplain.conformance import Effort, Subject
from axplain.conformance.claims import pairs_of
from axplain.conformance.runner import run
from axplain.discovery import catalog
from axplain.formula import Formula
from axplain.references import Distribution
from axplain.specs import CostFormula, Determinism, Requires

FAULTS, RIGHT = Garden(), Garden()
BATCH = Formula("batch")


@FAULTS.plant("mirror", r"got attributions \(")
def flattened(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi.flatten())


@FAULTS.plant("mirror", "x is a tuple and the attributions are a list")
def a_list_for_a_tuple(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    phi = answer.attributions
    return attrs.evolve(answer, attributions=list(phi) if isinstance(phi, tuple) else phi)


@FAULTS.plant("mirror", "1 attributions came for 2 inputs")
def the_first_of_two(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    phi = answer.attributions
    return attrs.evolve(answer, attributions=phi[:1] if isinstance(phi, tuple) else phi)


@FAULTS.plant("mirror", r"\d+ of \d+ attributions are not finite")
def zero_by_zero(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi * 0 / 0)


@FAULTS.plant("mirror", "the memory of the input")
def the_input_itself(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return Answer(x)


@FAULTS.plant("detached", "carry a graph")
def a_graph_left(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi.requires_grad_() * 1)


@FAULTS.plant("detached", "carry a graph")
def a_graph_where_the_input_has_one(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    if isinstance(x, tuple):
        return answer
    return changed(answer, lambda phi: phi + 0 * x)


@FAULTS.plant("dtype", "something accumulates in float32")
def sums_in_float32(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi.float().to(phi.dtype))


@FAULTS.plant("dtype", "accumulates in float32", base="saliency")
def sums_in_float32_times_float64(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    """A mean that is taken in single precision, then scaled in double: no digit of it tells."""
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi.float().to(phi.dtype) * 0.7)


@FAULTS.plant("dtype", r"float32.* attributions.* of torch.float64")
def float64_for_float32(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), Tensor.double)


@FAULTS.plant("dtype", "input of torch.float64 got attributions of torch.float32")
def float32_for_float64(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), Tensor.float)


@FAULTS.plant("dtype", "float32 attributions against float64: off by")
def half_precision_for_float32(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    return changed(answer, lambda phi: phi.half().float() if phi.dtype == torch.float32 else phi)


@FAULTS.plant("dtype", "RuntimeError: no bfloat16 here")
def no_bfloat16(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    def refused(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bfloat16:
            raise RuntimeError("no bfloat16 here")
        return tensor

    each(refused, x)
    return axplain.explain(model, x, spec, **more)


ALONE = "a batch against one example at a time: off by"


@FAULTS.plant("batch_consistency", ALONE)
def the_mean_over_examples(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi.mean(0, keepdim=True).expand_as(phi))


@FAULTS.plant("batch_consistency", ALONE, base="saliency")
def shares_of_the_largest_in_the_batch(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi / phi.abs().max())


def _first(given: Any) -> Any:
    return given if not isinstance(given, Tensor | tuple) else each(lambda rows: rows[:1], given)


@FAULTS.plant("batch_consistency", ALONE)
def the_first_examples_baseline_for_all(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **{**more, "baselines": _first(more["baselines"])})


@FAULTS.plant("batch_consistency", ALONE)
def the_first_target_for_all(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    target = more["target"]
    return axplain.explain(model, x, spec, **{**more, "target": target[0] if isinstance(target, list) else target})


@FAULTS.plant("batch_consistency", ALONE)
def the_first_argument_for_all(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    named = {name: value[:1] for name, value in more["forward_kwargs"].items()}
    return axplain.explain(model, x, spec, **{**more, "forward_kwargs": named})


@FAULTS.plant("batch_consistency", ALONE, base="gradient_shap")
def draws_that_follow_the_size_of_the_batch(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    rows = len(x[0]) if isinstance(x, tuple) else len(x)
    return axplain.explain(model, x, spec, **{**more, "seed": more["seed"] + rows})


@FAULTS.plant("chunk_invariance", "batch_size=.*: off by")
def a_factor_for_every_chunk(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    rows = more["batch_size"]
    answer = axplain.explain(model, x, spec, **more)
    return changed(answer, lambda phi: phi * (1 + 1 / rows) if isinstance(rows, int) else phi)


@FAULTS.plant("chunk_invariance", "batch_size=.*: off by", base="gradient_shap")
def draws_that_follow_the_chunks(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    rows = more["batch_size"]
    return axplain.explain(model, x, spec, **{**more, "seed": rows if isinstance(rows, int) else 7})


@FAULTS.plant("chunk_invariance", "batch_size=2: off by")
def the_last_odd_row_left_out(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    rows = more["batch_size"]

    def cut(phi: Tensor) -> Tensor:
        left = len(phi) % rows if isinstance(rows, int) and rows <= len(phi) else 0
        return torch.cat([phi[: len(phi) - left], torch.zeros_like(phi[:left])])

    return changed(axplain.explain(model, x, spec, **more), cut)


@FAULTS.plant("chunk_invariance", "batch_size=auto: off by")
def sums_in_float32_where_it_chooses(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    return answer if more["batch_size"] != "auto" else changed(answer, lambda phi: phi.float().to(phi.dtype))


HALVES = "two halves as two inputs.*: off by"


@FAULTS.plant("tuple_equivalence", HALVES)
def a_set_drawn_apart_for_each_tensor(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    """Every pairing of the references of two inputs, where row i of each belongs together."""
    given = more["baselines"]
    if isinstance(x, tuple) and isinstance(given, Distribution):
        first, second = given.rows
        pairs = first.repeat_interleave(len(second), 0), second.repeat(len(first), *[1] * (second.ndim - 1))
        more["baselines"] = axplain.distribution(pairs)
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("tuple_equivalence", HALVES)
def shares_of_each_tensor(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi / phi.abs().max())


@FAULTS.plant("tuple_equivalence", HALVES, base="gradient_shap")
def the_tensors_turned(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    given = more["baselines"]
    if isinstance(x, tuple) and isinstance(given, Distribution):
        more["baselines"] = axplain.distribution((given.rows[0], given.rows[1].roll(1, 0)))
    return axplain.explain(model, x, spec, **more)


#: a seeded method without noise of the input's size, whose halves can be compared in law only
DRAWN: dict[str, Any] = {
    "base": "gradient_shap",
    "composition": None,
    "references": "reference",
    "parameters": {"n_samples": axplain.describe("gradient_shap").parameters["n_samples"]},
}


@FAULTS.plant("tuple_equivalence", "in the mean over seeds: off by", **DRAWN)
def one_tensor_after_the_other(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    """A sampler of orders in which the features of the first tensor always join first."""

    def orders(question: Any, runs: int, generator: torch.Generator) -> Any:
        for _ in range(runs):
            first = question.widths[0]
            rest = sum(question.widths) - first
            yield torch.cat([torch.randperm(n, generator=generator) + s for n, s in ((first, 0), (rest, first))])

    return sampled(orders)(model, x, spec, **more)


@FAULTS.plant("target_forms", r"the target \d: as a negative index it gives other numbers")
def negative_indices_read_as_zero(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    target = more["target"]
    return axplain.explain(model, x, spec, **{**more, "target": max(target, 0) if isinstance(target, int) else target})


@FAULTS.plant("target_forms", r"the target \d: as a callable it gives other numbers")
def callables_ignored(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    target = more["target"]
    return axplain.explain(model, x, spec, **{**more, "target": 0 if callable(target) else target})


@FAULTS.plant("target_forms", r"as a tensor it is refused \(TypeError\)")
def only_python_integers(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    if not isinstance(more["target"], int | list):
        raise TypeError("no such target")
    return axplain.explain(model, x, spec, **more)


SAYS_COST = r"the model saw \d+ rows forward and \d+ with a gradient; the spec says"


@FAULTS.plant("cost", SAYS_COST)
def one_pass_more(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    with torch.no_grad():
        asked(model, x, more).value(x if isinstance(x, tuple) else (x,))
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("cost", SAYS_COST, cost=CostFormula(Formula("2 * batch * n_steps"), Formula("batch * n_steps")))
def forward_rows_that_nobody_asks_for(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("cost", SAYS_COST, cost=CostFormula(Formula("batch * n_steps"), Formula("batch")))
def more_gradients_than_said(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("cost", SAYS_COST + " at most", cost=CostFormula(BATCH, BATCH, bound="upper"))
def more_than_the_most(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("declarations", "no seed changes the numbers", determinism=Determinism("seeded"))
def no_draws_declared_seeded(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("declarations", "depend on the seed", base="gradient_shap", determinism=Determinism("deterministic"))
def draws_declared_deterministic(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, axplain.describe("gradient_shap"), **more)


@FAULTS.plant("declarations", "some attributions are negative, though", base="vargrad")
def a_variance_that_falls_below_zero(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    """E[a^2] - E[a]^2 in single precision, of answers far from zero."""
    inner = axplain.describe("saliency")
    seed, total, squares = more.pop("seed"), torch.zeros(()), torch.zeros(())
    count, stdev = more.pop("n_samples"), 1e-6
    for copy in range(count):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1000 * seed + copy)).to(x.dtype)
        phi = 10 + axplain.explain(model, x + stdev * noise, inner, **more).attributions.float()
        total, squares = total + phi / count, squares + phi**2 / count
    return Answer((squares - total**2).to(x.dtype))


@FAULTS.plant("declarations", "some attributions are negative, though", signed=False)
def both_signs_declared_unsigned(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("declarations", "no attribution is ever negative", base="saliency", signed=True)
def magnitudes_declared_signed(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("declarations", "the baselines change nothing")
def baselines_ignored(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **{**more, "baselines": 0.0})


@FAULTS.plant("declarations", "whole-number inputs fail", requires=Requires(input_dtype="any"))
def gradients_declared_for_integers(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, axplain.describe("integrated_gradients"), **more)


@FAULTS.plant("declarations", "whole-number inputs get no attributions", requires=Requires(input_dtype="any"))
def zeros_for_integers(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    if x.is_floating_point():
        return axplain.explain(model, x, axplain.describe("integrated_gradients"), **more)
    return Answer(torch.zeros(x.shape))


@RIGHT.plant("tuple_equivalence", **DRAWN)
def orders_of_all_features(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return sampled()(model, x, spec, **more)


@RIGHT.plant("declarations", base="vargrad")
def a_variance_of_small_numbers(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, axplain.describe("vargrad"), **more)


@RIGHT.plant("cost", cost=CostFormula(Formula("2 * batch * n_steps"), Formula("batch * n_steps"), bound="upper"))
def fewer_rows_than_the_most(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@RIGHT.plant("dtype", base="saliency")
def signs(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    """Numbers of few digits are no sign of single precision."""
    return changed(axplain.explain(model, x, spec, **more, absolute=False), Tensor.sign)


#: a method that draws or compares, where that is what the contract is about
OURS = {
    "mirror": "integrated_gradients",
    "detached": "deeplift",
    "dtype": "integrated_gradients",
    "batch_consistency": "gradient_shap",
    "chunk_invariance": "gradient_shap",
    "tuple_equivalence": "gradient_shap",
    "target_forms": "saliency",
    "cost": "deeplift",
    "declarations": "vargrad",
}


def test_no_contract_is_without_a_faulty_and_a_right_method() -> None:
    from tests.conformance import test_planted_surroundings as surroundings

    specs = [spec for spec in catalog().specs.values() if spec.axiom is not None and spec.distribution == "axplain"]
    contracts = {spec.name for spec in specs if spec.axiom is not None and spec.axiom.universal}
    assert contracts == FAULTS.axioms | surroundings.FAULTS.axioms | {"randomisation_sanity"}
    assert contracts == OURS.keys() | surroundings.OURS.keys()
    assert len(contracts) == 15


@pytest.mark.parametrize("plant", FAULTS.plants, ids=str)
def test_a_planted_fault_is_found(plant: Planted) -> None:
    record = plant.record()
    assert record.outcome == "fail", record
    assert re.search(plant.says, record.reason), record.reason
    assert record.kind == "contract"


@pytest.mark.parametrize("plant", RIGHT.plants, ids=str)
def test_what_only_looks_like_a_fault_passes(plant: Planted) -> None:
    record = plant.record()
    assert record.outcome == "pass", record
    assert record.cases > 0


@pytest.mark.parametrize("contract", OURS)
def test_a_right_method_that_is_installed_passes(contract: str) -> None:
    subject = Subject.of(OURS[contract])
    [pair] = [pair for pair in pairs_of(subject.spec) if pair.axiom == contract]
    record = run(pair, Effort(contracts=4, seconds=30.0), subject)
    assert record.outcome == "pass", record
    assert record.cases > 0
