"""Times contenders in one process, in turns: a round asks each once, and only ratios within a round are compared.

Load of the machine and its clock change over seconds; they change all contenders of a round alike.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from tests.benchmarks.methods import ours
from tests.benchmarks.models import Rows, counting
from tests.benchmarks.removal import Answered
from tests.benchmarks.workloads import Bench, Contender

#: One measurement repeats its call until it lasts about this long, so that neither the clock's grain shows nor the
#: caches that the garbage collection before it left cold.
LEAST_SECONDS: Final = 0.1
MOST_REPEATS: Final = 100


@dataclass(frozen=True)
class Times:
    """Seconds of one call in each round: CPU time of the process, and wall time."""

    contender: Contender
    cpu: tuple[float, ...]
    wall: tuple[float, ...]

    def ratios(self, bare: Times) -> tuple[float, ...]:
        """Return CPU time as a multiple of the bare loop's, round by round."""
        return tuple(mine / its for mine, its in zip(self.cpu, bare.cpu, strict=True))

    def wall_ratios(self, bare: Times) -> tuple[float, ...]:
        """Return wall time as a multiple of the bare loop's, round by round."""
        return tuple(mine / its for mine, its in zip(self.wall, bare.wall, strict=True))

    def over(self, bare: Times, share: float = 1.10) -> float:
        """Return the median over rounds of the CPU seconds beyond `share` times the bare loop."""
        return statistics.median(mine - share * its for mine, its in zip(self.cpu, bare.cpu, strict=True))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    first, second, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, second, third


def interleave(
    bench: Bench, contenders: Sequence[Contender], seconds: float, rounds: tuple[int, int]
) -> dict[str, Times]:
    """Time every contender once per round, each round beginning with another one, for about `seconds` in all.

    `rounds`: the least and the most of them.
    """
    ours(bench.workload.method, bench.model, bench.x)  # measures the model's memory, once
    repeats = [_repeats(bench, contender) for contender in contenders]
    taken: list[list[tuple[float, float]]] = [[] for _ in contenders]
    began, (least, most) = time.perf_counter(), rounds
    for done in range(most):
        if done >= least and (time.perf_counter() - began) * (done + 1) / done > seconds:
            break
        for turn in range(len(contenders)):
            position = (turn + done) % len(contenders)
            taken[position].append(_seconds(bench, contenders[position], repeats[position]))
    return {
        contender.name: Times(contender, *(tuple(kind) for kind in zip(*pairs, strict=True)))
        for contender, pairs in zip(contenders, taken, strict=True)
    }


def keep_freed_memory() -> None:
    """Let the C library keep what is freed from now on: until a process has freed one large block, glibc gives memory
    back after each pass and faults it in again, which would charge whoever runs first.
    """
    torch.empty(2**25 - 2**17, dtype=torch.uint8)


def best_chunk(bench: Bench, make: Callable[[int], Contender], sizes: Sequence[int], turns: int) -> int:
    """Return the size with the least CPU time, the least of some turns; heavy workloads get one turn."""
    if len(sizes) == 1:
        return sizes[0]
    least = dict.fromkeys(sizes, float("inf"))
    repeats = {size: _repeats(bench, make(size)) for size in sizes}
    for _ in range(1 if bench.workload.heavy else turns):
        for size in sizes:
            least[size] = min(least[size], _seconds(bench, make(size), repeats[size])[0])
    return min(sizes, key=least.__getitem__)


def inspect(bench: Bench, chunk: int) -> tuple[Rows, float | None]:
    """Return the rows of one more axplain call, counted at the model, and how far its answer is from the bare loop's.

    The difference is a fraction of the largest value; methods that draw random numbers have none.
    """
    method = bench.workload.method
    with counting(bench.model) as rows:
        ours(method, bench.model, bench.x)  # looks anew at a model that has other hooks
        rows.forward = rows.backward = rows.largest = 0
        answer = ours(method, bench.model, bench.x)
    if method.sampled:
        return rows, None
    expected = method.bare(bench.model, bench.x, chunk)
    if isinstance(method, Answered):
        expected = method.answer(bench.x, expected)
    return rows, float((answer - expected).abs().max() / expected.abs().max())


def _repeats(bench: Bench, contender: Contender) -> int:
    """Warm up, then say how often one measurement calls; a heavy call warms itself up."""
    if bench.workload.heavy:
        return 1
    _seconds(bench, contender, 1)
    once = _seconds(bench, contender, 1)[0]
    return max(1, min(MOST_REPEATS, round(LEAST_SECONDS / max(once, 1e-6))))


def _seconds(bench: Bench, contender: Contender, repeats: int) -> tuple[float, float]:
    """Return CPU and wall seconds of one call, averaged over `repeats`."""
    calls = list(bench.calls(contender, repeats))
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    for call in calls:
        call()
    return (time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats
