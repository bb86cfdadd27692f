"""The conformance kit: claims and contracts of any method, checked. Importing it loads neither torch nor hypothesis."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axplain.conformance import networks, strategies
    from axplain.conformance.case import Axiom, Case, Gap, NotApplicable, Question, Violation
    from axplain.conformance.checking import check
    from axplain.conformance.claims import REQUIRED
    from axplain.conformance.networks import Recipe
    from axplain.conformance.report import Record, Report
    from axplain.conformance.runner import Effort
    from axplain.conformance.subject import Subject
    from axplain.conformance.suite import conformance_suite

#: public name -> module that holds it; loaded on first use
_HOMES = {
    "Axiom": "case",
    "Case": "case",
    "Effort": "runner",
    "Gap": "case",
    "NotApplicable": "case",
    "Question": "case",
    "REQUIRED": "claims",
    "Recipe": "networks",
    "Record": "report",
    "Report": "report",
    "Subject": "subject",
    "Violation": "case",
    "check": "checking",
    "conformance_suite": "suite",
}
_MODULES = ("networks", "strategies")

__all__ = [
    "REQUIRED",
    "Axiom",
    "Case",
    "Effort",
    "Gap",
    "NotApplicable",
    "Question",
    "Recipe",
    "Record",
    "Report",
    "Subject",
    "Violation",
    "check",
    "conformance_suite",
    "networks",
    "strategies",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"axplain.conformance.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'axplain.conformance' has no attribute {name!r}")
    return getattr(importlib.import_module(f"axplain.conformance.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
