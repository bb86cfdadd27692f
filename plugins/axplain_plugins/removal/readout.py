"""What the values of coalitions say of each feature: a sparse matrix times the values, and its standard errors."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.moments import Moments, merged
from axplain.problem import Problem
from axplain.protocols import Answers, Coefficients, Plan, Points, Reduced
from axplain.structure import wide

#: independent estimates below which their spread says too little to stop at
LEAST_UNITS = 8


@attrs.define(eq=False)
class Sums:
    """The sum so far, (features, batch); or the estimate that is not whole yet, and the moments of those that are."""

    total: Tensor
    estimates: Moments | None = None
    ends: tuple[Tensor, Tensor] | None = None


@attrs.frozen
class Readout:
    """`sum_s coefficient_sf * value_s`; where samples are independent estimates, their mean."""

    def start(self, block: Problem, plan: Plan) -> Sums:
        size = (block.features().count, block.batch)
        return Sums(torch.zeros(size, dtype=wide(block.inputs[0]), device=block.device))

    def update(self, state: Sums, points: Points, answers: Answers) -> Sums:
        entries = points.coefficients
        assert entries is not None and answers.value is not None, "checked when the spec was loaded"
        state.ends = answers.ends or state.ends
        values = answers.value.view(points.samples, -1).to(state.total.dtype)
        if state.ends is not None:
            values = torch.cat([values, state.ends[1][None].to(values), state.ends[0][None].to(values)])
        terms = entries.factor[:, None].to(values.dtype) * values[entries.sample]  # the last two are the ends
        if entries.unit is None:
            state.total.index_add_(0, entries.feature, terms)
        else:
            _add_units(state, entries, terms)
        return state

    def finish(self, state: Sums, block: Problem) -> Reduced:
        estimates = state.estimates
        features = (estimates.mean if estimates else state.total).T
        errors = None
        if estimates and estimates.count >= LEAST_UNITS:
            errors = block.features().spread(estimates.standard_error.T)
        return Reduced(block.features().spread(features), errors, features)


def _add_units(state: Sums, entries: Coefficients, terms: Tensor) -> None:
    """Add the estimates that are whole to the moments, and keep the one that is not."""
    assert entries.unit is not None, "asked for entries that have units"
    features, batch = state.total.shape
    before = state.estimates.count if state.estimates else 0
    last = int(entries.unit.max()) if len(entries.unit) else -1
    count = max(last + 1, entries.complete) - before
    if count <= 0:
        return
    sums = torch.zeros(count * features, batch, dtype=terms.dtype, device=terms.device)
    sums.index_add_(0, (entries.unit - before) * features + entries.feature, terms)
    sums = sums.view(count, features, batch)
    sums[0].add_(state.total)
    whole = entries.complete - before
    if whole > 0:
        state.estimates = merged(state.estimates, Moments.of(sums[:whole]))
    state.total = sums[whole].clone() if whole < count else torch.zeros_like(state.total)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `readout`."""
    return Readout
