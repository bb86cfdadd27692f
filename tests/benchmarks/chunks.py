"""Is `batch_size="auto"` a good choice? Integrated gradients of one example at many sizes, in turns, beside "auto"."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from tests.benchmarks.methods import IntegratedGradients, ours
from tests.benchmarks.models import build, counting, examples

#: Model -> steps, and the sizes to try.
SIZES: Final[dict[str, tuple[int, tuple[int, ...]]]] = {
    "mlp20": (8192, (64, 256, 1024, 2048, 4096, 8192)),
    "cnn28": (512, (8, 16, 32, 64, 96, 128, 192, 256, 512)),
    "resnet18": (16, (1, 2, 4, 8, 16)),
}


def chunk_seconds(name: str, rounds: int, tell: Callable[[str], None]) -> dict[str, list[float]]:
    """Return CPU seconds of one call in each round, by batch size; "auto" says how many rows it took."""
    steps, sizes = SIZES[name]
    model, x, method = build(name), examples(name, 1), IntegratedGradients(steps)
    labels: dict[str, Any] = {str(size): size for size in sizes} | {f"auto ({_taken(name, steps)})": "auto"}
    seconds: dict[str, list[float]] = {label: [] for label in labels}
    ours(method, model, x)
    for turn in range(rounds):
        tell(f"chunks: {name}, round {turn + 1} of {rounds}")
        order = list(labels)[turn % len(labels) :] + list(labels)[: turn % len(labels)]
        for label in order:
            began = time.process_time()
            ours(method, model, x, batch_size=labels[label])
            seconds[label].append(time.process_time() - began)
    return seconds


def _taken(name: str, steps: int) -> int:
    model = build(name)
    with counting(model) as rows:
        ours(IntegratedGradients(steps), model, examples(name, 1))
    return rows.largest
