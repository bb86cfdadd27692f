"""DeepLIFT on whole networks: the sum is exact, spellings agree, and what is known by hand comes out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import axplain

Forward = Callable[..., Tensor]
Make = Callable[[], nn.Module]
WIDTH, TARGET = 6, 1
IMAGE, WORDS = (2, 8, 8), (5, 8)


class Net(nn.Module):
    """A network given by its parts and a function of the parts and x; in float64 and in evaluation mode."""

    def __init__(self, forward: Forward, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.call = nn.ModuleList(parts), forward
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, *self.parts)


class LoudRelu(nn.ReLU):
    """A subclass of a module that hooks by type would miss."""


def dense(activation: Forward | nn.Module) -> Net:
    """Return linear, activation, linear; the activation may be a function or a module."""
    layers = nn.Linear(WIDTH, 7), nn.Linear(7, 3)
    if isinstance(activation, nn.Module):
        return Net(lambda x, a, b, act: b(act(a(x))), *layers, activation)
    return Net(lambda x, a, b: b(activation(a(x))), *layers)


def shared_module() -> Net:
    return Net(lambda x, a, b, c, act: c(act(b(act(a(x))))), *_linears(WIDTH, 7, 7, 3), nn.ReLU())


def _linears(*widths: int) -> list[nn.Module]:
    return [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]


def _add_in_place(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    h = a(x).relu_()
    h += x
    h *= torch.sigmoid(x)
    h -= 0.1 * x
    h /= 2 + x.square()
    return b(h)  # type: ignore[no-any-return]


def _written(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    h = a(x)
    out = torch.zeros_like(h)
    out[:, :3] = h[:, 3:].tanh()
    out[:, 3:] = h[:, :3]
    out[:, 1] *= 2.0
    out[:, 2:4].sigmoid_()
    out.view(-1, 2, 3)[:, 0].relu_()
    return b(out * h)  # type: ignore[no-any-return]


def _viewed(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    out = torch.zeros(len(x), WIDTH, dtype=x.dtype)
    view = out[:, :4]  # taken before anything that depends on x is written
    view.copy_(a(x)[:, :4])
    return b(out.tanh() + torch.where(view.new_ones(1, 1) > 0, x, -x))  # type: ignore[no-any-return]


def gated(x: Tensor, up: nn.Module, gate: nn.Module, down: nn.Module) -> Tensor:
    return down(functional.silu(gate(x)) * up(x))  # type: ignore[no-any-return]


def hand_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * weight + bias


def hand_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def _gate_parameter() -> Net:
    net = Net(lambda x, a, b: b(a(x).tanh() * net.gate * x), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3))
    net.gate = nn.Parameter(torch.randn(WIDTH, dtype=torch.float64))
    return net


def _dynamic_convolution(x: Tensor, conv: nn.Module, head: nn.Module) -> Tensor:
    kernels = conv(x).mean((2, 3)).view(-1, 1, 3, 3)  # one kernel for each example, computed from it
    folded = x[:, :1].reshape(1, len(x), 8, 8)
    return head(functional.conv2d(folded, kernels, groups=len(x)).view(len(x), -1))  # type: ignore[no-any-return]


def _vgg(**pool: Any) -> Net:
    size = ((8 + 2 * pool.get("padding", 0) - pool["kernel_size"]) // pool["stride"] + 1) ** 2
    return Net(
        lambda x, a, b, p, head: head(p(b(a(x).relu()).relu()).flatten(1)),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.MaxPool2d(**pool),
        nn.Linear(4 * size, 3),
    )


def _resnet() -> Net:
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5

    def forward(
        x: Tensor, stem: nn.Module, conv: nn.Module, norm: nn.Module, act: nn.Module, head: nn.Module
    ) -> Tensor:
        h = act(norm(stem(x)))
        out = norm(conv(h))
        out += h
        return head(act(out).mean((2, 3)))  # type: ignore[no-any-return]

    return Net(
        forward, nn.Conv2d(2, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), norm, nn.ReLU(inplace=True), nn.Linear(4, 3)
    )


def _densenet() -> Net:
    def forward(x: Tensor, a: nn.Module, b: nn.Module, head: nn.Module) -> Tensor:
        first = torch.cat([x, a(x.relu())], 1)
        second = torch.cat([first, b(functional.relu(first))], 1)
        return head(functional.adaptive_avg_pool2d(second.tanh(), 1).flatten(1))  # type: ignore[no-any-return]

    return Net(forward, nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1), nn.Linear(8, 3))


def normalised(norm: nn.Module) -> Net:
    return Net(lambda x, a, n, head: head(n(a(x)).relu().mean((2, 3))), nn.Conv2d(2, 4, 3), norm, nn.Linear(4, 3))


def pooled(dimensions: int, **settings: Any) -> Net:
    pool = getattr(nn, f"MaxPool{dimensions}d")(**settings)
    conv = getattr(nn, f"Conv{dimensions}d")(2, 4, 3, padding=1)
    dims = tuple(range(2, 2 + dimensions))
    return Net(lambda x, c, p, head: head(p(c(x)).square().mean(dims)), conv, pool, nn.Linear(4, 3))


def words(forward: Forward, *parts: nn.Module) -> Net:
    """Return a network over words whose last step reads all of them."""
    return Net(lambda x, head, *rest: head(forward(x, *rest).flatten(1)), nn.Linear(WORDS[0] * WORDS[1], 3), *parts)


def _modulelist_gates(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = x + layer(x).tanh() * x.softmax(-1)
    return x[:, :3]


def _weight_normed() -> Net:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 3))
    return Net(lambda x, a, b: b(a(x).tanh()), nn.Linear(WIDTH, WIDTH), layer)


PLAIN: dict[str, Make] = {
    "module": lambda: dense(nn.ReLU()),
    "function": lambda: dense(functional.relu),
    "method": lambda: dense(lambda h: h.relu()),
    "in place": lambda: dense(nn.ReLU(inplace=True)),
    "in-place method": lambda: dense(lambda h: h.relu_()),
    "subclass": lambda: dense(LoudRelu()),
    "shared": shared_module,
    "adjacent": lambda: dense(lambda h: functional.relu(torch.tanh(h)).sigmoid()),
    "adjacent modules": lambda: dense(nn.Sequential(nn.Tanh(), nn.ReLU(inplace=True), nn.GELU())),
    "softmax": lambda: dense(lambda h: h.softmax(1)),
    "log-softmax": lambda: dense(lambda h: functional.log_softmax(h, 1)),
    "in-place residual": lambda: Net(_add_in_place, *_linears(WIDTH, WIDTH, 3)),
    "written slices": lambda: Net(_written, *_linears(WIDTH, WIDTH, 3)),
    "view of a buffer": lambda: Net(_viewed, *_linears(WIDTH, WIDTH, 3)),
    "gated": lambda: Net(lambda x, a, b, c: c(a(x).tanh() * b(x).sigmoid()), *_linears(6, 6), *_linears(6, 6, 3)),
    "swiglu": lambda: Net(gated, nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 3)),
    "parameter gate": _gate_parameter,
    "hand layer norm": lambda: dense(lambda h: hand_layer_norm(h, h.new_ones(7), h.new_zeros(7)).relu()),
    "hand rms norm": lambda: dense(lambda h: hand_rms_norm(h, h.new_ones(7)).tanh()),
    "hand std norm": lambda: dense(lambda h: (h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True) + 1e-3)),
    "normalize": lambda: dense(lambda h: functional.normalize(h, dim=-1)),
    "normalize by sums": lambda: dense(lambda h: functional.normalize(h, p=1.0, dim=-1)),
    "distances": lambda: dense(lambda h: (h[:, None] - torch.eye(7).double()).norm(p=1, dim=-1)),
    "cubic distances": lambda: dense(lambda h: torch.linalg.vector_norm(h[:, None] - torch.eye(7).double(), 3, dim=-1)),
    "largest distances": lambda: dense(lambda h: (h[:, None] - torch.eye(7).double()).norm(p=math.inf, dim=-1)),
    "einsum": lambda: Net(lambda x, a, b: torch.einsum("bi,bj->bij", a(x).tanh(), b(x)).sum(1), *_pair()),
    "einsum of three": lambda: dense(lambda h: torch.einsum("bi,bi,bi->bi", h, h.tanh(), h.sigmoid())),
    "product of three": lambda: dense(lambda h: h * h.tanh() * h.sigmoid()),
    "layers in a loop": lambda: Net(_modulelist_gates, *_linears(6, 6, 6, 6)),
    "weight norm": _weight_normed,
    "interpolation": lambda: dense(lambda h: functional.interpolate(h[:, None].tanh(), size=7, mode="linear")[:, 0]),
}
IMAGES: dict[str, Make] = {
    "vgg": lambda: _vgg(kernel_size=2, stride=2),
    "vgg, overlapping": lambda: _vgg(kernel_size=3, stride=2),
    "vgg, stride 1, padded": lambda: _vgg(kernel_size=3, stride=1, padding=1),
    "resnet": _resnet,
    "densenet": _densenet,
    "group norm": lambda: normalised(nn.GroupNorm(2, 4)),
    "instance norm": lambda: normalised(nn.InstanceNorm2d(4, affine=True)),
    "running instance norm": lambda: normalised(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "dynamic convolution": lambda: Net(_dynamic_convolution, nn.Conv2d(2, 9, 3), nn.Linear(36, 3)),
    "pooling 2d, dilated": lambda: pooled(2, kernel_size=2, stride=1, dilation=2),
    "pooling 2d, ceil": lambda: pooled(2, kernel_size=3, stride=2, ceil_mode=True),
}


def _pair() -> list[nn.Module]:
    return [nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)]


def self_attention(**call: Any) -> Callable[..., Net]:
    """Return a maker of a network around `nn.MultiheadAttention`."""

    def make(*, batch_first: bool, **masks: Tensor) -> Net:
        def forward(x: Tensor, attention: nn.Module) -> Tensor:
            h = x if batch_first else x.transpose(0, 1)
            padding = {name: mask[: len(x)] for name, mask in masks.items() if name == "key_padding_mask"}
            out = attention(h, h, h, **{**masks, **padding, **call})[0]
            return out if batch_first else out.transpose(0, 1)  # type: ignore[no-any-return]

        return words(forward, nn.MultiheadAttention(8, 2, batch_first=batch_first))

    return make


def masks(kind: str) -> dict[str, Tensor]:
    """Return an attention mask, over words, of one of the kinds that torch knows; a padding mask lets word 4 go."""
    ahead = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(64, 5, dtype=torch.bool)
    padding[:, 4] = True
    lowest = torch.finfo(torch.float64).min
    return {
        "none": {},
        "boolean": {"attn_mask": ahead},
        "-inf": {"attn_mask": torch.zeros(5, 5, dtype=torch.float64).masked_fill(ahead, -math.inf)},
        "lowest": {"attn_mask": torch.zeros(5, 5, dtype=torch.float64).masked_fill(ahead, lowest)},
        "padding": {"key_padding_mask": padding},
    }[kind]


def scaled(**settings: Any) -> Net:
    """Return a network around one call of `scaled_dot_product_attention` over 4 heads of width 2."""
    kv = 2 if settings.get("enable_gqa") else 4

    def forward(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
        query, key, value = (m(x).unflatten(-1, (-1, 2)).transpose(1, 2) for m in (q, k, v))
        attended = functional.scaled_dot_product_attention(query, key, value, **settings)
        return attended.transpose(1, 2).flatten(2)

    return words(forward, nn.Linear(8, 8), nn.Linear(8, 2 * kv), nn.Linear(8, 2 * kv))


def encoder(*, layers: int, batch_first: bool, norm_first: bool, masked: bool) -> Net:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=batch_first, norm_first=norm_first)
    stack = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) if layers else layer

    def forward(x: Tensor, stack: nn.Module) -> Tensor:
        h = x if batch_first else x.transpose(0, 1)
        word = "src_mask" if not layers else "mask"
        given = {word: masks("boolean")["attn_mask"]}
        given["src_key_padding_mask"] = masks("padding")["key_padding_mask"][: len(x)]
        out = stack(h, **given) if masked else stack(h)
        return out if batch_first else out.transpose(0, 1)  # type: ignore[no-any-return]

    return words(forward, stack)


def _blind() -> Tensor:
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    allowed[2] = False  # this word may attend to nothing
    return allowed


SCALED: dict[str, Make] = {
    "plain": scaled,
    "causal": lambda: scaled(is_causal=True),
    "scale": lambda: scaled(scale=0.3),
    "grouped": lambda: scaled(enable_gqa=True),
    "boolean mask": lambda: scaled(attn_mask=torch.ones(5, 5, dtype=torch.bool).tril()),
    "-inf mask": lambda: scaled(attn_mask=masks("-inf")["attn_mask"]),
    "lowest mask": lambda: scaled(attn_mask=masks("lowest")["attn_mask"], enable_gqa=True, scale=1.0),
    "blind query": lambda: scaled(attn_mask=_blind()),
}


def rows_of(shape: tuple[int, ...], count: int) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64)


def value(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x.clone())[:, TARGET]  # type: ignore[no-any-return]


def gaps(model: nn.Module, shape: tuple[int, ...], **settings: Any) -> list[float]:
    """Return the largest gap of the sums against the model's own values, for each kind of reference and method."""
    x, found = rows_of(shape, 4), []
    for references, count in (
        (torch.zeros(1, *shape, dtype=x.dtype), 1),
        (rows_of(shape, 4), 4),
        (rows_of(shape, 3), 3),
    ):
        away = torch.stack([value(model, row.expand_as(x)) for row in references])  # (references, batch)
        baseline = away.diagonal() if count == 4 else away.mean(0)
        for method in ("deeplift", "deeplift_shap")[: 1 if count == 4 else 2]:
            given = axplain.distribution(references) if count == 3 else references
            explanation = axplain.explain(model, x, method, target=TARGET, baselines=given, **settings)
            difference = value(model, x) - baseline
            assert float(difference.abs().max()) > 1e-6, "the network tells example and reference apart"
            found.append(float((explanation.attributions.flatten(1).sum(1) - difference).abs().max()))
            assert explanation.notes.get("plain_gradient") is None
    return found


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_the_sum_is_exact_on_plain_networks(make: Make) -> None:
    assert max(gaps(make(), (WIDTH,))) <= 1e-10


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
def test_the_sum_is_exact_on_networks_over_images(make: Make) -> None:
    assert max(gaps(make(), IMAGE)) <= 1e-10


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    "settings", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 1}, {"kernel_size": 3, "padding": 1}]
)
def test_the_sum_is_exact_with_pooling(dimensions: int, settings: dict[str, int]) -> None:
    assert max(gaps(pooled(dimensions, **settings), (2, *[6] * dimensions))) <= 1e-10


@pytest.mark.parametrize("kind", ["none", "boolean", "-inf", "lowest", "padding"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_the_sum_is_exact_on_multihead_attention(kind: str, batch_first: bool, need_weights: bool) -> None:
    make = self_attention(need_weights=need_weights)
    assert max(gaps(make(batch_first=batch_first, **masks(kind)), WORDS)) <= 1e-10


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_sum_is_exact_on_causal_multihead_attention(batch_first: bool) -> None:
    make = self_attention(need_weights=False, is_causal=True)
    assert max(gaps(make(batch_first=batch_first, **masks("boolean")), WORDS)) <= 1e-10


@pytest.mark.parametrize("make", SCALED.values(), ids=SCALED)
def test_the_sum_is_exact_on_scaled_dot_product_attention(make: Make) -> None:
    assert max(gaps(make(), WORDS)) <= 1e-10


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layers", [0, 2])
def test_the_sum_is_exact_on_encoders(layers: int, batch_first: bool, norm_first: bool, masked: bool) -> None:
    model = encoder(layers=layers, batch_first=batch_first, norm_first=norm_first, masked=masked)
    assert max(gaps(model, WORDS, batch_size=2)) <= 1e-10
    assert max(gaps(model, WORDS)) <= 1e-10


SPELLINGS: dict[str, tuple[Forward, ...]] = {
    "relu": (nn.ReLU(), functional.relu, Tensor.relu, torch.relu_, LoudRelu(inplace=True), lambda h: h.clamp_min(0)),
    "softmax": (
        nn.Softmax(1),
        lambda h: h.softmax(-1),
        lambda h: functional.softmax(h, 1),
        lambda h: torch.softmax(h, 1),
    ),
    "log-softmax": (nn.LogSoftmax(1), lambda h: h.log_softmax(1), lambda h: h - h.logsumexp(1, keepdim=True)),
    "sigmoid": (nn.Sigmoid(), torch.sigmoid, lambda h: h.sigmoid_(), torch.special.expit),
    "mean": (lambda h: h.mean(1, keepdim=True) * h, lambda h: h.sum(1, keepdim=True) / 7 * h),
    "quotient": (
        lambda h: h / (1 + h * h),
        lambda h: h * (1 / (1 + h * h)),
        lambda h: h * (1 + h.square()).reciprocal(),
    ),
    "root": (lambda h: h / (1 + h.pow(2)).sqrt(), lambda h: h * (1 + h**2).rsqrt(), lambda h: h * (1 + h * h) ** -0.5),
    "maximum": (lambda h: torch.max(h, -h), lambda h: torch.maximum(h, -h), lambda h: -torch.minimum(-h, h)),
    "product": (lambda h: h * h, lambda h: h.square(), lambda h: h**2, lambda h: torch.einsum("bi,bi->bi", h, h)),
    "layer norm": (
        lambda h: functional.layer_norm(h, (7,)),
        nn.LayerNorm(7),
        lambda h: functional.group_norm(h, 1),
        lambda h: hand_layer_norm(h, h.new_ones(7), h.new_zeros(7)),
        lambda h: (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, correction=0) + 1e-5).sqrt(),
    ),
    "rms norm": (
        lambda h: functional.rms_norm(h, (7,), eps=1e-6),
        lambda h: hand_rms_norm(h, h.new_ones(7)),
        lambda h: h / (h.square().mean(1, keepdim=True) + 1e-6).sqrt(),
    ),
}


def attributions(model: Any, x: Tensor, references: Tensor, **settings: Any) -> Tensor:
    """Return what DeepLIFT says against one reference or the mean over several."""
    given = references if len(references) == 1 else axplain.distribution(references)
    settings = {"target": TARGET} | settings
    found: Tensor = axplain.explain(model, x, "deeplift_shap", baselines=given, **settings).attributions
    return found


@pytest.mark.parametrize("spellings", SPELLINGS.values(), ids=SPELLINGS)
def test_all_spellings_of_a_network_give_the_same(spellings: tuple[Forward, ...]) -> None:
    x, references, found = rows_of((WIDTH,), 4), rows_of((WIDTH,), 3), []
    for spelling in spellings:
        torch.manual_seed(1)
        found.append(attributions(dense(spelling), x, references))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [shared_module, PLAIN["hand rms norm"], PLAIN["swiglu"], PLAIN["softmax"]])
def test_a_batch_gives_what_its_examples_give_alone(make: Make) -> None:
    model, x, references = make(), rows_of((WIDTH,), 4), rows_of((WIDTH,), 3)
    alone = torch.cat([attributions(model, row[None], references) for row in x])
    torch.testing.assert_close(attributions(model, x, references), alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(attributions(model, x, references, batch_size=2), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_batch_of_words_gives_what_its_examples_give_alone(batch_first: bool) -> None:
    model, x = encoder(layers=1, batch_first=batch_first, norm_first=True, masked=True), rows_of(WORDS, 3)
    references = rows_of(WORDS, 2)
    alone = torch.cat([attributions(model, row[None], references) for row in x])
    torch.testing.assert_close(attributions(model, x, references), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [PLAIN["swiglu"], PLAIN["hand layer norm"], shared_module])
def test_a_feature_that_the_model_does_not_read_gets_exactly_nothing(make: Make) -> None:
    inner, wide = make(), rows_of((WIDTH + 2,), 4)
    found = attributions(Net(lambda x, net: net(x[:, :WIDTH]), inner), wide, rows_of((WIDTH + 2,), 3))
    assert torch.equal(found[:, WIDTH:], torch.zeros(4, 2, dtype=torch.float64))


def test_features_that_the_model_treats_alike_get_the_same() -> None:
    model, x, references = PLAIN["hand rms norm"](), rows_of((WIDTH,), 4), rows_of((WIDTH,), 3)
    weight = dict(model.named_parameters())["parts.0.weight"].data
    weight[:, 1] = weight[:, 0]
    x[:, 1], references[:, 1] = x[:, 0], references[:, 0]
    found = attributions(model, x, references)
    torch.testing.assert_close(found[:, 0], found[:, 1], rtol=0, atol=1e-14)


def test_a_relu_network_of_two_layers_by_hand() -> None:
    model, x, reference = dense(nn.ReLU()), rows_of((WIDTH,), 4), rows_of((WIDTH,), 1)
    weights = dict(model.named_parameters())
    first, bias, last = (weights[f"parts.{name}"].detach() for name in ("0.weight", "0.bias", "1.weight"))
    before, after = reference @ first.T + bias, x @ first.T + bias
    slope = (after.clamp(min=0) - before.clamp(min=0)) / (after - before)
    expected = (x - reference) * ((slope * last[TARGET]) @ first)
    torch.testing.assert_close(attributions(model, x, reference), expected, rtol=0, atol=1e-12)


def test_a_relu_of_two_features_in_numbers() -> None:
    model = Net(lambda x: torch.stack([x[:, 0], functional.relu(2 * x[:, 0] - x[:, 1]) * 3], 1))
    x, zero = torch.tensor([[1.0, 0.5], [-1.0, 1.0], [1.0, 4.0]]).double(), torch.tensor([[0.0, -1.0]]).double()
    # from 1 to 1.5; from 1 to -3 (slope 1/4); from 1 to -2 (slope 1/3)
    expected = torch.tensor([[6.0, -4.5], [-1.5, -1.5], [2.0, -5.0]]).double()
    torch.testing.assert_close(attributions(model, x, zero), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [*list(PLAIN.values())[:4], PLAIN["swiglu"]])
def test_several_references_give_the_mean_of_each(make: Make) -> None:
    model, x, references = make(), rows_of((WIDTH,), 4), rows_of((WIDTH,), 3)
    single = [
        axplain.explain(model, x, "deeplift", target=TARGET, baselines=row[None]).attributions for row in references
    ]
    given = axplain.distribution(references)
    lifted = axplain.explain(model, x, "deeplift", target=TARGET, baselines=given).attributions
    torch.testing.assert_close(attributions(model, x, references), torch.stack(single).mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(lifted, torch.stack(single).mean(0), rtol=0, atol=1e-12)
