"""A rule set of one's own works as docs/rules.md shows it, and its mistakes are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import axplain
from axplain.engine import Engine
from axplain.model import Model
from axplain.problem import Arguments, Problem
from axplain.propagation.passes import RulePass
from axplain.propagation.rules import Rule, RuleSet
from axplain.randomness import Key
from axplain.structure import Structure
from axplain.targets import IndexTarget

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text("utf-8")
NET = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()


@attrs.frozen
class OneRule(RuleSet):
    """A set without references that has one rule, for sigmoid."""

    given: Any
    references: bool = False
    unknown: Any = "refuse"

    def rule(self, operation: str) -> Rule | None:
        return Rule(lambda gradient, new, old: self.given) if operation == "sigmoid" else None


def documented() -> Any:
    """The class of the page's own example, made."""
    (text,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class SteadyRules" in block)
    scope: dict[str, Any] = {}
    exec(text, scope)
    return scope["axplain_plugin"]()()


def test_the_page_s_own_rule_set_changes_the_one_rule() -> None:
    rules = documented()
    assert rules.rule("relu") is rules.rescale.rule("relu") and rules.rule("linear") is not None
    (found,) = rules.rule("sigmoid").multipliers(torch.tensor([2.0]), None, None)
    assert found.item() == 0.5 and rules.references and rules.rule("hardshrink") is None


@pytest.mark.parametrize(
    ("given", "came"), [(None, "NoneType"), (torch.ones(1), "Tensor"), ((None, None), "2 items"), ([], "0 items")]
)
def test_a_rule_that_returns_something_else_is_named(given: Any, came: str) -> None:
    under = RulePass(OneRule(given), None, None, set())
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(axplain.PluginError, match=f"the rule of 'sigmoid' returned {came}; expected a tuple with one"):
        gradient_under(under, x)


def gradient_under(under: RulePass, x: Tensor) -> Tensor:
    """Return the gradient of the first output under a rule set, by the engine of a call."""
    model = Model(NET, Structure("tensor", ("x",)))
    problem = Problem(model, (x,), IndexTarget(torch.tensor([[0]])), None, Arguments(), Key(0))
    with torch.no_grad():
        answers = Engine(batch_size=8).ask(problem, problem.inputs, problem.everyone(), "rules", under)
    assert answers.terms is not None
    return answers.terms[0]


def test_a_rule_without_references_is_applied() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    assert isinstance(NET[0], nn.Linear) and isinstance(NET[2], nn.Linear)
    under = RulePass(OneRule((torch.ones(2, 4, dtype=torch.float64),)), None, None, set())
    expected = torch.ones(2, 4, dtype=torch.float64) @ NET[0].weight
    torch.testing.assert_close(gradient_under(under, x), expected.detach())
