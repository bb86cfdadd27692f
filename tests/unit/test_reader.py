"""Specs from TOML: what is read, and that every fault of a file is named with its place, all at once."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from axplain import SpecError
from axplain.formula import Formula
from axplain.reader import RESERVED, read_spec, structure_spec
from axplain.specs import FromParameter, Use

GOOD: dict[str, Any] = tomllib.loads("""
spec = 1
kind = "method"
name = "mine"
title = "Mine"
version = "1.0.0"
summary = "A method."
citation = ["arXiv:1703.01365"]
[composition]
baseline = "reference"
perturbation = { use = "straight_path", n = { parameter = "n_steps" }, rule = "left" }
evaluation = "gradient"
aggregation = { use = "weighted_sum", multiply_by = "tangent" }
[parameters.n_steps]
type = "int"
default = 5
min = 1
doc = "Nodes."
[cost]
forward_rows = "batch * n_steps"
backward_rows = "batch * n_steps"
[[axioms]]
id = "completeness"
kind = "for_class"
class = "linear"
""")


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the good document with one entry set."""
    document = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return document


def test_a_good_document_becomes_a_spec() -> None:
    spec = structure_spec(GOOD, "mine.toml")
    assert spec.composition is not None
    assert spec.composition.perturbation == Use("straight_path", {"n": FromParameter("n_steps"), "rule": "left"})
    assert spec.composition.perturbation.resolve({"n_steps": 7}) == {"n": 7, "rule": "left"}
    assert spec.baseline == "reference"
    assert spec.cost is not None and spec.cost.forward_rows == Formula("batch * n_steps")
    assert spec.axioms[0].model_class == "linear"
    assert spec.claim("completeness") is None, "a claim for a class of models is none that every call is held to"
    assert spec.parameters["n_steps"].default == 5 and not spec.parameters["n_steps"].required


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("parameters.n_steps.default", 5, None),
        ("spec", 2, r"spec = 2, this axplain reads spec = 1 @ mine.toml.spec"),
        ("kind", "thing", r"kind 'thing' is none of .*@ mine.toml.kind"),
        ("titel", "x", r"extra fields found \(titel\) @ mine.toml"),
        ("origin", "x", r"extra fields found \(origin\) @ mine.toml"),
        ("signed", "false", r"expected bool, got 'false' @ mine.toml.signed"),
        ("citation", "abc", r"expected a list of strings, got 'abc' @ mine.toml.citation"),
        ("version", 1, r"expected str, got 1 @ mine.toml.version"),
        ("parameters.n_steps.min", "2 *", r"'2 \*' is not arithmetic @ mine.toml.parameters"),
        ("parameters.n_steps.min", "2 * m", r"'m' is neither a parameter .*@ mine.toml.parameters.n_steps.min"),
        ("parameters.n_steps.type", "integer", r"'integer' is none of 'int'.*@ mine.toml.parameters"),
        ("parameters.n_steps.choices", ["a"], r"choices belong to type = 'choice'.*@ mine.toml.parameters.n_steps"),
        (
            "parameters.target",
            {"type": "int", "doc": "x"},
            r"'target' is an argument of explain @ mine.toml.parameters",
        ),
        ("cost.forward_rows", "batch * steps", r"'steps' is neither a parameter .*@ mine.toml.cost.forward_rows"),
        ("composition.evaluation", "gradients", r"expected 'value', 'gradient', .*@ mine.toml.composition"),
        ("composition.perturbation", {"n": 3}, r"expected a name or \{ use = name.*@ mine.toml.composition"),
        ("composition.baseline", "zeros", r"'zeros' is none of 'none', 'reference'.*@ mine.toml.composition"),
        ("composition.post", {"sign": True}, r"expected a table with the key abs.*@ mine.toml.composition"),
        (
            "composition.perturbation.n",
            {"parameter": "m"},
            r"'m' is not a parameter.*@ mine.toml.composition.perturbation.n",
        ),
        ("provides", ["weight"], r"only a perturbation provides @ mine.toml.provides"),
        ("seats", ["output"], r"expected 'inner' or a list of .*@ mine.toml.seats"),
    ],
)
def test_each_fault_is_named_with_its_place(path: str, value: Any, fault: str | None) -> None:
    if fault is None:
        assert structure_spec(changed(path, value), "mine.toml").name == "mine"
        return
    with pytest.raises(SpecError, match=fault):
        structure_spec(changed(path, value), "mine.toml")


def test_all_faults_of_a_file_come_at_once() -> None:
    document = changed("signed", 1) | {"name": 3, "colour": "red"}
    with pytest.raises(SpecError) as caught:
        structure_spec(document, "mine.toml")
    assert len(caught.value.faults) == 3


def test_a_method_without_cost_and_a_baseline_with_one_are_refused() -> None:
    document = copy.deepcopy(GOOD)
    del document["cost"]
    with pytest.raises(SpecError, match=r"a method states its cost @ mine.toml.cost"):
        structure_spec(document, "mine.toml")
    with pytest.raises(SpecError, match=r"a baseline has no composition"):
        structure_spec(GOOD | {"kind": "baseline"}, "mine.toml")


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("spec = ")
    with pytest.raises(SpecError, match=r"not TOML: .* @ broken.toml"):
        read_spec(path)


def test_every_argument_of_explain_is_reserved() -> None:
    import inspect

    import axplain

    arguments = {p.name for p in inspect.signature(axplain.explain).parameters.values() if p.kind is not p.VAR_KEYWORD}
    assert arguments == RESERVED


def test_a_default_of_another_type_is_refused() -> None:
    with pytest.raises(SpecError, match=r"default '5' is no number @ mine.toml.parameters.n_steps.default"):
        structure_spec(changed("parameters.n_steps.default", "5"), "mine.toml")
