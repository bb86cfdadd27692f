"""Every feature present or absent by the toss of a coin, coalitions near the input weighing more."""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
import torch

from axplain import hookimpl
from axplain.problem import Problem
from axplain.randomness import Key
from axplain_plugins.removal.memory import kept
from axplain_plugins.removal.repeats import repeats_of
from axplain_plugins.removal.strata import check_features
from axplain_plugins.removal.table import TablePlan


@attrs.frozen
class BernoulliCoalitions:
    """The full coalition and n - 1 drawn ones; weight exp(-distance^2 / width^2), the distance to the full coalition.

    Of k features of d: 1 - sqrt(k / d) by the cosine, sqrt(d - k) by Euclid.
    """

    n: int
    kernel: Literal["cosine", "euclidean"]
    width: float | None

    def plan(self, problem: Problem) -> TablePlan:
        features = problem.features().count
        check_features(features)
        return kept(self.n * features, BernoulliCoalitions._plan, self, features, problem.key.at("coalitions"))

    def _plan(self, features: int, key: Key) -> TablePlan:
        generator = key.generator()
        masks = torch.rand(self.n, features, generator=generator, dtype=torch.float64, device="cpu") < 0.5
        masks[0] = True
        present = masks.sum(1).double()
        if self.kernel == "cosine":
            distance, width = 1 - (present / features).sqrt(), 0.25
        else:
            distance, width = (features - present).sqrt(), 0.75 * math.sqrt(features)
        weights = torch.exp(-((distance / (self.width or width)) ** 2))
        return TablePlan(masks, weights, repeats=repeats_of(masks))


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `bernoulli_coalitions`."""
    return BernoulliCoalitions
