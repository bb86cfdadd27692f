"""The answer: attributions that mirror the inputs, how far to trust them, what they cost, and where they come from."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.cost import Cost
from axplain.errors import ArgumentError
from axplain.structure import Structure, Tensors


@attrs.frozen
class Feature:
    """One element of an attribution, from `Explanation.top`."""

    example: int
    input: str
    index: tuple[int, ...]
    value: float


@attrs.frozen(eq=False)
class Explanation:
    """What a method says about each example.

    `attributions` mirrors `x`, in structure, shape, device and, where it is floating, dtype; `standard_errors` mirrors
    it too where samples were averaged, and is None elsewhere; over a distribution of baselines it is an upper bound, as
    all of them share the samples. `residuals["completeness"]`, (batch,), is the sum of an
    example's attributions minus `difference`, F(x) - F(x'), where the method claims completeness and `verify` is on.
    """

    attributions: Any
    method: str
    spec_version: str
    parameters: Mapping[str, Any]
    target: Any
    residuals: Mapping[str, Tensor]
    difference: Tensor | None
    standard_errors: Any
    cost: Cost
    seconds: float
    notes: Mapping[str, Any]
    provenance: Mapping[str, Any]
    structure: Structure = attrs.field(repr=False)
    model: weakref.ref[Any] | None = attrs.field(default=None, repr=False)

    @property
    def delta(self) -> Tensor | None:
        """The completeness residual per example, (batch,); None where the method claims none or it was not checked."""
        return self.residuals.get("completeness")

    @property
    def tensors(self) -> Tensors:
        """The attributions as a flat tuple, one tensor per input."""
        return self.structure.unpack(self.attributions)

    def __getstate__(self) -> dict[str, Any]:
        state = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        return state | {"model": None}  # a weak reference does not travel

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        shapes = self.structure.pack([tuple(tensor.shape) for tensor in self.tensors])
        target = str(self.target) if len(str(self.target)) <= 40 else str(self.target)[:37] + "..."
        delta = f", delta={float(self.delta.abs().max()):.1e}" if self.delta is not None else ""
        layer = f", {self.provenance['layer']}" if self.provenance.get("layer") else ""
        return f"Explanation({self.method!r}, target={target}{layer}, shape={shapes}{delta}, {self.seconds:.2f}s)"

    def top(self, k: int = 5, example: int = 0) -> list[Feature]:
        """Return the k elements of one example with the largest absolute attribution, largest first.

        Raises:
            ArgumentError: k is negative, or there is no such example.
        """
        batch = len(self.tensors[0])
        if k < 0 or not -batch <= example < batch:
            raise ArgumentError("top", f"k={k}, example={example} came", f"k of at least 0, one of {batch} examples")
        example %= batch
        candidates = []
        for name, tensor in zip(self.structure.labels("x"), self.tensors, strict=True):
            flat = tensor[example].flatten()
            for position in flat.abs().topk(min(k, len(flat))).indices.tolist():
                index = tuple(
                    int(i) for i in torch.unravel_index(torch.tensor(position, device="cpu"), tensor.shape[1:])
                )
                candidates.append(Feature(example, name, index, float(flat[position])))
        return sorted(candidates, key=lambda feature: -abs(feature.value))[:k]

    def to_dict(self, *, tensors: bool = True) -> dict[str, Any]:
        """Return everything as plain dicts, lists, numbers and strings; `tensors=False` leaves the arrays out."""
        from axplain.storage import to_dict

        return to_dict(self, tensors=tensors)

    def save(self, path: str | Path) -> Path:
        """Write `path`, a safetensors file whose header holds the rest as JSON; returns the path.

        The model's fingerprint, a SHA-256 over its parameters and buffers, is computed here and not in `explain`.
        """
        from axplain.storage import save

        return save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Explanation:
        """Read what `save` wrote; nothing of the file is executed.

        Raises:
            ArgumentError: the file is not an explanation of a version that this axplain reads.
        """
        from axplain.storage import load

        return load(Path(path))
