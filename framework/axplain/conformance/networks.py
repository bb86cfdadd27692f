"""Small networks in float64 with known properties, each a recipe: equal recipes build equal networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal[
    "smooth", "piecewise_linear", "linear", "additive", "multilinear", "symmetric", "with_dummy", "bias_free_relu",
    "monotone", "saturated", "conv_pool", "attention", "shared_modules", "functional", "two_input", "adjacent",
    "softmax",
]  # fmt: skip
Property = Literal[
    "smooth", "piecewise_linear", "linear", "additive", "multilinear", "positively_homogeneous", "respelled"
]

#: wide enough to saturate a tanh and to have kinks between an input and its baseline
SPREAD: Final = 0.7


@attrs.frozen
class Recipe:
    """Everything that a small network is made from; its repr builds it again.

    `features`: elements of each input row, tokens for attention. `outputs`: classes. `seed`: of the weights.
    """

    kind: Kind
    features: int = 3
    outputs: int = 2
    seed: int = 0

    def build(self) -> nn.Module:
        """Return the network, in float64 and in evaluation mode."""
        return self._made(_KINDS[self.kind].make)

    def respelled(self) -> nn.Module | None:
        """Return the same function from the same weights, written with other operators; None where there is none."""
        twin = _KINDS[self.kind].respelled
        return self._made(twin) if twin else None

    def rewritten(self) -> nn.Module | None:
        """Return an equal function of another structure: fused and split layers, identities of the activations."""
        twin = _KINDS[self.kind].rewritten
        return self._made(twin) if twin else None

    def _made(self, make: Callable[[Weights, Recipe], nn.Module]) -> nn.Module:
        generator = torch.Generator("cpu").manual_seed(self.seed)
        with torch.random.fork_rng(devices=()):  # layers draw default weights from the global generator first
            return make(Weights(generator), self).double().eval()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of one row of each input."""
        return _KINDS[self.kind].shapes(self.features)

    @property
    def properties(self) -> frozenset[Property]:
        """What is known about the function."""
        return _KINDS[self.kind].properties

    @property
    def layer(self) -> str:
        """The name of a layer that all the output knows of the input passes; empty where there is none."""
        return _KINDS[self.kind].layer


def kinds_with(wanted: str | None, among: tuple[Kind, ...]) -> tuple[Kind, ...]:
    """Return the kinds that have a property; all of them where none is wanted."""
    return tuple(kind for kind in among if wanted is None or wanted in _KINDS[kind].properties)


def kinds_with_layer(among: tuple[Kind, ...], *, spatial: bool) -> tuple[Kind, ...]:
    """Return the kinds that have a layer to attribute to; one that gives maps where space is wanted."""
    return tuple(kind for kind in among if _KINDS[kind].layer and (not spatial or kind == "conv_pool"))


@attrs.frozen
class Weights:
    """Draws weights one after the other."""

    generator: torch.Generator

    def __call__(self, *shape: int, spread: float = SPREAD) -> Tensor:
        """Return normal weights of a shape."""
        return spread * torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
        """Return a drawn layer."""
        layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64)
        layer.weight = nn.Parameter(self(outputs, inputs))
        if bias:
            layer.bias = nn.Parameter(self(outputs))
        return layer


@attrs.frozen
class _Network:
    make: Callable[[Weights, Recipe], nn.Module]
    properties: frozenset[Property] = frozenset()
    respelled: Callable[[Weights, Recipe], nn.Module] | None = None
    rewritten: Callable[[Weights, Recipe], nn.Module] | None = None
    shapes: Callable[[int], tuple[tuple[int, ...], ...]] = lambda features: ((features,),)
    layer: str = ""


HIDDEN: Final = 5


class Function(nn.Module):
    """A network that is one function of its inputs and its weights."""

    def __init__(self, function: Callable[..., Tensor], **weights: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, *x: Tensor) -> Tensor:
        """Run the function."""
        return self.function(*x, **dict(self.named_parameters(recurse=False)))


def _sequence(
    first: nn.Linear, activation: Callable[[], nn.Module], middle: nn.Linear, last: nn.Linear
) -> nn.Sequential:
    return nn.Sequential(first, activation(), middle, activation(), last)


def _mlp(
    activation: Callable[[], nn.Module], *, bias: bool = True, shape: Callable[[Tensor], Tensor] = lambda w: w
) -> Callable[[Weights, Recipe], nn.Module]:
    """Return a maker of networks of two hidden layers; `shape` may tie or cut columns of the first."""

    def make(draw: Weights, recipe: Recipe) -> nn.Module:
        layers = _layers(draw, recipe, bias=bias)
        layers[0].weight = nn.Parameter(shape(layers[0].weight.detach().clone()))
        return _sequence(layers[0], activation, layers[1], layers[2])

    return make


def _layers(draw: Weights, recipe: Recipe, *, bias: bool) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return (
        draw.linear(recipe.features, HIDDEN, bias=bias),
        draw.linear(HIDDEN, HIDDEN, bias=bias),
        draw.linear(HIDDEN, recipe.outputs, bias=bias),
    )


def _functional_mlp(activation: Callable[[Tensor], Tensor], *, bias: bool = True) -> Any:
    """The twin of `_mlp` without modules: products, sums and a function."""

    def make(draw: Weights, recipe: Recipe) -> nn.Module:
        first, middle, last = _layers(draw, recipe, bias=bias)

        def run(x: Tensor, **weights: Tensor) -> Tensor:
            for name in ("first", "middle", "last"):
                x = x @ weights[f"{name}_weight"].T
                x = x + weights[f"{name}_bias"] if bias else x
                x = x if name == "last" else activation(x)
            return x

        return Function(run, **_named(first=first, middle=middle, last=last))

    return make


def _split_mlp(activation: Callable[[Tensor], Tensor], *, bias: bool = True, least: float = 0.0) -> Any:
    """The twin of `_mlp` from other weights: first and last layers are two, the activation is an identity of another.

    `least`: of what the activation gives. Rules that follow operations one by one see the detour in the middle.
    """

    def make(draw: Weights, recipe: Recipe) -> nn.Module:
        first, middle, last = _layers(draw, recipe, bias=bias)
        mix = torch.eye(recipe.features, dtype=torch.float64) + torch.ones(recipe.features, recipe.features).double()
        inverse = torch.linalg.inv(mix)

        def run(x: Tensor, **weights: Tensor) -> Tensor:
            x = functional.linear(
                functional.linear(x, weights["inverse"]), weights["first_weight"], weights.get("first_bias")
            )
            hidden = activation(x)
            x = functional.linear(hidden, weights["middle_weight"], weights.get("middle_bias"))
            x = _detour(x, hidden[:, :1] - least)
            half = functional.linear(activation(x), weights["last_weight"])
            out = half + 3 * half
            return out + weights["last_bias"] if bias else out

        named = _named(first=first, middle=middle, last=last)
        named |= {"first_weight": named["first_weight"] @ mix, "last_weight": 0.25 * named["last_weight"]}
        return Function(run, **named, inverse=inverse)

    return make


def _detour(x: Tensor, positive: Tensor) -> Tensor:
    """Return x: relu(x) - relu(-x), the former as relu(relu(x + b) - b) for b >= 0."""
    return torch.relu(torch.relu(x + positive) - positive) - torch.relu(-x)


def _named(**layers: nn.Linear) -> dict[str, Tensor]:
    return {
        f"{layer}_{name}": parameter.detach()
        for layer, module in layers.items()
        for name, parameter in module.named_parameters()
    }


def _tied(weight: Tensor) -> Tensor:
    weight[:, 1] = weight[:, 0]
    return weight


def _cut(weight: Tensor) -> Tensor:
    weight[:, 0] = 0
    return weight


def _linear(draw: Weights, recipe: Recipe) -> nn.Module:
    return draw.linear(recipe.features, recipe.outputs)


def _additive(draw: Weights, recipe: Recipe) -> nn.Module:
    """sum over i of f_i(x_i), each f_i a small network of its own."""

    def run(x: Tensor, inner: Tensor, shift: Tensor, outer: Tensor) -> Tensor:
        hidden = torch.tanh(x.unsqueeze(-1) * inner + shift)
        return (hidden.unsqueeze(1) * outer).sum((2, 3))

    return Function(
        run,
        inner=draw(recipe.features, HIDDEN),
        shift=draw(recipe.features, HIDDEN),
        outer=draw(recipe.outputs, recipe.features, HIDDEN),
    )


def _multilinear(draw: Weights, recipe: Recipe) -> nn.Module:
    """First powers only: a linear part, all products of two features, and the product of the first three."""

    def run(x: Tensor, slope: Tensor, pairs: Tensor, triple: Tensor) -> Tensor:
        off = pairs - torch.diag_embed(torch.diagonal(pairs, dim1=1, dim2=2))
        quadratic = torch.einsum("bi,kij,bj->bk", x, off, x)
        cubic = x[:, :3].prod(1, keepdim=True) if x.shape[1] > 2 else torch.zeros_like(x[:, :1])
        return x @ slope.T + quadratic + cubic * triple

    count = recipe.features
    return Function(
        run, slope=draw(recipe.outputs, count), pairs=draw(recipe.outputs, count, count), triple=draw(recipe.outputs)
    )


def _monotone(draw: Weights, recipe: Recipe) -> nn.Module:
    """No weight is negative, so no output falls where a feature rises."""
    layers = _layers(draw, recipe, bias=True)
    for layer in layers:
        layer.weight = nn.Parameter(layer.weight.detach().abs())
    return _sequence(layers[0], nn.Softplus, layers[1], layers[2])


def _saturated(draw: Weights, recipe: Recipe) -> nn.Module:
    """sum of a_i (1 - relu(1 - x_i)): flat above 1, where gradients are blind to what has happened before."""

    def run(x: Tensor, height: Tensor) -> Tensor:
        return (1 - torch.relu(1 - x)) @ height.abs().T

    return Function(run, height=draw(recipe.outputs, recipe.features) + 0.5)


class _Images(nn.Module):
    """Convolution, ReLU, max-pooling, batch normalisation and a linear head."""

    def __init__(self, draw: Weights, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 4, 3)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(4, outputs)
        for module in (self.first, self.second, self.last):
            module.weight = nn.Parameter(draw(*module.weight.shape, spread=0.4))
            module.bias = nn.Parameter(draw(*module.weight.shape[:1], spread=0.4))
        self.norm.running_mean = draw(3, spread=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.first(x))))
        return self.last(torch.relu(self.second(x)).flatten(1))  # type: ignore[no-any-return]


class _SpelledImages(_Images):
    """The same without calling the modules: unfolded windows, a written-out norm, functions."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None, "batch normalisation keeps them"
        x = functional.conv2d(x, self.first.weight, self.first.bias, padding=1)
        x = (x - norm.running_mean.view(1, -1, 1, 1)) / (norm.running_var.view(1, -1, 1, 1) + norm.eps).sqrt()
        x = x * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        x = functional.max_pool2d(functional.relu(x), 2)
        windows = functional.unfold(x, 3).squeeze(-1)
        hidden = functional.linear(windows, self.second.weight.flatten(1), self.second.bias).clamp(min=0)
        return functional.linear(hidden, self.last.weight, self.last.bias)


class _Tokens(nn.Module):
    """One encoder block over a few tokens, then the mean of the tokens."""

    def __init__(self, draw: Weights, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.inner, self.outer, self.last = draw.linear(4, 8), draw.linear(8, 4), draw.linear(4, outputs)
        for parameter in self.attention.parameters():
            parameter.data = draw(*parameter.shape, spread=0.4).to(parameter.dtype)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        x = x + self.attention(normal, normal, normal, need_weights=False)[0]
        x = x + self.outer(functional.gelu(self.inner(x)))
        return self.last(x.mean(1))  # type: ignore[no-any-return]


class _Shared(nn.Module):
    """One activation module and one layer, each called twice."""

    def __init__(self, draw: Weights, recipe: Recipe) -> None:
        super().__init__()
        self.first, self.middle, self.last = _layers(draw, recipe, bias=True)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(x))
        x = x + self.activation(self.middle(x))
        return self.last(self.middle(x))  # type: ignore[no-any-return]


def _functional(draw: Weights, recipe: Recipe) -> nn.Module:
    """Activations without modules, in three spellings."""

    def run(x: Tensor, first: Tensor, middle: Tensor, last: Tensor) -> Tensor:
        x = functional.relu(x @ first.T).tanh()
        return torch.nn.functional.softplus(x @ middle.T) @ last.T

    return Function(
        run,
        first=draw(HIDDEN, recipe.features),
        middle=draw(HIDDEN, HIDDEN),
        last=draw(recipe.outputs, HIDDEN),
    )


class _Adjacent(nn.Module):
    """Nonlinear modules one behind the other, and windows that overlap."""

    def __init__(self, draw: Weights, recipe: Recipe) -> None:
        super().__init__()
        self.first, self.last = draw.linear(recipe.features, HIDDEN), draw.linear(HIDDEN - 2, recipe.outputs)
        self.tanh, self.relu, self.pool = nn.Tanh(), nn.ReLU(), nn.MaxPool1d(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.tanh(self.first(x)))
        return self.last(self.pool(x.unsqueeze(1)).squeeze(1))  # type: ignore[no-any-return]


def _softmax(draw: Weights, recipe: Recipe) -> nn.Module:
    return nn.Sequential(draw.linear(recipe.features, 3), nn.Softmax(1), draw.linear(3, recipe.outputs))


class _TwoInputs(nn.Module):
    """Two inputs of different widths that meet in a product."""

    def __init__(self, draw: Weights, recipe: Recipe) -> None:
        super().__init__()
        self.left, self.right = draw.linear(recipe.features, HIDDEN), draw.linear(2, HIDDEN)
        self.last = draw.linear(HIDDEN, recipe.outputs)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.last(torch.tanh(self.left(left)) * torch.sigmoid(self.right(right)))  # type: ignore[no-any-return]


def _abs_relu(x: Tensor) -> Tensor:
    return (x + x.abs()) / 2


def _sigmoid_tanh(x: Tensor) -> Tensor:
    return 2 * torch.sigmoid(2 * x) - 1


_SMOOTH: Final[frozenset[Property]] = frozenset({"smooth"})
_RESPELLED: Final[frozenset[Property]] = frozenset({"respelled"})
_KINKED: Final[frozenset[Property]] = frozenset({"piecewise_linear"})
_KINDS: Final[Mapping[Kind, _Network]] = MappingProxyType(
    {
        "smooth": _Network(
            _mlp(nn.Tanh),
            _SMOOTH | _RESPELLED,
            _functional_mlp(Tensor.tanh),
            _split_mlp(_sigmoid_tanh, least=-1.0),
            layer="1",
        ),
        "piecewise_linear": _Network(
            _mlp(nn.ReLU), _KINKED | _RESPELLED, _functional_mlp(functional.relu), _split_mlp(_abs_relu), layer="1"
        ),
        "linear": _Network(_linear, frozenset({"smooth", "piecewise_linear", "linear", "additive", "multilinear"})),
        "additive": _Network(_additive, frozenset({"smooth", "additive"})),
        "multilinear": _Network(_multilinear, frozenset({"smooth", "multilinear"})),
        "symmetric": _Network(_mlp(nn.Tanh, shape=_tied), _SMOOTH, layer="1"),
        "with_dummy": _Network(_mlp(nn.Tanh, shape=_cut), _SMOOTH, layer="1"),
        "bias_free_relu": _Network(
            _mlp(nn.ReLU, bias=False),
            _KINKED | frozenset({"positively_homogeneous", "respelled"}),
            _functional_mlp(torch.relu, bias=False),
            _split_mlp(_abs_relu, bias=False),
            layer="1",
        ),
        "monotone": _Network(_monotone, _SMOOTH, layer="1"),
        "saturated": _Network(_saturated, _KINKED | frozenset({"additive"})),
        "conv_pool": _Network(
            lambda draw, recipe: _Images(draw, recipe.outputs),
            _KINKED | _RESPELLED,
            lambda draw, recipe: _SpelledImages(draw, recipe.outputs),
            shapes=lambda features: ((1, 6, 6),),
            layer="norm",
        ),
        "attention": _Network(
            lambda draw, recipe: _Tokens(draw, recipe.outputs),
            shapes=lambda features: ((features, 4),),
            layer="norm",
        ),
        "shared_modules": _Network(_Shared, _KINKED),
        "functional": _Network(_functional),
        "adjacent": _Network(_Adjacent, layer="relu"),
        "softmax": _Network(_softmax, _SMOOTH, layer="0"),
        "two_input": _Network(_TwoInputs, _SMOOTH, shapes=lambda features: ((features,), (2,))),
    }
)
KINDS: Final[tuple[Kind, ...]] = tuple(_KINDS)
