"""A batch equals one example at a time, and the size of a chunk changes nothing but memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]
BATCH = 5
SIZES: tuple[Any, ...] = (1, 2, 3, BATCH - 1, 7, 64, "auto")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def check_close(got: Any, expected: Any, dtype: torch.dtype, about: object) -> None:
    """Compare to a fraction of the largest value; structures are tuples or single tensors."""
    pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
    for left, right in pairs:
        error = float((left - right).abs().max() / right.abs().max())
        assert error <= TOLERANCE[dtype], f"{about}: off by {error:.1e} of the largest value"


def rows(item: Any, i: int) -> Any:
    """The i-th row of tensors that have one per example; anything else as it is."""
    if isinstance(item, dict):
        return {name: rows(value, i) for name, value in item.items()}
    if isinstance(item, tuple):
        return tuple(rows(value, i) for value in item)
    if isinstance(item, list):
        return item[i : i + 1]
    return item[i : i + 1] if isinstance(item, Tensor) and item.ndim and len(item) == BATCH else item


def plain(case: Case, draw: Make, dtype: torch.dtype) -> dict[str, Any]:
    """Predicted classes, one baseline."""
    return {"x": draw(BATCH, 4, dtype=dtype)}


def everything_follows(case: Case, draw: Make, dtype: torch.dtype) -> dict[str, Any]:
    """Targets, baselines, positional and keyword arguments of each example."""
    return {
        "x": (draw(BATCH, 3, dtype=dtype), draw(BATCH, 1, key=1, dtype=dtype)),
        "target": [2, 0, 1, 1, 0],
        "baselines": (draw(BATCH, 3, key=2, dtype=dtype), draw(1, 1, key=3, dtype=dtype)),
        "additional_forward_args": (draw(BATCH, 4, key=4, dtype=dtype), 2.0),
        "forward_kwargs": {"gain": draw(BATCH, key=5, dtype=dtype).abs() + 0.5, "offset": 0.3},
    }


def a_set_for_each(case: Case, draw: Make, dtype: torch.dtype) -> dict[str, Any]:
    """A distribution of baselines for every example."""
    return {
        "x": draw(BATCH, 4, dtype=dtype),
        "target": [(0, 1), (1, 0), (2, 1), (0, 0), (2, 0)],
        "baselines": axplain.distribution(0.2 * draw(3, 4, key=2, dtype=dtype)),
        "forward_kwargs": {"gain": draw(BATCH, key=5, dtype=dtype).abs() + 0.5},
        "verify": False,  # where F(x) and F(x') happen to be close, eight nodes leave a residual that is warned of
    }


def model_for(scenario: Any, network: Make, dtype: torch.dtype) -> Any:
    if scenario is a_set_for_each:
        return network(classes=6, depth=2, dtype=dtype)
    model = network(dtype=dtype)
    if scenario is everything_follows:
        return lambda a, b, shift, factor, **named: model(a, b, **named) * factor + shift[:, :3] * a
    return model


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scenario", [plain, everything_follows, a_set_for_each])
def test_chunk_size_does_not_matter(case: Case, network: Make, draw: Make, scenario: Any, dtype: torch.dtype) -> None:
    model, asked = model_for(scenario, network, dtype), scenario(case, draw, dtype)
    whole = case(model, **asked, batch_size=10_000)
    for size in SIZES if dtype == torch.float64 and scenario is not plain else (1, BATCH - 1, "auto"):
        parts = case(model, **asked, batch_size=size)
        check_close(parts.attributions, whole.attributions, dtype, f"batch_size={size}")
        most = case.estimate(model, **asked).forward_rows if whole.cost.bound == "upper" else whole.cost.forward_rows
        assert whole.cost.forward_rows <= parts.cost.forward_rows <= most and parts.target == whole.target
        if whole.standard_errors is not None:
            check_close(parts.standard_errors, whole.standard_errors, dtype, f"standard errors, batch_size={size}")
        if dtype == torch.float64:
            for name, values in whole.residuals.items():
                torch.testing.assert_close(parts.residuals[name], values, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("scenario", [plain, everything_follows, a_set_for_each])
def test_a_batch_equals_one_at_a_time(case: Case, network: Make, draw: Make, scenario: Any, dtype: torch.dtype) -> None:
    model, asked = model_for(scenario, network, dtype), scenario(case, draw, dtype)
    whole = case(model, **asked)
    for i in range(BATCH):
        per_example = {name: rows(item, i) for name, item in asked.items()}
        if case.baseline == "reference_set":  # a set is one for all examples
            per_example |= {name: item for name, item in asked.items() if name == "baselines"}
        one = case(model, **per_example)
        check_close(one.attributions, rows(whole.attributions, i), dtype, f"example {i}")


def test_a_batch_of_equal_examples_gets_equal_answers(case: Case, network: Make, draw: Make) -> None:
    x = draw(1, 4).expand(BATCH, 4)
    answer = case(network(), x, target=1, batch_size=3).attributions
    torch.testing.assert_close(answer, answer[:1].expand_as(answer), rtol=1e-12, atol=0)


def test_a_permuted_batch_gets_permuted_answers(case: Case, network: Make, draw: Make) -> None:
    model, x, target = network(), draw(BATCH, 4), torch.tensor([2, 0, 1, 1, 0])
    order = torch.tensor([3, 0, 4, 2, 1])
    straight = case(model, x, target=target, batch_size=2).attributions
    permuted = case(model, x[order], target=target[order], batch_size=2).attributions
    check_close(permuted, straight[order], torch.float64, "permuted")


def test_no_pass_has_more_rows_than_batch_size(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(BATCH, 4)
    for size in SIZES[:-1]:
        seen: list[int] = []

        def counting(rows: Tensor, seen: list[int] = seen) -> Any:
            seen.append(len(rows))
            return model(rows)

        case(counting, x, batch_size=size)
        assert max(seen) <= size, f"batch_size={size} and a pass of {max(seen)} rows"
