"""Compare axplain with the bare loop of model passes, with captum, shap and zennit: `python -m tests.benchmarks`.

One process, one torch thread, contenders in turns; nothing here asserts a time. Tables go to the terminal, progress to
stderr, CSV files to tests/benchmarks/output. Peak memory is measured in fresh processes.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from tests.benchmarks import report
from tests.benchmarks.chunks import SIZES, chunk_seconds
from tests.benchmarks.measurement import best_chunk, inspect, interleave, keep_freed_memory
from tests.benchmarks.memory import STEPS, peak_growth
from tests.benchmarks.workloads import WORKLOADS, Contender, Workload, prepare

OUTPUT: Final = Path(__file__).parent / "output"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line asks for."""
    options = _options(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore")  # random weights: F(x) - F(x') is near zero, so relative residuals mean nothing
    chosen = [w for w in WORKLOADS if _wanted(w.name, options.only) and (w.quick or not options.quick)]
    if not chosen:
        raise SystemExit(f"no workload matches; there are: {', '.join(w.name for w in WORKLOADS)}")
    began = time.perf_counter()
    print(report.machine())
    results = [_measure(workload, options) for workload in chosen]
    print(f"\n{report.times_table(results)}\n\n{report.LEGEND}")
    report.write_times(options.output / "times.csv", results)
    if options.memory:
        _memory(results, options)
    if options.chunks:
        _chunks(options)
    _tell(f"{time.perf_counter() - began:.0f} s; CSV files in {options.output}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument(
        "--quick", action="store_true", help="under three minutes: fewer rounds, fewer workloads, little memory"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="workloads whose name contains NAME; may be repeated"
    )
    parser.add_argument("--seconds", type=float, help="time for the rounds of one workload (default 20, quick 1)")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave out peak memory")
    parser.add_argument("--chunks", action="store_true", help='also compare batch_size="auto" with fixed sizes')
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the CSV files")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (1.0 if options.quick else 20.0)
    return options


def _wanted(name: str, only: Sequence[str] | None) -> bool:
    return not only or any(part in name for part in only)


def _measure(workload: Workload, options: argparse.Namespace) -> report.Result:
    bench, method = prepare(workload), workload.method
    sizes = workload.chunks(few=options.quick)
    turns = 1 if options.quick else 3
    _tell(f"{workload.name}: chunk sizes")
    chunk = best_chunk(bench, bench.bare, sizes, turns)
    contenders: list[Contender] = [bench.bare(chunk), bench.ours(), *bench.others()]
    if bench.captum_runs:
        contenders.append(bench.captum())
    if bench.captum_runs and method.captum_chunks:
        contenders.append(bench.captum(best_chunk(bench, bench.captum, sizes, turns)))
    if not options.quick:
        contenders.append(bench.ours(renew=True))
    _tell(f"{workload.name}: rounds")
    times = interleave(bench, contenders, options.seconds, (3, 5 if workload.heavy else 40))
    _tell(f"{workload.name}: rows")
    return report.Result(workload, times, *inspect(bench, chunk))


def _memory(results: Sequence[report.Result], options: argparse.Namespace) -> None:
    """Measure peaks: of axplain by number of steps, and in a full run of every contender of every workload."""
    grown: dict[str, dict[str, float]] = {}
    for workload in STEPS[-2:] if options.quick else STEPS:
        bench = prepare(workload)
        grown[workload.name] = {}
        for contender in [bench.bare(64), bench.ours()]:
            _tell(f"{workload.name}: memory of {contender.name}")
            grown[workload.name][contender.name] = peak_growth(workload, contender)
    for result in [] if options.quick else results:
        grown.setdefault(result.workload.name, {})
        for name, times in result.times.items():
            if name != "new model":
                _tell(f"{result.workload.name}: memory of {name}")
                grown[result.workload.name][name] = peak_growth(result.workload, times.contender)
    print("\nPeak growth of the resident set in one call, MiB, each in a fresh process")
    print(report.memory_table(grown))
    report.write_memory(options.output / "memory.csv", grown)


def _chunks(options: argparse.Namespace) -> None:
    lines: list[tuple[str, str, str]] = []
    for name, (steps, _) in SIZES.items():
        rounds = (2 if options.quick else 5) if name == "resnet18" else (5 if options.quick else 20)
        seconds = chunk_seconds(name, rounds, _tell)
        print(f"\n{report.chunk_table(name, seconds, steps)}")
        lines += [(name, size, f"{report.middle(values) / steps * 1e3:.5f}") for size, values in seconds.items()]
    report.write_chunks(options.output / "chunks.csv", lines)


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
