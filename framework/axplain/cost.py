"""What a call costs in rows, from the formula of its spec, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from axplain.parameters import Call


@attrs.frozen
class Cost:
    """Rows of model passes. `check_rows` are rows of checks and predictions, apart from the method's own; they go
    forward only, but for those that ride in a gradient pass of the method and save a pass.

    `bound` is "exact" where the rows are known before the run, "upper" where the run may stop earlier; an estimate of
    `check_rows` is always an upper bound, since references that examples share are asked once.
    """

    forward_rows: int
    backward_rows: int
    check_rows: int
    bound: str = "exact"

    def times(self, runs: int) -> Cost:
        """Return the cost of several such runs."""
        return Cost(self.forward_rows * runs, self.backward_rows * runs, self.check_rows * runs, self.bound)


def planned_cost(
    call: Call,
    batch: int,
    references: int,
    features: int,
    carried: int,
    samples: Callable[[Call], int],
    *,
    tolerance: float | None,
    verify: bool,
    predicts: bool,
) -> Cost:
    """Evaluate the cost formulas of a call; `predicts` says that the target is the class yet to be predicted.

    `carried`: rows that carry inputs and references to a layer. `samples`: of each example, by the plan of a method
    whose formula asks for it.
    """
    sizes = _Sizes({"batch": batch, "references": references, "features": features}, samples)
    forward, backward, bound = _rows(call, sizes, tolerance)
    copies = forward // max(_rows(call.innermost, sizes, None)[0], 1) if call.inner else 1
    if call.inner and carried > batch:  # each chunk of noisy copies carries its references anew
        carried, bound = batch * (1 + references), "upper"
    checks = verify and call.claims_completeness
    check = batch if predicts else 0
    if checks:  # two passes over the first example, twice in each; then F(x) and F(x') of every noisy copy
        check += 4
    if checks and references and tolerance is None:
        check += copies * batch * (1 + references)
    if call.innermost.spec.baseline == "reference" and references > 1:  # averaged over the set
        forward, backward = forward * references, backward * references
    return Cost(forward + copies * carried, backward, check, bound)


@attrs.frozen
class _Sizes:
    """What a cost formula may name beside parameters."""

    known: dict[str, int]
    samples: Callable[[Call], int]


def _rows(call: Call, sizes: _Sizes, tolerance: float | None) -> tuple[int, int, str]:
    """Return forward rows, backward rows and how they bound the run."""
    cost = call.spec.cost
    assert cost is not None, "the reader demands a cost of every method"
    names: dict[str, Any] = dict(sizes.known)
    if "samples" in cost.forward_rows.names | cost.backward_rows.names:
        names["samples"] = sizes.samples(call)
    names |= {name: value for name, value in call.values.items() if isinstance(value, int | float)}
    bound: str = cost.bound
    if call.inner:
        forward, backward, inner_bound = _rows(call.inner, sizes, tolerance)
        names |= {"inner.forward_rows": forward, "inner.backward_rows": backward}
        bound = "upper" if inner_bound == "upper" else bound
    if tolerance is not None and cost.refined_rows is not None:
        rows = int(cost.refined_rows(names))
        return rows, rows if int(cost.backward_rows(names)) else 0, "upper"
    return int(cost.forward_rows(names)), int(cost.backward_rows(names)), bound
