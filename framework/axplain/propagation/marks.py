"""Which tensors depend on the seat: marks on tensors, and on memory that was written to under no mark of its own."""

from __future__ import annotations

from typing import Any, Final, Literal

import torch
from torch import Tensor

from axplain.propagation.operations import differentiable

#: "inverse": one over something. "cut": a constant that differs from the references'. "lost": computed without a graph.
Mark = Literal["smooth", "inverse", "cut", "lost"]
DIFFERS: Final = (
    "it uses a comparison, a mask, an index or a detached value that differs between the example and its reference; "
    "torch's own function (F.leaky_relu, F.relu) or a mask passed as an argument of the model would do"
)
LOST: Final = "it uses a value computed under no_grad or inside a custom autograd function"
_ATTRIBUTE: Final = "_axplain_mark"


class Marks:
    """The marks of one pass. A mark is an attribute of the tensor object and lives as long as that."""

    def __init__(self) -> None:
        self._memory: dict[int, Mark] = {}
        self._owners: list[Tensor] = []  # of that memory, so that nothing new gets its address
        self._written: list[Tensor] = []

    def put(self, tensor: Tensor, mark: Mark | None) -> None:
        """Mark a tensor; None takes its mark off."""
        setattr(tensor, _ATTRIBUTE, (self, mark, tensor.grad_fn if mark == "lost" else None))

    def of(self, tensor: Tensor) -> Mark | None:
        """Return the mark of a tensor, or of its memory."""
        marked = getattr(tensor, _ATTRIBUTE, None)
        if marked is not None and marked[0] is self:
            mark: Mark | None = marked[1]
            # what a custom function gives gets its node when the function is done: the second witness judges that
            return "smooth" if mark == "lost" and tensor.grad_fn is not marked[2] else mark
        return self._memory.get(_address(tensor)) if self._memory and differentiable(tensor) else None

    def write(self, tensor: Tensor) -> None:
        """Say that a tensor is written to: so are its views, and what it is a view of."""
        if self.of(tensor) is None:
            self._memory[_address(tensor)] = "smooth"
        self._written.append(tensor)

    def cut_memory(self, tensor: Tensor) -> None:
        """Say that another object may come to look at the numbers of a tensor that was cut off."""
        self._memory[_address(tensor)] = "cut"
        self._owners.append(tensor)

    def release(self) -> None:
        """Take the marks off tensors that were written to: they may be the model's, and outlive the pass."""
        for tensor in self._written:
            if hasattr(tensor, _ATTRIBUTE):
                delattr(tensor, _ATTRIBUTE)
        self._written.clear()
        self._owners.clear()
        self._memory.clear()


def _address(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr()) if tensor.layout == torch.strided else id(tensor)
