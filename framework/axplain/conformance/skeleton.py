"""The package that `axplain new-method` writes: a method to start from, small enough to be read at once."""

from __future__ import annotations

import keyword
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from axplain.errors import ArgumentError

_PROJECT: Final = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "axplain-{dashed}"
version = "0.1.0"
dependencies = ["axplain"]

[project.entry-points."axplain.specs"]
{name} = "axplain_{name}"
"""
_CODE_POINT: Final = """
[project.entry-points."axplain.methods"]
{name} = "axplain_{name}.method"
"""
_HEAD: Final = """\
spec = 1
kind = "method"
name = "{name}"
title = "{title}"
version = "0.1.0"
"""
_COMPOSED: Final = """\
summary = "Integrated gradients, averaged over noisy copies of the input."
axioms = [{{ id = "dummy", kind = "exact" }}, {{ id = "linearity", kind = "exact" }}]
determinism = {{ kind = "seeded" }}
cost = {{ forward_rows = "batch * 5 * 20", backward_rows = "batch * 5 * 20" }}

[composition]
baseline = "reference"
perturbation = {{ use = "gaussian_noise", n = 5, stdev = 0.1 }}
evaluation = {{ method = "integrated_gradients", n_steps = 20 }}
aggregation = "mean"
"""
_CODED: Final = """\
summary = "Gradients times steps, along a path whose next point may depend on what came before."
references = "reference"
requires = {{ input_dtype = "floating" }}
parameters = {{ steps = {{ type = "int", default = 20, min = 1, doc = "Steps from baseline to input." }} }}
axioms = [{{ id = "linear_exactness", kind = "exact" }}, {{ id = "null_at_baseline", kind = "exact" }}]
cost = {{ forward_rows = "batch * steps", backward_rows = "batch * steps" }}
"""
_METHOD: Final = """\
import torch
from axplain import hookimpl
from axplain.protocols import Outcome
from axplain.structure import map_tensors as each


class {class_}:
    def run(self, problem, engine, settings):
        point = each(torch.Tensor.expand_as, problem.reference_table().column(0), problem.inputs)
        phi = each(torch.zeros_like, problem.inputs)
        for left in range(settings.values["steps"], 0, -1):
            gradient = engine.ask(problem, point, problem.everyone(), "gradient").terms
            step = each(lambda x, here: (x - here) / left, problem.inputs, point)
            phi, point = each(torch.addcmul, phi, gradient, step), each(torch.add, point, step)
        return Outcome(phi)


@hookimpl
def axplain_plugin():
    return {class_}
"""
_TEST: Final = """\
from axplain.conformance import conformance_suite

TestConformance = conformance_suite("axplain-{dashed}")
"""


@attrs.frozen
class Skeleton:
    """A package around one method: composed in TOML, or with `code`."""

    name: str
    code: bool = False

    @property
    def folder(self) -> str:
        """The folder of the package."""
        return f"axplain-{self.name.replace('_', '-')}"

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield each file's path below the folder, and its text.

        Raises:
            ArgumentError: the name cannot be one of a Python package.
        """
        if not self.name.isidentifier() or keyword.iskeyword(self.name) or self.name != self.name.lower():
            raise ArgumentError("name", f"{self.name!r} came", "a lower-case Python name such as noisy_paths")
        words = {
            "name": self.name,
            "dashed": self.name.replace("_", "-"),
            "title": self.name.replace("_", " ").capitalize(),
            "class_": "".join(word.capitalize() for word in self.name.split("_")),
        }
        package = f"axplain_{self.name}"
        yield "pyproject.toml", (_PROJECT + (_CODE_POINT if self.code else "")).format(**words)
        yield f"{package}/__init__.py", ""
        yield f"{package}/{self.name}.toml", (_HEAD + (_CODED if self.code else _COMPOSED)).format(**words)
        if self.code:
            yield f"{package}/method.py", _METHOD.format(**words)
        yield "test_conformance.py", _TEST.format(**words)

    def write(self, into: Path) -> list[Path]:
        """Write the files into a new folder and return their paths.

        Raises:
            ArgumentError: the folder is there already, or the name cannot be used.
        """
        root = into / self.folder
        texts = dict(self.files())
        if root.exists():
            raise ArgumentError("name", f"{root} exists already", "a folder that is not there yet")
        for name, text in texts.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        return [root / name for name in texts]
