"""Same seed, same bits; no global generator is read or moved; a drawn seed is recorded and reproduces."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy
import torch

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]


def test_the_same_call_gives_the_same_bits(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    first = case(model, x, batch_size=3)
    axplain.explain(model, x, "smoothgrad", n_samples=2, seed=1)  # nothing of a call may stay for the next one
    second = case(model, x, batch_size=3)
    fresh = case(network(), draw(5, 4), batch_size=3)
    for again in (second, fresh):
        assert torch.equal(first.attributions, again.attributions) and first.cost == again.cost
        assert all(torch.equal(first.residuals[name], again.residuals[name]) for name in first.residuals)


def test_global_generators_are_not_read(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    answers = []
    for seed in (1, 2):
        states = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        random.seed(seed)
        answers.append(case(model, x, target=1).attributions)
        torch.set_rng_state(states[0])
        numpy.random.set_state(states[1])
        random.setstate(states[2])
    assert torch.equal(*answers)


def test_seeds_matter_where_something_is_drawn_and_nowhere_else(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    one, other = (case(model, x, target=1, seed=seed).attributions for seed in (1, 2))
    assert torch.equal(one, other) == (not case.seeded)
    if case.seeded:
        assert bool((one != other).any(1).all()), "the draw of every example depends on the seed"


def test_a_numpy_seed_is_a_seed(seeded_case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    plain = seeded_case(model, x, target=1, seed=11)
    same = seeded_case(model, x, target=1, seed=numpy.int64(11))
    assert torch.equal(plain.attributions, same.attributions) and same.provenance["seed"] == 11


def test_a_seed_that_is_none_is_drawn_recorded_and_reproduces(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    first, second = case(model, x, target=1, seed=None), case(model, x, target=1, seed=None)
    seed = first.provenance["seed"]
    assert isinstance(seed, int) and seed != second.provenance["seed"]
    assert torch.equal(case(model, x, target=1, seed=seed).attributions, first.attributions)
    assert torch.equal(first.attributions, second.attributions) == (not case.seeded)


def test_a_drawn_seed_does_not_follow_the_global_generators(network: Make, draw: Make) -> None:
    seeds = set()
    for _ in range(3):
        state = torch.get_rng_state()
        torch.manual_seed(0)
        random.seed(0)
        seeds.add(axplain.explain(network(), draw(5, 4), "saliency", seed=None).provenance["seed"])
        torch.set_rng_state(state)
    assert len(seeds) == 3


def test_samples_differ_from_one_another(seeded_case: Case, network: Make, draw: Make) -> None:
    """A method that drew every sample alike would have no spread and would not change with their number."""
    model, x = network(), draw(5, 4)
    answers = []
    for n in (2, 4):
        samples: dict[str, Any] = {"n_samples": n}
        given = {"noise": {"mode": seeded_case.noise, "stdev": 0.1, **samples}} if seeded_case.noise else samples
        answers.append(seeded_case(model, x, target=1, **given).attributions)
    assert bool((answers[0] != answers[1]).any(1).all())
