"""Importing, listing and describing stay light: what is loaded is seen from outside, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import importlib.metadata, json, sys
[script] = importlib.metadata.entry_points(group="console_scripts", name="axplain")
status = script.load().main({arguments!r}, standalone_mode=False)
sys.stdout.flush()
print()
print(json.dumps([status or 0, sorted(sys.modules)]))
"""


def modules_after(code: str, folder: Path) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after some code."""
    code += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def packages(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules}


def test_importing_axplain_loads_nothing_of_what_it_needs_later(tmp_path: Path) -> None:
    loaded = modules_after("import axplain", tmp_path)
    assert "axplain" in loaded
    heavy = {"torch", "numpy", "cattrs", "attrs", "attr", "pluggy", "click", "hypothesis", "axplain_plugins"}
    assert packages(loaded) & heavy == set()


@pytest.mark.parametrize(
    "code",
    [
        "import axplain; assert axplain.catalog().specs",
        "import axplain; assert 'saliency' in axplain.methods()",
        "import axplain; assert axplain.describe('integrated_gradients').parameters",
    ],
)
def test_asking_the_catalog_loads_neither_torch_nor_a_plugin(code: str, tmp_path: Path) -> None:
    loaded = modules_after(code, tmp_path)
    assert "axplain.discovery" in loaded
    assert packages(loaded) & {"torch", "numpy", "pluggy", "axplain_plugins", "axplain_specs"} == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "--kind", "all", "--json"],
        ["show", "integrated_gradients"],
        ["show", "blur", "--json"],
        ["doctor"],
        ["explain", "--help"],
    ],
    ids=" ".join,
)
def test_the_command_that_is_installed_loads_neither_torch_nor_a_plugin(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(arguments=arguments)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    status, loaded = json.loads(done.stdout.splitlines()[-1])
    assert status == 0
    assert "axplain.cli" in loaded
    assert packages(set(loaded)) & {"torch", "numpy", "axplain_plugins"} == set()


@pytest.mark.parametrize("arguments", [["list"], ["show", "saliency"]], ids=" ".join)
def test_running_the_module_loads_neither_torch_nor_a_plugin(arguments: list[str], tmp_path: Path) -> None:
    # -X importtime names on stderr every module that is loaded, whoever ends the process
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "axplain.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "saliency" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "axplain.cli.page" in loaded
    assert packages(loaded) & {"torch", "numpy", "axplain_plugins"} == set()


def test_loading_every_plugin_is_what_the_doctor_does_only_when_asked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(arguments=["doctor", "--load"])], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    _, loaded = json.loads(done.stdout.splitlines()[-1])
    assert {"torch", "axplain_plugins.path.straight_path"} <= set(loaded)


@pytest.mark.parametrize(("method", "seat"), [("layer_conductance", '"0"'), ("fullgrad", "None")])
def test_forward_derivatives_say_nothing_of_torchs_own_code(method: str, seat: str, tmp_path: Path) -> None:
    """Torch deprecates what it uses itself when the first dual number of a process is made."""
    code = f"""
import warnings
import torch, axplain
model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8, 2))
axplain.explain(model.eval(), torch.ones(1, 1, 4, 4), "{method}", layer={seat}, target=0)
try:
    warnings.warn("of somebody else: torch.jit", DeprecationWarning)
except DeprecationWarning:
    print("still heard")
"""
    strict = [sys.executable, "-W", "error::DeprecationWarning", "-c", code]
    done = subprocess.run(strict, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "still heard\n"
