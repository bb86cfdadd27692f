"""What CONTRIBUTING shows works as it stands there: a method without code, and one with."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import axplain

GUIDE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")


def block(language: str, containing: str) -> str:
    """Return the one code block of a language that contains a text."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL) if containing in text]
    return str(found)


def test_the_method_without_code_is_integrated_gradients_by_midpoints(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(block("toml", 'name = "midpoint_gradients"'))
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
    x = torch.ones(2, 3, dtype=torch.float64)
    mine = axplain.explain(model, x, path, target=1, n_steps=7)
    expected = axplain.explain(model, x, target=1, n_steps=7, quadrature="midpoint")
    assert torch.equal(mine.attributions, expected.attributions)
    assert mine.method == "midpoint_gradients" and mine.delta is not None and expected.delta is not None
    assert torch.equal(mine.delta, expected.delta)


def test_the_method_with_code_runs_from_a_distribution_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").touch()
    (tmp_path / "my_package" / "sign_gradient.py").write_text(block("python", "class SignGradient"))
    (tmp_path / "my_package" / "sign_gradient.toml").write_text(block("toml", 'name = "sign_gradient"'))
    information = tmp_path / "my_distribution-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: my-distribution\nVersion: 1.0\n")
    points = (
        block("toml", '[project.entry-points."axplain.methods"]')
        .replace('project.entry-points."', "")
        .replace('"]', "]")
    )
    (information / "entry_points.txt").write_text(
        "[axplain.specs]\nmy-distribution = my_package\n" + points.replace('"', "")
    )
    code = """
import torch, axplain
answer = axplain.explain(lambda x: (x * torch.tensor([2.0, -3.0])).sum(1), torch.ones(1, 2), "sign_gradient")
print(axplain.describe("sign_gradient").distribution, answer.attributions.tolist(), answer.cost)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = "Cost(forward_rows=1, backward_rows=1, check_rows=1, bound='exact')"
    assert done.stdout.strip() == f"my-distribution [[1.0, -1.0]] {expected}"


def test_a_composition_that_cannot_work_is_refused_by_name(tmp_path: Path) -> None:
    text = block("toml", 'name = "midpoint_gradients"')
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('rule = "midpoint"', 'rule = "midpont"'))
    with pytest.raises(axplain.ArgumentError, match=r"straight_path\['rule'\]: 'midpont'.*expected one of"):
        axplain.explain(lambda x: x.sum(1), torch.ones(1, 2), path)
    path.write_text(text.replace('baseline = "reference"\n', ""))
    with pytest.raises(axplain.SpecError, match="starts from references"):
        axplain.explain(lambda x: x.sum(1), torch.ones(1, 2), path)
