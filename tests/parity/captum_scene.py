"""What the texts of captum_classes.py may name: models, numbers, captum's classes, calls of axplain, comparisons."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import captum.attr
import torch
from captum._utils.models.linear_model import SkLearnLinearRegression
from captum.attr._utils.lrp_rules import GammaRule
from tests.parity.captum_classes import ROWS
from tests.parity.networks import seeded, smooth
from torch import Tensor, nn

import axplain


class Network(nn.Module):
    """Every nonlinearity a module of its own, none beside another: what captum's hooks can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(1, 3, 3), nn.ReLU()
        self.mid, self.second = nn.Linear(3 * 16, 6), nn.ReLU()
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.second(self.mid(self.act(self.conv(x)).flatten(1))))
        return out


class Functional(nn.Module):
    """The same with rectifiers that are functions."""

    def __init__(self, of: Network) -> None:
        super().__init__()
        self.conv, self.mid, self.last = of.conv, of.mid, of.last

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.mid(torch.relu(self.conv(x)).flatten(1))))
        return out


class Scalar(nn.Module):
    """One number of a model."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.inner = of

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)[:, 1]
        return out


def scene() -> dict[str, Any]:
    """Return what the texts of the rows may name: models, numbers, captum's classes, and calls of axplain."""
    small, rows, others = smooth(), seeded(3, 4), 0.5 * seeded(4, 4, seed=1) + 1
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Network().double().eval()
        gated = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3)).double().eval()
        linear = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)).double().eval()
        wide = nn.Linear(200, 1, bias=False).double().eval()
    deep = nn.Sequential(*list(smooth())[:2], nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    for i, parameter in enumerate(deep[2:].parameters()):
        parameter.data = seeded(*parameter.shape, seed=90 + i)
    own = {
        "model": model, "x": seeded(3, 1, 6, 6), "one": seeded(1, 1, 6, 6, seed=2),
        "several": seeded(4, 1, 6, 6, seed=3), "deep": deep, "far": 5 * rows, "scalar": Scalar(small),
        "ruled": partial(_ruled, model), "crowd": seeded(8, 4), "plain": partial(_gradient, model),
        "target": torch.tensor([0, 2, 1]), "small": small, "rows": rows, "others": others, "gated": gated,
        "linear": linear, "wide": wide, "wide_row": seeded(1, 200), "functional": Functional(model), "torch": torch,
    }  # fmt: skip
    theirs = {row.name: getattr(captum.attr, row.name) for row in ROWS} | {
        "SkLearnLinearRegression": SkLearnLinearRegression, "nearness": _nearness, "coalition": _coalition,
        "switched": _switched, "reseeded": _reseeded,
    }  # fmt: skip
    calls = {"explain": axplain.explain, "neuron": axplain.neuron, "at_seat": axplain.at_seat, "off": off}
    return own | theirs | calls | {"gap": _gap, "refused": _refused}


def answer(text: str, names: Mapping[str, Any]) -> Any:
    """Evaluate a text of a row without captum's warnings; what they say is what the faults are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eval(text, dict(names))


def tensor_of(found: Any) -> Tensor:
    """Return the attributions, whichever library they are of."""
    tensor: Tensor = found.attributions if isinstance(found, axplain.Explanation) else found
    return tensor.detach().double()


def off(one: Any, other: Any) -> float:
    """Return the largest difference as a fraction of the largest number."""
    first, second = tensor_of(one), tensor_of(other)
    assert first.shape == second.shape, f"{tuple(first.shape)} and {tuple(second.shape)}"
    return float((first - second).abs().max() / second.abs().max())


def _ruled(model: Network) -> Network:
    """A copy in which one layer has a rule of the user's for captum's relevance propagation."""
    copied = copy.deepcopy(model)
    copied.mid.rule = GammaRule(1.0)
    return copied


def _gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    rows = x.clone().requires_grad_()
    return torch.autograd.grad(model(rows)[range(len(x)), target].sum(), rows)[0]


def _gap(found: Any, model: nn.Module, x: Tensor, away: Tensor | None = None) -> float:
    """Return how far attributions are from summing to F(x) - mean F(x'), as a fraction of the largest of those."""
    with torch.no_grad():
        absent = model(torch.zeros_like(x[:1]) if away is None else away)[:, 1].mean()
        difference = model(x)[:, 1] - absent
    return float((tensor_of(found).flatten(1).sum(1) - difference).abs().max() / difference.abs().max())


def _refused(call: Callable[[], Any], words: str) -> bool:
    """Return whether captum fails, with these words: it chooses a target twice, or misses what it has not kept."""
    try:
        call()
    except (AssertionError, AttributeError) as error:
        return words in str(error)
    return False


def _reseeded(call: Callable[[], Any]) -> Any:
    """Call with torch's generator where it always is, and numpy's wherever it happens to be."""
    torch.manual_seed(0)
    return call()


def _nearness(original: Tensor, perturbed: Tensor, coalition: Tensor, **more: Any) -> Tensor:
    """The kernel of the paper's tables: by the cosine distance of a coalition to the full one, of width 0.5."""
    distance = 1 - coalition.double().mean().sqrt()
    return torch.exp(-(distance**2) / 0.5**2)


def _coalition(original: Tensor, **more: Any) -> Tensor:
    return torch.randint(0, 2, (1, original.shape[1]))


def _switched(coalition: Tensor, original: Tensor, **more: Any) -> Tensor:
    return original * coalition
