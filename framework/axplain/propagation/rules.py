"""What a rule set is, and the node of the autograd graph whose backward pass is a rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor

from axplain.errors import PluginError
from axplain.propagation.operations import Operation, Place, argument_of, replaced, split_rows
from axplain.propagation.tape import Reader

#: (gradient, the operation on the examples, the one on their references) -> one multiplier per dependent input. The
#: last argument is None for sets that do not compare, so that each set's rules say which of the two they take.
Multipliers = Callable[[Tensor, Operation, Any], Sequence[Tensor | None]]


def _never(gradient: Tensor, new: Operation, old: Any) -> Sequence[Tensor | None]:
    raise AssertionError("torch takes the gradient itself")


@attrs.frozen
class Rule:
    """How multipliers go back through one operation.

    `multipliers`: plain tensor code; not given where another field says what goes back. `run`: gives the output and
    more that the multipliers will need, where computing it again would cost; it gets the function and the arguments of
    the call. `by_element`: the code does not care how many dimensions come first, so that references broadcast over the
    examples that share them instead of being copied.
    `several`: more than one input may depend on the seat. `linear`: it holds where the operation is linear, too.
    `onward`: what an operation of one element in, one out, hands on of what arrives behind it; nothing else is asked,
    but for what `run` gives beside the output.
    `choose`: returns the rule of one call, if it has one, for sets in which that depends on the call. `around`: the
    operation keeps its own gradient, between two changes. `fused`: an earlier call, perhaps with other weights, that
    the rule takes together with this one: at its own inputs the two give what this one gives.
    """

    multipliers: Multipliers = _never
    run: Callable[..., tuple[Any, ...]] | None = None
    by_element: bool = False
    several: bool = False
    linear: bool = False
    onward: Callable[..., Tensor] | None = None
    choose: Callable[[Situation], Rule | None] | None = None
    around: Around | None = None
    fused: Call | None = None


@attrs.frozen
class Around:
    """What is done to the gradient behind an operation and before each of its inputs.

    `behind`: (gradient, output) -> what the operation's own gradient is taken of. `before`: (gradient, input) -> what
    goes on, linear in the gradient, which may come in parts; None: all of it. `shares`: of each input that depends on
    the seat, in order; None: all of it. `through`: runs in the place of the operation, for another gradient at the same
    values.
    """

    behind: Callable[[Tensor, Tensor], Tensor]
    before: Callable[[Tensor, Tensor], Tensor] | None = None
    shares: tuple[float, ...] | None = None
    through: Callable[..., Tensor] | None = None


@attrs.frozen(eq=False)
class Call:
    """One call of a torch function: its canonical name, what it was called with, where its dependent tensors are."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    places: tuple[Place, ...]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by its position or name."""
        return argument_of(self.arguments, self.keywords, position, name, default)


@attrs.frozen(eq=False)
class Situation:
    """One call that is about to get its rule.

    `inverses`: which dependent inputs stand for one over something. `source`: tensor -> the call that gave it, where
    nothing has written to it since. `module`: the module that makes the call, and its dotted name.
    `scratch`: what the rule set remembers within a pass. `whole`: whether the pass begins where the model does, and not
    at a layer of it.
    """

    call: Call
    inverses: tuple[bool, ...]
    source: Callable[[Any], Call | None]
    module: Callable[[], tuple[str, torch.nn.Module | None]]
    scratch: dict[Any, Any]
    whole: bool


#: The rule of operations that a set leaves as they are: torch's own gradient, by definition of the set.
OWN_GRADIENT: Final = Rule(several=True)


#: The rule of elementwise operations that hand on what arrives behind them.
ONWARD: Final = Rule(onward=lambda gradient: gradient)


#: The rule of operations whose results a set takes as constants.
CONSTANT: Final = Rule()


#: The rule of operations that move elements where it is noted what they drop.
HANDED_ON: Final = Rule(
    several=True, linear=True, around=Around(lambda gradient, _: gradient, lambda gradient, _: gradient)
)


class RuleSet(ABC):
    """Backward rules by the name of the operation.

    `references`: whether rules compare with the same operation on references. `unknown`: what to do without a rule,
    refuse or take the plain gradient. `relevance`: whether what goes back is the target itself, shared out, instead of
    multipliers; `report`: whether what its operations keep of it is told. `fuses`: whether its rules ask which call
    gave a tensor.
    """

    references: bool = False
    unknown: Literal["refuse", "gradient"] = "refuse"
    relevance: bool = False
    report: bool = False
    fuses: bool = False

    @abstractmethod
    def rule(self, operation: str) -> Rule | None:
        """Return the rule of an operation, or None where it has none."""

    def finish(self, scratch: dict[Any, Any]) -> None:  # noqa: B027 - most sets have nothing to say
        """Refuse a pass over a whole model that did not meet what the set speaks of; see `Situation.scratch`."""


@attrs.frozen(eq=False)
class Application:
    """One operation on the examples and the rule that its backward pass applies. `output` is taken by the graph."""

    rule: Rule
    template: Operation
    saved: list[Tensor]
    reader: Reader | None
    number: int | None
    output: list[Tensor]
    book: Callable[[Tensor, Sequence[Tensor | None]], None] | None = None

    def back(self, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return what the rule gives to each dependent input."""
        found = self._back(gradient)
        if self.book is not None:
            self.book(gradient, found)
        return found

    def _back(self, gradient: Tensor) -> tuple[Tensor | None, ...]:
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


@attrs.define(eq=False)
class Ledger:
    """What operations keep of the relevance that reaches them: by operation and module, in the order of the pass."""

    kept: dict[str, float] = attrs.field(factory=dict)

    def book(self, name: str, arrived: Tensor | float, left: Tensor | float) -> None:
        """Add what arrived at an operation and left it towards x."""
        self.kept[name] = self.kept.get(name, 0.0) + float(_total(arrived)) - float(_total(left))


def _total(amount: Tensor | float) -> Tensor | float:
    return amount.double().sum() if isinstance(amount, Tensor) else amount


@attrs.frozen(eq=False)
class Passage:
    """A tensor that is known already, and what is done to the gradient that comes back, given what is saved."""

    change: Callable[..., Tensor]
    saved: list[Tensor]
    output: list[Tensor]
    book: Callable[[Tensor, Tensor], None] | None = None

    def back(self, gradient: Tensor) -> tuple[Tensor]:
        """Return what goes on."""
        changed = self.change(gradient, *self.saved)
        if self.book is not None:
            self.book(gradient, changed)
        return (changed,)


class Ruled(torch.autograd.Function):
    """A node of the graph whose backward pass is a rule."""

    @staticmethod
    def forward(ctx: Any, application: Application | Passage, *inputs: Tensor) -> Tensor:
        """Hand out the output that is known already."""
        ctx.application = application
        return application.output.pop()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Apply the rule."""
        with torch.no_grad():
            return None, *ctx.application.back(gradient)
