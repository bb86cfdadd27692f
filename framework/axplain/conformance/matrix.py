"""The matrix of methods and axioms: what is claimed in which kind, from the specs alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import attrs

from axplain.conformance.claims import Pair, pairs_of
from axplain.discovery import catalog
from axplain.specs import Spec

#: how a cell is written, by the kind of the claim; a pair with several claims shows the widest
CELLS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "exact": "exact",
        "approximate": "approximate",
        "converges": "converges",
        "statistical": "statistical",
        "inherited": "inherited",
        "for_class": "for a class",
        "contract": "kept",
        "report": "reported",
        "not_claimed": "not claimed",
    }
)
NOT_APPLICABLE: Final = "n/a"


@attrs.frozen
class Matrix:
    """Rows of axioms, columns of methods; `cells` are the words of `CELLS`, or n/a."""

    methods: tuple[str, ...]
    axioms: tuple[str, ...]
    cells: Mapping[tuple[str, str], str]

    @property
    def pairs(self) -> int:
        """How many pairs of a method and an axiom are held to something: those that are claimed or owed."""
        idle = (NOT_APPLICABLE, CELLS["not_claimed"], CELLS["report"])
        return sum(cell not in idle for cell in self.cells.values())

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield a header, then a row for each axiom."""
        yield ("axiom", *self.methods)
        for axiom in self.axioms:
            yield (axiom, *(self.cells[method, axiom] for method in self.methods))


def matrix_of(specs: Sequence[Spec]) -> Matrix:
    """Return what methods claim; axioms come first, then contracts, each as the catalogue has them."""
    axioms = [axiom for axiom in catalog().specs.values() if axiom.kind == "axiom" and axiom.axiom is not None]
    axioms.sort(key=lambda axiom: (is_contract(axiom), axiom.name))
    cells = {(spec.name, axiom.name): NOT_APPLICABLE for spec in specs for axiom in axioms}
    for spec in specs:
        for name, pairs in _by_axiom(pairs_of(spec)).items():
            if (spec.name, name) in cells:
                cells[spec.name, name] = _cell(pairs)
    return Matrix(tuple(spec.name for spec in specs), tuple(axiom.name for axiom in axioms), cells)


def is_contract(axiom: Spec) -> bool:
    """Whether every method has to keep it."""
    return axiom.axiom is not None and axiom.axiom.universal and axiom.axiom.asserted


def _by_axiom(pairs: Iterable[Pair]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.axiom, []).append(pair)
    return found


def _cell(pairs: list[Pair]) -> str:
    if any(pair.known for pair in pairs):
        return "known failure"
    kinds = {pair.kind for pair in pairs}
    return next((word for kind, word in CELLS.items() if kind in kinds), "missing")
