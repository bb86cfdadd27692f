"""The kit on captum 0.9.0: it finds what captum_failures.toml lists, no more and no less."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.conformance.captum_adapter import PEERS
from tests.conformance.captum_claims import FINDINGS, SPECS, Finding, asked_of, key_of

from axplain.conformance import Effort, Record
from axplain.conformance.claims import Pair
from axplain.conformance.runner import run

ROOT = Path(__file__).parents[2]
#: many cases where a failure is looked for, which ends with the first; few where none is expected
PATIENT, QUICK, STATISTICAL = Effort(300, 300), Effort(5, 3), Effort(2, 2)
PAIRS = [(name, pair) for name in SPECS for pair in asked_of(name)]


def found(name: str, pair: Pair, expected: bool) -> Record:
    """Run one pair, with patience where it is to fail."""
    effort = PATIENT if expected else STATISTICAL if pair.kind == "statistical" else QUICK
    return run(pair, effort, PEERS[f"captum.{name}"].subject)


@pytest.mark.parametrize(("name", "pair"), PAIRS, ids=[str(pair) for _, pair in PAIRS])
def test_captum_fails_what_is_listed_and_nothing_else(name: str, pair: Pair) -> None:
    finding: Finding | None = FINDINGS.failures.get((name, key_of(pair)))
    silent = FINDINGS.silent.get(name, {}).get(key_of(pair))
    record = found(name, pair, finding is not None)
    wanted = "fail" if finding else "skip" if silent else "pass"
    outcome = "pass" if record.outcome == "reported" else record.outcome
    assert outcome == wanted, f"captum_failures.toml says {wanted}. {record}"


def test_the_findings_are_about_the_installed_release() -> None:
    assert version("captum") == FINDINGS.version


def test_every_listed_pair_is_one_that_is_asked_and_every_fault_is_described_and_used() -> None:
    asked = {(name, key_of(pair)) for name, pair in PAIRS}
    silent = {(name, key) for name, keys in FINDINGS.silent.items() for key in keys}
    assert len(asked) == len(PAIRS), "two claims of one class have the same key"
    assert not FINDINGS.failures.keys() - asked
    assert not silent - asked
    assert not silent & FINDINGS.failures.keys()
    assert {finding.fault for finding in FINDINGS.failures.values()} == FINDINGS.faults.keys()


def test_no_claim_that_a_family_has_to_make_is_left_out() -> None:
    assert [str(pair) for _, pair in PAIRS if pair.fault] == []


def test_the_page_is_as_new_as_the_findings() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "captum.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
