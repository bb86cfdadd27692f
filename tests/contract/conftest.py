"""What the contract tests share: every installed method as a case, small models, and a witness of what must not change.

A test that asks for `case` runs once for each method and noise mode that is installed, and for each noise mode around
three methods; a plugin that is installed later joins by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import axplain
from axplain.conformance.witness import Witness
from axplain.formula import Formula

#: enough to be exact on the smooth models below, and few enough to be quick
SMALL = {"n_steps": 5, "n_samples": 2}
#: enough for least squares over the few features here
COALITIONS = 60
STDEV = 0.1
WRAPPED = ("integrated_gradients", "gradient_shap", "saliency")


def _exhausts(spec: axplain.Spec) -> bool:
    """Whether a number of samples that is bounded by the features takes all coalitions of the few there are here."""
    return any(isinstance(parameter.min, Formula) for parameter in spec.parameters.values())


@attrs.frozen
class Case:
    """A method, perhaps inside a noise mode, with parameters that keep a test short."""

    method: str
    noise: str | None = None

    def __str__(self) -> str:
        return f"{self.noise}({self.method})" if self.noise else self.method

    @property
    def specs(self) -> list[axplain.Spec]:
        """The specs from the outermost to the innermost method; a noise mode without one wraps its default."""
        specs = [axplain.describe(name) for name in (self.noise, self.method) if name]
        while "inner" in specs[-1].parameters:
            specs.append(axplain.describe(specs[-1].parameters["inner"].default))
        return specs

    @property
    def seeded(self) -> bool:
        """Whether the numbers depend on the seed, with the parameters of this case."""
        return any(spec.determinism.kind == "seeded" and not _exhausts(spec) for spec in self.specs)

    @property
    def baseline(self) -> str:
        """What the method takes as baselines."""
        return self.specs[-1].baseline

    @property
    def checked(self) -> bool:
        """Whether completeness is claimed all the way down, so that a residual comes with the answer."""
        return all(spec.claim("completeness") for spec in self.specs) and self.baseline != "none"

    @property
    def knows_ends(self) -> bool:
        """Whether its own passes tell F(x) and F(x'): those of rule sets, and those of coalitions."""
        return self.by_rules or self.specs[-1].requires.features != "none"

    @property
    def by_rules(self) -> bool:
        """Whether gradients are taken under a rule set, which must see every operation of the model."""
        composition = self.specs[-1].composition
        while composition is not None and composition.evaluation.method is not None:
            name = composition.evaluation.method.name
            composition = axplain.describe(name).composition if isinstance(name, str) else None
        return composition is not None and composition.evaluation.rules is not None

    def arguments(self, **given: Any) -> dict[str, Any]:
        """The arguments of `explain`, with small numbers of samples, and a baseline where one is taken."""
        outer = axplain.describe(self.method).parameters
        stdev = given.pop("stdev", STDEV if self.noise or axplain.describe(self.method).kind == "noise" else None)
        arguments: dict[str, Any] = {"method": self.method, "seed": 7}
        removes = axplain.describe(self.method).requires.features != "none"
        arguments |= {name: COALITIONS if removes else value for name, value in SMALL.items() if name in outer}
        if self.noise:
            noisy = axplain.describe(self.noise).parameters
            arguments["noise"] = {"mode": self.noise, "stdev": stdev}
            arguments["noise"] |= {name: value for name, value in SMALL.items() if name in noisy}
        elif stdev is not None and "stdev" in outer:
            arguments["stdev"] = stdev
        if self.baseline != "none":
            arguments["baselines"] = 0.1
        else:
            given.pop("baselines", None)
        return arguments | given

    def __call__(self, model: Any, x: Any, **given: Any) -> axplain.Explanation:
        """Explain."""
        return axplain.explain(model, x, **self.arguments(**given))

    def several(self, model: Any, x: Any, targets: list[Any], **given: Any) -> tuple[axplain.Explanation, ...]:
        """Explain several targets."""
        return axplain.explain_targets(model, x, targets=targets, **self.arguments(**given))

    def estimate(self, model: Any, x: Any, **given: Any) -> axplain.Cost:
        """Price the same call."""
        return axplain.estimate(model, x, **self.arguments(**given))


def _explains_vectors(spec: axplain.Spec) -> bool:
    needs, parameters = spec.requires, spec.parameters.values()
    plain = needs.min_dims <= 2 and needs.min_batch == 1 and needs.target and not any(p.required for p in parameters)
    return plain and spec.mirrors and not needs.module and spec.seats != ("layer",)


def _cases() -> list[Case]:
    """Every method that explains vectors of any model; the conformance kit asks the others for these contracts."""
    names = [name for name in axplain.methods() if _explains_vectors(axplain.describe(name))]
    modes = [name for name in names if axplain.describe(name).kind == "noise"]
    return [Case(name) for name in names] + [Case(name, mode) for mode in modes for name in WRAPPED]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test its cases: all, or those that the name of the fixture says."""
    chosen: dict[str, Callable[[Case], Any]] = {
        "case": lambda case: True,
        "seeded_case": lambda case: case.seeded,
        "checked_case": lambda case: case.checked,
        "baseline_case": lambda case: case.baseline != "none",
        "noise_case": lambda case: case.noise is not None,
    }
    for name, wanted in chosen.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [case for case in _cases() if wanted(case)], ids=str)


class Network(nn.Module):
    """A smooth classifier with buffers; its inputs are joined, `gain` and `offset` are further arguments."""

    def __init__(self, features: int = 4, classes: int = 3, depth: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(features, 5)
        self.norm = nn.BatchNorm1d(5)
        self.hidden = nn.Sequential(nn.Tanh(), nn.Dropout(0.5))
        self.last = nn.Linear(5, classes)
        self.register_buffer("scale", torch.full((1,), 1.5))
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.classes, self.depth = classes, depth

    def forward(self, *x: Tensor, gain: Tensor | float = 1.0, offset: Tensor | float = 0.0, **named: Tensor) -> Tensor:
        joined = torch.cat([*x, *named.values()], 1)
        if isinstance(gain, Tensor) and gain.ndim:
            gain = gain.view(-1, 1)
        out: Tensor = self.last(self.hidden(self.norm(self.first(joined * gain + offset))) * self.frozen)
        out = out * self.get_buffer("scale")
        return out.view(len(out), -1, self.depth) if self.depth else out


@pytest.fixture
def network() -> Callable[..., Network]:
    """A factory of networks whose weights are the same each time; they are in evaluation mode and in float64."""

    def make(*args: Any, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Network:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = Network(*args, **kwargs)
            model.norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            model.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        return model.eval().to(dtype)

    return make


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """A factory of inputs; the same shape and key give the same numbers."""

    def make(*shape: int, key: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64).to(dtype)

    return make


@pytest.fixture
def unchanged() -> Callable[..., Any]:
    """A context: whatever happens inside, model, inputs and process are afterwards as they were."""

    @contextmanager
    def watch(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
        witness = Witness.of(model, *tensors)
        try:
            yield
        finally:
            changed = witness.differences()
            assert not changed, f"changed: {', '.join(changed)}"

    return watch
