"""Checks one answer: the completeness residual, and whether the model gives one number for one input."""

from __future__ import annotations

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
        index = references.index if columns is None else references.index[:, columns.to(problem.device)]
        rows, asker, place = _distinct_questions(problem, references, index)
        x = map_tensors(lambda clean, table: torch.cat([clean, table[rows]]), problem.inputs, references.rows)
        return cls(Rows(x, torch.cat([problem.everyone(), asker])), place.view(index.shape))

    def told(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(x) and mean F(x') from the values at the rows: (batch,) each, in float64."""
        batch = len(self.place)
        return value[:batch].double(), value[batch:].double()[self.place].mean(1)


def completeness(problem: Problem, engine: Engine, outcome: Outcome) -> dict[str, Tensor]:
    """Return the residual sum(attributions) - (F(x) - mean F(x')) and that difference: (batch,) each, in float64.

    Where no two passes saw one input yet, F(x) is asked once more, as a witness that the model is deterministic.
    """
    with engine.checking():
        if outcome.ends is None:
            ends = Ends.of(problem, outcome.columns)
            clean, baseline = ends.told(_values(problem, engine, ends.rows))
        else:
            clean, baseline = outcome.ends
        if problem.clean is not None:
            before, after = problem.clean, clean
        else:
            again = Rows(problem.inputs, problem.everyone())
            before, after = engine.witness or (_values(problem, engine, again), clean)
    _compare(before.double(), after.double(), problem.inputs[0].dtype)
    difference = clean - baseline
    return {"completeness": total(outcome.attributions) - difference, "difference": difference}


def _values(problem: Problem, engine: Engine, rows: Rows) -> Tensor:
    value = engine.ask(problem, rows.x, rows.index, "value").value
    assert value is not None, "a value was asked for"
    return value


def _distinct_questions(problem: Problem, references: References, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the reference rows to ask, an example that asks each, and where each of `index` finds its answer."""
    if problem.batch == 1 and len(references.rows[0]) == index.shape[1]:  # each row is asked once by the one example
        rows = index.flatten()
        return rows, torch.zeros_like(rows), torch.arange(len(rows), device=rows.device)
    variants = problem.variants()
    pairs = torch.stack([index.flatten(), variants[:, None].expand_as(index).flatten()], 1)
    distinct, place = torch.unique(pairs, dim=0, return_inverse=True)
    asker = torch.zeros(int(variants.max()) + 1, dtype=torch.long, device=problem.device)
    asker[variants] = problem.everyone()  # any example of a variant may ask for all of them
    return distinct[:, 0], asker[distinct[:, 1]], place


def _compare(before: Tensor, after: Tensor, dtype: torch.dtype) -> None:
    """Warn where the model gave two values for one input; rounding by batch size stays below the bound."""
    loose = 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-4
    if not torch.allclose(before, after, rtol=loose, atol=loose):
        worst = float((before - after).abs().max())
        warn(
            f"the model is not deterministic: two passes over the same input differ by {worst:.3g}, so an explanation "
            "explains neither. Call model.eval(), and look for state that the forward pass changes."
        )


def warn_incomplete(claim: Claim, method: str, outcome: Outcome, dtype: torch.dtype) -> None:
    """Warn where a residual is larger than the spec allows, as a fraction of |F(x) - F(x')|, and than rounding."""
    if claim.warn_above is None:
        return
    residual, scale = outcome.checks["completeness"], outcome.checks["difference"]
    rounding = 32 * torch.finfo(dtype).eps * total(map_tensors(torch.abs, outcome.attributions))
    excess = residual.abs() - claim.warn_above * scale.abs() - rounding
    worst = int(excess.argmax())
    if float(excess[worst]) > 0:
        warn(
            f"{method}: the attributions of example {worst} sum to {float(residual[worst] + scale[worst]):.4g} where "
            f"F(x) - F(x') = {float(scale[worst]):.4g}, off by more than {claim.warn_above:.0%} of it. {claim.cure}"
        )
