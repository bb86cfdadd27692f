"""What noise, sampling and masking do: limits, rates, rows that the model is asked, and weights that do not matter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn

from axplain import ArgumentError, hookimpl
from axplain.conformance.case import Axiom, Case, Gap, NotApplicable, Violation
from axplain.conformance.subject import few, inner_parameter
from axplain.structure import Tensors, map_tensors

RUNS: Final = 32
SAMPLES: Final = 16
_LIMITS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "inner": torch.clone,
    "square": torch.square,
    "zero": torch.zeros_like,
}
SIGMAS: Final = 5


def check_smoothing_limit(case: Case) -> Gap:
    """Without noise a noise mode is its inner method, the square of it, or zero, as the claim says."""
    name = inner_parameter(case.subject.spec)
    limit = case.claim.limit if case.claim else None
    if name is None or limit is None:
        raise NotApplicable("the claim states no limit, or there is no method inside")
    inner = case.subject.call.values[name]
    alone = Case.attributions(_inside(case, inner.spec, dict(inner.values)))
    expected = map_tensors(_LIMITS[limit], alone)
    gap = Gap.between(case.attributions(), expected, f"attributions without noise against {limit}")
    return Gap(gap.error, _flat_size(alone).expand_as(gap.error), gap.about)


def _inside(case: Case, spec: Any, values: dict[str, Any]) -> Case:
    subject = attrs.evolve(case.subject, spec=spec, parameters=values)
    return attrs.evolve(case, subject=subject)


def _flat_size(tensors: Tensors) -> Tensor:
    return torch.stack([tensor.abs().max().double() for tensor in tensors]).max()


def check_monte_carlo_rate(case: Case) -> Gap:
    """Estimates from independent seeds spread like n^-1/2, and their mean does not depend on n."""
    counts = few(case.subject.spec)
    if len(counts) != 1 or not case.subject.seeded:
        raise NotApplicable("there is no one number of samples")
    name = next(iter(counts))
    if case.subject.spec.kind == "noise":
        case = case.with_parameters(stdev=0.05)  # little enough for rare events not to decide
    small, large = (case.estimates(RUNS, **{name: count}) for count in (SAMPLES, 16 * SAMPLES))
    spread, narrow = small.var(0).sum().sqrt(), large.var(0).sum().sqrt()
    if float(spread) < 1e-12 * float(small.abs().max()):
        raise NotApplicable("all seeds give the same numbers in this case")
    if not float(narrow) <= 0.5 * float(spread):
        raise Violation(
            f"16 times as many samples spread {float(narrow / spread):.2g} as far as before, where 0.25 is expected"
        )
    error = (small.mean(0) - large.mean(0)).abs()
    deviation = SIGMAS * ((small.var(0) + large.var(0)) / RUNS).sqrt()
    size = small.abs().max().expand_as(error)
    return Gap(error, size, "mean of few samples against mean of many", deviation + 1e-12 * size)


def check_conservative_masks(case: Case) -> None:
    """Every element that the model is asked about is one of x or of x', bit for bit, also beside infinities.

    A method that refuses infinities is asked with the largest number there is: differences with it overflow.
    """
    asked: list[Tensors] = []

    def recording(*inputs: Tensor) -> Tensor:
        asked.append(map_tensors(Tensor.clone, inputs))
        return case.value(*map_tensors(lambda x: torch.nan_to_num(x).clamp(-3, 3), inputs))

    for value in (torch.inf, torch.finfo(case.inputs[0].dtype).max):
        asked.clear()
        inputs = tuple(_with(tensor, value) for tensor in case.inputs)
        absent = case.absent if value == torch.inf else tuple(-_with(rows, value) for rows in case.absent)
        with suppress(ArgumentError):
            case.attributions_of(recording, inputs, absent)
            break
    for rows in asked:
        for got, x, ref in zip(rows, inputs, absent, strict=True):
            known = (got.unsqueeze(1) == torch.cat([x, ref]).unsqueeze(0)).any(1)
            if not bool(known.all()):
                place = tuple((~known).nonzero()[0].tolist())
                raise Violation(f"the model was asked about {float(got[place])}, which is in neither x nor x'")


def _with(tensor: Tensor, value: float) -> Tensor:
    flat = tensor.flatten(1).clone()
    flat[:, 0] = value
    return flat.view_as(tensor)


def check_randomisation_sanity(case: Case) -> Gap:
    """Rank correlation of |phi| before and after all weights are drawn anew; reported, near 0 is expected."""
    if not isinstance(case.model, nn.Module) or not any(True for _ in case.model.parameters()):
        raise NotApplicable("the model has no parameters to draw anew")
    other = copy.deepcopy(case.model)
    generator = torch.Generator("cpu").manual_seed(3000 + case.seed)
    for parameter in other.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64, device="cpu")
        spread = float(parameter.detach().std()) if parameter.numel() > 1 else 1.0
        parameter.data = (noise * (spread or 1.0)).to(parameter)
    before, after = (torch.cat([t.abs().flatten(1) for t in case.attributions(m)], 1) for m in (case.model, other))
    correlation = _rank_correlation(before.double(), after.double())
    anything = torch.full_like(correlation, torch.inf)
    return Gap(correlation.abs(), anything, "rank correlation with the map of random weights", tolerance=anything)


def _rank_correlation(left: Tensor, right: Tensor) -> Tensor:
    """Return Spearman's correlation of each row."""
    ranks = [tensor.argsort(1).argsort(1).double() for tensor in (left, right)]
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    norms = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    correlation: Tensor = (centred[0] * centred[1]).sum(1) / norms.clamp(min=1e-12)
    return correlation


_FLAT: Final = ("smooth", "piecewise_linear", "attention", "two_input")
_AXIOMS: Final[dict[str, Any]] = {
    "smoothing_limit": partial(Axiom, check_smoothing_limit, models=_FLAT),
    "monte_carlo_rate": partial(Axiom, check_monte_carlo_rate, models=("smooth",), batch=(1, 1)),
    "conservative_masks": partial(
        Axiom, check_conservative_masks, models=("smooth", "linear", "two_input"), wraps=True, own=False
    ),
    "randomisation_sanity": partial(
        Axiom, check_randomisation_sanity, models=("smooth", "piecewise_linear", "conv_pool"), features=(6, 6)
    ),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the maker of an axiom."""
    return _AXIOMS[name]
