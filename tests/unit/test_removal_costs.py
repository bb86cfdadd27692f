"""What removal methods ask of the model, how sure they are of sampled answers, and what they refuse beforehand."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import axplain

COALITIONS = ("feature_ablation", "shapley_values", "banzhaf_values", "shapley_value_sampling", "kernel_shap", "lime")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(x: Tensor) -> Tensor:
    """Return (rows, 3) smooth scores with interactions."""
    count = x[0].numel()
    hidden = torch.tanh(x.flatten(1) @ normal(count, 7, seed=3) + normal(7, seed=5))
    return hidden @ normal(7, 3, seed=4)


def score(x: Tensor) -> Tensor:
    return scores(x)[:, 0]


@attrs.define(eq=False)
class Recording:
    """Keeps every row that the model is asked about."""

    function: Any = score
    passes: list[Tensor] = attrs.field(factory=list)

    def __call__(self, x: Tensor) -> Tensor:
        self.passes.append(x.detach().clone())
        out: Tensor = self.function(x)
        return out

    @property
    def rows(self) -> list[tuple[float, ...]]:
        return [tuple(row.flatten().tolist()) for rows in self.passes for row in rows]

    def times(self, row: Tensor) -> int:
        return self.rows.count(tuple(row.flatten().tolist()))


def itself(output: Tensor) -> Tensor:
    """As target: the output, without a pass that looks for a predicted class."""
    return output


def refusing(*_: Any) -> Tensor:
    raise AssertionError("the model was asked")


# rows


@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
@pytest.mark.parametrize("method", COALITIONS)
def test_no_coalition_is_asked_twice(method: str, batch_size: Any) -> None:
    """The 4 features have 16 coalitions, whatever is drawn."""
    model, x = Recording(), normal(1, 4)
    found = axplain.explain(model, x, method, target=itself, verify=False, batch_size=batch_size)
    measuring = 5 if batch_size == "auto" else 0  # two passes that measure the model ask for x
    rows = [row for row in model.rows if row != tuple(x[0].tolist())]
    assert len(rows) == len(set(rows)) <= 15
    assert model.times(x[0]) <= 1 + measuring
    assert found.cost.forward_rows == len(set(model.rows)) <= 16


def test_repeated_coalitions_of_several_examples_are_asked_once_for_each() -> None:
    model, x = Recording(), normal(3, 4)
    found = axplain.explain(
        model, x, "shapley_value_sampling", target=itself, n_samples=200, verify=False, batch_size=7
    )
    assert len(model.rows) == len(set(model.rows)) == 3 * 15 + 1
    assert found.cost.forward_rows == 46


@pytest.mark.parametrize("method", [m for m in COALITIONS if m != "feature_ablation"])
def test_a_shared_baseline_is_asked_once(method: str) -> None:
    model, x = Recording(), normal(5, 4)
    axplain.explain(model, x, method, baselines=0.5, verify=False, batch_size=1000)
    assert model.times(torch.full((4,), 0.5)) == 1


def test_baselines_of_each_example_are_asked_for_each() -> None:
    model, x, rows = Recording(), normal(3, 4), normal(3, 4, seed=1)
    axplain.explain(model, x, "kernel_shap", baselines=rows, verify=False, batch_size=1000)
    assert [model.times(row) for row in rows] == [1, 1, 1]


def test_a_shared_baseline_is_asked_again_for_another_target() -> None:
    model, x = Recording(scores), normal(3, 4)
    found = axplain.explain(model, x, "shapley_values", target=[0, 1, 0], verify=False, batch_size=1000)
    assert model.times(torch.zeros(4)) == 2
    for i, target in enumerate([0, 1, 0]):
        alone = axplain.explain(scores, x[i : i + 1], "shapley_values", target=target).attributions
        torch.testing.assert_close(found.attributions[i : i + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [*COALITIONS, "occlusion", "leverage_shap"])
def test_what_the_prediction_told_is_not_asked_again(method: str) -> None:
    model, x = Recording(scores), normal(3, 4)
    found = axplain.explain(model, x, method, verify=False, batch_size=1000)
    assert [model.times(row) for row in x] == [1, 1, 1]
    assert found.cost.check_rows == 3
    assert found.cost.forward_rows == len(model.rows) - 3


@pytest.mark.parametrize("method", ["shapley_values", "shapley_value_sampling", "kernel_shap"])
def test_the_check_of_completeness_costs_nothing(method: str) -> None:
    """Both ends are among the coalitions; only the look for randomness asks, for the first example."""
    plain, checked, x = Recording(), Recording(), normal(3, 4)
    axplain.explain(plain, x, method, target=itself, verify=False, batch_size=1000)
    found = axplain.explain(checked, x, method, target=itself, batch_size=1000)
    assert len(checked.rows) - len(plain.rows) == found.cost.check_rows <= 2
    assert found.delta is not None


@pytest.mark.parametrize("method", [*COALITIONS, "leverage_shap", "occlusion", "feature_permutation"])
def test_an_estimate_bounds_the_rows(method: str) -> None:
    x = normal(2, 5)
    planned = axplain.estimate(score, x, method)
    spent = axplain.explain(score, x, method).cost
    assert spent.forward_rows <= planned.forward_rows
    if planned.bound == "exact":
        assert spent.forward_rows == planned.forward_rows


@pytest.mark.parametrize("method", ["kernel_shap", "leverage_shap"])
def test_an_estimate_knows_how_many_coalitions_there_are(method: str) -> None:
    """The default asks for 2,058 coalitions and 5 features have 32: a bound of 64 times as many rows is none."""
    assert axplain.estimate(score, normal(2, 5), method).forward_rows <= 2 * 32


# standard errors


def sound(method: str, game: Any, seeds: int = 200, **more: Any) -> Tensor:
    """Return the spread of the estimates over many seeds, as a fraction of the mean error that they report."""
    x = normal(1, 8)
    runs = [axplain.explain(game, x, method, seed=seed, verify=False, **more) for seed in range(seeds)]
    spread = torch.stack([run.attributions for run in runs]).std(0)
    return spread / torch.stack([run.standard_errors for run in runs]).mean(0)


def curved(x: Tensor) -> Tensor:
    """Pairs of features interact and nothing else does: paired coalitions and walks cancel that."""
    return torch.einsum("ni,ij,nj->n", x, normal(8, 8, seed=9), x) + x.tanh().prod(1)


@pytest.mark.parametrize("game", [score, curved])
@pytest.mark.parametrize(("n", "antithetic"), [(32, False), (40, True)])
def test_standard_errors_of_walks_are_sound(n: int, antithetic: bool, game: Any) -> None:
    ratios = sound("shapley_value_sampling", game, n_samples=n, antithetic=antithetic)
    assert float(ratios.min()) > 0.7 and float(ratios.max()) < 1.4, ratios


@pytest.mark.parametrize("game", [score, curved])
@pytest.mark.parametrize("n", [80, 150])
@pytest.mark.parametrize("paired", [True, False])
def test_standard_errors_of_kernel_shap_are_sound(paired: bool, n: int, game: Any) -> None:
    """A coalition and its complement are one draw, and what they have in common cancels."""
    ratios = sound("kernel_shap", game, n_samples=n, paired=paired)
    assert float(ratios.min()) > 0.4 and float(ratios.max()) < 1.6, ratios


@pytest.mark.parametrize(("method", "n"), [("shapley_value_sampling", 16), ("kernel_shap", 80), ("leverage_shap", 80)])
def test_sampled_values_have_no_bias(method: str, n: int) -> None:
    """Over 200 seeds the mean is within 4 of its own standard errors of the exact values; the ratio of a fit has a
    bias that vanishes faster than its spread, so it is allowed a fifth of one run's spread.
    """
    x = normal(1, 8)
    exact = axplain.explain(score, x, "shapley_values").attributions
    runs = [axplain.explain(score, x, method, n_samples=n, seed=s, verify=False).attributions for s in range(200)]
    estimates = torch.stack(runs)
    spread = estimates.std(0)
    assert bool(((estimates.mean(0) - exact).abs() < spread * (4 / 200**0.5 + 0.2)).all())


def test_a_last_walk_without_its_pair_does_not_spoil_the_others() -> None:
    """In a game of pairs a walk and its reverse are exact together; one single walk more must not weigh as a pair."""

    def pairs(x: Tensor) -> Tensor:
        return torch.einsum("ni,ij,nj->n", x, normal(6, 6, seed=9), x)

    x = normal(1, 6)
    exact = axplain.explain(pairs, x, "shapley_values").attributions
    single: list[Tensor] = []
    odd: list[Tensor] = []
    for seed in range(40):
        for n, errors in ((1, single), (9, odd)):
            found = axplain.explain(pairs, x, "shapley_value_sampling", n_samples=n, seed=seed, verify=False)
            errors.append((found.attributions - exact).square().mean())
    assert float(torch.stack(odd).mean().sqrt()) < 1.3 / 9 * float(torch.stack(single).mean().sqrt())


# tolerance


def test_tolerance_stops_when_every_standard_error_is_within_it() -> None:
    x, rows = normal(2, 9), []
    for tolerance in (0.1, 0.03):
        found = axplain.explain(score, x, "shapley_value_sampling", tolerance=tolerance, batch_size=64)
        assert 0 < float(found.standard_errors.max()) <= tolerance
        assert found.notes["tolerance"]["reached"] is True
        rows.append(found.cost.forward_rows)
    assert rows[0] < rows[1] < axplain.estimate(score, x, "shapley_value_sampling", tolerance=0.03).forward_rows


def test_tolerance_holds_for_every_block_of_examples() -> None:
    x = normal(5, 9)
    found = axplain.explain(score, x, "shapley_value_sampling", tolerance=0.2, batch_size=4)
    assert found.standard_errors.shape == x.shape and float(found.standard_errors.max()) <= 0.2


def test_a_tolerance_that_is_not_reached_is_said_and_the_cure_is_named() -> None:
    """The sum of a walk is always right, so the residual says nothing of what tolerance= asks for."""
    x = normal(2, 9)
    with pytest.warns(axplain.AxplainWarning, match=r"tolerance=0\.0001 was not reached.*standard error.*max_samples"):
        found = axplain.explain(score, x, "shapley_value_sampling", tolerance=1e-4, max_samples=20)
    assert found.notes["tolerance"]["reached"] is False
    assert float(found.standard_errors.max()) > 1e-4


def test_tolerance_and_a_number_of_samples_are_two_answers_to_one_question() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"n_samples: 50 came beside tolerance=0\.1"):
        axplain.explain(refusing, normal(1, 4), "shapley_value_sampling", tolerance=0.1, n_samples=50)


@pytest.mark.parametrize("method", ["shapley_values", "feature_ablation", "kernel_shap"])
def test_methods_that_cannot_refine_name_those_that_can(method: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=r"tolerance: .*cannot refine.*shapley_value_sampling"):
        axplain.explain(refusing, normal(1, 4), method, tolerance=0.1)


# bad input, before any pass

BAD: dict[str, tuple[str, Tensor, dict[str, Any], str]] = {
    "a window larger than the input": (
        "occlusion", normal(2, 4), {"window": 5}, r"window: \(5,\) came for an input of shape \(4,\)"),
    "one side larger": (
        "occlusion", normal(1, 1, 4, 3), {"window": (4, 4)}, r"window: \(1, 4, 4\) came for an input of shape \(1"),
    "a window of nothing": ("occlusion", normal(2, 4), {"window": 0}, r"window: \(0,\) came.*expected sizes from 1"),
    "a negative window": ("occlusion", normal(2, 4), {"window": -1}, r"window: \(-1,\) came"),
    "a fraction": ("occlusion", normal(2, 4), {"window": 1.5}, r"window: 1\.5 \(float\) came"),
    "too many sizes": ("occlusion", normal(2, 4), {"window": (1, 2)}, r"window: \(1, 2\) came.*at most 1 sizes"),
    "windows for three inputs": ("occlusion", normal(2, 4), {"window": ((1,), (2,), (1,))}, "window: 3 shapes came"),
    "a stride of zero": ("occlusion", normal(2, 4), {"window": 2, "stride": 0}, r"stride: \(0,\) came"),
    "a stride beyond the window": (
        "occlusion", normal(2, 4), {"window": 2, "stride": 3}, r"stride: \(3,\) came.*would leave elements uncovered"),
    "too many features": (
        "shapley_values", normal(1, 20), {}, r"20 features have 2\^20 coalitions.*shapley_value_sampling"),
    "far too many features": ("shapley_values", normal(1, 3, 40, 40), {}, "shapley_value_sampling"),
    "too many for banzhaf": ("banzhaf_values", normal(1, 20), {}, r"20 features have 2\^20 coalitions"),
    "more than were allowed": ("shapley_values", normal(1, 4), {"max_evaluations": 15}, r"at least 2\^4"),
    "too few coalitions": ("kernel_shap", normal(1, 8), {"n_samples": 8}, "n_samples: 8 came; expected .* at least 9"),
    "too few of leverage": ("leverage_shap", normal(1, 8), {"n_samples": 8}, "n_samples: 8 came.* at least 9"),
    "no walks": ("shapley_value_sampling", normal(1, 8), {"n_samples": 0}, "n_samples: 0 came; expected .* at least 1"),
    "one coalition": ("lime", normal(1, 8), {"n_samples": 1}, "n_samples: 1 came; expected .* at least 2"),
    "no width": ("lime", normal(1, 8), {"width": 0.0}, "width: 0.0 came"),
    "another surrogate": ("lime", normal(1, 8), {"surrogate": "tree"}, "surrogate: 'tree'.*ridge, lasso, linear"),
    "one mask": ("rise", normal(1, 1, 4, 4), {"n_samples": 1}, "n_samples: 1 came; expected .* at least 2"),
    "a certain cell": ("rise", normal(1, 1, 4, 4), {"p": 1.0}, "p: 1.0 came; expected .* at most 0.99"),
    "no picture": ("rise", normal(1, 4), {}, "x: shape .* at least 3 dimensions"),
    "one example": ("feature_permutation", normal(1, 4), {}, "x: 1 came; expected at least 2 examples"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name_before_any_pass(name: str) -> None:
    method, x, given, message = BAD[name]
    with pytest.raises(axplain.ArgumentError, match=message):
        axplain.explain(refusing, x, method, target=0, **given)


@pytest.mark.parametrize("name", ["too many features", "far too many features"])
def test_too_many_features_are_refused_before_the_prediction(name: str) -> None:
    method, x, _, message = BAD[name]
    with pytest.raises(axplain.ArgumentError, match=message):
        axplain.explain(refusing, x, method)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("method", ["kernel_shap", "leverage_shap"])
def test_the_least_number_of_coalitions_is_answered(method: str, paired: bool) -> None:
    """What the bound allows gives a complete answer, or it is refused before the model was asked."""
    for features, seed in itertools.product((4, 9, 20), range(3)):
        model, x = Recording(), normal(1, features)
        try:
            found = axplain.explain(
                model, x, method, target=itself, n_samples=features + 1, paired=paired, seed=seed, batch_size=100
            )
        except axplain.ArgumentError:
            assert not model.passes, "it was refused after the model had been asked"
        else:
            assert found.delta is not None and float(found.delta.abs().max()) < 1e-9


def test_lime_asks_for_its_extra_before_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    with pytest.raises(axplain.MissingExtra):
        axplain.explain(refusing, normal(1, 4), "lime", target=0, surrogate="lasso")


@pytest.mark.parametrize("method", [*COALITIONS, "occlusion", "feature_permutation"])
@pytest.mark.parametrize("output", ["the mean", "one row", "more rows"])
def test_an_output_that_does_not_follow_the_batch_is_named(method: str, output: str) -> None:
    change: dict[str, Any] = {
        "the mean": torch.mean,
        "one row": lambda out: out[:1],
        "more rows": lambda out: torch.cat([out, out]),
    }

    def model(x: Tensor) -> Tensor:
        found: Tensor = change[output](score(x))
        return found

    with pytest.raises(axplain.UnsupportedModel, match=r"rows went in and the output has the shape .*; expected \d+"):
        axplain.explain(model, normal(3, 4), method)


def test_the_model_is_not_differentiated() -> None:
    """Removal methods take any callable, and a module whose output has no gradient."""

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(score(x).detach().numpy()).round(decimals=1)

    x = normal(2, 4)
    found = axplain.explain(Rounded(), x, "shapley_values")
    torch.testing.assert_close(found.attributions.sum(1), found.difference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["kernel_shap", "leverage_shap", "lime"])
def test_more_features_than_a_regression_holds_are_refused_before_any_pass(method: str) -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("the model was asked")

    with pytest.raises(axplain.ArgumentError, match=r"feature_mask: there are 12288 features.*superpixels"):
        axplain.explain(never, torch.zeros(1, 3, 64, 64), method, target=0)
