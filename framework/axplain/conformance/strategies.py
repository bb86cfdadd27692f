"""Hypothesis strategies: small models, inputs, baselines, targets, masks, and whole questions.

Everything drawn is a recipe of small numbers, so it shrinks well and its repr builds it again. `questions` is what the
kit itself draws from; the others are for tests of one's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from axplain.conformance.case import Axiom, Form, Question, normal, rows_of
from axplain.conformance.networks import KINDS, Kind, Recipe, kinds_with, kinds_with_layer
from axplain.conformance.subject import Subject
from axplain.errors import MissingExtra
from axplain.specs import Claim

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import SearchStrategy
except ImportError as error:
    raise MissingExtra("the conformance kit", "conformance") from error

MOST_SEEDS = 2**10
#: conditions of claims that are properties of models
CONDITIONS = ("smooth", "piecewise_linear")


def models(
    *kinds: Kind, features: tuple[int, int] = (2, 6), outputs: tuple[int, int] = (1, 3)
) -> SearchStrategy[Recipe]:
    """Return recipes of small float64 models. Without kinds: all of them.

    `recipe.build()` makes the model, `recipe.shapes` has the shape of one row of each of its inputs.
    """
    return st.builds(
        Recipe,
        kind=st.sampled_from(kinds or KINDS),
        features=st.integers(*features),
        outputs=st.integers(*outputs),
        seed=_seeds(),
    )


def inputs(*shape: int, batch: tuple[int, int] = (1, 4), dtype: torch.dtype = torch.float64) -> SearchStrategy[Tensor]:
    """Return inputs, (batch, *shape): standard normal numbers."""
    return st.builds(lambda rows, seed: _seeded(seed, rows, *shape).to(dtype), st.integers(*batch), _seeds())


def baselines(x: Tensor, forms: tuple[Form, ...] = ("zeros", "number", "one", "each", "set")) -> SearchStrategy[object]:
    """Return what stands for absence: None, a number, one row, one row for each example, or a set of three rows."""
    from axplain.references import distribution

    def make(form: Form, seed: int) -> object:
        count = rows_of(form, len(x))
        if count is None:
            return None if form == "zeros" else 0.3
        rows = _seeded(seed, count, *x.shape[1:]).to(x.dtype)
        return distribution(rows) if form == "set" else rows

    return st.builds(make, st.sampled_from(forms), _seeds())


def targets(outputs: int, batch: int) -> SearchStrategy[object]:
    """Return targets in every spelling: an index, a tuple, a list, a tensor, a callable."""
    index = st.integers(0, outputs - 1)
    each = st.lists(index, min_size=batch, max_size=batch)
    return st.one_of(
        index,
        index.map(lambda i: (i,)),
        each,
        each.map(torch.tensor),
        index.map(lambda i: lambda output: output[:, i]),
    )


def masks(*shape: int, groups: tuple[int, int] = (1, 4)) -> SearchStrategy[Tensor]:
    """Return feature masks, (1, *shape): whole numbers that group elements, each group used."""

    def make(count: int, seed: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(seed)
        ids = torch.randint(count, shape, generator=generator)
        packed: Tensor = torch.unique(ids, return_inverse=True)[1]
        return packed.unsqueeze(0)

    return st.builds(make, st.integers(*groups), _seeds())


def questions(axiom: Axiom, kinds: tuple[Kind, ...], subject: Subject) -> SearchStrategy[Question]:
    """Return the cases of an axiom for a method, on models of some kinds."""
    return st.builds(
        Question,
        model=models(*kinds, features=axiom.features, outputs=(subject.call.innermost.spec.requires.min_outputs, 3)),
        batch=_batches(axiom, subject.min_batch),
        baselines=st.sampled_from(_forms(axiom, subject)),
        target=st.integers(0, 2),
        seed=_seeds(),
    )


def one_of_each(axiom: Axiom, kinds: tuple[Kind, ...], subject: Subject) -> list[Question]:
    """Return one case of every kind, the baselines taking turns: what no draw may miss."""
    forms, least = _forms(axiom, subject), subject.min_batch
    batch = least if axiom.wraps else max(axiom.batch[1], least)
    size = axiom.features[1]
    return [
        Question(Recipe(kind, size, 2, seed=i), batch, forms[i % len(forms)], i, seed=i) for i, kind in enumerate(kinds)
    ]


def kinds_of(axiom: Axiom, claim: Claim | None, subject: Subject) -> tuple[Kind, ...]:
    """Return the kinds of models that an axiom is asked of, a claim is made for and a method takes."""
    wanted = None
    if claim is not None:
        wanted = claim.model_class or (claim.when if claim.when in CONDITIONS else None)
    kinds = kinds_with(wanted, axiom.models)
    if subject.needs_layer:
        kinds = kinds_with_layer(kinds, spatial=subject.call.innermost.spec.requires.layer == "spatial")
    return tuple(k for k in kinds if min(map(len, Recipe(k).shapes)) + 1 >= subject.min_dims)


def _batches(axiom: Axiom, least: int) -> SearchStrategy[int]:
    """One example where functions are made for it, as many as the method needs at least."""
    if axiom.wraps:
        return st.just(least)
    return st.integers(max(axiom.batch[0], least), max(axiom.batch[1], least))


def _forms(axiom: Axiom, subject: Subject) -> tuple[Form, ...]:
    return axiom.baselines if subject.baseline != "none" else ("zeros",)


def fixed_questions(axiom: Axiom, claim: Claim, subject: Subject, count: int) -> list[Question]:
    """Return as many cases, the same in every run: what the rate of a convergence is measured over."""
    kinds, forms = kinds_of(axiom, claim, subject), _forms(axiom, subject)
    return [
        Question(Recipe(kinds[i % len(kinds)], 2 + i % 4, 2, seed=i), 1, forms[i % len(forms)], i, seed=i)
        for i in range(count if kinds else 0)
    ]


def _seeds() -> SearchStrategy[int]:
    return st.integers(0, MOST_SEEDS)


def _seeded(seed: int, *shape: int) -> Tensor:
    return normal(torch.Generator("cpu").manual_seed(seed), *shape)
