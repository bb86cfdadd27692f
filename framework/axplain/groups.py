"""Groups of elements that are switched on and off together: the door for `feature_mask`, and what features mean."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain.errors import ArgumentError
from axplain.structure import Structure, Tensors, concatenate, map_tensors


@attrs.frozen(eq=False)
class Groups:
    """Which feature each element belongs to; one numbering, 0 to `count` - 1, over all inputs.

    `ids`: (1 or batch, ...) per tensor, a dimension of size 1 where they are the same all along it, as superpixels are
    over channels; None where every element is a feature of its own, in the order of the inputs.
    `counts`: (batch,) on the CPU, where examples have groups of their own: how many each has.
    """

    count: int
    shapes: tuple[torch.Size, ...]
    ids: Tensors | None = None
    counts: Tensor | None = None

    @property
    def uneven(self) -> bool:
        """Whether some examples have fewer features than others."""
        return self.counts is not None and bool((self.counts != self.count).any())

    def take(self, index: Tensor) -> Groups:
        """Return the groups of some examples."""
        if self.ids is None:
            return self
        ids = map_tensors(lambda ids: ids[index] if len(ids) > 1 else ids, self.ids)
        if self.counts is None:
            return attrs.evolve(self, ids=ids)
        return attrs.evolve(self, ids=ids, counts=self.counts[index.cpu()])

    def alone(self) -> Groups:
        """Return the groups of a question of its own, which has no features but its examples'."""
        return self if self.counts is None else attrs.evolve(self, count=int(self.counts.max()))

    def elements(self, mask: Tensor) -> Tensors:
        """Return (samples, 1 or batch, ...) per tensor, to be broadcast: what (samples, features) says of each."""
        if self.ids is None:
            return map_tensors(lambda part: part.unsqueeze(1), self._split(mask))
        return map_tensors(lambda ids: mask.index_select(1, ids.flatten()).view(len(mask), *ids.shape), self.ids)

    def spread(self, features: Tensor) -> Tensors:
        """Return (batch, ...) per tensor: every element gets the number of its feature, from (batch, features)."""
        if self.ids is None:
            return self._split(features)
        rows = torch.arange(len(features), device=features.device)
        spread = map_tensors(lambda ids: features[rows.view(-1, *[1] * (ids.ndim - 1)), ids], self.ids)
        pairs = zip(spread, self.shapes, strict=True)
        return tuple(tensor.expand(len(features), *shape).contiguous() for tensor, shape in pairs)

    def _split(self, features: Tensor) -> Tensors:
        """Return (rows, ...) per tensor, from (rows, features) where every element is a feature."""
        if len(self.shapes) == 1:
            return (features.reshape(len(features), *self.shapes[0]),)
        parts = features.split([math.prod(shape) for shape in self.shapes], 1)  # type: ignore[no-untyped-call]
        return tuple(part.reshape(len(features), *shape) for part, shape in zip(parts, self.shapes, strict=True))


def resolve_groups(given: Any, inputs: Tensors, structure: Structure) -> Groups:
    """Turn `feature_mask` into groups with consecutive ids; None makes every element a feature.

    Raises:
        ArgumentError: a mask is no tensor of whole numbers, or does not fit its input.
    """
    shapes = tuple(tensor.shape[1:] for tensor in inputs)
    if given is None:
        return Groups(sum(map(math.prod, shapes)), shapes)
    labels = structure.labels("feature_mask")
    masks = _masks(given, structure, inputs)
    fitted = tuple(_fit(mask, x, label) for mask, x, label in zip(masks, inputs, labels, strict=True))
    if all(len(mask) == 1 for mask in fitted):
        count, ids = _numbered(fitted)
        return Groups(count, shapes, ids)
    own = map_tensors(lambda mask, x: mask.expand(len(x), *mask.shape[1:]), fitted, inputs)
    examples = [_numbered(map_tensors(lambda mask, i=i: mask[i : i + 1], own)) for i in range(len(inputs[0]))]
    counts = torch.tensor([count for count, _ in examples], device="cpu")
    return Groups(int(counts.max()), shapes, concatenate([ids for _, ids in examples]), counts)


def _numbered(masks: Tensors) -> tuple[int, Tensors]:
    """Return how many different ids there are over all inputs, and the ids as consecutive numbers from 0."""
    known, packed = torch.unique(torch.cat([ids.flatten() for ids in masks]), return_inverse=True)
    parts = torch.split(packed, [ids.numel() for ids in masks])
    return len(known), map_tensors(Tensor.view_as, parts, masks)


def _masks(given: Any, structure: Structure, inputs: Tensors) -> tuple[Any, ...]:
    if structure.kind == "tensor":
        return (given,)
    if structure.kind == "dict":
        if not isinstance(given, dict) or given.keys() != set(structure.names):
            came = f"a dict with {list(given)}" if isinstance(given, dict) else type(given).__name__
            raise ArgumentError("feature_mask", f"{came} came", f"a dict with {list(structure.names)}")
        return structure.unpack(given)
    if not isinstance(given, tuple) or len(given) != len(inputs):
        came = f"a tuple of {len(given)}" if isinstance(given, tuple) else type(given).__name__
        raise ArgumentError("feature_mask", f"{came} came", f"a tuple of {len(inputs)}, one for each input")
    return given


def _fit(mask: Any, x: Tensor, label: str) -> Tensor:
    """Return a mask as (1 or batch, ...) whole numbers on the input's device, channels that are alike as one."""
    if hasattr(mask, "__array__") and not isinstance(mask, Tensor):
        mask = torch.as_tensor(mask)
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        came = f"{mask.dtype} came" if isinstance(mask, Tensor) else f"{type(mask).__name__} came"
        raise ArgumentError(label, came, "a tensor of whole numbers, one for each element")
    expected = f"{(1, *x.shape[1:])}, or {tuple(x.shape)} for groups of each example's own"
    if mask.shape == x.shape[1:] and mask.ndim < x.ndim:
        raise ArgumentError(label, f"shape {tuple(mask.shape)} came", expected, "Call .unsqueeze(0) on it.")
    fits = mask.ndim == x.ndim and len(mask) in (1, len(x))
    if not fits or any(size not in (1, full) for size, full in zip(mask.shape[1:], x.shape[1:], strict=True)):
        raise ArgumentError(label, f"shape {tuple(mask.shape)} came", expected)
    mask = mask.to(x.device, torch.long)
    one: Tensor = mask.narrow(1, 0, 1) if mask.ndim > 2 else mask
    return one if bool((mask == one).all()) else mask
