"""What runs before a seat is skipped only where that changes nothing: ways around it, writes, moods, switches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from tests.unit.seat_models import (
    ONE,
    Halves,
    Opaque,
    Residual,
    X,
    close,
    made,
)
from torch import Tensor, nn

import axplain


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
    # what x does around the layer since the change is no part of the sum, and it is said
    told: AbstractContextManager[Any] = nullcontext()
    if switch == "multiplies":
        told = pytest.warns(axplain.AxplainWarning, match="sum to")
    with told:
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


@pytest.mark.parametrize("writes", [False, True])
def test_points_are_copied_only_where_the_model_writes_to_what_the_layer_gave(writes: bool) -> None:
    """To points that are given as they are nobody can write: torch refuses it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=writes), nn.Linear(6, 3)).double()
    given: list[list[str]] = []

    def look(module: nn.Module, args: Any) -> None:
        node = args[0].grad_fn
        if node is not None:
            given.append([node.name(), node.next_functions[0][0].name()])

    model[1].register_forward_pre_hook(look)
    found = axplain.explain(model, X, "integrated_gradients", layer="0", target=1, baselines=ONE, verify=False)
    moved, before = given[-1]  # behind what measured the model: the pass over the points, rows moved to their axis
    assert moved == "PermuteBackward0" and ("Clone" in before) is writes
    tail = nn.Sequential(nn.ReLU(), model[2])
    absent, clean = model[0](ONE).detach(), model[0](X).detach()
    expected = axplain.explain(tail, clean, "integrated_gradients", target=1, baselines=absent, verify=False)
    close(found.attributions, expected.attributions)


class Erasing(nn.Module):
    """Writes to what its layer gave, in ways that no version counts, or for some rows alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.last, self.how = nn.Linear(4, 6), nn.Linear(6, 3), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.how == "hot":
            hot = h[:, 0] > 1
            if bool(hot.any()):
                h[hot] = h[hot] * 0.5
        out: Tensor = self.last(h.tanh())
        if self.how == "data":
            h.data.zero_()
        return out


@pytest.mark.parametrize("how", ["data", "hot"])
@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "integrated_gradients"])
def test_writes_that_the_survey_cannot_count_are_met(method: str, how: str) -> None:
    torch.manual_seed(0)
    model = Erasing(how).double()
    x = torch.cat([-model.first.weight[:1].detach(), 9 * model.first.weight[:1].detach()])
    found = axplain.explain(model, x, method, layer="first", target=1, verify=False).attributions
    held, absent = model.first(x).detach(), model.first(torch.zeros_like(x[:1])).detach()

    def tail(h: Tensor) -> Tensor:
        if how == "hot":
            h = torch.where(h[:, :1] > 1, h * 0.5, h)
        out: Tensor = model.last(h.tanh())
        return out

    more = {"baselines": absent} if method == "integrated_gradients" else {}
    close(found, axplain.explain(tail, held, method, target=1, verify=False, **more).attributions)


class Remembering(nn.Module):
    """Keeps what it computed before its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        self.seen.append(h)
        out: Tensor = self.last(torch.tanh(self.layer(h)))
        return out


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("what", ["input", "output"])
def test_what_the_model_or_a_hook_keeps_of_before_the_layer_has_its_numbers(what: str, late: bool) -> None:
    model, kept = made(Switched), []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(args[0] if what == "input" else output)

    def explain() -> Any:
        found = axplain.explain(model, X, "integrated_gradients", layer="layer", target=0, n_steps=3, batch_size=4)
        return found.attributions

    expected = explain() if late else None
    model.first.register_forward_hook(keep)
    found = explain()
    assert expected is None or torch.equal(found, expected)
    last = kept[-1]
    x = last if what == "input" else None
    if x is None:
        assert any(torch.allclose(row, seen) for row in last for seen in model.first(X))
    else:
        assert all(any(torch.equal(row, example) for example in X) for row in x)


def test_what_the_model_keeps_in_a_list_has_its_numbers() -> None:
    model = made(Remembering)
    axplain.explain(model, X, "integrated_gradients", layer="layer", target=0, n_steps=3, baselines=ONE)
    rows = torch.tanh(model.first(torch.cat([X, ONE]))).detach()
    assert all(any(torch.allclose(row, real) for real in rows) for seen in model.seen for row in seen)


class Read(nn.Module):
    """Reads a number of its own before the layer and uses it behind, and writes to a view of its input."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.scale, self.way = nn.Parameter(torch.tensor(2.0)), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "number":
            scale = self.scale.item()
            out: Tensor = self.last(torch.tanh(self.layer(x)) * scale)
        else:
            x.view(-1).mul_(2.0)
            out = self.last(torch.tanh(self.layer(x.clone())) * x)
        return out


@pytest.mark.parametrize("way", ["number", "view"])
def test_numbers_that_leave_torch_and_writes_to_views_are_met_in_every_pass(way: str) -> None:
    model = made(lambda: Read(way))
    for scale in (2.0, 3.0):
        model.scale.data.fill_(scale)
        found = axplain.explain(model, X.clone(), "kernel_shap", layer="layer", target=0, baselines=ONE)
        x = X * (2.0 if way == "view" else 1.0)
        away = model.layer(ONE * (2.0 if way == "view" else 1.0)).detach()
        expected = axplain.explain(
            lambda s, x: model.last(torch.tanh(s) * (x if way == "view" else model.scale)),
            model.layer(x).detach(), "kernel_shap", target=0, baselines=away, additional_forward_args=x,
        )  # fmt: skip
        close(found.attributions, expected.attributions)
