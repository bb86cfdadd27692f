"""What is measured: a model, a batch and a method, and the contenders that explain it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from tests.benchmarks.layers import LayerConductance, LayerIntegratedGradients
from tests.benchmarks.methods import (
    DeepLift,
    DeepLiftShap,
    GradCam,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    Method,
    Saliency,
    SmoothGrad,
    ours,
)
from tests.benchmarks.models import MODELS, build, examples
from tests.benchmarks.propagation import GuidedBackprop, Relevance
from tests.benchmarks.removal import (
    ExactShapley,
    FeatureAblation,
    FeaturePermutation,
    KernelShap,
    Lime,
    Occlusion,
    ShapleySampling,
)
from torch import Tensor, nn


@dataclass(frozen=True)
class Workload:
    """A question; `name` says method, model and batch. `quick` keeps it in the short run."""

    name: str
    model: str
    batch: int
    method: Method
    quick: bool = True

    @property
    def rows(self) -> int:
        """Rows that the method needs, forward and, for a gradient, as many backward."""
        return self.batch * self.method.rows

    @property
    def heavy(self) -> bool:
        """Whether a single run takes about a second or more."""
        return self.model == "vgg19" or (self.model == "resnet18" and self.rows > 4)

    def chunks(self, *, few: bool) -> list[int]:
        """Return the chunk sizes worth trying: every other one, or one for a heavy model, if they shall be few."""
        sizes = MODELS[self.model][2]
        chosen = sizes if not few else sizes[1:2] if self.heavy else sizes[::2]
        return sorted({min(size, self.rows) for size in chosen})


@dataclass(frozen=True)
class Contender:
    """One way to answer. `renew` hands every run a model that it has never seen."""

    name: str
    run: Callable[[nn.Module, Tensor], Any]
    chunk: int | None = None
    renew: bool = False


@dataclass(frozen=True)
class Bench:
    """A workload with its model and inputs made."""

    workload: Workload
    model: nn.Module
    x: Tensor

    def bare(self, chunk: int) -> Contender:
        """Return the hand-written loop."""
        method = self.workload.method
        return Contender("bare", lambda model, x: method.bare(model, x, chunk), chunk)

    def ours(self, *, renew: bool = False) -> Contender:
        """Return axplain's call; on a new model it measures the model's memory first."""
        method = self.workload.method
        return Contender("new model" if renew else "axplain", lambda model, x: ours(method, model, x), renew=renew)

    def captum(self, chunk: int | None = None) -> Contender:
        """Return captum's call."""
        method = self.workload.method
        name = "captum" if chunk is None else "captum best"
        return Contender(name, lambda model, x: method.captum(model, x, chunk), chunk)

    @property
    def captum_runs(self) -> bool:
        """Whether captum ends within seconds."""
        return getattr(self.workload.method, "captum_runs", True)

    def others(self) -> list[Contender]:
        """Return the calls of shap and zennit where they do the same job and are installed."""
        found = {name: getattr(self.workload.method, name, None) for name in ("shap", "zennit") if find_spec(name)}
        return [Contender(name, explain) for name, explain in found.items() if explain is not None]

    def calls(self, contender: Contender, repeats: int) -> Iterator[Callable[[], Any]]:
        """Yield what to time: one call, `repeats` times, with new models made beforehand where they are asked for."""
        models = [copy.deepcopy(self.model) if contender.renew else self.model for _ in range(repeats)]
        for model in models:
            yield lambda model=model: contender.run(model, self.x)  # type: ignore[misc]


def prepare(workload: Workload) -> Bench:
    """Make the model and the inputs."""
    return Bench(workload, build(workload.model), examples(workload.model, workload.batch))


def _set(model: str, count: int = 20) -> Tensor:
    return examples(model, count, seed=2)


WORKLOADS: Final[tuple[Workload, ...]] = (
    Workload("saliency_mlp20_b1", "mlp20", 1, Saliency()),
    Workload("saliency_cnn28_b1", "cnn28", 1, Saliency()),
    Workload("saliency_cnn28_b16", "cnn28", 16, Saliency(), quick=False),
    Workload("saliency_resnet18_b1", "resnet18", 1, Saliency()),
    Workload("ixg_mlp20_b1", "mlp20", 1, InputXGradient(), quick=False),
    Workload("ixg_cnn28_b16", "cnn28", 16, InputXGradient()),
    Workload("ixg_resnet18_b1", "resnet18", 1, InputXGradient(), quick=False),
    Workload("gradcam_cnn28_b1", "cnn28", 1, GradCam("4")),
    Workload("gradcam_cnn28_b16", "cnn28", 16, GradCam("4"), quick=False),
    Workload("gradcam_resnet18_b1", "resnet18", 1, GradCam("10")),
    Workload("gradcam_resnet18_b4", "resnet18", 4, GradCam("10"), quick=False),
    Workload("ig50_mlp20_b1", "mlp20", 1, IntegratedGradients(50)),
    Workload("ig50_mlp100_b16", "mlp100", 16, IntegratedGradients(50)),
    Workload("ig50_cnn28_b1", "cnn28", 1, IntegratedGradients(50)),
    Workload("ig200_cnn28_b4", "cnn28", 4, IntegratedGradients(200)),
    Workload("ig10_resnet18_b1", "resnet18", 1, IntegratedGradients(10), quick=False),
    Workload("ig50_resnet18_b1", "resnet18", 1, IntegratedGradients(50), quick=False),
    Workload("gradshap50_mlp20_b1", "mlp20", 1, GradientShap(50, _set("mlp20")), quick=False),
    Workload("gradshap50_cnn28_b8", "cnn28", 8, GradientShap(50, _set("cnn28"))),
    Workload("gradshap20_resnet18_b1", "resnet18", 1, GradientShap(20, _set("resnet18")), quick=False),
    Workload("smoothgrad25_mlp20_b1", "mlp20", 1, SmoothGrad(25, Saliency()), quick=False),
    Workload("smoothgrad25_cnn28_b4", "cnn28", 4, SmoothGrad(25, Saliency())),
    Workload("smoothgrad25_resnet18_b1", "resnet18", 1, SmoothGrad(25, Saliency()), quick=False),
    Workload("smoothgrad5_ig50_cnn28_b4", "cnn28", 4, SmoothGrad(5, IntegratedGradients(50)), quick=False),
    Workload("deeplift_cnn28_b16", "cnn28", 16, DeepLift()),
    Workload("deepliftshap20_cnn28_b1", "cnn28", 1, DeepLiftShap(_set("cnn28")), quick=False),
    Workload("deepliftshap100_cnn28_b1", "cnn28", 1, DeepLiftShap(_set("cnn28", 100)), quick=False),
    Workload("deepliftshap20_cnn28_b16", "cnn28", 16, DeepLiftShap(_set("cnn28"))),
    Workload("deepliftshap100_cnn28_b8", "cnn28", 8, DeepLiftShap(_set("cnn28", 100)), quick=False),
    Workload("deepliftshap100_mlp100_b16", "mlp100", 16, DeepLiftShap(_set("mlp100", 100))),
    Workload("layerig50_mlp20_b1", "mlp20", 1, LayerIntegratedGradients(50, layer=1), quick=False),
    Workload("layerig50_cnn28_b4", "cnn28", 4, LayerIntegratedGradients(50, layer=4)),
    Workload("layerig50_text_b1", "text", 1, LayerIntegratedGradients(50, layer=0), quick=False),
    Workload("layerig50_text_b16", "text", 16, LayerIntegratedGradients(50, layer=0), quick=False),
    Workload("layerig20_resnet18_b1", "resnet18", 1, LayerIntegratedGradients(20, layer=8), quick=False),
    Workload("layerconductance50_mlp20_b1", "mlp20", 1, LayerConductance(50, layer=1), quick=False),
    Workload("layerconductance50_cnn28_b4", "cnn28", 4, LayerConductance(50, layer=4)),
    Workload("layerconductance50_cnn28_b4_norates", "cnn28", 4, LayerConductance(50, 4, rates=False), quick=False),
    Workload("lrp_cnn28_b16", "cnn28", 16, Relevance()),
    Workload("lrp_resnet18_b1", "resnet18", 1, Relevance(captum_runs=False), quick=False),
    Workload("lrp_vgg19_b1", "vgg19", 1, Relevance(), quick=False),
    Workload("guided_backprop_cnn28_b16", "cnn28", 16, GuidedBackprop()),
    Workload("ablation50seg_resnet18_b1", "resnet18", 1, FeatureAblation(50, 224), quick=False),
    Workload("ablation50seg_cnn28_b1", "cnn28", 1, FeatureAblation(50, 28)),
    Workload("ablation100feat_mlp_b1", "mlp100", 1, FeatureAblation(100)),
    Workload("occlusion_w32s24_resnet18_b1", "resnet18", 1, Occlusion(81, window=32, stride=24), quick=False),
    Workload("occlusion_w5s2_cnn28_b1", "cnn28", 1, Occlusion(169, window=5, stride=2)),
    Workload("shapley_sampling25_mlp20_b1", "mlp20", 1, ShapleySampling(20, samples=25)),
    Workload("shapley_sampling25_cnn28seg50_b1", "cnn28", 1, ShapleySampling(50, 28, samples=25)),
    Workload("shapley_exact5_mlp_b1", "mlp5", 1, ExactShapley(5), quick=False),
    Workload("shapley_exact7_mlp_b1", "mlp7", 1, ExactShapley(7), quick=False),
    Workload("shapley_exact10_mlp_b1", "mlp10", 1, ExactShapley(10)),
    Workload("kernelshap500_mlp20_b1", "mlp20", 1, KernelShap(20, samples=500)),
    Workload("kernelshap500_cnn28seg50_b1", "cnn28", 1, KernelShap(50, 28, samples=500)),
    Workload("lime500_cnn28seg50_b1", "cnn28", 1, Lime(50, 28, samples=500)),
    Workload("permutation100feat_mlp_b16", "mlp100", 16, FeaturePermutation(100)),
)
