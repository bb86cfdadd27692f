"""The contracts of every method, for those that explain layers alone: whatever is installed, by what its spec says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as fn
from tests.contract.accidents import PlannedError, fail, interrupt, spoil
from torch import Tensor, nn

import axplain
from axplain.conformance.subject import few

METHODS = [name for name in axplain.methods() if axplain.describe(name).seats == ("layer",)]
TARGETED = [name for name in METHODS if axplain.describe(name).requires.target]
DRAWING = [name for name in METHODS if axplain.describe(name).determinism.kind == "seeded"]
BATCH, TARGET = 4, [0, 1, 2, 1]
Make = Callable[..., Any]


class Pictures(nn.Module):
    """A convolution whose maps become tokens that attend to each other: a layer with axes of space, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.maps = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Dropout(0.5))
        self.last = nn.Linear(4, 3)
        self.register_buffer("scale", torch.full((1,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.maps(self.norm(x)).flatten(2).transpose(1, 2)
        tokens = tokens + fn.scaled_dot_product_attention(tokens, 2 * tokens, tokens)
        out: Tensor = self.last(torch.tanh(tokens).mean(1)) * self.get_buffer("scale")
        return out


def pictures(dtype: torch.dtype = torch.float64) -> Pictures:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Pictures()
        model.norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
        model.norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval().to(dtype)


def asked(method: str, **given: Any) -> dict[str, Any]:
    """The arguments of a short call at the maps."""
    spec = axplain.describe(method)
    arguments = {"method": method, "layer": "maps", "seed": 7, "verify": False, **few(spec)}
    arguments |= {"target": TARGET} if spec.requires.target else {}
    arguments |= {"baselines": 0.1} if spec.baseline != "none" else {}
    return arguments | {name: value for name, value in given.items() if name != "target" or spec.requires.target}


def explained(method: str, model: Any, x: Any, **given: Any) -> axplain.Explanation:
    return axplain.explain(model, x, **asked(method, **given))


@pytest.fixture
def x(draw: Make) -> Tensor:
    """Four pictures."""
    found: Tensor = draw(BATCH, 2, 5, 6)
    return found


def test_there_are_methods_for_layers_alone() -> None:
    assert {"layer_activation", "internal_influence", "layer_conductance"} <= set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_answer_mirrors_the_layer_in_its_dtype_and_is_detached(method: str, dtype: torch.dtype, x: Tensor) -> None:
    found = explained(method, pictures(dtype), x.to(dtype)).attributions
    held = explained("layer_activation", pictures(dtype), x.to(dtype)).attributions
    assert found.dtype == dtype and found.device == x.device and len(found) == BATCH
    mirrors = axplain.describe(method).mirrors
    assert not mirrors or found.shape == (x.shape if mirrors == "input" else held.shape)
    assert not found.requires_grad and found.grad_fn is None
    assert bool(found.isfinite().all()) and bool(found.any())
    exact = explained(method, pictures(), x).attributions
    assert float((found.double() - exact).abs().max() / exact.abs().max()) <= 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_is_the_callers_own_memory(method: str, x: Tensor, unchanged: Make) -> None:
    model = pictures()
    answer = explained(method, model, x)
    again = answer.attributions.clone()
    with unchanged(model, x):
        answer.attributions.fill_(3.0)
    assert torch.equal(explained(method, model, x).attributions, again)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 3, 64, "auto"])
def test_chunks_change_nothing(method: str, size: Any, x: Tensor) -> None:
    whole = explained(method, pictures(), x, batch_size=7)
    found = explained(method, pictures(), x, batch_size=size)
    torch.testing.assert_close(found.attributions, whole.attributions, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_one_at_a_time(method: str, x: Tensor) -> None:
    model = pictures()
    whole = explained(method, model, x).attributions
    for i in range(BATCH):
        alone = explained(method, model, x[i : i + 1], target=TARGET[i]).attributions
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_bits_and_reads_no_global_generator(method: str, x: Tensor) -> None:
    first = explained(method, pictures(), x, batch_size=3).attributions
    states = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    try:
        torch.manual_seed(5)
        numpy.random.seed(5)
        random.seed(5)
        assert torch.equal(explained(method, pictures(), x, batch_size=3).attributions, first)
    finally:
        torch.set_rng_state(states[0])
        numpy.random.set_state(states[1])
        random.setstate(states[2])


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_matters_only_where_something_is_drawn(method: str, x: Tensor) -> None:
    one, other = (explained(method, pictures(), x, seed=seed).attributions for seed in (1, 2))
    assert torch.equal(one, other) == (method not in DRAWING)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [3, 64])
def test_rows_are_counted_and_priced(method: str, size: int, x: Tensor) -> None:
    model, rows = pictures(), 0

    def count(module: Any, arguments: Any) -> None:
        nonlocal rows
        rows += len(arguments[0])

    handle = model.register_forward_pre_hook(count)
    explained(method, model, x, batch_size=size)  # surveys the model
    rows = 0
    price = axplain.estimate(model, x, **asked(method, batch_size=size))
    assert rows == 0, "a price runs nothing that it knows already"
    cost = explained(method, model, x, batch_size=size).cost
    handle.remove()
    assert rows == cost.forward_rows + cost.check_rows
    if price.bound == "exact":
        assert (cost.forward_rows, cost.backward_rows) == (price.forward_rows, price.backward_rows)
    assert cost.forward_rows <= price.forward_rows and cost.backward_rows <= price.backward_rows
    assert cost.check_rows <= price.check_rows


@pytest.mark.parametrize("method", METHODS)
def test_progress_ends_at_the_rows_that_were_run(method: str, x: Tensor) -> None:
    calls: list[tuple[int, int]] = []
    cost = explained(method, pictures(), x, batch_size=2, progress=lambda *step: calls.append(step)).cost
    done = [each for each, _ in calls]
    assert done == sorted(done) and done[-1] == cost.forward_rows


@pytest.mark.parametrize("method", METHODS)
def test_success_changes_nothing(method: str, x: Tensor, unchanged: Make) -> None:
    model, leaf = pictures(), x.clone().requires_grad_()
    model.maps[2].training = False
    with unchanged(model, x, leaf):
        for given in (x, leaf):
            explained(method, model, given)
            explained(method, model, given, batch_size=2, layer=model.maps, target=1)
            with suppress(axplain.ArgumentError):  # some compare classes
                explained(method, model, given, target=axplain.neuron("last", 2))
    assert x.grad is None and leaf.grad is None and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_of_the_caller_does_not_matter(method: str, mode: Any, x: Tensor) -> None:
    expected = explained(method, pictures(), x).attributions
    model = pictures()
    with mode():
        found = explained(method, model, x.clone()).attributions
    assert torch.equal(found.clone(), expected)


class Trap(nn.Module):
    """A model behind which something happens in one of its passes; it keeps its count off the module."""

    def __init__(self, model: Pictures, act: Callable[[Tensor], Tensor], at: int) -> None:
        super().__init__()
        self.maps, self.model, self.passes = model.maps, model, iter(range(1, 10**6))
        self.act, self.at = act, at

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return self.act(out) if next(self.passes) == self.at else out


def stages(method: str, x: Tensor) -> Iterator[int]:
    """The first pass of a call, one in the middle, the last."""
    counting = Trap(pictures(), fail, 0)
    explained(method, counting, x, batch_size=2)
    last = next(counting.passes) - 1
    yield from sorted({1, (last + 1) // 2, last})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("act", "error"), [(fail, PlannedError), (interrupt, KeyboardInterrupt)])
def test_failure_in_any_pass_changes_nothing(
    method: str, act: Any, error: type[BaseException], x: Tensor, unchanged: Make
) -> None:
    for at in stages(method, x):
        model = Trap(pictures(), act, at)
        with unchanged(model, x), pytest.raises(error):
            explained(method, model, x, batch_size=2)
        assert bool(explained(method, model, x, batch_size=2).attributions.isfinite().all()), f"after pass {at}"


@pytest.mark.parametrize("method", TARGETED)
def test_a_model_that_turns_nan_is_refused(method: str, x: Tensor, unchanged: Make) -> None:
    for at in list(stages(method, x))[-1:]:
        model = Trap(pictures(), spoil, at)
        with unchanged(model, x), pytest.raises(axplain.UnsupportedModel, match="NaN"):
            explained(method, model, x, batch_size=2)


@pytest.mark.parametrize("method", METHODS)
def test_a_progress_callback_cancels(method: str, x: Tensor, unchanged: Make) -> None:
    def cancel(done: int, total: int) -> None:
        raise PlannedError

    model = pictures()
    with unchanged(model, x), pytest.raises(PlannedError):
        explained(method, model, x, batch_size=2, progress=cancel)


@pytest.mark.parametrize("method", METHODS)
def test_bad_layers_are_refused_by_name(method: str, x: Tensor, unchanged: Make) -> None:
    model = pictures()
    for layer, words in (("nose", "layer 'nose' came"), (nn.Tanh(), "no part of the model"), (3, "layer: int came")):
        with unchanged(model, x), pytest.raises(axplain.ArgumentError, match=words):
            explained(method, model, x, layer=layer)
    with pytest.raises(axplain.ArgumentError, match="the model is a plain callable"):
        explained(method, lambda rows: model(rows), x)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_is_named_where_the_method_cannot_choose_one(method: str, x: Tensor) -> None:
    arguments = asked(method)
    arguments.pop("layer")
    if axplain.describe(method).requires.layer == "spatial":
        chosen = axplain.explain(pictures(), x, **arguments)
        assert "maps" in chosen.provenance["layer"]
    else:
        with pytest.raises(axplain.ArgumentError, match="layer: nothing came"):
            axplain.explain(pictures(), x, **arguments)


@pytest.mark.parametrize("method", TARGETED)
def test_the_predicted_class_is_resolved_per_example(method: str, x: Tensor) -> None:
    model = pictures()
    predicted = model(5 * x).argmax(1).tolist()
    assert len(set(predicted)) > 1, "a model that always says the same would prove nothing"
    arguments = asked(method)
    arguments.pop("target")
    found = axplain.explain(model, 5 * x, **arguments)
    assert found.target == predicted
    assert torch.equal(found.attributions, explained(method, model, 5 * x, target=predicted).attributions)


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_says_what_was_asked(method: str, x: Tensor, tmp_path: Any) -> None:
    found = explained(method, pictures(), x)
    assert found.method == method and found.provenance["layer"] == "layer 'maps'" and found.provenance["seed"] == 7
    assert found.target == (TARGET if method in TARGETED else "none")
    loaded = axplain.Explanation.load(found.save(tmp_path / "found.safetensors"))
    assert torch.equal(loaded.attributions, found.attributions)
