"""Sees by operation what a model adds that does not scale with its input: biases, explicit and implicit.

The bias of an operation `y = f(z)` at z is `y - J z`, with J its derivative and z all that depends on the input: the
bias of a convolution, the shift of a normalisation, what a smooth activation has beside its tangent. With `x - J x`
taken for every operation, F(x) is the sum of `x * dF/dx` and of `bias * dF/dy` over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from axplain.errors import UncoveredOperation
from axplain.forward_mode import dual_level, lacks_forward_derivative, unfused
from axplain.propagation.calls import module_calling
from axplain.propagation.marks import Marks
from axplain.propagation.operations import (
    LINEAR,
    Place,
    differentiable,
    flat,
    in_training,
    is_linear,
    name_of,
    replaced,
    tensors_in,
)
from axplain.structure import Tensors

#: Linear names that take numbers, or tensors that do not depend on x, as what they add or put in.
ADDING: Final = frozenset(
    {
        *("add", "sub", "subtract", "rsub", "pad", "constant_pad_nd", "setitem", "copy", "cat", "concat"),
        *("concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "row_stack", "block_diag"),
    }
)
#: Products and quotients, which add nothing where one of them depends on x.
MULTIPLYING: Final = frozenset({"mul", "multiply", "matmul", "mm", "bmm", "einsum", "div", "true_divide"})
#: Linear in the input beside a bias that they state, their third argument.
WEIGHING: Final = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
#: f(c z) = c f(z) for c > 0, so f(z) = J z: no bias.
HOMOGENEOUS: Final = frozenset(
    {
        *("relu", "leaky_relu", "prelu", "abs", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d"),
        *("adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "amin", "dropout", "feature_dropout"),
    }
)


@attrs.frozen(eq=False)
class Bias:
    """What one operation added, and where its output is in the graph."""

    value: Tensor
    output: GradientEdge
    name: str


class SeeingBiases(TorchFunctionMode):
    """Keeps the bias of every operation that depends on the input while one pass with a graph runs."""

    def __init__(self, root: torch.nn.Module | None, inputs: Tensors) -> None:
        super().__init__()
        self.root, self.marks = root, Marks()
        self.biases: list[Bias] = []
        for tensor in inputs:
            self.marks.put(tensor, "smooth")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Meet one operation."""
        kwargs = kwargs or {}
        found = [(place, tensor) for place, tensor in flat(args, kwargs) if self.marks.of(tensor)]
        if not found:
            return func(*args, **kwargs)
        name = name_of(func)
        if in_training(name.name, args, kwargs):
            self._refuse(name.name, "it runs in training mode; call model.eval()")
        written = args[0] if name.in_place and args and isinstance(args[0], Tensor) else None
        told: Tensors | None = None
        weighs = name.name in WEIGHING and [place for place, _ in found] in ([(0,)], [("input",)])
        if not weighs and not _has_no_bias(name.name, found, args, kwargs):
            told = self._biases_of(func, args, kwargs, found, written is not None)
        result = func(*args, **kwargs)
        if weighs:
            told = _stated(name.name, args, kwargs, result)
        if written is not None:
            self.marks.write(written)
        outputs = [t for t in ([written] if written is not None else tensors_in(result)) if differentiable(t)]
        for i, output in enumerate(outputs):
            if output.grad_fn is None:
                continue  # detached: a constant from here on
            self.marks.put(output, "smooth")
            if told is not None and bool(told[i].any()):
                self.biases.append(Bias(told[i], get_gradient_edge(output), name.name))
        return result

    def _biases_of(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        found: list[tuple[Place, Tensor]],
        writes: bool,
    ) -> Tensors:
        """Return `y - J z` for each floating result, from one forward derivative along z itself."""
        smooth = [(place, tensor.detach().clone()) for place, tensor in found if differentiable(tensor)]
        with torch.no_grad(), unfused(), dual_level():
            duals = [forward_ad.make_dual(tensor, tensor.clone()) for _, tensor in smooth]  # type: ignore[no-untyped-call]
            positional, named = replaced(args, kwargs, tuple(place for place, _ in smooth), duals)
            if writes and not self.marks.of(args[0]):
                positional[0] = args[0].detach().clone()
            try:
                result = func(*positional, **named)
            except (NotImplementedError, RuntimeError) as error:
                if not lacks_forward_derivative(error):
                    raise
                self._refuse(name_of(func).name, "it has no forward derivative, which tells its bias")
            outputs = [positional[0]] if writes else [t for t in tensors_in(result) if differentiable(t)]
            return tuple(_beside_tangent(output) for output in outputs)

    def _refuse(self, name: str, why: str) -> None:
        raise UncoveredOperation(
            f"model: the bias of operation {name!r}, called in {module_calling(self.root)}, is not covered: {why}. "
            "Use a method that needs no biases, such as integrated_gradients."
        )


def _stated(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> Tensors | None:
    """Return the bias argument of a layer, as large as its output."""
    bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
    if bias is None:
        return None
    behind = 0 if name == "linear" else int(name[4])  # axes of space
    return (bias.detach().view(-1, *[1] * behind).expand_as(result),)


def _beside_tangent(output: Tensor) -> Tensor:
    value, tangent = forward_ad.unpack_dual(output)  # type: ignore[no-untyped-call]
    bias: Tensor = value if tangent is None else value - tangent
    return bias.detach().clone()


def _has_no_bias(
    name: str, found: list[tuple[Place, Tensor]], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether an operation gives J z by its kind, so that nothing has to be computed."""
    if name.startswith("__") or not any(differentiable(tensor) for _, tensor in found):
        return True  # a shape, a comparison, a choice by index
    if name in HOMOGENEOUS:
        return [place for place, _ in found] in ([(0,)], [("input",)])
    tensors = sum(1 for _ in flat(args, kwargs))
    if name in LINEAR and name not in ADDING:
        return True
    if name in MULTIPLYING:
        return is_linear(name, [place for place, _ in found], args, kwargs) and "rounding_mode" not in kwargs
    numbers = any(isinstance(value, int | float) for value in (*args, *kwargs.values()))
    return name in ADDING and tensors == len(found) and not numbers
