"""What stands for absence. Each class answers (1 or batch, k, ...) references for one input tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, hookimpl
from axplain.randomness import Key


@attrs.frozen
class Value:
    """One number everywhere."""

    value: float = 0.0

    def references(self, x: Tensor, key: Key) -> Tensor:
        if not x.is_floating_point() and self.value != int(self.value):
            raise ArgumentError("baselines", f"{self.value} came for an input of {x.dtype}", "a whole number")
        return torch.full_like(x[:1], self.value).unsqueeze(1)


@attrs.frozen(eq=False)
class Given:
    """The tensor itself: one row for all examples, or one for each."""

    rows: Tensor

    def references(self, x: Tensor, key: Key) -> Tensor:
        return _rows(self.rows).unsqueeze(1)


@attrs.frozen(eq=False)
class Set:
    """The rows of a tensor, all of them for every example."""

    rows: Tensor

    def references(self, x: Tensor, key: Key) -> Tensor:
        return _rows(self.rows).unsqueeze(0)


@attrs.frozen(eq=False)
class Function:
    """What a function of the input tensor returns: one reference for all examples, or one for each."""

    function: Callable[[Tensor], Tensor]

    def references(self, x: Tensor, key: Key) -> Tensor:
        rows = self.function(x)
        if not isinstance(rows, Tensor):
            raise ArgumentError("baselines", f"the callable returned {type(rows).__name__}", "a tensor shaped like x")
        return _rows(rows).unsqueeze(1)


def _rows(rows: Tensor) -> Tensor:
    if rows.ndim == 0:
        raise ArgumentError(
            "baselines", "a tensor without dimensions came", "one row for all examples, or one for each"
        )
    return rows


@attrs.frozen
class Mean:
    """Each example's own mean, per channel where there is space behind the channels, else over its features."""

    def references(self, x: Tensor, key: Key) -> Tensor:
        space = tuple(range(2, x.ndim)) if x.ndim > 2 else (1,)
        if x.ndim < 2:
            raise ArgumentError("baselines", f"'mean' came and x has the shape {tuple(x.shape)}", "features to average")
        return x.mean(space, keepdim=True).expand_as(x).unsqueeze(1)


@attrs.frozen
class Blur:
    """The input behind a Gaussian blur over its spatial dimensions, with reflected borders (Fong & Vedaldi 2017)."""

    sigma: float

    def references(self, x: Tensor, key: Key) -> Tensor:
        if x.ndim < 3:
            raise ArgumentError(
                "baselines",
                f"'blur' came and x has the shape {tuple(x.shape)}",
                "channels and space: (batch, channels, ...)",
            )
        blurred = x
        for dimension in range(2, x.ndim):
            blurred = _blur_along(blurred, dimension, self.sigma)
        return blurred.unsqueeze(1)


def _blur_along(x: Tensor, dimension: int, sigma: float) -> Tensor:
    """Convolve one dimension with a Gaussian, cut at four standard deviations and at the edge of the input."""
    radius = min(math.ceil(4 * sigma), x.shape[dimension] - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64, device=x.device)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    lines = x.movedim(dimension, -1)
    flat = torch.nn.functional.pad(lines.reshape(-1, 1, x.shape[dimension]), (radius, radius), mode="reflect")
    smooth = torch.nn.functional.conv1d(flat, (weights / weights.sum()).to(x.dtype).view(1, 1, -1))
    return smooth.view(lines.shape).movedim(-1, dimension)


@attrs.frozen
class Uniform:
    """Uniform noise between two bounds, by default each example's own extremes; the noise is shared by the batch."""

    n: int
    low: float | None
    high: float | None

    def references(self, x: Tensor, key: Key) -> Tensor:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ArgumentError("baselines", f"low={self.low} and high={self.high} came", "low at most high")
        space = tuple(range(1, x.ndim))
        low = x.amin(space, keepdim=True) if self.low is None else self.low
        high = x.amax(space, keepdim=True) if self.high is None else self.high
        return torch.stack([(low + (high - low) * self._noise(x, key.at(k))).expand_as(x) for k in range(self.n)], 1)

    @staticmethod
    def _noise(x: Tensor, key: Key) -> Tensor:
        return torch.rand(x.shape[1:], generator=key.generator(), dtype=torch.float32, device="cpu").to(x)


@attrs.frozen
class Gaussian:
    """Gaussian noise around the input; the noise is shared by the examples of a batch."""

    n: int
    stdev: float

    def references(self, x: Tensor, key: Key) -> Tensor:
        return torch.stack([x + self.stdev * key.at(k).normal(x) for k in range(self.n)], 1)


_CLASSES: dict[str, Any] = {
    "zeros": Value,
    "value": Value,
    "tensor": Given,
    "distribution": Set,
    "callable": Function,
    "mean": Mean,
    "blur": Blur,
    "uniform": Uniform,
    "gaussian": Gaussian,
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the class behind a baseline."""
    return _CLASSES[name]
