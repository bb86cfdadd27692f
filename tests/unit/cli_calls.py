"""Calls of `axplain explain` in a folder with a module of models, and what is compared with the Python call."""

from __future__ import annotations

import sys
from typing import Any

import torch
from click.testing import CliRunner, Result
from torch import Tensor

import axplain
from axplain.cli import main

TOY = """
import torch

def weights(rows, columns):
    return torch.linspace(-1, 1, rows * columns).view(rows, columns)

class Net(torch.nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.first = torch.nn.Parameter(weights(4, 5).to(dtype))
        self.second = torch.nn.Parameter(weights(5, 3).to(dtype))

    def forward(self, x):
        return (x @ self.first).tanh() @ self.second

model = Net()

def make():
    return Net()

def single():
    return Net(torch.float32)

def product(a, b):
    return (a * b).sum(1)

class Keyword(torch.nn.Module):
    def forward(self, *, left, right):
        return (left * right**2).sum(1)

class Sick(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError("the model is ill\\nvery ill")

def fails():
    raise ValueError("no weights here\\nsecond line")

number = 3

def half(x):
    return x / 2

def margin(output):
    return output[:, 2] - output[:, 0]

def dropping():
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))

class Picture(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x[:, 0].sum((1, 2)), -x[:, 1].sum((1, 2))], 1)

def transform(picture):
    import numpy
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).double() / 255
"""


def inputs() -> Tensor:
    return torch.tensor([[0.5, -1.0, 2.0, 0.25], [1.5, 0.5, -0.75, 3.0]], dtype=torch.float64)


def toy(name: str) -> Any:
    """Return what the command line has imported."""
    return getattr(sys.modules["toy_models"], name)


def run(*arguments: str, status: int = 0, width: int | None = None) -> Result:
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": str(width) if width else None})
    assert result.exit_code == status, result.output
    return result


def explain(*arguments: str, method: str = "integrated_gradients", model: str = "make", x: str = "x.npy") -> Any:
    """Run `axplain explain`, and load what it saved."""
    run("explain", method, "--model", f"toy_models:{model}", "--input", x, "--output", "out.safetensors", *arguments)
    return axplain.Explanation.load("out.safetensors")


def refused(
    *arguments: str, status: int = 1, method: str = "integrated_gradients", model: str = "toy_models:make"
) -> str:
    """Run an `axplain explain` that must fail, and return the one line that says why."""
    result = run("explain", method, "--model", model, "--input", "x.npy", *arguments, status=status)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    assert len(lines) == 1 or lines[0].startswith("Usage: ")
    return lines[-1]


def assert_same(found: axplain.Explanation, expected: axplain.Explanation) -> None:
    for left, right in zip(found.tensors, expected.tensors, strict=True):
        assert torch.equal(left, right)
    assert found.structure == expected.structure
    assert (found.method, found.target, found.cost) == (expected.method, expected.target, expected.cost)
    assert found.parameters == expected.parameters
