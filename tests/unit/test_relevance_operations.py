"""Relevance of operations that people use: conserved with the report and without, spelled in any way, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from tests.unit.test_relevance import conserved, drawn, relevance, seeded
from torch import Tensor, nn
from torch.nn import functional

import axplain
from axplain_plugins.propagation.composites import COMPOSITES as COMPOSITES_BY_NAME
from axplain_plugins.propagation.composites import RULES

IMAGES, TOKENS, ROWS, WEIGHT = drawn(2, 4, 6, 6), drawn(2, 5, 8), drawn(2, 8), drawn(8, 8, key=3)
LOWER: Final = torch.ones(5, 5, dtype=torch.bool).tril()
COMPOSITES: Final[dict[str, Any]] = {
    "epsilon": "epsilon",
    "alpha beta, flat": "epsilon_alpha2_beta1_flat",
    "gamma, box": "epsilon_gamma_box",
    "all by parts": {"operations": {"dense": "gamma", "convolution": "wsquare"}},
}


class Written(nn.Module):
    """A function of x and of modules, as a model of classes."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function, self.more = function, nn.ModuleDict(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.more).flatten(1)


def model(function: Callable[..., Tensor], **modules: nn.Module) -> Any:
    return seeded(Written(function, **modules))


def linear(out: int = 8) -> nn.Linear:
    return nn.Linear(8, out)


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(2, (count, -1)).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]


def squeezed_and_excited(x: Tensor, down: Any, up: Any, head: Any) -> Tensor:
    scores = up(functional.relu(down(x.mean((2, 3), keepdim=True)))).sigmoid()
    return head(x * scores)  # type: ignore[no-any-return]


def shuffled(x: Tensor, head: Any) -> Tensor:
    return head(x.view(len(x), 2, 2, 6, 6).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


def grid(x: Tensor) -> Tensor:
    rotated = torch.tensor([[1.0, 0.1, 0.0], [0.0, 1.0, 0.1]], dtype=x.dtype).expand(len(x), 2, 3)
    return functional.affine_grid(rotated, [len(x), 4, 6, 6], align_corners=False)


def attended(x: Tensor, query: Any, **arguments: Any) -> Tensor:
    return functional.scaled_dot_product_attention(query(x), x, x, **arguments)


def written_slice(x: Tensor, layer: Any) -> Tensor:
    h = layer(x)
    h[:, :4].mul_(2.0).add_(1.0)
    return h * 1.0  # type: ignore[no-any-return]


def filled(x: Tensor, layer: Any) -> Tensor:
    h = torch.zeros_like(x)
    h[:, :4], h[:, 4:] = layer(x)[:, :4], x[:, 4:]
    return h


def scattered(x: Tensor) -> Tensor:
    place = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]]).expand_as(x)
    return torch.zeros(len(x), 3, dtype=x.dtype).scatter_add(1, place, x)


OPERATIONS: Final[dict[str, tuple[Tensor, Callable[..., Tensor], dict[str, Callable[[], nn.Module]]]]] = {
    "einsum with weights": (TOKENS, lambda x: torch.einsum("bnd,dk->bk", x, WEIGHT), {}),
    "einsum of two": (TOKENS, lambda x, layer: torch.einsum("bnd,bmd->bnm", x, layer(x)), {"layer": linear}),
    "nearest": (IMAGES, lambda x: functional.interpolate(x, scale_factor=2), {}),
    "bilinear": (IMAGES, lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"), {}),
    "bicubic": (IMAGES, lambda x: functional.interpolate(x, scale_factor=2, mode="bicubic"), {}),
    "antialias": (IMAGES, lambda x: functional.interpolate(x, size=(3, 3), mode="bilinear", antialias=True), {}),
    "area": (IMAGES, lambda x: functional.interpolate(x, size=(3, 3), mode="area"), {}),
    "pixel shuffle": (
        IMAGES,
        lambda x, head: head(functional.pixel_shuffle(x, 2)),
        {"head": lambda: nn.Conv2d(1, 3, 3)},
    ),
    "grouped": (IMAGES, lambda x, conv: conv(x), {"conv": lambda: nn.Conv2d(4, 6, 3, groups=2)}),
    "depthwise": (IMAGES, lambda x, conv: conv(x), {"conv": lambda: nn.Conv2d(4, 8, 3, groups=4)}),
    "conv1d": (TOKENS, lambda x, conv: conv(x), {"conv": lambda: nn.Conv1d(5, 3, 3)}),
    "transposed": (IMAGES, lambda x, conv: conv(x), {"conv": lambda: nn.ConvTranspose2d(4, 3, 3, 2, output_padding=1)}),
    "circular": (
        IMAGES,
        lambda x, conv: conv(x),
        {"conv": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")},
    ),
    "squeeze and excitation": (
        IMAGES,
        squeezed_and_excited,
        {"down": lambda: nn.Conv2d(4, 2, 1), "up": lambda: nn.Conv2d(2, 4, 1), "head": lambda: nn.Conv2d(4, 3, 3)},
    ),
    "channel shuffle": (IMAGES, shuffled, {"head": lambda: nn.Conv2d(4, 3, 3)}),
    "a broadcast mean": (IMAGES, lambda x: x + x.mean((2, 3), keepdim=True), {}),
    "glu": (ROWS, lambda x, layer: functional.glu(layer(x)), {"layer": linear}),
    "attention, masked": (TOKENS, lambda x, query: attended(x, query, attn_mask=LOWER), {"query": linear}),
    "attention, causal": (TOKENS, lambda x, query: attended(x, query, is_causal=True), {"query": linear}),
    "attention, grouped": (
        TOKENS,
        lambda x, query: functional.scaled_dot_product_attention(
            heads(query(x), 4), heads(x[..., :4], 2), heads(x[..., 4:], 2), enable_gqa=True
        ),
        {"query": linear},
    ),
    "multi-head": (TOKENS, lambda x, m: m(x, x, x)[0], {"m": lambda: nn.MultiheadAttention(8, 2, batch_first=True)}),
    "decoder": (TOKENS, lambda x, m: m(x, x), {"m": lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)}),
    "weight norm": (ROWS, lambda x, m: m(x), {"m": lambda: nn.utils.parametrizations.weight_norm(linear(3))}),
    "spectral norm": (ROWS, lambda x, m: m(x), {"m": lambda: nn.utils.parametrizations.spectral_norm(linear(3))}),
    "add alpha": (ROWS, lambda x, layer: torch.add(x, layer(x), alpha=0.5), {"layer": linear}),
    "addcmul": (ROWS, lambda x, layer: torch.addcmul(x, layer(x), x, value=0.5), {"layer": linear}),
    "addcdiv": (ROWS, lambda x, layer: torch.addcdiv(x, layer(x), x.exp(), value=0.5), {"layer": linear}),
    "lerp": (ROWS, lambda x, layer: torch.lerp(x, layer(x), 0.3), {"layer": linear}),
    "lerp by x": (ROWS, lambda x, layer: torch.lerp(x, layer(x), x.sigmoid()), {"layer": linear}),
    "clamp between tensors": (ROWS, lambda x, layer: layer(x).clamp(x - 1, x + 1), {"layer": linear}),
    "max over tokens": (TOKENS, lambda x, layer: layer(x).max(1).values, {"layer": linear}),
    "topk": (ROWS, lambda x, layer: layer(x).topk(3, 1).values, {"layer": linear}),
    "where": (ROWS, lambda x, layer: torch.where(x > 0, layer(x), x), {"layer": linear}),
    "cumsum": (ROWS, lambda x, layer: layer(x).cumsum(1), {"layer": linear}),
    "one over": (ROWS, lambda x, layer: 1 / (1 + layer(x).exp()), {"layer": linear}),
    "cosine": (ROWS, lambda x, m: functional.cosine_similarity(m(x)[:, None], WEIGHT[None], dim=-1), {"m": linear}),
    "layer norm of torch": (TOKENS, lambda x, norm: norm(x), {"norm": lambda: nn.LayerNorm(8)}),
    "group norm": (IMAGES, lambda x, norm: norm(x), {"norm": lambda: nn.GroupNorm(2, 4)}),
    "response norm": (IMAGES, lambda x, norm: norm(x), {"norm": lambda: nn.LocalResponseNorm(2)}),
    "dropout": (ROWS, lambda x, m: m(x), {"m": nn.Dropout}),
    "fold": (IMAGES, lambda x: functional.fold(functional.unfold(x, 3), 6, 3), {}),
    "grid": (IMAGES, lambda x: functional.grid_sample(x, grid(x), align_corners=False), {}),
    "padding": (IMAGES, lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"), {}),
    "crop": (IMAGES, lambda x: x[:, :, 1:-1, 1:-1], {}),
    "scatter": (ROWS, scattered, {}),
    "slices in place": (ROWS, written_slice, {"layer": linear}),
    "slices filled": (ROWS, filled, {"layer": linear}),
    "addmm onto x": (ROWS, lambda x, layer: torch.addmm(layer(x), x, WEIGHT), {"layer": linear}),
    "bilinear form": (ROWS, lambda x, m: m(x, x.tanh()), {"m": lambda: nn.Bilinear(8, 8, 3)}),
}


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_conserves_relevance_and_its_report_changes_nothing(name: str, composite: str) -> None:
    x, function, modules = OPERATIONS[name]
    made = model(function, **{part: make() for part, make in modules.items()})
    given: dict[str, Any] = {"composite": COMPOSITES[composite], "low": -4.0, "high": 4.0}
    try:
        reported = relevance(made, x, report=True, **given)
    except axplain.UncoveredOperation as error:
        assert composite != "epsilon" and "cannot be applied to it" in str(error)
        with pytest.raises(axplain.UncoveredOperation, match="cannot be applied to it"):
            relevance(made, x, **given)
        return
    assert conserved(made, x, **given) < 1e-10
    torch.testing.assert_close(relevance(made, x, **given), reported, rtol=1e-9, atol=1e-12)


def in_place(x: Tensor, layer: Any, name: str) -> Tensor:
    h = layer(x)
    getattr(h, name)(x.exp() if name == "div_" else x)
    return h  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["add_", "sub_", "mul_", "div_"])
@pytest.mark.parametrize("report", [False, True])
def test_an_operation_that_writes_shares_by_what_was_there_before(name: str, report: bool) -> None:
    twins: dict[str, Callable[..., Tensor]] = {
        "add_": torch.add, "sub_": torch.sub, "mul_": torch.mul, "div_": lambda a, b: a / b.exp(),
    }  # fmt: skip
    plain = twins[name]
    found = relevance(model(lambda x, layer: in_place(x, layer, name), layer=linear()), ROWS, report=report)
    expected = relevance(model(lambda x, layer: plain(layer(x), x), layer=linear()), ROWS)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_a_slice_that_is_written_to_gets_what_its_copy_gets() -> None:
    def copied(x: Tensor, layer: Any) -> Tensor:
        h = layer(x)
        return torch.cat([h[:, :4] * 2 + 1, h[:, 4:]], 1)

    twin = relevance(model(copied, layer=linear()), ROWS, epsilon=0.0)
    for report in (False, True):
        found = relevance(model(written_slice, layer=linear()), ROWS, epsilon=0.0, report=report)
        torch.testing.assert_close(found, twin, rtol=1e-12, atol=1e-13)


SPELLINGS: Final[dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]]] = {
    "addcmul": (lambda x, y: torch.addcmul(x, y, x, value=0.5), lambda x, y: x + 0.5 * (y * x)),
    "addcdiv": (lambda x, y: torch.addcdiv(x, y, x.exp(), value=0.5), lambda x, y: x + 0.5 * (y / x.exp())),
    "lerp": (lambda x, y: torch.lerp(x, y, x.sigmoid()), lambda x, y: x + x.sigmoid() * (y - x)),
    "quotient": (lambda x, y: y / (1 + x.exp()), lambda x, y: y * (2 / (2 * (1 + x.exp())))),
    "reciprocal": (lambda x, y: 3 / (1 + y.exp()), lambda x, y: (1 + y.exp()).reciprocal() * 3),
    "added to itself": (lambda x, y: y.add_(y.view_as(y), alpha=2), lambda x, y: y + 2 * y),
    "multiplied by itself": (lambda x, y: y.mul_(y), lambda x, y: y * y),
    "multiplied by its view": (lambda x, y: y.mul_(y.view_as(y)), lambda x, y: y * y),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_two_spellings_of_an_operation_get_the_same(name: str) -> None:
    one, other = (
        relevance(model(lambda x, layer, f=f: f(x, layer(x)), layer=linear()), ROWS, epsilon=0.0)
        for f in SPELLINGS[name]
    )
    assert one.abs().max() > 0.1
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def merged(layer: Any, norm: Any) -> Any:
    """Return the layer with the normalisation in its weights: its response to each channel, scaled and shifted."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    if isinstance(layer, nn.ConvTranspose2d):  # (in, out / groups, ...): group g of the rows makes its own channels
        rows = torch.arange(layer.in_channels) // (layer.in_channels // layer.groups)
        each = layer.out_channels // layer.groups
        factors = torch.stack([scale[g * each : (g + 1) * each] for g in rows.tolist()])[:, :, None, None]
    else:
        factors = scale.view(-1, *[1] * (layer.weight.ndim - 1))
    with torch.no_grad():
        layer.weight.mul_(factors)
        layer.bias.copy_(norm.bias + (layer.bias - norm.running_mean) * scale)
    return layer


LAYERS: Final[dict[str, tuple[Tensor, Callable[[], nn.Module], Callable[[], nn.Module], Callable[..., Tensor]]]] = {
    "transposed, grouped": (
        IMAGES, lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), lambda: nn.BatchNorm2d(6), lambda x, m: m(x),
    ),
    "by keywords": (
        IMAGES, lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6),
        lambda x, m: functional.conv2d(bias=m.bias, weight=m.weight, input=x),
    ),
    "grouped": (IMAGES, lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: nn.BatchNorm2d(6), lambda x, m: m(x)),
    "linear": (ROWS, linear, lambda: nn.BatchNorm1d(8), lambda x, m: m(x)),
    "before dropout": (
        IMAGES, lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6),
        lambda x, m: functional.dropout(m(x), 0.5, training=False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("report", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_normalisation_behind_any_layer_is_part_of_its_weights(name: str, report: bool) -> None:
    x, make, normalise, call = LAYERS[name]
    two = model(lambda x, layer, norm: norm(call(x, layer)), layer=make(), norm=normalise())
    one = model(lambda x, layer: layer(x), layer=make())
    one.load_state_dict({k: v for k, v in two.state_dict().items() if "layer" in k})
    merged(one.more["layer"], two.more["norm"])
    torch.testing.assert_close(two(x), one(x))
    given: dict[str, Any] = {"composite": COMPOSITES["all by parts"], "report": report}
    torch.testing.assert_close(relevance(two, x, **given), relevance(one, x, **given), rtol=1e-9, atol=1e-12)


def test_a_normalisation_of_another_axis_than_the_features_is_no_part_of_the_weights() -> None:
    """Five tokens are normalised here, not eight features; with as many tokens as features a merge would go unseen."""
    x = drawn(2, 8, 8)
    apart = model(lambda x, layer, norm: norm(layer(x)), layer=linear(), norm=nn.BatchNorm1d(8))
    between = model(lambda x, layer, norm: norm(layer(x) * 1.0), layer=linear(), norm=nn.BatchNorm1d(8))
    between.load_state_dict(apart.state_dict())
    given: dict[str, Any] = {"composite": {"operations": {"dense": "gamma"}}, "epsilon": 0.0}
    torch.testing.assert_close(relevance(apart, x, **given), relevance(between, x, **given), rtol=1e-9, atol=1e-12)


def test_weights_are_found_whatever_way_a_product_is_written() -> None:
    flipped = WEIGHT.T.contiguous()
    products: list[Callable[[Tensor], Tensor]] = [
        lambda x: functional.linear(x, WEIGHT),
        lambda x: functional.linear(input=x, weight=WEIGHT),
        lambda x: x @ flipped,
        lambda x: torch.matmul(input=x, other=flipped),
        lambda x: (WEIGHT @ x.unsqueeze(2)).squeeze(2),
        lambda x: torch.mm(x, mat2=flipped),
        lambda x: torch.addmm(torch.zeros(8, dtype=x.dtype), mat1=x, mat2=flipped),
        lambda x: torch.addmm(torch.zeros(8, 1, dtype=x.dtype), WEIGHT, x.T).T,
        lambda x: torch.bmm(x.unsqueeze(1), flipped.expand(len(x), 8, 8)),
    ]
    found = [relevance(model(f), ROWS, composite={"operations": {"dense": "gamma"}}) for f in products]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "function",
    [lambda x: functional.linear(x, WEIGHT[:3]), lambda x: torch.addmm(x, x, WEIGHT)],
    ids=["fewer outputs", "two inputs"],
)
def test_a_product_that_cannot_be_skipped_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(axplain.UncoveredOperation, match="the rule 'pass' cannot be applied"):
        relevance(model(function), ROWS, composite={"operations": {"dense": "pass"}})


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.logsumexp(1, keepdim=True).expand(-1, 3), "logsumexp"),
        (lambda x: x.prod(1, keepdim=True).expand(-1, 3), "prod"),
        (lambda x: torch.cdist(x, WEIGHT), "cdist"),
        (lambda x: torch.fft.rfft(x).abs(), "fft_rfft"),
        (lambda x: torch.vmap(lambda row: row * 2)(x), "vmap"),
    ],
    ids=["logsumexp", "prod", "cdist", "fft", "vmap"],
)
def test_what_relevance_is_not_defined_for_is_refused_by_name(function: Any, name: str) -> None:
    with pytest.raises(axplain.UncoveredOperation, match=name):
        relevance(model(function), ROWS)


def test_an_explanation_in_which_nothing_is_absorbed_says_so() -> None:
    explanation = axplain.explain(nn.Dropout().eval(), ROWS, "lrp", target=1, report=True)
    assert explanation.notes["absorbed"] == [0.0, 0.0] and explanation.notes["absorbed by"] == {}


class Attention(nn.Module):
    """Attention whose weights are computed from x; `fixed`: they are cut off by hand."""

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        self.fixed, self.query, self.head = fixed, linear(), linear(3)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.query(x) @ x.mT).softmax(-1)
        mixed = functional.dropout(weights.detach() if self.fixed else weights, 0.1, self.training) @ x
        return self.head(x + mixed).mean(1)  # type: ignore[no-any-return]


def test_constant_attention_gives_all_relevance_to_what_it_weights() -> None:
    """The conservative propagation of Ali et al. (2022): as if the weights of attention were numbers."""
    free, fixed = seeded(Attention(fixed=False)), seeded(Attention(fixed=True))
    found = relevance(free, TOKENS, attention="constant", report=True)
    torch.testing.assert_close(found, relevance(fixed, TOKENS), rtol=1e-12, atol=1e-14)
    assert (found - relevance(free, TOKENS)).abs().max() > 1e-3
    assert conserved(free, TOKENS, attention="constant") < 1e-10


def test_a_target_behind_a_constant_softmax_is_refused() -> None:
    with pytest.raises(axplain.UnsupportedModel, match="does not depend differentiably on x"):
        relevance(nn.Softmax(1), ROWS, attention="constant")


def test_the_page_and_the_readme_say_what_runs() -> None:
    page, readme = ((Path(__file__).parents[2] / name).read_text("utf-8") for name in ("docs/rules.md", "README.md"))
    page = page.partition("## Relevance\n")[2].partition("\n## ")[0]
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        exec(page.partition("```python\n")[2].partition("```")[0], names)
        explanation = names["explanation"]
        assert explanation.residuals["conservation"].abs().max() < 1e-6
        assert len(explanation.notes["absorbed"]) == 2
        assert "linear in module '4' (Linear)" in explanation.notes["absorbed by"]

        code = readme.partition("### Relevance propagation")[2].partition("```python\n")[2].partition("```")[0]
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        names |= {"transformer": nn.Sequential(encoder, nn.Flatten()).eval(), "embedded": torch.randn(2, 3, 8)}
        exec(code, names)
        assert names["explanation"].residuals["conservation"].abs().max() < 1e-6


def test_the_tables_of_the_page_are_the_rules_and_the_composites(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text("utf-8")
    page = page.partition("## Relevance\n")[2].partition("\n## ")[0]
    rows = {line.split("|")[1].strip(" `"): line.split("|") for line in page.splitlines() if line.startswith("| `")}
    assert set(RULES) | set(COMPOSITES_BY_NAME) == set(rows)
    for name, settings in RULES.items():
        assert set(rows[name][-2].replace("`", "").replace(",", " ").split()) == settings, name
    for name, table in COMPOSITES_BY_NAME.items():
        assert rows[name][2].strip(" `") == table.get("first", ""), name
        rule = table.get("operations", {}).get("convolution", "epsilon")
        assert rows[name][3].strip().startswith(f"`{rule if isinstance(rule, str) else rule['rule']}`"), name
    path = tmp_path / "mine.toml"
    path.write_text(page.partition("```toml\n")[2].partition("```")[0], "utf-8")
    encoder = nn.Sequential(nn.Conv2d(3, 3, 2))
    made = model(lambda x, conv, encoder: encoder(conv(x)), conv=nn.Conv2d(4, 3, 3), encoder=encoder)
    given: dict[str, Any] = {"low": -4.0, "high": 4.0}
    with pytest.raises(axplain.ArgumentError, match=r"layers.'encoder.\*' came, which fits no layer with weights"):
        relevance(made, IMAGES, composite=path, **given)  # its name begins with the wrapper's
    path.write_text(path.read_text("utf-8").replace('"encoder.', '"more.encoder.'), "utf-8")
    rules = {"first": "zbox", "layers": {"more.encoder.0": {"rule": "gamma", "gamma": 0.1}}}
    expected = relevance(made, IMAGES, composite=rules, **given)
    assert torch.equal(relevance(made, IMAGES, composite=path, **given), expected)
