"""The hooks of axplain, for pluggy: one that a plugin module answers, and the events that anyone may listen to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from axplain.explanation import Explanation
    from axplain.parameters import Call
    from axplain.problem import Problem

hookspec = pluggy.HookspecMarker("axplain")
hookimpl = pluggy.HookimplMarker("axplain")


@hookspec
def axplain_plugin(kind: str, name: str) -> Any:
    """Return the class of the plugin of that kind and name; it is called with the parameters of its spec."""


@hookspec
def axplain_before_explain(call: Call, problem: Problem) -> None:
    """Hear of a question before the method runs."""


@hookspec
def axplain_after_explain(call: Call, explanation: Explanation) -> None:
    """Hear of an answer before the caller gets it."""
