"""Closed forms that whole families agree on: Shapley values by brute force, input times gradient."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from axplain import hookimpl
from axplain.conformance.case import Axiom, Case, Gap, NotApplicable
from axplain.structure import map_tensors

MOST_PLAYERS: Final = 8
#: standard errors that a sampled value may be away from the exact one
SIGMAS: Final = 5


def check_shapley(case: Case) -> Gap:
    """phi_i is the mean marginal contribution of feature i over all subsets of the others."""
    exact = shapley_values(case)
    answer = case.explain()
    phi = torch.cat([tensor.flatten(1) for tensor in case.structure.unpack(answer.attributions)], 1)
    gap = Gap.between(phi, exact, "attributions against Shapley values by brute force")
    errors = getattr(answer, "standard_errors", None)
    if case.claim is None or case.claim.kind != "statistical":
        return gap
    if errors is None:
        raise NotApplicable("a statistical claim is judged by the standard errors, and the explanation has none")
    spread = torch.cat([tensor.flatten(1) for tensor in case.structure.unpack(errors)], 1).double().flatten()
    return Gap(gap.error, gap.scale, gap.about, SIGMAS * spread + 1e-9 * gap.scale)


def shapley_values(case: Case) -> Tensor:
    """Return (batch, features): the subset formula, over 2^features model rows for each example and reference."""
    widths = [tensor[0].numel() for tensor in case.inputs]
    players = sum(widths)
    if players > MOST_PLAYERS:
        raise NotApplicable(f"brute force over {players} features would need 2^{players} subsets")
    subsets = torch.tensor(list(itertools.product((False, True), repeat=players)))
    worth = _worth(case, subsets)
    sizes = subsets.sum(1)
    values = []
    for player in range(players):
        without = ~subsets[:, player]
        within = torch.arange(len(subsets))[without] + 2 ** (players - 1 - player)
        weight = torch.tensor([_weight(size, players) for size in sizes[without].tolist()], dtype=torch.float64)
        values.append(((worth[within] - worth[without]) * weight[:, None]).sum(0))
    return torch.stack(values, 1)


def _weight(size: int, players: int) -> float:
    """Return the share of the orders in which exactly the players of a subset come before one other."""
    return math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)


def _worth(case: Case, subsets: Tensor) -> Tensor:
    """Return (subsets, batch): the value with the features of a subset present, averaged over the references."""
    widths = [tensor[0].numel() for tensor in case.inputs]
    worth = torch.zeros(len(subsets), len(case.inputs[0]), dtype=torch.float64)
    references = case.references()
    with torch.no_grad():
        for number, subset in enumerate(subsets):
            present = subset.split(widths)
            for rows in references:
                mixed = map_tensors(
                    lambda x, ref, keep: torch.where(keep.view(1, *x.shape[1:]), x, ref), case.inputs, rows, present
                )
                worth[number] += case.value(*mixed).double() / len(references)
    return worth


def check_homogeneity(case: Case) -> Gap:
    """On positively homogeneous F and the baseline zero: phi = x * gradient, by Euler's theorem complete."""
    leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in case.inputs)
    slopes = torch.autograd.grad(case.value(*leaves).sum(), leaves)
    expected = map_tensors(torch.mul, case.inputs, slopes)
    return Gap.between(case.attributions(), expected, "attributions against input times gradient")


_AXIOMS: Final[dict[str, Any]] = {
    "shapley": partial(
        Axiom,
        check_shapley,
        models=("smooth", "piecewise_linear", "linear", "additive", "multilinear", "two_input"),
        features=(2, 4),
        batch=(1, 2),
    ),
    "homogeneity": partial(Axiom, check_homogeneity, models=("bias_free_relu",), baselines=("zeros",), own=False),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the maker of an axiom."""
    return _AXIOMS[name]
