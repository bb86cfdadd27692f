"""Every class of captum's beside the call that takes its place: the same numbers, or its fault shown."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from tests.parity.captum_classes import FAULTS, PENDING, ROWS, SINGLE, Row
from tests.parity.captum_scene import answer, off, scene, tensor_of

import axplain

ROOT = Path(__file__).parents[2]
SCENE = scene()


def _id(value: Any) -> str:
    return value.name if isinstance(value, Row) else str(value)


DONE = [row for row in ROWS if row.name not in PENDING]


@pytest.fixture(autouse=True)
def _generators() -> Iterator[None]:
    """Captum draws from the global generators, of torch and of numpy."""
    state = np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        np.random.seed(1)
        yield
    np.random.set_state(state)


def test_every_class_has_its_row() -> None:
    base = captum.attr.Attribution
    others = {
        "Attribution", "GradientAttribution", "PerturbationAttribution", "LayerAttribution", "NeuronAttribution",
        "NoiseTunnel", "DataLoaderAttribution", "LLMAttribution", "LLMGradientAttribution", "RemoteLLMAttribution",
    }  # fmt: skip
    classes = {name for name, found in vars(captum.attr).items() if isinstance(found, type) and issubclass(found, base)}
    names = [row.name for row in ROWS]
    assert sorted(names) == sorted(classes - others) and len(names) == 39


def test_what_is_pending_is_known_by_name() -> None:
    """Fails once a method of that name is there, or a row is left empty."""
    assert frozenset() == PENDING
    assert {row.name for row in ROWS if not row.ours} == PENDING
    replaced = {name for spec in axplain.catalog().specs.values() for name in spec.replaces}
    assert not {f"captum.attr.{name}" for name in PENDING} & replaced, "their rows wait for a call"


@pytest.mark.parametrize("row", [row for row in DONE if row.within and not row.sampled], ids=lambda row: row.name)
def test_both_give_the_same_numbers(row: Row) -> None:
    assert row.within is not None
    theirs, ours = answer(row.theirs, SCENE), answer(row.ours, SCENE)
    assert bool(tensor_of(ours).any())
    assert off(theirs, ours) <= row.within
    assert row.within == 1e-9 or (row.within == SINGLE and "V5" in row.faults) or "V2" in row.faults


@pytest.mark.parametrize("row", [row for row in DONE if row.sampled], ids=lambda row: row.name)
def test_both_draw_from_one_law(row: Row) -> None:
    """Means over many calls differ by no more than six of their standard errors, which are small.

    Where ours gives none it took as many draws as captum, or all coalitions.
    """
    rounds = torch.stack([tensor_of(answer(row.theirs, SCENE)) for _ in range(row.sampled)])
    ours: axplain.Explanation = answer(row.ours, SCENE)
    theirs = rounds.std(0) / row.sampled**0.5
    mine = theirs if ours.standard_errors is None else ours.standard_errors
    error = (theirs**2 + mine**2).sqrt()
    assert bool(((rounds.mean(0) - ours.attributions).abs() <= 6 * error + SINGLE).all())
    assert float(error.max()) < 0.06 * float(ours.attributions.abs().max()), "too few to tell right from wrong"


@pytest.mark.parametrize("row", [row for row in DONE if row.within is None], ids=lambda row: row.name)
def test_what_is_not_the_same_has_a_fault(row: Row) -> None:
    assert row.faults and off(answer(row.theirs, SCENE), answer(row.ours, SCENE)) > 0.05


@pytest.mark.parametrize(("row", "fault"), [(row, fault) for row in DONE for fault in row.faults], ids=_id)
def test_every_fault_shows(row: Row, fault: str) -> None:
    assert fault in FAULTS
    assert answer(row.faults[fault], SCENE) is True, "captum mends it, or it never was"


def test_a_method_that_says_whose_place_it_takes_is_in_the_row() -> None:
    rows = {f"captum.attr.{row.name}": row for row in DONE}
    named = {(name, spec.name) for spec in axplain.catalog().specs.values() for name in spec.replaces}
    known = {(name, method) for name, method in named if name in rows}
    assert len(known) > 20
    assert {(name, method) for name, method in known if f"'{method}'" not in rows[name].ours} == set()


def test_the_page_is_as_new_as_the_rows() -> None:
    page = ROOT / "docs" / "captum_classes.py"
    done = subprocess.run([sys.executable, page, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
