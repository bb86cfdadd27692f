"""Each method three times: axplain's arguments, captum's call, and the shortest loop of model passes written by hand.

The bare loops run the same rows forward and backward, with respect to the input only, on the model as it is. They check
nothing, keep no graph longer than a chunk, and take their chunk size from outside. The target is one fixed class.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import captum.attr
import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

import axplain

TARGET: Final = 3
STDEV: Final = 0.15


class Method(Protocol):
    """One method with its settings."""

    @property
    def rows(self) -> int:
        """Rows per example."""
        ...

    @property
    def sampled(self) -> bool:
        """Whether it draws random numbers, so that two implementations cannot agree exactly."""
        ...

    @property
    def captum_chunks(self) -> bool:
        """Whether captum's call takes a number of rows, or of samples, per pass."""
        ...

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `axplain.explain` that name the method and its settings."""
        ...

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        """Run the passes by hand, at most `chunk` rows each."""
        ...

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        """Explain with captum, at most `chunk` rows each; None leaves captum's default."""
        ...


def ours(method: Method, model: nn.Module, x: Tensor, **more: Any) -> Any:
    """Explain with axplain: an explicit target, otherwise default settings, its checks among them."""
    return axplain.explain(model, x, target=TARGET, **method.arguments(), **more).attributions


def gradient(model: nn.Module, points: Tensor) -> Tensor:
    """Return the gradient of the target with respect to some rows: the pass that everything here is made of."""
    points.requires_grad_()
    (rows,) = torch.autograd.grad(model(points)[:, TARGET].sum(), points)
    return rows


@dataclass(frozen=True)
class Saliency:
    """|gradient|."""

    rows: int = 1
    sampled: bool = False
    captum_chunks: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"method": "saliency"}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([gradient(model, rows.clone()).abs_() for rows in torch.split(x, chunk)])

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        return captum.attr.Saliency(model).attribute(x, target=TARGET)


@dataclass(frozen=True)
class InputXGradient:
    """Input times gradient."""

    rows: int = 1
    sampled: bool = False
    captum_chunks: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"method": "input_x_gradient"}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([gradient(model, rows.clone()) * rows for rows in torch.split(x, chunk)])

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        return captum.attr.InputXGradient(model).attribute(x, target=TARGET)


@dataclass(frozen=True)
class GradCam:
    """The map of one layer at the size of x; nothing before the layer is differentiated."""

    layer: str
    rows: int = 1
    sampled: bool = False
    captum_chunks: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"method": "gradcam", "layer": self.layer}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([self._block(model, rows) for rows in torch.split(x, chunk)])

    def _block(self, model: nn.Module, x: Tensor) -> Tensor:
        leaves: list[Tensor] = []

        def cut(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            leaves.append(output.detach().requires_grad_())
            return leaves[0]

        with torch.no_grad(), model.get_submodule(self.layer).register_forward_hook(cut):
            value = model(x)[:, TARGET].sum()
        (slope,) = torch.autograd.grad(value, leaves)
        small = (slope.mean((2, 3), keepdim=True) * leaves[0].detach()).sum(1, keepdim=True).clamp_(min=0)
        return functional.interpolate(small, size=x.shape[2:], mode="bilinear")

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        explainer = captum.attr.LayerGradCam(model, model.get_submodule(self.layer))
        small = explainer.attribute(x, target=TARGET, relu_attributions=True)
        return captum.attr.LayerAttribution.interpolate(small, tuple(x.shape[2:]), "bilinear")


@functools.cache
def nodes_and_weights(steps: int) -> tuple[Tensor, Tensor]:
    """Return the Gauss-Legendre rule on [0, 1], from numpy; both libraries use it by default."""
    nodes, weights = numpy.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((nodes + 1) / 2).float(), torch.from_numpy(weights / 2).float()


@dataclass(frozen=True)
class IntegratedGradients:
    """The straight path from zero; `rows` is the number of steps."""

    rows: int
    sampled: bool = False
    captum_chunks: bool = True

    def arguments(self) -> dict[str, Any]:
        return {"method": "integrated_gradients", "n_steps": self.rows}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([self._block(model, block, max(chunk // len(block), 1)) for block in torch.split(x, chunk)])

    def _block(self, model: nn.Module, x: Tensor, steps: int) -> Tensor:
        nodes, weights = nodes_and_weights(self.rows)
        total = torch.zeros_like(x)
        for node, weight in zip(torch.split(nodes, steps), torch.split(weights, steps), strict=True):
            rows = gradient(model, (node.view(-1, *[1] * x.ndim) * x).flatten(0, 1))
            total += (weight @ rows.view(len(node), -1)).view_as(x)
        return total * x

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        explainer = captum.attr.IntegratedGradients(model)
        return explainer.attribute(x, target=TARGET, n_steps=self.rows, internal_batch_size=chunk)


@dataclass(frozen=True)
class GradientShap:
    """Random points between the input and a set of baselines; `rows` is the number of samples."""

    rows: int
    baselines: Tensor = field(repr=False)
    sampled: bool = True
    captum_chunks: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"method": "gradient_shap", "n_samples": self.rows, "baselines": self.baselines}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([self._block(model, block, max(chunk // len(block), 1)) for block in torch.split(x, chunk)])

    def _block(self, model: nn.Module, x: Tensor, samples: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros_like(x)
        for start in range(0, self.rows, samples):
            count = min(samples, self.rows - start)
            drawn = torch.randint(len(self.baselines), (count,), generator=generator)
            origin = self.baselines[drawn].unsqueeze(1)
            step = x - origin
            position = torch.rand(count, *[1] * x.ndim, generator=generator)
            rows = gradient(model, (origin + position * step).flatten(0, 1))
            total += (rows.view_as(step) * step).sum(0)
        return total / self.rows

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        explainer = captum.attr.GradientShap(model)
        return explainer.attribute(x, self.baselines, n_samples=self.rows, stdevs=0.0, target=TARGET)


@dataclass(frozen=True)
class SmoothGrad:
    """The mean of an inner method over noisy copies of the input."""

    samples: int
    inner: Saliency | IntegratedGradients
    sampled: bool = True
    captum_chunks: bool = True

    @property
    def rows(self) -> int:
        return self.samples * self.inner.rows

    def arguments(self) -> dict[str, Any]:
        noise = {"mode": "smoothgrad", "n_samples": self.samples, "stdev": STDEV}
        return {**self.inner.arguments(), "noise": noise}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        noise = torch.randn(self.samples, *x.shape, generator=torch.Generator().manual_seed(0))
        copies = noise.mul_(STDEV).add_(x)
        return self.inner.bare(model, copies.flatten(0, 1), chunk).view_as(copies).mean(0)

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        more: dict[str, Any] = {}
        if isinstance(self.inner, IntegratedGradients):
            explainer: Any = captum.attr.IntegratedGradients(model)
            more = {"n_steps": self.inner.rows, "internal_batch_size": chunk}
        else:
            explainer = captum.attr.Saliency(model)
            more = {"nt_samples_batch_size": None if chunk is None else max(chunk // len(x), 1)}
        tunnel = captum.attr.NoiseTunnel(explainer)
        return tunnel.attribute(x, nt_type="smoothgrad", nt_samples=self.samples, stdevs=STDEV, target=TARGET, **more)


@dataclass(frozen=True)
class DeepLift:
    """DeepLIFT's rescale rule against zero; the bare pass takes the plain gradient, so answers are not compared."""

    rows: int = 1
    sampled: bool = True
    captum_chunks: bool = False

    def arguments(self) -> dict[str, Any]:
        return {"method": "deeplift"}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        with torch.no_grad():
            model(torch.zeros_like(x[:1]))
        return torch.cat([gradient(model, rows.clone()) * rows for rows in torch.split(x, chunk)])

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        return captum.attr.DeepLift(model).attribute(x, target=TARGET)


@dataclass(frozen=True)
class DeepLiftShap:
    """DeepLIFT averaged over a set of baselines: their rows once forward, every pair forward and backward."""

    baselines: Tensor = field(repr=False)
    sampled: bool = True
    captum_chunks: bool = True

    @property
    def rows(self) -> int:
        return len(self.baselines)

    def arguments(self) -> dict[str, Any]:
        return {"method": "deeplift_shap", "baselines": self.baselines}

    def bare(self, model: nn.Module, x: Tensor, chunk: int) -> Tensor:
        return torch.cat([self._block(model, block, max(chunk // len(block), 1)) for block in torch.split(x, chunk)])

    def _block(self, model: nn.Module, x: Tensor, count: int) -> Tensor:
        total = torch.zeros_like(x)
        for references in torch.split(self.baselines, count):
            with torch.no_grad():
                model(references)
            rows = gradient(model, x.repeat(len(references), *[1] * (x.ndim - 1)))
            total += (rows.view(len(references), *x.shape) * (x - references.unsqueeze(1))).sum(0)
        return total / len(self.baselines)

    def captum(self, model: nn.Module, x: Tensor, chunk: int | None) -> Any:
        explainer = captum.attr.DeepLiftShap(model)
        size = len(x) if chunk is None else max(chunk // len(self.baselines), 1)
        return torch.cat([explainer.attribute(rows, self.baselines, target=TARGET) for rows in torch.split(x, size)])
