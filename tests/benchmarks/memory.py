"""Peak memory of one call: how far the resident set of a fresh process grows while it runs.

The child imports everything, runs one row of the model and a tiny question through both libraries, gives freed memory
back to the system, resets the kernel's high-water mark, and only then makes the call. Where there is no /proc (macOS)
the growth of `ru_maxrss` is taken instead, which misses whatever was used and freed before.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from tests.benchmarks.methods import IntegratedGradients, gradient, nodes_and_weights, ours
from tests.benchmarks.models import build, examples
from tests.benchmarks.removal import Removal, ShapleySampling, made_points
from tests.benchmarks.workloads import WORKLOADS, Bench, Contender, Workload, prepare

MIB: Final = 2**20
ROOT: Final = Path(__file__).parents[2]
#: Does memory stay flat as steps grow, and as orders do?
STEPS: Final = (
    *(Workload(f"ig{n}_cnn28_b1", "cnn28", 1, IntegratedGradients(n)) for n in (50, 500, 5000)),
    *(Workload(f"shapley{n}_cnn28seg50_b1", "cnn28", 1, ShapleySampling(50, 28, samples=n)) for n in (25, 250)),
)


def peak_growth(workload: Workload, contender: Contender) -> float:
    """Return MiB, measured in a fresh process."""
    arguments = [workload.name, contender.name, str(contender.chunk or 0)]
    command = [sys.executable, "-m", "tests.benchmarks.memory", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return float(done.stdout)


def main(workload: str, contender: str, chunk: int) -> None:
    """Print the growth of this process in MiB."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    bench = prepare(next(question for question in (*WORKLOADS, *STEPS) if question.name == workload))
    run = _contender(bench, contender, chunk).run
    _warm_up(bench, contender)
    print(_growth(lambda: run(bench.model, bench.x)) / MIB)


def _contender(bench: Bench, name: str, chunk: int) -> Contender:
    makers: dict[str, Callable[[], Contender]] = {
        "bare": lambda: bench.bare(chunk),
        "axplain": bench.ours,
        "captum": bench.captum,
        "captum best": lambda: bench.captum(chunk),
    }
    if name not in makers:
        return next(other for other in bench.others() if other.name == name)
    return makers[name]()


def _warm_up(bench: Bench, contender: str) -> None:
    gradient(bench.model, bench.x[:1].clone())
    model, x, method = build("mlp20"), examples("mlp20", 1), IntegratedGradients(2)
    ours(method, model, x)
    method.captum(model, x, None)
    if isinstance(bench.workload.method, IntegratedGradients):
        nodes_and_weights(bench.workload.method.rows)  # numpy takes a large matrix for them; the bare loop keeps them
    if contender == "bare" and isinstance(bench.workload.method, Removal):
        made_points(bench.workload.method, bench.x)  # the bare passes have their rows made beforehand


def _growth(run: Callable[[], object]) -> int:
    """Return how many bytes the peak of the resident set lies above where it was before the run."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present size
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Return a size from the kernel's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
