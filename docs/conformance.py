"""Writes docs/conformance.md from the specs and the kit's table; `--check` fails where it is older than they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import axplain
from axplain.conformance.claims import REQUIRED, pairs_of
from axplain.conformance.matrix import is_contract, matrix_of
from axplain.specs import EXPLAINS, Spec

PAGE = Path(__file__).with_name("conformance.md")
HEAD = """\
# Conformance

Generated from the specs by `python docs/conformance.py`. `axplain check --all` prints the same matrix after it has held
every method to it; `axplain check METHOD` and `pytest --axplain-method METHOD` do so for one, `axplain.check(METHOD,
model=..., x=...)` on a model of yours.

**What a pass does not say.** No case was found in which a claim fails: small networks, drawn by Hypothesis, in float64,
the same in every run. That is not a proof, and it says nothing about whether an explanation answers your question:
axioms certify the implementation and the contract. Complete and linear methods can do no better than chance on some
questions about local behaviour (Bilodeau et al. 2024, arXiv:2212.11870).

The same kit on captum: [captum.md](captum.md)."""
WORDS = """\
*exact*: up to rounding. *approximate*: within a stated tolerance. *converges*: at a stated rate as samples grow.
*statistical*: within five standard errors. *for a class*: exact on models of a class. *inherited*: as the method inside
claims it. *kept*: a contract, which every method keeps without a claim. *reported*: measured, nothing is demanded. *not
claimed*: openly not; the reasons are below. *n/a*: neither claimed nor expected of the family."""


def page() -> str:
    """Return the page of today."""
    specs = ours()
    matrix = matrix_of(specs)
    lines = [
        HEAD,
        "",
        f"{matrix.pairs} pairs of a method and an axiom are checked.",
        "",
        "## Who claims what",
        "",
        WORDS,
    ]
    lines += ["", *table(list(matrix.rows())), "", "## What is not claimed, and why", "", *reasons(specs)]
    lines += ["", "## What a family has to claim", ""]
    lines += ["A method of a family claims each of these, in one of the kinds, or says `not_claimed` and a reason.", ""]
    lines += [*table(list(required())), "", "## The axioms", "", *table(list(axioms(universal=False)))]
    lines += ["", "## The contracts", "", *table(list(axioms(universal=True)))]
    return "\n".join(lines) + "\n"


def ours() -> list[Spec]:
    """Return the methods of this distribution, by family."""
    specs = [s for s in axplain.catalog().specs.values() if s.distribution == "axplain" and s.kind in EXPLAINS]
    return sorted(specs, key=lambda spec: (spec.kind, spec.family, spec.name))


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a Markdown table whose first row is its header."""
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if not number:
            yield "|" + "---|" * len(row)


def reasons(specs: Sequence[Spec]) -> Iterator[str]:
    """Yield a line for each claim that is openly not made, and for each known failure."""
    for spec in specs:
        for pair in pairs_of(spec):
            if pair.waived:
                yield f"* `{spec.name}`, {pair.axiom.replace('_', ' ')}: {pair.waived}"
            if pair.known:
                yield f"* `{spec.name}`, {pair.axiom.replace('_', ' ')}, fails: {pair.known}"


def required() -> Iterator[tuple[str, ...]]:
    """Yield the table of what families have to claim."""
    yield ("axiom", *REQUIRED)
    for axiom in sorted({name for claims in REQUIRED.values() for name in claims}):
        kinds = [", ".join(sorted(claims.get(axiom, ()))).replace("_", " ") for claims in REQUIRED.values()]
        yield (axiom, *(kind if kind.count(",") < 5 else "any" for kind in kinds))


def axioms(*, universal: bool) -> Iterator[tuple[str, ...]]:
    """Yield what each axiom, or each contract, says."""
    yield ("id", "definition", "formula", "source") if not universal else ("id", "what it demands")
    for name in axplain.catalog().names("axiom"):
        spec = axplain.describe(name, "axiom")
        if is_contract(spec) == universal:
            more = (f"`{spec.formula.replace('|', chr(92) + '|')}`", ", ".join(spec.citation)) if not universal else ()
            yield (name, spec.summary, *more)


if __name__ == "__main__":
    if "--check" in sys.argv:
        current = PAGE.exists() and PAGE.read_text("utf-8") == page()
        sys.exit(0 if current else f"{PAGE.name}: older than the specs; run python docs/conformance.py")
    PAGE.write_text(page(), "utf-8")
