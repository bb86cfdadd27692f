"""Every axiom finds the faulty methods that are planted for it, and lets right ones pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from tests.conformance.plain import Answer, asked, banzhaf, bias_absorbing, coalitions, of_layers, sampled
from tests.conformance.planting import Garden, Planted, changed, each
from torch import Tensor, nn

import axplain
from axplain.conformance import Effort, Subject
from axplain.conformance.claims import pairs_of
from axplain.conformance.runner import run
from axplain.discovery import catalog
from axplain.formula import Formula
from axplain.specs import Rate

FAULTS, RIGHT = Garden(), Garden()
TIGHT = Formula("100 * eps * (1 + abs_out)")


@FAULTS.plant("completeness", r"sum .* off by", kind="approximate", tolerance=TIGHT, when="smooth")
def weights_that_sum_to_less(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi * (50 - 1) / 50)


@FAULTS.plant("completeness", r"sum .* off by", base="input_x_gradient", kind="exact")
def gradient_times_input(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("completeness", r"sum .* off by", base="deeplift", kind="exact")
def zeros_whatever_the_baseline(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **{**more, "baselines": 0.0})


@FAULTS.plant("completeness", r"sum .* off by", base="deeplift", kind="exact")
def only_the_first_input(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    phi = answer.attributions
    return answer if not isinstance(phi, tuple) else attrs.evolve(answer, attributions=(phi[0], 0 * phi[1]))


@FAULTS.plant("completeness", r"times as much of n_steps leaves", kind="converges", rate=Rate("n_steps", 1.0))
def never_more_than_eight_nodes(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **{**more, "n_steps": min(more.get("n_steps", 8), 8), "quadrature": "left"})


@FAULTS.plant("linear_exactness", r"against w \(x - x'\): off by", base="saliency", kind="exact")
def gradient_without_displacement(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more, absolute=False)


@FAULTS.plant("linear_exactness", r"against w \(x - x'\): off by", kind="exact")
def magnitudes_of_parts(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), Tensor.abs)


@FAULTS.plant("null_at_baseline", r"own baseline: off by", base="input_x_gradient", kind="exact")
def times_the_input_itself(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("quadrature", r"polynomial of degree 6, 3 nodes: off by", kind="exact", rate=Rate("n_steps", 2.0))
def left_ends_for_gauss(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more, quadrature="left")


@FAULTS.plant("quadrature", r"polynomial of degree 6, 3 nodes: off by", kind="exact", rate=Rate("n_steps", 2.0))
def trapezoids_for_gauss(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more, quadrature="trapezoid")


@FAULTS.plant("quadrature", r"polynomial of degree 2, 3 nodes: off by", kind="exact", rate=Rate("n_steps", 2 / 3))
def the_last_weight_missing(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    count = more["n_steps"]
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi * (count - 1) / count)


@FAULTS.plant("layer_conservation", r"sum over each of the layers 0, 1, 2, 3: off by", base="deeplift", kind="exact")
def gradient_at_the_layer(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = of_layers()(model, x, spec, **more)
    if more.get("layer") is None:
        return answer
    head, tail = model[: int(more["layer"]) + 1], model[int(more["layer"]) + 1 :]
    return axplain.explain(tail, head(x).detach(), "input_x_gradient", target=more["target"])


@FAULTS.plant("layer_conservation", r"sum over each of the layers 0, 1, 2, 3: off by", base="deeplift", kind="exact")
def one_layer_at_half(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = of_layers()(model, x, spec, **more)
    return changed(answer, lambda phi: phi / 2) if more.get("layer") == "3" else answer


BIASES = bias_absorbing("bias", "running_mean")
KINKED: dict[str, Any] = {"kind": "exact", "when": "piecewise_linear", "base": "input_x_gradient"}


@FAULTS.plant("lrp_conservation", r"against F\(x\): off by", **KINKED)
def biases_forgotten(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return attrs.evolve(BIASES(model, x, spec, **more), notes={"absorbed": 0.0})


@FAULTS.plant("lrp_conservation", r"against F\(x\): off by", **KINKED)
def absorbed_told_without_the_means(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return bias_absorbing("bias")(model, x, spec, **more)


@FAULTS.plant("linearity", r"against a phi\(F\) \+ b phi\(G\): off by", base="saliency", kind="exact")
def absolute_values(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("linearity", r"against a phi\(F\) \+ b phi\(G\): off by", kind="exact")
def shares_of_one(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi / phi.abs().sum())


@FAULTS.plant("linearity", r"against a phi\(F\) \+ b phi\(G\): off by", base="gradient_shap", kind="exact")
def other_draws_for_every_function(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **{**more, "seed": id(model) % 10_007})


def _only_upwards(module: nn.Module, into: Any, out: Any) -> tuple[Tensor]:
    return (into[0].clamp(min=0),)


@FAULTS.plant(
    "implementation_invariance", r"spelled with other operators: off by", base="saliency", kind="for_class",
    model_class="respelled",
)  # fmt: skip
def only_where_a_hook_sees_a_module(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    """Guided backpropagation: a rule that is tied to the modules ReLU and Tanh."""
    seen = [module for module in model.modules() if isinstance(module, nn.ReLU | nn.Tanh)]
    hooks = [m.register_full_backward_hook(_only_upwards) for m in seen]
    try:
        leaf = x.detach().clone().requires_grad_()
        [slope] = torch.autograd.grad(asked(model, leaf, more).value((leaf,)).sum(), leaf)
    finally:
        for hook in hooks:
            hook.remove()
    return Answer(slope)


@FAULTS.plant("implementation_invariance", r"an equal function, .*: off by", base="saliency", kind="exact")
def weights_of_the_first_layer(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    return changed(answer, lambda phi: phi * next(model.parameters()).detach().abs().sum())


@FAULTS.plant("implementation_invariance", r"made of other layers: off by", base="deeplift", kind="exact")
def rescale_claimed_for_all_structures(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("affine_scale", r"in other units of the input: off by", base="saliency", kind="exact")
def slopes_per_unit(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("shift", r"after a shift of the input: off by", base="input_x_gradient", kind="exact")
def the_input_itself(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("sensitivity", r"only feature that differs, number \d+: off by", kind="exact")
def the_slope_at_the_far_end(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    question = asked(model, x, more)
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in question.inputs)
    slopes = torch.autograd.grad(question.value(leaves).sum(), leaves)
    [absent] = question.references()
    return Answer(question.pack(s * (t - r) for s, t, r in zip(slopes, question.inputs, absent, strict=True)))


def _turned(phi: Tensor) -> Tensor:
    return phi.flatten(1).roll(1, 1).view_as(phi)


@FAULTS.plant("sensitivity", r"only feature that differs, number \d+: off by", base="deeplift", kind="exact")
def the_neighbours_attribution(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), _turned)


@FAULTS.plant("dummy", r"weight of zero|multiplied by zero: off by", base="deeplift", kind="exact")
def one_feature_swapped(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), _turned)


@FAULTS.plant("dummy", r"weight of zero|multiplied by zero: off by", kind="exact")
def what_is_missing_spread_over_all(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi + 1e-3 * phi.abs().sum())


@FAULTS.plant("symmetry", r"nothing tells apart: off by", kind="exact")
def weights_by_place(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(
        axplain.explain(model, x, spec, **more),
        lambda phi: phi * (1 + 0.01 * torch.arange(phi[0].numel()).view(phi[:1].shape)),
    )


@FAULTS.plant("symmetry", r"nothing tells apart: off by", base="deeplift", kind="exact")
def everything_to_the_first_that_joins(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    """One order of joining instead of all: contributions of a fixed permutation."""
    return sampled(lambda question, runs, _: iter([torch.arange(sum(question.widths))]))(model, x, spec, **more)


@FAULTS.plant("positivity", r"negative attributions on a monotone model: off by", kind="exact")
def centred(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi - phi.mean())


@FAULTS.plant("strong_monotonicity", r"lost though the feature adds more: off by", kind="exact")
def ups_and_downs_of_the_amount(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), torch.sin)


@FAULTS.plant("strong_monotonicity", r"lost though the feature adds more: off by", kind="exact")
def the_wrong_sign(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return changed(axplain.explain(model, x, spec, **more), Tensor.neg)


@FAULTS.plant("shapley", r"brute force: off by", kind="exact")
def the_same_weight_for_every_coalition(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return coalitions(banzhaf)(model, x, spec, **more)


@FAULTS.plant("shapley", r"brute force: off by", kind="exact")
def a_path_on_models_of_every_class(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("shapley", r"brute force: off by", kind="for_class", model_class="multilinear")
def one_node_of_a_path(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **{**more, "n_steps": 1, "quadrature": "left"})


STATISTICAL: dict[str, Any] = {
    "base": "gradient_shap",
    "composition": None,
    "references": "reference",
    "parameters": {"n_samples": axplain.describe("gradient_shap").parameters["n_samples"]},
    "kind": "statistical",
    "given": {"n_samples": 64},
}


@FAULTS.plant("shapley", r"brute force: off by", **STATISTICAL)
def orders_that_start_early(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    """A sampler whose first feature is always the first: contributions to large coalitions get too little weight."""

    def orders(question: Any, runs: int, generator: torch.Generator) -> Any:
        for _ in range(runs):
            yield torch.cat([torch.zeros(1).long(), 1 + torch.randperm(sum(question.widths) - 1, generator=generator)])

    return sampled(orders)(model, x, spec, **more)


@FAULTS.plant("shapley", r"brute force: off by", **STATISTICAL)
def standard_errors_much_too_small(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = sampled()(model, x, spec, **more)
    return attrs.evolve(answer, standard_errors=each(lambda error: error / 50, answer.standard_errors))


@FAULTS.plant("homogeneity", r"against input times gradient: off by", kind="exact")
def half_of_it_at_zero(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more, quadrature="left")


@FAULTS.plant(
    "smoothing_limit", "without noise against square: off by", base="smoothgrad", kind="exact", when="stdev_zero",
    limit="square",
)  # fmt: skip
def a_mean_for_a_mean_of_squares(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant(
    "smoothing_limit", "without noise against inner: off by", base="smoothgrad", kind="exact", when="stdev_zero",
    limit="inner",
)  # fmt: skip
def noise_that_never_ends(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    if spec.name == "noise_that_never_ends":
        more["stdev"] = 1e-3
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("monte_carlo_rate", "16 times as many samples spread", base="gradient_shap", kind="statistical")
def never_more_than_four_samples(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **{**more, "n_samples": min(more["n_samples"], 4)})


@FAULTS.plant("monte_carlo_rate", "mean of few samples against mean of many", base="gradient_shap", kind="statistical")
def divided_by_one_sample_less(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    count = more["n_samples"]
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi * count / (count - 8))


def _masked(blend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Answer]:
    """Return a method that asks the model about the input with its first element absent, by some arithmetic."""

    def explain(model: Any, x: Any, spec: Any, **more: Any) -> Answer:
        question = asked(model, x, more)
        keep = [torch.ones_like(tensor) for tensor in question.inputs]
        keep[0].flatten(1)[:, 0] = 0.0
        for absent in question.references():
            question.value(tuple(blend(x, b, m) for x, b, m in zip(question.inputs, absent, keep, strict=True)))
        return Answer(x)

    return explain


@FAULTS.plant("conservative_masks", "in neither x nor x'", kind="exact")
def masks_by_products(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return _masked(lambda x, absent, m: x * m + absent * (1 - m))(model, x, spec, **more)


@FAULTS.plant("conservative_masks", "in neither x nor x'", kind="exact")
def masks_by_differences(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return _masked(lambda x, absent, m: absent + m * (x - absent))(model, x, spec, **more)


@FAULTS.plant("conservative_masks", "in neither x nor x'", kind="exact")
def half_way_between_the_two(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    question = asked(model, x, more)
    question.value(tuple(x / 2 + b / 2 for x, b in zip(question.inputs, question.references()[0], strict=True)))
    return Answer(x)


@FAULTS.plant("feature_masks", "one group have different attributions", base="feature_ablation", kind="exact")
def ids_of_each_input_apart(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    mask = more.get("feature_mask")
    if isinstance(mask, tuple):
        more["feature_mask"] = (mask[0], mask[1] + 1000)
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("feature_masks", "sparse and negative numbers: off by", base="shapley_values", kind="exact")
def negative_ids_are_one_group(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    mask = more.get("feature_mask")
    if isinstance(mask, Tensor):
        more["feature_mask"] = mask.clamp(min=0)
    return axplain.explain(model, x, spec, **more)


@RIGHT.plant("layer_conservation", base="deeplift", kind="exact", tolerance=Formula("1e3 * eps * (1 + abs_out)"))
def rescale_after_the_layer(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return of_layers()(model, x, spec, **more)


@RIGHT.plant("lrp_conservation", **KINKED)
def input_times_gradient_and_biases(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return BIASES(model, x, spec, **more)


for _axiom in ("shapley", "strong_monotonicity", "conservative_masks", "positivity", "linear_exactness"):
    RIGHT.plant(_axiom, kind="exact")(coalitions())
RIGHT.plant("shapley", **STATISTICAL)(sampled())

#: an installed method that claims the axiom, where there is one
OURS = {
    "feature_masks": "kernel_shap",
    "completeness": "integrated_gradients",
    "linear_exactness": "deeplift",
    "null_at_baseline": "gradient_shap",
    "quadrature": "integrated_gradients",
    "linearity": "gradient_shap",
    "implementation_invariance": "deeplift",
    "affine_scale": "input_x_gradient",
    "shift": "saliency",
    "sensitivity": "deeplift",
    "dummy": "integrated_gradients",
    "symmetry": "deeplift",
    "positivity": "gradient_shap",
    "shapley": "integrated_gradients",
    "homogeneity": "deeplift",
    "smoothing_limit": "vargrad",
    "monte_carlo_rate": "smoothgrad",
}


def _axioms() -> set[str]:
    specs = [spec for spec in catalog().specs.values() if spec.axiom is not None and spec.distribution == "axplain"]
    return {spec.name for spec in specs if spec.axiom is not None and not spec.axiom.universal}


def test_no_axiom_is_without_a_faulty_and_a_right_method() -> None:
    assert _axioms() == FAULTS.axioms
    assert _axioms() == RIGHT.axioms | OURS.keys()
    assert len(_axioms()) >= 21


@pytest.mark.parametrize("plant", FAULTS.plants, ids=str)
def test_a_planted_fault_is_found(plant: Planted) -> None:
    record = plant.record()
    assert record.outcome == "fail", record
    assert re.search(plant.says, record.reason), record.reason
    assert record.method == plant.name and record.axiom == plant.axiom


@pytest.mark.parametrize("plant", RIGHT.plants, ids=str)
def test_a_right_method_in_plain_code_passes(plant: Planted) -> None:
    record = plant.record()
    assert record.outcome == "pass", record
    assert record.cases > 0


@pytest.mark.parametrize("axiom", OURS)
def test_a_right_method_that_is_installed_passes(axiom: str) -> None:
    subject = Subject.of(OURS[axiom])
    pairs = [pair for pair in pairs_of(subject.spec) if pair.axiom == axiom]
    assert pairs
    for pair in pairs:
        record = run(pair, Effort(examples=6, seconds=30.0), subject)
        assert record.outcome == "pass", record
        assert record.cases > 0
