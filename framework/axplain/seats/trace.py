"""The operations before a seat: what they gave on two small passes, so that later passes need not run them.

`Tracing` watches a pass: which operations run before the seat is reached, and which of their results are used behind
it. `Skipping` answers those operations from memory: with the rows of what is used behind the seat, and with a blank of
the right shape for everything else. It ends at the seat, so that what runs behind it runs as it does without us.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import attrs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from axplain.propagation.operations import ABOUT, LIKE, SHAPED, Name, name_of
from axplain.seats.blanks import GRAPHED, UNLIKE, Blanks, Diverged, memory_of, outline
from axplain.seats.memories import Memories, address
from axplain.seats.operands import Operands
from axplain.structure import Tensors, map_tensors

#: Rows of the two passes; batch normalisation in training refuses a single one.
ROWS: Final = (2, 3)

#: What every block and function of torch that turns gradients on or off comes down to.
SWITCH: Final = "_set_grad_enabled"
#: Arguments that hold no tensors; most arguments are one of these, or a tensor.
_SIMPLE: Final = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size})


@attrs.frozen(eq=False)
class Step:
    """One operation before the seat. `leaves`: its results as they were; `tree`: how they are put together.

    `same`: for each leaf the position among the arguments of the tensor that was given back itself, or None.
    `constant`: whether it gives tensors that are not computed from the inputs.
    """

    name: str
    leaves: list[Any]
    tree: TreeSpec
    same: tuple[int | None, ...]
    constant: bool
    hands_on: bool = attrs.field(init=False)

    @hands_on.default
    def _gives_back_an_argument(self) -> bool:
        return any(place is not None for place in self.same)

    def put_together(self, leaves: list[Any]) -> Any:
        """Return results as the operation gives them."""
        return leaves[0] if self.tree.is_leaf() else tree_unflatten(leaves, self.tree)


class _Mode(TorchFunctionMode):
    """Meets every operation of one pass."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self._meet(func, args, kwargs or {})

    @abstractmethod
    def _meet(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation, or answer it."""


class Tracing(_Mode):
    """Watches one pass: which operations run before the seat, and what is computed from the inputs and from the seat.

    `given`: whatever else comes with the question, each time anew, such as the model's other arguments.
    What is put in the seat no longer depends on the inputs: a target that still does knows them by another way.
    `switches`: whether the model turns gradients on or off behind the seat, or puts back what it found before it.
    `written`: whether what was put in the seat has other numbers at the end. `reads`: whether the inputs themselves are
    used behind the seat.
    """

    def __init__(self, inputs: Tensors, given: Any) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.used: set[tuple[int, int]] = set()
        self.reached = self.blocked = self.switches = self.written = self.reads = self._idle = False
        self.strays: list[Tensor] = []
        self._made: dict[int, tuple[int, int]] = {}
        self._behind = {id(leaf) for leaf in tree_flatten(given)[0]}
        self._seated: set[int] = set()
        self._depends = {id(tensor) for tensor in inputs}
        self._memories = Memories()
        self._held: list[Any] = [*inputs, given]  # an id is one tensor's as long as that lives
        self._watched = [memory_of(tensor) for tensor in inputs]  # they get no numbers later
        self._constants: list[weakref.ref[Tensor]] = []

    def reach(self, leaves: Tensors) -> None:
        """Say that the seat is reached, and which tensors are put there."""
        self.reached = True
        self._held += leaves
        for tensor in leaves:
            self._seated.add(id(tensor))
            self._behind.add(id(tensor))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Look at tensors without leaving a trace."""
        self._idle = True
        try:
            yield
        finally:
            self._idle = False

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from the inputs, not only through the seat."""
        written = self._memories.from_inputs
        return id(tensor) in self._depends or (bool(written) and address(tensor) in written)

    def seated(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from the seat."""
        written = self._memories.from_seat
        return id(tensor) in self._seated or (bool(written) and address(tensor) in written)

    def give(self, output: Any) -> None:
        """Note which results of before the seat the model itself returns."""
        for leaf in tree_flatten(output)[0]:
            if isinstance(leaf, Tensor) and id(leaf) in self._made:
                self.used.add(self._made[id(leaf)])
            elif isinstance(leaf, Tensor) and id(leaf) not in self._behind:
                self.reads |= self.depends(leaf)

    @property
    def rewrites(self) -> bool:
        """Whether a constant that is used behind the seat was written to after it was made."""
        leaves = (self.steps[step].leaves[place] for step, place in self.used)
        return any(address(leaf) in self._memories.rewritten for leaf in leaves)

    def outlived(self) -> bool:
        """Forget the pass, and say whether anybody still holds what a later pass would give no numbers to.

        A model that keeps what was made before the seat, or a hook on it that does, would be left with that.
        """
        constants = self._constants if self.rewrites else []
        self.steps, self._held, self.strays = [], [], []
        return any(not memory.expired() for memory in self._watched) or any(made() is not None for made in constants)

    def _meet(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the operation, and note it."""
        if self._idle:
            return func(*args, **kwargs)
        name, given = name_of(func), _tensors(args, kwargs)
        target = address(given[0]) if name.in_place and given else None  # as it was: `set_` takes another memory
        read = _read(name, given)
        self.blocked |= self._memories.changed(given)
        self._before(name, given, read)
        result = func(*args, **kwargs)
        leaves, tree = tree_flatten(result)
        made = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._memories.met([*given, *made])
        dependent, seated = any(map(self.depends, read)), any(map(self.seated, read))
        if target is not None:
            self._memories.write(target, dependent=dependent, seated=seated)
        self._name(made, dependent=dependent, seated=seated)
        if self.reached:
            self.switches |= name.name == SWITCH
            # what is kept of before the seat are copies, and a write to one does not reach the others
            self.blocked |= target in self._memories.early
        else:
            told = any(leaf is not None and not isinstance(leaf, Tensor) for leaf in leaves)
            told &= not name.about or name.name in GRAPHED  # a pass with a graph may be told otherwise
            self.blocked |= target in self._memories.foreign or "out" in kwargs or told
            self._step(name, given, leaves, tree, dependent=dependent)
        return result

    def _before(self, name: Name, given: list[Tensor], read: list[Tensor]) -> None:
        """Note what an operation is given."""
        if self.reached:
            for tensor in read:
                self._use(tensor)
            self.blocked |= name.name in UNLIKE and any(id(tensor) not in self._behind for tensor in given)
        else:
            self._memories.foreign |= {address(tensor) for tensor in given if id(tensor) not in self._made}

    def _name(self, made: list[Tensor], *, dependent: bool, seated: bool) -> None:
        """Note where what an operation gave comes from."""
        names = {id(tensor) for tensor in made}
        self._held += made
        self._depends |= names if dependent else set()
        self._seated |= names if seated else set()
        self._behind |= names if self.reached else set()

    def _step(self, name: Name, given: list[Tensor], leaves: list[Any], tree: TreeSpec, *, dependent: bool) -> None:
        places = {id(tensor): place for place, tensor in reversed(list(enumerate(given)))}
        same = tuple(places.get(id(leaf)) for leaf in leaves)
        made = [(place, leaf) for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for place, leaf in made:
            self._memories.early.add(address(leaf))
            if same[place] is None:
                self._made[id(leaf)] = (len(self.steps), place)
                if leaf.layout != torch.strided:
                    self.blocked = True
                elif dependent:
                    self._watched.append(memory_of(leaf))
                else:
                    self._constants.append(weakref.ref(leaf))
        self.steps.append(Step(name.name, leaves, tree, same, bool(made) and not dependent))

    def _use(self, tensor: Tensor) -> None:
        if id(tensor) in self._behind:
            return
        if id(tensor) in self._made:
            self.used.add(self._made[id(tensor)])
        elif self.depends(tensor):
            self.reads = True
        elif not isinstance(tensor, torch.nn.Parameter):
            self.strays.append(tensor)


def _read(name: Name, given: list[Tensor]) -> list[Tensor]:
    """Return the tensors whose numbers an operation takes; of the others it takes but the shape."""
    if name.name in ABOUT | SHAPED:
        return []
    return given[:1] if name.name in LIKE else given


def _tensors(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[Tensor]:
    """Return every tensor among the arguments of a call, however deep; most of them are no containers."""
    found: list[Tensor] = []
    for value in (*arguments, *keywords.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value) not in _SIMPLE:
            found += [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
    return found


def _leaves(result: Any) -> list[Any]:
    return [result] if isinstance(result, Tensor) else tree_flatten(result)[0]


@attrs.frozen(eq=False)
class Trace:
    """What two small passes gave before the seat.

    `used`: what is used behind it, and its row axis. `reads`: whether the model's inputs are, too. `constants`: whether
    later passes compute constants, too; else they have no numbers then.
    """

    fewer: list[Step]
    more: list[Step]
    used: Mapping[tuple[int, int], int | None]
    reads: bool
    constants: bool

    @classmethod
    def of(cls, one: Tracing, two: Tracing) -> Trace | None:
        """Compare the passes; None where what they gave cannot be told for other numbers of rows."""
        if one.blocked or two.blocked or one.used != two.used or len(one.steps) != len(two.steps):
            return None
        if len(one.strays) != len(two.strays) or any(a is not b for a, b in zip(one.strays, two.strays, strict=True)):
            return None  # made by code that no mode sees: a custom function, a scripted module
        if not all(map(_comparable, one.steps, two.steps)):
            return None
        axes: dict[tuple[int, int], int | None] = {}
        for step, leaf in one.used:
            a, b = one.steps[step].leaves[leaf], two.steps[step].leaves[leaf]
            differing = [axis for axis in range(a.ndim) if a.shape[axis] != b.shape[axis]]
            if len(differing) > 1 or any((a.shape[axis], b.shape[axis]) != ROWS for axis in differing):
                return None  # rows are folded with something else
            axes[step, leaf] = differing[0] if differing else None
        rewritten = one.rewrites or two.rewrites
        return cls(_light(one.steps), _light(two.steps), axes, one.reads or two.reads, not rewritten)


def _comparable(one: Step, two: Step) -> bool:
    if one.name != two.name or one.tree != two.tree or one.same != two.same or one.constant != two.constant:
        return False
    for a, b in zip(one.leaves, two.leaves, strict=True):
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            return False
        if isinstance(a, Tensor):
            if a.ndim != b.ndim or a.dtype != b.dtype or a.device != b.device or a.layout != torch.strided:
                return False
            if not all(map(_grows, a.shape, b.shape)):
                return False
        elif a != b and not _grows(a, b):
            return False
    return True


def _grows(a: Any, b: Any) -> bool:
    """Whether two numbers are a constant and a multiple of the rows of their passes."""
    if type(a) is not int or type(b) is not int:
        return False
    return 0 <= ROWS[0] * (b - a) <= a


def _light(steps: list[Step]) -> list[Step]:
    """Keep shapes, not numbers."""
    return [
        attrs.evolve(step, leaves=[outline(x) if isinstance(x, Tensor) else x for x in step.leaves]) for step in steps
    ]


class _InStep(_Mode):
    """Follows a trace, operation by operation, as far as the seat."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace, self.position, self.reached, self._over = trace, 0, False, False

    def __exit__(self, *raised: Any) -> None:
        if not self._over:
            super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def reach(self) -> None:
        """Say that the seat is reached; what the model does from here on is its own."""
        if self.position != len(self.trace.fewer):
            raise Diverged
        self.reached = True
        top = _get_current_function_mode()  # type: ignore[no-untyped-call]
        if top is self:  # else the model has entered one of its own, and leaves it later
            self.__exit__(None, None, None)
            self._over = True

    def _meet(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Follow an operation before the seat, run one behind it."""
        return func(*args, **kwargs) if self.reached else self._follow(self._next(func), func, args, kwargs)

    @abstractmethod
    def _follow(self, position: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the operation at this position of the trace, or answer it."""

    def _next(self, func: Callable[..., Any]) -> int:
        """Return which operation of the trace this one is."""
        position = self.position
        if position >= len(self.trace.fewer) or self.trace.fewer[position].name != name_of(func).name:
            raise Diverged
        self.position += 1
        return position


class Keeping(_InStep):
    """Runs a pass in full and keeps the results of before the seat that are used behind it.

    `operands`: where to note what the operations before the seat are given, if anybody asks for that.
    """

    def __init__(self, trace: Trace, operands: Operands | None = None) -> None:
        super().__init__(trace)
        self.operands = operands
        self._found: dict[tuple[int, int], Tensor] = {}
        self._used = {position for position, _ in trace.used}
        self.kept: dict[tuple[int, int], Tensor] = {}

    def reach(self) -> None:
        """Copy what is kept, as it is when the seat is reached: later operations may write over it."""
        super().reach()
        self.kept = {place: self._found[place].detach().clone() for place in self.trace.used}

    def _follow(self, position: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self.operands is not None:
            self.operands.note(func, args, kwargs)
        result = func(*args, **kwargs)
        if position in self._used or self.operands is not None:
            leaves = _leaves(result)
            for place, leaf in enumerate(leaves):
                if (position, place) in self.trace.used:
                    self._found[position, place] = leaf
            if self.operands is not None:
                self.operands.made(leaves)
        return result


class Skipping(_InStep):
    """Answers the operations before the seat. `kept`: (rows, ...) of what is used behind it, rows on their own axis."""

    def __init__(self, trace: Trace, kept: Mapping[tuple[int, int], Tensor], rows: int) -> None:
        super().__init__(trace)
        self.kept, self.rows = kept, rows
        self._used = {position for position, _ in kept}
        self._blanks = Blanks()

    def end(self) -> None:
        """Raise where anybody holds what has no numbers: the model returned or kept nothing of it in the trace."""
        if self._blanks.held():
            raise Diverged

    def inputs(self, own: Tensors, examples: Tensor, rest: Any) -> Tensors:
        """Return rows to call the model with beside `rest`; they have no numbers where it reads none behind the seat.

        `own`: the inputs of all examples. `examples`: (rows,) which of them each row is.
        """
        if self.trace.reads:
            return map_tensors(lambda tensor: tensor[examples], own)
        return tuple(self._blanks.make(tensor, (self.rows, *tensor.shape[1:])) for tensor in own)

    def _follow(self, position: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        one, two = self.trace.fewer[position], self.trace.more[position]
        if one.constant and self.trace.constants and position not in self._used:
            return func(*args, **kwargs)  # what it gives may be kept by the model
        given = _tensors(args, kwargs) if one.hands_on else []
        leaves = [
            given[same] if same is not None else self._leaf((position, place), a, b)
            for place, (a, b, same) in enumerate(zip(one.leaves, two.leaves, one.same, strict=True))
        ]
        return one.put_together(leaves)

    def _leaf(self, place: tuple[int, int], one: Any, two: Any) -> Any:
        if place in self.kept:
            return self.kept[place]
        if isinstance(one, Tensor):
            return self._blanks.make(one, [self._number(a, b) for a, b in zip(one.shape, two.shape, strict=True)])
        return one if one == two else self._number(one, two)

    def _number(self, one: int, two: int) -> int:
        return one + (self.rows - ROWS[0]) * (two - one)  # rows are folded with something else, or they are not


class Repeating(Skipping):
    """Answers them, and tells whether they are given what they were given in a pass that ran them."""

    def __init__(self, trace: Trace, kept: Mapping[tuple[int, int], Tensor], rows: int, before: Operands) -> None:
        super().__init__(trace, kept, rows)
        self.operands, self.before = Operands(rows), before

    def inputs(self, own: Tensors, examples: Tensor, rest: Any) -> Tensors:
        """Return rows to call the model with beside `rest`."""
        rows = super().inputs(own, examples, rest)
        self.operands.called_with(rows, rest)
        return rows

    def reach(self) -> None:
        """Say that the seat is reached."""
        super().reach()
        self.before.repeated = self.before.repeated is None and self.operands.found_same(self.before)

    def _follow(self, position: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.operands.note(func, args, kwargs)
        if not self.operands.same(self.before):
            self.before.repeated = False
        result = super()._follow(position, func, args, kwargs)
        self.operands.made(_leaves(result))
        return result
