"""What stands for the tensors before a layer is read by nobody and left nowhere, also where no mode sees it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

import numpy as np
import pytest
import torch
from tests.unit.seat_models import ONE, X, close, made, normal
from torch import Tensor, nn

import axplain


class Model(nn.Module):
    """A layer between two others, and whatever `way` does with x, with h before the layer and with what it gives."""

    def __init__(self, way: Callable[[Model, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.way, self.kept = way, [torch.zeros(4)]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        out: Tensor = self.last(self.way(self, x, h, torch.tanh(self.layer(h))))
        return out


def onward(model: Model, x: Tensor, h: Tensor, o: Tensor) -> Tensor:
    return o


@torch.jit.script
def add_into(a: Tensor, b: Tensor) -> Tensor:
    a.add_(b)
    return a


def written_unseen(o: Tensor, b: Tensor) -> Tensor:
    add_into(o, b)
    return o


READING: Final[dict[str, Callable[[Model, Tensor, Tensor, Tensor], Tensor]]] = {
    "strides of x": lambda model, x, h, o: o.as_strided(x.size(), x.stride()),
    "strides of h": lambda model, x, h, o: o.as_strided(h.size(), h.stride()),
    "contiguity": lambda model, x, h, o: o * (2 if x.is_contiguous() and h.is_contiguous() else 1),
    "an unseen write of x": lambda model, x, h, o: written_unseen(o + 0.0, x),
    "an unseen write of h": lambda model, x, h, o: written_unseen(o + 0.0, h),
    "an unseen write of x and a seen one": lambda model, x, h, o: written_unseen((o + 0.0).add_(1.0), x).mul_(2.0),
}


@pytest.mark.parametrize("size", [2, "auto"])
@pytest.mark.parametrize("way", READING)
@pytest.mark.parametrize("method", ["feature_ablation", "saliency"])
def test_what_is_used_behind_the_layer_is_what_the_model_would_use(method: str, way: str, size: Any) -> None:
    model = made(lambda: Model(READING[way]))
    h = torch.tanh(model.first(X)).detach()

    def tail(s: Tensor, x: Tensor, h: Tensor) -> Tensor:
        out: Tensor = model.last(READING[way](model, x, h, torch.tanh(s)))
        return out

    more: dict[str, Any] = {} if method == "saliency" else {"baselines": axplain.at_seat(0.0)}
    rest: dict[str, Any] = {} if method == "saliency" else {"baselines": 0.0}
    expected = axplain.explain(tail, model.layer(h).detach(), method, target=1, additional_forward_args=(X, h), **rest)
    for _ in range(2):
        found = axplain.explain(model, X, method, layer="layer", target=1, batch_size=size, **more)
        close(found.attributions, expected.attributions)


LATE: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "sum": lambda h, o: o + h,
    "its own shape, of another's": lambda h, o: h.view_as(o) + o,
    "its own type, of another's": lambda h, o: h.to(o) + o,
    "in a list": lambda h, o: torch.stack([o, h]).sum(0),
    "by keyword": lambda h, o: torch.add(o, other=h),
    "an item": lambda h, o: o * h[0, 0].item(),
    "alone": lambda h, o: h,
}


@pytest.mark.parametrize("use", LATE)
def test_what_only_larger_passes_use_behind_the_layer_has_numbers(use: str) -> None:
    """The survey looks at two and three rows; these are five."""
    model = made(lambda: Model(lambda model, x, h, o: LATE[use](h, o) if len(h) > 3 else o))
    x = normal(5, 4, seed=7)
    h = torch.tanh(model.first(x)).detach()
    layer = model.layer(h).detach().requires_grad_()
    expected = torch.autograd.grad(model.last(LATE[use](h, torch.tanh(layer)))[:, 1].sum(), layer, allow_unused=True)[0]
    if expected is None:
        with pytest.raises(axplain.UnsupportedModel, match="does not depend differentiably"):
            axplain.explain(model, x, "saliency", layer="layer", target=1)
    else:
        found = axplain.explain(model, x, "input_x_gradient", layer="layer", target=1)
        close(found.attributions, expected * layer.detach())


def noted(how: Callable[[Tensor], bool]) -> Callable[[Model, Tensor, Tensor, Tensor], Tensor]:
    """Return a way that goes by what it is told of h."""
    return lambda model, x, h, o: o * 3 if how(h) else o


def caught(model: Model, x: Tensor, h: Tensor, o: Tensor) -> Tensor:
    if len(h) <= 3:
        return o
    try:
        return o + float(h.detach().sum())
    except Exception:
        return o * 5


LOOKING: Final[dict[str, Callable[[Model, Tensor, Tensor, Tensor], Tensor]]] = {
    "its class": noted(lambda h: type(h) is Tensor),
    "a table of classes": lambda model, x, h, o: {Tensor: o * 3}[type(h)],
    "whether it requires a gradient": noted(lambda h: h.requires_grad),
    "whether it is a leaf": noted(lambda h: not h.is_leaf),
    "its node": noted(lambda h: h.grad_fn is not None),
    "its number, caught": caught,
    "both under vmap": lambda model, x, h, o: torch.func.vmap(torch.mul)(o, h),
    "the layer alone under vmap": lambda model, x, h, o: torch.func.vmap(torch.tanh)(o),
    "its gradient": lambda model, x, h, o: o * torch.func.grad(lambda each: (each**2).sum())(h.detach()),
}


@pytest.mark.parametrize("what", LOOKING)
def test_what_a_model_asks_of_a_tensor_is_answered_as_without_us(what: str) -> None:
    model = made(lambda: Model(LOOKING[what]))
    x = normal(5, 4, seed=7)
    leaves: list[Tensor] = []

    def put(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.layer.register_forward_hook(put)
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), leaves)
    handle.remove()
    for _ in range(2):
        found = axplain.explain(model, x, "input_x_gradient", layer="layer", target=1)
        close(found.attributions, gradient * leaves[0].detach())


class Heads(nn.Module):
    """Two outputs, of which the second one goes by the class of what is computed before the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.one, self.two = (nn.Linear(4, n) for n in (4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        o = torch.tanh(self.layer(h))
        return torch.cat([self.one(o), self.two(o * 3 if type(h) is Tensor else o)], 1)


def test_what_holds_of_one_output_is_not_taken_to_hold_of_another() -> None:
    model = made(Heads)
    o = torch.tanh(model.layer(torch.tanh(model.first(X)))).detach()
    for target, weight in ((0, model.one.weight), (1, 3 * model.two.weight)):
        found = axplain.explain(model, X, "saliency", layer="layer", target=target)
        close(found.attributions, (weight * (1 - o**2)).abs().detach())


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "feature_ablation"])
def test_one_example_without_a_target_is_explained_at_its_layer(method: str) -> None:
    model = made(lambda: Model(onward))
    best = int(model(X[:1]).argmax())
    found, expected = (axplain.explain(model, X[:1], method, layer="layer", target=t) for t in (None, best))
    close(found.attributions, expected.attributions)


def test_what_larger_passes_keep_raises_nothing_afterwards() -> None:
    def keep(model: Model, x: Tensor, h: Tensor, o: Tensor) -> Tensor:
        if len(h) > 3:
            model.kept.append(h)
        return o

    model = made(lambda: Model(keep))
    axplain.explain(model, torch.cat([X, X]), "input_x_gradient", layer="layer", target=1)
    assert model.kept
    assert all(type(kept) is Tensor and kept.sum().ndim == 0 for kept in model.kept)


def test_types_under_autocast_are_not_remembered_without_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        axplain.explain(model, X.float(), "input_x_gradient", layer="0", target=1)
    found = axplain.explain(model, X.float(), "input_x_gradient", layer="0", target=1)
    assert found.attributions.dtype == torch.float32


UNSEEN: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "softmax": lambda o: torch.func.vmap(lambda row: torch.softmax(row, -1))(o),
    "normalised": lambda o: torch.func.vmap(lambda row: nn.functional.layer_norm(row, (4,)))(o),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_a_target_may_depend_on_a_layer_where_no_mode_sees_it(what: str) -> None:
    model = made(lambda: Model(lambda model, x, h, o: UNSEEN[what](o)))
    leaf = model.layer(torch.tanh(model.first(X))).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.last(UNSEEN[what](torch.tanh(leaf)))[:, 1].sum(), leaf)
    close(axplain.explain(model, X, "saliency", layer="layer", target=1).attributions, gradient.abs())


def test_a_model_that_varies_of_itself_does_not_depend_on_any_layer() -> None:
    drawing = torch.Generator().manual_seed(0)

    def draw(model: Model, x: Tensor, h: Tensor, o: Tensor) -> Tensor:
        return h + torch.randn(h.shape, generator=drawing, dtype=h.dtype)

    with pytest.raises(axplain.ArgumentError, match="does not depend on layer 'layer'"):
        axplain.explain(made(lambda: Model(draw)), X, "feature_ablation", layer="layer", target=1)


def test_a_layer_that_runs_in_inference_mode_has_values_and_no_gradient() -> None:
    class Around(Model):
        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                held = self.layer(torch.tanh(self.first(x)))
            out: Tensor = self.last(torch.tanh(held.clone()))
            return out

    model, plain = made(lambda: Around(onward)), made(lambda: Model(onward))
    plain.load_state_dict(model.state_dict())
    found, expected = (axplain.explain(each, X, "feature_ablation", layer="layer", target=1) for each in (model, plain))
    close(found.attributions, expected.attributions)
    with pytest.raises(axplain.UnsupportedModel, match="does not depend differentiably"):
        axplain.explain(model, X, "saliency", layer="layer", target=1)


@pytest.mark.parametrize("context", [None, "cpu"])
def test_code_behind_the_layer_runs_as_it_does_without_us(context: str | None) -> None:
    """No mode of ours is on there, unless the model enters one of its own around the layer and leaves it later."""
    seen: list[bool] = []

    def look(model: Model, x: Tensor, h: Tensor, o: Tensor) -> Tensor:
        assert h.shape == x.shape == o.shape
        seen.append(torch.overrides.has_torch_function((o,)))
        return o

    class Placed(Model):
        def forward(self, x: Tensor) -> Tensor:
            with torch.device(context) if context else nullcontext():
                return super().forward(x)

    model, plain = made(lambda: Placed(look)), made(lambda: Model(onward))
    plain.load_state_dict(model.state_dict())
    axplain.explain(model, X, "integrated_gradients", layer="layer", target=1)
    seen.clear()
    found = axplain.explain(model, X, "integrated_gradients", layer="layer", target=1)
    close(found.attributions, axplain.explain(plain, X, "integrated_gradients", layer="layer", target=1).attributions)
    assert seen == [context is not None] * len(seen)
    assert seen
    assert not torch.overrides.has_torch_function((X,))


def keeps(make: Callable[[Tensor, Tensor], Any]) -> Callable[[Model, Tensor, Tensor, Tensor], Tensor]:
    """Return a way that keeps what is made of x and h, and changes nothing."""

    def way(model: Model, x: Tensor, h: Tensor, o: Tensor) -> Tensor:
        model.kept = [make(x, h)]
        return o

    return way


KEEPING: Final[dict[str, Callable[[Tensor, Tensor], Any]]] = {
    "h": lambda x, h: h,
    "x": lambda x, h: x,
    "a parameter of h": lambda x, h: nn.Parameter(h.detach(), requires_grad=False),
    "a parameter of x": lambda x, h: nn.Parameter(x, requires_grad=False),
    "a mean": lambda x, h: nn.Parameter(h.detach().mean(0), requires_grad=False),
    "a subclass": lambda x, h: torch.Tensor._make_subclass(torch.Tensor, h.detach()),
    "a variable": lambda x, h: torch.autograd.Variable(h.detach()),
    "memory": lambda x, h: torch.zeros(1, dtype=h.dtype).set_(h.detach().mean(0)),  # type: ignore[call-overload]
    "an array": lambda x, h: torch.from_numpy(h.detach().numpy()),
}


@pytest.mark.parametrize("what", KEEPING)
@pytest.mark.parametrize("method", ["feature_ablation", "integrated_gradients"])
def test_what_the_model_keeps_has_numbers_by_whatever_name(method: str, what: str) -> None:
    model = made(lambda: Model(keeps(KEEPING[what])))
    for _ in range(2):
        axplain.explain(model, X, method, layer="layer", target=1, baselines=ONE, batch_size=4)
        assert all(bool(kept.isfinite().all()) and kept.any() for kept in model.kept)
        assert all(stride != 0 for kept in model.kept for stride in kept.stride())


class Renewing(nn.Module):
    """Replaces a parameter in each pass by what it computes from it, as some normalisations of weights do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.layer, self.last, self.how = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), how

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight.detach()
        if self.how == "product":
            weight = weight * 1.0
        elif self.how == "written":
            weight = torch.zeros_like(weight).add_(weight)
        self.first.weight = nn.Parameter(weight)
        out: Tensor = self.last(torch.tanh(self.layer(torch.tanh(self.first(x)))))
        return out


@pytest.mark.parametrize("how", ["same", "product", "written"])
@pytest.mark.parametrize("method", ["feature_ablation", "integrated_gradients", "saliency"])
def test_a_parameter_that_the_model_renews_before_the_layer_is_not_lost(method: str, how: str) -> None:
    model = made(lambda: Renewing(how))
    before, tail = model.first.weight.detach().clone(), nn.Sequential(nn.Tanh(), model.last)
    found = axplain.explain(model, X, method, layer="layer", target=1, batch_size=4)
    assert torch.equal(model.first.weight, before) and model.first.weight.is_contiguous()
    absent: dict[str, Any] = (
        {} if method == "saliency" else {"baselines": model.layer(torch.tanh(model.first.bias)[None]).detach()}
    )
    held = model.layer(torch.tanh(model.first(X))).detach()
    close(found.attributions, axplain.explain(tail, held, method, target=1, **absent).attributions)


@pytest.mark.parametrize("late", [False, True])
def test_hooks_that_append_keep_numbers_alone(late: bool) -> None:
    model = made(lambda: Model(onward))
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept.extend((output, args[0], nn.Parameter(output.detach(), requires_grad=False)))

    if late:
        axplain.explain(model, X, "feature_ablation", layer="layer", target=1)
    model.first.register_forward_hook(keep)
    axplain.explain(model, X, "feature_ablation", layer="layer", target=1)
    assert kept and all(bool(tensor.isfinite().all()) for tensor in kept)


class Growing(nn.Module):
    """Computes with shapes before its layer that are others in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last, self.passes = nn.Linear(4, 4), nn.Linear(4, 3), 0
        self.memory = np.ones(4)
        self.seen = torch.from_numpy(self.memory)
        self.drifts = False

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.drifts:
            self.memory *= 1.1
            x = x * self.seen
        else:
            k = self.passes % 4
            x = torch.cat([torch.cat([x[:, k:], x[:, :k]], 1)[:, 4 - k :], x[:, : 4 - k]], 1)
        out: Tensor = self.last(torch.tanh(self.layer(x)))
        return out


@pytest.mark.filterwarnings("ignore:the model is not deterministic:axplain.AxplainWarning")
@pytest.mark.filterwarnings("ignore:.*the attributions of example:axplain.AxplainWarning")
def test_shapes_that_differ_from_pass_to_pass_are_not_foretold() -> None:
    model = made(Growing)
    for _ in range(4):
        found = axplain.explain(model, X, "integrated_gradients", layer="layer", target=1, batch_size=4)
        assert found.attributions.isfinite().all()


@pytest.mark.parametrize("size", [4, "auto"])
def test_a_drift_through_the_memory_of_an_array_is_said(size: Any) -> None:
    model = made(Growing)
    model.drifts = True
    with pytest.warns(axplain.AxplainWarning, match="not deterministic"):
        axplain.explain(model, X, "integrated_gradients", layer="layer", target=1, baselines=ONE, batch_size=size)


def test_sparse_tensors_before_the_layer_are_computed_in_every_pass() -> None:
    class Sparse(Model):
        def forward(self, x: Tensor) -> Tensor:
            dense = torch.sparse.mm(x.to_sparse(), torch.eye(4, dtype=x.dtype))
            out: Tensor = super().forward(dense)
            return out

    plain, sparse = made(lambda: Model(onward)), made(lambda: Sparse(onward))
    sparse.load_state_dict(plain.state_dict())
    for method in ("feature_ablation", "integrated_gradients"):
        found, expected = (
            axplain.explain(each, X, method, layer="layer", target=1, baselines=ONE) for each in (sparse, plain)
        )
        close(found.attributions, expected.attributions)
