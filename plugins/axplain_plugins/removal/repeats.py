"""Which rows of a table of coalitions are the same: plain functions for the plans of this room."""

from __future__ import annotations

from typing import Final

import numpy
import torch
from torch import Tensor

from axplain.protocols import Repeats

#: sets that are compared in one go, which bounds the memory
AT_ONCE: Final = 1024


def repeats_of(masks: Tensor) -> Repeats | None:
    """Return where each mask of a table, (samples, features), came first; None where all differ."""
    return _repeats(*_first_places(_names(masks)))


def distinct(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each distinct mask comes first, in rising order of the masks, and which of them each mask is."""
    index, inverse = _first_places(_names(masks))
    return torch.from_numpy(index), torch.from_numpy(inverse)


def _names(masks: Tensor) -> numpy.ndarray:
    """Return a name for each mask: as strings of bytes they are sorted many times faster than row by row."""
    packed = numpy.ascontiguousarray(numpy.packbits(masks.numpy(), axis=1))
    return packed.view(f"S{packed.shape[1]}").ravel()


def _first_places(names: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return where each distinct name comes first, in rising order of the names, and which of them each name is."""
    order = names.argsort(kind="stable")
    ordered = names[order]
    new = numpy.ones(len(names), dtype=bool)
    numpy.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    inverse = numpy.empty_like(order)
    inverse[order] = new.cumsum() - 1
    return order[new], inverse


def repeats_of_prefixes(orders: Tensor, ranks: Tensor) -> Repeats | None:
    """Return where each set of the first k features of an order came first, k from 1 to one less than all.

    `ranks`: the place of each feature in each order.
    Sets are told apart by sums of random 62-bit numbers, one for each feature; sets whose sums agree are compared.
    """
    features = orders.shape[1]
    generator = torch.Generator("cpu").manual_seed(features)
    names = torch.randint(2**62, (features,), generator=generator, device="cpu")
    sums = names[orders].cumsum(1)[:, :-1].reshape(-1).numpy()  # wraps around, which is as good
    repeats = _repeats(*_first_places(sums))
    if repeats is None:
        return None
    own = torch.arange(len(repeats.first), device="cpu")
    later = (repeats.first != own).nonzero().flatten()
    pairs = zip(torch.split(later, AT_ONCE), torch.split(repeats.first[later], AT_ONCE), strict=True)
    differ = torch.cat([(_prefix(ranks, mine) != _prefix(ranks, its)).any(1) for mine, its in pairs])
    if bool(differ.any()):
        repeats.first[later[differ]] = later[differ]
    return repeats


def _prefix(ranks: Tensor, samples: Tensor) -> Tensor:
    features = ranks.shape[1]
    walk, size = samples // (features - 1), samples % (features - 1) + 1
    return ranks[walk] < size[:, None]


def _repeats(index: numpy.ndarray, inverse: numpy.ndarray) -> Repeats | None:
    if len(index) == len(inverse):
        return None
    first = index[inverse]
    again = numpy.zeros(len(first), dtype=bool)
    again[first[first != numpy.arange(len(first))]] = True
    return Repeats(torch.from_numpy(first), torch.from_numpy(again))


def shifted(repeats: Repeats | None, before: int) -> Repeats | None:
    """Return the same for a plan that has some samples of its own before these."""
    if repeats is None:
        return None
    own = torch.arange(before, device="cpu")
    return Repeats(
        torch.cat([own, repeats.first + before]),
        torch.cat([torch.zeros(before, dtype=torch.bool, device="cpu"), repeats.again]),
    )


def within(repeats: Repeats | None, samples: range) -> Repeats | None:
    """Return the part about a range of samples."""
    if repeats is None or len(samples) == len(repeats.first):
        return repeats
    rows = slice(samples.start, samples.stop)
    return Repeats(repeats.first[rows], repeats.again[rows], whole=False)
