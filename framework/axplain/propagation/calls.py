"""One call of a torch function as the mode meets it, and the module that makes it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import torch
from torch import Tensor

from axplain.propagation.marks import Mark, Marks
from axplain.propagation.operations import Name, Place, flat
from axplain.propagation.rules import Call, Rule
from axplain.structure import Tensors

#: Operations that give one over something of one over something, times constants.
CARRIES_INVERSE: Final = frozenset(
    {
        *("unsqueeze", "squeeze", "expand", "expand_as", "view", "reshape", "to", "float", "double", "half", "type_as"),
        *("bfloat16", "clone", "contiguous", "mul", "div", "transpose", "permute", "broadcast_to", "getitem"),
    }
)


@attrs.frozen(eq=False)
class Met:
    """One call of a torch function that the mode met, all of its tensors, and those that depend on the seat."""

    function: Callable[..., Any]
    name: Name
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    tensors: list[tuple[Place, Tensor]]
    found: list[tuple[Place, Tensor, Mark]]
    places: list[Place] = attrs.field(init=False)  #: where the dependent tensors are among the arguments

    @places.default
    def _places(self) -> list[Place]:
        return [place for place, _, _ in self.found]

    @functools.cached_property
    def call(self) -> Call:
        """The call as rules see it, one object for all who ask."""
        return Call(self.name.name, self.function, self.arguments, self.keywords, tuple(self.places))

    def replaced_by(self, call: Call, marks: Marks) -> Met:
        """Return another call in the place of this one."""
        tensors = flat(call.arguments, call.keywords)
        found = [(place, tensor, marks.of(tensor) or "smooth") for place, tensor in tensors if place in call.places]
        return Met(call.function, Name(call.name), call.arguments, call.keywords, tensors, found)

    @property
    def nodes(self) -> set[Any]:
        """The nodes of the graph that gave what the call is given."""
        return {tensor.grad_fn for _, tensor in self.tensors}

    @property
    def written(self) -> Tensor | None:
        """The tensor that the call writes to."""
        first = self.arguments[0] if self.name.in_place and self.arguments else None
        return first if isinstance(first, Tensor) else None

    def run(self) -> Any:
        """Make the call."""
        return self.function(*self.arguments, **self.keywords)


@attrs.frozen(eq=False)
class RuledCall:
    """A call with a rule, and what came out, before it enters tape or graph. `plain` gives it without writing."""

    met: Met
    rule: Rule
    plain: Callable[..., Any]
    seen: Tensors
    output: Tensor
    extras: Tensors

    @property
    def saved(self) -> Tensors:
        """What the rule will need."""
        return (*self.seen, self.output, *self.extras)


def result_mark(met: Met) -> Mark:
    """Say whether an operation gave one over something: products with it are the divisions that they stand for."""
    name, arguments = met.name.name, met.arguments
    if name in ("rsqrt", "reciprocal"):
        return "inverse"
    if name in ("div", "true_divide", "divide") and all(place[0] == 1 for place in met.places):
        return "inverse"
    if name == "pow" and len(arguments) > 1 and isinstance(arguments[1], int | float) and arguments[1] < 0:
        return "inverse"
    if name in CARRIES_INVERSE and len(met.found) == 1:
        return "inverse" if met.found[0][2] == "inverse" else "smooth"
    return "smooth"


def calling_module(root: torch.nn.Module | None) -> tuple[str, torch.nn.Module | None]:
    """Return the module of the model that called the running operation, from the frames on the stack, and its name."""
    frame: Any = sys._getframe(1)
    names = {id(module): name for name, module in root.named_modules()} if root is not None else {}
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and id(owner) in names:
            return names[id(owner)], owner
        frame = frame.f_back
    return "", root


def module_calling(root: torch.nn.Module | None) -> str:
    """Say in which module of the model the running operation was called."""
    name, module = calling_module(root)
    kind = f" ({type(module).__name__})" if module is not None else ""
    return f"module {name!r}{kind}" if name else f"the model{kind}"
