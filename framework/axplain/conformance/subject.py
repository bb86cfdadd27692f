"""What is under test: a spec, and a function that explains the way `axplain.explain` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from axplain.discovery import describe
from axplain.formula import Formula
from axplain.parameters import Call, settle
from axplain.seats.neurons import Neuron
from axplain.specs import Claim, Spec

#: of every sample count that a case may choose: enough to mix several samples, few enough to be quick
FEW: Final = 3


@attrs.frozen(eq=False)
class Subject:
    """One method under test.

    `explain`: called as `axplain.explain` is, with a `Spec` as method; what it returns has `attributions`, and may have
    `cost`, `standard_errors` and `notes`. `lacks`: names of arguments that it does not take, for adapters of other
    libraries. `parameters`: of every call.
    """

    spec: Spec
    explain: Callable[..., Any]
    lacks: frozenset[str] = frozenset()
    parameters: Mapping[str, Any] = attrs.field(factory=dict)

    @classmethod
    def of(cls, method: str | Spec, **parameters: Any) -> Subject:
        """Return an installed method, by its name, or one that a `Spec` composes."""
        from axplain.face import explain

        return cls(describe(method) if isinstance(method, str) else method, explain, parameters=parameters)

    def __str__(self) -> str:
        return self.spec.name

    @property
    def call(self) -> Call:
        """The method with its settled parameters; neurons are those of a case."""
        return settle(self.spec, {**dict.fromkeys(self.neurons, Neuron("", 0)), **self.parameters})

    @property
    def neurons(self) -> tuple[str, ...]:
        """The parameters that name a neuron of the model."""
        return tuple(name for name, parameter in self.spec.parameters.items() if parameter.type == "neuron")

    @property
    def needs_layer(self) -> bool:
        """Whether it attributes to layers alone, or through a neuron of one."""
        return bool(self.neurons) or self.call.innermost.spec.seats == ("layer",)

    @property
    def needs_module(self) -> bool:
        """Whether functions of a model have to be modules that have it as a part."""
        return self.needs_layer or any(spec.requires.module for spec in self.call.specs)

    @property
    def baseline(self) -> str:
        """What it takes as baselines."""
        return self.call.innermost.spec.baseline

    @property
    def min_dims(self) -> int:
        """The least dimensions of its inputs, batch included."""
        return max(spec.requires.min_dims for spec in self.call.specs)

    @property
    def min_batch(self) -> int:
        """The least examples of a call."""
        return max(spec.requires.min_batch for spec in self.call.specs)

    @property
    def seeded(self) -> bool:
        """Whether it, or a method inside it, draws random numbers."""
        return any(spec.determinism.kind != "deterministic" for spec in self.call.specs)

    def evolve(self, **parameters: Any) -> Subject:
        """Return the same subject with other parameters."""
        return attrs.evolve(self, parameters={**self.parameters, **parameters})

    @property
    def silence(self) -> dict[str, float]:
        """The parameters that switch all noise off."""
        return {name: 0.0 for name in self.spec.parameters if name.endswith("stdev")}

    def quick(self) -> Subject:
        """Return it with few samples: a whole-number parameter that its cost grows with, the user has not set."""
        return self.evolve(**{**few(self.spec), **self.parameters})

    def claiming(self, claim: Claim) -> Subject:
        """Return it with the parameters under which a claim is made."""
        settled: dict[str, Any] = {
            n: max(least, self.parameters.get(n, least)) for n, least in claim.n_at_least.items()
        }
        if claim.when == "stdev_zero":
            settled |= self.silence
        return self.evolve(**settled) if settled else self


def few(spec: Spec) -> dict[str, Any]:
    """Return small values of the parameters that the spec's cost grows with."""
    names = spec.cost.forward_rows.names | spec.cost.backward_rows.names if spec.cost else frozenset()
    small: dict[str, Any] = {}
    for name, parameter in spec.parameters.items():
        if name in names and parameter.type == "int" and not isinstance(parameter.min, Formula):
            small[name] = max(FEW, int(parameter.min or 1))
    return small


def inner_parameter(spec: Spec) -> str | None:
    """Return the name of the parameter that holds the method inside a lift; None where the method is no such lift."""
    return next((name for name, parameter in spec.parameters.items() if parameter.type == "method"), None)
