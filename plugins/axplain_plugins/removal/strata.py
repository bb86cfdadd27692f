"""Subsets of features by their size: how many of each size to take, and which. Plain functions for this room."""

from __future__ import annotations

import itertools
import math
from typing import Final

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError

#: subsets of one size that are drawn by their ranks, each at most once; of more than these few come twice
MOST_RANKED: Final = 4096
#: features beyond which the matrix of a regression would take gigabytes
MOST_FEATURES: Final = 10_000


def check_features(features: int) -> None:
    """Refuse what a regression cannot hold.

    Raises:
        ArgumentError: there are too many features.
    """
    if features > MOST_FEATURES:
        expected = f"at most {MOST_FEATURES} for a regression over coalitions"
        cure = "Group the elements, for example into superpixels."
        raise ArgumentError("feature_mask", f"there are {features} features", expected, cure)


@attrs.frozen
class Stratum:
    """Subsets of one size, or of one size and their complements.

    `capacity`: how many draws exhaust it. `mass`: weight of all its subsets together. `share`: how much of the draws it
    is worth, relative to the others.
    """

    size: int
    capacity: int
    mass: float
    share: float


def strata_of(features: int, *, paired: bool, by_leverage: bool) -> list[Stratum]:
    """Return the strata of all proper subsets, with the weights of the Shapley kernel.

    A size s weighs (d - 1) / (s (d - s)) in all. Draws are shared out in that proportion or, by leverage, evenly.
    """
    found = []
    for size in range(1, features // 2 + 1 if paired else features):
        mass = (features - 1) / (size * (features - size))
        middle = paired and 2 * size == features  # its complements are of the same size
        capacity = math.comb(features, size) // 2 if middle else math.comb(features, size)
        whole = mass if middle or not paired else 2 * mass
        share = (1.0 if middle or not paired else 2.0) if by_leverage else whole
        found.append(Stratum(size, capacity, whole, share))
    return found


def allotted(strata: list[Stratum], draws: int) -> list[float]:
    """Return the expected draws of each stratum: in proportion to the shares, none beyond its capacity."""
    given = [0.0] * len(strata)
    open_ = list(range(len(strata)))
    left = float(draws)
    while open_:
        total = sum(strata[i].share for i in open_)
        full = [i for i in open_ if left * strata[i].share / total >= strata[i].capacity]
        if not full:
            for i in open_:
                given[i] = left * strata[i].share / total
            break
        for i in full:
            given[i] = float(strata[i].capacity)
            left -= strata[i].capacity
        open_ = [i for i in open_ if i not in full]
    return given


def rounded(expected: list[float], generator: torch.Generator) -> list[int]:
    """Return whole numbers with these expectations and about this sum: systematic sampling with one random start."""
    start = float(torch.rand((), generator=generator, dtype=torch.float64, device="cpu"))
    ends = list(itertools.accumulate(expected, initial=start))
    return [math.floor(end + 1e-9) - math.floor(begin + 1e-9) for begin, end in itertools.pairwise(ends)]


def subsets_at(ranks: Tensor, features: int, size: int) -> Tensor:
    """Return the subsets of a size at some ranks, (ranks, features), those without the last feature first.

    A rank is the sum over k of the binomials (c_k over k), c_k the k-th member (the combinatorial number system).
    """
    masks = torch.zeros(len(ranks), features, dtype=torch.bool, device="cpu")
    rows = torch.arange(len(ranks), device="cpu")
    for k in range(size, 0, -1):
        below = torch.tensor([min(math.comb(member, k), 2**62) for member in range(features)], device="cpu")
        member = torch.searchsorted(below, ranks, right=True) - 1
        masks[rows, member] = True
        ranks = ranks - below[member]
    return masks


def random_subsets(sizes: Tensor, features: int, generator: torch.Generator) -> Tensor:
    """Return a random subset of each size, (sizes, features)."""
    order = torch.rand(len(sizes), features, generator=generator, dtype=torch.float64, device="cpu").argsort(1)
    return order < sizes[:, None]
