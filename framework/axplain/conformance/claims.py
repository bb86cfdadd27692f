"""Which pairs of a method and an axiom there are to check, from the specs alone: no torch, no plugin is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import attrs

from axplain.discovery import Broken, catalog
from axplain.errors import UnknownMethod, near_names
from axplain.specs import EXPLAINS, Claim, Spec

_EXACT: Final = frozenset({"exact"})
_ANY: Final = frozenset({"exact", "approximate", "converges", "for_class", "statistical", "inherited"})

#: family -> axiom -> the kinds in which its methods claim it. One that does not says `not_claimed` and a reason.
REQUIRED: Final[Mapping[str, Mapping[str, frozenset[str]]]] = MappingProxyType(
    {
        "gradient": {
            "dummy": _EXACT,
            "linearity": _EXACT,
            "implementation_invariance": _EXACT,
            "symmetry": _EXACT,
            "shift": _EXACT,
            "completeness": _ANY,
        },
        "path": {
            "completeness": _ANY,
            "sensitivity": _ANY,
            "dummy": _EXACT,
            "linearity": _EXACT,
            "implementation_invariance": _EXACT,
            "symmetry": _EXACT,
            "linear_exactness": frozenset({"exact", "converges"}),
            "affine_scale": _EXACT,
            "shift": _EXACT,
            "null_at_baseline": _EXACT,
        },
        "propagation": {
            "completeness": _ANY,
            "sensitivity": _ANY,
            "dummy": _EXACT,
            "linearity": _EXACT,
            "implementation_invariance": frozenset({"exact", "for_class"}),
            "symmetry": _EXACT,
            "linear_exactness": _EXACT,
            "null_at_baseline": _EXACT,
        },
        "removal": {
            "completeness": _ANY,
            "sensitivity": _ANY,
            "dummy": _ANY,
            "linearity": _EXACT,
            "implementation_invariance": _EXACT,
            "symmetry": _ANY,
            "linear_exactness": _ANY,
            "affine_scale": _EXACT,
            "null_at_baseline": _EXACT,
            "conservative_masks": _EXACT,
            "feature_masks": _EXACT,
        },
        "noise": {"completeness": _ANY, "smoothing_limit": _EXACT},
    }
)


@attrs.frozen
class Pair:
    """One method and one axiom.

    `claim`: what the method's spec says of it; None for a contract that nobody declares. `fault`: what is wrong before
    anything runs. `waived`: why the spec does not claim it, `known`: why it is known to fail.
    """

    method: str
    distribution: str
    axiom: str
    claim: Claim | None = None
    fault: str = ""
    waived: str = ""
    known: str = ""
    asserted: bool = True

    @property
    def runs(self) -> bool:
        """Whether there is something to run, once no fault is found: the spec does not say that it is not claimed."""
        return not self.waived

    @property
    def kind(self) -> str:
        """How the axiom is claimed; "contract" where every method has to keep it, "report" where it is measured."""
        if self.claim is not None:
            return self.claim.kind
        return "" if self.fault else "contract" if self.asserted else "report"

    def __str__(self) -> str:
        claim = self.claim
        details = [claim.kind, claim.when, claim.model_class] if claim else []
        return "-".join([self.method, self.axiom, *(detail for detail in details if detail)])


def pairs_of(spec: Spec) -> list[Pair]:
    """Return every pair of one method: its claims, the contracts, and what its family has to claim but does not."""
    axioms = {name: axiom for (kind, name), axiom in catalog().specs.items() if kind == "axiom"}
    found = [_claimed(spec, claim, axioms) for claim in spec.axioms]
    said = {claim.id for claim in spec.axioms}
    for name in sorted(axioms):
        facts = axioms[name].axiom
        if facts is not None and facts.universal and name not in said:
            found.append(attrs.evolve(_pair(spec, name), asserted=facts.asserted))
    for name, kinds in REQUIRED.get(spec.family, {}).items():
        if name not in said and name in axioms:
            fault = (
                f"methods of the family {spec.family!r} claim it ({' or '.join(sorted(kinds))}); claim it, or write "
                'kind = "not_claimed" and a reason'
            )
            found.append(attrs.evolve(_pair(spec, name), fault=fault))
    idle = spec.known_failures.keys() & axioms.keys() - {pair.axiom for pair in found if pair.runs}
    found += [
        attrs.evolve(_pair(spec, name), fault="known_failures names it and it is not claimed: delete it", known="")
        for name in sorted(idle)
    ]
    return found + [
        attrs.evolve(
            _pair(spec, name), fault=f"known_failures names it and there is no such axiom{_near(name, axioms)}"
        )
        for name in spec.known_failures
        if name not in axioms
    ]


def left_out(entry: Broken) -> Pair:
    """Return the only pair of a plugin that cannot be used: it fails, and says why."""
    return Pair(entry.name or entry.origin, entry.distribution, "loads", fault=entry.reason)


def _pair(spec: Spec, axiom: str, claim: Claim | None = None) -> Pair:
    known = spec.known_failures.get(axiom, "")
    return Pair(spec.name, spec.distribution or spec.origin, axiom, claim, known=known)


def _claimed(spec: Spec, claim: Claim, axioms: Mapping[str, Spec]) -> Pair:
    pair = _pair(spec, claim.id, claim)
    if claim.id not in axioms:
        return attrs.evolve(pair, fault=f"there is no axiom {claim.id!r}{_near(claim.id, axioms)}")
    facts, required = axioms[claim.id].axiom, REQUIRED.get(spec.family, {}).get(claim.id)
    assert facts is not None, "the reader demands the table of every axiom"
    if claim.kind == "not_claimed":
        needs_reason = facts.universal or required is not None
        fault = "it is not claimed and no reason is written" if needs_reason and not claim.reason else ""
        return attrs.evolve(pair, waived=claim.reason or "not claimed", fault=fault)
    if claim.kind != "inherited" and claim.kind not in facts.kinds:
        return attrs.evolve(pair, fault=f"it is claimed as {claim.kind}, and can be {', '.join(facts.kinds)}")
    if required is not None and claim.kind not in required and claim.kind != "inherited":
        return attrs.evolve(
            pair, fault=f"methods of the family {spec.family!r} claim it as {' or '.join(sorted(required))}"
        )
    return pair


def _near(name: str, axioms: Iterable[str]) -> str:
    near = near_names(name, axioms)
    return f", did you mean {near}?" if near else f"; there are {', '.join(sorted(axioms))}"


def specs_of(names: Iterable[str]) -> tuple[list[Spec], list[Broken]]:
    """Return the methods that names of methods or distributions mean, and what is broken of those.

    Raises:
        UnknownMethod: a name is neither.
    """
    specs: list[Spec] = []
    broken: list[Broken] = []
    for name in names:
        found = list(_of_distribution(name))
        faulty = [entry for entry in catalog().broken if _same(entry.distribution, name) or entry.name == name]
        if not found and not faulty:
            found = [_of_method(name)]
        specs += found
        broken += faulty
    return specs, broken


def _of_method(name: str) -> Spec:
    try:
        return catalog().find(name, *EXPLAINS)
    except UnknownMethod as error:
        error.add_note("The name of a distribution, such as axplain, checks all of its methods.")
        raise


def _of_distribution(name: str) -> Iterator[Spec]:
    for spec in sorted(catalog().specs.values(), key=lambda spec: (spec.kind, spec.family, spec.name)):
        if spec.kind in EXPLAINS and _same(spec.distribution, name):
            yield spec


def _same(distribution: str, name: str) -> bool:
    return distribution.replace("_", "-").lower() == name.replace("_", "-").lower()


def every_distribution() -> list[str]:
    """Return the distributions that declare methods, or tried to; ours first."""
    found = {spec.distribution for spec in catalog().specs.values() if spec.kind in EXPLAINS}
    found |= {broken.distribution for broken in catalog().broken}
    return sorted(found, key=lambda name: (name != "axplain", name))
