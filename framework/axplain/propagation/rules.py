"""What a rule set is, and the node of the autograd graph whose backward pass is a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol

import attrs
import torch
from torch import Tensor

from axplain.errors import PluginError
from axplain.propagation.operations import Operation, replaced, split_rows
from axplain.propagation.tape import Reader

#: (gradient, the operation on the examples, the one on their references) -> one multiplier per dependent input. The
#: last argument is None for sets that do not compare, so that each set's rules say which of the two they take.
Multipliers = Callable[[Tensor, Operation, Any], Sequence[Tensor | None]]


@attrs.frozen
class Rule:
    """How multipliers go back through one operation.

    `multipliers`: plain tensor code. `run`: gives the output and more that the multipliers will need, where computing
    it again would cost; it gets the function and the arguments of the call. `by_element`: the code does not care how
    many dimensions come first, so that references broadcast over the examples that share them instead of being copied.
    `several`: more than one input may depend on the seat.
    """

    multipliers: Multipliers
    run: Callable[..., tuple[Any, ...]] | None = None
    by_element: bool = False
    several: bool = False


def _never(gradient: Tensor, new: Operation, old: Any) -> Sequence[Tensor | None]:
    raise AssertionError("torch takes the gradient itself")


#: The rule of operations that a set leaves as they are: torch's own gradient, by definition of the set.
OWN_GRADIENT: Final = Rule(_never, several=True)


class RuleSet(Protocol):
    """Backward rules by the name of the operation.

    `references`: whether rules compare with references. `unknown`: what to do without a rule, refuse or take the plain
    gradient.
    """

    @property
    def references(self) -> bool:
        """Whether the rules need the same operation on the references."""
        ...

    @property
    def unknown(self) -> Literal["refuse", "gradient"]:
        """What happens to an operation that has no rule."""
        ...

    def rule(self, operation: str) -> Rule | None:
        """Return the rule of an operation, or None where it has none."""
        ...


@attrs.frozen(eq=False)
class Application:
    """One operation on the examples and the rule that its backward pass applies. `output` is taken by the graph."""

    rule: Rule
    template: Operation
    saved: list[Tensor]
    reader: Reader | None
    number: int | None
    output: list[Tensor]

    def back(self, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return what the rule gives to each dependent input."""
        template, count = self.template, len(self.template.places)
        inputs, output, extras = tuple(self.saved[:count]), self.saved[count], tuple(self.saved[count + 1 :])
        arguments, keywords = replaced(template.arguments, template.keywords, template.places, inputs)
        new = attrs.evolve(
            template, arguments=tuple(arguments), keywords=keywords, inputs=inputs, output=output, extras=extras
        )
        if self.reader is None or self.number is None:
            return self._checked(self.rule.multipliers(gradient, new, None), inputs)
        half = gradient.dtype in (torch.float16, torch.bfloat16)
        shared = self.reader.shared(self.number) if self.rule.by_element and not half else None
        if shared is None:
            old = self.reader.tape.operation(self.number, new, self.reader.rows)
            if half:  # differences of numbers with three digits tell nothing about a slope
                gradient, new, old = gradient.float(), new.widened(), old.widened()
            return self._checked(self.rule.multipliers(gradient, new, old), inputs)
        old = self.reader.tape.broadcast(self.number, new, shared)
        found = self.rule.multipliers(split_rows(gradient, shared), new.unflatten(shared), old)
        return tuple(None if m is None else m.flatten(0, 1) for m in self._checked(found, inputs))

    def _checked(self, found: Any, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Return what a rule gave, in the inputs' own types, if it is one multiplier for each of them."""
        if isinstance(found, Tensor) or not isinstance(found, Sequence) or len(found) != len(inputs):
            came = f"{len(found)} items" if isinstance(found, tuple | list) else type(found).__name__
            raise PluginError(
                f"the rule of {self.template.name!r} returned {came}; expected a tuple with one multiplier, or None, "
                f"for each of the {len(inputs)} inputs that depend on x"
            )
        return tuple(m if m is None else m.to(x.dtype) for m, x in zip(found, inputs, strict=True))


class Ruled(torch.autograd.Function):
    """A node of the graph whose backward pass is a rule."""

    @staticmethod
    def forward(ctx: Any, application: Application, *inputs: Tensor) -> Tensor:
        """Hand out the output that is known already."""
        ctx.application = application
        return application.output.pop()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Apply the rule."""
        with torch.no_grad():
            return None, *ctx.application.back(gradient)
