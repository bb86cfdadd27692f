"""How many rows one pass may have: from a memory budget and measured bytes per row, never from timing."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

import attrs
import torch
from torch import Tensor

MIB: Final = 2**20
#: On a CPU the cost of larger chunks is page faults of fresh memory: about 24 MiB of saved tensors was best or equal
#: on every workload that was measured; models of 5 to 30 MiB a row still gain from 8 rows at once, from 4 where nothing
#: is kept for a backward pass.
CPU_BUDGET: Final = 24 * MIB
CPU_LARGE_ROWS: Final = 8
CPU_LARGE_VALUES: Final = 4
CPU_LARGE_BUDGET: Final = 256 * MIB
CPU_MOST_ROWS: Final = 4096
#: An accelerator wants large chunks; a sixteenth of its memory is the same number on every run.
DEVICE_SHARE: Final = 16
DEVICE_MOST_ROWS: Final = 16384


@attrs.frozen(eq=False)
class Measured:
    """What two small passes told of a model: bytes a row, and the values that each gave for one input.

    `pools`: whether it pools pictures.
    """

    bytes_per_row: int
    values: tuple[float, float] | None
    pools: bool = False


T = TypeVar("T")
_told: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def rows_within_budget(bytes_per_row: int, device: torch.device, *, values: bool = False) -> int:
    """Return the number of rows of one chunk. `values`: its passes keep nothing for a backward pass."""
    bytes_per_row = max(bytes_per_row, 1)
    if device.type == "cuda":
        budget = torch.cuda.get_device_properties(device).total_memory // DEVICE_SHARE
        return min(max(budget // bytes_per_row, 1), DEVICE_MOST_ROWS)
    large = min(CPU_LARGE_BUDGET // bytes_per_row, CPU_LARGE_VALUES if values else CPU_LARGE_ROWS)
    return min(max(CPU_BUDGET // bytes_per_row, large, 1), CPU_MOST_ROWS)


def remembered(owner: Any, key: Any, measure: Callable[[], T]) -> T:
    """Return what `measure` gave for this model, or plan, and key the first time; it lives as long as its owner."""
    try:
        with _lock:
            known = _told.setdefault(owner, {})
    except TypeError:  # what cannot be weakly referenced is measured each time
        return measure()
    if key not in known:
        known[key] = measure()
    told: T = known[key]
    return told


def saved_bytes(run: Callable[[], Any]) -> tuple[Any, int]:
    """Return what `run` gives, and the bytes that autograd keeps for its backward pass, each storage once."""
    storages: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        result = run()
    return result, sum(storages.values())
