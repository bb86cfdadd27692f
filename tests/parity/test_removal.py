"""Removal methods against captum 0.9.0 and shap 0.51.0 as black boxes.

Where captum is right the two agree, to its single precision where it has no more. Where it is not, a test asserts the
fault as released, so that a release that mends it is noticed, and shows axplain's result right.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    FeatureAblation,
    FeaturePermutation,
    KernelShap,
    Lime,
    Occlusion,
    ShapleyValues,
    ShapleyValueSampling,
)
from tests.parity.networks import convolutional, quietly, seeded, smooth, two_inputs
from torch import Tensor, nn

import axplain
from axplain.groups import Groups
from axplain.model import Model
from axplain.problem import Arguments, Problem, References
from axplain.randomness import Key
from axplain.structure import Structure
from axplain.targets import OutputTarget

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    shap = pytest.importorskip("shap")

X, MODEL = seeded(5, 4), smooth()
SINGLE = 1e-6


def ours(model: Any, x: Any, method: str, **more: Any) -> Any:
    return axplain.explain(model, x, method, **more).attributions


def close(theirs: Any, mine: Any, bound: float = 1e-12) -> None:
    for left, right in zip(*(t if isinstance(t, tuple) else (t,) for t in (theirs, mine)), strict=True):
        torch.testing.assert_close(left.double(), right.double(), rtol=0.0, atol=bound)


def first(x: Tensor) -> Tensor:
    out: Tensor = MODEL(x)[:, 0]
    return out


# where captum is right


@pytest.mark.parametrize("baselines", [None, 0.3, seeded(1, 4, seed=1), seeded(5, 4, seed=2)])
@pytest.mark.parametrize("target", [0, [0, 2, 1, 1, 0]])
def test_feature_ablation(baselines: Any, target: Any) -> None:
    theirs = quietly(FeatureAblation(MODEL).attribute, X, baselines=baselines, target=target)
    close(theirs, ours(MODEL, X, "feature_ablation", baselines=baselines, target=target))


def test_feature_ablation_of_groups_across_inputs() -> None:
    x = (seeded(3, 4), seeded(3, 2, 3, seed=1))
    masks = (torch.tensor([[0, 1, 1, 2]]), torch.tensor([[[2, 3, 3], [0, 0, 4]]]))
    theirs = quietly(FeatureAblation(two_inputs()).attribute, x, feature_mask=masks, target=1)
    close(theirs, ours(two_inputs(), x, "feature_ablation", feature_mask=masks, target=1))


@pytest.mark.parametrize(
    ("window", "stride"),
    [((1, 2, 2), (1, 2, 2)), ((1, 3, 2), (1, 2, 1)), ((1, 3, 3), (1, 3, 3)), ((1, 8, 8), (1, 1, 1))],
)
def test_occlusion(window: tuple[int, ...], stride: tuple[int, ...]) -> None:
    """Captum's strides are of one input; windows that are cut at the edge are the same ones."""
    x = seeded(2, 1, 8, 8)
    theirs = quietly(Occlusion(convolutional()).attribute, x, window, strides=stride, target=1, baselines=0.1)
    close(theirs, ours(convolutional(), x, "occlusion", window=window, stride=stride, target=1, baselines=0.1), SINGLE)


@pytest.mark.parametrize("mask", [None, torch.tensor([[0, 1, 1, 2]])])
def test_shapley_values(mask: Tensor | None) -> None:
    theirs = quietly(ShapleyValues(MODEL).attribute, X, target=0, feature_mask=mask, baselines=0.2)
    close(theirs, ours(MODEL, X, "shapley_values", target=0, feature_mask=mask, baselines=0.2), SINGLE)


def test_shapley_value_sampling_in_the_mean() -> None:
    """Both are near the exact values after 400 orders, ours within its own standard errors."""
    torch.manual_seed(1)
    theirs = quietly(ShapleyValueSampling(MODEL).attribute, X, target=0, n_samples=400)
    exact = ours(MODEL, X, "shapley_values", target=0)
    found = axplain.explain(MODEL, X, "shapley_value_sampling", target=0, n_samples=400)
    close(theirs, exact, 0.1 * float(exact.abs().max()))
    assert bool(((found.attributions - exact).abs() <= 4.5 * found.standard_errors + 1e-12).all())
    close(theirs.sum(1), found.attributions.sum(1), 1e-5)


def test_kernel_shap_where_it_has_seen_all_coalitions() -> None:
    torch.manual_seed(0)
    theirs = quietly(KernelShap(MODEL).attribute, X[:1], target=0, n_samples=4000)
    exact = ours(MODEL, X[:1], "kernel_shap", target=0)
    close(theirs, exact, 0.05 * float(exact.abs().max()))


def test_feature_permutation_in_the_mean() -> None:
    x = seeded(40, 4)
    torch.manual_seed(0)
    rounds = [quietly(FeaturePermutation(MODEL).attribute, x, target=0).mean(0) for _ in range(60)]
    theirs, mine = torch.stack(rounds), ours(MODEL, x, "feature_permutation", target=0, n_samples=60).mean(0)
    assert bool(((theirs.mean(0) - mine).abs() <= 6 * theirs.std(0) / 60**0.5).all())


# where it is not


@pytest.mark.parametrize(
    ("name", "method", "theirs"),
    [
        ("occlusion", Occlusion, {"sliding_window_shapes": (1,)}),
        ("shapley_value_sampling", ShapleyValueSampling, {"n_samples": 2}),
        ("shapley_values", ShapleyValues, {}),
        ("kernel_shap", KernelShap, {"n_samples": 50}),
        ("lime", Lime, {"n_samples": 50}),
    ],
)
def test_v5_removal_keeps_double_precision(name: str, method: Any, theirs: dict[str, Any]) -> None:
    assert quietly(method(MODEL).attribute, X[:2], target=0, **theirs).dtype == torch.float32
    assert ours(MODEL, X[:2], name, target=0).dtype == torch.float64


def test_v5_shapley_values_add_up_in_double_precision() -> None:
    difference = (first(X) - first(torch.zeros_like(X))).detach()
    theirs = quietly(ShapleyValues(MODEL).attribute, X, target=0).double()
    assert 1e-9 < float((theirs.sum(1) - difference).abs().max()) < 1e-5
    mine = ours(MODEL, X, "shapley_values", target=0)
    assert float((mine.sum(1) - difference).abs().max()) < 1e-14


def test_v11_a_group_across_tensors_is_permuted_in_one_piece() -> None:
    """F = |a - b| is 0 in every example, and stays 0 where a and b move together."""
    a, one = seeded(8, 1), torch.tensor([[0]])

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs()[:, 0]

    theirs = quietly(FeaturePermutation(distance).attribute, (a, a.clone()), feature_mask=(one, one))
    assert float(theirs[0].abs().max()) > 0.1
    mine = ours(distance, (a, a.clone()), "feature_permutation", feature_mask=(one, one))
    assert all(float(tensor.abs().max()) == 0 for tensor in mine)


def test_v12_a_batch_of_one_is_refused() -> None:
    """Captum logs a line and returns zeros: the feature that decides everything is said not to matter."""
    assert bool((quietly(FeaturePermutation(MODEL).attribute, X[:1], target=0) == 0).all())
    with pytest.raises(axplain.ArgumentError, match="at least 2 examples: feature_permutation compares them"):
        ours(MODEL, X[:1], "feature_permutation", target=0)


def test_v13_kernel_shap_of_a_single_feature() -> None:
    model, x = nn.Linear(1, 1).double(), seeded(2, 1)
    with pytest.raises((ValueError, RuntimeError), match="nan"):  # by whether distributions check their arguments
        quietly(KernelShap(model).attribute, x[:1], target=0)
    close(ours(model, x, "kernel_shap"), model.weight.detach() * x)


@pytest.mark.parametrize(("name", "method"), [("kernel_shap", KernelShap), ("lime", Lime)])
def test_v13_a_target_without_dimensions_holds_for_a_batch(name: str, method: Any) -> None:
    with pytest.raises(TypeError, match="0-d tensor"):
        quietly(method(MODEL).attribute, X, target=torch.tensor(0), n_samples=20)
    close(ours(MODEL, X, name, target=torch.tensor(0)), ours(MODEL, X, name, target=0))


def test_v13_two_sparse_groups_are_two_features() -> None:
    """Captum fits 8 coefficients for the ids 0 and 7; two players have a closed form."""
    mask = torch.tensor([[0, 7, 7, 0]])
    theirs = quietly(KernelShap(first).attribute, X[:1], feature_mask=mask, n_samples=50, return_input_shape=False)
    assert theirs.shape == (1, 8)
    players = (mask == 0).double()
    alone = [first(X * players), first(X * (1 - players))]
    whole, nothing = first(X), first(torch.zeros_like(X))
    exact = [(alone[0] - nothing + whole - alone[1]) / 2, (alone[1] - nothing + whole - alone[0]) / 2]
    found = axplain.explain(first, X, "kernel_shap", feature_mask=mask)
    close(found.attributions[:, :2], torch.stack(exact, 1).detach())
    assert found.cost.forward_rows <= 4 * len(X)


def test_v13_too_few_coalitions_are_refused() -> None:
    """Captum's default is 25 for any number of features: off by 92 % on a linear model of 200, without a word."""
    model, x = nn.Linear(200, 1, bias=False).double(), seeded(1, 200)
    exact = model.weight.detach() * x
    torch.manual_seed(0)
    theirs = quietly(KernelShap(model).attribute, x, target=0)
    assert float((theirs - exact).norm() / exact.norm()) > 0.5
    with pytest.raises(axplain.ArgumentError, match="n_samples: 25 came; expected a whole number of at least"):
        ours(model, x, "kernel_shap", n_samples=25)
    close(ours(model, x, "kernel_shap"), exact, 1e-10)


def test_v15_an_absent_element_is_replaced_and_not_multiplied() -> None:
    """Captum asks at x (1 - m) + b m: an infinite element becomes NaN exactly where it is taken away.

    Ours refuses an infinite x by name, and its coalitions choose between x and the baseline bit for bit.
    """
    asked: list[Tensor] = []
    x = torch.tensor([[1.0, float("inf"), 2.0]])

    def total(rows: Tensor) -> Tensor:
        asked.append(rows.clone())
        return rows.sum(1)

    theirs = quietly(FeatureAblation(total).attribute, x)
    assert bool(theirs.isnan().all()) and bool(asked[2].isnan().any())
    with pytest.raises(axplain.ArgumentError, match="x: 1 NaN or inf came"):
        ours(total, x, "feature_ablation")
    references = References((torch.zeros(1, 3),), torch.zeros(1, 1, dtype=torch.long))
    model = Model(total, Structure("tensor", ("x",)))
    groups = Groups(3, (x.shape[1:],))
    problem = Problem(model, (x,), OutputTarget(), references, Arguments(), Key(0), groups=groups)
    [rows] = problem.masked(torch.tensor([[True, False, True], [False, True, True]]))
    assert torch.equal(rows, torch.tensor([[1.0, 0.0, 2.0], [0.0, float("inf"), 2.0]]))


def test_s10_sparse_ids_cost_no_passes() -> None:
    """Captum walks over every id from 0 to the largest one."""
    rows: list[int] = []

    def counted(x: Tensor) -> Tensor:
        rows.append(len(x))
        return first(x)

    sparse, dense = torch.tensor([[0, 7, 7, 3]]), torch.tensor([[0, 2, 2, 1]])
    quietly(ShapleyValueSampling(counted).attribute, X[:1], feature_mask=sparse, n_samples=10)
    assert sum(rows) == 10 * 8 + 1
    rows.clear()
    quietly(ShapleyValueSampling(counted).attribute, X[:1], feature_mask=dense, n_samples=10)
    assert sum(rows) == 10 * 3 + 1
    found = [
        axplain.explain(first, X[:1], "shapley_value_sampling", feature_mask=mask, n_samples=10)
        for mask in (sparse, dense)
    ]
    assert found[0].cost == found[1].cost and found[0].cost.forward_rows <= 2**3
    close(found[0].attributions, found[1].attributions)


# shap


def game(x: Any) -> Any:
    with torch.no_grad():
        return first(torch.as_tensor(x, dtype=torch.float64)).numpy()


@pytest.mark.parametrize("method", ["shapley_values", "kernel_shap", "leverage_shap"])
def test_marginal_shapley_values_against_shap_exact(method: str) -> None:
    background = seeded(6, 4, seed=3)
    masker = shap.maskers.Independent(background.numpy(), max_samples=6)
    theirs = quietly(shap.explainers.Exact(game, masker), X.numpy()).values
    close(torch.from_numpy(theirs), ours(first, X, method, baselines=axplain.distribution(background)))


def test_shapley_values_against_shap_permutation() -> None:
    """Its walks go forward and back too, so 4 features need few of them."""
    masker = shap.maskers.Independent(np.zeros((1, 4)))
    explainer = shap.explainers.Permutation(game, masker, seed=0)
    theirs = quietly(explainer, X.numpy(), max_evals=9 * 200, silent=True).values
    exact = ours(first, X, "shapley_values")
    close(torch.from_numpy(theirs), exact, 0.05 * float(exact.abs().max()))


@pytest.mark.parametrize("rows", [1, 5])
def test_kernel_shap_against_shap_kernel_explainer(rows: int) -> None:
    background = seeded(rows, 4, seed=3)
    explainer = quietly(shap.KernelExplainer, game, background.numpy())
    theirs = quietly(explainer.shap_values, X.numpy(), silent=True, l1_reg=0)
    found = ours(first, X, "kernel_shap", baselines=axplain.distribution(background))
    close(torch.from_numpy(theirs), found, 1e-9)
