"""What was written to in a pass, by its memory: a tensor may be looked at, and written to, under other names."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from torch import Tensor


@attrs.define(eq=False)
class Memories:
    """The memory of tensors before a seat, and of what was written to.

    `early`: what was made before the seat; `foreign`: what was there before the pass; `rewritten`: constants that were
    written to after they were made. `from_inputs`, `from_seat`: what was written to with numbers that depend on these.
    """

    early: set[int] = attrs.field(factory=set)
    foreign: set[int] = attrs.field(factory=set)
    rewritten: set[int] = attrs.field(factory=set)
    from_inputs: set[int] = attrs.field(factory=set)
    from_seat: set[int] = attrs.field(factory=set)
    _versions: dict[int, int] = attrs.field(factory=dict, init=False)  # of the tensors of each memory, as last met

    def met(self, tensors: Iterable[Tensor]) -> None:
        """Note tensors as an operation left them."""
        for tensor in tensors:
            self._versions[address(tensor)] = version(tensor)

    def changed(self, tensors: Iterable[Tensor]) -> bool:
        """Whether code that no mode sees wrote to one of these tensors since it was met."""
        return any(self._versions.get(address(t), version(t)) != version(t) for t in tensors)

    def write(self, target: int, *, dependent: bool, seated: bool) -> None:
        """Note a write of numbers that depend on the inputs, on the seat, or on neither."""
        if dependent:
            self.from_inputs.add(target)
        else:
            self.rewritten.add(target)
        if seated:
            self.from_seat.add(target)


def address(tensor: Tensor) -> int:
    """Return what tells a tensor's memory from others that live at the same time."""
    try:
        return int(tensor.untyped_storage().data_ptr())
    except NotImplementedError:  # sparse, or within torch.func
        return id(tensor)


def version(tensor: Tensor) -> int:
    """Return how often a tensor was written to, as far as torch counts it."""
    return 0 if tensor.is_inference() else tensor._version
