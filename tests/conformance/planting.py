"""How a test plants a method: a spec, a function in the place of `axplain.explain`, and the record that is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor

import axplain
from axplain.conformance import Effort, Record, Subject
from axplain.conformance.claims import pairs_of
from axplain.conformance.runner import run
from axplain.specs import Claim

Explain = Callable[..., Any]


@attrs.frozen(eq=False)
class Planted:
    """A method, right or faulty, and what the kit has to say of it: `says` is a pattern of the reason."""

    axiom: str
    name: str
    subject: Callable[[], Subject]
    says: str = ""

    def __str__(self) -> str:
        return f"{self.axiom}-{self.name}"

    def record(self, examples: int = 12, contracts: int = 8) -> Record:
        """Hold it to its axiom: one record, as it makes one claim of it at most."""
        subject = self.subject()
        [pair] = [pair for pair in pairs_of(subject.spec) if pair.axiom == self.axiom]
        return run(pair, Effort(examples, contracts, seconds=30.0), subject)


@attrs.frozen
class Garden:
    """Collects what is planted in a test file."""

    plants: list[Planted] = attrs.field(factory=list)

    def plant(
        self, axiom: str, says: str = "", *, base: str = "integrated_gradients", kind: str = "", **more: Any
    ) -> Callable[[Explain], Explain]:
        """Register a function as a method that claims one axiom, with the spec of `base` otherwise.

        With `kind` the rest are fields of the claim and of the spec; without, it is a contract and claims nothing.
        """
        fields = {field.name for field in attrs.fields(Claim)}
        claim = Claim(axiom, kind, **{k: v for k, v in more.items() if k in fields}) if kind else None  # type: ignore[arg-type]
        changes = {name: value for name, value in more.items() if name not in fields}

        def register(explain: Explain) -> Explain:
            name = explain.__name__
            changes.setdefault("axioms", (claim,) if claim else ())
            self.plants.append(Planted(axiom, name, lambda: method(base, explain, name=name, **changes), says))
            return explain

        return register

    @property
    def axioms(self) -> set[str]:
        """The axioms that something was planted for."""
        return {plant.axiom for plant in self.plants}


def method(base: str, explain: Explain, given: Mapping[str, Any] | None = None, **changes: Any) -> Subject:
    """Return a method of no family, so that nothing is owed but what it claims; `given`: parameters of every call."""
    spec = attrs.evolve(axplain.describe(base), **{"family": "", **changes})
    return Subject(spec, explain, parameters=given or {})


def each(change: Callable[[Tensor], Tensor], attributions: Any) -> Any:
    """Change every tensor of attributions, or of an input."""
    if isinstance(attributions, tuple):
        return tuple(change(tensor) for tensor in attributions)
    return change(attributions)


def changed(answer: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return an explanation whose attributions are changed, tensor by tensor."""
    return attrs.evolve(answer, attributions=each(change, answer.attributions))
