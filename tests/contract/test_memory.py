"""Memory bounds a chunk and never an answer: passes stay small, and running out of memory halves them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]


def cuda_error(rows: int) -> BaseException:
    return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {rows} rows.")


def cpu_error(rows: int) -> BaseException:
    return RuntimeError(
        f"[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate {rows} bytes."
    )


@attrs.define(eq=False)
class Small:
    """A model on a machine where more than `room` rows at once run out of memory."""

    model: nn.Module
    room: int
    error: Callable[[int], BaseException]
    refused: int = 0

    def __call__(self, x: Tensor, **named: Any) -> Any:
        if len(x) > self.room:
            self.refused += 1
            raise self.error(len(x))
        return self.model(x, **named)


@pytest.mark.parametrize("target", [[2, 0, 1, 1, 0], None], ids=["given", "predicted"])
@pytest.mark.parametrize("batch_size", [64, "auto"])
def test_running_out_of_memory_halves_the_chunk_and_goes_on(
    case: Case, network: Make, draw: Make, target: Any, batch_size: Any
) -> None:
    model, x = network(), draw(5, 4)
    expected = case(model, x, target=target)
    for room, error in ((4, cuda_error), (2, cpu_error), (1, cuda_error)):
        small = Small(model, room, error)
        answer = case(small, x, target=target, batch_size=batch_size)
        torch.testing.assert_close(answer.attributions, expected.attributions, rtol=1e-9, atol=1e-12)
        assert answer.target == expected.target and small.refused >= 1
        upper = case.estimate(model, x, target=target).forward_rows
        most = upper if answer.cost.bound == "upper" else expected.cost.forward_rows
        assert expected.cost.forward_rows <= answer.cost.forward_rows <= most, "rows that were refused are not counted"


def test_a_chunk_that_ran_out_is_not_tried_again(case: Case, network: Make, draw: Make) -> None:
    small = Small(network(), 3, cpu_error)
    case(small, draw(8, 4), target=1, batch_size=8)
    assert small.refused <= 4, "at most twice for gradients and twice for values: 8 rows, then 4"


@pytest.mark.parametrize("target", [1, None], ids=["given", "predicted"])
@pytest.mark.parametrize("batch_size", [64, "auto"])
def test_a_single_row_that_does_not_fit_is_said(
    case: Case, network: Make, draw: Make, unchanged: Make, target: Any, batch_size: Any
) -> None:
    model, x = network(), draw(5, 4)
    for error in (cuda_error, cpu_error):
        with unchanged(model, x), pytest.raises(axplain.UnsupportedModel, match="memory"):
            case(Small(model, 0, error), x, target=target, batch_size=batch_size)


def test_other_errors_of_the_model_come_through_as_they_are(case: Case, network: Make, draw: Make) -> None:
    with pytest.raises(RuntimeError, match="kernel of my own"):
        case(Small(network(), 0, lambda rows: RuntimeError("kernel of my own")), draw(5, 4), target=1)


def test_integrated_gradients_never_asks_for_more_rows_because_it_has_more_steps(network: Make, draw: Make) -> None:
    model, x = network(dtype=torch.float32), draw(3, 4, dtype=torch.float32)
    largest: dict[int, list[int]] = {}

    for steps in (50, 5000):
        rows = largest.setdefault(steps, [])

        def counting(x: Tensor, rows: list[int] = rows) -> Any:
            rows.append(len(x))
            return model(x)

        axplain.explain(counting, x, "integrated_gradients", target=0, n_steps=steps, batch_size=48)
    assert max(largest[50]) == 43, "four chunks of even size: 13 nodes of three examples, and the rows of the check"
    assert max(largest[5000]) == 48
    assert sum(largest[5000]) > 15_000


def test_automatic_chunks_are_bounded_however_many_samples_are_asked(network: Make, draw: Make) -> None:
    model, x = network(features=4096, dtype=torch.float32), draw(2, 4096, dtype=torch.float32)
    sizes: list[int] = []

    def counting(x: Tensor) -> Any:
        sizes.append(len(x))
        return model(x)

    axplain.explain(counting, x, "gradient_shap", target=0, n_samples=1500, baselines=0.0)
    assert sum(sizes) >= 3000
    assert max(sizes) * 4096 * 4 <= 32 * 2**20, "inputs alone stay within 32 MiB a pass"


def test_gradients_of_earlier_passes_are_let_go(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(2, 4)
    gradients: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watching(x: Tensor) -> Any:
        alive.append(sum(reference() is not None for reference in gradients))
        if x.requires_grad:
            x.register_hook(lambda gradient: gradients.append(weakref.ref(gradient)))  # type: ignore[no-untyped-call]
        return model(x)

    answer = case(watching, x, target=1, batch_size=1, verify=False)
    assert len(gradients) == answer.cost.backward_rows
    assert max(alive) <= 2, "the pass before may still hold its own, no other"
