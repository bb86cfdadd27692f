"""Layers as seats: every method there is the method on the model that begins there, and the rest runs once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.seat_models import (
    MODEL,
    ONE,
    SET,
    Halves,
    Twins,
    X,
    close,
    halves,
    made,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import axplain

METHODS = [name for name in axplain.methods() if axplain.describe(name).seats == ("input", "layer")]
NOISE = [axplain.describe(name) for name in axplain.methods() if axplain.describe(name).kind == "noise"]
LIFTS = [spec.name for spec in NOISE if not spec.requires.module]  # the others put it on parameters
COUNTED = ("saliency", "integrated_gradients", "gradient_shap", "feature_permutation", "input_x_gradient")


def settings(method: str) -> dict[str, Any]:
    more: dict[str, Any] = {"window": 2} if method == "occlusion" else {}
    return more | {"target": [0, 1, 2], "seed": 3}


def baselines_of(method: str) -> Tensor | None:
    return {"none": None, "reference": ONE, "reference_set": SET}[axplain.describe(method).baseline]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_at_a_cut_is_the_method_on_the_tail(method: str) -> None:
    given = baselines_of(method)
    carried = None if given is None else MODEL.head(given).detach()
    found = axplain.explain(MODEL, X, method, layer="head", baselines=given, **settings(method))
    expected = axplain.explain(MODEL.tail, MODEL.head(X).detach(), method, baselines=carried, **settings(method))
    close(found.attributions, expected.attributions)
    assert (found.delta is None) == (expected.delta is None) and "completeness" not in found.notes
    if found.delta is not None:
        close(found.difference, expected.difference)
    small = axplain.explain(MODEL, X, method, layer="head", baselines=given, batch_size=2, **settings(method))
    close(small.attributions, expected.attributions)


@pytest.mark.parametrize("method", METHODS)
def test_the_price_of_a_layer_is_stated(method: str) -> None:
    arguments = {"layer": "head", "baselines": baselines_of(method), **settings(method)}
    found, stated = axplain.explain(MODEL, X, method, **arguments).cost, axplain.estimate(MODEL, X, method, **arguments)
    assert (found.forward_rows, found.backward_rows) <= (stated.forward_rows, stated.backward_rows)
    if method in COUNTED:
        assert (found.forward_rows, found.backward_rows) == (stated.forward_rows, stated.backward_rows)
    assert found.check_rows <= stated.check_rows


@pytest.mark.parametrize("lift", LIFTS)
def test_noise_is_added_at_the_input(lift: str) -> None:
    noise = {"mode": lift, "n_samples": 3, "stdev": 0.2}
    found = axplain.explain(MODEL, X, "input_x_gradient", layer="head", target=1, noise=noise)
    inputs: list[Tensor] = []
    handle = MODEL.head.register_forward_hook(lambda module, args, output: inputs.append(output.detach().clone()))
    try:
        axplain.explain(MODEL, X, "input_x_gradient", target=1, noise=noise, batch_size=3, verify=False)
    finally:
        handle.remove()
    copies = torch.stack(inputs[-3:])
    each = [axplain.explain(MODEL.tail, copy, "input_x_gradient", target=1).attributions for copy in copies]
    terms = torch.stack(each)
    wanted = {"smoothgrad": terms.mean(0), "smoothgrad_sq": terms.square().mean(0), "vargrad": terms.var(0, False)}
    close(found.attributions, wanted[lift])


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the rows that linear layers of some width really multiply."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.addmm.default and args[1].shape[1] == self.width:
            self.rows += len(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["integrated_gradients", "feature_ablation", "deeplift", "shapley_value_sampling"])
def test_what_is_before_the_layer_runs_once(method: str) -> None:
    axplain.explain(MODEL, X, method, layer="head", baselines=ONE, target=[0, 1, 2], batch_size=7)  # surveys the model
    with Counting(width=4) as counting:
        axplain.explain(MODEL, X, method, layer="head", baselines=ONE, target=[0, 1, 2], batch_size=7, verify=False)
    assert counting.rows == len(X) + len(ONE)


def test_baselines_may_be_values_of_the_layer() -> None:
    values = MODEL.head(SET).detach()
    for given, direct in (
        (0.3, 0.3),
        (values[:1], values[:1]),
        (axplain.distribution(values), axplain.distribution(values)),
        (lambda h: h.mean(0, keepdim=True), lambda h: h.mean(0, keepdim=True)),
        ("mean", "mean"),
    ):
        for method in ("integrated_gradients", "kernel_shap"):
            found = axplain.explain(MODEL, X, method, layer="head", baselines=axplain.at_seat(given), target=1)
            expected = axplain.explain(MODEL.tail, MODEL.head(X).detach(), method, baselines=direct, target=1)
            close(found.attributions, expected.attributions)


def test_references_of_each_example_follow_arguments_of_its_own() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.tail = halves()

        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            out: Tensor = self.tail(self.head(x * gain[:, None]))
            return out

    model, gain = made(Gated), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    found = axplain.explain(
        model, X, "gradient_shap", layer="head", baselines=SET, target=1, additional_forward_args=gain
    )
    for i in range(3):
        alone = axplain.explain(
            model, X[i : i + 1], "gradient_shap", layer="head", baselines=SET, target=1,
            additional_forward_args=gain[i : i + 1],
        )  # fmt: skip
        close(found.attributions[i : i + 1], alone.attributions)


class Early(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.side, self.last, self.unused = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
            nn.Linear(4, 4),
        )

    def forward(self, x: Tensor) -> Any:
        out = self.last(torch.tanh(self.head(x)))
        self.side(x)
        return out


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("unused", "never reached"),
        ("side", "does not depend on layer 'side'"),
        ("nose", "one of head, side"),
        (nn.Linear(4, 4), "no part of the model"),
        (7, "one of its modules"),
        ([], "an empty list"),
        (["head", "head"], "came twice"),
        (["head", "last"], "computed from another call or layer"),
        (axplain.seat("head", call=1), r"\(call 1\) is never reached"),
        (axplain.seat("head", of="middle"), '"output" or "input"'),  # type: ignore[arg-type]
        (axplain.seat("head", item=-1), "a whole number from 0"),
    ],
)
def test_a_layer_that_cannot_be_a_seat_is_refused(layer: Any, words: str) -> None:
    model = made(Early)
    with pytest.raises(axplain.ArgumentError, match=words):
        axplain.explain(model, X, "integrated_gradients", layer=layer, target=0)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("rise", {"layer": "head"}, "rise explains the input"),
        ("integrated_gradients", {"baselines": axplain.at_seat(0.0)}, "without a layer"),
        ("saliency", {"layer": "head", "baselines": axplain.at_seat(0.0)}, "saliency uses no baselines"),
        ("feature_ablation", {"layer": "head", "feature_mask": torch.zeros(1, 3).long()}, r"shape \(1, 3\) came"),
        ("occlusion", {"layer": "head", "window": 9}, "window"),
        ("saliency", {"layer": "head", "target": axplain.neuron("head.0", 1)}, "does not depend on layer 'head'"),
    ],
)
def test_arguments_that_do_not_fit_a_layer_are_refused(method: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=words):
        axplain.explain(MODEL, X, method, **{"target": 0, **arguments})


def test_a_plain_callable_has_no_layers() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"a torch.nn.Module as the model"):
        axplain.explain(lambda x: MODEL(x), X, "saliency", layer="head", target=0)


def test_saved_and_loaded_like_any_other(tmp_path: Any) -> None:
    found = axplain.explain(made(Twins), X, "shapley_values", layer=["left", "right"], baselines=ONE, target=0)
    loaded = axplain.Explanation.load(found.save(tmp_path / "layers.safetensors"))
    assert torch.equal(loaded.attributions["right"], found.attributions["right"])
    assert loaded.provenance["layer"] == found.provenance["layer"]
    assert {feature.input for feature in found.top(6)} <= {"x['left']", "x['right']"}


@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_price_of_noise_around_a_layer_is_an_upper_bound(size: int) -> None:
    asked: dict[str, Any] = {
        "method": "integrated_gradients", "layer": "head", "baselines": ONE, "target": 0, "batch_size": size,
        "n_steps": 4, "noise": {"mode": "smoothgrad", "n_samples": 3},
    }  # fmt: skip
    found, stated = axplain.explain(MODEL, X, **asked, verify=False).cost, axplain.estimate(MODEL, X, **asked)
    assert found.forward_rows <= stated.forward_rows and stated.bound == "upper"


@pytest.mark.parametrize("method", ["integrated_gradients", "input_x_gradient", "deeplift", "gradient_shap"])
@pytest.mark.parametrize("target", [1, [0, 1, 2], [2, 2, 0], axplain.neuron("tail.0", 2), lambda out: out[:, 0] * 2])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_the_passes_that_carry_tell_both_ends(method: str, target: Any, size: int) -> None:
    """The residual is against F(x) - F(x') of the whole model, however many targets and references there are."""
    model = made(Halves)
    model.tail[1] = nn.Tanh()
    given: dict[str, Any] = {"layer": "head", "target": target, "batch_size": size, "seed": 1}
    given |= {} if baselines_of(method) is None else {"baselines": axplain.distribution(SET)}
    found = axplain.explain(model, X, method, **given)
    assert (found.difference is None) == (method == "input_x_gradient")
    if found.difference is None:
        return

    def value(x: Tensor, i: int) -> Tensor:
        if callable(target):
            out: Tensor = target(model(x))
            return out
        if not isinstance(target, int | list):
            return model.tail[0](model.head(x))[:, 2]  # type: ignore[no-any-return]
        return model(x)[:, target[i] if isinstance(target, list) else target]  # type: ignore[no-any-return]

    if method != "gradient_shap":  # it draws the references whose mean it is
        wanted = torch.stack([value(X[i : i + 1], i)[0] - value(SET, i).mean() for i in range(3)]).detach()
        close(found.difference, wanted)
    total = found.attributions.sum(1)
    close(found.residuals["completeness"], total - found.difference)


def test_the_check_of_a_layer_needs_one_more_pass() -> None:
    """F(x) and F(x') come with the passes that carry them; one row more says whether the model is deterministic."""
    found = axplain.explain(MODEL, X, layer="head", baselines=ONE, target=[0, 1, 2], batch_size=50)
    assert found.cost.forward_rows == 3 * 50 + 3 + 1 and found.cost.backward_rows == 3 * 50
    assert found.cost.check_rows == 1 and found.delta is not None


def test_a_model_in_training_is_checked_with_two_rows() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()
    with pytest.warns(axplain.AxplainWarning):
        found = axplain.explain(model, X, layer="0", target=0, batch_size=50)
    assert found.cost.check_rows == 2
