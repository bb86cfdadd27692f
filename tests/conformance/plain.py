"""Methods written from their definitions alone, in plain code: right ones that no installed method provides."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.func import functional_call

import axplain
from axplain.references import Distribution

Tensors = tuple[Tensor, ...]


@attrs.frozen(eq=False)
class Answer:
    """What the kit reads of an explanation."""

    attributions: Any
    notes: Mapping[str, Any] = attrs.field(factory=dict)
    standard_errors: Any = None


@attrs.frozen(eq=False)
class Asked:
    """The arguments of one call, in the forms that the kit's own cases have."""

    model: Any
    x: Any
    target: Any = None
    baselines: Any = None

    @property
    def inputs(self) -> Tensors:
        """The inputs as a tuple."""
        return self.x if isinstance(self.x, tuple) else (self.x,)

    def pack(self, tensors: Any) -> Any:
        """Put tensors together as the inputs are."""
        return tuple(tensors) if isinstance(self.x, tuple) else next(iter(tensors))

    def references(self, given: Any = None) -> list[Tensors]:
        """Return the references of every example: one (batch, ...) tuple for each."""
        given = self.baselines if given is None else given
        if isinstance(given, Distribution):
            rows = given.rows if isinstance(given.rows, tuple) else (given.rows,)
            return [
                reference for k in range(len(rows[0])) for reference in self.references(tuple(r[[k]] for r in rows))
            ]
        items = given if isinstance(given, tuple) else (given,) * len(self.inputs)
        return [tuple(map(_absent, self.inputs, items))]

    def value(self, rows: Tensors, model: Any = None) -> Tensor:
        """Return the target at some rows: (rows,)."""
        output: Tensor = (model or self.model)(*rows)
        return output if output.ndim == 1 else output[:, self.target or 0]

    @property
    def widths(self) -> list[int]:
        """Elements of one row of each input."""
        return [x[0].numel() for x in self.inputs]

    def mixed(self, present: Tensor, reference: Tensors) -> Tensors:
        """Return the input where a (features,) mask is true, the reference elsewhere."""
        parts = torch.split(present, self.widths)
        return tuple(
            torch.where(part.view(1, *x.shape[1:]), x, absent)
            for part, x, absent in zip(parts, self.inputs, reference, strict=True)
        )

    def unflattened(self, phi: Tensor) -> Any:
        """Give (batch, features) numbers the shapes of the inputs."""
        parts = torch.split(phi, self.widths, 1)
        return self.pack(part.reshape(x.shape).to(x.dtype) for part, x in zip(parts, self.inputs, strict=True))


def _absent(x: Tensor, item: Any) -> Tensor:
    """Return one reference for each example of an input, bit for bit."""
    return item.expand_as(x) if isinstance(item, Tensor) else torch.full_like(x, item or 0.0)


def asked(model: Any, x: Any, arguments: Mapping[str, Any]) -> Asked:
    """Read the arguments of a call."""
    return Asked(model, x, arguments.get("target"), arguments.get("baselines"))


def shapley(size: int, players: int) -> float:
    """Return the weight of a coalition of that size."""
    return math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)


def banzhaf(size: int, players: int) -> float:
    """Return the weight that is the same for every coalition."""
    return 0.5 ** (players - 1)


def coalitions(weight: Callable[[int, int], float] = shapley) -> Callable[..., Answer]:
    """Return a method that weighs the marginal contributions of a feature to all coalitions of the others."""

    def explain(model: Any, x: Any, spec: Any, **arguments: Any) -> Answer:
        question = asked(model, x, arguments)
        players, references = sum(question.widths), question.references()
        phi = torch.zeros(len(question.inputs[0]), players, dtype=torch.float64)
        with torch.no_grad():
            for present in map(torch.tensor, itertools.product((False, True), repeat=players)):
                size = int(present.sum())
                worth = torch.stack([question.value(question.mixed(present, row)) for row in references]).mean(0)
                ins = [weight(size - 1, players) if size else 0.0] * players
                outs = [weight(size, players) if size < players else 0.0] * players
                phi += worth.unsqueeze(1) * torch.where(present, _row(ins), -_row(outs))
        return Answer(question.unflattened(phi))

    return explain


def _row(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _orders(question: Asked, runs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(runs):
        yield torch.randperm(sum(question.widths), generator=generator)


def sampled(orders: Callable[[Asked, int, torch.Generator], Iterator[Tensor]] = _orders) -> Callable[..., Answer]:
    """Return a method that averages marginal contributions along drawn orders, with standard errors."""

    def explain(model: Any, x: Any, spec: Any, *, n_samples: int = 3, **arguments: Any) -> Answer:
        question = asked(model, x, arguments)
        generator = torch.Generator().manual_seed(arguments["seed"])
        draws = []
        with torch.no_grad():
            for order in orders(question, n_samples, generator):
                draws.append(_contributions(question, order, generator))
        values = torch.stack(draws)
        errors = values.std(0) / math.sqrt(n_samples) if n_samples > 1 else values[0].abs()
        return Answer(question.unflattened(values.mean(0)), {}, question.unflattened(errors))

    return explain


def _contributions(question: Asked, order: Tensor, generator: torch.Generator) -> Tensor:
    """Return what every feature adds when it joins in an order, against one drawn reference: (batch, features)."""
    references = question.references()
    reference = references[int(torch.randint(len(references), (), generator=generator))]
    present = torch.zeros(len(order), dtype=torch.bool)
    phi = torch.zeros(len(question.inputs[0]), len(order), dtype=torch.float64)
    before = question.value(question.mixed(present, reference))
    for feature in order.tolist():
        present[feature] = True
        after = question.value(question.mixed(present, reference))
        phi[:, feature] = after - before
        before = after
    return phi


def bias_absorbing(*kinds: str) -> Callable[..., Answer]:
    """Return input times gradient, with what biases absorb: exact where F is piecewise linear, so of degree 1 in both.

    `kinds`: the ends of the names of what counts as a bias.
    """

    def explain(model: nn.Module, x: Any, spec: Any, **arguments: Any) -> Answer:
        model = _spelled_out(model)
        question = asked(model, x, arguments)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        biases = {n: t.detach().clone().requires_grad_() for n, t in state.items() if n.rpartition(".")[2] in kinds}
        leaves = tuple(tensor.detach().clone().requires_grad_() for tensor in question.inputs)
        value = question.value(leaves, lambda *rows: functional_call(model, biases, rows))
        slopes = torch.autograd.grad(value.sum(), leaves, retain_graph=True)
        absorbed = [_share(one, tuple(biases.values())) for one in value]
        phi = [(leaf * slope).detach() for leaf, slope in zip(leaves, slopes, strict=True)]
        return Answer(question.pack(phi), {"absorbed": torch.tensor(absorbed, dtype=torch.float64)})

    return explain


class _Affine(nn.Module):
    """A batch normalisation in evaluation mode whose mean can have a gradient."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.running_mean, self.bias = nn.Parameter(norm.running_mean), norm.bias
        self.scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        mean, scale, bias = (row.view(1, -1, 1, 1) for row in (self.running_mean, self.scale, self.bias))
        return (x - mean) * scale + bias


def _spelled_out(model: nn.Module) -> nn.Module:
    """Return a copy whose batch normalisations are arithmetic."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_children()):
        if isinstance(module, nn.BatchNorm2d):
            setattr(model, name, _Affine(module))
    return model


def _share(value: Tensor, biases: Tensors) -> float:
    """Return what the biases contribute to a value of degree 1 in them: each times its slope."""
    if not biases:
        return 0.0
    slopes = torch.autograd.grad(value, biases, retain_graph=True, allow_unused=True)
    return sum(float((s * b).sum()) for s, b in zip(slopes, biases, strict=True) if s is not None)


def of_layers(inner: str = "deeplift") -> Callable[..., Any]:
    """Return a method that takes layer=: it explains what follows a layer of a Sequential, at the layer's output."""

    def explain(model: Any, x: Any, spec: Any, *, layer: str | None = None, **arguments: Any) -> Any:
        if layer is None:
            return axplain.explain(model, x, inner, **arguments)
        head, tail = model[: int(layer) + 1], model[int(layer) + 1 :]
        with torch.no_grad():
            references = [head(*rows) for rows in asked(model, x, arguments).references()]
            at = head(x)
        rows = references[0] if len(references) == 1 else axplain.distribution(torch.cat([r[:1] for r in references]))
        return axplain.explain(tail, at, inner, **{**arguments, "baselines": rows})

    return explain
