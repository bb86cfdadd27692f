"""IDGI: the paper's sum step by step, the ends of its path, and where a change has no gradient to go by."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import axplain
from axplain import AxplainWarning


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, BASE, W = seeded(3, 4), seeded(1, 4, seed=1), seeded(4, 5, seed=2)


def model(x: Tensor) -> Tensor:
    return (torch.tanh(x @ W) ** 2).sum(1) + x.prod(1)


def step_by_step(x: Tensor, base: Tensor, steps: int) -> Tensor:
    """One example, one point after the other."""
    points = [base + (x - base) * k / (steps - 1) for k in range(steps)]
    found = torch.zeros_like(x)
    for here, there in itertools.pairwise(points):
        leaf = here.clone().requires_grad_()
        value = model(leaf.unsqueeze(0))[0]
        (gradient,) = torch.autograd.grad(value, leaf)
        change = model(there.unsqueeze(0))[0] - value.detach()
        found += gradient**2 / (gradient**2).sum() * change
    return found


@pytest.mark.parametrize("steps", [2, 3, 17])
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_it_is_the_sum_over_steps(steps: int, batch_size: int) -> None:
    found = axplain.explain(model, X, "idgi", baselines=BASE, n_steps=steps, batch_size=batch_size)
    expected = torch.stack([step_by_step(x, BASE[0], steps) for x in X])
    torch.testing.assert_close(found.attributions, expected, rtol=1e-12, atol=1e-12)
    assert found.delta is not None and float(found.delta.abs().max()) < 1e-12, "the steps add up whatever their number"


def test_the_length_of_the_gradient_is_taken_over_all_inputs() -> None:
    parts = (X[:, :1], X[:, 1:])
    found = axplain.explain(lambda a, b: model(torch.cat([a, b], 1)), parts, "idgi", n_steps=9).attributions
    torch.testing.assert_close(torch.cat(found, 1), axplain.explain(model, X, "idgi", n_steps=9).attributions)


def test_a_step_whose_first_gradient_is_zero_goes_by_its_last() -> None:
    """relu(2 a + b - 1) from zero: of three points the first has no gradient, the others (2, 1)."""

    def dead(x: Tensor) -> Tensor:
        return torch.relu(2 * x[:, 0] + x[:, 1] - 1)

    x = torch.ones(1, 2, dtype=torch.float64)
    found = axplain.explain(dead, x, "idgi", n_steps=3)
    torch.testing.assert_close(found.attributions, torch.tensor([[4 / 5, 1 / 5]], dtype=torch.float64) * 2)


@pytest.mark.parametrize("batch_size", [1, 100])
def test_a_change_between_two_points_without_gradients_is_left_out_and_warned_of(batch_size: int) -> None:
    def ramp(x: Tensor) -> Tensor:
        return (torch.relu(x - 0.4) - torch.relu(x - 0.6)).sum(1)

    x = torch.ones(1, 2, dtype=torch.float64)
    with pytest.warns(AxplainWarning, match=r"idgi: .* raise n_steps"):
        found = axplain.explain(ramp, x, "idgi", n_steps=2, batch_size=batch_size)
    assert not found.attributions.any() and float(found.residuals["completeness"]) == pytest.approx(-0.4)
    again = axplain.explain(ramp, x, "idgi", n_steps=65, batch_size=batch_size)
    torch.testing.assert_close(again.attributions, torch.full_like(x, 0.2))


def test_tiny_gradients_are_not_lost_in_their_squares() -> None:
    found = axplain.explain(lambda x: 1e-200 * model(x), X, "idgi", n_steps=9, verify=False).attributions
    torch.testing.assert_close(found * 1e200, axplain.explain(model, X, "idgi", n_steps=9).attributions)


def test_at_a_layer_it_shares_what_the_layer_changes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    found = axplain.explain(network, X, "idgi", target=1, layer="1", n_steps=11)
    with torch.no_grad():
        hidden, absent = network[:2](X), network[:2](torch.zeros_like(X))
    expected = axplain.explain(network[2], hidden, "idgi", target=1, baselines=absent, n_steps=11)
    torch.testing.assert_close(found.attributions, expected.attributions)
    assert found.delta is not None and float(found.delta.abs().max()) < 1e-12
