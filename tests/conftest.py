"""What every test starts from."""

from __future__ import annotations

import random

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Seed the global generators, so that a model with default weights is the same one in every run."""
    random.seed(0)
    torch.manual_seed(0)
