"""Products of an input and constant weights: where torch keeps them among its arguments, and what stands behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from axplain.propagation.operations import Operation
from axplain.propagation.rules import Call

#: (input, weight, bias) -> output
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

CONVOLUTIONS: Final = frozenset(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
#: products whose weights and bias are known by their place: (input, weight, bias)
PLACES: Final[Mapping[str, tuple[int, int, int | None]]] = MappingProxyType(
    {
        **dict.fromkeys((*CONVOLUTIONS, "linear"), (0, 1, 2)),
        **dict.fromkeys(("addmm", "addmv", "baddbmm"), (1, 2, 0)),
        **dict.fromkeys(("matmul", "mm", "bmm", "mv"), (0, 1, None)),
    }
)


def weights_of(call: Call) -> tuple[Tensor | None, Tensor | None]:
    """Return the weight and the bias of a product; None where it has no input and weight in places of their own."""
    x, weight, bias = PLACES[call.name]
    if call.name in ("matmul", "mm", "bmm") and call.places[0][0] == weight:
        weight = x
    elif call.places[0][0] not in (x, "input"):
        return None, None
    names = {1: "weight", 2: "bias"}
    found = [None if at is None else call.argument(at, names.get(at, "")) for at in (weight, bias)]
    return found[0], found[1]


def as_product(new: Operation) -> Product:
    """Return the operation as a function of its input, its weight and its bias."""
    x, weight, bias = PLACES[new.name]
    if new.places[0][0] == weight:
        x, weight = weight, x
    names = {1: "weight", 2: "bias"}

    def run(value: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        positional, named = list(new.arguments), dict(new.keywords)
        for at, tensor in ((x, value), (weight, w), (bias, b)):
            if at is None:
                continue
            if names.get(at) in named:
                named[names[at]] = tensor
            elif at == x and "input" in named:
                named["input"] = tensor
            elif len(positional) > at:
                positional[at] = tensor
            elif tensor is not None:
                named[names[at]] = tensor
        if bias == 0 and b is None:
            positional[0] = torch.zeros((), dtype=value.dtype, device=value.device)
        result: Tensor = new.function(*positional, **named)
        return result

    return run


def normalised_product(source: Call, norm: Call) -> Call:
    """Return the product whose weights and bias do what it and a batch normalisation do."""
    mean, variance = norm.argument(3, "running_mean"), norm.argument(4, "running_var")
    scale = (variance + norm.argument(7, "eps", 1e-5)).rsqrt()
    if (gain := norm.argument(1, "weight")) is not None:
        scale = scale * gain.detach()
    weight, bias = weights_of(source)
    assert weight is not None, "asked of products that have weights"
    shift = -mean * scale if bias is None else (bias.detach() - mean) * scale
    if (offset := norm.argument(2, "bias")) is not None:
        shift = shift + offset.detach()
    axis = 1 if "transpose" in source.name else 0
    along = [1] * weight.ndim
    along[axis] = -1
    positional = list(source.arguments)
    named = {k: v for k, v in source.keywords.items() if k not in ("weight", "bias")}
    positional[1:3] = [weight.detach() * scale.view(along), shift]
    return Call(source.name, source.function, tuple(positional), named, source.places)
