"""Layers, neurons, windows and masks on the command line are what they are in Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.cli_calls import TOY, assert_same, explain, inputs, refused, run, toy
from torch import Tensor

import axplain


def test_windows_and_masks_are_what_they_are_in_python(folder: Path) -> None:
    found = explain("-p", "window=2", "-p", "stride=1,", "--target", "1", method="occlusion")
    assert_same(found, axplain.explain(toy("make")(), inputs(), "occlusion", window=2, stride=(1,), target=1))
    np.save("mask.npy", np.array([0, 0, 1, 1]))
    (folder / "mask.csv").write_text("0,0,1,1\n0,1,1,1\n", "utf-8")
    shared, own = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    for file, mask in (("mask.npy", shared), ("mask.csv", own)):
        found = explain("--feature-mask", file, "--target", "1", method="shapley_values")
        assert_same(found, axplain.explain(toy("make")(), inputs(), "shapley_values", feature_mask=mask, target=1))
    (folder / "half.csv").write_text("0,0.5,1,1\n", "utf-8")
    assert "one array of whole numbers" in refused("--feature-mask", "half.csv", method="shapley_values")


def test_layers_are_what_they_are_in_python(folder: Path) -> None:
    found = explain("--layer", "0", "--target", "1", model="dropping")
    expected = axplain.explain(toy("dropping")().eval(), inputs().float(), layer="0", target=1)
    assert found.attributions.shape == expected.attributions.shape == (2, 3)
    assert found.provenance["layer"] == "layer '0'"
    asked = ("explain", "saliency", "--model", "toy_models:dropping", "--input", "x.npy", "--layer", "7")
    assert "layer '7' came; expected one of 0, 1." in run(*asked, status=1).stderr


LAYERED = """
import torch

def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = torch.nn.Conv2d(1, 2, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(torch.nn.Sequential(*parts[:2]), *parts[2:]).double().eval()

class Twins(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = torch.nn.Tanh(), torch.nn.Sigmoid()

    def forward(self, x):
        return (self.left(x) + self.right(x)).flatten(1)
"""


@pytest.fixture
def images(folder: Path) -> Tensor:
    """Beside the other models one with layers, and the input images.npy."""
    (folder / "toy_models.py").write_text(TOY + LAYERED, "utf-8")
    x = torch.linspace(-1, 1, 32, dtype=torch.float64).view(2, 1, 4, 4)
    np.save(folder / "images.npy", x.numpy())
    return x


def test_a_neuron_is_a_parameter_and_a_target(images: Tensor) -> None:
    found = explain("-p", "neuron=0:1,0,1", method="neuron_conductance", model="net", x="images.npy")
    unit = axplain.neuron("0", (1, 0, 1))
    assert_tensors(found, axplain.explain(toy("net")(), images, "neuron_conductance", neuron=unit))
    found = explain("--target", "0.1:1,:,-1", method="saliency", model="net", x="images.npy")
    expected = axplain.explain(toy("net")(), images, "saliency", target=axplain.neuron("0.1", (1, slice(None), -1)))
    assert_tensors(found, expected)
    assert found.target == expected.target == "neuron 0.1[1, :, -1]"
    words = "-p neuron: 'features' came; expected layer:index, such as features.3:7,2,2."
    assert words in refused("-p", "neuron=features", method="neuron_conductance")
    assert "a neuron (features.3:7,2,2)" in refused("--target", "features")


def assert_tensors(found: axplain.Explanation, expected: axplain.Explanation) -> None:
    assert expected.tensors[0].any()
    assert all(torch.equal(*pair) for pair in zip(found.tensors, expected.tensors, strict=True))


def test_values_are_numbers_or_files(images: Tensor) -> None:
    np.save("high.npy", np.full((1, 1, 4, 4), 2.0))
    box = ["-p", "composite=epsilon_gamma_box", "-p", "low=-3"]
    for high in ("2", "2.0", "high.npy"):
        found = explain(*box, "-p", f"high={high}", method="lrp", model="net", x="images.npy")
        expected = axplain.explain(toy("net")(), images, "lrp", composite="epsilon_gamma_box", low=-3, high=2.0)
        assert_tensors(found, expected)
    assert "low: 'three' (str) came; expected a number, or a tensor." in refused("-p", "low=three", method="lrp")
    assert "-p low: none.npy cannot be read" in refused("-p", "low=none.npy", method="lrp")
    assert "Give low and high" in refused("-p", "composite=epsilon_gamma_box", method="lrp")


@pytest.mark.parametrize(
    ("method", "options", "label"),
    [
        ("layer_activation", ["--layer", "0"], "0[1, 0, 1]"),
        ("layer_conductance", ["--layer", "0.0"], "0.0["),
        ("layer_activation", ["--layer", "0", "--noise", "smoothgrad"], "0["),
        ("layer_activation", ["--layer", "left", "--layer", "right"], "right["),
        ("gradcam", [], "map["),
        ("guided_gradcam", [], "x["),
    ],
)
def test_the_layer_that_was_explained_is_told(method: str, options: list[str], label: str, images: Tensor) -> None:
    model = "toy_models:Twins" if "left" in options else "toy_models:net"
    arguments = [method, "--model", model, "--input", "images.npy", *options, "--top", "30"]
    lines = [line.strip() for line in run("explain", *arguments).stdout.splitlines()]
    names = options[1::2] if "--noise" not in options else options[1:2]
    told = next(line.removeprefix("layer").strip() for line in lines if line.startswith("layer "))
    assert told == (", ".join(names) or "0")
    assert any(line.startswith(label) for line in lines)
    if label != "x[":
        assert not any(line.startswith("x") for line in lines)


def test_no_class_is_predicted_where_no_target_is_explained(images: Tensor) -> None:
    call = ["explain", "layer_activation", "--model", "toy_models:net", "--input", "images.npy", "--layer", "0"]
    shown = run(*call).stdout
    assert "none: the method explains no target" in shown
    assert "predicted" not in shown
    assert "\nexample 0\n" in shown


def test_the_calls_that_a_page_shows_run(images: Tensor) -> None:
    """Of every method without words of its own to be imported: a layer and a neuron that the model has are put in."""
    for method in ("neuron_conductance", "layer_conductance", "layer_activation", "internal_influence", "gradcam"):
        page = run("show", method, width=500).stdout
        python, shell = (line.strip() for line in page.splitlines()[-2:])
        mine = shell.replace("features.3:7,2,2", "0:1,0,1").replace("features.3", "0")
        mine = mine.replace("pkg.mod:factory", "toy_models:net").replace("x.npy", "images.npy")
        run(*mine.removeprefix("shell").split()[1:])
        model = toy("net")()
        code = python.removeprefix("Python").replace("(7, 2, 2)", "(1, 0, 1)").replace("features.3", "0")
        assert isinstance(eval(code, {"axplain": axplain, "model": model, "x": images}), axplain.Explanation)
