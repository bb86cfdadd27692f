"""What zennit 0.5.1 answers, from a process of its own: on import it wants torchvision, which is not installed here.

zennit is a black box: it is imported and called, nothing else. `python -m tests.parity.zennit_answers FILE` writes the
answers of all cases; the tests import the networks and the cases from here.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

EPSILON: Final = 1e-6
TARGET: Final = 1
LOW, HIGH = -1.0, 1.0
#: our name of a composite -> the name of zennit's class
COMPOSITES: Final = {
    "epsilon_plus": "EpsilonPlus",
    "epsilon_plus_flat": "EpsilonPlusFlat",
    "epsilon_gamma_box": "EpsilonGammaBox",
    "epsilon_alpha2_beta1": "EpsilonAlpha2Beta1",
    "epsilon_alpha2_beta1_flat": "EpsilonAlpha2Beta1Flat",
}
#: our name of a rule -> zennit's class, and its arguments
RULES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "epsilon": ("Epsilon", {"epsilon": EPSILON}),
    "gamma": ("Gamma", {"gamma": 0.25, "stabilizer": EPSILON}),
    "gamma without bias": ("Gamma", {"gamma": 0.25, "stabilizer": EPSILON, "zero_params": "bias"}),
    "alpha_beta": ("AlphaBeta", {"alpha": 2.0, "beta": 1.0, "stabilizer": EPSILON}),
    "alpha_beta without bias": ("AlphaBeta", {"alpha": 2.0, "beta": 1.0, "stabilizer": EPSILON, "zero_params": "bias"}),
    "zplus": ("ZPlus", {"stabilizer": EPSILON}),
    "zplus without bias": ("ZPlus", {"stabilizer": EPSILON, "zero_params": "bias"}),
    "wsquare": ("WSquare", {"stabilizer": EPSILON, "zero_params": "bias"}),
    "flat": ("Flat", {"stabilizer": EPSILON}),
}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X: Final = seeded(3, 2, 8, 8, seed=9).clamp(LOW, HIGH)


def drawn(model: nn.Module, eps: float) -> nn.Module:
    """Return a model with weights and statistics of a generator of its own, in float64."""
    generator, model = torch.Generator().manual_seed(5), model.double().eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(0.4 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = eps
                for statistic in (part.running_mean, part.running_var):
                    assert statistic is not None
                    statistic.copy_(0.5 + torch.rand(statistic.shape, generator=generator, dtype=torch.float64))
    return model


def plain() -> nn.Module:
    """Convolutions, both kinds of pooling, dense layers."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 1, groups=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 10), nn.ReLU(),
        nn.Linear(10, 4),
    )  # fmt: skip


def normalised() -> nn.Module:
    """A batch normalisation behind every convolution, one of which is transposed."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 5, 2, bias=False), nn.BatchNorm2d(5),
        nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(5, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


class Residual(nn.Module):
    """A block beside a shortcut. `add`: the module that adds them up; None: the operator `+`."""

    def __init__(self, add: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)
        self.act, self.pool, self.add = nn.ReLU(), nn.AvgPool2d(6), add

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = functional.relu(self.block(x))
        total = x + y if self.add is None else self.add(torch.stack([x, y], -1))
        return self.head(self.pool(total).flatten(1))  # type: ignore[no-any-return]


def single(kind: str) -> nn.Module:
    """Return one layer and what makes its outputs two classes."""
    layers = {"linear": nn.Linear(8, 5), "convolution": nn.Conv2d(2, 3, 3), "transposed": nn.ConvTranspose2d(2, 3, 3)}
    return nn.Sequential(layers[kind], nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


#: negligible beside any variance
NO_EPS: Final = 1e-30
NETWORKS: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "plain": lambda: drawn(plain(), NO_EPS),
    "normalised": lambda: drawn(normalised(), NO_EPS),
    "residual": lambda: drawn(Residual(), NO_EPS),
    "eps": lambda: drawn(normalised(), 0.1),
}
LAYERS: Final = ("linear", "convolution", "transposed")


def layered(kind: str) -> nn.Module:
    """Return one layer and a head, with weights."""
    model = single(kind).double()
    with torch.no_grad():
        model(X)
    return drawn(model, NO_EPS)


class _Absent(types.ModuleType):
    """A module in which every name is a class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (nn.Module,), {})


@contextmanager
def absent_torchvision() -> Iterator[None]:
    """Let zennit be imported: what it looks up in torchvision on import is there, and nothing else."""
    parts = ("", ".models", ".models.resnet", ".models.vgg", ".models.densenet", ".datasets", ".transforms")
    names = ["torchvision" + part for part in (*parts, ".datasets.vision")]
    if "zennit" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        yield
        return
    sys.modules.update({name: _Absent(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _answers() -> dict[str, Tensor]:
    with absent_torchvision():
        from zennit import composites, layer, rules, types
        from zennit.attribution import Gradient
        from zennit.canonizers import SequentialMergeBatchNorm

    def relevance(model: nn.Module, composite: Any) -> Tensor:
        model = copy.deepcopy(model)
        with Gradient(model, composite) as attributor:
            found: Tensor = attributor(X.clone(), lambda out: out * torch.eye(4).double()[[TARGET]])[1]
        return found.detach()

    base = [
        (types.AvgPool, rules.Norm(stabilizer=EPSILON)),
        (types.BatchNorm, rules.Pass()),
        (nn.ReLU, rules.Pass()),
        (layer.Sum, rules.Norm(EPSILON)),
    ]
    found = {}
    for name, make in NETWORKS.items():
        canonizers = [] if name in ("plain", "residual") else [SequentialMergeBatchNorm()]
        models = {name: make()}
        if name == "residual":
            models["residual, by a module"] = drawn(Residual(layer.Sum()), NO_EPS)
        for spelled, model in models.items():
            everywhere = rules.Epsilon(EPSILON)
            composite = composites.LayerMapComposite([(types.Linear, everywhere), *base], canonizers=canonizers)
            found[f"{spelled}/epsilon"] = relevance(model, composite)
            for ours, theirs in COMPOSITES.items():
                given: dict[str, Any] = {"epsilon": EPSILON, "stabilizer": EPSILON, "canonizers": canonizers}
                if theirs == "EpsilonGammaBox":
                    given |= {"low": torch.full_like(X, LOW), "high": torch.full_like(X, HIGH), "gamma": 0.25}
                found[f"{spelled}/{ours}"] = relevance(model, getattr(composites, theirs)(**given))
    for kind in LAYERS:
        for ours, (theirs, given) in RULES.items():
            rule = getattr(rules, theirs)(**given)
            head = composites.NameMapComposite([(["0"], rule), (["3"], rules.Epsilon(EPSILON)), (["1"], rules.Pass())])
            found[f"{kind}/{ours}"] = relevance(layered(kind), head)
    return found


if __name__ == "__main__":
    save_file({name: tensor.contiguous() for name, tensor in _answers().items()}, sys.argv[1])
