"""What holds the repository together: one package per folder, one line per plugin, one place per fact."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import axplain
from axplain.registry import registry
from axplain.specs import GROUPS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
INSTALL = "the installed entry points are older than pyproject.toml: pip install -e ."


@pytest.mark.parametrize(
    ("folder", "package"), [("framework", "axplain"), ("plugins", "axplain_plugins"), ("specs", "axplain_specs")]
)
def test_each_code_folder_holds_one_package(folder: str, package: str) -> None:
    found = [path.name for path in (ROOT / folder).iterdir() if path.name != "__pycache__"]
    assert found == [package], f"{found} in {folder}/ would each become a top-level module"


@pytest.mark.parametrize("group", [*GROUPS.values(), "axplain.specs"])
def test_the_installed_entry_points_are_those_of_the_project_file(group: str) -> None:
    declared = PROJECT["entry-points"].get(group, {})
    installed = {p.name: p.value for p in entry_points(group=group) if p.dist and p.dist.name == "axplain"}
    assert installed == declared, INSTALL


def test_every_spec_file_is_in_the_catalog_and_none_is_broken() -> None:
    files = sorted(path.stem for path in (ROOT / "specs").rglob("*.toml"))
    ours = [spec for spec in axplain.catalog().specs.values() if spec.distribution == "axplain"]
    assert axplain.catalog().broken == ()
    assert sorted(spec.name for spec in ours) == files
    assert all(Path(spec.origin).stem == spec.name for spec in ours), "a spec lies in the file of its name"


def test_every_entry_point_has_a_spec_and_every_plugin_loads() -> None:
    known = axplain.catalog()
    for kind, group in GROUPS.items():
        for point in entry_points(group=group):
            assert (kind, point.name) in known.specs, f"{group}: {point.name} has no spec"
    for spec in known.specs.values():
        if spec.composition is None:
            assert callable(registry().factory(spec))


def test_every_public_name_resolves_to_an_object_that_documents_itself() -> None:
    for name in axplain.__all__:
        assert getattr(axplain, name).__doc__, name
    assert axplain.__all__ == sorted(axplain.__all__)


def test_plugins_do_not_import_each_other() -> None:
    texts = {path: path.read_text("utf-8") for path in (ROOT / "plugins").rglob("*.py")}
    plugins = {path.stem for path, text in texts.items() if "@hookimpl" in text}
    for path, text in texts.items():
        for line in (line for line in text.splitlines() if "import" in line and "axplain_plugins" in line):
            module, _, names = line.removeprefix("from ").partition(" import ")
            assert module.startswith(f"axplain_plugins.{path.parent.name}"), f"{path}: {line} leaves the room"
            assert not plugins & {module.rpartition(".")[2], *names.split(", ")}, f"{path}: {line}"


def test_the_kernel_names_no_method() -> None:
    names = axplain.methods()
    for path in (ROOT / "framework").rglob("*.py"):
        code = [line for line in path.read_text("utf-8").splitlines() if '"' in line]
        found = [name for name in names for line in code if f'"{name}"' in line and "default" not in line]
        allowed = {"integrated_gradients"} if path.name in ("face.py", "cli.py", "skeleton.py") else set()
        assert set(found) <= allowed, f"{path}: {found}"


def test_the_documents_are_as_new_as_the_specs() -> None:
    for script in ("methods.py", "conformance.py"):
        done = subprocess.run([sys.executable, ROOT / "docs" / script, "--check"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
