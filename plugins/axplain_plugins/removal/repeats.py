"""Which rows of a table of coalitions are the same: plain functions for the plans of this room."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from axplain.protocols import Repeats


def repeats_of(masks: Tensor) -> Repeats | None:
    """Return where each mask of a table, (samples, features), came first; None where all differ."""
    packed = numpy.packbits(masks.numpy(), axis=1)
    rows = numpy.ascontiguousarray(packed).view([("", packed.dtype)] * packed.shape[1]).ravel()
    return _repeats(*numpy.unique(rows, return_index=True, return_inverse=True)[1:])


def repeats_of_prefixes(orders: Tensor) -> Repeats | None:
    """Return where each set of the first k features of an order came first, k from 1 to one less than all.

    Sets are told apart by sums of random 62-bit numbers, one for each feature; sets whose sums agree are compared.
    """
    walks, features = orders.shape
    generator = torch.Generator("cpu").manual_seed(features)
    names = torch.randint(2**62, (features,), generator=generator, device="cpu")
    sums = names[orders].cumsum(1)[:, :-1].reshape(-1).numpy()  # wraps around, which is as good
    repeats = _repeats(*numpy.unique(sums, return_index=True, return_inverse=True)[1:])
    if repeats is None:
        return None
    ranks = torch.empty_like(orders).scatter_(1, orders, torch.arange(features, device="cpu").expand(walks, -1))
    own = torch.arange(len(repeats.first), device="cpu")
    later = (repeats.first != own).nonzero().flatten()
    same = _prefix(ranks, later, features) == _prefix(ranks, repeats.first[later], features)
    repeats.first[later[~same.all(1)]] = later[~same.all(1)]
    return repeats


def _prefix(ranks: Tensor, samples: Tensor, features: int) -> Tensor:
    walk, size = samples // (features - 1), samples % (features - 1) + 1
    return ranks[walk] < size[:, None]


def _repeats(index: numpy.ndarray, inverse: numpy.ndarray) -> Repeats | None:
    if len(index) == len(inverse):
        return None
    first = torch.from_numpy(index[inverse.ravel()])
    again = torch.zeros(len(first), dtype=torch.bool, device="cpu")
    again[first[first != torch.arange(len(first), device="cpu")]] = True
    return Repeats(first, again)


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
    if repeats is None:
        return None
    return Repeats(repeats.first[samples.start : samples.stop], repeats.again[samples.start : samples.stop])
