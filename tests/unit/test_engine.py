"""How the engine cuts its work: blocks, ranges, chunk sizes from memory and not from timing."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import axplain
from axplain.engine import Engine
from axplain.guard import plain_mode
from axplain.memory import (
    CPU_BUDGET,
    CPU_LARGE_ROWS,
    CPU_LARGE_VALUES,
    CPU_MOST_ROWS,
    MIB,
    rows_within_budget,
    saved_bytes,
)
from axplain.model import Model
from axplain.problem import Arguments, Problem
from axplain.randomness import Key
from axplain.structure import Structure
from axplain.targets import OutputTarget


def problem(model: nn.Module, x: Tensor) -> Problem:
    structure = Structure("tensor", ("x",))
    return Problem(Model(model, structure), (x,), OutputTarget(), None, Arguments(), Key(0))


class Rows(nn.Module):
    """Remembers how many rows each pass had."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x.square().sum(1)


@pytest.mark.parametrize(
    ("per_row", "rows"),
    [
        (CPU_BUDGET // 100, 100),
        (1, CPU_MOST_ROWS),
        (0, CPU_MOST_ROWS),
        (21 * MIB, CPU_LARGE_ROWS),
        (100 * MIB, 2),
        (10_000 * MIB, 1),
    ],
)
def test_rows_follow_from_bytes_alone(per_row: int, rows: int) -> None:
    device = torch.device("cpu")
    assert rows_within_budget(per_row, device) == rows
    values = min(rows, max(CPU_BUDGET // max(per_row, 1), CPU_LARGE_VALUES))
    assert rows_within_budget(per_row, device, values=True) == values


def test_saved_bytes_count_each_storage_once() -> None:
    x = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    assert saved_bytes(lambda: x * x)[1] == 8000  # both factors are one storage
    assert saved_bytes(lambda: (x * 2.0).exp())[1] == 8000  # the result; the factor 2.0 is no tensor


@pytest.mark.parametrize(
    ("batch", "count", "size"), [(5, 7, 3), (5, 7, 5), (5, 7, 11), (5, 7, 100), (1, 50, 8), (7, 1, 2)]
)
def test_blocks_and_ranges_cover_every_pair_once_within_the_chunk(batch: int, count: int, size: int) -> None:
    engine, question = Engine(batch_size=size), problem(Rows(), torch.zeros(batch, 2))
    seen = []
    for index in engine.blocks(question, "gradient"):
        for samples in engine.samples(question.take(index), count, "gradient"):
            assert len(index) * len(samples) <= size
            seen += [(example, sample) for sample in samples for example in index.tolist()]
    assert sorted(seen) == [(example, sample) for example in range(batch) for sample in range(count)]


def test_a_number_of_rows_is_obeyed() -> None:
    model = Rows()
    axplain.explain(model, torch.randn(5, 2), batch_size=3, verify=False)
    assert max(model.seen) == 3


def test_the_automatic_size_is_measured_once_for_a_model_and_gives_the_same_bits_again() -> None:
    model, x = Rows(), torch.randn(2, 3)
    first = axplain.explain(model, x)
    passes = len(model.seen)
    second = axplain.explain(model, x)
    assert len(model.seen) - passes == passes - 2, "the two measuring passes are not repeated"
    assert torch.equal(first.attributions, second.attributions)


def test_values_run_without_a_graph_and_not_in_inference_mode() -> None:
    modes: list[tuple[bool, bool]] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            return x.sum(1)

    question = problem(Watched(), torch.ones(2, 3))
    with torch.inference_mode(), plain_mode():
        Engine(batch_size=2).ask(question, question.inputs, question.everyone(), "value")
        Engine(batch_size=2).ask(question, question.inputs, question.everyone(), "gradient")
    assert modes == [(False, False), (True, False)]
    assert torch.is_grad_enabled()


def test_progress_rises_to_the_total() -> None:
    steps: list[tuple[int, int]] = []
    axplain.explain(Rows(), torch.randn(4, 2), batch_size=10, progress=lambda done, total: steps.append((done, total)))
    assert [total for _, total in steps] == [200] * len(steps)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1] == (200, 200)


def test_what_a_callable_needs_for_values_is_not_taken_for_gradients() -> None:
    factors = [torch.full((100,), 1.01) for _ in range(30)]

    def callable_model(x: Tensor) -> Tensor:
        for factor in factors:
            x = (x * factor).exp().log()
        return x.sum(1)

    def rows(*needs: Literal["value", "gradient"]) -> int:
        asked = problem(callable_model, torch.rand(2, 100))  # type: ignore[arg-type]
        found = 0
        for need in needs:
            with plain_mode():
                found = Engine(most_rows=10_000).rows(asked, need)
        return found

    after_values = rows("value", "gradient")

    def callable_model_again(x: Tensor) -> Tensor:
        return callable_model(x)

    with plain_mode():
        fresh = Engine(most_rows=10_000).rows(problem(callable_model_again, torch.rand(2, 100)), "gradient")  # type: ignore[arg-type]
    assert after_values == fresh < CPU_MOST_ROWS
