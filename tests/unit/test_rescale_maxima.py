"""Rescale rules of maxima against a loop over windows, element by element."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from axplain.propagation.operations import Operation, tensors_in
from axplain_plugins.propagation.rescale import Rescale

F64, F32 = torch.float64, torch.float32
Sizes = tuple[int, ...]


def _draw(*shape: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def _whole(*shape: int, seed: int) -> Tensor:
    """Return small whole numbers: many ties."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


def _rule(name: str) -> Any:
    rule = Rescale().rule(name)
    assert rule is not None, name
    return rule


class Call:
    """An operation on one tensor, or on two."""

    def __init__(self, name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        self.name, self.function, self.arguments, self.keywords = name, function, arguments, keywords

    def at(self, *inputs: Tensor) -> Operation:
        """Return the operation as a rule sees it, with what the rule's own run tells beside the output."""
        given, run = (*inputs, *self.arguments), _rule(self.name).run
        if run is None:
            (output, *_), extras = tensors_in(self.function(*given, **self.keywords)), ()
        else:
            result, *more = run(self.function, *given, **self.keywords)
            output, extras = tensors_in(result)[0], tuple(more)
        places = tuple((place,) for place in range(len(inputs)))
        return Operation(self.name, self.function, given, self.keywords, places, inputs, output, extras)

    def multipliers(self, gradient: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the rule gives."""
        found = _rule(self.name).multipliers(gradient, self.at(*new), self.at(*old))
        return tuple(multiplier for multiplier in found if multiplier is not None)

    def gradient(self, gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the plain vector-Jacobian product in float64."""
        leaves = [tensor.detach().double().clone().requires_grad_() for tensor in inputs]
        output = tensors_in(self.function(*leaves, *self.arguments, **self.keywords))[0]
        return torch.autograd.grad(output, leaves, gradient.double())


def _windows(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> list[list[int]]:
    every = [[o * stride - padding + k * dilation for k in range(kernel)] for o in range(out)]
    return [[i for i in window if 0 <= i < size] for window in every]


def _adaptive(size: int, out: int) -> list[list[int]]:
    return [list(range(o * size // out, -(-(o + 1) * size // out))) for o in range(out)]


def _looped(gradient: Tensor, x: Tensor, reference: Tensor, windows: list[list[list[int]]]) -> Tensor:
    """Return the multipliers of max-pooling over the last dimensions, one window after the other.

    A gain belongs to the element that wins in the example, a loss to the one that won in the reference.
    """
    found = torch.zeros_like(x)
    dimensions = len(windows)
    for lead in itertools.product(*(range(size) for size in x.shape[:-dimensions])):
        for out in itertools.product(*(range(len(axis)) for axis in windows)):
            elements = [
                (*lead, *e) for e in itertools.product(*(axis[o] for axis, o in zip(windows, out, strict=True)))
            ]
            best, best_old = max(elements, key=lambda e: x[e].item()), max(elements, key=lambda e: reference[e].item())
            change = x[best] - reference[best_old]
            element = best if change > 0 else best_old
            moved = x[element] - reference[element]
            found[element] += gradient[(*lead, *out)] * (1 if moved == 0 else change / moved)
    return found


#: dimensions, size, kernel, stride, padding, dilation, ceil_mode
POOLS: Final[tuple[tuple[int, Sizes, int, int, int, int, bool], ...]] = (
    (1, (9,), 3, 3, 0, 1, False),
    (1, (9,), 3, 1, 1, 2, False),
    (1, (10,), 3, 2, 1, 1, True),
    (2, (6, 7), 2, 2, 0, 1, False),
    (2, (6, 7), 3, 2, 1, 1, False),
    (2, (6, 7), 3, 1, 0, 1, False),
    (2, (7, 8), 2, 2, 0, 1, True),
    (2, (7, 8), 3, 2, 1, 2, True),
    (3, (4, 5, 4), 2, 2, 0, 1, False),
    (3, (4, 5, 4), 3, 1, 1, 1, True),
)
ADAPTIVE: Final[tuple[tuple[int, Sizes, Sizes], ...]] = (
    (1, (7,), (3,)),
    (1, (6,), (1,)),
    (2, (7, 5), (3, 2)),
    (2, (4, 4), (4, 4)),
    (3, (4, 5, 3), (2, 3, 2)),
)


def _pool(dimensions: int, *arguments: Any, indices: bool = False) -> Call:
    kernel, stride, padding, dilation, ceil_mode = arguments
    if indices:
        name = f"max_pool{dimensions}d_with_indices"
        function = getattr(functional, name)
    else:
        name = f"max_pool{dimensions}d"
        function = getattr(torch, name)
    return Call(name, function, kernel, stride, padding, dilation, ceil_mode=ceil_mode)


def _adaptively(dimensions: int, out: Sizes) -> Call:
    name = f"adaptive_max_pool{dimensions}d"
    return Call(name, torch.adaptive_max_pool1d if dimensions == 1 else getattr(torch._C._nn, name), list(out))


def _cases() -> Iterator[Any]:
    for dimensions, size, *rest in POOLS:
        for indices in (False, True):
            call = _pool(dimensions, *rest, indices=indices)
            label = f"{call.name}-{'-'.join(map(str, rest))}"
            out = call.at(torch.zeros(1, 1, *size)).output.shape[2:]
            kernel, stride, padding, dilation, _ = rest
            windows = [_windows(s, o, kernel, stride, padding, dilation) for s, o in zip(size, out, strict=True)]
            yield pytest.param(call, (2, 2, *size), windows, id=label)
    for dimensions, whole, parts in ADAPTIVE:
        call = _adaptively(dimensions, parts)
        windows = [_adaptive(s, o) for s, o in zip(whole, parts, strict=True)]
        yield pytest.param(call, (2, 2, *whole), windows, id=f"{call.name}-{parts}")


every_pool = pytest.mark.parametrize(("call", "shape", "windows"), list(_cases()))
every_dtype = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


def _assert_complete(call: Call, gradient: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> None:
    found = call.multipliers(gradient, new, old)
    wanted = gradient * (call.at(*new).output - call.at(*old).output)
    told = [v.sum_to_size(a.shape) * (a - b) for v, a, b in zip(found, new, old, strict=True)]
    size = wanted.abs().sum() + sum(t.abs().sum() for t in told)
    assert torch.isfinite(size)
    assert abs(sum(t.sum() for t in told) - wanted.sum()) <= 1e-12 * size


@every_pool
def test_pools_give_each_window_to_its_winner(call: Call, shape: Sizes, windows: Any) -> None:
    x, reference = _draw(*shape, seed=1), _draw(*shape, seed=2)
    gradient = _draw(*call.at(x).output.shape, seed=3)
    (found,) = call.multipliers(gradient, (x,), (reference,))
    torch.testing.assert_close(found, _looped(gradient, x, reference, windows), rtol=1e-12, atol=1e-13)
    _assert_complete(call, gradient, (x,), (reference,))


@every_pool
def test_pools_without_a_batch_are_those_of_one_row(call: Call, shape: Sizes, windows: Any) -> None:
    x, reference = _draw(*shape, seed=1), _draw(*shape, seed=2)
    gradient = _draw(*call.at(x).output.shape, seed=3)
    (alone,) = call.multipliers(gradient[1], (x[1],), (reference[1],))
    assert torch.equal(alone, call.multipliers(gradient, (x,), (reference,))[0][1])


@every_pool
def test_pools_with_ties_add_up_with_shares_between_nothing_and_all(call: Call, shape: Sizes, windows: Any) -> None:
    x, reference = _whole(*shape, seed=1), _whole(*shape, seed=2)
    ones = torch.ones_like(call.at(x).output)
    _assert_complete(call, _draw(*ones.shape, seed=3), (x,), (reference,))
    (found,) = call.multipliers(ones, (x,), (reference,))
    counted = math.prod(len(axis) for axis in windows) * 4
    assert found.min() >= 0
    assert found.sum() <= counted


@every_pool
@every_dtype
@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 0.0])
def test_pools_become_the_gradient(call: Call, shape: Sizes, windows: Any, dtype: torch.dtype, step: float) -> None:
    count = math.prod(shape)
    # no two numbers closer than 0.1, so that no winner changes
    x = (0.1 * torch.randperm(count, generator=torch.Generator().manual_seed(4)).view(shape)).to(dtype)
    reference = (x + step * _draw(*shape, seed=2)).to(dtype)
    gradient = _draw(*call.at(x).output.shape, seed=3, dtype=dtype)
    (found,), (wanted,) = call.multipliers(gradient, (x,), (reference,)), call.gradient(gradient, x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


@every_pool
def test_pools_that_look_at_references_shared_by_examples(call: Call, shape: Sizes, windows: Any) -> None:
    assert _rule(call.name).by_element
    x, reference = _draw(6, *shape[1:], seed=1), _draw(2, *shape[1:], seed=2)
    new, old = call.at(x), call.at(reference.repeat_interleave(3, 0))
    gradient = _draw(*new.output.shape, seed=3)
    (wanted,) = call.multipliers(gradient, (x,), (reference.repeat_interleave(3, 0),))

    def split(operation: Operation, size: int) -> Operation:
        def rows(tensor: Tensor) -> Tensor:
            return tensor.view(2, -1, *tensor.shape[1:])[:, :size].expand(2, 3, *tensor.shape[1:])

        return Operation(
            operation.name, operation.function, operation.arguments, operation.keywords, operation.places,
            (rows(operation.inputs[0]),), rows(operation.output), tuple(rows(extra) for extra in operation.extras),
        )  # fmt: skip

    shared = _rule(call.name).multipliers(gradient.view(2, 3, *gradient.shape[1:]), split(new, 3), split(old, 1))[0]
    assert shared is not None
    assert torch.equal(shared.reshape(x.shape), wanted)


def test_a_window_that_gains_and_a_window_that_loses() -> None:
    # the first window rises from 1 (its first element) to 3 (its second, which was 0): the second gets 2/3
    # the second falls from 5 (its first element, now 1) to 2 (its second, which was 2): the first gets 3/4
    x, reference = torch.tensor([[[0.0, 3.0, 1.0, 2.0]]]), torch.tensor([[[1.0, 0.0, 5.0, 2.0]]])
    (found,) = _pool(1, 2, 2, 0, 1, False).multipliers(torch.ones(1, 1, 2), (x,), (reference,))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 2 / 3, 3 / 4, 0.0]]]))


def test_windows_that_overlap_add_up_at_a_shared_winner() -> None:
    x, reference = torch.tensor([[[0.0, 4.0, 0.0]]]), torch.zeros(1, 1, 3)
    (found,) = _pool(1, 2, 1, 0, 1, False).multipliers(torch.tensor([[[2.0, 3.0]]]), (x,), (reference,))
    assert found.tolist() == [[[0.0, 5.0, 0.0]]]


#: call, dimensions that are reduced
REDUCTIONS: Final = tuple(
    pytest.param(Call(name, getattr(torch, name), *arguments, **keywords), axes, id=f"{name}-{arguments}-{keywords}")
    for names, arguments, keywords, axes in (
        (("max", "min", "amax", "amin"), (), {}, (0, 1, 2)),
        (("max", "min", "amax", "amin"), (1,), {}, (1,)),
        (("max", "min", "amax", "amin"), (), {"dim": -1, "keepdim": True}, (2,)),
        (("max", "min", "amax", "amin"), (0, True), {}, (0,)),
        (("amax", "amin"), ((0, 2),), {}, (0, 2)),
        (("amax", "amin"), ((-1, 0), True), {}, (0, 2)),
        (("amax", "amin"), (), {"dim": (2, 1)}, (1, 2)),
        (("amax", "amin"), ((),), {}, (0, 1, 2)),
    )
    for name in names
)


@pytest.mark.parametrize(("call", "axes"), REDUCTIONS)
def test_reductions_give_each_slice_to_its_winner(call: Call, axes: Sizes) -> None:
    x, reference = _draw(2, 3, 4, seed=1), _draw(2, 3, 4, seed=2)
    output = call.at(x).output
    gradient = _draw(*output.shape, seed=3)
    kept = [axis for axis in range(3) if axis not in axes]
    sign, order = (1 if "max" in call.name else -1), (*kept, *axes)
    flat = [sign * tensor.permute(order).reshape(*(x.shape[axis] for axis in kept), -1) for tensor in (x, reference)]
    given = gradient.reshape(*(x.shape[axis] for axis in kept), 1)
    wanted = _looped(given, flat[0], flat[1], [[list(range(flat[0].shape[-1]))]])
    wanted = wanted.view([x.shape[axis] for axis in order]).permute([order.index(axis) for axis in range(3)])
    torch.testing.assert_close(call.multipliers(gradient, (x,), (reference,))[0], wanted, rtol=1e-12, atol=1e-13)
    _assert_complete_reduction(call, axes, x, reference, gradient)


def _assert_complete_reduction(call: Call, axes: Sizes, x: Tensor, reference: Tensor, gradient: Tensor) -> None:
    told = (call.multipliers(gradient, (x,), (reference,))[0] * (x - reference)).sum(axes)
    wanted = gradient * (call.at(x).output - call.at(reference).output)
    torch.testing.assert_close(told.flatten(), wanted.flatten(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("call", "axes"), REDUCTIONS)
@every_dtype
@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 0.0])
def test_reductions_become_the_gradient(call: Call, axes: Sizes, dtype: torch.dtype, step: float) -> None:
    x = (0.1 * torch.randperm(24, generator=torch.Generator().manual_seed(4)).view(2, 3, 4)).to(dtype)
    reference = (x + step * _draw(2, 3, 4, seed=2)).to(dtype)
    gradient = _draw(*call.at(x).output.shape, seed=3, dtype=dtype)
    (found,), (wanted,) = call.multipliers(gradient, (x,), (reference,)), call.gradient(gradient, x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["max", "amax"])
def test_a_maximum_over_a_masked_sequence_passes_the_mask_by(name: str) -> None:
    x, reference = (torch.tensor([[a, -math.inf, b]], dtype=F64) for a, b in ((1.0, 3.0), (2.0, 0.0)))
    (found,) = Call(name, getattr(torch, name), 1).multipliers(torch.ones(1, dtype=F64), (x,), (reference,))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 1 / 3]], dtype=F64))


_LARGER: Final = (("maximum", 1), ("minimum", -1), ("max", 1), ("min", -1), ("fmax", 1), ("fmin", -1))
every_larger = pytest.mark.parametrize(("name", "sign"), _LARGER)


@every_larger
@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((3, 1), (4,)), ((2, 3, 4), (3, 1))], ids=str)
def test_the_larger_of_two_is_one_of_them_and_what_the_other_is_ahead(
    name: str, sign: int, shapes: tuple[Sizes, Sizes]
) -> None:
    call = Call(name, getattr(torch, name))
    new, old = (tuple(_draw(*shape, seed=seed + i) for i, shape in enumerate(shapes)) for seed in (1, 5))
    gradient = _draw(*call.at(*new).output.shape, seed=3)
    _assert_complete(call, gradient, new, old)
    ahead, ahead_old = sign * (new[0] - new[1]), sign * (old[0] - old[1])
    share = (ahead.clamp(min=0) - ahead_old.clamp(min=0)) / (ahead - ahead_old)
    wanted = (gradient * share).sum_to_size(shapes[0]), (gradient * (1 - share)).sum_to_size(shapes[1])
    torch.testing.assert_close(call.multipliers(gradient, new, old), wanted, rtol=1e-12, atol=1e-12)


@every_larger
@every_dtype
@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 0.0])
def test_the_larger_of_two_becomes_the_gradient(name: str, sign: int, dtype: torch.dtype, step: float) -> None:
    call, a = Call(name, getattr(torch, name)), _draw(30, seed=1, dtype=dtype)
    b = a + torch.where(torch.arange(30) % 2 == 0, 0.5, -0.5).to(dtype)
    b[0] = a[0]  # a tie: half and half, or all to the first of fmax and fmin
    moves = _draw(30, seed=5)
    moves[0] = 0
    old = (a + step * moves).to(dtype), b
    gradient = _draw(30, seed=3, dtype=dtype)
    for found, wanted in zip(call.multipliers(gradient, (a, b), old), call.gradient(gradient, a, b), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["maximum", "minimum", "max", "min", "clamp_min", "clamp_max"])
@pytest.mark.parametrize("step", [1.0, 1e-3, 1e-9, 0.0])
def test_against_a_constant_that_is_larger_in_shape(name: str, step: float) -> None:
    call = Call(name, getattr(torch, name), torch.tensor([-0.6, 0.1, 0.2, 3.0], dtype=F64))
    x = torch.tensor([[0.5], [-0.1], [2.0]], dtype=F64)
    gradient = _draw(3, 4, seed=3)
    (found,) = call.multipliers(gradient, (x,), (x + step,))
    wide = Call(name, getattr(torch, name), call.arguments[0].expand(3, 4))
    (wanted,) = wide.multipliers(gradient, (x.expand(3, 4).clone(),), ((x + step).expand(3, 4).clone(),))
    torch.testing.assert_close(found.sum_to_size(3, 1), wanted.sum(1, keepdim=True), rtol=1e-6, atol=1e-9)
    _assert_complete(call, gradient, (x,), (x - 1,))


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_minus_infinity_on_one_side_in_both_rows_is_finite(name: str) -> None:
    masked, b = torch.tensor([-math.inf], dtype=F64), torch.tensor([2.0], dtype=F64)
    found = Call(name, getattr(torch, name)).multipliers(torch.ones(1, dtype=F64), (masked, b), (masked, b - 1))
    assert [multiplier.item() for multiplier in found] == ([0, 1] if name == "maximum" else [1, 0])


def test_no_rule_of_maxima_is_without_a_case() -> None:
    names = {*vars(torch), *vars(functional), *vars(torch._C._nn), *vars(torch.Tensor)}
    ruled = {
        name for name in names if (rule := Rescale().rule(name)) and rule.multipliers.__module__.endswith(".maxima")
    }
    tested = {case.values[0].name for case in (*_cases(), *REDUCTIONS)} | {name for name, _ in _LARGER}
    assert ruled == tested
