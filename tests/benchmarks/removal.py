"""Removal methods as in `methods`: axplain's arguments, captum's call, shap's where it does the same, and bare passes.

The bare passes go over rows that were made beforehand, as many distinct ones as the method needs: they build no masks
and make nothing of the values. Features are elements, or 50 cells of a grid over a picture; what is absent is zero.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import captum.attr
import numpy
import torch
from tests.benchmarks.methods import TARGET
from torch import Tensor, nn

#: Cells down and across a picture that stand for superpixels.
CELLS: Final = (5, 10)


@dataclass(frozen=True)
class Removal(ABC):
    """What they share. `features`: how many. `picture`: how wide one is whose cells are the features, or 0."""

    features: int
    picture: int = 0
    sampled: ClassVar[bool] = True
    captum_chunks: ClassVar[bool] = True
    captum_runs: ClassVar[bool] = True
    name: ClassVar[str] = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Return axplain's parameters beside the method's name and the features."""
        return {}

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `axplain.explain` that name the method, its settings and the features."""
        mask = {"feature_mask": cells(self.picture)} if self.picture else {}
        return {"method": self.name, **self.settings, **mask}

    def ids(self, x: Tensor) -> Tensor:
        """Return the feature of each element, (1, ...)."""
        if self.picture:
            return cells(self.picture).expand(1, *x.shape[1:])
        return torch.arange(x[0].numel()).view(1, *x.shape[1:])

    @abstractmethod
    def points(self, x: Tensor) -> Tensor:
        """Return the rows to ask, sample-major."""

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        """Run the passes alone, at most `chunk` rows each, over rows that the first call makes."""
        with torch.no_grad():
            return torch.cat([model(rows)[:, TARGET] for rows in torch.split(made_points(self, x), chunk)])

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        """Explain with captum, at most `chunk` rows each; None leaves captum's default."""
        more: dict[str, Any] = {} if chunk is None else {"perturbations_per_eval": max(chunk // len(x), 1)}
        if self.picture:
            more["feature_mask"] = cells(self.picture)
        return self._captum(model, x, more)

    @abstractmethod
    def _captum(self, model: nn.Module, x: Tensor, more: dict[str, Any]) -> Any:
        """Explain with captum, given its arguments for chunks and features."""


@dataclass(frozen=True)
class Answered(Removal):
    """A method that draws nothing: its attributions follow from the values of the bare passes."""

    sampled: ClassVar[bool] = False

    @abstractmethod
    def answer(self, x: Tensor, values: Tensor) -> Tensor:
        """Return the attributions; not timed."""


@dataclass(frozen=True)
class Switched(Removal):
    """A method that asks coalitions: each feature is present or absent."""

    @abstractmethod
    def masks(self) -> Tensor:
        """Return the distinct coalitions that the method needs, (rows, features), true where present."""

    def points(self, x: Tensor) -> Tensor:
        return torch.where(self.masks()[:, self.ids(x)], x, 0.0).flatten(0, 1)


@functools.lru_cache(maxsize=1)
def made_points(method: Removal, x: Tensor) -> Tensor:
    """Return the rows of a method's bare passes, made once."""
    return method.points(x)


@functools.cache
def cells(width: int) -> Tensor:
    """Return the cell of each pixel of a square picture, (1, 1, width, width)."""
    down, across = (torch.arange(width) * count // width for count in CELLS)
    return (down[:, None] * CELLS[1] + across)[None, None]


@dataclass(frozen=True)
class FeatureAblation(Answered, Switched):
    """Each feature absent alone."""

    name: ClassVar[str] = "feature_ablation"

    @property
    def rows(self) -> int:
        return self.features + 1

    def masks(self) -> Tensor:
        return torch.cat([torch.ones(1, self.features).bool(), ~torch.eye(self.features).bool()])

    def answer(self, x: Tensor, values: Tensor) -> Tensor:
        return (values[0] - values[1:])[self.ids(x)]

    def _captum(self, model: nn.Module, x: Tensor, more: dict[str, Any]) -> Any:
        return captum.attr.FeatureAblation(model).attribute(x, target=TARGET, **more)


@dataclass(frozen=True)
class Occlusion(Answered):
    """A square window of a picture absent at a time; `features` is the number of windows."""

    window: int = 1
    stride: int = 1
    name: ClassVar[str] = "occlusion"

    @property
    def rows(self) -> int:
        return self.features + 1

    @property
    def settings(self) -> dict[str, Any]:
        return {"window": self.window, "stride": self.stride}

    def points(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.where(self._inside(x), 0.0, x)])

    def _inside(self, x: Tensor) -> Tensor:
        """Return (windows, 1, height, width)."""
        masks = []
        for place in range(self.features):
            mask = torch.zeros(1, *x.shape[-2:], dtype=torch.bool)
            top, left = (self.stride * at for at in divmod(place, math.isqrt(self.features)))
            mask[:, top : top + self.window, left : left + self.window] = True
            masks.append(mask)
        return torch.stack(masks)

    def answer(self, x: Tensor, values: Tensor) -> Tensor:
        inside = self._inside(x).double()
        drops = (values[0] - values[1:]).double().view(-1, 1, 1, 1)
        return ((inside * drops).sum(0) / inside.sum(0)).expand_as(x).float()

    def _captum(self, model: nn.Module, x: Tensor, more: dict[str, Any]) -> Any:
        channels = x.shape[1]
        shape, strides = (channels, self.window, self.window), (channels, self.stride, self.stride)
        explainer = captum.attr.Occlusion(model)
        return explainer.attribute(x, target=TARGET, sliding_window_shapes=shape, strides=strides, **more)


@dataclass(frozen=True)
class Drawn(Switched):
    """A method that draws `samples` of what it draws."""

    samples: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"n_samples": self.samples}


@dataclass(frozen=True)
class ShapleySampling(Drawn):
    """Shapley values from random orders; every other order is the one before, backwards."""

    name: ClassVar[str] = "shapley_value_sampling"

    @property
    def rows(self) -> int:
        return len(self.masks())

    @functools.cache  # noqa: B019  a handful of methods live as long as the process
    def masks(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(self.samples // 2, self.features, generator=generator).argsort(1)
        ranks = torch.stack([drawn, self.features - 1 - drawn], 1).flatten(0, 1)
        prefixes = ranks[:, None] < torch.arange(1, self.features)[:, None]
        ends = torch.tensor([[True], [False]]).expand(-1, self.features)
        return torch.cat([ends, torch.unique(prefixes.flatten(0, 1), dim=0)])

    def _captum(self, model: nn.Module, x: Tensor, more: dict[str, Any]) -> Any:
        explainer = captum.attr.ShapleyValueSampling(model)
        return explainer.attribute(x, target=TARGET, n_samples=self.samples, **more)

    def shap(self, model: nn.Module, x: Tensor) -> Any:
        """Explain with shap's pairs of orders, forwards and backwards: as many of them."""
        import shap

        ask, present, absent = as_numpy(self, model, x)
        evaluations = self.samples // 2 * 2 * self.features + 1
        return shap.PermutationExplainer(ask, absent)(present, max_evals=evaluations, silent=True).values


@dataclass(frozen=True)
class ExactShapley(Answered, Switched):
    """Shapley values from every coalition; captum walks every order instead."""

    name: ClassVar[str] = "shapley_values"

    @property
    def rows(self) -> int:
        return int(2**self.features)

    @property
    def captum_runs(self) -> bool:  # type: ignore[override]
        """Whether captum ends within seconds: 7 features are 35,280 passes, 10 are 36 million."""
        return self.features <= 5

    def masks(self) -> Tensor:
        return torch.tensor(list(itertools.product([False, True], repeat=self.features)))

    def answer(self, x: Tensor, values: Tensor) -> Tensor:
        worth = values.double().view([2] * self.features)
        return torch.stack([self._of(feature, worth) for feature in range(self.features)]).view_as(x).float()

    def _of(self, feature: int, worth: Tensor) -> Tensor:
        gain = worth.select(feature, 1) - worth.select(feature, 0)
        sizes = [sum(rest) for rest in itertools.product([0, 1], repeat=self.features - 1)]
        weights = [1 / (self.features * math.comb(self.features - 1, size)) for size in sizes]
        return torch.tensor(weights, dtype=torch.float64) @ gain.flatten()

    def _captum(self, model: nn.Module, x: Tensor, more: dict[str, Any]) -> Any:
        return captum.attr.ShapleyValues(model).attribute(x, target=TARGET, **more)


@dataclass(frozen=True)
class KernelShap(Drawn):
    """Shapley values by least squares over drawn coalitions, and the two ends."""

    name: ClassVar[str] = "kernel_shap"

    @property
    def rows(self) -> int:
        return self.samples + 2

    def masks(self) -> Tensor:
        return torch.rand(self.rows, self.features, generator=torch.Generator().manual_seed(0)) < 0.5

    def _captum(self, model: nn.Module, x: Tensor, more: dict[str, Any]) -> Any:
        return captum.attr.KernelShap(model).attribute(x, target=TARGET, n_samples=self.samples, **more)

    def shap(self, model: nn.Module, x: Tensor) -> Any:
        """Explain with shap, without its selection of features, which neither of the others does."""
        import shap

        ask, present, absent = as_numpy(self, model, x)
        explainer = shap.KernelExplainer(ask, absent)
        return explainer.shap_values(present, nsamples=self.samples, l1_reg=False, silent=True)


@dataclass(frozen=True)
class Lime(Drawn):
    """A linear model of the values of drawn coalitions: ridge by default in axplain, lasso in captum."""

    name: ClassVar[str] = "lime"

    @property
    def rows(self) -> int:
        return self.samples

    def masks(self) -> Tensor:
        return torch.rand(self.rows, self.features, generator=torch.Generator().manual_seed(0)) < 0.5

    def _captum(self, model: nn.Module, x: Tensor, more: dict[str, Any]) -> Any:
        return captum.attr.Lime(model).attribute(x, target=TARGET, n_samples=self.samples, **more)


@dataclass(frozen=True)
class FeaturePermutation(Removal):
    """Each feature taken from other examples of the batch."""

    name: ClassVar[str] = "feature_permutation"

    @property
    def rows(self) -> int:
        return self.features + 1

    def points(self, x: Tensor) -> Tensor:
        rows = x.repeat(self.rows, 1, 1)
        generator = torch.Generator().manual_seed(0)
        for feature in range(self.features):
            rows[feature + 1, :, feature] = x[torch.randperm(len(x), generator=generator), feature]
        return rows.flatten(0, 1)

    def _captum(self, model: nn.Module, x: Tensor, more: dict[str, Any]) -> Any:
        return captum.attr.FeaturePermutation(model).attribute(x, target=TARGET, **more)


Array = numpy.ndarray


def as_numpy(method: Removal, model: nn.Module, x: Tensor) -> tuple[Callable[[Array], Array], Array, Array]:
    """Return a model of arrays, what it is asked about and what is absent: elements, or switches of the cells."""

    def ask(rows: Array) -> Array:
        given = torch.from_numpy(rows)
        if method.picture:
            given = torch.where(given[:, method.ids(x)[0]] > 0.5, x, 0.0)
        with torch.no_grad():
            values: Array = model(given.to(x.dtype))[:, TARGET].numpy()
        return values

    present = numpy.ones((1, method.features), dtype=numpy.float32) if method.picture else x.numpy()
    return ask, present, numpy.zeros_like(present)
