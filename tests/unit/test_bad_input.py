"""Every argument has one door: what cannot be used is refused with its name, what came, and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import axplain

NAN, INF = float("nan"), float("inf")


def network(features: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


NET = network()
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
META = X.to("meta")


@attrs.define(eq=False)
class Counting:
    """Counts its passes: what the door refuses costs none."""

    passes: int = 0

    def __call__(self, *x: Tensor, **named: Any) -> Any:
        self.passes += 1
        return NET(torch.cat([*x, *named.values()], 1)[:, :4])


def ask(call: Callable[..., Any] = axplain.explain, **given: Any) -> Any:
    arguments: dict[str, Any] = {"model": NET, "x": X, "method": "integrated_gradients", "target": 1} | given
    return call(**arguments)


def refusal(error: type[Exception], call: Callable[..., Any] = axplain.explain, **given: Any) -> Exception:
    with pytest.raises(error) as caught:
        ask(call, **given)
    assert type(caught.value) is error
    return caught.value


def check_argument_error(error: Exception, argument: str, came: str, expected: str) -> None:
    """The message reads `argument: what came; expected what was expected.` and perhaps the cure."""
    assert isinstance(error, axplain.ArgumentError)
    message = str(error)
    assert error.argument == argument and message.startswith(f"{argument}: ")
    before, separator, after = message.removeprefix(f"{argument}: ").partition("; expected ")
    assert separator, message
    assert came in before, f"{came!r} is not what came in: {message}"
    assert expected in after, f"{expected!r} is not what was expected in: {message}"
    assert message.endswith((".", "?"))


# name -> (arguments, the argument that is named, what came, what was expected)
Bad = tuple[dict[str, Any], str, str, str]
PARAMETERS: dict[str, Bad] = {
    "a fraction": ({"n_steps": 50.9}, "n_steps", "50.9 (float)", "a whole number"),
    "a bool": ({"n_steps": True}, "n_steps", "True (bool)", "a whole number"),
    "a string": ({"n_steps": "50"}, "n_steps", "'50' (str)", "a whole number"),
    "not a number": ({"n_steps": NAN}, "n_steps", "nan", "a whole number"),
    "none": ({"n_steps": None}, "n_steps", "None", "a whole number"),
    "below the bound": ({"n_steps": 0}, "n_steps", "0 came", "at least 1"),
    "below another bound": ({"max_steps": 3, "tolerance": 0.1}, "max_steps", "3 came", "at least 9"),
    "no choice": ({"quadrature": "gauss"}, "quadrature", "'gauss'", "gauss_legendre, left, right, midpoint, trapezoid"),
    "a mistyped choice": ({"quadrature": 3}, "quadrature", "3 (int)", "one of gauss_legendre"),
    "an infinite float": ({"method": "gradient_shap", "stdev": INF}, "stdev", "inf", "a finite number"),
    "a negative float": ({"method": "gradient_shap", "stdev": -0.1}, "stdev", "-0.1", "at least 0"),
    "one of several": ({"method": "gradient_shap", "stdev": (0.1, "a")}, "stdev", "'a'", "a finite number"),
    "a number for a bool": ({"method": "saliency", "absolute": 1}, "absolute", "1 (int)", "True or False"),
    "unknown": (
        {"n_step": 3},
        "n_step",
        "integrated_gradients has no such parameter",
        "max_steps, n_steps, quadrature",
    ),
    "of another method": ({"method": "saliency", "n_steps": 5}, "n_steps", "saliency has no such", "absolute"),
    "where there are none": ({"method": "input_x_gradient", "n": 5}, "n", "no such parameter", "none"),
    "inner of another kind": ({"method": "smoothgrad", "inner": 3}, "inner", "3 came", "the name of a method"),
    "inner without use": ({"method": "smoothgrad", "inner": {"n_steps": 3}}, "inner", "n_steps", "the key 'use'"),
    "inner's parameter": ({"method": "smoothgrad", "inner": {"use": "saliency", "n": 1}}, "n", "saliency", "absolute"),
}
NOISE: dict[str, Bad] = {
    "a number": ({"noise": 3}, "noise", "3 came", '{"mode": name, ...}'),
    "no mode": ({"noise": {"n_samples": 3}}, "noise", "n_samples", '{"mode": name, ...}'),
    "a mode that is no name": ({"noise": {"mode": 3}}, "noise", "3 came", "noise mode"),
    "around a noise mode": (
        {"method": "vargrad", "noise": "smoothgrad"},
        "noise",
        "method='vargrad'",
        "one of the two",
    ),
    "inner": ({"noise": {"mode": "smoothgrad", "inner": "saliency"}}, "noise", "'inner' came", "no inner method"),
    "a parameter": ({"noise": {"mode": "smoothgrad", "n_samples": 0}}, "n_samples", "0 came", "at least 1"),
    "an unknown parameter": ({"noise": {"mode": "smoothgrad", "n": 1}}, "n", "smoothgrad has no such", "n_samples"),
}
INPUTS: dict[str, Bad] = {
    "a list": ({"x": [X]}, "x", "list came", "a tensor, a tuple of tensors or a dict"),
    "a string": ({"x": "a.png"}, "x", "str came", "a tensor, a tuple of tensors or a dict"),
    "a number": ({"x": 3}, "x", "int came", "a tensor"),
    "nothing": ({"x": None}, "x", "NoneType came", "a tensor"),
    "an array": ({"x": X.numpy()}, "x", "ndarray came", "a tensor"),
    "an empty tuple": ({"x": ()}, "x", "tuple came", "a tuple of tensors"),
    "an empty dict": ({"x": {}}, "x", "dict came", "a dict of keyword inputs"),
    "numbered keys": ({"x": {1: X}}, "x", "dict came", "a dict of keyword inputs"),
    "a tuple with a number": ({"x": (X, 3)}, "x[1]", "int came", "a tensor"),
    "a dict with a string": ({"x": {"a": X, "b": "b"}}, "x['b']", "str came", "a tensor"),
    "token ids": ({"x": torch.ones(2, 7, dtype=torch.long)}, "x", "torch.int64 came", "a floating tensor"),
    "a bool mask": ({"x": (X, X > 0)}, "x[1]", "torch.bool came", "a floating tensor"),
    "complex numbers": ({"x": X.to(torch.complex64)}, "x", "torch.complex64 came", "a floating tensor"),
    "an empty batch": ({"x": X[:0]}, "x", "an empty batch came", "at least one example"),
    "no dimensions": ({"x": torch.tensor(1.0)}, "x", "without dimensions", "at least one example"),
    "batches that differ": ({"x": (X, X[:3])}, "x[1]", "3 examples came", "5, as in the first input"),
    "NaN": ({"x": X.where(X > 0, NAN)}, "x", f"{int((X <= 0).sum())} NaN or inf came", "finite numbers"),
    "inf": ({"x": {"a": X, "b": X / 0}}, "x['b']", "20 NaN or inf came", "finite numbers"),
    "another device": ({"x": (X, META)}, "x[1]", "a tensor on meta came", "one on cpu, as the first input"),
    "the model elsewhere": ({"model": nn.Linear(4, 3, device="meta")}, "x", "on cpu came", "one on meta, where the"),
    "x elsewhere": ({"x": META}, "x", "on meta came", "one on cpu, where the model is"),
    "no model": ({"model": 3}, "model", "int came", "a torch.nn.Module or a callable"),
    "nothing as a model": ({"model": None}, "model", "NoneType came", "a torch.nn.Module or a callable"),
}
TARGETS: dict[str, Bad] = {
    "a fraction": ({"target": 1.5}, "target", "1.5 (float)", "an int"),
    "a bool": ({"target": True}, "target", "True (bool)", "an int"),
    "a string": ({"target": "1"}, "target", "'1' (str)", "an int"),
    "a set": ({"target": {1}}, "target", "{1} (set)", "an int"),
    "a huge number": ({"target": 2**70}, "target", str(2**70), "an int"),
    "an empty list": ({"target": []}, "target", "[] came", "one for each example"),
    "fractions": ({"target": [0.5] * 5}, "target", "0.5 (float)", "an int"),
    "bools": ({"target": [True] * 5}, "target", "True (bool)", "an int"),
    "missing ones": ({"target": [0, None, 1, 2, 0]}, "target", "None", "an int"),
    "too few": ({"target": [0, 1]}, "target", "2 targets came for 5 examples", "one for each example"),
    "too many": ({"target": torch.zeros(6, dtype=torch.long)}, "target", "6 targets came for 5", "one for each"),
    "ragged tuples": ({"target": [(0,), (0, 1), (1,), (2,), (0,)]}, "target", "(0, 1)", "index tuples of one length"),
    "a float tensor": ({"target": torch.zeros(5)}, "target", "torch.float32, shape (5,)", "an int"),
    "a bool tensor": ({"target": X[:, 0] > 0}, "target", "torch.bool, shape (5,)", "an int"),
    "a float scalar": ({"target": torch.tensor(1.0)}, "target", "tensor(1.)", "an int"),
    "a float array": ({"target": numpy.zeros(5)}, "target", "float64", "an int"),
    "a cube": ({"target": torch.zeros(5, 1, 1, dtype=torch.long)}, "target", "shape (5, 1, 1)", "an int"),
    "an empty tensor": ({"target": torch.zeros(0, dtype=torch.long)}, "target", "0 targets", "one for each"),
    "an unknown layer": ({"target": axplain.neuron("3", 1)}, "target", "layer '3' came", "one of 0, 1, 2"),
    "a strange layer": ({"target": axplain.neuron(nn.Linear(4, 5), 1)}, "target", "Linear", "one of its modules"),
    "a numbered layer": ({"target": axplain.neuron(0, 1)}, "target", "int", "one of its modules"),  # type: ignore[arg-type]
    "a neuron of a function": (
        {"model": lambda x: x, "target": axplain.neuron("0", 1)}, "target", "plain callable", "a torch.nn.Module"
    ),
}  # fmt: skip
BASELINES: dict[str, Bad] = {
    "of another length": ({"baselines": X[:3]}, "baselines", "3 references came for 5", "first dimension 1 or 5"),
    "without a batch": ({"baselines": X[0]}, "baselines", "shape (4,) came, without a batch", "(1, 4)"),
    "of another width": ({"baselines": X[:, :3]}, "baselines", "shape (3,)", "shape (4,), as in x"),
    "of more dimensions": ({"baselines": X[:, None]}, "baselines", "(5, 1, 4)", "shape (4,), as in x"),
    "NaN": ({"baselines": X * NAN}, "baselines", "NaN or inf came", "finite numbers"),
    "an infinite number": ({"baselines": INF}, "baselines", "inf", "finite number"),
    "on another device": ({"baselines": META}, "baselines", "on meta came", "one on cpu, where x is"),
    "a list": ({"baselines": [0.0]}, "baselines", "list [0.0] came", "a number, a tensor, a callable, the name"),
    "a bool": ({"baselines": True}, "baselines", "bool True came", "a number"),
    "a complex number": ({"baselines": 1j}, "baselines", "complex 1j came", "a number"),
    "too many items": ({"baselines": (0.0, 0.0)}, "baselines", "2 items came", "1, one for each input"),
    "one for two": ({"x": (X, X), "baselines": X}, "baselines", "one tensor came", "each of the 2 inputs"),
    "a dict for a tensor": ({"baselines": {"a": 0.0}}, "baselines", "['a']", "no dict"),
    "other keys": ({"x": {"a": X}, "baselines": {"b": 0.0}}, "baselines", "['b'] came", "the keys ['a']"),
    "a wrong one of two": ({"x": (X, X), "baselines": (0.0, X[:3])}, "baselines[1]", "3 references", "1 or 5"),
    "a wrong one of a dict": ({"x": {"a": X}, "baselines": {"a": X[0]}}, "baselines['a']", "(4,) came", "(1, 4)"),
    "a callable's shape": ({"baselines": lambda x: x[:, :2]}, "baselines", "shape (5, 2)", "shape (4,), as in x"),
    "a callable's nothing": ({"baselines": lambda x: None}, "baselines", "NoneType", "a tensor"),
    "a callable's set": ({"baselines": lambda x: {0.0}}, "baselines", "set {0.0}", "a tensor"),
    "a plugin without its need": ({"baselines": {"use": "value"}}, "baselines['value']", "nothing came", "a finite"),
    "a plugin's parameter": ({"baselines": {"use": "gaussian", "n": 0}}, "baselines['n']", "0 came", "at least 1"),
    "a plugin's unknown one": ({"baselines": {"use": "zeros", "k": 1}}, "baselines['k']", "no such parameter", "none"),
    "a plugin that is a number": ({"baselines": {"use": 5}}, "baselines", "5", "the name of a baseline"),
    "a mean of nothing": ({"x": X[:, 0], "baselines": "mean"}, "baselines", "(5,)", "features to average"),
    "a blur of no picture": ({"baselines": "blur"}, "baselines", "(5, 4)", "channels and space"),
    "where none are used": ({"method": "saliency", "baselines": 0.0}, "baselines", "0.0", "uses no baselines"),
    "an empty set": ({"baselines": axplain.distribution(X[:0])}, "baselines", "(0, 4)", "at least one row"),
    "sets that differ": (
        {"x": (X, X), "baselines": axplain.distribution((X[:2], X[:3]))}, "baselines[0]", "2 references", "3, as for"
    ),
}  # fmt: skip
OTHERS: dict[str, Bad] = {
    "batch_size zero": ({"batch_size": 0}, "batch_size", "0 came", "at least 1"),
    "batch_size negative": ({"batch_size": -3}, "batch_size", "-3 came", "at least 1"),
    "batch_size fraction": ({"batch_size": 1.5}, "batch_size", "1.5 came", "the number of rows of one pass"),
    "batch_size bool": ({"batch_size": True}, "batch_size", "True came", "the number of rows"),
    "batch_size word": ({"batch_size": "big"}, "batch_size", "'big' came", '"auto" or'),
    "batch_size array": ({"batch_size": numpy.array([1, 2])}, "batch_size", "array([1, 2]) came", '"auto" or'),
    "seed word": ({"seed": "a"}, "seed", "'a' came", "a whole number, or None"),
    "seed fraction": ({"seed": 1.5}, "seed", "1.5 came", "a whole number, or None"),
    "seed bool": ({"seed": True}, "seed", "True came", "a whole number, or None"),
    "tolerance negative": ({"tolerance": -1}, "tolerance", "-1 came", "a positive number"),
    "tolerance zero": ({"tolerance": 0.0}, "tolerance", "0.0 came", "a positive number"),
    "tolerance word": ({"tolerance": "small"}, "tolerance", "'small' came", "a positive number"),
    "tolerance NaN": ({"tolerance": NAN}, "tolerance", "nan came", "a positive number"),
    "tolerance of saliency": ({"method": "saliency", "tolerance": 0.1}, "tolerance", "0.1 came", "saliency cannot"),
    "tolerance in noise": ({"noise": "smoothgrad", "tolerance": 0.1}, "tolerance", "0.1 came", "smoothgrad cannot"),
    "tolerance and steps": ({"tolerance": 0.1, "n_steps": 5}, "n_steps", "beside tolerance=0.1", "one of the two"),
    "progress word": ({"progress": "yes"}, "progress", "'yes' came", "True, False or a callable"),
    "progress number": ({"progress": 1}, "progress", "1 came", "True, False or a callable"),
    "verify number": ({"verify": 1}, "verify", "1 came", "True or False"),
    "verify none": ({"verify": None}, "verify", "None came", "True or False"),
    "layer": ({"layer": "nose"}, "layer", "layer 'nose' came", "one of 0, 1, 2"),
    "a layer of strange things": ({"layer": [3]}, "layer", "int came", "one of its modules"),
    "feature_mask": ({"feature_mask": X}, "feature_mask", "a mask came", "does not group features"),
    "kwargs no dict": ({"forward_kwargs": 3}, "forward_kwargs", "int came", "a dict of keyword arguments"),
    "kwargs numbered": ({"forward_kwargs": {1: 2}}, "forward_kwargs", "1", "a dict of keyword arguments"),
    "kwargs in x": ({"x": {"a": X}, "forward_kwargs": {"a": X}}, "forward_kwargs", "'a' came", "not in x"),
    "kwargs elsewhere": ({"forward_kwargs": {"b": META}}, "forward_kwargs['b']", "on meta came", "one on cpu"),
    "arguments elsewhere": ({"additional_forward_args": (1, META)}, "additional_forward_args[1]", "meta", "on cpu"),
    "modality number": ({"modality": 3}, "modality", "3 came", '{"use": name, ...}'),
    "modality without use": ({"modality": {"transform": 1}}, "modality", "transform", '{"use": name, ...}'),
    "modality's need": ({"modality": "image"}, "modality['transform']", "nothing came", "a callable"),
    "modality's type": (
        {"modality": {"use": "image", "transform": 3}}, "modality['transform']", "3 (int)", "a callable"
    ),
    "modality's unknown": ({"modality": {"use": "image", "size": 3}}, "modality['size']", "no such", "transform"),
    "method number": ({"method": 3}, "method", "3 came", "the name of a method, a Spec, or the path of a TOML file"),
    "method none": ({"method": None}, "method", "None came", "the name of a method"),
    "method file": ({"method": "nowhere.toml"}, "method", "nowhere.toml", "TOML file"),
    "method folder": ({"method": Path("/")}, "method", "'/'", "TOML file"),
}  # fmt: skip
TABLES = {"parameter": PARAMETERS, "noise": NOISE, "x": INPUTS, "target": TARGETS, "baselines": BASELINES, "": OTHERS}
EARLY = {f"{table} {name}".strip(): bad for table, bads in TABLES.items() for name, bad in bads.items()}


@pytest.mark.parametrize("name", EARLY)
def test_what_can_be_seen_is_refused_before_the_first_pass(name: str) -> None:
    given, argument, came, expected = EARLY[name]
    check_argument_error(refusal(axplain.ArgumentError, **given), argument, came, expected)
    if argument != "progress":  # which a price does not show
        check_argument_error(refusal(axplain.ArgumentError, axplain.estimate, **given), argument, came, expected)
    if "model" not in given and not isinstance(given.get("target"), type(axplain.neuron("", 0))):
        counting = Counting()
        refusal(axplain.ArgumentError, model=counting, **given)
        assert counting.passes == 0


def test_token_ids_are_told_where_to_go() -> None:
    message = str(refusal(axplain.ArgumentError, x=torch.ones(2, 7, dtype=torch.long)))
    assert "integrated_gradients differentiates" in message
    assert "embeddings" in message and "forward_kwargs" in message


def test_a_misspelt_parameter_is_told_its_near_name() -> None:
    assert "Did you mean 'n_steps'" in str(refusal(axplain.ArgumentError, n_step=3))


def test_an_x_that_needs_a_modality_is_told_which_there_are() -> None:
    assert "modality=" in str(refusal(axplain.ArgumentError, x="cat.jpg"))
    assert "image" in str(refusal(axplain.ArgumentError, x="cat.jpg"))


UNKNOWN: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "integrated_gradient"}, "Did you mean 'integrated_gradients'"),
    "noise": ({"noise": "smoothgradd"}, "Did you mean 'smoothgrad'"),
    "noise that is a method": ({"noise": {"mode": "saliency"}}, "Installed: fusiongrad, noisegrad, smoothgrad, "),
    "inner": ({"method": "vargrad", "inner": "salience"}, "Did you mean 'saliency'"),
    "baseline": ({"baselines": "zero"}, "Did you mean 'zeros'"),
    "baseline in a mapping": ({"baselines": {"use": "gausian"}}, "Did you mean 'gaussian'"),
    "modality": ({"modality": "video"}, "Installed: image"),
    "nothing near": ({"method": "q"}, "Installed: "),
    "an empty name": ({"method": ""}, "Installed: "),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_told_near_ones_and_the_installed_ones(name: str) -> None:
    given, hint = UNKNOWN[name]
    counting = Counting()
    message = str(refusal(axplain.UnknownMethod, model=counting, **given))
    wanted = list(given.values())[-1]
    asked = wanted if isinstance(wanted, str) else list(wanted.values())[-1]
    assert repr(asked) in message and hint in message and "Installed: " in message
    assert counting.passes == 0
    if name in ("method", "nothing near"):
        assert all(method in message for method in axplain.methods())


# name -> (arguments, what came, what was expected); the argument is target
LATE_TARGETS: dict[str, tuple[dict[str, Any], str, str]] = {
    "above": ({"target": 3}, "3 came", "inside (3,)"),
    "below": ({"target": -4}, "-4 came", "inside (3,)"),
    "one of them": ({"target": [0, 1, 2, 7, 1]}, "7 came for example 3", "inside (3,)"),
    "too deep": ({"target": (0, 1)}, "2 indices came and the model returns (3,) per example", "1, one for each"),
    "too shallow": ({"model": nn.Unflatten(1, (2, 2))}, "1 index came and the model returns (2, 2)", "2, one for"),
    "none needed": ({"model": lambda x: x.sum(1)}, "1 index came and the model returns ()", "0, one for each"),
    "missing": (
        {"model": nn.Unflatten(1, (2, 2)), "target": None},
        "None came and the model returns (2, 2) per example",
        "an index tuple into it",
    ),
    "a callable's matrix": (
        {"target": lambda out: out},
        "the callable returned a tensor of shape (",
        "one value a row",
    ),
    "a callable's mean": ({"target": lambda out: out.mean()}, "a tensor of shape ()", "one value a row"),
    "a callable's number": ({"target": lambda out: 1.0}, "float", "one value a row"),
    "a neuron too far": ({"target": axplain.neuron("0", 5)}, "index 5 came", "inside (5,), the output of layer '0'"),
    "a neuron too deep": ({"target": axplain.neuron("0", (1, 1))}, "(1, 1) came and layer '0' returns (", "1 ind"),
    "no neuron": ({"target": axplain.neuron("0", slice(7, 9))}, "slice(7, 9", "inside (5,)"),  # type: ignore[arg-type]
    "a neuron's bool": ({"target": axplain.neuron("0", True)}, "True", "ind"),
    "a neuron's name": ({"target": axplain.neuron("0", "a")}, "'a'", "ind"),  # type: ignore[arg-type]
    "a neuron's fraction": ({"target": axplain.neuron("0", 1.5)}, "1.5", "ind"),  # type: ignore[arg-type]
    "a neuron's matrix": (
        {"target": axplain.neuron("0", lambda out: out)},
        "the callable returned a tensor of shape (",
        "one value a row",
    ),
}


@pytest.mark.parametrize("name", LATE_TARGETS)
def test_a_target_that_does_not_fit_the_output_is_refused(name: str) -> None:
    given, came, expected = LATE_TARGETS[name]
    for method in ("integrated_gradients", "saliency", "smoothgrad"):
        error = refusal(axplain.ArgumentError, method=method, **given)
        check_argument_error(error, "target", came, expected)


def test_as_many_deviations_as_inputs_are_expected() -> None:
    for method in ("gradient_shap", "smoothgrad"):
        given: dict[str, Any] = {"x": (X[:, :3], X[:, 3:]), "model": lambda a, b: NET(torch.cat([a, b], 1))}
        baselines: dict[str, Any] = {"baselines": 0.0} if method == "gradient_shap" else {}
        for stdev in ((0.1,), (0.1, 0.2, 0.3)):
            error = refusal(axplain.ArgumentError, method=method, stdev=stdev, **given, **baselines)
            check_argument_error(error, "stdev", f"{len(stdev)} values came", "2: one for each input")


def test_the_trapezoid_rule_needs_its_two_ends() -> None:
    error = refusal(axplain.ArgumentError, quadrature="trapezoid", n_steps=1)
    check_argument_error(error, "n_steps", "1 came with quadrature='trapezoid'", "at least 2")


class Silent(nn.Module):
    """Has a layer that runs never, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.pair = nn.Linear(4, 4).double(), nn.Linear(4, 4), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.pair((x, "and more"))
        return torch.tanh(self.twice(self.twice(x)))


def without_graph(x: Tensor) -> Tensor:
    with torch.no_grad():
        return NET(x)  # type: ignore[no-any-return]


MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"model": lambda x: None}, "model: it returned NoneType.*expected a tensor"),
    "a string": ({"model": lambda x: "cat"}, "model: it returned str"),
    "a number": ({"model": lambda x: 3.0}, "model: it returned float"),
    "an empty tuple": ({"model": lambda x: ()}, "model: it returned tuple"),
    "two tensors in a dict": ({"model": lambda x: {"a": x, "b": x}}, r"\['a', 'b'\].*target=lambda"),
    "an array": ({"model": lambda x: x.detach().numpy()}, "model: it returned ndarray"),
    "a loss": ({"model": lambda x: NET(x).mean(), "target": None}, r"model: \d rows went in.*shape \(\).*mean loss"),
    "a batch of one": ({"model": lambda x: NET(x).mean(0, keepdim=True)}, r"rows went in and the output has.*\(1, 3\)"),
    "the batch elsewhere": ({"model": lambda x: NET(x).T}, r"rows went in and the output has the shape \(3, 56\)"),
    "NaN": ({"model": lambda x: NET(x) * NAN}, "model: the target is NaN or inf at 56 of 56 rows"),
    "inf": ({"model": lambda x: NET(x) / 0, "target": 0}, "model: the target is NaN or inf"),
    "NaN everywhere": ({"model": lambda x: NET(x) * NAN, "target": None}, "model: .*NaN"),
    "a steep gradient": ({"model": lambda x: (x - x).abs().sqrt(), "method": "saliency"}, "20 attr|5 attr|gradient"),
    "a class": ({"model": lambda x: NET(x).argmax(1), "target": None}, "model: .*differentiably"),
    "rounded numbers": ({"model": lambda x: x.detach().round(), "method": "saliency"}, "model: .*differentiably"),
    "a detached input": ({"model": lambda x: NET(x.detach()), "method": "saliency"}, "model: .*differentiably"),
    "no graph": ({"model": without_graph}, "model: .*differentiably"),
    "a layer that runs twice": ({"model": Silent(), "target": axplain.neuron("twice", 1)}, "'twice' ran 2 times"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_be_explained_is_refused_with_the_reason(name: str) -> None:
    given, pattern = MODELS[name]
    with pytest.raises(axplain.UnsupportedModel, match=f"(?s){pattern}"):
        ask(**{"batch_size": 64} | given)


def test_a_neuron_of_a_layer_or_call_that_never_runs_is_refused_as_a_layer_is() -> None:
    for layer, words in (
        ("never", "layer 'never' is"),
        (axplain.seat("twice", call=2), r"layer 'twice' \(call 2\) is"),
    ):
        with pytest.raises(axplain.ArgumentError, match=f"^target: {words} never reached for this x; expected a layer"):
            ask(model=Silent(), target=axplain.neuron(layer, 1), method="saliency")


def test_a_neuron_of_a_layer_with_its_rows_elsewhere_is_found_behind_them() -> None:
    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn, self.back = torch.nn.Tanh(), torch.nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.back(self.turn(x.T).T)  # type: ignore[no-any-return]

    x = torch.linspace(-1, 1, 12).view(3, 4)
    for method, argument in (("saliency", "target"), ("neuron_conductance", "neuron")):
        asked: list[dict[str, Any]] = [
            {"method": method, "target": 1, argument: axplain.neuron(layer, 1)} for layer in ("turn", "back")
        ]
        turned, back = (axplain.explain(Turned(), x, **each).attributions for each in asked)
        assert bool(turned[:, 1].all()) and torch.equal(turned, back)


def test_a_layer_that_returns_more_than_a_tensor_is_read_as_an_output() -> None:
    answer = ask(model=Silent(), target=axplain.neuron("pair", 1), method="saliency")
    assert answer.attributions.tolist() == [[0.0, 1.0, 0.0, 0.0]] * 5


def test_a_baseline_where_the_model_is_not_finite_is_said() -> None:
    with pytest.raises(axplain.UnsupportedModel, match="NaN or inf"):
        ask(model=lambda x: x.abs().log(), x=X.abs() + 1, baselines=0.0)


def test_errors_of_the_model_itself_come_through_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ask(x=X[:, :3])


class Casting(nn.Module):
    """Brings its input into its own type; then fails in words of its own, where it shall."""

    def __init__(self, ill: str = "") -> None:
        super().__init__()
        self.layer, self.ill = nn.Linear(4, 3), ill

    def forward(self, x: Tensor) -> Tensor:
        if self.ill:
            raise RuntimeError(self.ill)
        told: Tensor = self.layer(x.to(self.layer.weight.dtype))
        return told


class Weighing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,jk->ik", x, self.weights)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.inner(x[:, None])[0]
        return told[:, -1]


@pytest.mark.parametrize("method", ["integrated_gradients", "shapley_value_sampling", "deeplift", "layer_activation"])
@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 3)),
        nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 2), nn.Flatten()),
        nn.Sequential(nn.LayerNorm(4)),
        nn.Sequential(nn.BatchNorm1d(4)),
        nn.Sequential(Weighing()),
        nn.Sequential(Sequences()),
    ],
    ids=["linear", "convolution", "layer_norm", "batch_norm", "matmul", "lstm"],
)
def test_two_floating_types_where_a_pass_fails_of_them_are_said(model: nn.Module, method: str) -> None:
    how: dict[str, Any] = {"layer": "0"} if method == "layer_activation" else {"target": 0}
    model = model.float().eval()
    with pytest.raises(axplain.ArgumentError, match=r"^x: float64 came.* expected float32, the type of the") as told:
        axplain.explain(model, X, method, **how)
    assert "Pass x.float(), or use model.double()." in str(told.value)
    assert isinstance(told.value.__cause__, RuntimeError | ValueError)
    with pytest.raises(axplain.ArgumentError, match=r"^x: float32 came.* Pass x\.double\(\), or use model\.float\(\)"):
        axplain.explain(model.double(), X.float(), method, **how)


def test_of_several_inputs_the_one_of_another_type_is_named() -> None:
    model = nn.Bilinear(4, 4, 3)
    with pytest.raises(axplain.ArgumentError, match=r"^x\[1\]: float64 came"):
        axplain.explain(model, (X.float(), X), target=0)


def test_noisy_parameters_tell_two_floating_types_too() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"^x: float64 came"):
        axplain.explain(nn.Sequential(nn.Linear(4, 3)), X, "saliency", noise="noisegrad", target=0)


def test_models_that_bring_inputs_into_their_type_take_any() -> None:
    found = axplain.explain(Casting(), X, "saliency", target=0)
    assert found.attributions.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert axplain.explain(nn.Linear(4, 3), X.float().bfloat16(), "saliency", target=0).attributions.any()


@pytest.mark.parametrize(("ill", "x"), [("expected scalar type Double", X.float()), ("the model is ill", X)])
def test_other_faults_of_a_model_are_not_laid_to_floating_types(ill: str, x: Tensor) -> None:
    with pytest.raises(RuntimeError, match=ill):
        axplain.explain(Casting(ill), x, "saliency", target=0)


def test_files_that_are_no_explanations_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(axplain.ArgumentError, match="file is not a safetensors file"):
        axplain.Explanation.load(path)
    save_file({"weight": X}, path, metadata={"format": "pt"})
    with pytest.raises(axplain.ArgumentError, match=r"path: .*'pt'; expected axplain-explanation-1\."):
        axplain.Explanation.load(path)


def test_every_error_is_of_one_family_and_of_the_usual_one_too() -> None:
    assert issubclass(axplain.ArgumentError, axplain.AxplainError) and issubclass(axplain.ArgumentError, ValueError)
    assert issubclass(axplain.UnknownMethod, axplain.AxplainError) and issubclass(axplain.UnknownMethod, LookupError)
    for error in (axplain.UnsupportedModel, axplain.SpecError, axplain.PluginError):
        assert issubclass(error, axplain.AxplainError)
    assert issubclass(axplain.AxplainWarning, UserWarning)


def test_a_distribution_that_is_missing_is_said_with_what_is_used() -> None:
    with pytest.warns(axplain.AxplainWarning, match="gradient_shap.*distribution.*zeros.*baselines="):
        answer = ask(method="gradient_shap", baselines=None)
    assert torch.equal(answer.attributions, ask(method="gradient_shap", baselines=0.0).attributions)


def told(call: Callable[[], Any]) -> str:
    """Return what the refusal of a call says."""
    with pytest.raises(axplain.ArgumentError) as error:
        call()
    return str(error.value)


def test_refusals_are_sentences() -> None:
    images = torch.zeros(1, 1, 4, 4)
    assert "expected none: it has no parameters." in told(lambda: axplain.explain(NET, images, "fullgrad", steps=3))
    assert "expected a finite number of at least 0, or one for each input." in told(
        lambda: axplain.explain(NET, X, "saliency", noise={"mode": "smoothgrad", "stdev": -1.0}, target=0)
    )
    assert "expected 1 index, one for each" in told(lambda: axplain.explain(NET, X, target=axplain.neuron("0", (1, 1))))
    assert "has 1 tensor;" in told(lambda: axplain.explain(NET, X, layer=axplain.seat("0", item=1), target=0))
    assert "2 targets came for 1 example;" in told(lambda: axplain.explain(NET, X[:1], target=[0, 1]))


def test_several_targets_of_a_method_without_one_are_called_so() -> None:
    text = told(lambda: axplain.explain_targets(NET, X, "layer_activation", targets=[0, 1], layer="0"))
    assert text.startswith("targets: (0, 1) came; expected nothing: layer_activation explains no target.")
