"""Integrated gradients against captum 0.9.0, and against a loop over numpy's nodes.

Captum's weights, and the nodes of its Riemann rules, are float32, so results differ by about 1e-7 of the integrand.
So there are three comparisons: 1e-12 against captum where its rule is exact (Riemann rules at powers of two), 1e-12
between captum and the oracle with the rule rounded as captum rounds it, and 1e-12 between axplain and the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, NeuronIntegratedGradients
from tests.parity.networks import convolutional, grid, quietly, rectified, seeded, smooth, two_inputs
from tests.parity.oracles import Tensors, integrated_gradients, rule, single_precision
from torch import Tensor, nn

import axplain

#: captum's trapezoid weights do not sum to 1 (V1): it is compared in test_wrong_numbers.py
CAPTUM_RULES = {
    "gauss_legendre": "gausslegendre",
    "left": "riemann_left",
    "right": "riemann_right",
    "midpoint": "riemann_middle",
}
X = seeded(5, 4)
PAIR = (seeded(5, 4, seed=1), seeded(5, 2, 3, seed=2))
PER_EXAMPLE = [0, 2, 1, 1, 0]
FLOAT32_RULE = 2e-6


def _close(ours: Any, theirs: Any, atol: float) -> None:
    ours, theirs = (item if isinstance(item, tuple) else (item,) for item in (ours, theirs))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=atol)


def _class(model: nn.Module, target: Any, *extra: Any) -> Callable[..., Tensor]:
    """Return the target per row, for the oracle."""
    columns = torch.tensor(target)

    def select(*x: Tensor) -> Tensor:
        logits: Tensor = model(*x, *extra)
        return logits.gather(1, columns.expand(len(logits))[:, None]).squeeze(1)

    return select


@pytest.mark.parametrize("model", [smooth, rectified])
@pytest.mark.parametrize("n", [2, 4, 16, 64])
@pytest.mark.parametrize("name", ["left", "right", "midpoint"])
def test_riemann_rules_agree_where_captums_rule_is_exact(name: str, n: int, model: Callable[[], Any]) -> None:
    ours = axplain.explain(model(), X, target=1, n_steps=n, quadrature=name, verify=False).attributions
    theirs = quietly(IntegratedGradients(model()).attribute, X, target=1, n_steps=n, method=CAPTUM_RULES[name])
    _close(ours, theirs, 1e-12)


@pytest.mark.parametrize("model", [smooth, rectified])
@pytest.mark.parametrize("n", [3, 5, 50, 200])
@pytest.mark.parametrize("name", CAPTUM_RULES)
def test_every_rule_agrees_up_to_captums_float32_rule(name: str, n: int, model: Callable[[], Any]) -> None:
    network = model()
    ours = axplain.explain(network, X, target=PER_EXAMPLE, n_steps=n, quadrature=name, verify=False).attributions
    theirs = quietly(
        IntegratedGradients(network).attribute, X, target=PER_EXAMPLE, n_steps=n, method=CAPTUM_RULES[name]
    )
    _close(ours, theirs, FLOAT32_RULE)
    function, zero = _class(network, PER_EXAMPLE), torch.zeros_like(X)
    _close(theirs, integrated_gradients(function, (X,), (zero,), single_precision(name, n)), 1e-12)
    _close(ours, integrated_gradients(function, (X,), (zero,), rule(name, n)), 1e-12)


@pytest.mark.parametrize("n", [2, 5, 50])
def test_the_trapezoid_rule_agrees_with_the_textbook(n: int) -> None:
    network = smooth()
    ours = axplain.explain(network, X, target=1, n_steps=n, quadrature="trapezoid", verify=False).attributions
    _close(ours, integrated_gradients(_class(network, 1), (X,), (torch.zeros_like(X),), rule("trapezoid", n)), 1e-12)


BASELINES: dict[str, tuple[Any, Any]] = {
    "nothing": (None, None),
    "integer": (1, 1),
    "number": (-0.5, -0.5),
    "one row": (seeded(1, 4, seed=8), seeded(1, 4, seed=8)),
    "a row per example": (seeded(5, 4, seed=9), seeded(5, 4, seed=9)),
}


@pytest.mark.parametrize("form", BASELINES)
def test_every_form_of_baseline_agrees(form: str) -> None:
    ours, theirs = BASELINES[form]
    explanation = axplain.explain(smooth(), X, target=2, baselines=ours, n_steps=32, quadrature="midpoint")
    _close(
        explanation.attributions,
        quietly(IntegratedGradients(smooth()).attribute, X, theirs, 2, n_steps=32, method="riemann_middle"),
        1e-12,
    )


@pytest.mark.parametrize(
    "target", [2, [0, 1, 2, 1, 0], torch.tensor([2, 0, 1, 0, 2]), (1,), [(0,), (1,), (2,), (1,), (0,)]]
)
def test_every_target_form_agrees(target: Any) -> None:
    ours = axplain.explain(smooth(), X, target=target, n_steps=16, quadrature="midpoint").attributions
    theirs = quietly(IntegratedGradients(smooth()).attribute, X, target=target, n_steps=16, method="riemann_middle")
    _close(ours, theirs, 1e-12)


@pytest.mark.parametrize("target", [(2, 3), [(0, 1), (2, 4), (1, 1), (0, 0), (2, 2)]])
def test_index_tuples_into_several_dimensions_agree(target: Any) -> None:
    ours = axplain.explain(grid(), X, target=target, n_steps=16, quadrature="midpoint").attributions
    theirs = quietly(IntegratedGradients(grid()).attribute, X, target=target, n_steps=16, method="riemann_middle")
    _close(ours, theirs, 1e-12)


@pytest.mark.parametrize(
    "baselines", [None, (0.5, seeded(1, 2, 3, seed=6)), (seeded(5, 4, seed=7), 0)], ids=["nothing", "number", "rows"]
)
def test_tuple_inputs_with_additional_arguments_agree(baselines: Any) -> None:
    extra, model = (seeded(5, 3, seed=3), 1.5), two_inputs()
    ours = axplain.explain(
        model, PAIR, target=PER_EXAMPLE, baselines=baselines, additional_forward_args=extra, n_steps=40
    )
    theirs = quietly(
        IntegratedGradients(model).attribute, PAIR, baselines, PER_EXAMPLE, additional_forward_args=extra, n_steps=40
    )
    _close(ours.attributions, theirs, FLOAT32_RULE)
    start = _start(baselines)
    exact = integrated_gradients(_class(model, PER_EXAMPLE, *extra), PAIR, start, rule("gauss_legendre", 40))
    _close(ours.attributions, exact, 1e-12)


def _start(baselines: Any) -> Tensors:
    items = (0, 0) if baselines is None else baselines
    return tuple(
        item if isinstance(item, Tensor) else torch.full_like(x, float(item))
        for item, x in zip(items, PAIR, strict=True)
    )


@pytest.mark.parametrize("rows", [1, 3, 7, 500])
def test_chunks_agree_whatever_their_size(rows: int) -> None:
    asked: dict[str, Any] = {"target": 0, "n_steps": 16, "quadrature": "midpoint", "verify": False}
    ours = axplain.explain(rectified(), X, batch_size=rows, **asked).attributions
    theirs = IntegratedGradients(rectified())
    chunked = quietly(theirs.attribute, X, target=0, n_steps=16, method="riemann_middle", internal_batch_size=rows)
    _close(ours, chunked, 1e-12)


def test_pictures_agree() -> None:
    pictures, model = seeded(3, 1, 8, 8), convolutional()
    ours = axplain.explain(model, pictures, target=[0, 1, 2], n_steps=32, quadrature="midpoint", verify=False)
    theirs = IntegratedGradients(model)
    _close(
        ours.attributions,
        quietly(theirs.attribute, pictures, target=[0, 1, 2], n_steps=32, method="riemann_middle"),
        1e-12,
    )


def test_the_convergence_delta_has_captums_sign_and_size() -> None:
    model = rectified()
    _, delta = quietly(
        IntegratedGradients(model).attribute,
        X,
        target=1,
        n_steps=4,
        method="riemann_left",
        return_convergence_delta=True,
    )
    with pytest.warns(axplain.AxplainWarning, match="raise n_steps"):
        ours = axplain.explain(model, X, target=1, n_steps=4, quadrature="left")
    assert ours.delta is not None
    assert float(delta.abs().max()) > 0.1, "the comparison needs a coarse rule"
    _close(ours.delta, delta, 1e-12)


@pytest.mark.parametrize("unit", [0, 5])
def test_neuron_integrated_gradients_agree(unit: int) -> None:
    model = smooth()
    theirs = quietly(
        NeuronIntegratedGradients(model, model[1]).attribute, X, unit, 0.5, n_steps=32, method="riemann_middle"
    )
    ours = axplain.explain(model, X, target=axplain.neuron("1", unit), baselines=0.5, n_steps=32, quadrature="midpoint")
    _close(ours.attributions, theirs, 1e-12)


def test_integrated_gradients_of_a_unit_in_a_feature_map_agree() -> None:
    pictures, model = seeded(3, 1, 8, 8), convolutional()
    theirs = quietly(
        NeuronIntegratedGradients(model, model[2]).attribute, pictures, (2, 1, 1), n_steps=32, method="riemann_middle"
    )
    ours = axplain.explain(
        model, pictures, target=axplain.neuron(model[2], (2, 1, 1)), n_steps=32, quadrature="midpoint", verify=False
    )
    _close(ours.attributions, theirs, 1e-12)
