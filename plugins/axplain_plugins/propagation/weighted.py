"""Products of an input and constant weights: where torch keeps them among its arguments, and what stands behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs
from torch import Tensor

from axplain.propagation.operations import Operation
from axplain.propagation.rules import Call

#: (input, weight, bias) -> output
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

CONVOLUTIONS: Final = frozenset(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))
#: what modules with weights call; a batch normalisation behind one can be part of its weights
LAYERS: Final = CONVOLUTIONS | {"linear"}
#: product -> the names of its first arguments, and the place of the bias among them
_ORDERS: Final[Mapping[str, tuple[tuple[str, ...], int | None]]] = MappingProxyType(
    {
        **dict.fromkeys(LAYERS, (("input", "weight", "bias"), 2)),
        "addmm": (("input", "mat1", "mat2"), 0),
        "addmv": (("input", "mat", "vec"), 0),
        "baddbmm": (("input", "batch1", "batch2"), 0),
        "matmul": (("input", "other"), None),
        "mm": (("input", "mat2"), None),
        "bmm": (("input", "mat2"), None),
        "mv": (("input", "vec"), None),
    }
)
PRODUCTS: Final = frozenset(_ORDERS)


@attrs.frozen(eq=False)
class Weighted:
    """A product of an input and constant weights, its first arguments in order, whatever way they were given.

    `places`: of the input, the weight and the bias among them; None: it takes no bias.
    """

    call: Call | Operation
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    places: tuple[int, int, int | None]

    @classmethod
    def of(cls, call: Call | Operation) -> Weighted | None:
        """Read a call; None where it is no such product, or more than its input depends on x."""
        if call.name not in PRODUCTS or len(call.places) != 1:
            return None
        names, bias = _ORDERS[call.name]
        head = call.places[0][0]
        x = names.index(head) if head in names else head
        factors = [place for place in range(len(names)) if place != bias]
        if x not in factors or (x and call.name in LAYERS):
            return None
        first = [call.argument(place, name) for place, name in enumerate(names)]
        keywords = {name: value for name, value in call.keywords.items() if name not in names}
        return cls(call, (*first, *call.arguments[len(names) :]), keywords, (x, sum(factors) - x, bias))

    @property
    def weight(self) -> Tensor:
        """The constant factor."""
        weight: Tensor = self.arguments[self.places[1]].detach()
        return weight

    @property
    def bias(self) -> Tensor | None:
        """What is added, where something is."""
        bias = None if self.places[2] is None else self.arguments[self.places[2]]
        return None if bias is None else bias.detach()

    def put(self, x: Tensor | None, weight: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
        """Return the arguments with others in the three places."""
        arguments = list(self.arguments)
        for place, tensor in zip(self.places, (x, weight, bias), strict=True):
            if place is not None:
                arguments[place] = tensor
        if self.places[2] == 0 and bias is None:  # torch wants something to add to
            arguments[0] = weight.new_zeros(())
        return tuple(arguments)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the product of other tensors."""
        result: Tensor = self.call.function(*self.put(x, weight, bias), **self.keywords)
        return result

    def normalised(self, norm: Call) -> Call | None:
        """Return the product that gives what this one and a batch normalisation behind it give.

        None where weights cannot hold it: no layer, or another axis than that of the features is normalised.
        """
        assert isinstance(self.call, Call), "asked of calls that are about to get a rule"
        weight, x = self.weight, self.arguments[self.places[0]]
        if self.call.name not in LAYERS or x.ndim != weight.ndim:
            return None
        mean, variance = norm.argument(3, "running_mean"), norm.argument(4, "running_var")
        scale = (variance + norm.argument(7, "eps", 1e-5)).rsqrt()
        if (gain := norm.argument(1, "weight")) is not None:
            scale = scale * gain.detach()
        shift = -mean * scale if self.bias is None else (self.bias - mean) * scale
        if (offset := norm.argument(2, "bias")) is not None:
            shift = shift + offset.detach()
        return attrs.evolve(
            self.call,
            arguments=self.put(x, self._scaled(weight, scale), shift),
            keywords=self.keywords,
            places=((self.places[0],),),
        )

    def _scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the weights times a number for each output channel."""
        if "transpose" not in self.call.name:
            return weight * scale.view(-1, *[1] * (weight.ndim - 1))
        groups = self.arguments[6] if len(self.arguments) > 6 else self.keywords.get("groups", 1)
        grouped = weight.view(groups, -1, *weight.shape[1:])  # its own output channels are on the axis behind
        scaled: Tensor = (grouped * scale.view(groups, 1, -1, *[1] * (weight.ndim - 2))).flatten(0, 1)
        return scaled
