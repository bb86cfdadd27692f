"""Files and words of a command line become the values of a Python call, or an error that names the option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import axplain
from axplain.cli.inputs import Frame, Settings, load_object, parse, parse_target, read_inputs
from axplain.errors import ArgumentError
from axplain.specs import Parameter

DOUBLE = Frame(None, torch.float64)
ANY = Frame(None, None)


def numbers() -> Tensor:
    return torch.tensor([[0.1, -1.0, 2.0], [1.5, 1e-9, -0.75]], dtype=torch.float64)


def write_all(folder: Path, x: Tensor) -> None:
    np.save(folder / "x.npy", x.numpy())
    np.savez(folder / "x.npz", any_name=x.numpy())
    save_file({"any_name": x}, folder / "x.safetensors")
    torch.save(x, folder / "x.pt")
    torch.save(x, folder / "X.PTH")
    rows = [[repr(number) for number in row] for row in x.tolist()]
    (folder / "x.csv").write_text("\n".join(",".join(row) for row in rows), "utf-8")
    (folder / "x.txt").write_text("# two examples\n\n" + "\n".join("  ".join(row) for row in rows), "utf-8")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors", "x.pt", "X.PTH", "x.csv", "x.txt"])
def test_every_format_gives_the_same_numbers(name: str, tmp_path: Path) -> None:
    write_all(tmp_path, numbers())
    found = read_inputs([tmp_path / name], DOUBLE)
    assert torch.equal(found.x, numbers())
    assert found.x.dtype == torch.float64
    assert found.notes == ()


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "x.pt"])
def test_several_arrays_in_one_file_are_keyword_inputs(name: str, tmp_path: Path) -> None:
    x = {"left": numbers(), "right": torch.tensor([[1, 2], [3, 4]])}
    np.savez(tmp_path / "x.npz", left=x["left"].numpy(), right=x["right"].numpy())
    save_file(x, tmp_path / "x.safetensors")
    torch.save(x, tmp_path / "x.pt")
    found = read_inputs([tmp_path / name], DOUBLE).x
    assert set(found) == {"left", "right"}
    assert all(torch.equal(found[key], x[key]) and found[key].dtype == x[key].dtype for key in x)


def test_several_files_are_a_tuple_and_so_is_a_saved_tuple(tmp_path: Path) -> None:
    write_all(tmp_path, numbers())
    torch.save((numbers(), numbers() + 1), tmp_path / "pair.pt")
    pair = read_inputs([tmp_path / "x.npy", tmp_path / "x.csv"], DOUBLE).x
    assert isinstance(pair, tuple) and all(torch.equal(x, numbers()) for x in pair)
    saved = read_inputs([tmp_path / "pair.pt"], DOUBLE).x
    assert isinstance(saved, tuple) and torch.equal(saved[1], numbers() + 1)


def test_one_of_several_files_may_not_hold_several_arrays(tmp_path: Path) -> None:
    write_all(tmp_path, numbers())
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    with pytest.raises(ArgumentError, match=r"--input: .*two\.npz holds several arrays"):
        read_inputs([tmp_path / "x.npy", tmp_path / "two.npz"], ANY)


@pytest.mark.parametrize(
    "text", ["0.1;-1;2\n1.5;1e-9;-.75\n", "0.1\t-1\t2\n1.5\t1e-9\t-.75\n", "\ufeff0.1, -1, 2\r\n1.5, 1e-9, -.75\r\n"]
)
def test_a_table_may_be_separated_as_spreadsheets_do(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text, "utf-8", newline="")
    assert torch.equal(read_inputs([tmp_path / "x.csv"], DOUBLE).x, numbers())


def test_a_first_line_of_words_names_the_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('"the age, in years",height\n40,1.8\n', "utf-8")
    found = read_inputs([tmp_path / "x.csv"], ANY)
    assert found.columns == ("the age, in years", "height")
    assert torch.equal(found.x, torch.tensor([[40.0, 1.8]]))


def test_a_first_line_that_is_not_a_number_is_still_data(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("nan,inf\n1,2\n", "utf-8")
    assert read_inputs([tmp_path / "x.csv"], ANY).x.shape == (2, 2)  # explain refuses it, instead of losing an example


def test_a_table_takes_the_type_of_the_model_from_its_own_digits(tmp_path: Path) -> None:
    write_all(tmp_path, numbers())
    assert float(read_inputs([tmp_path / "x.csv"], DOUBLE).x[0, 0]) == 0.1  # not float32(0.1)
    assert read_inputs([tmp_path / "x.csv"], ANY).x.dtype == torch.float32
    half = read_inputs([tmp_path / "x.csv"], Frame(None, torch.float16))
    assert half.x.dtype == torch.float16 and half.notes == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_frame_is_the_floating_type_of_the_model(dtype: torch.dtype, tmp_path: Path) -> None:
    write_all(tmp_path, numbers())
    found = read_inputs([tmp_path / "x.npy"], Frame.of(torch.nn.Linear(3, 1).to(dtype)))
    assert found.x.dtype == dtype
    name = str(dtype).removeprefix("torch.")
    expected = f"{tmp_path / 'x.npy'} was converted from float64 to {name}, the type of the model's parameters"
    assert found.notes == (() if dtype == torch.float64 else (expected,))


def test_whole_numbers_keep_their_type_whatever_the_model(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 2, 3]]))
    found = read_inputs([tmp_path / "x.npy"], Frame.of(torch.nn.Linear(3, 1)))
    assert found.x.dtype == torch.int64 and found.notes == ()


def test_a_model_of_two_types_or_none_leaves_the_input_alone(tmp_path: Path) -> None:
    write_all(tmp_path, numbers())
    mixed = torch.nn.Sequential(torch.nn.Linear(3, 3).double(), torch.nn.Linear(3, 3).float())
    for model in (mixed, torch.nn.Tanh(), torch.sum):
        assert read_inputs([tmp_path / "x.npy"], Frame.of(model)).x.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.xyz", b"1", ["x.xyz came", ".csv", ".npy", "--modality image"]),
        ("x.csv", b"1,2\n3\n", ["line 2 has 1 numbers and the first has 2"]),
        ("x.csv", b"a,b\n\n1,2\n3,four\n", ["line 4: 'four' is no number"]),
        ("x.csv", b"1,,2\n", ["line 1: '' is no number"]),
        ("x.csv", b"a,b\n", ["it holds no numbers"]),
        ("x.txt", b"", ["it holds no numbers"]),
        ("x.npy", b"not numpy", ["cannot be read", "a .npy file"]),
        ("x.npz", b"not numpy", ["cannot be read", "a .npz file"]),
        ("x.safetensors", b"short", ["cannot be read", "a .safetensors file"]),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(name: str, content: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArgumentError) as caught:
        read_inputs([tmp_path / name], ANY)
    assert caught.value.argument == "--input"
    assert name in str(caught.value) and all(word in str(caught.value) for word in words), str(caught.value)


class Spy:
    """Says whether it was rebuilt from a pickle."""

    ran = False

    def __getstate__(self) -> Any:
        return {"any": 1}

    def __setstate__(self, state: Any) -> None:
        Spy.ran = True


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save(Spy(), tmp_path / "x.pt")
    with pytest.raises(ArgumentError, match="holds more than tensors"):
        read_inputs([tmp_path / "x.pt"], ANY)
    np.save(tmp_path / "x.npy", np.array([Spy()], dtype=object), allow_pickle=True)
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_inputs([tmp_path / "x.npy"], ANY)
    assert not Spy.ran


def test_a_saved_file_that_holds_no_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"x": numbers(), "rate": 0.1}, tmp_path / "x.pt")
    with pytest.raises(ArgumentError, match="holds dict; expected a tensor, a tuple or a dict of tensors"):
        read_inputs([tmp_path / "x.pt"], ANY)


@pytest.mark.parametrize(
    ("text", "expected"), [("3", 3), ("-1", -1), ("3,1", [3, 1]), ("3, 1,", [3, 1]), ("(3,7)", (3, 7)), ("(3,)", (3,))]
)
def test_a_target_reads_as_it_would_in_python(text: str, expected: Any) -> None:
    found = parse_target(text)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("text", ["three", "1.5", "3;1", "()"])
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="--target"):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "parameter", "expected"),
    [
        ("7", Parameter("int", ""), 7),
        ("7.5", Parameter("int", ""), 7.5),  # the door refuses it, by the number that came
        ("1e-3", Parameter("float", ""), 0.001),
        ("few", Parameter("float", ""), "few"),
        ("True", Parameter("bool", ""), True),
        ("off", Parameter("bool", ""), False),
        ("maybe", Parameter("bool", ""), "maybe"),
        ("left", Parameter("choice", "", choices=("left", "right")), "left"),
        ("7", Parameter("text", ""), "7"),
        ("none", Parameter("float", "", optional=True), None),
        ("none", Parameter("float", ""), "none"),
        ("0.1, 2", Parameter("float", "", per_input=True), (0.1, 2)),
        ("0.1", Parameter("float", "", per_input=True), 0.1),
        ("0.1,2", Parameter("float", ""), "0.1,2"),
        ("saliency", Parameter("method", ""), "saliency"),
        ("json:loads", Parameter("callable", ""), json.loads),
        ("8", Parameter("shape", "", per_input=True), 8),
        ("3,8,8", Parameter("shape", "", per_input=True), (3, 8, 8)),
        ("(8,)", Parameter("shape", "", per_input=True), (8,)),
        ("3,8; 4,", Parameter("shape", "", per_input=True), ((3, 8), (4,))),
        ("wide", Parameter("shape", ""), "wide"),
    ],
)
def test_a_value_is_parsed_by_the_type_that_the_spec_declares(text: str, parameter: Parameter, expected: Any) -> None:
    found = parse(text, parameter, "-p any")
    assert found == expected and type(found) is type(expected)


def test_a_tensor_parameter_is_the_path_of_a_file(tmp_path: Path) -> None:
    write_all(tmp_path, numbers())
    assert torch.equal(parse(str(tmp_path / "x.npy"), Parameter("tensor", ""), "-p rows"), numbers())


def test_settings_go_to_the_method_the_method_inside_it_and_the_parts_beside_it() -> None:
    settings = Settings(["n_samples=3", "inner=integrated_gradients", "inner.n_steps=9", "baselines.sigma=2"])
    inner = {"use": "integrated_gradients", "n_steps": 9}
    assert settings.of_method(axplain.describe("smoothgrad")) == {"n_samples": 3, "inner": inner}
    assert settings.of_component("baselines", "blur", "baseline") == {"use": "blur", "sigma": 2}
    assert settings.of_component("noise", "vargrad", "noise", key="mode") == "vargrad"
    settings.check_all_taken()


def test_a_setting_that_nothing_takes_is_refused() -> None:
    settings = Settings(["noise.stdev=3"])
    settings.of_method(axplain.describe("saliency"))
    with pytest.raises(ArgumentError, match=r"noise\.stdev came and nothing here is called 'noise'"):
        settings.check_all_taken()


def test_an_object_may_lie_inside_another_one() -> None:
    assert load_object("pathlib:Path.cwd", "--model") == Path.cwd
    with pytest.raises(ArgumentError, match=r"--model: pathlib has no 'Path\.cwdd'.* Did you mean 'cwd'"):
        load_object("pathlib:Path.cwdd", "--model")
