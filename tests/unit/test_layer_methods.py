"""Methods that look at the model along a path of inputs and attribute to a layer, against closed forms."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from tests.unit.seat_models import (
    MODEL,
    ONE,
    SET,
    Halves,
    Recurrent,
    Residual,
    Shared,
    Twins,
    X,
    close,
    made,
    normal,
)
from torch import Tensor, nn

import axplain

AT_LAYERS = ("layer_activation", "internal_influence", "layer_conductance")
ALONG_PATHS = ("internal_influence", "layer_conductance", "neuron_conductance")
AWAY = 0.3


def asked(method: str, **given: Any) -> dict[str, Any]:
    """The arguments of a call at the layer `head` of `Halves`, or at one of its neurons."""
    arguments: dict[str, Any] = {"method": method, "verify": False}
    arguments |= {"neuron": axplain.neuron("head", 2)} if method == "neuron_conductance" else {"layer": "head"}
    arguments |= {} if method == "layer_activation" else {"target": [0, 1, 2], "baselines": AWAY, "n_steps": 8}
    return arguments | given


def smooth() -> Any:
    """Two cuts, `1` and `3`, of a model that a few quadrature nodes are exact for."""
    return made(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)))


class Quadratic(nn.Module):
    """`F = sum_j a_j h_j^2` with `h = W x`: everything on the path is a polynomial."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.a = nn.Linear(4, 3, bias=False), nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.a * self.layer(x).square()).sum(1)
        return out


def test_of_a_polynomial_they_are_known() -> None:
    """With h' = W x' and d = h - h': influence is a (h + h'), conductance a (h^2 - h'^2), both by two nodes exactly."""
    model = made(Quadratic)
    h, away, a = (t.detach() for t in (model.layer(X), model.layer(ONE), model.a))
    arguments: dict[str, Any] = {"baselines": ONE, "n_steps": 2}
    close(axplain.explain(model, X, "layer_activation", layer="layer").attributions, h)
    close(axplain.explain(model, X, "internal_influence", layer="layer", **arguments).attributions, a * (h + away))
    conductance = axplain.explain(model, X, "layer_conductance", layer="layer", **arguments)
    close(conductance.attributions, a * (h.square() - away.square()))
    for j in range(3):
        passed = axplain.explain(model, X, "neuron_conductance", neuron=axplain.neuron("layer", j), **arguments)
        close(passed.attributions, a[j] * (h + away)[:, [j]] * model.layer.weight[j].detach() * (X - ONE))


@pytest.mark.parametrize("layer", ["0", "1", "2", "3"])
def test_conductance_of_a_cut_sums_to_the_difference(layer: str) -> None:
    model = smooth()
    found = axplain.explain(model, X, "layer_conductance", layer=layer, baselines=ONE, target=[0, 1, 2], n_steps=24)
    difference = (model(X) - model(ONE))[range(3), [0, 1, 2]].detach()
    close(found.attributions.sum(1), difference)
    assert found.delta is not None and found.difference is not None and found.notes == {}
    close(found.difference, difference)
    close(found.delta, found.attributions.sum(1) - difference)


def test_conductance_beside_the_rates_by_central_differences() -> None:
    """An oracle that knows no derivative of torch's: differences of the layer and of the tail at the nodes."""
    model, step, steps = smooth(), 1e-5, 6
    nodes = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    wanted = torch.zeros(3, 6, dtype=torch.float64)
    head, tail = model[:2], model[2:]
    with torch.no_grad():
        for node in nodes:
            rate = (head(ONE + (node + step) * (X - ONE)) - head(ONE + (node - step) * (X - ONE))) / (2 * step)
            h = head(ONE + node * (X - ONE))
            units = torch.eye(6, dtype=torch.float64) * step
            gradient = torch.stack([(tail(h + unit) - tail(h - unit))[:, 1] / (2 * step) for unit in units], 1)
            wanted += gradient * rate / steps
    found = axplain.explain(
        model, X, "layer_conductance", layer="1", baselines=ONE, target=1, n_steps=steps, quadrature="midpoint",
    )  # fmt: skip
    close(found.attributions, wanted, atol=1e-8)


@pytest.mark.parametrize("rule", ["gauss_legendre", "left", "right", "midpoint", "trapezoid"])
def test_influence_is_the_mean_gradient_under_every_rule(rule: str) -> None:
    """The gradients themselves from saliency of the tail, the nodes and weights from the rule's definition."""
    model, n = smooth(), 5
    inner = torch.arange(n, dtype=torch.float64)
    gauss, heights = (torch.from_numpy(each) for each in numpy.polynomial.legendre.leggauss(n))
    ends, even = torch.ones(n, dtype=torch.float64), torch.full((n,), 1 / n, dtype=torch.float64)
    ends[[0, -1]] = 0.5
    nodes, weights = {
        "gauss_legendre": ((gauss + 1) / 2, heights / 2),
        "left": (inner / n, even),
        "right": ((inner + 1) / n, even),
        "midpoint": ((inner + 0.5) / n, even),
        "trapezoid": (inner / (n - 1), ends / (n - 1)),
    }[rule]
    wanted = torch.zeros(3, 6, dtype=torch.float64)
    for node, weight in zip(nodes, weights, strict=True):
        h = model[:2](ONE + node * (X - ONE)).detach()
        wanted += weight * axplain.explain(model[2:], h, "saliency", target=2, absolute=False).attributions
    found = axplain.explain(
        model, X, "internal_influence", layer="1", baselines=ONE, target=2, n_steps=n, quadrature=rule
    )
    close(found.attributions, wanted)


@pytest.mark.parametrize("layer", ["0", "3"])
def test_all_neurons_of_a_cut_together_are_integrated_gradients(layer: str) -> None:
    model = smooth()
    given: dict[str, Any] = {"baselines": ONE, "target": 1, "n_steps": 7}
    whole = axplain.explain(model, X, "integrated_gradients", **given).attributions
    width = {"0": 6, "3": 5}[layer]
    each = [
        axplain.explain(model, X, "neuron_conductance", neuron=axplain.neuron(layer, j), **given).attributions
        for j in range(width)
    ]
    close(sum(each), whole)
    assert max(float((part - whole).abs().max()) for part in each) > 1e-3, "none of them is all of it"
    by_slice = axplain.neuron(layer, (slice(None),))
    close(axplain.explain(model, X, "neuron_conductance", neuron=by_slice, **given).attributions, whole)


def test_a_neuron_passes_what_its_conductance_is() -> None:
    """Both name the same part of F(x) - F(x'): summed over the inputs it is the conductance of the unit."""
    model = smooth()
    given: dict[str, Any] = {"baselines": ONE, "target": 1, "n_steps": 7}
    units = axplain.explain(model, X, "layer_conductance", layer="1", **given).attributions
    for j in range(6):
        through = axplain.explain(model, X, "neuron_conductance", neuron=axplain.neuron("1", j), **given)
        close(through.attributions.sum(1), units[:, j])
        assert through.delta is None


def test_of_a_picture_a_neuron_is_a_place_and_slices_are_summed() -> None:
    model = made(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)))
    x = normal(2, 1, 4, 4)
    given: dict[str, Any] = {"baselines": 0.1, "target": 0, "n_steps": 5}
    maps = axplain.explain(model, x, "layer_conductance", layer="1", **given).attributions
    assert maps.shape == (2, 2, 2, 2)
    one = axplain.explain(model, x, "neuron_conductance", neuron=axplain.neuron("1", (1, 0, 1)), **given)
    close(one.attributions.sum((1, 2, 3)), maps[:, 1, 0, 1])
    channel = axplain.neuron("1", (1, slice(None), slice(None)))
    several = axplain.explain(model, x, "neuron_conductance", neuron=channel, **given)
    close(several.attributions.sum((1, 2, 3)), maps[:, 1].sum((1, 2)))


@pytest.mark.parametrize("call", [0, 1, 2])
def test_one_call_of_a_layer_in_front_of_operations_that_write(call: int) -> None:
    """Every call of `Shared.layer` is a cut; its rectifiers and the product write over what the layer gave."""
    model, seat = made(Shared), axplain.seat("layer", call=call)
    h = model.layer(X)
    for k in range(call):
        h = model.layer(torch.relu(h + 0.3 * (k == 1)))
    close(axplain.explain(model, X, "layer_activation", layer=seat).attributions, h.detach())
    given: dict[str, Any] = {"layer": seat, "baselines": ONE, "target": 2, "n_steps": 400}
    found = axplain.explain(model, X, "layer_conductance", **given)
    assert found.delta is not None and float(found.delta.abs().max()) < 5e-3 * float(found.difference.abs().max())  # type: ignore[union-attr]


def test_what_layers_and_calls_hold_is_read_in_sequence() -> None:
    """Nothing is put in their places, so that one may be computed from another; other methods then still refuse it."""
    model = smooth()
    found = axplain.explain(model, X, "layer_activation", layer=["1", "4", "2", axplain.seat("4", of="input")])
    held = model[1](model[0](X)).detach()
    middle = model[2](held).detach()
    expected = {"1": held, "2": middle, "4 input": model[3](middle), "4 output": model(X)}
    assert found.attributions.keys() == expected.keys()
    for name, value in expected.items():
        close(found.attributions[name], value.detach())
    with pytest.raises(axplain.ArgumentError, match="computed from another call or layer"):
        axplain.explain(model, X, "saliency", layer=["1", "4"], target=0)
    shared = made(Shared)
    first, second, third = axplain.explain(shared, X, "layer_activation", layer="layer").attributions
    for call, value in enumerate((first, second, third)):
        seat = axplain.seat("layer", call=call)
        assert torch.equal(axplain.explain(shared, X, "layer_activation", layer=seat).attributions, value)
    close(second, shared.layer(torch.relu(first)).detach())


def test_a_layer_that_is_not_computed_from_x_is_not_read() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed, self.last = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x) + self.fixed(torch.ones(1, 4, dtype=x.dtype))  # type: ignore[no-any-return]

    with pytest.raises(axplain.ArgumentError, match="'fixed' holds no floating tensor that depends on x"):
        axplain.explain(made(Aside), X, "layer_activation", layer=["last", "fixed"])


def test_a_layer_that_runs_three_times_in_a_row_is_refused_as_one() -> None:
    for method in AT_LAYERS[1:]:
        with pytest.raises(axplain.ArgumentError, match=r"computed from another call.*call=0"):
            axplain.explain(made(Shared), X, **asked(method, layer="layer"))
    with pytest.raises(axplain.UnsupportedModel, match=r"neuron: layer 'layer' ran 3 times.*call=0"):
        axplain.explain(made(Shared), X, **asked("neuron_conductance", neuron=axplain.neuron("layer", 0)))
    chosen = axplain.neuron(axplain.seat("layer", call=1), 0)
    found = axplain.explain(made(Shared), X, **asked("neuron_conductance", neuron=chosen))
    assert found.attributions.shape == X.shape


def test_what_a_layer_is_given_by_keyword() -> None:
    model = made(Shared)
    given: dict[str, Any] = {"baselines": ONE, "target": 0, "n_steps": 5}
    seat = axplain.seat("last", of="input")
    shown = axplain.explain(model, X, "layer_activation", layer=seat).attributions
    close(shown * 2, axplain.explain(model, X, "layer_activation", layer="last").attributions)
    close(shown * 2, model(X).detach())
    influence = axplain.explain(model, X, "internal_influence", layer=seat, **given).attributions
    close(influence, torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64).expand(3, 4))


class TwiceApart(nn.Module):
    """One encoder for two inputs: its calls do not feed each other."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.encoder(a)) * torch.tanh(self.encoder(b)))
        return out


def test_calls_side_by_side_are_a_tuple_that_sums_together() -> None:
    model, pair = made(TwiceApart), (X, normal(3, 4, seed=9))
    shown = axplain.explain(model, pair, "layer_activation", layer="encoder").attributions
    close(shown, tuple(model.encoder(x).detach() for x in pair))
    found = axplain.explain(model, pair, "layer_conductance", layer="encoder", baselines=0.1, target=1, n_steps=24)
    away = torch.full_like(X, 0.1)
    close(sum(part.sum(1) for part in found.attributions), (model(*pair) - model(away, away))[:, 1].detach())


def test_layers_side_by_side_are_a_dict_that_sums_together() -> None:
    model = made(Twins)
    given: dict[str, Any] = {"layer": ["left", "right"], "baselines": ONE, "target": 0, "n_steps": 24}
    found = axplain.explain(model, X, "layer_conductance", **given)
    assert list(found.attributions) == ["left", "right"]
    close(sum(part.sum(1) for part in found.attributions.values()), (model(X) - model(ONE))[:, 0].detach())
    shown = axplain.explain(model, X, "layer_activation", layer=["left", "right"]).attributions
    close(shown, {"left": model.left(X).detach(), "right": model.right(X).detach()})


def test_a_layer_that_returns_tuples() -> None:
    model = made(Recurrent)
    found = axplain.explain(model, X, "layer_conductance", layer="core", baselines=ONE, target=0, n_steps=24)
    assert [tuple(part.shape) for part in found.attributions] == [(3, 1, 3)] * 3
    assert not found.attributions[2].any(), "the cell state is not used"
    close(sum(part.flatten(1).sum(1) for part in found.attributions), (model(X) - model(ONE))[:, 0].detach())
    out, (h, c) = model.core(X.unsqueeze(1))
    shown = axplain.explain(model, X, "layer_activation", layer="core").attributions
    close(shown, (out.detach(), h[0].unsqueeze(1).detach(), c[0].unsqueeze(1).detach()))
    item = axplain.explain(model, X, "layer_activation", layer=axplain.seat("core", item=2)).attributions
    close(item, shown[2])


def test_rows_on_another_axis_come_first() -> None:
    """A recurrent layer that puts the sequence first: the batch comes to the front, of a neuron of it, too."""

    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core, self.last = nn.RNN(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.core(x.view(len(x), 2, 2).transpose(0, 1))[0].mean(0))
            return out

    model = made(SequenceFirst)
    seat = axplain.seat("core", item=0)
    values = model.core(X.view(3, 2, 2).transpose(0, 1))[0].detach()
    close(axplain.explain(model, X, "layer_activation", layer=seat).attributions, values.transpose(0, 1))
    found = axplain.explain(model, X, "layer_conductance", layer=seat, baselines=ONE, target=0, n_steps=24)
    close(found.attributions.flatten(1).sum(1), (model(X) - model(ONE))[:, 0].detach())
    asking: dict[str, Any] = {"target": 0, "baselines": ONE, "n_steps": 24}
    neurons = [axplain.neuron(seat, (place, unit)) for place in range(2) for unit in range(3)]
    found_in = [axplain.explain(model, X, "neuron_conductance", neuron=each, **asking).attributions for each in neurons]
    close(sum(found_in), axplain.explain(model, X, "integrated_gradients", **asking).attributions)


def test_where_x_goes_around_the_layer_the_rest_is_not_its() -> None:
    """`out = last(inner(h) * gate + h)`: the conductance of `inner` is that of the product alone."""
    model = made(Residual)
    found = axplain.explain(model, X, "layer_conductance", layer="inner", baselines=ONE, target=1, n_steps=24)
    assert found.delta is None and "does not apply: what the target knows" in found.notes["completeness"]
    around = axplain.explain(model, X, "layer_conductance", layer="first", baselines=ONE, target=1, n_steps=24)
    assert around.delta is not None and float(around.delta.abs().max()) < 1e-12
    weight = model.last.weight[1].detach()

    def rate(node: float) -> Tensor:
        x = (ONE + node * (X - ONE)).detach()

        def inner(x: Tensor) -> Tensor:
            out: Tensor = model.inner(torch.tanh(model.first(x)))
            return out

        gate = torch.sigmoid(torch.tanh(model.first(x)).flip(1))
        moved: Tensor = torch.func.jvp(inner, (x,), (X - ONE,))[1]
        through: Tensor = weight * gate * moved
        return through

    nodes = torch.linspace(0, 1, 2001, dtype=torch.float64)
    close(
        found.attributions, torch.trapezoid(torch.stack([rate(float(a)) for a in nodes]), nodes, dim=0).detach(), 1e-6
    )


@pytest.mark.parametrize("method", ALONG_PATHS)
def test_a_neuron_of_the_layer_itself_or_behind_it_is_a_target(method: str) -> None:
    unit = axplain.neuron("head", 3)
    found = axplain.explain(MODEL, X, **asked(method, target=unit, **_same_neuron(method, 3))).attributions
    h, away = MODEL.head(X).detach(), MODEL.head(torch.full_like(X, AWAY)).detach()
    expected = torch.zeros(3, 6, dtype=torch.float64)
    if method == "internal_influence":
        expected[:, 3] = 1
        close(found, expected)
    elif method == "layer_conductance":
        exact = axplain.explain(MODEL, X, **asked(method, target=unit, n_steps=30)).attributions
        expected[:, 3] = (h - away)[:, 3]
        close(exact, expected, 1e-9)
    else:
        whole = axplain.explain(MODEL, X, "integrated_gradients", target=unit, baselines=AWAY, n_steps=8).attributions
        close(found, whole)
    behind = axplain.explain(MODEL, X, **asked(method, target=axplain.neuron("tail.0", 1)))
    assert bool(behind.attributions.any())


def _same_neuron(method: str, index: int) -> dict[str, Any]:
    return {"neuron": axplain.neuron("head", index)} if method == "neuron_conductance" else {}


@pytest.mark.parametrize("method", [*AT_LAYERS, "neuron_conductance"])
def test_chunks_and_batches_change_nothing(method: str) -> None:
    whole = axplain.explain(MODEL, X, **asked(method))
    for size in (1, 2, 5, 1000):
        small = axplain.explain(MODEL, X, **asked(method, batch_size=size))
        close(small.attributions, whole.attributions)
        assert small.cost == whole.cost
    for i in range(3):
        alone = {} if method == "layer_activation" else {"target": i}
        one = axplain.explain(MODEL, X[i : i + 1], **asked(method, **alone))
        close(one.attributions, whole.attributions[i : i + 1])


@pytest.mark.parametrize("method", [*AT_LAYERS, "neuron_conductance"])
@pytest.mark.parametrize("size", [1, 4, "auto"])
def test_the_price_is_what_is_counted(method: str, size: Any) -> None:
    model, rows = made(Halves), 0
    model.tail[1] = nn.Tanh()  # eight nodes are enough, so that the check has nothing to say
    given = asked(method, batch_size=size, verify=True)

    def count(module: Any, args: Any) -> None:
        nonlocal rows
        rows += len(args[0])

    model.register_forward_pre_hook(count)
    axplain.explain(model, X, **given)  # surveys and measures the model
    rows = 0
    stated = axplain.estimate(model, X, **given)
    assert rows == 0, "known from the first call"
    found = axplain.explain(model, X, **given).cost
    assert rows == found.forward_rows + found.check_rows and found.bound == stated.bound == "exact"
    assert (found.forward_rows, found.backward_rows) == (stated.forward_rows, stated.backward_rows)
    assert found.check_rows <= stated.check_rows
    steps = 1 if method == "layer_activation" else 8
    assert found.forward_rows == 3 * steps and found.backward_rows == (3 * steps if steps > 1 else 0)


@pytest.mark.parametrize("method", ALONG_PATHS)
def test_a_distribution_of_baselines_is_averaged_over(method: str) -> None:
    found = axplain.explain(MODEL, X, **asked(method, baselines=axplain.distribution(SET))).attributions
    each = [axplain.explain(MODEL, X, **asked(method, baselines=row[None])).attributions for row in SET]
    close(found, torch.stack(each).mean(0))


@pytest.mark.parametrize("method", ALONG_PATHS)
def test_arguments_and_baselines_follow_their_examples(method: str) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.halves = made(Halves)

        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            out: Tensor = self.halves(x * gain[:, None])
            return out

    model, gain = Gated(), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    names: dict[str, Any] = {"neuron": axplain.neuron("halves.head", 2)} if "neuron" in method else {}
    names |= {} if "neuron" in method else {"layer": "halves.head"}
    given = asked(method, baselines=SET[:3], **names)
    found = axplain.explain(model, X, additional_forward_args=gain, **given).attributions
    for i in range(3):
        mine = given | {"baselines": SET[i : i + 1], "target": i}
        alone = axplain.explain(model, X[i : i + 1], additional_forward_args=gain[i : i + 1], **mine)
        close(alone.attributions, found[i : i + 1])


@pytest.mark.parametrize(
    "lift",
    [
        name
        for name in axplain.methods()
        if (spec := axplain.describe(name)).kind == "noise" and not spec.requires.module
    ],
)
@pytest.mark.parametrize("method", [*AT_LAYERS, "neuron_conductance"])
def test_noise_is_added_at_the_input(lift: str, method: str) -> None:
    noise = {"mode": lift, "n_samples": 3, "stdev": 0.2}
    found = axplain.explain(MODEL, X, **asked(method, noise=noise, seed=4)).attributions
    inputs: list[Tensor] = []
    handle = MODEL.head.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))
    try:
        axplain.explain(MODEL, X, "input_x_gradient", target=1, noise=noise, batch_size=3, verify=False, seed=4)
    finally:
        handle.remove()
    copies = inputs[-3:]
    terms = torch.stack([axplain.explain(MODEL, copy, **asked(method)).attributions for copy in copies])
    wanted = {"smoothgrad": terms.mean(0), "smoothgrad_sq": terms.square().mean(0), "vargrad": terms.var(0, False)}
    close(found, wanted[lift])


def test_several_targets_are_each_as_alone() -> None:
    given = asked("layer_conductance", target=None)
    given.pop("target")
    each = axplain.explain_targets(MODEL, X, targets=[0, 2], **given)
    for target, found in zip((0, 2), each, strict=True):
        close(found.attributions, axplain.explain(MODEL, X, target=target, **given).attributions)


def test_an_activation_needs_no_output_that_could_be_a_target() -> None:
    """Whatever the model makes of it: a dict of several tensors has no class to be predicted."""

    class Dict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.head(x)
            return {"a": h.round(), "b": h.argmax(1)}

    model = made(Dict)
    found = axplain.explain(model, X, "layer_activation", layer="head")
    close(found.attributions, model.head(X).detach())
    assert found.target == "none" and found.delta is None and found.cost.backward_rows == 0
    found.attributions.fill_(7.0)
    close(axplain.explain(model, X, "layer_activation", layer="head").attributions, model.head(X).detach())


@pytest.mark.parametrize("method", ["layer_conductance", "internal_influence"])
def test_an_answer_is_saved_and_names_its_layer(method: str, tmp_path: Any) -> None:
    found = axplain.explain(MODEL, X, **asked(method))
    loaded = axplain.Explanation.load(found.save(tmp_path / "layer.safetensors"))
    assert torch.equal(loaded.attributions, found.attributions)
    assert loaded.provenance["layer"] == "layer 'head'"
