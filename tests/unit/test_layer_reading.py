"""How a layer is read while inputs pass: blocks without gradients, forward derivatives, attention, and refusals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as fn
from tests.unit.seat_models import MODEL, ONE, Opaque, X, close, made, normal
from torch import Tensor, nn

import axplain
from axplain.seats.reading import forward_derivatives

READ_AT_LAYERS = ("internal_influence", "layer_conductance")


class Modes(nn.Module):
    """`last(tanh(layer(tanh(first(x)))))`, with gradients switched off, or on, in one part; `way` says which."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "before":
            with torch.no_grad():
                h = torch.tanh(self.first(x))
            return self._behind(self.layer(h))
        if self.way == "around":
            with torch.no_grad():
                h = torch.tanh(self.layer(torch.tanh(self.first(x))))
            return self._last(h)
        if self.way == "enabled around":
            with torch.enable_grad():
                h = torch.tanh(self.layer(torch.tanh(self.first(x))))
            return self._last(h)
        if self.way == "everything":
            with torch.no_grad():
                return self._behind(self.layer(torch.tanh(self.first(x))))
        h = self.layer(torch.tanh(self.first(x)))
        if self.way == "gate":
            with torch.no_grad():
                gate = torch.sigmoid(h)
            return self._last(torch.tanh(h) * gate)
        if self.way == "behind":
            with torch.no_grad():
                return self._behind(h)
        if self.way == "enabled behind":
            with torch.enable_grad():
                return self._behind(h)
        return self._behind(h)

    def _behind(self, h: Tensor) -> Tensor:
        return self._last(torch.tanh(h))

    def _last(self, h: Tensor) -> Tensor:
        out: Tensor = self.last(h)
        return out


def at_layer(model: nn.Module, method: str, **given: Any) -> axplain.Explanation:
    arguments: dict[str, Any] = {"layer": "layer", "baselines": ONE, "target": 1, "n_steps": 20, "verify": False}
    return axplain.explain(model, X, method, **(arguments | given))


@pytest.mark.parametrize("method", READ_AT_LAYERS)
@pytest.mark.parametrize("way", ["before", "around", "enabled around", "everything", "enabled behind"])
@pytest.mark.parametrize("size", [7, "auto"])
def test_blocks_that_begin_before_the_layer_say_nothing_of_what_is_behind_it(method: str, way: str, size: Any) -> None:
    """As for methods at the layer's own values: the answer is that of the model without the block."""
    found = at_layer(made(lambda: Modes(way)), method, batch_size=size)
    close(found.attributions, at_layer(made(lambda: Modes("plain")), method).attributions)
    own = at_layer(made(lambda: Modes(way)), "integrated_gradients")
    close(own.attributions, at_layer(made(lambda: Modes("plain")), "integrated_gradients").attributions)


def test_a_block_without_gradients_behind_the_layer_is_a_constant() -> None:
    model = made(lambda: Modes("gate"))
    found = at_layer(model, "internal_influence", n_steps=1, quadrature="right").attributions
    h = model.layer(torch.tanh(model.first(X)))
    expected = model.last.weight[1] * torch.sigmoid(h) * (1 - torch.tanh(h).square())
    close(found, expected.detach())


@pytest.mark.parametrize("method", READ_AT_LAYERS)
def test_where_all_behind_the_layer_is_without_gradients_there_is_none(method: str) -> None:
    with pytest.raises(axplain.UnsupportedModel, match="does not depend differentiably on layer 'layer'"):
        at_layer(made(lambda: Modes("behind")), method)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("before", "layer 'layer' does not depend differentiably on x"),
        ("behind", "the target does not depend differentiably on layer 'layer'"),
    ],
)
def test_through_a_neuron_gradients_go_all_the_way(way: str, words: str) -> None:
    given: dict[str, Any] = {"neuron": axplain.neuron("layer", 0), "baselines": ONE, "target": 1, "n_steps": 4}
    with pytest.raises(axplain.UnsupportedModel, match=words):
        axplain.explain(made(lambda: Modes(way)), X, "neuron_conductance", **given)


@pytest.mark.parametrize("way", ["plain", "around", "enabled around"])
def test_one_pass_for_each_chunk_whatever_the_model_switches(way: str) -> None:
    model, passes = made(lambda: Modes(way)), 0

    def count(module: Any, args: Any) -> None:
        nonlocal passes
        passes += 1

    model.register_forward_pre_hook(count)
    at_layer(model, "internal_influence", batch_size=10)
    passes = 0
    at_layer(model, "internal_influence", batch_size=10)
    assert passes == 7, "20 nodes of 3 examples, 3 nodes at a time"


@pytest.mark.parametrize("method", [*READ_AT_LAYERS, "layer_activation"])
def test_what_is_before_the_layer_keeps_no_graph(method: str) -> None:
    model, kept = made(lambda: Modes("plain")), []
    model.first.register_forward_hook(lambda module, args, output: kept.append(output.requires_grad))
    aimed: dict[str, Any] = {} if method == "layer_activation" else {"baselines": ONE, "target": 1, "n_steps": 5}
    axplain.explain(model, X, method, layer="layer", batch_size=3, verify=False, **aimed)
    assert kept and not any(kept)


class Encoder(nn.Module):
    """Attention that torch runs fused where nobody differentiates."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True)
        self.layer, self.last = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.layer(self.body(x).mean(1))))
        return out


class Attends(nn.Module):
    """Attention as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        k = self.key(x)
        h = fn.scaled_dot_product_attention(x, k, torch.tanh(k))
        out: Tensor = self.last(torch.tanh(self.layer(h.mean(1))))
        return out


def switches() -> tuple[bool, ...]:
    """What of attention is a switch of the whole process."""
    of_cuda = torch.backends.cuda
    flags: tuple[Any, ...] = (of_cuda.math_sdp_enabled, of_cuda.flash_sdp_enabled, of_cuda.mem_efficient_sdp_enabled)
    return (torch.backends.mha.get_fastpath_enabled(), *(flag() for flag in flags))


@pytest.mark.parametrize("make", [Encoder, Attends])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_before_the_layer(make: Callable[[], nn.Module], fused: bool) -> None:
    model, x, away = made(make), normal(2, 5, 8), normal(1, 5, 8, seed=1)
    torch.backends.mha.set_fastpath_enabled(fused)
    before = switches()
    try:
        found = axplain.explain(model, x, "layer_conductance", layer="layer", baselines=away, target=0, n_steps=99)
        assert switches() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    difference = (model(x) - model(away))[:, 0].detach()
    close(found.attributions.sum(1), difference, 1e-9)
    # the rates, by central differences of what the layer holds
    wanted, step, steps = torch.zeros(2, 4, dtype=torch.float64), 1e-5, 8
    held: list[Tensor] = []
    handle = model.layer.register_forward_hook(lambda module, args, output: held.append(output.detach()))
    for node in (torch.arange(steps, dtype=torch.float64) + 0.5) / steps:
        for each in (node + step, node - step, node):
            model(away + each * (x - away))
        above, below, h = held[-3:]
        wanted += model.last.weight[0].detach() * (1 - torch.tanh(h).square()) * (above - below) / (2 * step) / steps
    handle.remove()
    same = axplain.explain(
        model, x, "layer_conductance", layer="layer", baselines=away, target=0, n_steps=steps, quadrature="midpoint",
        verify=False,
    )  # fmt: skip
    close(same.attributions, wanted, 1e-8)


class NoForward(nn.Module):
    """Runs an operation that has no forward derivative, before the layer or behind it."""

    def __init__(self, operation: Callable[[Tensor], Tensor], before: bool) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.operation, self.before = operation, before

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = torch.tanh(self.layer(self.operation(h) if self.before else h))
        out: Tensor = self.last(h if self.before else self.operation(h))
        return out


def sampled(h: Tensor) -> Tensor:
    """A bilinear resampling: torch has no forward derivative of it."""
    places = torch.linspace(-0.9, 0.9, 8, dtype=h.dtype).view(1, 2, 2, 2).expand(len(h), -1, -1, -1)
    return fn.grid_sample(h.view(-1, 1, 2, 2), places, align_corners=False).flatten(1)


def opaque(h: Tensor) -> Tensor:
    out: Tensor = Opaque.apply(h)  # type: ignore[no-untyped-call]
    return out


@pytest.mark.parametrize(("operation", "name"), [(sampled, "grid_sampler_2d"), (opaque, "custom autograd.Function")])
def test_an_operation_without_a_forward_derivative_is_refused_by_name(operation: Any, name: str) -> None:
    model, before = made(lambda: NoForward(operation, True)), switches()
    with pytest.raises(
        axplain.UnsupportedModel, match=rf"no forward derivative.*{name}.*integrated gradients"
    ) as caught:
        at_layer(model, "layer_conductance")
    assert "github" not in str(caught.value) and switches() == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    for method in ("internal_influence", "integrated_gradients"):  # they need none
        assert bool(at_layer(model, method).attributions.any())
    behind = at_layer(made(lambda: NoForward(operation, False)), "layer_conductance", verify=True, n_steps=40)
    assert behind.delta is not None and float(behind.delta.abs().max()) < 1e-9, (
        "only what is before the layer needs one"
    )


def test_an_error_of_the_models_own_stays_what_it_is() -> None:
    def failing(h: Tensor) -> Tensor:
        raise RuntimeError("the sensor is gone")

    before = switches()
    with pytest.raises(RuntimeError, match="the sensor is gone"):
        at_layer(made(lambda: NoForward(failing, True)), "layer_conductance")
    assert switches() == before


def test_threads_that_overlap_leave_the_switches_as_they_were() -> None:
    """The first one in is the first one out: what the second one found was not the user's."""
    before, both, first_left = switches(), threading.Barrier(2, timeout=20), threading.Event()
    inside: list[tuple[bool, ...]] = []

    def first() -> None:
        with forward_derivatives():
            both.wait()
        first_left.set()

    def second() -> None:
        with forward_derivatives():
            both.wait()
            first_left.wait(20)
            inside.append(switches())

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert inside == [(False, True, False, False)], "still off for the second, though the first has left"
    assert switches() == before


def test_a_neuron_that_is_passed_is_a_hook_on_its_layer() -> None:
    """Another thread that explains the model meanwhile is refused, as it is for neurons that are targets."""
    inside, leave, refused = threading.Event(), threading.Event(), []
    model = made(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)))

    def wait(done: int, total: int) -> None:
        inside.set()
        leave.wait(20)

    given: dict[str, Any] = {"neuron": axplain.neuron("1", 0), "target": 0, "n_steps": 2, "progress": wait}
    thread = threading.Thread(target=lambda: axplain.explain(model, X, "neuron_conductance", **given))
    thread.start()
    assert inside.wait(20)
    try:
        axplain.explain(model, X, "saliency", target=0)
    except axplain.UnsupportedModel as error:
        refused.append(str(error))
    finally:
        leave.set()
        thread.join(30)
    assert refused and "another thread explains it, and a layer is hooked" in refused[0]


HEAD = axplain.neuron("head", 0)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        *((name, {}, f"layer: nothing came; expected a layer: {name}") for name in READ_AT_LAYERS),
        ("layer_activation", {}, "layer: nothing came; expected a layer: layer_activation"),
        ("internal_influence", {"layer": "head", "baselines": axplain.at_seat(0.0)}, "baselines of the input"),
        ("layer_conductance", {"layer": "head", "baselines": axplain.at_seat(0.0)}, "baselines of the input"),
        ("layer_activation", {"layer": "head", "baselines": axplain.at_seat(0.0)}, "uses no baselines"),
        ("layer_activation", {"layer": "head", "target": 0}, "target: 0 came; expected nothing"),
        ("layer_activation", {"layer": "head", "target": HEAD}, "layer_activation explains no target"),
        ("layer_activation", {"layer": "head", "baselines": 0.0}, "baselines"),
        ("layer_activation", {"layer": "nose"}, "layer 'nose' came"),
        ("layer_conductance", {"layer": "tail.2", "target": HEAD}, "does not depend on layer 'tail.2'"),
        ("layer_conductance", {"layer": "head", "n_steps": 0}, "n_steps"),
        ("layer_conductance", {"layer": "head", "quadrature": "simpson"}, "quadrature"),
        ("layer_conductance", {"layer": "head", "feature_mask": torch.zeros(1, 6).long()}, "does not group features"),
        ("layer_conductance", {"layer": "head", "tolerance": 0.1}, "cannot refine"),
        ("neuron_conductance", {}, "neuron: nothing came"),
        ("neuron_conductance", {"neuron": 3}, "neuron: 3 .*axplain.neuron"),
        ("neuron_conductance", {"neuron": axplain.neuron("head", 6)}, r"neuron: neuron index 6 .*inside \(6,\)"),
        ("neuron_conductance", {"neuron": axplain.neuron("head", (1, 1))}, "neuron: neuron index .*expected 1 index,"),
        ("neuron_conductance", {"neuron": axplain.neuron("head", (slice(4, 4),))}, "neuron: neuron index"),
        ("neuron_conductance", {"neuron": axplain.neuron("head", lambda h: h[:, 0])}, "neuron: a callable came"),
        ("neuron_conductance", {"neuron": axplain.neuron("nose", 0)}, "neuron: layer 'nose' came"),
        ("neuron_conductance", {"neuron": axplain.neuron(axplain.seat("head", item=1), 0)}, "neuron: item=1 came"),
        ("neuron_conductance", {"neuron": HEAD, "layer": "head"}, "layer: a layer came"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(method: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=words):
        aimed: dict[str, Any] = {} if method == "layer_activation" else {"target": 0}
        axplain.explain(MODEL, X, method, **(aimed | given))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in MODEL.modules())


@pytest.mark.parametrize("method", [*READ_AT_LAYERS, "layer_activation", "neuron_conductance"])
def test_a_plain_callable_has_no_layers(method: str) -> None:
    given: dict[str, Any] = {"neuron": HEAD} if method == "neuron_conductance" else {"layer": "head"}
    with pytest.raises(axplain.ArgumentError, match=r"the model is a plain callable; expected a torch.nn.Module"):
        axplain.explain(lambda x: MODEL(x), X, method, **given)


def test_token_ids_are_not_moved_along_a_path() -> None:
    model = made(lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2)))
    ids = torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(axplain.ArgumentError, match=r"x: torch.int64 came; expected a floating tensor"):
        axplain.explain(model, ids, "layer_conductance", layer="0", target=0)
    close(axplain.explain(model, ids, "layer_activation", layer="0").attributions, model[0](ids).detach())
