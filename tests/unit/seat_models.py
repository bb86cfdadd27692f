"""Small float64 models with layers to cut at, and numbers for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(make: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make().double().eval()


def halves() -> tuple[nn.Sequential, nn.Sequential]:
    head = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    tail = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return head, tail


class Halves(nn.Module):
    """A model that is cut in two by its layer `head`."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = halves()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail(self.head(x))
        return out


MODEL = made(Halves)


X, ONE, SET = normal(3, 4), normal(1, 4, seed=2), normal(5, 4, seed=3)


def close(found: Any, expected: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=atol)


class Residual(nn.Module):
    """The input goes around the layer `inner`, by a sum and by a factor that is computed before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        gate = torch.sigmoid(h.flip(1)) + h.shape[0] * 0
        out: Tensor = self.last(self.inner(h) * gate + h)
        return out


class Shared(nn.Module):
    """Runs one layer three times, writes over its output, and calls a layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.relu, self.last = nn.Linear(4, 4), nn.ReLU(inplace=True), Scaled()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.layer(x))
        h = self.relu(self.layer(h) + 0.3)
        out: Tensor = self.last(scale=2.0, h=self.layer(h).mul_(1.5))
        return out


class Scaled(nn.Module):
    def forward(self, h: Tensor, scale: float) -> Tensor:
        return h * scale


class Words(nn.Module):
    """Two embeddings, added, then attention."""

    def __init__(self, first: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(5, 8)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=first)
        self.last, self.first = nn.Linear(8, 3), first

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids) + self.places(torch.arange(ids.shape[1]).expand_as(ids))
        h = self.body(h if self.first else h.transpose(0, 1))
        out: Tensor = self.last(h.mean(1 if self.first else 0))
        return out


IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


class Twins(nn.Module):
    """One encoder for two inputs, side by side, and two layers that feed the same sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.left(x)) * torch.tanh(self.right(x)))
        return out


class Recurrent(nn.Module):
    """A layer that returns a tuple of tuples, rows on the second axis of some."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.last = nn.LSTM(4, 3, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, (h, _) = self.core(x.unsqueeze(1))
        got: Tensor = self.last(torch.cat([out[:, -1], h[0]], 1))
        return got


class Opaque(torch.autograd.Function):
    """Code that no mode sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 2
