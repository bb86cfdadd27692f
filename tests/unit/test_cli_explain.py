"""`axplain explain` gives what the Python call gives, reads what people have, and fails in one line that says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.unit.cli_calls import TOY, assert_same, explain, inputs, refused, run, toy

import axplain
from axplain.cli import main


def test_what_explain_saves_is_what_the_python_call_returns(folder: Path) -> None:
    found = explain("-p", "n_steps=7", "-p", "quadrature=midpoint", "--target", "2", "--baselines", "0.5")
    expected = axplain.explain(toy("make")(), inputs(), n_steps=7, quadrature="midpoint", target=2, baselines=0.5)
    assert_same(found, expected)
    assert found.delta is not None and expected.delta is not None
    assert torch.equal(found.delta, expected.delta)
    assert found.provenance["seed"] == 0


def test_json_output_is_the_explanation_as_a_dict(folder: Path) -> None:
    run("explain", "saliency", "--model", "toy_models:model", "--input", "x.npy", "--output", "out.json")
    found = json.loads((folder / "out.json").read_text("utf-8"))
    expected = axplain.explain(toy("model"), inputs(), "saliency").to_dict()
    assert found["attributions"] == expected["attributions"]
    assert found["target"] == expected["target"] == axplain.explain(toy("model"), inputs(), "saliency").target


@pytest.mark.parametrize("model", ["make", "model", "Net"])
def test_a_model_may_be_a_factory_a_class_or_the_model_itself(model: str, folder: Path) -> None:
    assert_same(explain(model=model), axplain.explain(toy("Net")(), inputs()))


def test_a_function_that_takes_arguments_is_the_model_and_two_files_are_two_inputs(folder: Path) -> None:
    np.save("b.npy", inputs().flip(1).numpy())
    found = explain("--input", "b.npy", model="product")
    assert_same(found, axplain.explain(toy("product"), (inputs(), inputs().flip(1))))
    assert found.structure.kind == "tuple"


def test_noise_and_its_parameters_go_around_the_method(folder: Path) -> None:
    found = explain(
        *("--noise", "smoothgrad", "-p", "noise.n_samples=3", "-p", "noise.stdev=0.5", "-p", "absolute=no"),
        method="saliency",
    )
    noise = {"mode": "smoothgrad", "n_samples": 3, "stdev": 0.5}
    assert_same(found, axplain.explain(toy("make")(), inputs(), "saliency", noise=noise, absolute=False))


def test_an_inner_method_takes_a_name_and_parameters_of_its_own(folder: Path) -> None:
    found = explain(
        *("-p", "inner=integrated_gradients", "-p", "inner.n_steps=4", "-p", "n_samples=3", "--seed", "5"),
        method="smoothgrad",
    )
    inner = {"use": "integrated_gradients", "n_steps": 4}
    assert_same(found, axplain.explain(toy("make")(), inputs(), "smoothgrad", inner=inner, n_samples=3, seed=5))


def test_an_inner_parameter_reaches_the_default_method_too(folder: Path) -> None:
    found = explain("-p", "inner.absolute=false", "-p", "n_samples=2", method="smoothgrad")
    assert found.parameters["inner"] == {"use": "saliency", "absolute": False}


def test_a_comma_separates_the_values_of_a_parameter_that_each_input_has(folder: Path) -> None:
    np.save("b.npy", inputs().numpy())
    found = explain(
        *("--input", "b.npy", "-p", "stdev=0.1,0", "-p", "n_samples=2"), method="smoothgrad", model="product"
    )
    assert found.parameters["stdev"] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("2,0", [2, 0]), ("(1)", 1), ("(1,)", 1), ("toy_models:margin", "callable margin")]
)
def test_a_target_is_an_index_one_per_example_a_tuple_or_a_function(text: str, expected: Any, folder: Path) -> None:
    found = explain("--target", text)
    assert found.target == expected
    value = toy("margin") if ":" in text else expected
    assert_same(found, axplain.explain(toy("make")(), inputs(), target=value))


@pytest.mark.parametrize(
    ("arguments", "baselines"),
    [
        (("--baselines", "-0.5"), -0.5),
        (("--baselines", "mean"), "mean"),
        (("--baselines", "rows.npy"), torch.ones(1, 4, dtype=torch.float64)),
        (("--baselines", "toy_models:half"), lambda x: x / 2),
        (("--baselines", "gaussian", "-p", "baselines.n=3"), {"use": "gaussian", "n": 3}),
        (
            ("--baselines", "distribution", "-p", "baselines.rows=set.npy"),
            axplain.distribution(torch.arange(12, dtype=torch.float64).view(3, 4)),
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_baselines_are_a_number_a_name_a_file_or_an_object(
    arguments: tuple[str, ...], baselines: Any, folder: Path
) -> None:
    np.save("rows.npy", np.ones((1, 4)))
    np.save("set.npy", np.arange(12.0).reshape(3, 4))
    assert_same(explain(*arguments), axplain.explain(toy("make")(), inputs(), baselines=baselines))


def test_a_fresh_seed_is_drawn_and_recorded(folder: Path) -> None:
    seeds = {explain("--seed", "fresh", "-p", "n_samples=2", method="smoothgrad").provenance["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_batch_size_is_obeyed(folder: Path) -> None:
    (folder / "toy_models.py").write_text(
        TOY + "rows = []\nnet = Net()\ndef seen(x):\n    rows.append(len(x))\n    return net(x)\n"
    )
    explain("--batch-size", "3", "-p", "n_steps=5", "--no-verify", "--target", "0", model="seen")
    assert max(toy("rows")) <= 3 and sum(toy("rows")) == 10


def test_a_file_of_ones_own_composes_a_method(folder: Path) -> None:
    lines = ["spec = 1", 'kind = "method"', 'name = "mine"', 'title = "Mine"', 'version = "1"', 'summary = "Gradient."']
    lines += ["[composition]", 'perturbation = "identity"', 'evaluation = "gradient"', 'aggregation = "weighted_sum"']
    lines += ["[cost]", 'forward_rows = "batch"', 'backward_rows = "batch"']
    (folder / "mine.toml").write_text("\n".join(lines), "utf-8")
    assert "(method mine)" in run("show", "mine.toml").stdout
    found = explain(method="mine.toml")
    expected = axplain.explain(toy("make")(), inputs(), "saliency", absolute=False)
    assert torch.equal(found.attributions, expected.attributions)
    assert found.method == "mine"


def test_several_arrays_in_one_file_are_keyword_inputs(folder: Path) -> None:
    x = {"left": inputs(), "right": inputs().flip(0)}
    np.savez("two.npz", left=x["left"].numpy(), right=x["right"].numpy())
    found = explain(model="Keyword", x="two.npz")
    assert_same(found, axplain.explain(toy("Keyword")(), x))
    assert set(found.attributions) == {"left", "right"}


def test_a_file_of_an_unknown_format_is_refused_with_the_known_ones(folder: Path) -> None:
    (folder / "x.xyz").write_text("1", "utf-8")
    result = run("explain", "saliency", "--model", "toy_models:make", "--input", "x.xyz", status=1)
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: --input: x.xyz came;")
    assert ".csv, .npy, .npz" in line and "--modality image" in line


def test_names_in_the_first_line_of_a_table_name_the_features(folder: Path) -> None:
    (folder / "x.csv").write_text('"the age",income,height,debt\n0.5,-1,2,0.25\n', "utf-8")
    out = run("explain", "integrated_gradients", "--model", "toy_models:make", "--input", "x.csv", "--top", "4").stdout
    expected = axplain.explain(toy("make")(), inputs()[:1]).top(4)
    names = ["the age", "income", "height", "debt"]
    listed = [line.strip() for line in out.splitlines()[-4:]]
    assert [line.split("  ")[0] for line in listed] == [names[feature.index[0]] for feature in expected]


def test_an_array_in_another_type_than_the_model_is_converted_and_the_note_says_so(folder: Path) -> None:
    result = run(
        "explain", "saliency", "--model", "toy_models:single", "--input", "x.npy", "--output", "out.safetensors"
    )
    assert result.stderr.splitlines() == [
        "note: x.npy was converted from float64 to float32, the type of the model's parameters"
    ]
    expected = axplain.explain(toy("single")(), inputs().float(), "saliency")
    assert_same(axplain.Explanation.load("out.safetensors"), expected)


def test_pictures_go_through_the_modality_and_the_transform(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    for number in range(2):
        image.fromarray(pixels[number]).save(f"{number}.png")
    arguments = ("--modality", "image", "--transform", "toy_models:transform", "--input", "1.png", "--target", "0")
    found = explain(*arguments, method="input_x_gradient", model="Picture", x="0.png")
    expected = torch.zeros(2, 3, 6, 5, dtype=torch.float64)
    expected[:, 0] = torch.from_numpy(pixels[..., 0]).double() / 255  # F sums the first channel: x times 1 there
    assert torch.allclose(found.attributions, expected, rtol=0, atol=1e-12)
    assert found.provenance["modality"] == "image"
    same = ("--modality", "image", "-p", "modality.transform=toy_models:transform", "--target", "0")
    alone = explain(*same, method="input_x_gradient", model="Picture", x="0.png")
    assert torch.equal(alone.attributions, found.attributions[:1])


def test_explain_prints_target_residual_cost_seconds_and_the_strongest_features(folder: Path) -> None:
    out = run("explain", "integrated_gradients", "--model", "toy_models:make", "--input", "x.npy", "--top", "2").stdout
    expected = axplain.explain(toy("make")(), inputs())
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == "integrated_gradients: 2 examples of 4"
    assert lines[1] == f"target     {expected.target[0]}, {expected.target[1]} (predicted)"
    assert expected.delta is not None and expected.difference is not None
    worst = int(expected.delta.abs().argmax())
    assert lines[2].startswith(
        f"residual   completeness {float(expected.delta[worst]):+.2g} beside "
        f"F(x) - F(x') = {float(expected.difference[worst]):+.4g}"
    )
    assert lines[3] == f"cost       100 rows forward, 100 backward, {expected.cost.check_rows} more for checks"
    assert lines[4].startswith("time") and lines[4].endswith(" s")
    for example in range(2):
        start = lines.index(f"example {example}, target {expected.target[example]}") + 2
        for line, feature in zip(lines[start : start + 2], expected.top(2, example), strict=True):
            assert line.split()[:2] == [f"x[{feature.index[0]}]", f"{feature.value:+.4g}"]
        assert lines[start].endswith(" " + "#" * 20)


def test_the_residual_is_none_claimed_or_not_checked_where_there_is_none(folder: Path) -> None:
    arguments = ("--model", "toy_models:make", "--input", "x.npy")
    assert "residual   none claimed" in run("explain", "saliency", *arguments).stdout
    assert "residual   not checked" in run("explain", "integrated_gradients", *arguments, "--no-verify").stdout


def test_standard_errors_stand_beside_sampled_attributions(folder: Path) -> None:
    arguments = ("--model", "toy_models:make", "--input", "x.npy", "-p", "n_samples=5", "--top", "1")
    last = run("explain", "smoothgrad", *arguments).stdout.splitlines()[-1].split()
    expected = axplain.explain(toy("make")(), inputs(), "smoothgrad", n_samples=5)
    [feature] = expected.top(1, 1)
    error = float(expected.standard_errors[1][feature.index])
    assert last[:4] == [f"x[{feature.index[0]}]", f"{feature.value:+.4g}", "+-", f"{error:.1g}"]


def test_a_reached_tolerance_is_told(folder: Path) -> None:
    arguments = ("--model", "toy_models:make", "--input", "x.npy", "--tolerance", "1e-5")
    out = run("explain", "integrated_gradients", *arguments).stdout
    assert "tolerance  asked 1e-05, reached true" in out


def test_top_zero_prints_no_feature_and_many_examples_are_cut_short(folder: Path) -> None:
    arguments = ("explain", "saliency", "--model", "toy_models:make", "--input")
    assert "example 0" not in run(*arguments, "x.npy", "--top", "0").stdout
    np.save("many.npy", np.ones((9, 4)))
    out = run(*arguments, "many.npy").stdout
    assert "example 4" in out and "example 5" not in out
    assert "4 more examples" in out


def test_an_estimate_is_what_the_run_costs_and_runs_nothing(folder: Path) -> None:
    arguments = ("explain", "integrated_gradients", "--input", "x.npy", "-p", "n_steps=6", "--model")
    planned = run(*arguments, "toy_models:Sick", "--estimate").stdout
    assert "12 rows forward, 12 backward" in planned
    assert "12 rows forward, 12 backward" in run(*arguments, "toy_models:make").stdout


def test_a_warning_is_one_line_on_stderr(folder: Path) -> None:
    result = run("explain", "gradient_shap", "--model", "toy_models:make", "--input", "x.npy", "-p", "n_samples=2")
    [line] = result.stderr.splitlines()
    assert line.startswith("warning: gradient_shap explains against a distribution of baselines and none was given")
    assert "warning" not in result.stdout


def test_a_model_in_training_mode_is_warned_of(folder: Path) -> None:
    torch.manual_seed(0)
    result = run("explain", "saliency", "--model", "toy_models:dropping", "--input", "x.npy", "--target", "0")
    assert any(line.startswith("warning: the model is in training mode") for line in result.stderr.splitlines())


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_on_stderr_only_where_that_is_a_terminal(terminal: bool, folder: Path) -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)  # an empty terminal raises instead of waiting for ever
    termios.tcsetwinsize(theirs, (24, 80))
    arguments = ["explain", "saliency", "--model", "toy_models:make", "--input", "x.npy"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "axplain.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=theirs if terminal else subprocess.PIPE,
            text=True,
            cwd=folder,
        )
        drawn = _drawn(ours) if terminal else done.stderr
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 0
    assert done.stdout.startswith("saliency: 2 examples of 4\n")
    assert "2/2" in drawn if terminal else drawn == ""


def _drawn(terminal: int) -> str:
    try:
        return os.read(terminal, 10_000).decode()
    except BlockingIOError:
        return ""


def test_an_unknown_method_is_refused_with_near_names(folder: Path) -> None:
    error = refused(method="integrated_gradient")
    assert "'integrated_gradient'" in error and "Did you mean 'integrated_gradients'" in error


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("n_step=5", ["n_step", "Did you mean 'n_steps'"]),
        ("n_steps=50.9", ["n_steps", "50.9", "a whole number"]),
        ("n_steps=many", ["n_steps", "'many'", "a whole number"]),
        ("n_steps=0", ["n_steps", "0 came", "at least 1"]),
        ("quadrature=simpson", ["quadrature", "'simpson'", "gauss_legendre"]),
        ("n_steps", ["-p", "'n_steps'", "name=value"]),
        ("target=3", ["-p", "target", "an argument of explain"]),
        ("noise.stdev=1", ["-p", "noise.stdev", "'noise'"]),
    ],
)
def test_a_bad_parameter_is_refused_by_name(pair: str, words: list[str], folder: Path) -> None:
    error = refused("-p", pair)
    assert all(word in error for word in words), error


def test_a_parameter_that_comes_twice_is_refused(folder: Path) -> None:
    assert "n_steps came twice" in refused("-p", "n_steps=2", "-p", "n_steps=3")


def test_a_missing_file_and_a_missing_option_are_errors_of_usage(folder: Path) -> None:
    error = refused("--input", "nowhere.npy", status=2)
    assert "--input" in error and "nowhere.npy" in error
    assert "--model" in run("explain", "saliency", "--input", "x.npy", status=2).stderr


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("toy_models:fails", ["--model", "toy_models:fails", "ValueError", "no weights here"]),
        ("toy_models:mak", ["--model", "toy_models", "'mak'", "Did you mean 'make'"]),
        ("toy_models", ["--model", "'toy_models'", "pkg.mod:name"]),
        ("toy_modles:make", ["--model", "No module named 'toy_modles'", "current directory"]),
        ("toy_models:number", ["--model", "int", "callable"]),
    ],
)
def test_a_model_that_cannot_be_had_is_refused(model: str, words: list[str], folder: Path) -> None:
    error = refused(model=model)
    assert all(word in error for word in words), error


def test_a_model_that_fails_is_one_line_too_and_debug_shows_where(folder: Path) -> None:
    error = refused(model="toy_models:Sick")
    assert "RuntimeError: the model is ill very ill" in error and "--debug" in error
    arguments = ["--debug", "explain", "saliency", "--model", "toy_models:Sick", "--input", "x.npy"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)
    assert any(entry.name == "forward" for entry in traceback.extract_tb(result.exception.__traceback__))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "first"), ["--target", "'first'"]),
        (("--target", "7"), ["target", "7 came"]),
        (("--baselines", "blurr"), ["'blurr'", "'blur'"]),
        (("--baselines", "none.npy"), ["--baselines", "none.npy does not exist"]),
        (("--noise", "smooth"), ["'smooth'", "'smoothgrad'"]),
        (("--modality", "imag"), ["'imag'", "'image'"]),
        (("--transform", "toy_models:transform"), ["--transform", "--modality"]),
        (("--tolerance", "-1"), ["tolerance", "-1"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_argument_that_cannot_be_used_is_refused_by_name(
    arguments: tuple[str, ...], words: list[str], folder: Path
) -> None:
    error = refused(*arguments)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "option",
    ["--output out.png", "--output nowhere/out.json", "--seed x", "--batch-size x", "--top -1", "--tolerance x"],
)
def test_an_error_of_usage_is_seen_before_anything_runs(option: str, folder: Path) -> None:
    assert option.split()[0] in refused(*option.split(), status=2, model="toy_models:Sick")


def test_the_path_of_imports_is_as_before_also_after_a_failure(folder: Path) -> None:
    before = list(sys.path)
    explain()
    refused(model="toy_models:Sick")
    assert sys.path == before


@pytest.mark.parametrize(("name", "status"), [("make", 0), ("Sick", 1), ("nothing", 1)])
def test_a_check_of_ones_own_model_leaves_the_path_of_imports_as_before(name: str, status: int, folder: Path) -> None:
    before = list(sys.path)
    asked = ("--model", f"toy_models:{name}", "--input", "x.npy", "--axiom", "clean_model")
    run("check", "saliency", *asked, status=status)
    assert sys.path == before and "toy_models" in sys.modules
