"""The door with pytest: a test class with one test for each pair of a method and an axiom."""

from __future__ import annotations

from typing import Any

import pytest

from axplain.conformance.claims import Pair, left_out, pairs_of, specs_of


def conformance_suite(*names: str, **effort: Any) -> type:
    """Return a test class that holds methods, or all methods of a distribution, to their claims and to the contracts.

    Args:
        *names: of methods or distributions.
        **effort: examples, contracts, seconds, random; as `axplain.check` takes them.

    Raises:
        UnknownMethod: nobody declares one of them.
    """
    pairs = suite_pairs(names)

    class Conformance:
        @pytest.mark.parametrize("pair", pairs, ids=str)
        def test_conformance(self, pair: Pair) -> None:
            conclude(pair, effort)

    Conformance.__doc__ = f"Claims and contracts of {', '.join(names)}."
    return Conformance


def suite_pairs(names: tuple[str, ...]) -> list[Pair]:
    """Return the pairs of methods or distributions; a plugin that cannot be used has one, which fails."""
    specs, broken = specs_of(names)
    return [pair for spec in specs for pair in pairs_of(spec)] + [left_out(entry) for entry in broken]


def conclude(pair: Pair, effort: dict[str, Any]) -> None:
    """Run one pair and tell pytest: pass, fail with the counter-example, expected failure, or skip with the reason."""
    from axplain.conformance.runner import Effort, run

    record = run(pair, Effort(**effort))
    if record.outcome == "skip":
        pytest.skip(record.reason)
    if record.outcome == "known failure":
        pytest.xfail(record.reason)
    if record.failed:
        pytest.fail(str(record), pytrace=False)
