"""Layers as seats: every method there is the method on the model that begins there, and the rest runs once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import axplain

METHODS = [name for name in axplain.methods() if axplain.describe(name).seats == ("input", "layer")]
LIFTS = [name for name in axplain.methods() if axplain.describe(name).kind == "noise"]
COUNTED = ("saliency", "integrated_gradients", "gradient_shap", "feature_permutation", "input_x_gradient")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(make: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make().double().eval()


def halves() -> tuple[nn.Sequential, nn.Sequential]:
    head = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    tail = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return head, tail


class Halves(nn.Module):
    """A model that is cut in two by its layer `head`."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = halves()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tail(self.head(x))
        return out


MODEL = made(Halves)
X, ONE, SET = normal(3, 4), normal(1, 4, seed=2), normal(5, 4, seed=3)


def settings(method: str) -> dict[str, Any]:
    more: dict[str, Any] = {"window": 2} if method == "occlusion" else {}
    return more | {"target": [0, 1, 2], "seed": 3}


def baselines_of(method: str) -> Tensor | None:
    return {"none": None, "reference": ONE, "reference_set": SET}[axplain.describe(method).baseline]


def close(found: Any, expected: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=atol)


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


class Residual(nn.Module):
    """The input goes around the layer `inner`, by a sum and by a factor that is computed before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        gate = torch.sigmoid(h.flip(1)) + h.shape[0] * 0
        out: Tensor = self.last(self.inner(h) * gate + h)
        return out


def test_where_x_goes_around_a_layer_the_rest_stays_and_completeness_does_not_apply() -> None:
    model = made(Residual)
    h = torch.tanh(model.first(X)).detach()

    def tail(values: Tensor, other: Tensor) -> Tensor:
        out: Tensor = model.last(values * torch.sigmoid(other.flip(1)) + other)
        return out

    seat, away = model.inner(h).detach(), model.inner(torch.tanh(model.first(ONE))).detach()
    for method in ("integrated_gradients", "feature_ablation", "kernel_shap"):
        found = axplain.explain(model, X, method, layer="inner", baselines=ONE, target=1)
        expected = axplain.explain(tail, seat, method, baselines=away, target=1, additional_forward_args=h)
        close(found.attributions, expected.attributions)
        assert found.delta is None
        wanted = axplain.describe(method).claim("completeness") is not None
        assert ("does not apply" in str(found.notes.get("completeness"))) == wanted


class Shared(nn.Module):
    """Runs one layer three times, writes over its output, and calls a layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.relu, self.last = nn.Linear(4, 4), nn.ReLU(inplace=True), Scaled()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.layer(x))
        h = self.relu(self.layer(h) + 0.3)
        out: Tensor = self.last(scale=2.0, h=self.layer(h).mul_(1.5))
        return out


class Scaled(nn.Module):
    def forward(self, h: Tensor, scale: float) -> Tensor:
        return h * scale


def test_one_of_several_calls_in_front_of_operations_that_write() -> None:
    model = made(Shared)
    for call in range(3):
        seat = axplain.seat(model.layer, call=call)
        found = axplain.explain(model, X, "integrated_gradients", layer=seat, baselines=ONE, target=2, n_steps=200)
        assert found.delta is not None and float(found.delta.abs().max()) < 1e-2
        clean, absent = (rows(model, call, x) for x in (X, ONE))
        expected = axplain.explain(
            lambda h, call=call: behind(model, call, h), clean, "integrated_gradients", baselines=absent, target=2,
            n_steps=200,
        )  # fmt: skip
        close(found.attributions, expected.attributions)


def rows(model: Any, call: int, x: Tensor) -> Tensor:
    h: Tensor = model.layer(x)
    for k in range(call):
        h = model.layer(torch.relu(h + 0.3 * (k == 1)))
    return h.detach()


def behind(model: Any, call: int, h: Tensor) -> Tensor:
    for k in range(call, 2):
        h = model.layer(torch.relu(h + 0.3 * (k == 1)))
    return h * 1.5 * 2.0


def test_the_input_of_a_layer_given_by_keyword() -> None:
    model = made(Shared)
    found = axplain.explain(model, X, "input_x_gradient", layer=axplain.seat("last", of="input"), target=0)
    close(found.attributions[:, 0], model(X)[:, 0].detach())
    assert not found.attributions[:, 1:].any()


def test_calls_that_feed_each_other_are_refused_together() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"computed from another call.*call=0"):
        axplain.explain(made(Shared), X, "saliency", layer="layer", target=0)


class Words(nn.Module):
    """Two embeddings, added, then attention."""

    def __init__(self, first: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(5, 8)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=first)
        self.last, self.first = nn.Linear(8, 3), first

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids) + self.places(torch.arange(ids.shape[1]).expand_as(ids))
        h = self.body(h if self.first else h.transpose(0, 1))
        out: Tensor = self.last(h.mean(1 if self.first else 0))
        return out


IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def test_below_an_embedding_token_ids_are_explained_by_gradients() -> None:
    model = made(Words)
    found = axplain.explain(model, IDS, "integrated_gradients", layer="words", baselines=0, target=1)
    assert found.attributions.shape == (2, 5, 8) and found.attributions.dtype == torch.float64
    assert found.delta is not None and float(found.delta.abs().max()) < 1e-2 * float(found.difference.abs().max())  # type: ignore[union-attr]
    groups = torch.arange(5)[None, :, None]
    shapley = axplain.explain(model, IDS, "shapley_values", layer="words", baselines=0, target=1, feature_mask=groups)
    at_input = axplain.explain(model, IDS, "shapley_values", baselines=0, target=1)
    close(shapley.attributions[..., 0], at_input.attributions.double(), atol=1e-6)  # ids get float32


def test_rows_may_lie_on_another_axis() -> None:
    """A layer that puts the sequence first gets attributions with the batch first."""
    batch_first, sequence_first = made(Words), made(lambda: Words(first=False))
    for method in ("integrated_gradients", "deeplift"):
        one = axplain.explain(batch_first, IDS, method, layer="body", baselines=0, target=1)
        two = axplain.explain(sequence_first, IDS, method, layer="body", baselines=0, target=1)
        assert two.attributions.shape == (2, 5, 8)
        close(two.attributions, one.attributions)


class Twins(nn.Module):
    """One encoder for two inputs, side by side, and two layers that feed the same sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.left(x)) * torch.tanh(self.right(x)))
        return out


def test_layers_side_by_side_are_one_seat() -> None:
    model = made(Twins)
    found = axplain.explain(model, X, "shapley_values", layer=["left", "right"], baselines=ONE, target=0)
    assert list(found.attributions) == ["left", "right"]
    assert found.delta is not None and float(found.delta.abs().max()) < 1e-12
    expected = axplain.explain(
        lambda a, b: model.last(torch.tanh(a) * torch.tanh(b)), (model.left(X).detach(), model.right(X).detach()),
        "shapley_values", baselines=(model.left(ONE).detach(), model.right(ONE).detach()), target=0,
    )  # fmt: skip
    close(found.attributions["left"], expected.attributions[0])
    close(found.attributions["right"], expected.attributions[1])
    assert found.provenance["layer"] == "layer 'left', layer 'right'"


class Recurrent(nn.Module):
    """A layer that returns a tuple of tuples, rows on the second axis of some."""

    def __init__(self) -> None:
        super().__init__()
        self.core, self.last = nn.LSTM(4, 3, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, (h, _) = self.core(x.unsqueeze(1))
        got: Tensor = self.last(torch.cat([out[:, -1], h[0]], 1))
        return got


def test_a_tuple_is_explained_whole_or_by_item() -> None:
    model = made(Recurrent)
    whole = axplain.explain(model, X, "integrated_gradients", layer="core", baselines=ONE, target=0)
    assert [tuple(part.shape) for part in whole.attributions] == [(3, 1, 3), (3, 1, 3), (3, 1, 3)]
    assert whole.delta is not None and float(whole.delta.abs().max()) < 1e-12
    assert not whole.attributions[2].any(), "the cell state is not used"
    one = axplain.explain(model, X, "integrated_gradients", layer=axplain.seat("core", item=0), target=0)
    assert one.delta is None and "does not apply" in one.notes["completeness"], "the hidden state goes around it"
    with pytest.raises(axplain.ArgumentError, match="item=3 came and layer 'core' has 3 tensors"):
        axplain.explain(model, X, "saliency", layer=axplain.seat("core", item=3), target=0)


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


class Moody(nn.Module):
    """Takes another way before the layer where the first number is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.reads = False

    def forward(self, x: Tensor) -> Tensor:
        if self.reads and bool((x[:, 0] < 0).any()):
            x = torch.tanh(x)
        h = Opaque.apply(self.first(x)) if not self.reads else self.first(x)  # type: ignore[no-untyped-call]
        out: Tensor = self.last(torch.tanh(self.layer(h)) + h)
        return out


class Opaque(torch.autograd.Function):
    """Code that no mode sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 2


@pytest.mark.parametrize("reads", [True, False])
def test_where_no_trace_can_be_trusted_every_pass_runs_in_full(reads: bool) -> None:
    model = made(Moody)
    model.reads = reads
    found = axplain.explain(model, X, "integrated_gradients", layer="layer", baselines=0.0, target=0)
    for i in range(3):
        x = X[i : i + 1]
        moved = torch.tanh(x) if reads and bool((X[:, 0] < 0).any()) else x
        h = (model.first(moved) * (1 if reads else 2)).detach()
        away = (model.first(torch.zeros(1, 4, dtype=torch.float64)) * (1 if reads else 2)).detach()
        expected = axplain.explain(
            lambda s, h: model.last(torch.tanh(s) + h), model.layer(h).detach(), "integrated_gradients",
            baselines=model.layer(away).detach(), target=0, additional_forward_args=(h,),
        )  # fmt: skip
        close(found.attributions[i : i + 1], expected.attributions)


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


def test_a_neuron_behind_the_layer_is_a_target() -> None:
    found = axplain.explain(MODEL, X, "input_x_gradient", layer="head", target=axplain.neuron("tail.0", 2))
    weight = MODEL.tail[0].weight[2].detach()
    close(found.attributions, weight * MODEL.head(X).detach())


def test_saved_and_loaded_like_any_other(tmp_path: Any) -> None:
    found = axplain.explain(made(Twins), X, "shapley_values", layer=["left", "right"], baselines=ONE, target=0)
    loaded = axplain.Explanation.load(found.save(tmp_path / "layers.safetensors"))
    assert torch.equal(loaded.attributions["right"], found.attributions["right"])
    assert loaded.provenance["layer"] == found.provenance["layer"]
    assert {feature.input for feature in found.top(6)} <= {"x['left']", "x['right']"}


class Switched(nn.Module):
    """Uses more of what is before the layer once a switch is on, and may hand it out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.multiplies = self.returns = False

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.first(x))
        ramp = torch.arange(4, dtype=x.dtype).mul(0.1)
        out = torch.tanh(self.layer(h)) + (ramp + 0.1)
        out = self.last(out * h if self.multiplies else out)
        return {"logits": out, "hidden": h} if self.returns else out


@pytest.mark.parametrize("switch", ["multiplies", "returns"])
def test_a_model_that_changes_between_calls_is_explained_as_it_is(switch: str) -> None:
    model = made(Switched)
    first = axplain.explain(model, X, "integrated_gradients", layer="layer", target=0, batch_size=4)
    setattr(model, switch, True)
    found = axplain.explain(model, X, "integrated_gradients", layer="layer", target=0, batch_size=4)
    h = torch.tanh(model.first(X)).detach()
    away = torch.tanh(model.first(torch.zeros(1, 4, dtype=torch.float64))).detach()

    def tail(s: Tensor, h: Tensor) -> Tensor:
        shifted = torch.tanh(s) + torch.arange(4) * 0.1 + 0.1
        out: Tensor = model.last(shifted * h if switch == "multiplies" else shifted)
        return out

    expected = axplain.explain(
        tail, model.layer(h).detach(), "integrated_gradients", baselines=model.layer(away).detach(),
        target=0, additional_forward_args=h,
    )  # fmt: skip
    close(found.attributions, expected.attributions)
    assert torch.allclose(found.attributions, first.attributions) == (switch == "returns")


def test_two_functions_of_one_name_are_not_taken_for_one_target() -> None:
    model = made(Switched)
    model.returns = True

    def target(name: str) -> Callable[[Any], Tensor]:
        return lambda raw: raw[name][:, 0]

    inside = axplain.explain(model, X, "integrated_gradients", layer="first", target=target("hidden"))
    assert inside.delta is not None
    with pytest.raises(axplain.ArgumentError, match="does not depend on layer 'layer'"):
        axplain.explain(model, X, "integrated_gradients", layer="layer", target=target("hidden"))
    assert axplain.explain(model, X, "integrated_gradients", layer="layer", target=target("logits")).delta is not None


def test_a_neuron_of_one_call_of_an_input_or_of_an_item() -> None:
    model = made(Shared)
    for call in range(3):
        unit = axplain.neuron(axplain.seat("layer", call=call), 2)
        found = axplain.explain(model, X, "input_x_gradient", target=unit)
        expected = axplain.explain(lambda x, call=call: unit_of(model, call, x), X, "input_x_gradient")
        close(found.attributions, expected.attributions)
        assert found.target == f"neuron layer call {call}[2]"
    with pytest.raises(axplain.UnsupportedModel, match=r"ran 3 times.*axplain.seat\(layer, call=0\)"):
        axplain.explain(model, X, "saliency", target=axplain.neuron("layer", 2))
    given = axplain.explain(model, X, "saliency", target=axplain.neuron(axplain.seat("last", of="input"), 1))
    logit = axplain.explain(model, X, "saliency", target=1)
    close(given.attributions * 2, logit.attributions)
    recurrent = made(Recurrent)
    first = axplain.explain(recurrent, X, "saliency", target=axplain.neuron(axplain.seat("core", item=0), (0, 2)))
    output = axplain.explain(recurrent, X, "saliency", target=axplain.neuron("core", (0, 2)))
    close(first.attributions, output.attributions)
    with pytest.raises(axplain.ArgumentError, match="item=5 came and layer 'core' has 3 tensors"):
        axplain.explain(recurrent, X, "saliency", target=axplain.neuron(axplain.seat("core", item=5), 0))


def unit_of(model: Any, call: int, x: Tensor) -> Tensor:
    h: Tensor = model.layer(x)
    for k in range(call):
        h = model.layer(torch.relu(h) + 0.3 * (k == 1)) if k == 0 else model.layer(torch.relu(h + 0.3))
    return h[:, 2]


def test_a_neuron_of_the_layer_itself_is_the_seat() -> None:
    found = axplain.explain(MODEL, X, "input_x_gradient", layer="head", target=axplain.neuron("head", 3))
    expected = torch.zeros(3, 6, dtype=torch.float64)
    expected[:, 3] = MODEL.head(X)[:, 3].detach()
    close(found.attributions, expected)


class Written(nn.Module):
    """Assembles tensors by writing into fresh ones; `way` says how."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.c, self.o, self.way = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), way

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 4, dtype=x.dtype)
        if self.way == "whole":
            h[:, :] = self.a(x)
        elif self.way == "view":
            h[:, 0].copy_(x[:, 0])
            h[:, 1:] = self.a(x)[:, 1:]
        elif self.way == "mask":
            h[x > -9] = self.a(x).flatten()
        out: Tensor = self.o(torch.tanh(self.c(h)))
        return out


@pytest.mark.parametrize(("way", "cut"), [("whole", True), ("view", False), ("mask", False)])
def test_what_is_written_into_a_fresh_tensor_is_followed(way: str, cut: bool) -> None:
    model = made(lambda: Written(way))
    found = axplain.explain(model, X, "integrated_gradients", layer="a", baselines=ONE, target=1, n_steps=100)
    assert (found.delta is not None) == cut and ("completeness" in found.notes) != cut

    def tail(s: Tensor) -> Tensor:
        h = torch.cat([X[:1, :1].expand(len(s), 1), s[:, 1:]], 1) if way == "view" else s
        out: Tensor = model.o(torch.tanh(model.c(h)))
        return out

    expected = axplain.explain(
        tail, model.a(X[:1]).detach(), "integrated_gradients", baselines=model.a(ONE).detach(), target=1, n_steps=100
    )
    close(found.attributions[:1], expected.attributions)
    behind = axplain.explain(model, X, "integrated_gradients", layer="c", baselines=ONE, target=1, n_steps=100)
    assert behind.delta is not None and float(behind.delta.abs().max()) < 1e-6
    with pytest.raises(axplain.ArgumentError, match="computed from another call or layer"):
        axplain.explain(model, X, "saliency", layer=["a", "c"], target=1)


class HandsOn(nn.Module):
    """A layer that hands on its own input, which is written to under the other name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.same, self.o = nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        y = self.same(h)
        y.mul_(2.0)
        out: Tensor = self.o(torch.tanh(y + 0) * h)
        return out


def test_a_value_that_is_written_to_under_another_name_is_refused() -> None:
    with pytest.raises(axplain.ArgumentError, match="written to under another name of the same tensor"):
        axplain.explain(made(HandsOn), X, "feature_ablation", layer="same", target=1)
    model = made(HandsOn)
    before = axplain.explain(model, X, "integrated_gradients", layer="a", baselines=ONE, target=1, n_steps=200)
    assert before.delta is not None and float(before.delta.abs().max()) < 1e-6, "in front of both names it is clear"


def test_a_model_in_training_is_surveyed_with_more_than_one_row() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
    with pytest.warns(axplain.AxplainWarning, match="training mode"):
        found = axplain.explain(model, X, "saliency", layer="0", target=0)
    assert found.attributions.shape == (3, 6)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_price_of_noise_around_a_layer_is_an_upper_bound(size: int) -> None:
    asked: dict[str, Any] = {
        "method": "integrated_gradients", "layer": "head", "baselines": ONE, "target": 0, "batch_size": size,
        "n_steps": 4, "noise": {"mode": "smoothgrad", "n_samples": 3},
    }  # fmt: skip
    found, stated = axplain.explain(MODEL, X, **asked, verify=False).cost, axplain.estimate(MODEL, X, **asked)
    assert found.forward_rows <= stated.forward_rows and stated.bound == "upper"


class Views(nn.Module):
    """Writes behind the layer to what was made before it, and reads that by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        left, ramp = h[:, :2], torch.arange(4, dtype=x.dtype)
        out = self.layer(h)
        h.mul_(3.0)
        ramp.add_(1.0)
        got: Tensor = self.last(torch.tanh(out) * left.repeat(1, 2) * ramp)
        return got


def test_a_write_behind_the_layer_reaches_every_name_of_what_was_made_before() -> None:
    model = made(Views)
    h = torch.tanh(model.first(X)).detach()

    def tail(s: Tensor, h: Tensor) -> Tensor:
        out: Tensor = model.last(torch.tanh(s) * (3 * h[:, :2]).repeat(1, 2) * torch.arange(1, 5))
        return out

    for size in (2, 1000):
        found = axplain.explain(model, X, "kernel_shap", layer="layer", target=0, batch_size=size)
        expected = axplain.explain(
            tail, model.layer(h).detach(), "kernel_shap", target=0, additional_forward_args=h,
            baselines=model.layer(torch.tanh(model.first(torch.zeros(1, 4, dtype=torch.float64)))).detach(),
        )  # fmt: skip
        close(found.attributions, expected.attributions)


def test_a_layer_is_surveyed_once_whatever_the_classes() -> None:
    model, passes = made(Halves), 0

    def count(module: nn.Module, args: Any) -> None:
        nonlocal passes
        passes += 1

    model.tail.register_forward_pre_hook(count)
    taken = []
    for target in (0, 1, [0, 1, 2], (2,), axplain.neuron("tail.0", 1), axplain.neuron("tail.0", 4)):
        before = passes
        axplain.explain(model, X, "saliency", layer="head", target=target)
        taken.append(passes - before)
    assert taken[0] > taken[1] == taken[2] == taken[3] == taken[5] < taken[4], taken
