"""Sees the attention weights of a model by operation: a softmax over keys that multiplies values.

What torch fuses is written out, what it wrote in Python is looked into; modules are neither hooked nor named. Each
tensor is followed back to the inputs and the attentions that it depends on: that tells self-attention, layer behind
layer, from everything that a product of attention maps says nothing about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NoReturn

import attrs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from axplain.errors import UncoveredOperation
from axplain.propagation.calls import module_calling
from axplain.propagation.opaque import attention
from axplain.propagation.operations import Place, flat, is_python, looked_into, name_of, replaced, tensors_in
from axplain.structure import Tensors

#: What leaves (..., queries, keys) where they are, so that weights are weights behind it.
KEEPS: Final = frozenset(
    {
        *("dropout", "to", "float", "double", "half", "bfloat16", "type_as", "type", "contiguous", "clone", "detach"),
        *("view", "reshape", "flatten", "unflatten", "expand", "squeeze", "unsqueeze", "getitem", "masked_fill"),
        *("where", "nan_to_num", "mul", "div", "cuda", "cpu"),
    }
)
PRODUCTS: Final = frozenset({"matmul", "bmm", "einsum", "baddbmm"})
#: Functions of torch's that fold heads into the batch, example by example.
FOLDING: Final = frozenset({"multi_head_attention_forward"})

Role = Literal["", "weights", "moved"]


@attrs.frozen
class Trail:
    """What a tensor depends on, a bit for each input and each attention; whether it holds weights, in their place."""

    sources: int
    role: Role = ""


@attrs.frozen(eq=False)
class Layer:
    """One attention: its weights as they multiplied the values, and how many examples they are of."""

    weights: Tensor
    rows: int

    def by_head(self, tensor: Tensor) -> Tensor:
        """View the weights, or their gradient, as (rows, heads, queries, keys)."""
        return tensor.reshape(self.rows, -1, *tensor.shape[-2:])


class Capturing(TorchFunctionMode):
    """Keeps the weights of every attention of one pass; with `graph`, what follows the first has one.

    Raises:
        UncoveredOperation: attention that is not from tokens to the same tokens, layer behind layer.
    """

    def __init__(self, root: torch.nn.Module | None, inputs: Tensors, *, graph: bool) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.root, self.rows, self.graph = root, len(inputs[0]), graph
        self._trails = WeakTensorKeyDictionary()
        self._inside: list[Callable[..., Any]] = []
        self._all = (1 << len(inputs)) - 1
        for i, tensor in enumerate(inputs):
            self._trails[tensor] = Trail(1 << i)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Follow one operation."""
        kwargs = kwargs or {}
        found = {place: (t, trail) for place, t in flat(args, kwargs) if (trail := self._trail(t)) is not None}
        if not found:
            return func(*args, **kwargs)
        name = name_of(func)
        held = [(place, tensor) for place, (tensor, trail) in found.items() if trail.role]
        if held and name.name in PRODUCTS and (product := self._product(func, args, kwargs, found, *held[0])):
            return product[0]
        if name.name == "scaled_dot_product_attention":
            with self:
                return attention(*args, **kwargs)
        if is_python(func) and func not in self._inside:
            return looked_into(self, self._inside, func, args, kwargs)
        result = func(*args, **kwargs)
        sources = 0
        for _, trail in found.values():
            sources |= trail.sources
        written = [args[0]] if name.in_place and args and isinstance(args[0], Tensor) else []
        if name.name == "mul" and len(found) > 1 and held and result.numel() > held[0][1].numel():
            self._refuse("values are weighted one by one and summed later; write it as a matrix product")
        for tensor in [*tensors_in(result), *written]:
            self._trails[tensor] = Trail(sources, _role(name.name, args, kwargs, tensor, [t for _, t in held], found))
        return result

    def _product(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        found: Mapping[Place, tuple[Tensor, Trail]],
        place: Place,
        weights: Tensor,
    ) -> tuple[Any] | None:
        """Return the product of weights and values, and keep the weights; None where it is none."""
        name = name_of(func).name
        others = [(at, tensor) for at, tensor in flat(args, kwargs) if at != place and tensor is not weights]
        values = others[-1][1] if others else None
        if values is None or values.ndim < 3:
            return None  # a linear layer, such as that behind the probabilities of a vocabulary
        trail = self._trail(values)
        sources = trail.sources if trail else 0
        if found[place][1].role == "moved" or not _weighs_keys(name, args, place, weights):
            self._refuse(f"{name!r} meets a softmax that was rearranged, so which axis are the keys is not known")
        if not self._all == found[place][1].sources == sources:
            self._refuse(
                "queries, keys and values do not all come from the tokens of the layer before, as in cross-attention, "
                "in branches side by side, or where a mask is part of x (pass it through forward_kwargs)"
            )
        self._check_shape(weights)
        if self.graph:
            torch.set_grad_enabled(True)  # until the block around the pass ends
            weights = weights if weights.requires_grad else weights.detach().requires_grad_()
        self.layers.append(Layer(weights, self.rows))
        positional, named = replaced(args, kwargs, (place,), (weights,))
        result = func(*positional, **named)
        self._all |= self._all + 1  # the next bit: the bits so far are all ones
        self._trails[result] = Trail(self._all)
        return (result,)

    def _trail(self, tensor: Tensor) -> Trail | None:
        trail: Trail | None = self._trails.get(tensor)  # type: ignore[no-untyped-call]
        return trail

    def _check_shape(self, weights: Tensor) -> None:
        queries, keys = weights.shape[-2:]
        known = self.layers[0].weights.shape[-1] if self.layers else keys
        shape = tuple(weights.shape)
        if queries != keys:
            self._refuse(f"its weights are {shape}: {queries} queries look at {keys} keys, as in cross-attention")
        if keys != known:
            self._refuse(f"it has {keys} tokens and the first layer has {known}: their maps have no product")
        folded = weights.ndim == 3 and len(weights) % self.rows == 0
        if folded and len(weights) > self.rows > 1 and not any(f.__name__ in FOLDING for f in self._inside):
            self._refuse(
                f"its weights are {shape}: heads are folded into the {self.rows} examples in an order that is not "
                "known. Pass batch_size=1"
            )
        if not folded and (weights.ndim != 4 or len(weights) != self.rows):
            self._refuse(f"its weights are {shape}, where ({self.rows}, heads, tokens, tokens) are expected")

    def _refuse(self, why: str) -> NoReturn:
        raise UncoveredOperation(
            f"model: the attention in {module_calling(self.root)} is not covered: {why}. Attention maps are multiplied "
            "for encoders and decoders of one sequence; integrated_gradients explains any model."
        )


def _role(
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    result: Tensor,
    held: list[Tensor],
    found: Mapping[Place, tuple[Tensor, Trail]],
) -> Role:
    """Say whether a result holds weights: of a softmax over the last axis, or what was made of them."""
    if name == "softmax":
        if result.ndim < 3:
            return ""
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return "weights" if dim in (-1, result.ndim - 1) else "moved"
    if not held:
        return ""
    if name in KEEPS:
        moved = any(trail.role == "moved" for _, trail in found.values())
        return "moved" if moved else "weights"
    return "moved" if result.numel() == held[0].numel() else ""


def _weighs_keys(name: str, args: tuple[Any, ...], place: Place, weights: Tensor) -> bool:
    """Whether a product sums over the last axis of the weights, and they stand in front."""
    if name == "baddbmm":
        return place == (1,)
    if name != "einsum":
        return place == (0,)
    if place not in ((1,), (1, 0)) or not isinstance(args[0], str):
        return False
    letters, _, output = args[0].replace(" ", "").partition("->")
    first = letters.split(",")[0]
    kept = [letter for letter in output if letter in first]
    return bool(output) and first[-1] not in output and "".join(kept) == first[:-1]
