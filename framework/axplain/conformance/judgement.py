"""How a claim is held to its kind: a gap against a tolerance, or a rate at which gaps close."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from axplain.conformance.case import Case, Gap, NotApplicable, Violation
from axplain.formula import Formula
from axplain.specs import Claim, Rate

#: rounding that exact mathematics may show: per sum of a few hundred terms, beside the size of what is summed
EXACT = Formula("1e3 * eps * (1 + abs_out)")
#: samples of the coarse and, sixteen times as many, of the fine question that a rate is measured between
COARSE = 8
FINER = 16
#: how many times the gap that the rate predicts is let pass: two standard deviations over 64 cases and more
SLACK = 2.0


def judge(gap: Gap | None, claim: Claim | None, eps: float) -> float:
    """Return how much of what is allowed a gap uses up: 1 is all of it.

    Raises:
        Violation: it is more.
    """
    if gap is None or not gap.error.numel():
        return 0.0
    allowed = gap.tolerance if gap.tolerance is not None else _allowed(gap.scale, claim, eps)
    beyond = gap.error - allowed
    worst = int(torch.nan_to_num(beyond, nan=math.inf).argmax())
    if not float(beyond[worst]) <= 0:
        raise Violation(
            f"{gap.about}: off by {float(gap.error[worst]):.3g} beside {float(gap.scale[worst]):.3g}, where "
            f"{float(allowed[worst]):.2g} is allowed"
        )
    return float((gap.error / allowed.clamp(min=1e-300)).max())


def _allowed(scale: Tensor, claim: Claim | None, eps: float) -> Tensor:
    formula = claim.tolerance if claim and claim.tolerance else EXACT
    values = [float(formula({"eps": eps, "abs_out": size})) for size in scale.flatten().tolist()]
    return torch.tensor(values, dtype=torch.float64).view_as(scale)


def judge_rate(
    check: Callable[[Case], Gap | None], cases: Sequence[Callable[..., Case]], rate: Rate
) -> tuple[float, float]:
    """Return the share of what is allowed, and the gap, with sixteen times as many samples.

    Gaps are taken over all cases, as the root of the mean square.

    `cases`: makers of cases that take the number of samples by the name of the parameter.

    Raises:
        Violation: the gap closes slower than the rate says.
    """
    coarse, fine = (_gaps(check, cases, {rate.parameter: count}) for count in (COARSE, COARSE * FINER))
    if fine <= 1e-12:
        return 0.0, fine
    left, expected = fine / max(coarse, 1e-300), float(FINER**-rate.order)
    if not left <= SLACK * expected:
        raise Violation(
            f"{FINER} times as much of {rate.parameter} leaves {left:.2g} of the gap, where order {rate.order:g} would "
            f"leave {expected:.2g}; over {len(cases)} cases it was {coarse:.2g}, then {fine:.2g}"
        )
    return left / (SLACK * expected), fine


def _gaps(
    check: Callable[[Case], Gap | None], cases: Sequence[Callable[..., Case]], parameters: dict[str, int]
) -> float:
    squares = []
    for case in cases:
        try:
            gap = check(case(**parameters))
        except NotApplicable:
            continue
        if gap is not None:
            squares.append((gap.error / (1 + gap.scale)).square().mean())
    if not squares:
        raise NotApplicable("no case has anything to say")
    return float(torch.stack(squares).mean().sqrt())
