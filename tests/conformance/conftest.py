"""Distributions as pip leaves them, for the tests of the kit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from axplain.discovery import catalog
from axplain.registry import registry


@attrs.frozen
class Shelf:
    """A folder on the path with installed distributions: packages beside their .dist-info."""

    root: Path

    def put(self, distribution: str, specs: Mapping[str, str], modules: Mapping[str, str] | None = None) -> None:
        """Install specs by name, and code by the name of the method that it is for."""
        package = distribution.replace("-", "_")
        info = self.root / f"{package}-2.0.dist-info"
        (self.root / package).mkdir()
        info.mkdir()
        (self.root / package / "__init__.py").touch()
        for name, text in specs.items():
            (self.root / package / f"{name}.toml").write_text(text)
        points = ["[axplain.specs]", f"{distribution} = {package}", "[axplain.methods]"]
        for name, text in (modules or {}).items():
            (self.root / package / f"{name}.py").write_text(text)
            points.append(f"{name} = {package}.{name}")
        (info / "entry_points.txt").write_text("\n".join(points) + "\n")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.0\n")


def _forget() -> None:
    for known in (catalog, registry):
        known.cache_clear()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """An empty shelf that this process and its children look at."""
    root = tmp_path / "shelf"
    root.mkdir()
    monkeypatch.syspath_prepend(root)
    monkeypatch.setenv("PYTHONPATH", str(root))
    _forget()
    yield Shelf(root)
    monkeypatch.undo()
    _forget()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(root)):
            del sys.modules[name]
