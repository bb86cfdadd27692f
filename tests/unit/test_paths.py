"""Integrated gradients and gradient SHAP against closed forms: what the integral is, worked out by hand.

How `tolerance=` refines is in the second half; random paths are at the end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import axplain

EPS = torch.finfo(torch.float64).eps
RULES = ["gauss_legendre", "left", "right", "midpoint", "trapezoid"]


def _seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _network(activation: nn.Module, seed: int, *, features: int = 4, bias: bool = True) -> nn.Sequential:
    """Return two hidden layers with weights N(0, 0.7^2), so that saturation and kinks occur; one output."""
    layers = (nn.Linear(features, 12, bias), activation, nn.Linear(12, 8, bias), activation, nn.Linear(8, 1, bias))
    model = nn.Sequential(*layers).double().eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.data = 0.7 * _seeded(*parameter.shape, seed=100 * seed + i)
    return model


def _close(found: Tensor, expected: Tensor, atol: float = 1e-13) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("n", [2, 3, 50])
@pytest.mark.parametrize("quadrature", RULES)
def test_of_a_linear_model_weight_times_displacement_by_every_rule(quadrature: str, n: int) -> None:
    weight, x, baseline = _seeded(4, seed=1), _seeded(3, 4, seed=2), _seeded(3, 4, seed=3)
    found = axplain.explain(lambda rows: rows @ weight + 5, x, baselines=baseline, quadrature=quadrature, n_steps=n)
    _close(found.attributions, weight * (x - baseline), 1e-14)


def test_of_a_quadratic_form_displacement_times_the_gradient_halfway() -> None:
    matrix, x, baseline = _seeded(5, 5, seed=1), _seeded(4, 5, seed=2), _seeded(4, 5, seed=3)
    exact = (x - baseline) * (((x + baseline) / 2) @ (matrix + matrix.T))
    for quadrature, n in (("gauss_legendre", 1), ("midpoint", 1), ("midpoint", 6), ("trapezoid", 7)):
        found = axplain.explain(
            lambda rows: torch.einsum("bi,ij,bj->b", rows, matrix, rows),
            x, baselines=baseline, quadrature=quadrature, n_steps=n,
        )  # fmt: skip
        _close(found.attributions, exact)


def _shapley(function: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor) -> Tensor:
    """Return Shapley values by the sum over all subsets; x and baseline are (features,)."""
    count = len(x)
    values = torch.zeros_like(x)
    for i in range(count):
        others = [j for j in range(count) if j != i]
        for size in range(count):
            share = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for chosen in itertools.combinations(others, size):
                without = baseline.clone()
                without[list(chosen)] = x[list(chosen)]
                joined = without.clone()
                joined[i] = x[i]
                values[i] += share * (function(joined[None]) - function(without[None])).squeeze()
    return values


def test_of_a_multilinear_function_the_shapley_values() -> None:
    coefficients = {
        subset: float(_seeded(1, seed=7 + k))
        for k, subset in enumerate(s for size in range(6) for s in itertools.combinations(range(5), size))
    }

    def multilinear(rows: Tensor) -> Tensor:
        return sum((c * rows[:, list(s)].prod(1) for s, c in coefficients.items()), torch.zeros(len(rows)))

    x, baseline = _seeded(2, 5, seed=1), _seeded(2, 5, seed=2)
    exact = torch.stack([_shapley(multilinear, *pair) for pair in zip(x, baseline, strict=True)])
    _close(axplain.explain(multilinear, x, baselines=baseline, n_steps=3).attributions, exact)


@pytest.mark.parametrize("seed", range(5))
def test_of_a_bias_free_relu_network_from_zero_input_times_gradient(seed: int) -> None:
    """Such a network is linear on every ray from zero."""
    model, x = _network(nn.ReLU(), seed, bias=False), _seeded(6, 4, seed=seed)
    exact = axplain.explain(model, x, "input_x_gradient").attributions
    for n in (1, 7):
        _close(axplain.explain(model, x, n_steps=n).attributions, exact)


def _one_layer_exactly(weight: Tensor, bias: Tensor, readout: Tensor, x: Tensor, baseline: Tensor) -> Tensor:
    """Integrate relu(rows @ weight.T + bias) @ readout: each unit is on for a known part of the path."""
    before, after = baseline @ weight.T + bias, x @ weight.T + bias
    crossing = (before / (before - after)).clamp(0, 1)
    inside = before * after < 0
    share = torch.where(inside, torch.where(after > 0, 1 - crossing, crossing), (after > 0).double())
    return (x - baseline) * ((share * readout) @ weight)


def _relu_layer(seed: int) -> tuple[Callable[[Tensor], Tensor], tuple[Tensor, Tensor, Tensor]]:
    weight, bias, readout = _seeded(16, 4, seed=seed), _seeded(16, seed=seed + 1), _seeded(16, seed=seed + 2)
    return lambda rows: (rows @ weight.T + bias).relu() @ readout, (weight, bias, readout)


def test_across_kinks_every_rule_converges_to_the_exact_shares() -> None:
    model, layer = _relu_layer(10)
    x, baseline = _seeded(4, 4, seed=1), _seeded(4, 4, seed=2)
    exact = _one_layer_exactly(*layer, x, baseline)
    for quadrature in RULES:
        found = axplain.explain(model, x, baselines=baseline, quadrature=quadrature, n_steps=2000)
        _close(found.attributions, exact, 2e-2)
    # a residual is a sum over features: single ones may be off by more, but by nothing like what uniform rules leave
    refined = axplain.explain(model, x, baselines=baseline, tolerance=1e-9)
    _close(refined.attributions, exact, 1e-6)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.GELU()])
@pytest.mark.parametrize("n", [64, 200])
def test_attributions_of_smooth_networks_sum_to_the_difference(activation: nn.Module, n: int) -> None:
    for seed in range(5):
        model, x, baseline = _network(activation, seed), _seeded(4, 4, seed=seed), _seeded(1, 4, seed=seed + 50)
        found = axplain.explain(model, x, baselines=baseline, n_steps=n)
        ends = model(x).squeeze(1).detach(), model(baseline).squeeze(1).detach()
        residual = found.attributions.sum(1) - (ends[0] - ends[1])
        assert bool((residual.abs() <= 100 * EPS * (1 + ends[0].abs() + ends[1].abs())).all())
        assert found.delta is not None and found.difference is not None
        _close(found.delta, residual, 1e-14)
        _close(found.difference, ends[0] - ends[1], 1e-15)


def test_the_residual_of_relu_networks_falls_with_order_one() -> None:
    """The root mean square over 64 cases: single cases jump, since what counts is where a node meets a kink."""
    errors = []
    for n in (16, 64, 256):
        squares = []
        for seed in range(16):
            model, x = _network(nn.ReLU(), seed), _seeded(4, 4, seed=seed)
            found = axplain.explain(model, x, n_steps=n, verify=False).attributions
            squares.append((found.sum(1) - (model(x) - model(torch.zeros_like(x))).squeeze(1)).detach().square())
        errors.append(float(torch.cat(squares).mean().sqrt()))
    assert errors[0] > 1e-3, "these networks must have kinks on the path"
    for coarse, fine in itertools.pairwise(errors):
        assert fine <= 2 * coarse / 4


def test_a_set_of_baselines_gives_the_mean_over_its_rows() -> None:
    model, x, rows = _network(nn.Tanh(), 1), _seeded(3, 4, seed=1), _seeded(5, 4, seed=2)
    each = [axplain.explain(model, x, baselines=row[None]) for row in rows]
    found = axplain.explain(model, x, baselines=axplain.distribution(rows))
    _close(found.attributions, torch.stack([part.attributions for part in each]).mean(0))
    differences = [part.difference for part in each if part.difference is not None]
    assert found.difference is not None
    _close(found.difference, torch.stack(differences).mean(0))
    assert found.cost.forward_rows == 5 * each[0].cost.forward_rows


def test_a_row_of_baselines_for_each_example_belongs_to_its_example() -> None:
    model, x, rows = _network(nn.Tanh(), 1), _seeded(3, 4, seed=1), _seeded(3, 4, seed=2)
    together = axplain.explain(model, x, baselines=rows).attributions
    alone = [axplain.explain(model, x[i : i + 1], baselines=rows[i : i + 1]).attributions for i in range(3)]
    _close(together, torch.cat(alone), 1e-14)


def test_an_example_that_is_its_baseline_gets_zeros() -> None:
    x = _seeded(3, 4)
    found = axplain.explain(_network(nn.ReLU(), 2), x, baselines=x.clone())
    assert torch.equal(found.attributions, torch.zeros_like(x))


def test_joint_baselines_of_tuple_inputs_stay_together() -> None:
    """F = (a - b)^2 with a = b in every row: F(x') = 0, and the gradient on the path is alpha (x_a - x_b)."""
    x, rows = (torch.tensor([[2.0]]).double(), torch.tensor([[1.0]]).double()), 30 * _seeded(6, 1)
    found = axplain.explain(
        lambda a, b: (a - b).square().squeeze(1), x, baselines=axplain.distribution((rows, rows.clone()))
    )
    _close(found.attributions[0], (2 - rows.mean()).view(1, 1), 1e-12)
    _close(found.attributions[1], (rows.mean() - 1).view(1, 1), 1e-12)


@pytest.mark.parametrize("structure", ["tuple", "dict"])
def test_several_inputs_are_one_input_cut_into_pieces(structure: str) -> None:
    model, x, baseline = _network(nn.Tanh(), 3, features=6), _seeded(3, 6, seed=1), _seeded(1, 6, seed=2)

    def pieces(a: Tensor, b: Tensor) -> Tensor:
        value: Tensor = model(torch.cat([a, b.flatten(1)], 1))
        return value

    def cut(rows: Tensor) -> Any:
        parts = rows[:, :2], rows[:, 2:].reshape(-1, 2, 2)
        return parts if structure == "tuple" else dict(zip("ab", parts, strict=True))

    whole = axplain.explain(model, x, baselines=baseline).attributions
    found = axplain.explain(pieces, cut(x), baselines=cut(baseline)).attributions
    first, second = found if structure == "tuple" else (found["a"], found["b"])
    _close(torch.cat([first, second.flatten(1)], 1), whole, 1e-14)


class Witness:
    """A model that keeps the rows it was asked about, and how many of them it was given in all."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.passes: list[Tensor] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.passes.append(rows.detach().clone())
        return self.function(rows)

    @property
    def rows(self) -> Tensor:
        return torch.cat(self.passes)


def _uniform_rows(model: Callable[[Tensor], Tensor], x: Tensor, tolerance: float, quadrature: str) -> int:
    """Return the rows of the coarsest rule, doubling its nodes, whose residual is within the tolerance for all of x."""
    difference = (model(x) - model(torch.zeros_like(x))).flatten().detach()
    for n in (1 << k for k in range(1, 14)):
        found = axplain.explain(model, x, n_steps=n, quadrature=quadrature, verify=False).attributions
        if bool(((found.sum(1) - difference).abs() <= tolerance).all()):
            return len(x) * n
    raise AssertionError("no uniform rule is good enough")


def _kept(model: Callable[[Tensor], Tensor], x: Tensor, tolerance: float) -> int:
    """Assert that the residual is within the tolerance, and that the answer says so; return the rows it took."""
    found = axplain.explain(model, x, tolerance=tolerance)
    exact = (model(x) - model(torch.zeros_like(x))).flatten().detach()
    assert float((found.attributions.sum(1) - exact).abs().max()) <= tolerance
    note = dict(found.notes["tolerance"])
    assert found.delta is not None and note.pop("residual") == float(found.delta.abs().max()) <= tolerance
    assert note == {"asked": tolerance, "reached": True, "rows": found.cost.forward_rows}
    return found.cost.forward_rows


@pytest.mark.parametrize("seed", range(4))
def test_tolerance_is_kept_across_kinks_with_a_fraction_of_a_uniform_rules_rows(seed: int) -> None:
    model, x = _network(nn.ReLU(), seed), _seeded(8, 4, seed=seed + 1)
    rows = [_kept(model, x, tolerance) for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)]
    assert rows == sorted(rows)
    uniform = min(_uniform_rows(model, x, 1e-3, rule) for rule in ("gauss_legendre", "midpoint"))
    assert rows[2] < uniform / 10


@pytest.mark.parametrize("seed", range(4))
def test_tolerance_is_kept_where_a_smooth_network_saturates(seed: int) -> None:
    """Steep steps on the path: evenly spaced nodes waste most of their rows where nothing happens.

    Gauss-Legendre rules are not in the comparison: for analytic functions they win against any refinement, once
    somebody knows how many nodes are enough.
    """
    smooth, x = _network(nn.Tanh(), seed), _seeded(8, 4, seed=seed + 1)

    def model(rows: Tensor) -> Tensor:
        value: Tensor = smooth(8 * rows)
        return value

    rows = [_kept(model, x, tolerance) for tolerance in (1e-2, 1e-4, 1e-6)]
    assert rows[1] < min(_uniform_rows(model, x, 1e-4, rule) for rule in ("midpoint", "trapezoid")) / 10


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU()])
def test_a_moderate_tolerance_takes_fewer_rows_than_the_default_rule(activation: nn.Module) -> None:
    for seed in range(4):
        model, x = _network(activation, seed), _seeded(8, 4, seed=seed + 1)
        assert _kept(model, x, 1e-3) < axplain.estimate(model, x).forward_rows


def test_a_linear_model_takes_no_more_than_the_first_nodes() -> None:
    weight, x = _seeded(4, seed=1), _seeded(3, 4)
    found = axplain.explain(lambda rows: rows @ weight, x, tolerance=1e-12)
    assert found.cost.forward_rows == 3 * 9
    _close(found.attributions, weight * x, 1e-15)


def test_a_budget_that_is_too_small_is_spent_and_said_so() -> None:
    model, x = _network(nn.ReLU(), 1), _seeded(4, 4)
    with pytest.warns(axplain.AxplainWarning, match=r"tolerance=1e-09 was not reached.*max_steps"):
        found = axplain.explain(model, x, tolerance=1e-9, max_steps=21)
    assert found.notes["tolerance"]["reached"] is False
    assert found.cost.forward_rows <= 4 * 21
    assert found.delta is not None
    assert float(found.delta.abs().max()) > 1e-9


@pytest.mark.parametrize("max_steps", [9, 10, 17, 40, 101])
def test_no_example_gets_more_than_max_steps(max_steps: int) -> None:
    model, x = _network(nn.ReLU(), 1), _seeded(4, 4)
    rows: list[Tensor] = []

    def counted(features: Tensor, name: Tensor) -> Tensor:
        rows.append(name.clone())
        value: Tensor = model(features)
        return value

    with pytest.warns(axplain.AxplainWarning, match="not reached"):
        axplain.explain(
            counted, x, target=0, tolerance=1e-14, max_steps=max_steps, verify=False, batch_size=7,
            additional_forward_args=torch.arange(4),
        )  # fmt: skip
    counts = torch.cat(rows).bincount()
    assert counts.max() <= max_steps
    assert counts.min() >= max_steps - 1, "the budget is there to be used"


def test_every_evaluation_counts_once_and_is_used() -> None:
    """No point is asked twice, and Simpson's rule on the points that were asked gives the attributions."""
    model, x = Witness(_network(nn.ReLU(), 2)), _seeded(1, 4, seed=5)
    found = axplain.explain(model, x, target=0, tolerance=1e-5, verify=False, batch_size=6)
    assert len(model.rows) == found.cost.forward_rows == found.cost.backward_rows
    assert found.cost.check_rows == 0
    alpha, order = (model.rows[:, 0] / x[0, 0]).sort()
    assert bool((alpha.diff() > 0).all()), "a point was asked twice"
    assert len(alpha) % 2 == 1
    points = model.rows[order].requires_grad_()
    gradients = torch.autograd.grad(model.function(points).sum(), points)[0]
    weights = torch.zeros_like(alpha)
    for left in range(0, len(alpha) - 1, 2):  # pieces share their ends; each has its own middle
        width = float(alpha[left + 2] - alpha[left])
        assert float(alpha[left + 1] - alpha[left]) == pytest.approx(width / 2, abs=1e-12)
        weights[left : left + 3] += width / 6 * torch.tensor([1.0, 4.0, 1.0]).double()
    _close(found.attributions, x * (weights @ gradients)[None], 1e-12)


def test_examples_are_refined_each_for_itself() -> None:
    model, x = _network(nn.ReLU(), 2), _seeded(5, 4, seed=5)
    together = axplain.explain(model, x, tolerance=1e-4)
    alone = [axplain.explain(model, x[i : i + 1], tolerance=1e-4) for i in range(5)]
    _close(together.attributions, torch.cat([part.attributions for part in alone]), 1e-12)
    assert together.cost.forward_rows == sum(part.cost.forward_rows for part in alone)
    assert len({part.cost.forward_rows for part in alone}) > 1, "examples differ in what they need"


def test_tolerance_holds_for_the_mean_over_a_set_of_baselines() -> None:
    model, x, rows = _network(nn.ReLU(), 2), _seeded(3, 4, seed=5), _seeded(4, 4, seed=6)
    found = axplain.explain(model, x, baselines=axplain.distribution(rows), tolerance=1e-4)
    exact = (model(x).squeeze(1) - model(rows).mean()).detach()
    assert float((found.attributions.sum(1) - exact).abs().max()) <= 1e-4
    each = [axplain.explain(model, x, baselines=row[None], tolerance=1e-4) for row in rows]
    _close(found.attributions, torch.stack([part.attributions for part in each]).mean(0), 1e-12)
    assert found.cost.forward_rows == sum(part.cost.forward_rows for part in each)


def test_tolerance_refines_along_all_inputs_of_a_tuple() -> None:
    model, x = _network(nn.ReLU(), 3, features=6), _seeded(3, 6, seed=1)

    def pieces(a: Tensor, b: Tensor) -> Tensor:
        value: Tensor = model(torch.cat([a, b.flatten(1)], 1))
        return value

    whole = axplain.explain(model, x, tolerance=1e-4)
    found = axplain.explain(pieces, (x[:, :2], x[:, 2:].reshape(-1, 2, 2)), tolerance=1e-4)
    _close(torch.cat([found.attributions[0], found.attributions[1].flatten(1)], 1), whole.attributions, 1e-12)
    assert found.cost.forward_rows == whole.cost.forward_rows


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"tolerance": 1e-3, "n_steps": 20}, "n_steps: 20 came beside tolerance="),
        ({"tolerance": 1e-3, "quadrature": "left"}, "quadrature: 'left' came beside tolerance="),
        ({"tolerance": 0.0}, "tolerance: 0.0 came"),
        ({"tolerance": -1.0}, "tolerance: -1.0 came"),
        ({"tolerance": math.nan}, "tolerance: nan came"),
        ({"tolerance": math.inf}, "tolerance: inf came"),
        ({"tolerance": True}, "tolerance: True came"),
        ({"tolerance": "fine"}, "tolerance: 'fine' came"),
        ({"tolerance": 1e-3, "max_steps": 8}, "max_steps: 8 came"),
        ({"tolerance": 1e-3, "method": "saliency"}, "tolerance: 0.001 came.*integrated_gradients"),
        ({"tolerance": 1e-3, "method": "gradient_shap", "baselines": 0}, "tolerance: 0.001 came"),
    ],
)
def test_a_tolerance_that_cannot_be_served_is_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=f"^{named}"):
        axplain.explain(_network(nn.ReLU(), 1), _seeded(2, 4), **arguments)


def _expected(model: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor) -> Tensor:
    """Return the mean of integrated gradients over the rows, to rounding for a smooth model."""
    each = [axplain.explain(model, x, baselines=row[None], n_steps=64, verify=False).attributions for row in rows]
    return torch.stack(each).mean(0)


def test_gradient_shap_converges_with_the_root_of_its_samples() -> None:
    model, x, rows = _network(nn.Tanh(), 1), _seeded(4, 4, seed=1), _seeded(6, 4, seed=2)
    exact = _expected(model, x, rows)

    def error(samples: int) -> float:
        found = [
            axplain.explain(
                model, x, "gradient_shap", baselines=rows, n_samples=samples, seed=seed, verify=False
            ).attributions
            for seed in range(60)
        ]
        return float((torch.stack(found) - exact).square().mean().sqrt())

    assert error(25) / error(400) == pytest.approx(4, rel=0.2)


def test_gradient_shap_is_unbiased_and_its_standard_errors_are_honest() -> None:
    """Errors in units of the stated standard error have variance about 1 over 200 seeds, and tails of a normal law."""
    model, x, rows = _network(nn.Tanh(), 1), _seeded(1, 4, seed=1), _seeded(6, 4, seed=2)
    exact = _expected(model, x, rows)
    answers = [
        axplain.explain(model, x, "gradient_shap", baselines=rows, n_samples=200, seed=seed, verify=False)
        for seed in range(200)
    ]
    errors = torch.cat([answer.attributions - exact for answer in answers])
    assert bool((errors.mean(0).abs() < 4 * errors.std(0) / 200**0.5).all())
    z = errors / torch.cat([answer.standard_errors for answer in answers])
    assert bool((z.var(0) > 0.75).all())
    assert bool((z.var(0) < 1.3).all())
    assert float((z.abs() > 1.96).double().mean()) == pytest.approx(0.05, abs=0.025)


def test_the_residual_of_gradient_shap_is_against_the_rows_that_were_drawn() -> None:
    """Of a linear model every sample is complete, so nothing is left, however few rows were drawn."""
    weight, x, rows = _seeded(4, seed=1), _seeded(2, 4, seed=2), _seeded(9, 4, seed=3)
    found = axplain.explain(lambda features: features @ weight, x, "gradient_shap", baselines=rows, n_samples=4)
    assert found.delta is not None and found.difference is not None
    _close(found.delta, torch.zeros(2).double(), 1e-13)
    drawn = x - found.attributions / weight  # the mean of the four
    _close(found.difference, (x - drawn) @ weight)
    assert float((drawn - rows.mean(0)).abs().max()) > 0.05, "four draws are not the whole set"


def test_one_sample_has_no_standard_error() -> None:
    found = axplain.explain(_network(nn.Tanh(), 1), _seeded(2, 4), "gradient_shap", baselines=0, n_samples=1)
    assert found.standard_errors is None


def test_gradient_shap_draws_one_row_for_all_inputs_of_a_tuple() -> None:
    """The k-th rows are k and 100 k and x is 0, so b = 100 a at every point of every joint path."""
    seen: list[tuple[Tensor, Tensor]] = []

    def model(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a.detach().clone(), b.detach().clone()))
        return (a + b).sum(1)

    rows = torch.arange(1.0, 9.0).double()[:, None]
    x = (torch.zeros(1, 1).double(), torch.zeros(1, 1).double())
    axplain.explain(model, x, "gradient_shap", baselines=(rows, 100 * rows), n_samples=200, verify=False)
    a, b = (torch.cat(parts) for parts in zip(*seen, strict=True))
    _close(b, 100 * a, 1e-12)
    assert len(set(a.flatten().tolist())) > 190


def test_gradient_shap_noise_is_given_per_input() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def model(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a.detach().clone(), b.detach().clone()))
        return (a + b).sum(1)

    x = (torch.zeros(1, 3).double(), torch.zeros(1, 3).double())
    arguments: dict[str, Any] = {"baselines": 0, "n_samples": 2000, "verify": False}
    axplain.explain(model, x, "gradient_shap", stdev=(0.0, 2.0), **arguments)
    a, b = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert not a.any()
    # a point is alpha times the noise, and E[alpha^2] = 1/3
    assert float(b.square().mean()) == pytest.approx(4 / 3, rel=0.1)
    for wrong in ((1.0,), (0.1, 0.2, 0.3)):
        with pytest.raises(axplain.ArgumentError, match=f"^stdev: {len(wrong)} values came"):
            axplain.explain(model, x, "gradient_shap", stdev=wrong, **arguments)


def test_gradient_shap_with_noise_keeps_its_mean_on_a_linear_model() -> None:
    weight, x, rows = _seeded(3, seed=1), _seeded(2, 3, seed=2), _seeded(5, 3, seed=3)
    found = axplain.explain(
        lambda features: features @ weight, x, "gradient_shap", baselines=rows, n_samples=4000, stdev=0.5
    )
    exact = weight * (x - rows.mean(0))
    assert bool(((found.attributions - exact).abs() <= 5 * found.standard_errors).all())
    spread = weight.abs() * (rows.var(0, unbiased=False) + 0.25).sqrt() / 4000**0.5
    torch.testing.assert_close(found.standard_errors, spread.expand(2, 3), rtol=0.05, atol=0)


def test_gradient_shap_says_what_it_used_when_no_baselines_are_given() -> None:
    model, x = _network(nn.Tanh(), 1), _seeded(2, 4)
    with pytest.warns(axplain.AxplainWarning, match="none was given: it uses the single reference zeros"):
        silent = axplain.explain(model, x, "gradient_shap")
    given = axplain.explain(model, x, "gradient_shap", baselines=torch.zeros(1, 4).double())
    assert torch.equal(silent.attributions, given.attributions)
