"""Relevance propagation beside zennit and captum: the same numbers, or their faults by name (float64).

zennit 0.5.1 runs in a process of its own, see zennit_answers.py.
"""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import captum.attr as peer
import pytest
import torch
from captum.attr._utils import lrp_rules as captum_rules
from safetensors.torch import load_file
from tests.parity import zennit_answers as zennit
from tests.parity.networks import quietly
from tests.parity.zennit_answers import EPSILON, HIGH, LOW, NETWORKS, TARGET, X, layered
from torch import Tensor, nn

import axplain

ROOT: Final = Path(__file__).parents[2]
needs_zennit = pytest.mark.skipif(
    importlib.util.find_spec("zennit") is None, reason="pip install --no-deps zennit==0.5.1"
)
COMPOSITES: Final = ("epsilon", *zennit.COMPOSITES)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What zennit says, all cases from one process."""
    path = tmp_path_factory.mktemp("zennit") / "answers.safetensors"
    command = [sys.executable, "-W", "ignore", "-m", "tests.parity.zennit_answers", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(path)


def ours(model: nn.Module, composite: Any, x: Tensor = X, **given: Any) -> Tensor:
    arguments = {"target": TARGET, "epsilon": EPSILON, "low": LOW, "high": HIGH} | given
    found: Tensor = axplain.explain(model, x, "lrp", composite=composite, **arguments).attributions
    return found


def off(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a fraction of the largest relevance."""
    return float((found - expected).abs().max() / expected.abs().max())


@needs_zennit
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", ["plain", "normalised"])
def test_zennits_composites_give_the_same(name: str, composite: str, answers: dict[str, Tensor]) -> None:
    """The epsilon rule has one stabiliser where zennit, which merges normalisations first, has another."""
    within = 1e-3 if (name, composite) == ("normalised", "epsilon") else 1e-12
    assert off(ours(NETWORKS[name](), composite), answers[f"{name}/{composite}"]) < within


@needs_zennit
def test_epsilon_of_a_normalised_network_is_zennits_where_the_stabilisers_vanish(answers: dict[str, Tensor]) -> None:
    """With the normalisation written as a merged layer the stabilisers agree too."""
    merged = [layer for layer in with_eps_twice(NETWORKS["normalised"]()) if not isinstance(layer, nn.BatchNorm2d)]
    assert off(ours(nn.Sequential(*merged), "epsilon"), answers["normalised/epsilon"]) < 1e-12


def with_eps_twice(model: nn.Module) -> nn.Sequential:
    """Merge each normalisation into the layer in front of it; what is left divides by sqrt(1 + eps) once more."""
    layers = [copy.deepcopy(layer) for layer in model.children()]
    for layer, norm in pairwise(layers):
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        assert norm.running_mean is not None and norm.running_var is not None
        with torch.no_grad():
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            layer.weight.mul_(scale.view([1, -1, 1, 1] if isinstance(layer, nn.ConvTranspose2d) else [-1, 1, 1, 1]))
            bias = 0.0 if layer.bias is None else layer.bias
            layer.bias = nn.Parameter(norm.bias + (bias - norm.running_mean) * scale)
        norm.reset_running_stats()
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
    return nn.Sequential(*layers).eval()


@needs_zennit
@pytest.mark.parametrize("composite", COMPOSITES)
def test_zennit_explains_another_model_where_a_normalisation_has_an_eps(
    composite: str, answers: dict[str, Tensor]
) -> None:
    """It merges the normalisation, and its module, with the statistics 0 and 1 but the same eps, still runs behind."""
    model, theirs = NETWORKS["eps"](), answers[f"eps/{composite}"]
    other = with_eps_twice(model)
    with torch.no_grad():
        assert off(other(X), model(X)) > 0.002
    assert off(ours(model, composite), theirs) > 0.05
    assert off(ours(other, composite), theirs) < 1e-3  # stabilisers, before and behind the division


@needs_zennit
@pytest.mark.parametrize("composite", COMPOSITES)
def test_zennit_counts_a_residual_addition_twice_unless_a_module_makes_it(
    composite: str, answers: dict[str, Tensor]
) -> None:
    found = ours(NETWORKS["residual"](), composite)
    assert off(found, answers[f"residual, by a module/{composite}"]) < 1e-12
    assert off(found, answers[f"residual/{composite}"]) > 0.5


@needs_zennit
@pytest.mark.parametrize("rule", zennit.RULES)
@pytest.mark.parametrize("layer", zennit.LAYERS)
def test_zennits_rules_give_the_same_of_a_single_layer(layer: str, rule: str, answers: dict[str, Tensor]) -> None:
    name, _, without = rule.partition(" without ")
    table: dict[str, Any] = {"rule": name} | ({"bias": False} if without else {})
    if name == "alpha_beta":
        table |= {"alpha": 2.0, "beta": 1.0}
    assert off(ours(layered(layer), {"layers": {"0": table}}), answers[f"{layer}/{rule}"]) < 1e-10


class Modules(nn.Module):
    """Every operation that captum's rules are for is a module, called once."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.conv, self.act, self.pool = nn.Conv2d(2, 4, 3, bias=bias), nn.ReLU(), nn.MaxPool2d(2)
        self.mid, self.second, self.head = nn.Conv2d(4, 5, 3, bias=bias), nn.ReLU(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.conv(x)))
        return self.head(self.second(self.mid(x)).flatten(1))  # type: ignore[no-any-return]


def made(*, bias: bool = False, rules: dict[str, Any] | None = None) -> Modules:
    """Return the network, with captum's rules at some modules and its epsilon at the others."""
    model = Modules(bias=bias)
    zennit.drawn(model, 0.0)
    for name in ("conv", "mid", "head"):
        getattr(model, name).rule = (rules or {}).get(name) or captum_rules.EpsilonRule(1e-9)
    return model


POSITIVE: Final = X.abs()

#: captum's rule, ours, and whether it may meet biases: captum gives all of one to what adds, or scales none of it
CAPTUM: Final[dict[str, tuple[Callable[[], Any], Any, bool]]] = {
    "gamma": (lambda: captum_rules.GammaRule(0.25), "gamma", False),
    "gamma without bias": (lambda: captum_rules.GammaRule(0.25, True), {"rule": "gamma", "bias": False}, False),
    "alpha 1, beta 0": (captum_rules.Alpha1_Beta0_Rule, "zplus", False),
    "alpha 1, beta 0 without bias": (
        lambda: captum_rules.Alpha1_Beta0_Rule(True), {"rule": "zplus", "bias": False}, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("layer", [None, "conv", "mid"])
@pytest.mark.parametrize("rule", CAPTUM)
def test_captums_rules_agree_on_positive_inputs(rule: str, layer: str | None) -> None:
    make, table, bias = CAPTUM[rule]
    rules = {"conv": make(), "mid": make()}
    model = made(bias=bias, rules=rules)
    explainer = peer.LRP(model) if layer is None else peer.LayerLRP(model, getattr(model, layer))
    theirs = quietly(explainer.attribute, POSITIVE, TARGET).detach()
    composite = {"layers": {"conv": table, "mid": table}}
    found = ours(made(bias=bias), composite, POSITIVE, epsilon=1e-9, layer=layer)
    assert off(found, theirs) < 1e-6


@pytest.mark.parametrize("layer", [None, "conv", "mid"])
def test_captums_epsilon_rule_agrees_with_biases_and_any_inputs(layer: str | None) -> None:
    model = made(bias=True)
    explainer = peer.LRP(model) if layer is None else peer.LayerLRP(model, getattr(model, layer))
    theirs = quietly(explainer.attribute, X, TARGET).detach()
    assert off(ours(made(bias=True), "epsilon", epsilon=1e-9, layer=layer), theirs) < 1e-6


def test_captums_alpha_1_beta_0_lets_what_takes_from_an_output_take_part() -> None:
    """Its name says that only what adds shares: of negative inputs it leaves what takes, and of biases all signs."""
    rules = {"conv": captum_rules.Alpha1_Beta0_Rule()}
    composite = {"layers": {"conv": "zplus"}}
    for bias, x in ((True, POSITIVE), (False, X)):
        theirs = quietly(peer.LRP(made(bias=bias, rules=rules)).attribute, x, TARGET).detach()
        assert off(ours(made(bias=bias), composite, x, epsilon=1e-9), theirs) > 0.05


@pytest.mark.parametrize(
    "module",
    [nn.Flatten(), nn.Identity(), nn.LeakyReLU(), nn.Sigmoid(), nn.Softmax(1), nn.LayerNorm(8), nn.GELU()],
    ids=lambda module: type(module).__name__,
)
def test_captum_s7_has_no_rule_for_common_modules(module: nn.Module) -> None:
    model = zennit.drawn(nn.Sequential(nn.Linear(6, 8), module, nn.Linear(8, 4)), 0.0)
    x = zennit.seeded(2, 6)
    with pytest.raises(TypeError, match="has no rule defined"):
        quietly(peer.LRP(copy.deepcopy(model)).attribute, x, TARGET)
    explanation = axplain.explain(model, x, "lrp", target=TARGET, report=True)
    assert explanation.residuals["conservation"].abs().max() < 1e-12


def test_captum_s2_leaves_activations_behind_and_moves_parameters() -> None:
    model = made(rules={"conv": captum_rules.GammaRule(0.25)})
    before = [parameter.data_ptr() for parameter in model.parameters()]
    quietly(peer.LRP(model).attribute, POSITIVE, TARGET)
    assert hasattr(model.conv, "activations")
    assert [parameter.data_ptr() for parameter in model.parameters()] != before

    mine = Modules(bias=False)
    zennit.drawn(mine, 0.0)
    before = [parameter.data_ptr() for parameter in mine.parameters()]
    names = [set(vars(module)) for module in mine.modules()]
    ours(mine, {"layers": {"conv": "gamma"}}, POSITIVE)
    assert [parameter.data_ptr() for parameter in mine.parameters()] == before
    assert [set(vars(module)) for module in mine.modules()] == names


def test_captum_counts_a_residual_addition_twice() -> None:
    """Addition is no module, so both branches get all of the relevance: here four times what there is."""

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.head = nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            h = self.act(self.first(x))
            h = h + 1.0 * h
            return self.head(h + 1.0 * h)  # type: ignore[no-any-return]

    model, x = Doubled(), zennit.seeded(2, 6)
    zennit.drawn(model, 0.0)
    with torch.no_grad():
        value = model(x)[:, TARGET].clone()
    theirs = quietly(peer.LRP(copy.deepcopy(model)).attribute, x, TARGET).detach().sum(1)
    torch.testing.assert_close(ours(model, "epsilon", x, epsilon=1e-9).sum(1), value, rtol=1e-6, atol=0)
    torch.testing.assert_close(theirs / value, torch.full_like(value, 4.0), rtol=1e-6, atol=0)
