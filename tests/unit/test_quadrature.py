"""The quadrature rules of the straight path, against numpy's nodes and the moments of the unit interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import axplain
from axplain_plugins.path.straight_path import nodes_and_weights

RULES = ["gauss_legendre", "left", "right", "midpoint", "trapezoid"]
EVENLY = {"left": 1, "right": 1, "midpoint": 2, "trapezoid": 2}  # rule -> order of its error


def _integral(rule: str, n: int, values: Tensor | None = None, power: int = 0) -> float:
    """Return the rule's integral of x ** power, summed without rounding of its own."""
    nodes, weights = nodes_and_weights(rule, n)
    values = nodes**power if values is None else values
    return math.fsum((weights * values).tolist())


@pytest.mark.parametrize("rule", RULES)
def test_weights_are_double_and_sum_to_one_for_every_n(rule: str) -> None:
    for n in [*range(2 if rule == "trapezoid" else 1, 201), 5000]:
        nodes, weights = nodes_and_weights(rule, n)
        assert nodes.dtype == weights.dtype == torch.float64
        assert nodes.shape == weights.shape == (n,)
        assert abs(math.fsum(weights.tolist()) - 1) <= 1e-15, n


@pytest.mark.parametrize("rule", RULES)
def test_nodes_lie_in_order_inside_the_interval_with_positive_weights(rule: str) -> None:
    for n in (2, 3, 50, 200, 5000):
        nodes, weights = nodes_and_weights(rule, n)
        assert bool((nodes.diff() > 0).all())
        assert 0 <= float(nodes[0]) < float(nodes[-1]) <= 1
        assert bool((weights > 0).all())


@pytest.mark.parametrize("rule", ["gauss_legendre", "midpoint", "trapezoid"])
def test_symmetric_rules_are_symmetric(rule: str) -> None:
    for n in (2, 3, 7, 50, 201):
        nodes, weights = nodes_and_weights(rule, n)
        torch.testing.assert_close(nodes + nodes.flip(0), torch.ones(n).double(), rtol=0, atol=1e-15)
        torch.testing.assert_close(weights, weights.flip(0), rtol=0, atol=1e-15)


def test_the_ends_belong_to_the_rules_that_are_named_after_them() -> None:
    ends = {
        rule: (float(nodes_and_weights(rule, 8)[0][0]), float(nodes_and_weights(rule, 8)[0][-1])) for rule in EVENLY
    }
    assert ends == {"left": (0.0, 7 / 8), "right": (1 / 8, 1.0), "midpoint": (1 / 16, 15 / 16), "trapezoid": (0.0, 1.0)}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 16, 33, 64])
def test_gauss_legendre_is_exact_below_twice_its_nodes_and_not_beyond(n: int) -> None:
    for power in range(2 * n):
        assert _integral("gauss_legendre", n, power=power) == pytest.approx(1 / (power + 1), abs=1e-15, rel=1e-14)
    if n <= 8:  # beyond that the error of the next power is below rounding
        assert abs(_integral("gauss_legendre", n, power=2 * n) - 1 / (2 * n + 1)) > 1e-12


@pytest.mark.parametrize("n", [2, 5, 17, 50])
@pytest.mark.parametrize("rule", EVENLY)
def test_even_rules_are_exact_below_their_order_and_not_at_it(rule: str, n: int) -> None:
    order = EVENLY[rule]
    for power in range(order):
        assert _integral(rule, n, power=power) == pytest.approx(1 / (power + 1), abs=1e-15)
    assert abs(_integral(rule, n, power=order) - 1 / (order + 1)) > 1e-2 / n**order


def test_gauss_legendre_agrees_with_numpy() -> None:
    for n in range(1, 201):
        nodes, weights = nodes_and_weights("gauss_legendre", n)
        expected_nodes, expected_weights = np.polynomial.legendre.leggauss(n)
        assert float(np.abs(nodes.numpy() - (1 + expected_nodes) / 2).max()) <= 1e-14, n
        assert float(np.abs(weights.numpy() - expected_weights / 2).max()) <= 1e-14, n


def test_many_gauss_legendre_nodes_integrate_what_their_number_allows() -> None:
    """5,000 nodes: numpy would need the eigenvalues of a matrix of that size, so known integrals judge."""
    nodes, _ = nodes_and_weights("gauss_legendre", 5000)
    assert _integral("gauss_legendre", 5000, nodes**9999) == pytest.approx(1e-4, rel=1e-9)
    assert _integral("gauss_legendre", 5000, torch.cos(3000 * nodes)) == pytest.approx(math.sin(3000) / 3000, abs=1e-13)
    assert _integral("gauss_legendre", 5000, nodes.sqrt()) == pytest.approx(2 / 3, abs=1e-11)


def _error(rule: str, n: int) -> float:
    nodes, _ = nodes_and_weights(rule, n)
    return abs(_integral(rule, n, nodes.exp()) - (math.e - 1))


@pytest.mark.parametrize("rule", EVENLY)
def test_errors_shrink_with_the_order_of_the_rule(rule: str) -> None:
    """Pieces of the interval count, so the trapezoid rule, which has both ends, takes one node more."""
    extra = 1 if rule == "trapezoid" else 0
    for n in (16, 64, 256):
        observed = math.log(_error(rule, n + extra) / _error(rule, 4 * n + extra), 4)
        assert observed == pytest.approx(EVENLY[rule], abs=0.05)


def test_the_error_of_gauss_legendre_falls_faster_than_any_power() -> None:
    errors = [_error("gauss_legendre", n) for n in (1, 2, 3, 4, 5)]
    steps = [before / after for before, after in itertools.pairwise(errors)]
    assert all(later > earlier for earlier, later in itertools.pairwise(steps))
    assert _error("gauss_legendre", 8) <= 1e-15


def test_one_trapezoid_node_is_refused_and_the_argument_named() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"^n_steps: 1 came with quadrature='trapezoid'.*at least 2"):
        axplain.explain(lambda x: x.sum(1), torch.ones(1, 2), n_steps=1, quadrature="trapezoid")
    with pytest.raises(axplain.ArgumentError, match=r"^quadrature: 'simpson'.*gauss_legendre"):
        axplain.explain(lambda x: x.sum(1), torch.ones(1, 2), quadrature="simpson")
