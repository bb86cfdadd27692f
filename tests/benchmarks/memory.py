"""Peak memory of one call: how far the resident set of a fresh process grows while it runs.

The child imports everything, answers a tiny question with the same code, gives freed memory back to the system, and
only then resets the kernel's high-water mark and runs. Where there is no /proc (macOS) the growth of `ru_maxrss` is
taken instead: it misses what was freed before.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import torch

from tests.benchmarks.methods import IntegratedGradients
from tests.benchmarks.workloads import WORKLOADS, Bench, Contender, Workload, prepare


MIB: Final = 2**20
ROOT: Final = Path(__file__).parents[2]
#: Whether memory stays flat: the same question with 50, 500 and 5,000 steps.
STEPS: Final = tuple(Workload(f"ig{n}_cnn28_b1", "cnn28", 1, IntegratedGradients(n)) for n in (50, 500, 5000))


def peak_growth(workload: str, contender: str, chunk: int | None) -> float:
    """Return MiB, measured in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", workload, contender, str(chunk or 0)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return float(done.stdout)


def main(workload: str, contender: str, chunk: int) -> None:
    """Print the growth of this process in MiB."""
    torch.set_num_threads(1)
    question = next(w for w in (*WORKLOADS, *STEPS) if w.name == workload)
    warm, bench = prepare(_small(question)), prepare(question)
    _chosen(warm, contender, chunk).run(warm.model, warm.x)
    run = _chosen(bench, contender, chunk).run
    print(_growth(lambda: run(bench.model, bench.x)) / MIB)


def _small(workload: Workload) -> Workload:
    """Return the method on a single small input of the same kind, to import and set up what any call needs."""
    method: Any = workload.method
    tables = {name: value[:1, ..., :1] for name, value in vars(method).items() if isinstance(value, torch.Tensor)}
    return attrs.evolve(workload)


def _chosen(bench: Bench, contender: str, chunk: int) -> Contender:
    makers: dict[str, Callable[[], Contender]] = {
        "bare": lambda: bench.bare(chunk),
        "axplain": bench.ours,
        "captum": bench.captum,
        "captum best": lambda: bench.captum(chunk),
    }
    return makers[contender]()
