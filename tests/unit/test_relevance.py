"""Relevance propagation by operation, against closed forms: gradients, single layers by hand, merged normalisations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import axplain
from axplain_plugins.propagation import shares

EPSILON = 1e-6


def drawn(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def seeded(model: Any, key: int = 0) -> Any:
    """Return the model in float64 and evaluation mode, with drawn weights and statistics."""
    generator = torch.Generator().manual_seed(key)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return model


def relevance(model: Any, x: Any, **arguments: Any) -> Tensor:
    found: Tensor = axplain.explain(model, x, "lrp", **{"target": 1, **arguments}).attributions
    return found


def conserved(model: Any, x: Any, **arguments: Any) -> Tensor:
    """What the relevance of the input and of everything that absorbs some miss F(x) by."""
    explanation = axplain.explain(model, x, "lrp", **{"target": 1, "report": True, **arguments})
    with torch.no_grad():
        value = model(x)[:, arguments.get("target", 1)]
    absorbed = torch.tensor(explanation.notes["absorbed"], dtype=torch.float64)
    gap: Tensor = explanation.attributions.flatten(1).sum(1) + absorbed - value
    assert torch.allclose(gap, explanation.residuals["conservation"], atol=1e-12)
    largest: Tensor = gap.abs().max() / value.abs().max()
    return largest


class Residual(nn.Module):
    """A convolution, batch normalisation, an addition, and modules that run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = x + self.block(x)
        more = self.block(x)
        more += x
        x = more
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Normalise, activate, convolve, and put what comes out beside what went in."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(2 + 2 * i) for i in range(3)])
        self.layers = nn.ModuleList([nn.Conv2d(2 + 2 * i, 2, 3, padding=1) for i in range(3)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(norm(x).relu())], 1)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.ReLU(),
        nn.Dropout(), nn.Linear(5, 3),
    )  # fmt: skip


class Encoder(nn.Module):
    """Two encoder layers, sequence first, and a head on the mean of the tokens."""

    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=norm_first, activation="gelu")
        self.layers = nn.ModuleList([layer, copy.deepcopy(layer)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(0))  # type: ignore[no-any-return]


IMAGES = {"vgg": vgg, "residual": Residual, "dense": Dense}
COMPOSITES = (
    "epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
)  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_stabiliser_relevance_is_the_gradient_times_the_input(bias: bool) -> None:
    model = seeded(nn.Sequential(nn.Linear(4, 6, bias=bias), nn.ReLU(), nn.Linear(6, 5, bias=bias), nn.ReLU(),
                                 nn.Linear(5, 3, bias=bias)))  # fmt: skip
    x = drawn(3, 4)
    expected = axplain.explain(model, x, "input_x_gradient", target=1).attributions
    assert torch.allclose(relevance(model, x, epsilon=0.0), expected, atol=1e-13)
    if not bias:
        assert torch.allclose(expected.sum(1), model(x)[:, 1], atol=1e-12)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("composite", COMPOSITES)
def test_relevance_and_what_is_absorbed_sum_to_the_output(name: str, composite: str) -> None:
    model = seeded(IMAGES[name]())
    x = drawn(2, 2, 6, 6)
    assert conserved(model, x, composite=composite, low=-4.0, high=4.0) < 1e-10


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("attention", ["softmax", "constant"])
def test_a_transformer_conserves_relevance_whatever_axis_its_rows_are_on(norm_first: bool, attention: str) -> None:
    model = seeded(Encoder(norm_first=norm_first))
    assert conserved(model, drawn(2, 4, 8), attention=attention) < 1e-10


def test_a_bias_absorbs_its_share_and_the_stabiliser_the_rest() -> None:
    """Of one layer y = w x + b with R = y: the bias keeps b y / (y + e), the stabiliser e y / (y + e)."""
    model = seeded(nn.Linear(4, 3))
    x = drawn(1, 4)
    explanation = axplain.explain(model, x, "lrp", target=1, epsilon=0.1, report=True)
    y = float(model(x)[0, 1].detach())
    shift = 0.1 if y >= 0 else -0.1
    bias = float(model.bias[1].detach())
    assert explanation.notes["absorbed"] == pytest.approx([(bias + shift) * y / (y + shift)], abs=1e-12)
    assert list(explanation.notes["absorbed by"]) == ["linear in the model (Linear)"]
    by_hand = (model.weight[1] * x[0]).detach() * y / (y + shift)
    assert torch.allclose(explanation.attributions[0], by_hand, atol=1e-13)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x, weight, bias)


def contributions(x: Tensor, weight: Tensor) -> Tensor:
    """Return z_ij = x_i w_ji, (examples, outputs, inputs)."""
    return x[:, None, :] * weight[None]


def by_zplus(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    parts = contributions(x, weight).clamp(min=0)
    total = parts.sum(2) + bias.clamp(min=0)
    return (parts / total[..., None] * out[..., None]).sum(1)


def by_alpha_beta(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    parts = contributions(x, weight).clamp(max=0)
    total = parts.sum(2) + bias.clamp(max=0)
    taken = torch.where(total[..., None] == 0, 0, parts / total[..., None])  # an output from which nothing takes
    return 2 * by_zplus(x, weight, bias, out) - (taken * out[..., None]).sum(1)


def by_gamma(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """What agrees with the sign of the output counts 1.25 times."""
    parts, sign = contributions(x, weight), torch.where(functional.linear(x, weight, bias) >= 0, 1.0, -1.0)
    agree = (parts * sign[..., None] > 0).double()
    shifts = bias + 0.25 * bias * (bias * sign > 0)
    parts = parts * (1 + 0.25 * agree)
    return (parts / (parts.sum(2) + shifts)[..., None] * out[..., None]).sum(1)


def by_zbox(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    parts = contributions(x, weight) + 4 * weight.clamp(min=0) - 3 * weight.clamp(max=0)
    return (parts / parts.sum(2, keepdim=True) * out[..., None]).sum(1)


def by_flat(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    return (torch.ones_like(contributions(x, weight)) / x.shape[1] * out[..., None]).sum(1)


def by_wsquare(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    parts = weight.square()[None].expand(len(x), -1, -1)
    return (parts / parts.sum(2, keepdim=True) * out[..., None]).sum(1)


def by_norm(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    parts = contributions(x, weight)
    return (parts / parts.sum(2, keepdim=True) * out[..., None]).sum(1)


BY_HAND: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "zplus": (by_zplus, {}),
    "alpha_beta": (by_alpha_beta, {"alpha": 2.0, "beta": 1.0}),
    "gamma": (by_gamma, {"gamma": 0.25}),
    "zbox": (by_zbox, {"low": -4.0, "high": 3.0}),
    "flat": (by_flat, {}),
    "wsquare": (by_wsquare, {}),
    "norm": (by_norm, {}),
}


@pytest.mark.parametrize("rule", BY_HAND)
def test_a_rule_is_its_sum_over_pairs_of_inputs_and_outputs(rule: str) -> None:
    x, weight, bias, out = drawn(3, 5), drawn(4, 5, key=1), drawn(4, key=2), drawn(3, 4, key=3)
    by_hand, settings = BY_HAND[rule]
    if rule == "gamma":
        settings = settings | {"output": linear(x, weight, bias)}
    found = getattr(shares, rule)(linear, x, weight, bias, out, epsilon=0.0, **settings)
    assert torch.allclose(found, by_hand(x, weight, bias, out), atol=1e-11)


@pytest.mark.parametrize("rule", [rule for rule in BY_HAND if rule != "zbox"])
def test_a_composite_gives_a_layer_its_rule(rule: str) -> None:
    model = seeded(nn.Linear(4, 3))
    x = drawn(2, 4)
    out = torch.zeros(2, 3, dtype=torch.float64)
    out[:, 1] = model(x)[:, 1].detach()
    by_hand, settings = BY_HAND[rule]
    composite = {"operations": {"dense": {"rule": rule, **settings}}}
    expected = by_hand(x, model.weight.detach(), model.bias.detach(), out)
    assert torch.allclose(relevance(model, x, composite=composite, epsilon=0.0), expected, atol=1e-11)


@pytest.mark.parametrize("composite", [c for c in COMPOSITES if c != "epsilon"])
@pytest.mark.parametrize("transposed", [False, True])
def test_batch_normalisation_behind_a_product_is_part_of_it(composite: str, transposed: bool) -> None:
    """The twin has the normalisation in its weights, merged by hand."""
    first: nn.Module = nn.ConvTranspose2d(2, 4, 3) if transposed else nn.Conv2d(2, 4, 3, bias=False)
    model = seeded(nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten(2)))
    norm, merged = model[1], copy.deepcopy(model[0])
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():
        merged.weight.mul_(scale.view(1, -1, 1, 1) if transposed else scale.view(-1, 1, 1, 1))
        bias = 0 if model[0].bias is None else model[0].bias
        merged.bias = nn.Parameter(norm.bias + (bias - norm.running_mean) * scale)
    twin = nn.Sequential(merged, *list(model)[2:])
    x = drawn(2, 2, 5, 5)
    given: dict[str, Any] = {"composite": composite, "low": -4.0, "high": 4.0, "target": (1, 0)}
    assert torch.allclose(relevance(model, x, **given), relevance(twin, x, **given), rtol=1e-9, atol=1e-12)


class Written(nn.Module):
    """Normalisations and attention by hand, or by torch's functions."""

    def __init__(self, *, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.weight, self.bias = nn.Parameter(drawn(6)), nn.Parameter(drawn(6, key=1))
        self.query, self.key, self.value = (nn.Linear(6, 6).double() for _ in range(3))
        self.gate, self.up, self.head = (nn.Linear(6, 6).double() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.root(self.centred(x))
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.by_hand:
            mixed = torch.softmax(query @ key.mT / 6**0.5, -1) @ value
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.head(functional.silu(self.gate(mixed)) * self.up(mixed)).mean(1)  # type: ignore[no-any-return]

    def centred(self, x: Tensor) -> Tensor:
        if not self.by_hand:
            return functional.layer_norm(x, (6,), self.weight, self.bias)
        slice_ = x - x.mean(-1, keepdim=True)
        return slice_ / (slice_.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias

    def root(self, x: Tensor) -> Tensor:
        if not self.by_hand:
            return functional.rms_norm(x, (6,), self.weight, 1e-6)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def test_hand_written_norms_and_attention_give_what_torchs_functions_give() -> None:
    model = seeded(Written(by_hand=True))
    twin = Written(by_hand=False)
    twin.load_state_dict(model.state_dict())
    x = drawn(2, 3, 6)
    for attention in ("softmax", "constant"):
        given: dict[str, Any] = {"epsilon": 0.0, "attention": attention}
        found, expected = relevance(model, x, **given), relevance(twin.double().eval(), x, **given)
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), attention


def test_softmax_gets_its_first_order_term() -> None:
    """R_i = x_i (R_i - y_i sum R), as the paper of AttnLRP has it, with R the chosen probability."""
    x = drawn(2, 5)
    y = x.softmax(1)
    out = torch.zeros_like(y)
    out[:, 1] = y[:, 1]
    expected = x * (out - y * out.sum(1, keepdim=True))
    assert torch.allclose(relevance(nn.Softmax(1), x), expected, atol=1e-14)


def test_two_factors_share_evenly_and_residual_branches_by_what_they_add() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2] * x[:, 2:4] + x[:, 4:6]

    x = drawn(3, 6)
    found = relevance(Branches(), x, epsilon=0.0)
    product, added = x[:, 1] * x[:, 3], x[:, 5]
    expected = torch.zeros_like(x)
    expected[:, 1] = expected[:, 3] = product / 2
    expected[:, 5] = added
    assert torch.allclose(found, expected, atol=1e-13)


def test_at_a_layer_relevance_is_what_arrives_there() -> None:
    model = seeded(vgg())
    x, tail = drawn(2, 2, 6, 6), None
    with torch.no_grad():
        held = model[:5](x)
    tail = model[5:]
    assert torch.equal(relevance(model, x, layer="4"), relevance(tail, held))
    # the first product of a tail is not the first of the model
    flat = relevance(model, x, layer="4", composite="epsilon_plus_flat")
    assert torch.equal(flat, relevance(tail, held, composite="epsilon_plus"))


def test_a_composite_is_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('first = "flat"\n[operations]\nconvolution = "zplus"\n', "utf-8")
    model, x = seeded(vgg()), drawn(1, 2, 6, 6)
    named = relevance(model, x, composite="epsilon_plus_flat")
    assert torch.equal(relevance(model, x, composite=str(path)), named)
    assert torch.equal(relevance(model, x, composite=path), named)


def test_layers_come_before_the_first_before_types_before_operations() -> None:
    model, x = seeded(vgg()), drawn(1, 2, 6, 6)
    zplus = {"operations": {"convolution": "zplus"}}
    by_type = {"types": {"Conv2d": "zplus"}, "operations": {"convolution": "flat"}}
    assert torch.equal(relevance(model, x, composite=by_type), relevance(model, x, composite=zplus))
    by_base = {"types": {"_ConvNd": "zplus"}}
    assert torch.equal(relevance(model, x, composite=by_base), relevance(model, x, composite=zplus))
    by_layer = {"layers": {"0": "flat"}, "first": "wsquare", "operations": {"convolution": "zplus"}}
    assert torch.equal(relevance(model, x, composite=by_layer), relevance(model, x, composite="epsilon_plus_flat"))
    by_pattern = {"layers": {"[2-9]": "zplus"}, "first": "flat"}
    assert torch.equal(relevance(model, x, composite=by_pattern), relevance(model, x, composite="epsilon_plus_flat"))


@pytest.mark.parametrize(
    ("composite", "words"),
    [
        ("plus", "'plus' came"),
        ({"layer": {}}, "the key 'layer' came"),
        ({"operations": {"conv": "zplus"}}, "the operation 'conv' came"),
        ({"first": "zeta"}, "first = 'zeta' came"),
        ({"first": {"rule": "gamma", "alpha": 2}}, "first.alpha came"),
        ({"types": "zplus"}, "types = 'zplus' came"),
        ({"first": "zbox"}, "the rule zbox needs it"),
        ("missing.toml", "cannot be read"),
    ],
    ids=str,
)
def test_a_composite_that_cannot_be_read_is_refused_by_name(composite: Any, words: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=words):
        relevance(seeded(nn.Linear(4, 3)), drawn(1, 4), composite=composite)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.log_softmax(1), "log_softmax"),
        (lambda x: x.cumprod(1), "cumprod"),
        (lambda x: x ** x.abs(), "pow"),
    ],
    ids=["log_softmax", "cumprod", "pow"],
)
def test_operations_that_nobody_defined_relevance_for_are_refused_by_name(function: Any, name: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)  # type: ignore[no-any-return]

    with pytest.raises(axplain.UncoveredOperation, match=name):
        relevance(Model(), drawn(2, 4))


def test_a_rule_for_weights_is_refused_where_a_product_has_none() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(drawn(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bi,ij->bj", x, self.weight)

    with pytest.raises(axplain.UncoveredOperation, match="'einsum' is not written as an input times a weight"):
        relevance(Model(), drawn(2, 4), composite={"operations": {"dense": "zplus"}})
    assert conserved(Model(), drawn(2, 4)) < 1e-10


def test_functional_modules_and_in_place_spellings_are_one_model() -> None:
    class Spelled(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.layers = list(model)

        def forward(self, x: Tensor) -> Tensor:
            first, _, middle, _, last = self.layers
            x = (x @ first.weight.T + first.bias).relu_()
            return functional.linear(
                functional.linear(x, middle.weight, middle.bias).clamp(min=0), last.weight, last.bias
            )

    model = seeded(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    x = drawn(3, 4)
    found, expected = relevance(Spelled(model), x, epsilon=0.0), relevance(model, x, epsilon=0.0)
    assert torch.allclose(found, expected, atol=1e-13)


def test_nothing_of_the_model_is_touched() -> None:
    model, x = seeded(Residual()), drawn(2, 2, 6, 6)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    first = relevance(model, x, composite="epsilon_gamma_box", low=-4.0, high=4.0)
    assert torch.equal(first, relevance(model, x, composite="epsilon_gamma_box", low=-4.0, high=4.0))
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(hasattr(module, "rule") or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("composite", "words"),
    [
        ({"layers": {"conv1": "zplus"}}, "layers.'conv1' came, which fits no layer with weights; expected .*0, 10, 13"),
        ({"layers": {"1": "gamma"}}, "layers.'1' came"),
        ({"types": {"torch.nn.Conv2d": "zplus"}}, "types.'torch.nn.Conv2d' came, .*Conv2d, Linear"),
        ({"types": {nn.Conv3d: "zplus"}}, "types.'Conv3d' came"),
        ({"layers": {nn.Linear: "zplus"}}, "a type came as a key of layers"),
        ({"first": {"rule": "gamma", "gamma": -1}}, "first.gamma = -1 came"),
        ({"first": "alpha_beta"}, "a table {'rule': 'alpha_beta', 'alpha': number, 'beta': number}"),
        ({"first": {"rule": "alpha_beta", "alpha": 2, "beta": 0}}, "alpha - beta = 1"),
        ({"first": {"use": "gamma"}}, "or a table {'rule': name"),
        ({"first": {"rule": "zbox", "low": 5.0, "high": -5.0}}, "low: x lies outside"),
        ({"first": {"rule": "zbox", "low": -9.0, "high": 0.1}}, "high: x lies outside"),
        ({"first": {"rule": "zbox", "low": torch.zeros(7), "high": 9.0}}, "broadcasts over"),
    ],
    ids=str,
)
def test_a_composite_that_does_not_fit_the_model_is_refused(composite: Any, words: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=words):
        relevance(seeded(vgg()), drawn(1, 2, 6, 6), composite=composite)


def test_a_class_is_a_type_and_a_pattern_has_to_fit_once() -> None:
    model, x = seeded(vgg()), drawn(1, 2, 6, 6)
    plus = relevance(model, x, composite={"operations": {"convolution": "zplus"}})
    assert torch.equal(relevance(model, x, composite={"types": {nn.Conv2d: "zplus"}}), plus)
    behind = relevance(model, x, layer="4", composite={"layers": {"0": "zplus", "5": "zplus"}})
    assert torch.equal(behind, relevance(model, x, layer="4", composite={"layers": {"5": "zplus"}}))


def test_no_plain_gradient_is_offered_where_there_is_none() -> None:
    with pytest.raises(axplain.UncoveredOperation) as caught:
        relevance(nn.Sequential(nn.LogSoftmax(1)), drawn(2, 4))
    assert "unknown" not in str(caught.value)
