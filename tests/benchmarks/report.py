"""What a run says: aligned tables of at most 120 columns for people, CSV files with everything for programs."""

from __future__ import annotations

import csv
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from tests.benchmarks.measurement import Times, quartiles
from tests.benchmarks.models import Rows
from tests.benchmarks.workloads import Workload

#: What `explain` may cost beyond the bare loop: 10 % of it, and this many seconds per call.
GOAL_SECONDS: Final = 1e-3

LEGEND: Final = """\
rows     forward + backward rows of one axplain call, counted at the model; the method itself needs the first number
bare     CPU ms of the hand-written loop of passes, at the best of the tried chunk sizes (k)
axplain  CPU time as a multiple of bare: the median of the ratios of each round; the CSV has quartiles and wall time
new      the first call on a model, which measures how much memory a row takes
over     CPU ms beyond 1.10 x bare; the goal is at most 1 ms;  diff: largest difference to bare / its largest value
captum   captum 0.9 by default;  best: at the best of the tried internal batch sizes (k), where it takes one
shap     shap 0.51, where it does the same; a method that asks for values alone has no backward rows
zennit   zennit 0.5, where it is installed and does the same"""


@dataclass(frozen=True)
class Result:
    """Everything that was measured about one workload."""

    workload: Workload
    times: Mapping[str, Times]
    rows: Rows
    difference: float | None

    @property
    def bare(self) -> Times:
        """The hand-written loop."""
        return self.times["bare"]


def machine() -> str:
    """Return what the figures depend on, on one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("axplain", "torch", "captum", "shap"))
    return (
        f"{versions}, Python {platform.python_version()}, {platform.machine()}, {torch.get_num_threads()} torch thread"
    )


def times_table(results: Sequence[Result]) -> str:
    """Return one line per workload."""
    header = [
        "workload",
        "rows",
        "bare",
        "(k)",
        "axplain",
        "new",
        "over",
        "diff",
        "captum",
        "best",
        "(k)",
        "shap",
        "zennit",
    ]
    return _aligned([header, *(_times_line(result) for result in results)])


def _times_line(result: Result) -> tuple[str, ...]:
    bare, mine = result.bare, result.times["axplain"]
    best = result.times.get("captum best")
    return (
        result.workload.name,
        f"{result.rows.forward}+{result.rows.backward}",
        f"{middle(bare.cpu) * 1e3:.2f}",
        f"({bare.contender.chunk})",
        f"{middle(mine.ratios(bare)):.2f}x",
        _ratio(result, "new model"),
        f"{mine.over(bare) * 1e3:+.2f}" + ("" if mine.over(bare) <= GOAL_SECONDS else " !"),
        "" if result.difference is None else f"{result.difference:.0e}",
        _ratio(result, "captum"),
        _ratio(result, "captum best"),
        f"({best.contender.chunk})" if best else "",
        _ratio(result, "shap"),
        _ratio(result, "zennit"),
    )


def _ratio(result: Result, name: str) -> str:
    times = result.times.get(name)
    return f"{middle(times.ratios(result.bare)):.2f}x" if times else ""


def memory_table(grown: Mapping[str, Mapping[str, float]]) -> str:
    """Return peak growth in MiB, one line per workload, one column per contender."""
    names = list(dict.fromkeys(name for peaks in grown.values() for name in peaks))
    lines = [
        (workload, *(f"{peaks[name]:.1f}" if name in peaks else "" for name in names))
        for workload, peaks in grown.items()
    ]
    return _aligned([("workload", *names), *lines])


def chunk_table(model: str, seconds: Mapping[str, Sequence[float]], rows: int) -> str:
    """Return CPU ms per row by batch size, and each as a multiple of the best."""
    medians = {size: middle(values) for size, values in seconds.items()}
    best = min(medians.values())
    lines = [
        (model if i == 0 else "", size, f"{value / rows * 1e3:.4f}", f"{value / best:.2f}x")
        for i, (size, value) in enumerate(medians.items())
    ]
    return _aligned([("model", "batch_size", "ms per row", "of best"), *lines])


def write_times(path: Path, results: Sequence[Result]) -> None:
    """Write one row per workload and contender."""
    header = [
        "workload",
        "contender",
        "chunk",
        "rounds",
        "cpu_ms",
        "wall_ms",
        "cpu_ratio_q1",
        "cpu_ratio",
        "cpu_ratio_q3",
        "wall_ratio",
        "over_110_percent_ms",
        "forward_rows",
        "backward_rows",
        "largest_pass",
        "difference",
    ]
    lines = [[r.workload.name, name, *_figures(r, times)] for r in results for name, times in r.times.items()]
    _write(path, header, lines)


def _figures(result: Result, times: Times) -> list[Any]:
    rows, bare = result.rows, result.bare
    own = [rows.forward, rows.backward, rows.largest, result.difference]
    ratios = [*quartiles(times.ratios(bare)), middle(times.wall_ratios(bare))]
    figures = [middle(times.cpu) * 1e3, middle(times.wall) * 1e3, *ratios, times.over(bare) * 1e3]
    return [
        times.contender.chunk,
        len(times.cpu),
        *(f"{figure:.4f}" for figure in figures),
        *(own if times.contender.name == "axplain" else [None] * len(own)),
    ]


def write_memory(path: Path, grown: Mapping[str, Mapping[str, float]]) -> None:
    """Write one row per workload and contender."""
    lines = [[work, name, f"{peak:.2f}"] for work, peaks in grown.items() for name, peak in peaks.items()]
    _write(path, ["workload", "contender", "peak_growth_mib"], lines)


def write_chunks(path: Path, lines: Sequence[Sequence[Any]]) -> None:
    """Write one row per model and batch size."""
    _write(path, ["model", "batch_size", "cpu_ms_per_row"], lines)


def _write(path: Path, header: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *lines])


def middle(values: Sequence[float]) -> float:
    """Return the median."""
    return quartiles(values)[1]


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, numbers to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        " ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
