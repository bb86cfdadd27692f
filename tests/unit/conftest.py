"""What several files of unit tests ask for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.unit.cli_calls import TOY, inputs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with a module `toy_models` and the input x.npy."""
    (tmp_path / "toy_models.py").write_text(TOY, "utf-8")
    np.save(tmp_path / "x.npy", inputs().numpy())
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("toy_models", None)
