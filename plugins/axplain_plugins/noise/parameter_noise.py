"""Copies of the model with noisy parameters, for NoiseGrad and FusionGrad; the user's parameters are never touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor, nn
from torch.func import functional_call

from axplain import ArgumentError, hookimpl
from axplain.hidden import refuse_hidden_code
from axplain.model import Model
from axplain.problem import Problem
from axplain.protocols import Points
from axplain.randomness import Key


@attrs.frozen
class ParameterNoise:
    """Every floating parameter times `1 + stdev * noise`, n models; one generator per sample and place of a parameter.

    Buffers, such as the statistics of batch normalisation, stay as they are. Parameters that modules share stay shared.
    """

    n: int
    stdev: float

    def plan(self, problem: Problem) -> ParameterPlan:
        """Settle which parameters are noisy.

        Raises:
            ArgumentError: the model has none.
            UncoveredOperation: it is scripted, compiled or run by threads, where parameters cannot be exchanged.
        """
        module = problem.model.module
        assert module is not None, "the door refuses plain callables"
        refuse_hidden_code(problem.model, "Its parameters are exchanged for each pass.")
        names = tuple(name for name, parameter in module.named_parameters() if parameter.is_floating_point())
        if not names:
            came = f"a {type(module).__name__} without parameters came"
            raise ArgumentError("model", came, "parameters that noise can be put on")
        return ParameterPlan(self.n, self.stdev, names, problem.key)


@attrs.frozen(eq=False)
class ParameterPlan:
    """The noisy models of one question, made when they are asked for and kept no longer."""

    count: int
    stdev: float
    names: tuple[str, ...]
    key: Key
    columns: Tensor | None = None

    def draw(self, block: Problem, samples: range) -> Points:
        assert len(samples) == 1, "points that bring a model come alone"
        return Points(block.inputs, samples=1, model=self._model(block.model, samples.start) if self.stdev else None)

    def _model(self, model: Model, sample: int) -> NoisyModel:
        assert model.module is not None, "checked by the plan"
        own = dict(model.module.named_parameters())
        weights = {name: self._noisy(place, own[name].detach(), sample) for place, name in enumerate(self.names)}
        return NoisyModel(model.function, model.structure, weights)

    def _noisy(self, place: int, parameter: Tensor, sample: int) -> Tensor:
        noise = self.key.at("parameters", place, sample).normal(parameter.unsqueeze(0))
        return parameter * (1 + self.stdev * noise)


@attrs.frozen(eq=False)
class NoisyModel(Model):
    """The user's module, its hooks and its buffers, called with other parameters: those it has are put back."""

    weights: Mapping[str, Tensor]

    def __call__(self, inputs: tuple[Tensor, ...], arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """Return the raw output at some rows."""
        module: nn.Module | None = self.module
        assert module is not None, "checked by the plan"
        positional, keyword = arguments
        if self.structure.kind == "dict":
            keyword = {**self.structure.pack(inputs), **keyword}
        else:
            positional = (*inputs, *positional)
        with self.telling_types(inputs):
            return functional_call(module, dict(self.weights), positional, keyword)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `parameter_noise`."""
    return ParameterNoise
