"""Rows are counted at the model, and the price that a spec states is the price that is paid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]
BATCH = 5
TARGETS: dict[str, Any] = {
    "predicted": None,
    "one for all": 1,
    "one each": [2, 0, 1, 1, 0],
    "callable": lambda output: output[:, 0],
}


@attrs.define(eq=False)
class Counter:
    """Counts the rows of every pass, those that a gradient follows apart; it belongs to the tests alone."""

    model: nn.Module
    forward: int = 0
    with_graph: int = 0
    largest: int = 0

    def __call__(self, x: Tensor, **named: Any) -> Any:
        self.forward += len(x)
        self.largest = max(self.largest, len(x))
        if torch.is_grad_enabled() and x.requires_grad:
            self.with_graph += len(x)
        return self.model(x, **named)


def warm(counter: Counter, run: Callable[[], Any]) -> Any:
    """Run twice and count the second time: rules look once at how a model lays out its rows."""
    run()
    counter.forward = counter.with_graph = 0
    return run()


def check(counter: Counter, cost: axplain.Cost, price: axplain.Cost) -> None:
    assert counter.forward == cost.forward_rows + cost.check_rows
    riding = counter.with_graph - cost.backward_rows  # rows of the check that save a pass of their own
    assert 0 <= riding <= cost.check_rows
    assert cost.bound == price.bound
    if price.bound == "exact":
        assert (cost.forward_rows, cost.backward_rows) == (price.forward_rows, price.backward_rows)
    assert cost.forward_rows <= price.forward_rows and cost.backward_rows <= price.backward_rows
    assert cost.check_rows <= price.check_rows


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
def test_counted_rows_are_the_rows_of_the_model(case: Case, network: Make, draw: Make, verify: bool) -> None:
    model, x = network(), draw(BATCH, 4)
    for name, target in TARGETS.items():
        for size in (1, 3, 64) if name == "one each" else (3,):
            counter, given = Counter(model), {"target": target, "verify": verify, "batch_size": size}
            answer = warm(counter, partial(case, counter, x, **given))
            check(counter, answer.cost, case.estimate(model, x, **given))
            if not verify:
                assert answer.cost.check_rows == (BATCH if target is None else 0)


def test_rows_of_the_check_are_spent_only_where_something_is_checked(case: Case, network: Make, draw: Make) -> None:
    answer = case(network(), draw(BATCH, 4), target=1)
    assert answer.residuals or not answer.cost.check_rows
    assert answer.cost.check_rows or case.knows_ends or not answer.residuals, "who knows both ends anyway pays nothing"


@pytest.mark.parametrize("count", [1, 3])
def test_sets_of_baselines_are_counted(baseline_case: Case, network: Make, draw: Make, count: int) -> None:
    x, baselines = draw(BATCH, 4), axplain.distribution(0.3 * draw(count, 4, key=1))
    for target, sizes in ((None, (64,)), ([0, 1, 2, 2, 1], (2, 64))):
        for size in sizes:
            counter, given = Counter(network()), {"target": target, "baselines": baselines, "batch_size": size}
            answer = warm(counter, partial(baseline_case, counter, x, **given))
            check(counter, answer.cost, baseline_case.estimate(counter.model, x, **given))


def test_baselines_of_each_example_and_following_arguments_are_counted(
    baseline_case: Case, network: Make, draw: Make
) -> None:
    x = draw(BATCH, 4)
    given = {"baselines": draw(BATCH, 4, key=1), "forward_kwargs": {"gain": draw(BATCH, key=2)}, "verify": True}
    for size in (2, 64):
        counter = Counter(network())
        answer = warm(counter, partial(baseline_case, counter, x, target=1, batch_size=size, **given))
        check(counter, answer.cost, baseline_case.estimate(counter.model, x, target=1, batch_size=size, **given))


def test_automatic_chunks_cost_one_measurement_of_five_rows_per_model(case: Case, network: Make, draw: Make) -> None:
    x, model = draw(BATCH, 4), network()
    first, second = Counter(model), Counter(model)
    answer = case(first, x, target=1)
    compares = case.by_rules and case.baseline != "none"
    once = 5 + (3 if compares else 0)  # sets that compare also look at a pass of one row and at one of two
    assert first.forward - answer.cost.forward_rows - answer.cost.check_rows == once
    again = case(first, x, target=1)
    assert again.cost == answer.cost
    assert first.forward == 2 * (answer.cost.forward_rows + answer.cost.check_rows) + once, "measured once per model"
    case(second, x[:1], target=1)
    alone = case(second, x[:1], target=1, batch_size=1).cost
    assert alone.backward_rows == answer.cost.backward_rows // BATCH
    if answer.cost.bound == "exact":
        assert alone.forward_rows == answer.cost.forward_rows // BATCH
    assert alone.forward_rows <= case.estimate(second, x[:1], target=1, batch_size=1).forward_rows


def test_a_price_runs_nothing(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    counter, x = Counter(network()), draw(BATCH, 4)
    with unchanged(counter.model, x):
        price = case.estimate(counter, x)
    assert counter.forward == 0 and price.forward_rows >= BATCH and price.bound in ("exact", "upper")
    assert isinstance(price, axplain.Cost) and type(price.forward_rows) is int


def test_the_price_of_examples_adds_up(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(BATCH, 4)
    whole, one = (case.estimate(model, part, target=1, verify=False) for part in (x, x[:1]))
    assert whole.forward_rows == BATCH * one.forward_rows and whole.backward_rows == BATCH * one.backward_rows


def test_progress_goes_up_to_the_price_and_ends_there(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(BATCH, 4)
    for size in (1, 3, 64, "auto"):
        calls: list[tuple[int, int]] = []
        answer = case(model, x, batch_size=size, progress=lambda done, total, calls=calls: calls.append((done, total)))
        done = [done for done, _ in calls]
        price = case.estimate(model, x, batch_size=size)
        allowed = {answer.cost.forward_rows} | ({price.forward_rows} if price.bound == "upper" else set())
        assert {total for _, total in calls} <= allowed and calls[-1][1] == answer.cost.forward_rows
        assert done == sorted(done) and done[0] >= 1 and done[-1] == answer.cost.forward_rows


def test_a_progress_bar_is_drawn_and_changes_nothing(
    case: Case, network: Make, draw: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    model, x = network(), draw(BATCH, 4)
    quiet, shown = case(model, x, target=1), case(model, x, target=1, progress=True)
    assert torch.equal(quiet.attributions, shown.attributions)
    assert f"{quiet.cost.forward_rows}/{quiet.cost.forward_rows}" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*tolerance=1e-12 was not reached:axplain.AxplainWarning")
@pytest.mark.parametrize("tolerance", [1e-1, 1e-4, 1e-12])
def test_refining_costs_at_most_its_price(network: Make, draw: Make, tolerance: float) -> None:
    able = [name for name in axplain.methods() if (c := axplain.describe(name).composition) and c.refinement]
    assert "integrated_gradients" in able
    x = draw(BATCH, 4)
    for name in able:
        counter = Counter(network())
        given: dict[str, Any] = {"target": 1, "tolerance": tolerance, "batch_size": 7, "max_steps": 60}
        answer = axplain.explain(counter, x, name, **given)
        price = axplain.estimate(counter.model, x, name, **given)
        assert price.bound == answer.cost.bound == "upper"
        check(counter, answer.cost, price)
