"""axplain: axiom-checked explanations of PyTorch models. Importing it loads neither torch nor any plugin."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axplain.adapters import from_numpy, per_batch
    from axplain.arguments import shared
    from axplain.conformance.checking import check
    from axplain.cost import Cost
    from axplain.discovery import Catalog, catalog, describe, methods
    from axplain.engine import Engine
    from axplain.errors import (
        ArgumentError,
        AxplainError,
        AxplainWarning,
        MissingExtra,
        PluginError,
        SpecError,
        UncoveredOperation,
        UnknownMethod,
        UnsupportedModel,
    )
    from axplain.explanation import Explanation
    from axplain.face import estimate, explain, explain_targets
    from axplain.guard import evaluating
    from axplain.hooks import hookimpl
    from axplain.references import distribution
    from axplain.seats.neurons import neuron
    from axplain.seats.sites import at_seat, seat
    from axplain.specs import Spec

#: public name -> module that holds it; loaded on first use
_HOMES = {
    "ArgumentError": "errors",
    "AxplainError": "errors",
    "AxplainWarning": "errors",
    "Catalog": "discovery",
    "Cost": "cost",
    "Engine": "engine",
    "Explanation": "explanation",
    "MissingExtra": "errors",
    "PluginError": "errors",
    "Spec": "specs",
    "SpecError": "errors",
    "UncoveredOperation": "errors",
    "UnknownMethod": "errors",
    "UnsupportedModel": "errors",
    "at_seat": "seats.sites",
    "catalog": "discovery",
    "check": "conformance.checking",
    "describe": "discovery",
    "distribution": "references",
    "estimate": "face",
    "evaluating": "guard",
    "explain": "face",
    "explain_targets": "face",
    "from_numpy": "adapters",
    "hookimpl": "hooks",
    "methods": "discovery",
    "neuron": "seats.neurons",
    "per_batch": "adapters",
    "seat": "seats.sites",
    "shared": "arguments",
}

__all__ = [
    "ArgumentError",
    "AxplainError",
    "AxplainWarning",
    "Catalog",
    "Cost",
    "Engine",
    "Explanation",
    "MissingExtra",
    "PluginError",
    "Spec",
    "SpecError",
    "UncoveredOperation",
    "UnknownMethod",
    "UnsupportedModel",
    "at_seat",
    "catalog",
    "check",
    "describe",
    "distribution",
    "estimate",
    "evaluating",
    "explain",
    "explain_targets",
    "from_numpy",
    "hookimpl",
    "methods",
    "neuron",
    "per_batch",
    "seat",
    "shared",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'axplain' has no attribute {name!r}")
    # not stored: `axplain.discovery` is a module, too, and importing that would hide the function again
    return getattr(importlib.import_module(f"axplain.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
