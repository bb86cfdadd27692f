"""Contracts on what a spec says of its method: the price, the signs, the seed, the baselines, the dtypes it takes."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import attrs
import torch
from torch import Tensor, nn

from axplain import hookimpl
from axplain.conformance.case import Axiom, Case, NotApplicable, Violation
from axplain.seats.neurons import Neuron


class _Counter(nn.Module):
    """Counts the rows of every pass at the model itself, and those that a gradient may follow."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, [0, 0]
        self.train(model.training)

    def forward(self, *args: Tensor, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()))
        self.rows[0] += len(first)
        graph = torch.is_grad_enabled()
        output = self.model(*args, **kwargs)
        given = any(isinstance(x, Tensor) and x.requires_grad for x in (*args, *kwargs.values()))
        if given if graph else torch.is_grad_enabled():  # a graph may begin at a layer of it
            self.rows[1] += len(first)
        return output


class _Negated(nn.Module):
    """The model with its sign turned: what is signed turns with it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> Any:
        return -self.model(*args)


def check_cost(case: Case) -> None:
    """Rows that pass through the model are those of the spec's formula; where the bound is upper, at most those."""
    if case.subject.spec.cost is None:
        raise NotApplicable("the spec states no cost")
    if not isinstance(case.model, nn.Module) or isinstance(case.target, Neuron):
        raise NotApplicable("the model is no torch.nn.Module, or the target a unit of it, which a wrapper would hide")
    counter = _Counter(case.model)
    case.explain(counter, batch_size=3)  # rule sets look once at how a model lays out its rows
    counter.rows[:] = [0, 0]
    case.explain(counter, batch_size=3)
    price = case.price(batch_size=3)
    seen, stated = counter.rows, [price.forward_rows, price.backward_rows]
    if "layer" in case.extra and not case.subject.needs_layer:  # its graphs begin inside of the model, uncounted
        seen, stated[1] = [seen[0], 0], 0
    honest = seen == stated if price.bound == "exact" else all(map(int.__le__, seen, stated))
    if not honest:
        raise Violation(
            f"the model saw {counter.rows[0]} rows forward and {counter.rows[1]} with a gradient; the spec says "
            f"{'at most ' if price.bound == 'upper' else ''}{stated[0]} and {stated[1]}"
        )


def check_declarations(case: Case) -> None:
    """What the spec declares is what is seen, neither more nor less: seed, signs, baselines, dtypes."""
    _check_seed(case)
    _check_signs(case)
    _check_baselines(case)
    _check_integers(case)


def _check_seed(case: Case) -> None:
    first, second = (case.attributions(seed=seed) for seed in (1, 2))
    same = all(map(torch.equal, first, second))
    if same and case.subject.seeded and not _exhausts(case):
        raise Violation('no seed changes the numbers: declare determinism.kind = "deterministic"')
    if not same and not case.subject.seeded:
        raise Violation('the numbers depend on the seed: declare determinism.kind = "seeded"')


def _exhausts(case: Case) -> bool:
    """Whether a call asks for so many rows that all coalitions fit, and nothing is left to draw."""
    if case.subject.spec.cost is None:
        return False
    elements = sum(tensor[0].numel() for tensor in case.inputs)
    return case.price().forward_rows >= len(case.inputs[0]) * int(2**elements)


def _check_signs(case: Case) -> None:
    answers = [*case.attributions(), *case.attributions(_Negated(case.model))]
    if not any(bool(tensor.any()) for tensor in answers):
        return  # a network that is dead wherever it was asked: zeros have no sign
    negative = any(bool((tensor < 0).any()) for tensor in answers)
    if negative and not case.subject.spec.signed:
        raise Violation("some attributions are negative, though the spec says signed = false")
    if not negative and _signed(case):
        raise Violation("no attribution is ever negative: declare signed = false")


def _signed(case: Case) -> bool:
    """Whether negative numbers are due: declared by the method, and by the one inside it."""
    return case.subject.spec.signed and case.subject.call.innermost.spec.signed


def _check_baselines(case: Case) -> None:
    if case.subject.baseline == "none":
        return
    first, second = (case.attributions(baselines=value) for value in (0.0, 0.7))
    if all(map(torch.equal, first, second)) and any(bool(tensor.any()) for tensor in first):
        raise Violation("the baselines change nothing, though the spec takes them")


def _check_integers(case: Case) -> None:
    if case.subject.call.innermost.spec.requires.input_dtype != "any" or not isinstance(case.x, Tensor):
        return
    x = (case.x * 3).round().long()
    baselines = 0 if case.subject.baseline != "none" else None
    cure = 'declare requires = { input_dtype = "floating" }'
    try:
        got = attrs.evolve(case, x=x, baselines=baselines).attributions(lambda x: case.model(x.double()))[0]
    except Exception as error:
        raise Violation(f"whole-number inputs fail ({type(error).__name__}: {error}): {cure}") from error
    if not got.is_floating_point() or not bool(got.any()):
        raise Violation(f"whole-number inputs get no attributions: {cure}")


_AXIOMS: Final[dict[str, Any]] = {
    "cost": partial(Axiom, check_cost, models=("smooth", "conv_pool", "attention", "two_input")),
    "declarations": partial(
        Axiom,
        check_declarations,
        models=("smooth", "conv_pool"),
        batch=(4, 4),
        features=(6, 6),
        baselines=("set", "zeros"),
        own=False,
    ),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the maker of a contract."""
    return _AXIOMS[name]
