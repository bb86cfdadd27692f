"""What happens in a pass that goes wrong, for tests of what is left behind."""

from __future__ import annotations

import torch
from torch import Tensor


class PlannedError(Exception):
    """Raised by the tests, so that no error of the library can be taken for it."""


def fail(output: Tensor) -> Tensor:
    raise PlannedError


def interrupt(output: Tensor) -> Tensor:
    raise KeyboardInterrupt


def spoil(output: Tensor) -> Tensor:
    return output * torch.nan
