"""Rescale rules of operations with several inputs: products, quotients, norms, and what has no closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import axplain
from axplain.propagation.operations import Operation, flat, name_of, replaced
from axplain_plugins.propagation.rescale import Rescale

X: Final = torch.empty(0)  #: stands in a call where the dependent tensors go
F64, F32 = torch.float64, torch.float32
STEPS: Final = (1e-3, 1e-6, 1e-9, 0.0)
Shapes = tuple[tuple[int, ...], ...]
Rows = tuple[Tensor, ...]


class Call:
    """An operation with room for its dependent tensors, whose shapes it knows."""

    def __init__(
        self,
        function: Callable[..., Any],
        shapes: Shapes,
        *arguments: Any,
        inverses: tuple[bool, ...] = (),
        **keywords: Any,
    ) -> None:
        self.name, self.function, self.shapes = name_of(function).name, function, shapes
        self.arguments, self.keywords, self.inverses = arguments or (X,) * len(shapes), keywords, inverses
        self.places = tuple(place for place, tensor in flat(self.arguments, keywords) if tensor is X)

    def at(self, *inputs: Tensor) -> Operation:
        """Return the operation on some inputs; constants take their type."""
        constants = [(place, t) for place, t in flat(self.arguments, self.keywords) if t is not X]
        places = (*self.places, *(place for place, _ in constants))
        tensors = (*inputs, *(constant.to(inputs[0].dtype) for _, constant in constants))
        given, named = replaced(self.arguments, self.keywords, places, tensors)
        output = self.function(*given, **named)
        inverses = self.inverses or (False,) * len(inputs)
        return Operation(self.name, self.function, tuple(given), named, self.places, inputs, output, (), inverses)

    def multipliers(self, gradient: Tensor, new: Rows, old: Rows) -> Rows:
        """Return what the rule of the operation gives to each input."""
        rule = Rescale().rule(self.name)
        assert rule is not None, self.name
        found = rule.multipliers(gradient, self.at(*new), self.at(*old))
        assert len(found) == len(new)
        return tuple(multiplier for multiplier in found if multiplier is not None)

    def gradient(self, gradient: Tensor, *inputs: Tensor) -> Rows:
        """Return the plain vector-Jacobian product in float64."""
        leaves = [tensor.detach().double().clone().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(self.at(*leaves).output, leaves, gradient.double())

    def draw(self, seed: int, dtype: torch.dtype = F64, low: float = 0.4, high: float = 2.0) -> Rows:
        """Return numbers for the inputs."""
        return tuple(_draw(*shape, seed=seed + i, low=low, high=high).to(dtype) for i, shape in enumerate(self.shapes))


def _draw(*shape: int, seed: int, low: float = 0.4, high: float = 2.0) -> Tensor:
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return low + (high - low) * uniform


_V, _M, _N, _B = (3,), (2, 3), (3, 4), (5, 2, 3)
_W: Final = _draw(2, 3, 3, seed=90)
#: operations that are quadratic in what depends on the seat
QUADRATIC: Final = (
    *(Call(f, (_M, _N)) for f in (torch.matmul, torch.mm)),
    Call(torch.matmul, (_B, _N)),
    Call(torch.matmul, (_V, _N)),
    Call(torch.bmm, (_B, (5, 3, 4))),
    Call(torch.mv, (_M, _V)),
    *(Call(f, (_V, _V)) for f in (torch.dot, torch.vdot, torch.inner)),
    *(Call(f, (_V, (4,))) for f in (torch.outer, torch.ger)),
    Call(torch._VF.einsum, (_B, _N), "bij,jk->bik", [X, X]),  # type: ignore[attr-defined]
    Call(torch._VF.einsum, (_B,), "bij,jk->bik", [X, _draw(3, 4, seed=1)]),  # type: ignore[attr-defined]
    Call(torch._VF.tensordot, (_B, (2, 3, 4)), X, X, [1, 2], [0, 1]),  # type: ignore[attr-defined]
    Call(torch._C._nn.mse_loss, (_M, _M), X, X, 1),
    Call(torch.kron, (_M, _N)),
    Call(torch.cross, (_N[::-1], _N[::-1]), dim=1),
    Call(torch.linalg.cross, (_N[::-1], _N[::-1])),
    Call(functional.linear, (_M, (4, 3), (4,))),
    Call(functional.bilinear, (_M, _M), X, X, _W),
    Call(torch.conv1d, ((2, 3, 8), (4, 3, 3), (4,))),
    Call(torch.conv2d, ((2, 4, 6, 6), (2, 2, 3, 3)), X, X, None, 2, 1, 1, 2),
    Call(torch.conv3d, ((1, 2, 4, 4, 4), (3, 2, 2, 2, 2))),
    Call(torch.conv_transpose1d, ((2, 3, 5), (3, 2, 3))),
    Call(torch.conv_transpose2d, ((1, 3, 4, 4), (3, 2, 3, 3)), X, X, None, 2, 1),
    Call(torch.conv_transpose3d, ((1, 2, 3, 3, 3), (2, 2, 2, 2, 2))),
    Call(torch.addmm, ((2, 4), _M, _N), beta=0.5, alpha=2.0),
    Call(torch.addbmm, ((2, 4), _B, (5, 3, 4))),
    Call(torch.baddbmm, ((5, 2, 4), _B, (5, 3, 4))),
    Call(torch.addmv, ((2,), _M, _V)),
    Call(torch.addr, (_N, _V, (4,))),
    Call(torch.addcmul, (_M, _M, _V), value=-0.7),
    Call(torch.lerp, (_M, _M, _M)),
    Call(torch.var, (_N,), X, 1),
    Call(torch.var, (_N,), X, dim=(0, 1), correction=0),
    *(Call(f, (_M, _M)) for f in (torch.mul, torch.multiply)),
    Call(torch.mul, (_N, (3, 1))),
    Call(torch.mul, ((1, 3), (2, 1))),
)
DIVIDED: Final = (
    *(Call(f, (_M, _M)) for f in (torch.div, torch.divide, torch.true_divide)),
    Call(torch.div, (_N, (3, 1))),
    Call(torch.div, ((3, 1), (4,))),
    Call(torch.div, ((3, 1),), 2.0, X),
    Call(torch.div, ((4,),), _draw(3, 1, seed=2), X),
    Call(torch.mul, (_M, _M), inverses=(False, True)),
    Call(torch.mul, (_N, (3, 1)), inverses=(False, True)),
    Call(torch.mul, ((3, 1), _N), inverses=(True, False)),
)
ROOTS: Final = (
    Call(torch.std, (_N,), X, 1),
    Call(torch.std, (_N,), X, dim=(0, 1), keepdim=True, correction=0),
)
PAIRS: Final = tuple(
    Call(getattr(torch, name), shapes)
    for name in ("atan2", "arctan2", "hypot", "logaddexp", "logaddexp2", "pow")
    for shapes in ((_N, _N), ((3, 1), (4,)))
)
TRILINEAR: Final = (
    Call(torch._VF.einsum, (_V, _V, _V), "i,i,i->", [X, X, X]),  # type: ignore[attr-defined]
    Call(functional.bilinear, (_M, _M, (2, 3, 3))),
)
ALL: Final = (*QUADRATIC, *DIVIDED, *ROOTS, *PAIRS)


def _label(value: Any) -> str | None:
    return f"{value.name}{list(value.shapes)}" if isinstance(value, Call) else None


def _assert_complete(call: Call, gradient: Tensor, new: Rows, old: Rows) -> None:
    """Demand sum g (y - y') = sum of sum v (x - x'), to 1e-12 of what is added up."""
    found = call.multipliers(gradient, new, old)
    wanted = gradient * (call.at(*new).output - call.at(*old).output)
    told = [v.sum_to_size(a.shape) * (a - b) for v, a, b in zip(found, new, old, strict=True)]
    total, size = sum(t.sum() for t in told), wanted.abs().sum() + sum(t.abs().sum() for t in told)
    assert torch.isfinite(size)
    assert abs(total - wanted.sum()) <= 1e-12 * size


every_dtype = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


@pytest.mark.parametrize("call", [*ALL, *TRILINEAR], ids=_label)
def test_what_the_inputs_tell_adds_up_to_the_difference(call: Call) -> None:
    new, old = call.draw(1), call.draw(50)
    gradient = _draw(*call.at(*new).output.shape, seed=7, low=-2, high=2)
    _assert_complete(call, gradient, new, old)
    _assert_complete(call, gradient, new, (new[0], *old[1:]))


@pytest.mark.parametrize("call", [*ALL, *TRILINEAR], ids=_label)
@every_dtype
@pytest.mark.parametrize("step", STEPS)
def test_multipliers_become_the_gradient(call: Call, dtype: torch.dtype, step: float) -> None:
    new = call.draw(1, dtype)
    old = tuple(x + step * torch.where(torch.arange(x.numel()).view(x.shape) % 2 == 0, 1, -1).to(dtype) for x in new)
    gradient = _draw(*call.at(*new).output.shape, seed=7, low=-2, high=2).to(dtype)
    middle = [(a.double() + b.double()) / 2 for a, b in zip(new, old, strict=True)]
    for found, wanted in zip(call.multipliers(gradient, new, old), call.gradient(gradient, *middle), strict=True):
        room = (1 + wanted.abs().max()) * (20 * step**2 + (1e-9 if dtype == F64 else 1e-4))
        assert ((found.double().sum_to_size(wanted.shape) - wanted).abs() <= room).all()


@pytest.mark.parametrize("call", [*DIVIDED, *PAIRS], ids=_label)
def test_short_steps_beside_long_ones_are_still_the_gradient(call: Call) -> None:
    new = call.draw(1)
    old = tuple(x + torch.tensor([0.3, 0.0, 1e-9, 1e-6])[: x.shape[-1]].double() for x in new)
    gradient = _draw(*call.at(*new).output.shape, seed=7, low=-2, high=2)
    _assert_complete(call, gradient, new, old)
    short = torch.zeros_like(gradient)
    short[..., 1:] = gradient[..., 1:]
    if any(x.shape[-1] == 1 for x in new):
        return  # the step of a number that is broadcast is long everywhere
    for found, wanted in zip(call.multipliers(short, new, old), call.gradient(short, *new), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("call", QUADRATIC, ids=_label)
def test_quadratic_operations_take_the_mean_of_both_gradients(call: Call) -> None:
    new, old = call.draw(1, low=-2), call.draw(50, low=-2)
    gradient = _draw(*call.at(*new).output.shape, seed=7, low=-2)
    ends = zip(call.gradient(gradient, *new), call.gradient(gradient, *old), strict=True)
    for found, (one, other) in zip(call.multipliers(gradient, new, old), ends, strict=True):
        torch.testing.assert_close(found, (one + other) / 2, rtol=1e-12, atol=1e-12)


def test_a_product_gives_each_factor_the_mean_of_the_other() -> None:
    new, old = (torch.tensor([3.0]), torch.tensor([5.0])), (torch.tensor([1.0]), torch.tensor([-1.0]))
    found = Call(torch.mul, ((1,), (1,))).multipliers(torch.tensor([10.0]), new, old)
    assert [multiplier.item() for multiplier in found] == [20.0, 20.0]


def test_a_quotient_solves_the_product_for_its_result() -> None:
    # 6 / 2 - 5 / 1 = -2: mean(s) = 1.5, mean(y) = 4, and 1 / 1.5 * 1 - 4 / 1.5 * 1 = -2
    new, old = (torch.tensor([6.0]), torch.tensor([2.0])), (torch.tensor([5.0]), torch.tensor([1.0]))
    found = Call(torch.div, ((1,), (1,))).multipliers(torch.tensor([1.0]), new, old)
    assert [multiplier.item() for multiplier in found] == pytest.approx([1 / 1.5, -4 / 1.5])


@pytest.mark.parametrize("shapes", [(_N, _N), (_N, (3, 1)), ((3, 1), (4,))], ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["x * r", "r * x"])
@pytest.mark.parametrize("low", [0.4, -2.0], ids=["same sign", "signs change"])
def test_a_product_with_an_inverse_is_the_quotient_that_it_stands_for(shapes: Shapes, turned: bool, low: float) -> None:
    quotient, inverse = Call(torch.div, shapes), Call(torch.reciprocal, shapes[1:])
    product = Call(torch.mul, shapes[::-1] if turned else shapes, inverses=(turned, not turned))
    new, old = quotient.draw(1, low=low), quotient.draw(50, low=low)
    gradient = _draw(*quotient.at(*new).output.shape, seed=7, low=-2)
    wanted = quotient.multipliers(gradient, new, old)
    hand = [(a, 1 / s) for a, s in (new, old)]
    factors = [pair[::-1] if turned else pair for pair in hand]
    for_x, for_r = product.multipliers(gradient, factors[0], factors[1])[:: -1 if turned else 1]
    (for_s,) = inverse.multipliers(for_r, new[1:], old[1:])
    torch.testing.assert_close((for_x, for_s), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("call", DIVIDED, ids=_label)
def test_a_divisor_that_changes_its_sign_still_adds_up(call: Call) -> None:
    new, old = call.draw(1), call.draw(50)
    if len(call.places) == 1:
        new, old = new, (-old[0],)
    elif call.inverses == (True, False):
        old = (-old[0], old[1])
    else:
        old = (old[0], -old[1])
    gradient = _draw(*call.at(*new).output.shape, seed=7, low=-2)
    _assert_complete(call, gradient, new, old)
    for found, x in zip(call.multipliers(gradient, new, old), new, strict=True):
        assert found.shape == x.shape
        assert found.abs().max() < 1e3


def test_an_inverse_that_is_zero_in_a_row_is_a_plain_factor() -> None:
    call = Call(torch.mul, ((1,), (1,)), inverses=(False, True))
    new, old = (torch.tensor([3.0]), torch.tensor([0.0])), (torch.tensor([1.0]), torch.tensor([4.0]))
    assert [m.item() for m in call.multipliers(torch.ones(1), new, old)] == [2.0, 2.0]


@pytest.mark.parametrize("size", [1e-20, 1e-12, 1e12, 1e20])
@pytest.mark.parametrize("place", ["div", "mul"])
def test_small_and_large_divisors_are_exact_in_float32(size: float, place: str) -> None:
    s, s_old = torch.tensor([size], dtype=F32), torch.tensor([2 * size], dtype=F32)
    one = torch.ones(1, dtype=F32)
    call = Call(torch.div, ((1,), (1,))) if place == "div" else Call(torch.mul, ((1,), (1,)), inverses=(False, True))
    new, old = ((one, s), (one, s_old)) if place == "div" else ((one, 1 / s), (one, 1 / s_old))
    for_x, _ = call.multipliers(one, new, old)
    assert for_x.item() == pytest.approx(2 / (3 * size), rel=1e-4)


@pytest.mark.parametrize("call", ROOTS, ids=_label)
def test_roots_are_flat_where_both_rows_are_zero_and_finite_between_opposites(call: Call) -> None:
    (x,) = call.draw(1)
    zero, gradient = torch.zeros_like(x), torch.ones_like(call.at(x).output)
    (flat_multipliers,) = call.multipliers(gradient, (zero,), (zero,))
    assert (flat_multipliers == 0).all()
    _assert_complete(call, gradient, (x,), (zero,))
    (opposite,) = call.multipliers(gradient, (x,), (-x,))
    assert opposite.abs().max() < 1e-10


@pytest.mark.parametrize("call", ROOTS, ids=_label)
def test_roots_split_by_the_sum_of_both_rows(call: Call) -> None:
    (x,), (reference,) = call.draw(1), call.draw(50)
    y, y_old = call.at(x).output, call.at(reference).output
    gradient = _draw(*y.shape, seed=7)
    middle = ((x + reference) / 2).requires_grad_()
    (wanted,) = torch.autograd.grad(call.at(middle).output.square(), middle, gradient / (y + y_old))
    torch.testing.assert_close(call.multipliers(gradient, (x,), (reference,))[0], wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", [1, 2, 3, 0.5, math.inf, -math.inf])
def test_norms_of_any_order_add_up(order: float) -> None:
    x, reference = (_draw(5, 4, seed=seed, low=-2) for seed in (1, 2))
    found = axplain.explain(lambda rows: rows.norm(order, 1), x, "deeplift", baselines=reference).attributions
    torch.testing.assert_close(found.sum(1), x.norm(order, 1) - reference.norm(order, 1), rtol=1e-12, atol=1e-13)


def test_the_euclidean_norm_shares_by_the_change_of_squares_and_the_first_by_that_of_sizes() -> None:
    x, reference = (_draw(5, 4, seed=seed, low=-2) for seed in (1, 2))
    one = axplain.explain(lambda rows: rows.norm(1, 1), x, "deeplift", baselines=reference).attributions
    torch.testing.assert_close(one, x.abs() - reference.abs(), rtol=1e-12, atol=1e-13)
    two = axplain.explain(lambda rows: rows.norm(2, 1), x, "deeplift", baselines=reference).attributions
    lengths = x.norm(2, 1, keepdim=True) + reference.norm(2, 1, keepdim=True)
    torch.testing.assert_close(two, (x.square() - reference.square()) / lengths, rtol=1e-12, atol=1e-13)


@every_dtype
@pytest.mark.parametrize("size", [1e-9, 1e-15, 1e-22])
def test_steps_shorter_than_the_rounding_of_the_result_do_not_blow_up(dtype: torch.dtype, size: float) -> None:
    new, old = [torch.tensor([n * size], dtype=dtype) for n in (1, 3)], [torch.zeros(1, dtype=dtype)] * 2
    found = Call(torch.logaddexp, ((1,), (1,))).multipliers(torch.ones(1, dtype=dtype), tuple(new), tuple(old))
    assert [multiplier.item() for multiplier in found] == pytest.approx([0.5, 0.5], abs=1e-2)


@pytest.mark.parametrize("function", [torch.hypot, torch.atan2], ids=name_of)
def test_two_inputs_on_opposite_sides_of_the_origin_are_finite(function: Callable[..., Tensor]) -> None:
    new = (torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.5, -1.0], dtype=F64))
    _assert_complete(Call(function, ((2,), (2,))), torch.ones(2, dtype=F64), new, (-new[0], -new[1]))


@pytest.mark.parametrize("name", ["hypot", "logaddexp", "atan2", "pow"])
def test_operations_without_a_closed_form_add_up_at_each_element(name: str) -> None:
    call = Call(getattr(torch, name), (_N, _N))
    new, old = call.draw(1), call.draw(50)
    found = call.multipliers(torch.ones(_N, dtype=F64), new, old)
    told = sum((v * (a - b) for v, a, b in zip(found, new, old, strict=True)), torch.zeros(_N, dtype=F64))
    torch.testing.assert_close(told, call.at(*new).output - call.at(*old).output, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "constant", [torch.tensor([1.0, 2.5, 3.0, 0.5]), torch.tensor([[2.0, 0.5, 1.0, 3.0]])], ids=str
)
@pytest.mark.parametrize("step", [1.0, 1e-3, 1e-9, 0.0])
def test_a_base_that_is_broadcast_collects_what_its_copies_get(constant: Tensor, step: float) -> None:
    narrow, wide = Call(torch.pow, ((3, 1),), X, constant), Call(torch.pow, (_N,), X, constant)
    (x,), gradient = narrow.draw(1), _draw(*_N, seed=7)
    (found,) = narrow.multipliers(gradient, (x,), (x + step,))
    (wanted,) = wide.multipliers(gradient, (x.expand(_N).clone(),), ((x + step).expand(_N).clone(),))
    torch.testing.assert_close(found.sum_to_size(x.shape), wanted.sum_to_size(x.shape), rtol=1e-9, atol=1e-12)


def test_no_rule_of_products_is_without_a_case() -> None:
    spaces = (torch, torch.Tensor, functional, torch._C._nn, torch.linalg)
    functions = [f for space in spaces for f in vars(space).values() if callable(f) and hasattr(f, "__name__")]
    names = {name_of(f).name for f in functions}
    ruled = {n for n in names if (rule := Rescale().rule(n)) and rule.multipliers.__module__.endswith(".products")}
    assert ruled <= {call.name for call in ALL}
    assert len(ruled) > 30
