"""The models of the benchmarks: small, with random weights, in evaluation mode, and the same on every run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn


def mlp(features: int) -> nn.Module:
    """Three linear layers: a pass costs less than the Python around it."""
    return nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn28() -> nn.Module:
    """A digit classifier: two convolutions with pooling, then two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels, 3, stride)
        self.second = _convolution(channels, channels, 3, 1)
        same = stride == 1 and channels_in == channels
        self.shortcut: nn.Module = nn.Identity() if same else _convolution(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(torch.relu(self.first(x)))
        return torch.relu(inner + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 (He et al. 2015) for 224x224 pictures and 1,000 classes."""
    blocks: list[nn.Module] = []
    channels_in = 64
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Residual(channels_in, channels, stride), Residual(channels, channels, 1)]
        channels_in = channels
    stem = [_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def vgg19() -> nn.Module:
    """VGG-19 (Simonyan and Zisserman 2014), every layer of it in one sequence."""
    layers: list[nn.Module] = []
    channels_in = 3
    for channels, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU()]
            channels_in = channels
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


class Mean(nn.Module):
    """The mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def text() -> nn.Module:
    """An embedding and a transformer encoder of four layers, for 64 token ids."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(VOCABULARY["text"], 128), encoder, Mean(), nn.Linear(128, 10))


def _convolution(channels_in: int, channels: int, size: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(channels_in, channels, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


#: How many token ids the models have that take them.
VOCABULARY: Final = {"text": 1000}
#: Name -> factory, the shape of one example, and the chunk sizes that are tried for the loops that need one.
MODELS: Final[dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]]] = {
    "mlp5": (lambda: mlp(5), (5,), (64, 512, 4096)),
    "mlp7": (lambda: mlp(7), (7,), (64, 512, 4096)),
    "mlp10": (lambda: mlp(10), (10,), (64, 512, 4096)),
    "mlp20": (lambda: mlp(20), (20,), (64, 512, 4096)),
    "mlp100": (lambda: mlp(100), (100,), (64, 512, 4096)),
    "cnn28": (cnn28, (1, 28, 28), (16, 32, 64, 128, 256)),
    "resnet18": (resnet18, (3, 224, 224), (4, 8, 16)),
    "vgg19": (vgg19, (3, 224, 224), (1,)),
    "text": (text, (64,), (8, 16, 32, 64)),
}


def build(name: str) -> nn.Module:
    """Return a model; two calls return equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name][0]().eval()


def examples(name: str, count: int, seed: int = 1) -> Tensor:
    """Return `count` random inputs of a model."""
    generator = torch.Generator().manual_seed(seed)
    if name in VOCABULARY:
        return torch.randint(VOCABULARY[name], (count, *MODELS[name][1]), generator=generator)
    return torch.randn(count, *MODELS[name][1], generator=generator)


@dataclass
class Rows:
    """Rows that went forward and backward through a model, and the rows of its largest pass."""

    forward: int = 0
    backward: int = 0
    largest: int = 0


@contextmanager
def counting(model: nn.Module) -> Iterator[Rows]:
    """Count the rows of every pass of a model that takes one tensor."""
    rows = Rows()

    def see_gradient(gradient: Tensor) -> None:
        rows.backward += len(gradient)

    def see_input(module: nn.Module, arguments: tuple[Tensor]) -> None:
        (x,) = arguments
        rows.forward += len(x)
        rows.largest = max(rows.largest, len(x))
        # a model that asks this of what stands for x at layers is run in full
        if torch.is_grad_enabled() and type(x) is Tensor and x.requires_grad:
            x.register_hook(see_gradient)  # type: ignore[no-untyped-call]

    handle = model.register_forward_pre_hook(see_input)
    try:
        yield rows
    finally:
        handle.remove()
