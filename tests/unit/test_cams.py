"""Class activation maps against their definitions, written out once more: loops, derivatives, closed forms."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import axplain
from axplain_plugins.cam import formulas

GRADIENTS = ("gradcam", "gradcam_plus_plus", "hirescam", "layercam", "xgradcam")
TARGETED = (*GRADIENTS, "scorecam", "ablationcam", "finercam")
MAPS = (*TARGETED, "eigencam")
TARGET = [0, 2, 1]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def settled(model: nn.Module, seed: int = 7) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.double().eval()


def network(head: nn.Module | None = None, classes: int = 4) -> nn.Sequential:
    """Two convolutions and a head; the layer is "3", of 5 channels at 6 x 4 places."""
    head = head or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes))
    body = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU()]
    made = settled(nn.Sequential(*body, head))
    assert isinstance(made, nn.Sequential)
    return made


MODEL, X = network(), seeded(3, 2, 16, 12)
#: a head in which places of one channel have gradients of their own
FLAT = network(nn.Sequential(nn.Flatten(), nn.Linear(5 * 24, 7), nn.Tanh(), nn.Linear(7, 4)))


def explain(method: str, model: nn.Module = MODEL, x: Any = X, layer: Any = "4", **given: Any) -> Any:
    target: dict[str, Any] = {} if method == "eigencam" else {"target": TARGET}
    return axplain.explain(model, x, method, layer=layer, **(target | given))


def signed(method: str, model: nn.Module = MODEL, **given: Any) -> Tensor:
    found: Tensor = explain(method, model, **{"relu": False, "upsample": False, **given}).attributions
    return found


def held_and_gradient(model: nn.Sequential, target: list[int] | None = None) -> tuple[Tensor, Tensor]:
    held = model[:5](X).detach().requires_grad_()
    value = model[5](held)[torch.arange(3), target or TARGET].sum()
    return held.detach(), torch.autograd.grad(value, held)[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "xgradcam"])
def test_behind_global_average_pooling_the_map_is_the_class_activation_map(method: str) -> None:
    """Zhou et al. 2016: the weights of the class on the channels; summed over space, the output without its bias."""
    held, _ = held_and_gradient(MODEL)
    weight, bias = MODEL[5][2].weight[TARGET], MODEL[5][2].bias[TARGET]  # type: ignore[index]
    classic = torch.einsum("bc,bchw->bhw", weight, held).unsqueeze(1)
    found = signed(method)
    if method != "xgradcam":
        close(found, classic / 24)
    close(found.flatten(1).sum(1), (MODEL(X)[torch.arange(3), TARGET] - bias))


def test_hirescam_sums_to_the_output_of_a_linear_head_without_its_bias() -> None:
    model = network(nn.Sequential(nn.Flatten(), nn.Linear(5 * 24, 4)))
    found = signed("hirescam", model).flatten(1).sum(1)
    close(found, model(X)[torch.arange(3), TARGET] - model[5][1].bias[TARGET])  # type: ignore[index]
    assert not torch.allclose(signed("gradcam", model).flatten(1).sum(1), found, rtol=0.05)


def by_loops(method: str, held: Tensor, gradient: Tensor) -> Tensor:
    """The papers' sums, place by place."""
    rows, channels, height, width = held.shape
    found = torch.zeros(rows, 1, height, width, dtype=torch.float64)
    places = [(i, j) for i in range(height) for j in range(width)]
    for b in range(rows):
        for k in range(channels):
            a, g = held[b, k], gradient[b, k]
            total = sum(float(a[p]) for p in places)
            if method == "gradcam":
                weights = dict.fromkeys(places, sum(float(g[p]) for p in places) / len(places))
            elif method == "gradcam_plus_plus":
                # equation 19 of the paper, the powers of the gradient written out
                alpha = {p: float(g[p]) ** 2 / (2 * float(g[p]) ** 2 + total * float(g[p]) ** 3) for p in places}
                weights = dict.fromkeys(places, sum(alpha[p] * max(float(g[p]), 0.0) for p in places))
            elif method == "hirescam":
                weights = {p: float(g[p]) for p in places}
            elif method == "layercam":
                weights = {p: max(float(g[p]), 0.0) for p in places}
            else:
                share = sum(float(a[p]) / total * float(g[p]) for p in places) if total else 0.0
                weights = dict.fromkeys(places, share)
            for p in places:
                found[b, 0, p[0], p[1]] += weights[p] * a[p]
    return found


@pytest.mark.parametrize("method", GRADIENTS)
@pytest.mark.parametrize("model", [MODEL, FLAT], ids=["pooled", "flat"])
def test_maps_of_gradients_are_the_sums_of_their_papers(method: str, model: nn.Sequential) -> None:
    held, gradient = held_and_gradient(model)
    expected = by_loops(method, held, gradient)
    assert float(expected.abs().max()) > 1e-3
    close(signed(method, model), expected)
    close(formulas.FORMULAS[method](held, gradient), expected)


def test_the_weights_of_grad_cam_plus_plus_are_those_of_derivatives_of_exp() -> None:
    """Equations 10 to 13: second and third derivatives of exp(F), by autograd, along each place."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    model = network(head)
    held, _ = held_and_gradient(model)
    leaf = held[:1].clone().requires_grad_()
    score = model[5](leaf)[0, TARGET[0]].exp()
    (first,) = torch.autograd.grad(score, leaf, create_graph=True)
    expected = torch.zeros(1, 1, 6, 4, dtype=torch.float64)
    for k in range(5):
        weight = 0.0
        for i in range(6):
            for j in range(4):
                (second,) = torch.autograd.grad(first[0, k, i, j], leaf, create_graph=True)
                (third,) = torch.autograd.grad(second[0, k, i, j], leaf, retain_graph=True)
                one, two, three = (float(each[0, k, i, j].detach()) for each in (first, second, third))
                weight += two / (2 * two + float(held[0, k].sum()) * three) * max(one, 0.0)
        expected[0, 0] += weight * held[0, k]
    close(signed("gradcam_plus_plus", model)[:1] * float(score.detach()), expected)


def test_eigencam_is_the_projection_on_the_first_eigenvector() -> None:
    held, _ = held_and_gradient(MODEL)
    for i, found in enumerate(signed("eigencam")):
        matrix = held[i].flatten(1).T.numpy()
        values, vectors = numpy.linalg.eigh(matrix.T @ matrix)
        projected = torch.from_numpy(matrix @ vectors[:, values.argmax()]).view(1, 6, 4)
        close(found, projected * projected.sum().sign())
        assert float(found.min()) >= 0  # what is rectified has a first component of one sign


def test_scorecam_by_one_pass_a_channel() -> None:
    held, _ = held_and_gradient(MODEL)
    for i, found in enumerate(signed("scorecam")):
        scores, alive = [], [k for k in range(5) if bool(held[i, k].any())]
        assert len(alive) == (5 if i == 0 else 4)
        for k in alive:
            mask = functional.interpolate(held[i, k][None, None], size=(16, 12), mode="bilinear")
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            scores.append(float(MODEL(X[i : i + 1] * mask)[0, TARGET[i]].detach()))
        weight = numpy.exp(numpy.array(scores)) / numpy.exp(numpy.array(scores)).sum()
        close(found[0], torch.einsum("k,khw->hw", torch.from_numpy(weight), held[i, alive]))


def test_scorecam_mixes_with_its_baseline_and_averages_over_a_set() -> None:
    grey = signed("scorecam", baselines=0.5)
    assert not torch.allclose(grey, signed("scorecam"), rtol=1e-3)
    rows = seeded(2, 2, 16, 12, seed=4)
    both = signed("scorecam", baselines=axplain.distribution(rows))
    each = [signed("scorecam", baselines=row.unsqueeze(0)) for row in rows]
    close(both, (each[0] + each[1]) / 2)


def test_channels_that_are_flat_let_nothing_through_and_weigh_nothing() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last, self.keep = nn.Conv2d(1, 3, 3), nn.Linear(3, 2), nn.Identity()

        def forward(self, x: Tensor) -> Any:
            maps = self.conv(x) * torch.tensor([1.0, 0.0, 0.0]).view(-1, 1, 1)
            held = self.keep(maps + torch.tensor([0.0, 5.0, 0.0]).view(-1, 1, 1))
            return self.last(held.mean((2, 3)))

    model, x = settled(Partly()), seeded(2, 1, 6, 6)
    found = axplain.explain(model, x, "scorecam", layer="keep", target=0, relu=False, upsample=False).attributions
    close(found, model.conv(x)[:, :1].detach())  # type: ignore[operator]
    flat = torch.full((1, 3, 2, 2), 4.0)
    assert torch.equal(formulas.scorecam(flat, torch.full((1, 3), -torch.inf)), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("model", [MODEL, FLAT], ids=["pooled", "flat"])
def test_ablationcam_by_one_pass_a_channel(model: nn.Sequential) -> None:
    held, _ = held_and_gradient(model)
    expected = torch.zeros(3, 1, 6, 4, dtype=torch.float64)
    for i in range(3):
        clean = float(model[5](held[i : i + 1])[0, TARGET[i]].detach())
        for k in range(5):
            without = held[i : i + 1].clone()
            without[:, k] = 0
            drop = clean - float(model[5](without)[0, TARGET[i]].detach())
            expected[i, 0] += drop / abs(clean) * held[i, k]
    close(signed("ablationcam", model), expected)


def test_ablationcam_keeps_its_sign_where_the_value_is_negative_and_refuses_zero() -> None:
    lower = network()
    lower[5][2].bias.data -= 100.0  # type: ignore[index]
    assert bool((lower(X) < 0).all())
    size = [model(X).detach()[torch.arange(3), TARGET].abs().view(3, 1, 1, 1) for model in (lower, MODEL)]
    close(signed("ablationcam", lower) * size[0], signed("ablationcam") * size[1])
    with pytest.raises(axplain.ArgumentError, match="target: its value is 0 for example 0"):
        axplain.explain(lower, X, "ablationcam", layer="4", target=lambda output: output[:, 0] * 0)


def test_ablationcam_does_not_run_what_is_before_the_layer_again() -> None:
    class Rows(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution" in str(function) and args[1].shape == MODEL[0].weight.shape:
                rows.append(len(args[0]))
            return function(*args, **(kwargs or {}))

    explain("ablationcam")  # surveys the layer
    rows: list[int] = []
    with Rows():  # type: ignore[no-untyped-call]
        found = explain("ablationcam")
    assert rows == [3] and found.cost.forward_rows == 3 * (5 + 2)


@pytest.mark.parametrize("base", GRADIENTS)
def test_finercam_is_the_map_of_a_difference(base: str) -> None:
    similar = axplain.explain(MODEL, X, "finercam", layer="4", target=1, n_similar=2, base=base).notes[
        "similar classes"
    ]
    outputs = MODEL(X).detach()
    for i, row in enumerate(similar):
        others = sorted((abs(float(outputs[i, d] - outputs[i, 1])), d) for d in (0, 2, 3))
        assert row == [d for _, d in others[:2]]

        def contrast(output: Tensor, row: list[int] = row) -> Tensor:
            return output[:, 1] - 0.6 * (output[:, row[0]] + output[:, row[1]]) / 2

        given: dict[str, Any] = {"layer": "4", "relu": False, "upsample": False}
        found = axplain.explain(MODEL, X, "finercam", target=1, n_similar=2, base=base, strength=0.6, **given)
        expected = axplain.explain(MODEL, X[i : i + 1], base, target=contrast, **given)
        close(found.attributions[i : i + 1], expected.attributions)


def test_finercam_with_given_classes_and_with_none() -> None:
    alone = signed("finercam", strength=0.0)
    close(alone, signed("gradcam"))
    one = axplain.explain(MODEL, X, "finercam", layer="4", target=1, similar=3, relu=False).attributions
    two = axplain.explain(MODEL, X, "finercam", layer="4", target=3, similar=(1,), relu=False).attributions
    close(one, -two)
    assert len(explain("finercam", n_similar=50).notes["similar classes"][0]) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": lambda output: output[:, 0]}, "target: .*callable.*finercam compares classes"),
        ({"target": 1, "similar": (1, 2)}, r"similar: \[1, 2\] came; expected classes other than the target"),
        ({"target": 1, "similar": (2, 9)}, r"similar: .*classes from 0 to 3"),
        ({"target": 9}, "target: 9 came"),
    ],
)
def test_finercam_refuses_what_it_cannot_compare(given: dict[str, Any], message: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=message):
        axplain.explain(MODEL, X, "finercam", layer="4", **given)
    with pytest.raises(axplain.ArgumentError, match=r"the model returns \(1,\) per example; expected several classes"):
        axplain.explain(network(classes=1), X, "finercam", layer="4", target=0)


def test_guided_gradcam_is_the_product_of_both() -> None:
    found = explain("guided_gradcam")
    guided = axplain.explain(MODEL, X, "guided_backprop", target=TARGET).attributions
    close(found.attributions, guided * explain("gradcam").attributions)
    assert found.attributions.shape == X.shape and (found.cost.forward_rows, found.cost.backward_rows) == (6, 6)


def test_guided_gradcam_of_several_inputs_stretches_the_map_over_each() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def forward(self, left: Tensor, right: Tensor) -> Any:
            return self.model(left + functional.avg_pool2d(right, 2))

    pair, large = Pair().eval(), seeded(3, 2, 32, 24, seed=3)
    found = axplain.explain(pair, (X, large), "guided_gradcam", layer="model.4", target=TARGET)
    assert [tensor.shape for tensor in found.attributions] == [X.shape, large.shape]
    named = axplain.explain(pair, {"left": X, "right": large}, "guided_gradcam", layer="model.4", target=TARGET)
    assert list(named.attributions) == ["left", "right"]
    close(named.attributions["right"], found.attributions[1])
    small = axplain.explain(pair, (X, large), "gradcam", layer="model.4", target=TARGET, upsample=False).attributions
    guided = axplain.explain(pair, (X, large), "guided_backprop", target=TARGET).attributions
    for part, plain in zip(found.attributions, guided, strict=True):
        size = tuple(part.shape[2:])
        close(part, plain * functional.interpolate(small, size=size, mode="bilinear"))


@pytest.mark.parametrize("method", MAPS)
def test_relu_and_upsampling_are_those_of_torch(method: str) -> None:
    small = signed(method)
    assert small.shape == (3, 1, 6, 4)
    whole = explain(method, relu=True).attributions
    assert whole.shape == (3, 1, 16, 12)
    close(whole, functional.interpolate(small.clamp(min=0), size=(16, 12), mode="bilinear", align_corners=False))
    free = explain(method, relu=False).attributions
    close(free, functional.interpolate(small, size=(16, 12), mode="bilinear", align_corners=False))


def test_maps_have_both_signs_where_they_may() -> None:
    for method in ("gradcam", "hirescam", "xgradcam"):
        found = signed(method, FLAT)
        assert float(found.min()) < 0 < float(found.max())
        assert float(explain(method, FLAT).attributions.min()) == 0


@pytest.mark.parametrize("method", MAPS)
@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes_of_space(method: str, axes: int) -> None:
    conv, pool = (nn.Conv1d, nn.AdaptiveAvgPool1d) if axes == 1 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    model = settled(nn.Sequential(conv(2, 3, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(3, 4)))
    x = seeded(2, 2, *[7, 6, 5][:axes])
    target: dict[str, Any] = {} if method == "eigencam" else {"target": [1, 3]}
    found = axplain.explain(model, x, method, **target)
    assert found.attributions.shape == (2, 1, *[7, 6, 5][:axes]) and found.provenance["layer"] == "layer '1'"
    small = axplain.explain(model, x, method, upsample=False, relu=False, **target).attributions
    if method == "gradcam":
        weight = model[4].weight[[1, 3]] / small[0].numel()  # type: ignore[index]
        close(small, torch.einsum("bc,bcl->bl", weight, model[:2](x).flatten(2)).view_as(small))  # type: ignore[index]


@pytest.mark.parametrize("method", [*MAPS, "guided_gradcam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_come_back_as_they_went_in(method: str, dtype: torch.dtype) -> None:
    exact = explain(method).attributions
    model = network().to(dtype)
    found = explain(method, model, X.to(dtype)).attributions
    assert found.dtype == dtype
    within = 1e-5 if dtype == torch.float32 else 0.2
    if dtype == torch.float32 or method != "finercam":  # rounding may choose other classes
        assert float((found - exact).abs().max()) < within * float(exact.abs().max())


@pytest.mark.parametrize("method", [*MAPS, "guided_gradcam"])
def test_a_batch_is_its_examples_and_nothing_of_the_model_changes(method: str) -> None:
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    state = torch.get_rng_state()
    found = explain(method)
    for i in range(3):
        target: dict[str, Any] = {} if method == "eigencam" else {"target": TARGET[i]}
        alone = axplain.explain(MODEL, X[i : i + 1], method, layer="4", **target).attributions
        close(found.attributions[i : i + 1], alone)
    close(explain(method, batch_size=2).attributions, found.attributions)
    assert not found.attributions.requires_grad and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in MODEL.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in MODEL.parameters())


@pytest.mark.parametrize("method", ["gradcam", "scorecam", "finercam", "guided_gradcam"])
def test_noise_around_a_map_is_the_mean_of_maps(method: str) -> None:
    still = explain(method, noise={"mode": "smoothgrad", "n_samples": 3, "stdev": 0.0}).attributions
    close(still, explain(method).attributions)
    noisy = explain(method, noise={"mode": "smoothgrad", "n_samples": 3, "stdev": 0.3}).attributions
    assert noisy.shape == still.shape and not torch.allclose(noisy, still, rtol=1e-2)


def test_the_price_is_told_beforehand() -> None:
    for method in ("scorecam", "ablationcam", "guided_gradcam", "gradcam"):
        paid, price = explain(method).cost, axplain.estimate(MODEL, X, method, layer="4", target=TARGET)
        assert (paid.forward_rows, paid.backward_rows) == (price.forward_rows, price.backward_rows), method
    assert axplain.estimate(MODEL, X, "scorecam", layer="4").forward_rows == 3 * (5 + 1)
    assert axplain.explain(MODEL, X, "ablationcam", layer="4").cost.forward_rows == 3 * (5 + 1)  # F(x) is known


def test_several_targets_get_a_map_each() -> None:
    for method in ("gradcam", "ablationcam", "finercam"):
        found = axplain.explain_targets(MODEL, X, method, targets=[0, 3], layer="4")
        for answer, target in zip(found, (0, 3), strict=True):
            close(answer.attributions, axplain.explain(MODEL, X, method, target=target, layer="4").attributions)


def test_eigencam_takes_no_target() -> None:
    with pytest.raises(axplain.ArgumentError, match="target: 1 came; expected nothing: eigencam explains no target"):
        axplain.explain(MODEL, X, "eigencam", target=1)
    assert explain("eigencam").target == "none"
