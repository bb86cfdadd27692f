"""Removal methods against brute force in float64: loops over windows, subsets, orders and drawn masks."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.unit.games import Function, attributions, banzhaf, by_subsets, close, network, normal, shapley, value_of
from torch import Tensor

import axplain
from axplain.groups import Groups
from axplain.model import Model
from axplain.problem import Arguments, Problem, References
from axplain.randomness import Key
from axplain.structure import Structure
from axplain.targets import OutputTarget
from axplain_plugins.removal.bernoulli_coalitions import BernoulliCoalitions
from axplain_plugins.removal.kernel_coalitions import KernelCoalitions
from axplain_plugins.removal.memory import _kept
from axplain_plugins.removal.permutation_walks import PermutationWalks, WalkPlan
from axplain_plugins.removal.permuted_rows import PermutedRows
from axplain_plugins.removal.smooth_masks import SmoothMasks

SHAPLEY = ("shapley_values", "kernel_shap", "leverage_shap")


def question(x: Tensor, method: str, absent: Tensor | None = None, seed: int = 0) -> Problem:
    """Return what a plan of that method is made from, each element a feature."""
    rows = torch.zeros_like(x[:1]) if absent is None else absent
    references = References((rows,), torch.zeros(len(x), 1, dtype=torch.long))
    groups = Groups(x[0].numel(), (x.shape[1:],))
    model = Model(lambda rows: rows, Structure("tensor", ("x",)))
    return Problem(model, (x,), OutputTarget(), references, Arguments(), Key(seed).at(method), groups=groups)


# feature ablation and occlusion


@pytest.mark.parametrize("shape", [(1,), (6,), (2, 3), (2, 2, 2)])
def test_feature_ablation_is_the_drop_without_the_feature(shape: tuple[int, ...]) -> None:
    x, absent = normal(3, *shape), normal(1, *shape, seed=1)
    model, count = network(math.prod(shape)), math.prod(shape)
    everyone = tuple(range(count))
    drops = [
        value_of(model, x, absent, everyone) - value_of(model, x, absent, tuple(j for j in everyone if j != i))
        for i in everyone
    ]
    close(attributions(model, x, "feature_ablation", baselines=absent), torch.stack(drops, 1).view_as(x))


def starts(size: int, window: int, stride: int) -> Iterator[int]:
    """Yield 0, stride, ...: up to the first window that reaches the end."""
    start = 0
    while start + window < size:
        yield start
        start += stride
    yield start


def occluded(function: Function, x: Tensor, absent: Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    total, times = torch.zeros_like(x), torch.zeros_like(x)
    corners = itertools.product(*(starts(*sizes) for sizes in zip(x.shape[1:], window, stride, strict=True)))
    for corner in corners:
        place = (slice(None), *(slice(a, a + size) for a, size in zip(corner, window, strict=True)))
        rows = x.clone()
        rows[place] = absent.expand_as(x)[place]
        with torch.no_grad():
            drop = function(x) - function(rows)
        total[place] += drop.view(-1, *[1] * (x.ndim - 1))
        times[place] += 1
    return total / times


# shape of an example, window as given, stride as given, full window, full stride
WINDOWS: dict[str, tuple[tuple[int, ...], Any, Any, tuple[int, ...], tuple[int, ...]]] = {
    "1-d, one element": ((6,), 1, None, (1,), (1,)),
    "1-d, cut at the edge": ((7,), 3, None, (3,), (3,)),
    "1-d, overlapping": ((7,), 3, 2, (3,), (2,)),
    "1-d, overlapping and cut": ((8,), 3, 2, (3,), (2,)),
    "1-d, the whole input": ((5,), 5, 1, (5,), (1,)),
    "2-d, a number": ((4, 5), 2, None, (2, 2), (2, 2)),
    "2-d, a tuple": ((4, 5), (3, 2), (2, 1), (3, 2), (2, 1)),
    "2-d, the last dimension only": ((2, 5), (2,), (2,), (2, 2), (2, 2)),
    "3-d, a number leaves channels whole": ((2, 4, 5), 3, 2, (2, 3, 3), (2, 2, 2)),
    "3-d, a pair leaves channels whole": ((2, 4, 5), (3, 2), (1, 2), (2, 3, 2), (2, 1, 2)),
    "3-d, channel by channel": ((2, 4, 3), (1, 2, 2), (1, 2, 1), (1, 2, 2), (1, 2, 1)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_occlusion_is_the_mean_drop_over_the_windows_on_an_element(name: str) -> None:
    shape, window, stride, full_window, full_stride = WINDOWS[name]
    x, absent = normal(2, *shape), normal(1, *shape, seed=1)
    model = network(math.prod(shape))
    found = attributions(model, x, "occlusion", window=window, stride=stride, baselines=absent)
    close(found, occluded(model, x, absent, full_window, full_stride))


def test_occlusion_takes_a_window_for_each_input() -> None:
    a, b = normal(2, 5), normal(2, 2, 4, seed=1)
    model = network(13)

    def both(first: Tensor, second: Tensor) -> Tensor:
        out: Tensor = model(torch.cat([first, second.flatten(1)], 1))
        return out

    found = attributions(both, (a, b), "occlusion", window=((2,), (1, 3)), stride=((1,), (1, 2)))
    close(found[0], occluded(lambda rows: both(rows, b), a, torch.zeros(1, 5).double(), (2,), (1,)))
    close(found[1], occluded(lambda rows: both(a, rows), b, torch.zeros(1, 2, 4).double(), (1, 3), (1, 2)))


# exact values


@pytest.mark.parametrize("count", [1, 2, 5, 10])
@pytest.mark.parametrize("method", SHAPLEY)
def test_exact_methods_are_the_subset_formula(method: str, count: int) -> None:
    model, x, absent = network(count), normal(2, count), normal(1, count, seed=1)
    more = {} if method == "shapley_values" else {"n_samples": max(2**count - 2, count + 1)}
    found = axplain.explain(model, x, method, baselines=absent, **more)
    close(found.attributions, by_subsets(model, x, absent, shapley))
    assert found.standard_errors is None, "nothing was drawn"
    assert found.delta is not None and float(found.delta.abs().max()) < 1e-13


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("count", [4, 5])
def test_kernel_shap_is_exact_paired_or_not_where_all_coalitions_fit(count: int, paired: bool) -> None:
    model, x = network(count), normal(2, count)
    found = attributions(model, x, "kernel_shap", paired=paired, n_samples=2**count - 2)
    close(found, by_subsets(model, x, torch.zeros_like(x), shapley))


@pytest.mark.parametrize("count", [1, 3, 9])
def test_banzhaf_values_are_the_subset_formula(count: int) -> None:
    model, x, absent = network(count), normal(2, count), normal(1, count, seed=1)
    close(attributions(model, x, "banzhaf_values", baselines=absent), by_subsets(model, x, absent, banzhaf))


def test_shapley_values_are_the_mean_over_all_orders() -> None:
    model, x = network(4), normal(2, 4)
    orders = list(itertools.permutations(range(4)))
    total = sum(walk(model, x, torch.zeros_like(x), order) for order in orders)
    assert isinstance(total, Tensor)
    close(attributions(model, x, "shapley_values"), total / len(orders))


def walk(function: Function, x: Tensor, absent: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return what F rises by as features join in one order."""
    gains = torch.zeros_like(x)
    for place, feature in enumerate(order):
        after = value_of(function, x, absent, order[: place + 1])
        gains[:, feature] = after - value_of(function, x, absent, order[:place])
    return gains


# sampled values


@pytest.mark.parametrize(("n", "antithetic"), [(1, True), (2, True), (8, True), (20, True), (1, False), (9, False)])
def test_shapley_value_sampling_is_the_mean_over_its_orders(n: int, antithetic: bool) -> None:
    """With antithetic walks a pair is one estimate, and the errors are those of the mean of pairs."""
    model, x = network(4), normal(2, 4)
    plan = PermutationWalks(n, antithetic).plan(question(x, "shapley_value_sampling"))
    orders = [tuple(order) for order in plan.orders.tolist()]
    assert len(orders) == n and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    if antithetic:
        assert all(b == a[::-1] for a, b in zip(orders[::2], orders[1::2], strict=False))
    each = [walk(model, x, torch.zeros_like(x), order) for order in orders]
    units = [torch.stack(each[i : i + 2]).mean(0) for i in range(0, n, 2)] if antithetic else each
    found = axplain.explain(model, x, "shapley_value_sampling", n_samples=n, antithetic=antithetic)
    close(found.attributions, torch.stack(units).mean(0))
    assert found.delta is not None and float(found.delta.abs().max()) < 1e-13, "a walk is complete, however few"
    if len(units) >= 8:
        spread = torch.stack(units).std(0) / math.sqrt(len(units))
        close(found.standard_errors, spread)


def test_shapley_value_sampling_over_all_orders_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    every = torch.tensor(list(itertools.permutations(range(4))))
    plan_of = WalkPlan.of
    monkeypatch.setattr(WalkPlan, "of", lambda orders, each: plan_of(every, 1))
    model, x = network(4), normal(2, 4)
    _kept.cache_clear()
    found = axplain.explain(model, x, "shapley_value_sampling", n_samples=24, antithetic=False)
    _kept.cache_clear()
    close(found.attributions, by_subsets(model, x, torch.zeros_like(x), shapley))
    walks = torch.stack([walk(model, x, torch.zeros_like(x), tuple(order)) for order in every.tolist()])
    close(found.standard_errors, walks.std(0) / math.sqrt(24))


@pytest.mark.parametrize("method", ["shapley_value_sampling", "kernel_shap", "leverage_shap"])
def test_sampled_shapley_values_converge_and_are_always_complete(method: str) -> None:
    """With many more samples the error over 12 seeds falls to less than half; a bias would stay."""
    model, x = network(9), normal(1, 9)
    exact = by_subsets(model, x, torch.zeros_like(x), shapley)
    errors = []
    for n in (4, 64) if method == "shapley_value_sampling" else (40, 320):
        squares = []
        for seed in range(12):
            found = axplain.explain(model, x, method, n_samples=n, seed=seed)
            assert found.delta is not None and float(found.delta.abs().max()) < 1e-12
            squares.append(float((found.attributions - exact).square().mean()))
        errors.append(math.sqrt(sum(squares) / len(squares)))
    assert errors[1] < errors[0] / 2, errors


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("method", "law"), [("kernel_shap", "kernel"), ("leverage_shap", "leverage")])
def test_drawn_coalitions_are_fitted_by_constrained_least_squares(method: str, law: Any, paired: bool) -> None:
    """The last coefficient is eliminated by the constraint; the rest is ordinary least squares on scaled rows."""
    model, x = network(8), normal(3, 8)
    plan = KernelCoalitions(60, law, paired).plan(question(x, method))
    masks, scale = plan.masks[2:], plan.weights[2:].sqrt()[:, None]
    assert len(torch.unique(masks, dim=0)) == len(masks) <= 60 and plan.drawn is not None and bool(plan.drawn.any())
    z = masks.double()
    values = torch.stack(
        [value_of(model, x, torch.zeros_like(x), tuple(m.nonzero().flatten().tolist())) for m in masks]
    )
    empty = value_of(model, x, torch.zeros_like(x), ())
    total = value_of(model, x, torch.zeros_like(x), tuple(range(8))) - empty
    y = values - empty - z[:, -1:] * total
    free = torch.linalg.lstsq(scale * (z[:, :-1] - z[:, -1:]), scale * y).solution
    expected = torch.cat([free, total[None] - free.sum(0)[None]]).T
    found = axplain.explain(model, x, method, n_samples=60, paired=paired)
    torch.testing.assert_close(found.attributions, expected, rtol=0, atol=1e-11)
    assert found.standard_errors is not None


@pytest.mark.parametrize("law", ["kernel", "leverage"])
@pytest.mark.parametrize("paired", [True, False])
def test_every_size_weighs_what_the_kernel_says_in_the_mean(law: Any, paired: bool) -> None:
    """The kernel of size s is (d - 1) / (s (d - s)), over all its coalitions together."""
    x, sizes = normal(1, 7), torch.arange(1, 7)
    total = torch.zeros(6, dtype=torch.float64)
    for seed in range(300):
        plan = KernelCoalitions(60, law, paired).plan(question(x, "kernel_shap", seed=seed))
        total += torch.stack([plan.weights[2:][plan.masks[2:].sum(1) == size].sum() for size in sizes]) / 300
    torch.testing.assert_close(total, 6 / (sizes * (7 - sizes)).double(), rtol=0.06, atol=0)


# LIME


def similarity(masks: Tensor, kernel: str, width: float | None) -> Tensor:
    present, count = masks.double().sum(1), masks.shape[1]
    if kernel == "cosine":
        distance = 1 - torch.cosine_similarity(masks.double(), torch.ones(1, count).double()).nan_to_num(0)
        return torch.exp(-(distance**2) / (width or 0.25) ** 2)
    return torch.exp(-(count - present) / (width or 0.75 * math.sqrt(count)) ** 2)


def lime_table(x: Tensor, model: Function, kernel: Any, width: float | None, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the plan's coalitions as numbers, our own weights, and values asked one coalition at a time."""
    masks = BernoulliCoalitions(n, kernel, width).plan(question(x, "lime")).masks
    zeros = torch.zeros_like(x)
    values = [value_of(model, x, zeros, tuple(mask.nonzero().flatten().tolist())) for mask in masks]
    return masks.double(), similarity(masks, kernel, width), torch.stack(values)


@pytest.mark.parametrize(
    ("kernel", "width"), [("cosine", None), ("cosine", 0.6), ("euclidean", None), ("euclidean", 2.0)]
)
def test_lime_without_penalty_is_weighted_least_squares(kernel: str, width: float | None) -> None:
    model, x = network(5), normal(2, 5)
    z, w, v = lime_table(x, model, kernel, width, 80)
    design = torch.cat([torch.ones(80, 1, dtype=torch.float64), z], 1)
    solution = torch.linalg.lstsq(w.sqrt()[:, None] * design, w.sqrt()[:, None] * v).solution
    found = attributions(model, x, "lime", surrogate="linear", n_samples=80, kernel=kernel, width=width)
    torch.testing.assert_close(found, solution[1:].T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.01, 1.0, 30.0])
def test_lime_with_ridge_is_the_closed_form_with_a_free_intercept(alpha: float) -> None:
    model, x = network(5), normal(2, 5)
    z, w, v = lime_table(x, model, "euclidean", None, 60)
    design = torch.cat([torch.ones(60, 1, dtype=torch.float64), z], 1)
    penalty = alpha * torch.diag(torch.tensor([0.0, 1, 1, 1, 1, 1], dtype=torch.float64))
    solution = torch.linalg.solve(design.T @ (w[:, None] * design) + penalty, design.T @ (w[:, None] * v))
    found = attributions(model, x, "lime", n_samples=60, kernel="euclidean", alpha=alpha)
    close(found, solution[1:].T)


def test_lime_with_lasso_is_where_the_subgradient_vanishes() -> None:
    """Of sum w r^2 / (2 sum w) + alpha |b|_1, the scale of scikit-learn: some are zero, the others pull with alpha."""
    sklearn = pytest.importorskip("sklearn.linear_model")
    model, x, alpha = network(6), normal(1, 6), 0.05
    z, w, v = lime_table(x, model, "cosine", 0.5, 100)
    found = attributions(model, x, "lime", surrogate="lasso", alpha=alpha, n_samples=100, width=0.5)[0]
    residual = v[:, 0] - z @ found
    residual = residual - (w * residual).sum() / w.sum()
    pull = (z * (w * residual)[:, None]).sum(0) / w.sum()
    zero = found == 0
    assert bool((pull[zero].abs() <= alpha + 1e-6).all()) and bool(zero.any())
    assert bool((~zero).any())
    torch.testing.assert_close(pull[~zero], alpha * found[~zero].sign(), rtol=0, atol=1e-2 * alpha)
    fitted = sklearn.Lasso(alpha=alpha, tol=1e-12).fit(z.numpy(), v[:, 0].numpy(), sample_weight=w.numpy())
    torch.testing.assert_close(found, torch.from_numpy(fitted.coef_), rtol=0, atol=1e-2)


def test_lime_with_lasso_names_the_extra_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(axplain.MissingExtra, match=r"surrogate='lasso'.*pip install 'axplain\[tabular\]'"):
        axplain.explain(network(3), normal(1, 3), "lime", surrogate="lasso")
    assert attributions(network(3), normal(1, 3), "lime").shape == (1, 3), "the default needs no extra"


# RISE and permutation


@pytest.mark.parametrize("shape", [(2, 9), (1, 6, 7), (1, 3, 4, 4)])
def test_rise_is_the_mean_of_its_masks_times_the_value_of_what_they_show(shape: tuple[int, ...]) -> None:
    model, x, absent = network(math.prod(shape)), normal(2, *shape), normal(1, *shape, seed=1)
    asked = question(x, "rise", absent)
    [masks] = SmoothMasks(20, 3, 0.4).plan(asked).draw(asked, range(20)).soft or ()
    assert 0 <= float(masks.min()) < 0.1 and 0.9 < float(masks.max()) <= 1
    total, terms = torch.zeros_like(x), []
    for mask in masks:
        with torch.no_grad():
            value = model(mask * x + (1 - mask) * absent)
        terms.append((value.view(-1, *[1] * len(shape)) * mask / 0.4).expand_as(x))
        total += terms[-1] / 20
    found = axplain.explain(model, x, "rise", n_samples=20, cells=3, p=0.4, baselines=absent)
    close(found.attributions, total)
    close(found.standard_errors, torch.stack(terms).std(0) / math.sqrt(20))


def test_masks_of_rise_show_every_place_with_probability_p() -> None:
    x = normal(1, 1, 9, 10)
    asked = question(x, "rise")
    [masks] = SmoothMasks(3000, 4, 0.3).plan(asked).draw(asked, range(3000)).soft or ()
    torch.testing.assert_close(masks.mean(0), torch.full_like(masks[0], 0.3), rtol=0, atol=0.05)


@pytest.mark.parametrize("rounds", [1, 4])
def test_feature_permutation_takes_each_feature_from_the_planned_example(rounds: int) -> None:
    model, x = network(5), normal(6, 5)
    orders = PermutedRows(rounds).plan(question(x, "feature_permutation")).orders
    assert all(sorted(order) == list(range(6)) for order in orders.tolist())
    expected = torch.zeros_like(x)
    for sample, order in enumerate(orders):
        rows, feature = x.clone(), sample % 5
        rows[:, feature] = x[order, feature]
        with torch.no_grad():
            expected[:, feature] += (model(x) - model(rows)) / rounds
    close(attributions(model, x, "feature_permutation", n_samples=rounds), expected)


@pytest.mark.parametrize("method", ["shapley_value_sampling", "kernel_shap", "lime"])
def test_a_kept_plan_is_the_plan_that_would_be_drawn(method: str) -> None:
    """Twelve plans push each other out of the memory; the second round gets what the first one got."""
    model, x = network(6), normal(2, 6)
    asked = [(n, seed) for n in (40, 41, 42, 43) for seed in range(3)]

    def ask(n: int, seed: int) -> Tensor:
        answer: Tensor = axplain.explain(model, x, method, n_samples=n, seed=seed).attributions
        return answer

    first, second = ([ask(*one) for one in asked] for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1]), "another seed, another plan"
    for one, found in zip(asked, first, strict=True):
        _kept.cache_clear()
        assert torch.equal(ask(*one), found)


def test_no_chunk_and_no_other_example_decides_how_long_a_tolerance_draws() -> None:
    model, x = network(9), normal(3, 9)
    asked: dict[str, Any] = {"method": "shapley_value_sampling", "tolerance": 0.05}
    sizes: tuple[Any, ...] = (7, 100, 10_000, "auto")
    answers = [axplain.explain(model, x, batch_size=size, **asked) for size in sizes]
    assert len({answer.cost.forward_rows for answer in answers}) == 1
    for answer in answers[1:]:
        close(answer.attributions, answers[0].attributions)
    alone = [axplain.explain(model, x[i : i + 1], **asked) for i in range(3)]
    close(answers[0].attributions, torch.cat([one.attributions for one in alone]))
    assert sum(one.cost.forward_rows for one in alone) == answers[0].cost.forward_rows
    price = axplain.estimate(model, x, **asked)
    assert price.backward_rows == 0 and price.forward_rows >= answers[0].cost.forward_rows


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(1, 2, 2, 2, dtype=torch.long),
        torch.tensor([[0, 1], [1, 1]]).expand(1, 2, 2, 2),
        torch.tensor([0, 1]).view(1, 1, 1, 2),
        torch.tensor([0, 1]).view(1, 2, 1, 1),
        torch.tensor([[0, 0], [1, 2], [0, 1], [2, 2]]).view(4, 1, 2, 1),
    ],
    ids=["whole", "channels alike", "columns", "channels", "own"],
)
def test_feature_permutation_moves_all_of_a_feature(mask: Tensor) -> None:
    """The same features of the same numbers in a row, where nothing is broadcast, are permuted alike."""
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return flat.cumsum(1).tanh().sum(1)

    for batch_size in (1, 3, "auto"):
        found = axplain.explain(model, x, "feature_permutation", feature_mask=mask, batch_size=batch_size)
        full = mask.expand(len(mask), *x.shape[1:]).flatten(1)
        flat = axplain.explain(model, x.flatten(1), "feature_permutation", feature_mask=full)
        assert bool(found.attributions.any())
        torch.testing.assert_close(found.attributions.flatten(1), flat.attributions)


def test_feature_permutation_of_numbers_without_an_axis_but_the_batch() -> None:
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    found = axplain.explain(lambda x: x**2, x, "feature_permutation").attributions
    assert found.shape == (3,) and abs(float(found.sum())) < 1e-12


@pytest.mark.parametrize("mode", ["smoothgrad", "vargrad"])
def test_noise_around_permutations_leaves_the_examples_together(mode: str) -> None:
    """However few rows fit in a pass, features come from any example: of the whole batch, and none of another copy."""
    model, x, noise = network(4), normal(5, 4), {"mode": mode, "n_samples": 3, "stdev": 0.1}
    found = [
        axplain.explain(model, x, "feature_permutation", noise=noise, batch_size=size).attributions
        for size in (1, 3, 7, "auto")
    ]
    for other in found[1:]:
        close(other, found[0])
    assert bool(found[0].any())
    quiet = axplain.explain(model, x, "feature_permutation", noise={"mode": "smoothgrad", "stdev": 0.0}, batch_size=2)
    drops = torch.stack([model(x) - model(torch.cat([x.roll(k, 0)[:, :1], x[:, 1:]], 1)) for k in range(1, 5)])
    assert quiet.attributions.shape == x.shape
    assert bool((quiet.attributions[:, 0] <= drops.amax(0) + 1e-12).all())
    assert bool((quiet.attributions[:, 0] >= drops.amin(0) - 1e-12).all())
