"""Finer-CAM: what sets a class apart from those that the model takes for similar, by any map of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from axplain import hookimpl
from axplain.composition import run_method
from axplain.engine import Engine
from axplain.errors import ArgumentError
from axplain.model import Model, output_tensor
from axplain.parameters import settle
from axplain.problem import Problem
from axplain.protocols import Outcome, Settings
from axplain.targets import IndexTarget, rows_of


@attrs.frozen(eq=False)
class Contrast:
    """`F_c - strength * mean of F_d` over the classes d that are similar to c, each row's own or given ones.

    `own`: (1 or examples,) classes. `chosen`: for each example of the call the similar ones, filled in while the model
    is asked; `places`: (examples,) where among them the examples of a block are.
    """

    own: Tensor
    strength: float
    n_similar: int
    given: Tensor | None
    chosen: dict[int, list[int]]
    places: Tensor
    indexes: ClassVar = True
    operations: ClassVar = None

    @property
    def parts(self) -> tuple[Contrast, ...]:
        return (self,)

    def select(self, raw: Any, index: Tensor) -> Tensor:
        """Return one value per row."""
        output = rows_of(output_tensor(raw), len(index))
        if output.ndim != 2 or output.shape[1] < 2:
            came = f"the model returns {tuple(output.shape[1:])} per example"
            raise ArgumentError("target", came, "several classes: finercam compares them")
        IndexTarget(self.own[:, None]).select(output, torch.zeros_like(index))  # says what is wrong with an index
        own = (self.own if len(self.own) == 1 else self.own[index.cpu()]).to(output.device).expand(len(index))
        own = own % output.shape[1]
        value, similar = output.gather(1, own[:, None]), self._similar(output.detach(), own)
        for place, classes in zip(self.places[index.cpu()].tolist(), similar.tolist(), strict=True):
            self.chosen[place] = classes
        return (value - self.strength * output.gather(1, similar).mean(1, keepdim=True)).flatten()

    def _similar(self, output: Tensor, own: Tensor) -> Tensor:
        """Return the classes whose outputs are nearest to that of the class: (rows, classes)."""
        classes = output.shape[1]
        if self.given is not None:
            similar = self.given.to(output.device).expand(len(output), -1)
            if bool((similar >= classes).any()) or bool((similar < 0).any()):
                raise ArgumentError("similar", f"{self.given.tolist()} came", f"classes from 0 to {classes - 1}")
            if bool((similar == own[:, None]).any()):
                raise ArgumentError("similar", f"{self.given.tolist()} came", "classes other than the target")
            return similar
        distance = (output - output.gather(1, own[:, None])).abs()
        nearest = distance.scatter(1, own[:, None], torch.inf).topk(min(self.n_similar, classes - 1), largest=False)
        return nearest.indices

    def take(self, index: Tensor) -> Contrast:
        """Return the target of some examples."""
        index = index.cpu()
        own = self.own if len(self.own) == 1 else self.own[index]
        return attrs.evolve(self, own=own, places=self.places[index])

    def codes(self, batch: int, device: torch.device) -> Tensor:
        """Return (batch,) integers, equal where two examples have the same target."""
        return IndexTarget(self.own[:, None]).codes(batch, device)

    def describe(self) -> Any:
        """Return the target as JSON can hold it."""
        return IndexTarget(self.own[:, None]).describe()

    @contextmanager
    def watching(self, model: Model) -> Iterator[None]:
        """Prepare nothing."""
        yield


@attrs.frozen
class FinerCam:
    """Asks another method of the family about the contrast."""

    def run(self, problem: Problem, engine: Engine, settings: Settings) -> Outcome:
        values = settings.values
        contrast = _contrast(problem, values)
        inner = settle(values["base"], {name: values[name] for name in ("relu", "upsample", "reshape")})
        outcome = run_method(inner, attrs.evolve(problem, target=contrast, clean=None), engine, settings)
        similar = [classes for _, classes in sorted(contrast.chosen.items())]
        return attrs.evolve(outcome, notes={**outcome.notes, "similar classes": similar})


def _contrast(problem: Problem, values: Any) -> Contrast:
    target, given = problem.target, values["similar"]
    if not isinstance(target, IndexTarget) or target.indices.shape[1] != 1:
        raise ArgumentError("target", f"{target.describe()!r} came", "the index of a class: finercam compares classes")
    if given is not None:
        given = torch.tensor(given if isinstance(given, tuple) else (given,), device="cpu")
    everyone = torch.arange(problem.batch, device="cpu")
    return Contrast(target.indices[:, 0], values["strength"], values["n_similar"], given, {}, everyone)


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `finercam`."""
    return FinerCam
