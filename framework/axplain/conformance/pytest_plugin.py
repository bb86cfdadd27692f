"""The pytest plugin: `pytest --axplain-method NAME`, `pytest --axplain-distribution DIST`, without a test file.

Every pytest run on a machine with axplain loads this module, so it imports neither torch nor hypothesis.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from axplain.conformance.claims import Pair


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("axplain", "conformance of explanation methods")
    help_ = "hold {} to its claims and to the contracts; may be given several times"
    group.addoption("--axplain-method", action="append", default=[], metavar="NAME", help=help_.format("a method"))
    group.addoption(
        "--axplain-distribution",
        action="append",
        default=[],
        metavar="DIST",
        help=help_.format("all of a distribution"),
    )
    group.addoption("--axplain-examples", type=int, default=20, metavar="N", help="drawn cases per claim (20)")
    group.addoption("--axplain-random", action="store_true", help="draw other cases in every run")


def pytest_configure(config: pytest.Config) -> None:
    """Collect nothing else where no path was given."""
    if _names(config) and config.args_source != pytest.Config.ArgsSource.ARGS:
        config.args = []


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is checked, and what is known to fail."""
    if not _names(config):
        return []
    pairs = _pairs(config)
    known = [f"  known failure: {pair.method}, {pair.axiom}: {pair.known}" for pair in pairs if pair.known]
    return [f"axplain: {len(pairs)} pairs of a method and an axiom, of {', '.join(_names(config))}", *known]


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each pair."""
    if _names(config):
        suite = ConformanceSuite.from_parent(session, name="axplain", nodeid="axplain")
        items.extend(suite.collect())


class ConformanceSuite(pytest.Collector):
    """The pairs that the options ask for."""

    def collect(self) -> Iterator[ConformanceItem]:
        """Yield a test for each pair."""
        for pair in _pairs(self.config):
            yield ConformanceItem.from_parent(self, name=str(pair), pair=pair)


class ConformanceItem(pytest.Item):
    """One method and one axiom."""

    def __init__(self, *, pair: Pair, **named: Any) -> None:
        super().__init__(**named)
        self.pair = pair

    def runtest(self) -> None:
        """Check the pair."""
        from axplain.conformance.suite import conclude

        given = self.config.getoption
        conclude(self.pair, {"examples": given("axplain_examples"), "random": given("axplain_random")})

    def reportinfo(self) -> tuple[str, None, str]:
        """Say what is tested, where no file says it."""
        return "axplain", None, str(self.pair)


def _names(config: pytest.Config) -> tuple[str, ...]:
    return (*config.getoption("axplain_method"), *config.getoption("axplain_distribution"))


def _pairs(config: pytest.Config) -> list[Pair]:
    from axplain.conformance.suite import suite_pairs
    from axplain.errors import UnknownMethod

    try:
        return suite_pairs(_names(config))
    except UnknownMethod as error:
        raise pytest.UsageError(str(error)) from error
