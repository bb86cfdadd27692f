"""What the operations before a seat are given: whether another pass would compute the same there, without running it.

Operations that are the same and get the same give the same. What draws from torch's own generators is not looked for:
the whole call is watched for that.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from axplain.propagation.operations import name_of
from axplain.structure import Tensors

#: Arguments that are the same where they are equal.
PLAIN: Final = frozenset(
    {
        *(type(None), bool, float, complex, str, type(Ellipsis)),
        *(torch.dtype, torch.device, torch.layout, torch.memory_format),
    }
)
#: Their results are what memory holds by chance.
UNFILLED: Final = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted", "resize", "resize_as"}
)


class _Made(NamedTuple):
    """A tensor that an operation of the pass gave; of step -1, what the model was called with."""

    step: int
    place: int


class _Outside(NamedTuple):
    """A tensor that was there before the pass, such as a parameter, as it was then."""

    identity: int
    version: int


class Operands:
    """What each operation of one pass over some rows was given, in order.

    `repeated`: whether a later pass gave them the same; None until one has been compared.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.repeated: bool | None = None
        self._steps: list[Any] = []  # None where that cannot be told
        self._held: list[Tensor] = []  # an id is one tensor's as long as that lives
        self._found: dict[int, Tensor] = {}  # what was there before, but for parameters, as it was
        self._names: dict[int, tuple[weakref.ref[Tensor], _Made]] = {}

    def called_with(self, inputs: Tensors, rest: Any) -> None:
        """Name what the model is called with, before it is."""
        self.made([*inputs, *tree_flatten(rest)[0]] if any(rest) else inputs)

    def note(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Add what an operation is given, before it runs."""
        given = self._told(args), self._told(tuple(kwargs.values()))
        told = _is_function_of_its_arguments(function) and None not in given
        self._steps.append((tuple(kwargs), *given) if told else None)

    def made(self, leaves: Sequence[Any]) -> None:
        """Name what the operation gave; what it hands through keeps its name."""
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and self._known(leaf) is None:
                self._names[id(leaf)] = weakref.ref(leaf), _Made(len(self._steps) - 1, place)

    def same(self, other: Operands) -> bool:
        """Whether the last operation was given what it was given in another pass."""
        step = len(self._steps) - 1
        mine, its = self._steps[step], other._steps[step]
        return mine is not None and its is not None and (mine == its or _alike(mine, its, self.rows, other.rows))

    def found_same(self, other: Operands) -> bool:
        """Whether what was there before has the numbers that another pass found; numpy writes and counts no version."""
        return all(key in other._found and torch.equal(held, other._found[key]) for key, held in self._found.items())

    def _known(self, tensor: Tensor) -> _Made | None:
        reference, name = self._names.get(id(tensor), (None, None))
        return name if reference is not None and reference() is tensor else None

    def _told(self, value: Any) -> Any:
        """Return an argument as what can be compared, None for what cannot."""
        kind = type(value)
        if kind is int:
            return value
        if kind in PLAIN:
            return kind, value  # 1, 1.0 and True are equal
        if isinstance(value, Tensor):
            name = self._known(value)
            if name is None and not value.is_inference():
                self._held.append(value)
                if not isinstance(value, torch.nn.Parameter) and id(value) not in self._found:
                    self._found[id(value)] = value.clone()
                return _Outside(id(value), value._version)
            return name
        if kind is slice:
            return self._told((value.start, value.stop, value.step))
        if isinstance(value, tuple | list):
            parts = [self._told(part) for part in value]
            return None if None in parts else (kind, *parts)
        return None


def _alike(one: Any, other: Any, rows: int, others: int) -> bool:
    """Whether arguments are the same; a number may be a multiple of the rows."""
    if type(one) is not type(other):
        return False
    if type(one) is tuple:
        return len(one) == len(other) and all(_alike(a, b, rows, others) for a, b in zip(one, other, strict=True))
    return bool(one == other) or (type(one) is int and one % rows == 0 and one * others == other * rows)


@functools.lru_cache(maxsize=4096)
def _is_function_of_its_arguments(function: Callable[..., Any]) -> bool:
    """Whether torch itself wrote an operation, and it fills what it gives; others may keep a state of their own."""
    home = (getattr(function, "__module__", None) or "torch").split(".")  # methods written in C name none
    registered = home[:2] == ["torch", "_ops"] and home[2:] != ["aten"]
    return home[0] == "torch" and not registered and name_of(function).name not in UNFILLED
