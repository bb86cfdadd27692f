"""The one arithmetic grammar of specs: cost, defaults and bounds, such as `batch * n_steps`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import attrs

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_CALLS: dict[str, Callable[..., Number]] = {"min": min, "max": max, "ceil": math.ceil}


@attrs.frozen
class Formula:
    """An arithmetic expression over names: numbers, + - * / // % **, min, max, ceil; nothing else."""

    text: str
    names: frozenset[str] = attrs.field(init=False, repr=False, eq=False)  #: `inner.forward_rows` counts as one name
    _tree: ast.expr = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        """Parse the text.

        Raises:
            ValueError: the text is outside the grammar.
        """
        try:
            tree = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"{self.text!r} is not arithmetic") from error
        object.__setattr__(self, "_tree", tree)
        object.__setattr__(self, "names", frozenset(_names(tree)))

    def __call__(self, values: Mapping[str, Number]) -> Number:
        """Evaluate with a value for each name."""
        return _evaluate(self._tree, values)


def _names(node: ast.expr) -> set[str]:
    match node:
        case ast.Constant(value=int() | float()):
            return set()
        case ast.Name(id=name):
            return {name}
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return {f"{owner}.{name}"}
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _names(left) | _names(right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _names(operand)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _CALLS:
            return set().union(*map(_names, arguments))
    raise ValueError(
        f"{ast.unparse(node)!r} is not arithmetic; allowed are numbers, names, + - * / // % **, min, max, ceil"
    )


def _evaluate(node: ast.expr, values: Mapping[str, Number]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return values[name]
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return values[f"{owner}.{name}"]
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_evaluate(left, values), _evaluate(right, values))
        case ast.UnaryOp(operand=operand):
            return -_evaluate(operand, values)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _CALLS[name](*(_evaluate(argument, values) for argument in arguments))
    raise AssertionError(f"_names admitted {ast.dump(node)}")
