"""Checks one answer: the completeness residual, and whether the model gives one number for one input."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from axplain.engine import Engine
from axplain.errors import warn
from axplain.problem import Problem, References
from axplain.protocols import Outcome
from axplain.specs import Claim
from axplain.structure import Rows, map_tensors, total


@attrs.frozen(eq=False)
class Ends:
    """What completeness compares with, as rows to ask: x, then every distinct reference row once.

    `place`: (batch, k), where each reference of an example finds its answer behind those of x.
    """

    rows: Rows
    place: Tensor

    @classmethod
    def of(cls, problem: Problem, columns: Tensor | None = None) -> Ends:
        """Return the ends of each example; where a method drew references, the ones it drew, as often as it did."""
        references = problem.reference_table()
        if problem.batch == len(references.rows[0]) == 1:  # nothing to share, and a small model would notice the search
            both = torch.zeros(2, dtype=torch.long, device=problem.device)
            x = map_tensors(lambda clean, row: torch.cat([clean, row]), problem.inputs, references.rows)
            return cls(Rows(x, both), both[:1, None])
        index = references.index if columns is None else references.index[:, columns.to(problem.device)]
        rows, asker, place = _distinct_questions(problem, references, index)
        x = map_tensors(lambda clean, table: torch.cat([clean, table[rows]]), problem.inputs, references.rows)
        return cls(Rows(x, torch.cat([problem.everyone(), asker])), place.view(index.shape))

    @classmethod
    def absent(cls, problem: Problem) -> Ends:
        """Return the rows of the references alone, every distinct one once."""
        references = problem.reference_table()
        rows, asker, place = _distinct_questions(problem, references, references.index)
        x = map_tensors(lambda table: table[rows], references.rows)
        return cls(Rows(x, asker), place.view(references.index.shape))

    def told(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(x) and mean F(x') from the values at the rows: (batch * targets,) each, in float64."""
        batch = len(self.place)
        clean, baseline = value[:batch].double(), value[batch:].double()[self.place]
        return clean.flatten(), (baseline.mean(1) if baseline.shape[1] > 1 else baseline[:, 0]).flatten()


def with_completeness(problem: Problem, engine: Engine, outcome: Outcome) -> Outcome:
    """Add the residual sum(attributions) - (F(x) - mean F(x')) and that difference: (batch * targets,), in float64."""
    ends = outcome.ends
    if ends is None and outcome.columns is None:  # of all references, not of some that were drawn
        ends = problem.ends
    if ends is None:
        asked = Ends.of(problem, outcome.columns)
        ends = asked.told(engine.check_values(problem, asked.rows))
    difference = ends[0] - ends[1]
    summed = total(outcome.attributions) if outcome.features is None else total((outcome.features,))
    checks = {"completeness": summed - difference, "difference": difference}
    return attrs.evolve(outcome, checks=checks, ends=ends)


def warn_if_drifting(problem: Problem, engine: Engine, outcome: Outcome) -> None:
    """Warn where two passes over the first example differ; rounding by batch size stays below the bound.

    The two passes that measured the model are such a pair, where the method itself then took only one. What runs before
    a layer need not run again where a pass was seen to give its operations the same.
    """
    lowered = outcome.lowered
    steady = lowered is None or lowered.model.steady
    if lowered is not None and steady:
        problem = lowered
    if engine.witness and steady:
        before, after = engine.witness
    else:
        known = outcome.ends[0] if outcome.ends else problem.clean
        before = _asked_once(problem, engine) if known is None else float(known.flatten()[0])
        after = _asked_once(problem, engine)
    dtype = problem.inputs[0].dtype
    loose = 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4
    if not math.isclose(before, after, rel_tol=loose, abs_tol=loose):
        warn(
            f"the model is not deterministic: two passes over the same input differ by {abs(before - after):.3g}, so "
            "an explanation explains neither. Call model.eval(), and look for state that the forward pass changes."
        )


def _asked_once(problem: Problem, engine: Engine) -> float:
    one = problem.take(problem.everyone()[:1].repeat(_rows_alone(problem)))
    return float(engine.check_values(one, Rows(one.inputs, one.everyone())).flatten()[0])


def _rows_alone(problem: Problem) -> int:
    """Return how many rows a pass must have at least: batch normalisation in training refuses a single one."""
    parts = problem.model.parts.values()
    return 2 if not parts or any(part.training for part in parts) else 1


def _distinct_questions(problem: Problem, references: References, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the reference rows to ask, an example that asks each, and where each of `index` finds its answer."""
    variants = problem.variants()
    pairs = torch.stack([index.flatten(), variants[:, None].expand_as(index).flatten()], 1)
    distinct, place = torch.unique(pairs, dim=0, return_inverse=True)
    asker = torch.zeros(int(variants.max()) + 1, dtype=torch.long, device=problem.device)
    asker[variants] = problem.everyone()  # any example of a variant may ask for all of them
    return distinct[:, 0], asker[distinct[:, 1]], place


def warn_incomplete(claim: Claim, method: str, outcome: Outcome, dtype: torch.dtype) -> None:
    """Warn where a residual is larger than the spec allows, as a fraction of |F(x) - F(x')|, and than rounding."""
    if claim.warn_above is None:
        return
    residual, scale = outcome.checks["completeness"], outcome.checks["difference"]
    pairs = zip(residual.tolist(), scale.tolist(), strict=True)
    if all(abs(off) <= claim.warn_above * abs(difference) for off, difference in pairs):
        return
    rounding = 32 * torch.finfo(dtype).eps * total(map_tensors(torch.abs, outcome.attributions))
    excess = residual.abs() - claim.warn_above * scale.abs() - rounding
    worst = int(excess.argmax())
    if float(excess[worst]) > 0:
        warn(
            f"{method}: the attributions of example {worst} sum to {float(residual[worst] + scale[worst]):.4g} where "
            f"F(x) - F(x') = {float(scale[worst]):.4g}, off by more than {claim.warn_above:.0%} of it. {claim.cure}"
        )
