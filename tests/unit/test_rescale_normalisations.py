"""Rescale rules of normalisations and of softmax and its relatives, derived again here as matrices, slice by slice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import axplain
from axplain.propagation.operations import Operation
from axplain_plugins.propagation.rescale import Rescale

F64, F32 = torch.float64, torch.float32
STEPS: Final = (1e-3, 1e-6, 1e-9, 0.0)
Jacobian = Callable[[Tensor, Tensor], Tensor]


def _draw(*shape: int, seed: int, spread: float = 1.0, dtype: torch.dtype = F64) -> Tensor:
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return (spread * normal).to(dtype)


class Call:
    """An operation on one tensor; constants take its type."""

    def __init__(self, name: str, *arguments: Any, **keywords: Any) -> None:
        self.name, self.function = name, getattr(torch, name)
        self.arguments, self.keywords = arguments, keywords

    def at(self, x: Tensor) -> Operation:
        """Return the operation on x."""
        more = [item.to(x.dtype) if isinstance(item, Tensor) else item for item in self.arguments]
        output = self.function(x, *more, **self.keywords)
        return Operation(self.name, self.function, (x, *more), self.keywords, ((0,),), (x,), output)

    def multipliers(self, gradient: Tensor, x: Tensor, reference: Tensor) -> Tensor:
        """Return what the rule gives."""
        return _ruled(self.name, gradient, self.at(x), self.at(reference))

    def gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """Return the plain vector-Jacobian product in float64."""
        leaf = x.detach().double().clone().requires_grad_()
        return torch.autograd.grad(self.at(leaf).output, leaf, gradient.double())[0]


def _ruled(name: str, gradient: Tensor, new: Operation, old: Operation, place: int = 0) -> Tensor:
    rule = Rescale().rule(name)
    assert rule is not None, name
    found = rule.multipliers(gradient, new, old)[place]
    assert found is not None
    return found


def _normalising(c: Tensor, c_old: Tensor, eps: float) -> Tensor:
    """Return J with y - y' = J (c - c') for y = c / s, from c = y s: dc = mean(s) dy + mean(y) ds.

    s ds = dq / 2 with mean(s), and q = mean(c^2) + eps has dq = 2 mean(c) . dc / n.
    """
    s, s_old = (torch.sqrt(row.square().mean() + eps) for row in (c, c_old))
    root = (c + c_old) / len(c) / (s + s_old)
    y = (c / s + c_old / s_old) / 2
    return (torch.eye(len(c), dtype=F64) - torch.outer(y, root)) / ((s + s_old) / 2)


def _centred(x: Tensor, reference: Tensor, eps: float = 1e-5) -> Tensor:
    centre = torch.eye(len(x), dtype=F64) - 1 / len(x)
    return centre @ _normalising(x - x.mean(), reference - reference.mean(), eps) @ centre


def _exponentials(x: Tensor, reference: Tensor) -> Tensor:
    half = (x - reference) / 2
    return ((x + reference) / 2).exp() * torch.where(half == 0, 1.0, torch.sinh(half) / half)


def _softmaxing(x: Tensor, reference: Tensor) -> Tensor:
    """Return the same for y = a / s with a = exp(x) and s its sum, from a = y s."""
    rise, s, s_old = _exponentials(x, reference), x.exp().sum(), reference.exp().sum()
    y = (x.softmax(0) + reference.softmax(0)) / 2
    return (torch.diag(rise) - torch.outer(y, rise)) / ((s + s_old) / 2)


def _summing(x: Tensor, reference: Tensor) -> Tensor:
    """Return the row for log(s)."""
    s, s_old = x.exp().sum(), reference.exp().sum()
    return (_exponentials(x, reference) * (s.log() - s_old.log()) / (s - s_old)).unsqueeze(0)


def _log_softmaxing(x: Tensor, reference: Tensor) -> Tensor:
    return torch.eye(len(x), dtype=F64) - _summing(x, reference)


_WEIGHT, _BIAS = _draw(6, seed=80), _draw(6, seed=81)
_GROUPED, _SLICED = _draw(4, seed=82), _draw(3, seed=83)
#: call, shape of x, how slices lie in x as (slices, elements), what multiplies g, the matrix of one slice
NORMS: Final[tuple[tuple[Call, tuple[int, ...], tuple[int, int], Tensor, Jacobian], ...]] = (
    (Call("layer_norm", (6,), _WEIGHT, _BIAS), (5, 6), (5, 6), _WEIGHT, _centred),
    (Call("layer_norm", (2, 3), None, None, 0.1), (4, 2, 3), (4, 6), torch.ones(()), lambda a, b: _centred(a, b, 0.1)),
    (Call("rms_norm", (6,), _WEIGHT, 0.01), (5, 6), (5, 6), _WEIGHT, lambda a, b: _normalising(a, b, 0.01)),
    (Call("rms_norm", (6,)), (5, 6), (5, 6), torch.ones(()), lambda a, b: _normalising(a, b, 2.220446049250313e-16)),
    (Call("group_norm", 2, _GROUPED, _GROUPED), (2, 4, 3), (4, 6), _GROUPED.view(4, 1), _centred),
    (Call("group_norm", 2, eps=0.3), (2, 4), (4, 2), torch.ones(()), lambda a, b: _centred(a, b, 0.3)),
    (
        Call("instance_norm", _SLICED, _SLICED, None, None, True, 0.1, 1e-5, False),
        (2, 3, 2, 4),
        (6, 8),
        _SLICED.view(3, 1, 1),
        _centred,
    ),
)
SOFT: Final = {"softmax": _softmaxing, "log_softmax": _log_softmaxing, "logsumexp": _summing}
CALLS: Final = (
    *((call, shape) for call, shape, *_ in NORMS),
    *((Call(name, dim), (2, 4, 3)) for name in SOFT for dim in (-1, 1, 0)),
    (Call("logsumexp", (0, 2), True), (2, 4, 3)),
    (Call("logsumexp", dim=(2, 1)), (2, 4, 3)),
)


def _label(value: Any) -> str | None:
    return (
        f"{value.name}{[a for a in value.arguments if not isinstance(a, Tensor)]}" if isinstance(value, Call) else None
    )


every_call = pytest.mark.parametrize(("call", "shape"), CALLS, ids=_label)
every_dtype = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
every_soft = pytest.mark.parametrize("name", SOFT)


@every_call
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_what_the_inputs_tell_adds_up_to_the_difference(call: Call, shape: tuple[int, ...], spread: float) -> None:
    x, reference = _draw(*shape, seed=1, spread=spread), _draw(*shape, seed=2, spread=spread)
    y, y_old = call.at(x).output, call.at(reference).output
    gradient = _draw(*y.shape, seed=3)
    told = call.multipliers(gradient, x, reference) * (x - reference)
    wanted = gradient * (y - y_old)
    assert torch.isfinite(told).all()
    assert abs(told.sum() - wanted.sum()) <= 1e-12 * (told.abs().sum() + wanted.abs().sum())


@every_call
@every_dtype
@pytest.mark.parametrize("step", STEPS)
def test_multipliers_become_the_gradient(call: Call, shape: tuple[int, ...], dtype: torch.dtype, step: float) -> None:
    x = _draw(*shape, seed=1, dtype=dtype)
    reference = (x + step * _draw(*shape, seed=2)).to(dtype)
    gradient = _draw(*call.at(x).output.shape, seed=3, dtype=dtype)
    wanted = call.gradient(gradient, (x.double() + reference.double()) / 2)
    found = call.multipliers(gradient, x, reference).double()
    assert found.shape == x.shape
    room = (1 + wanted.abs().max()) * (30 * step**2 + (1e-12 if dtype == F64 else 1e-5))
    assert ((found - wanted).abs() <= room).all()


@pytest.mark.parametrize(("call", "shape", "slices", "weight", "jacobian"), NORMS, ids=_label)
@pytest.mark.parametrize("far", [True, False])
def test_normalisations_solve_the_product_of_result_and_deviation(
    call: Call, shape: tuple[int, ...], slices: tuple[int, int], weight: Tensor, jacobian: Jacobian, far: bool
) -> None:
    x = _draw(*shape, seed=1)
    reference, gradient = (_draw(*shape, seed=2) if far else x + 1e-4 * _draw(*shape, seed=2)), _draw(*shape, seed=3)
    weighted = (gradient * weight).reshape(slices)
    rows = zip(weighted, x.reshape(slices), reference.reshape(slices), strict=True)
    wanted = torch.stack([g @ jacobian(new, old) for g, new, old in rows]).view(shape)
    torch.testing.assert_close(call.multipliers(gradient, x, reference), wanted, rtol=1e-11, atol=1e-12)


@every_soft
@pytest.mark.parametrize("dim", [-1, 1, 0])
def test_softmax_and_its_relatives_solve_the_same_product(name: str, dim: int) -> None:
    call, x, reference = Call(name, dim), _draw(2, 4, 3, seed=1), _draw(2, 4, 3, seed=2)
    gradient = _draw(*call.at(x).output.shape, seed=3)
    last = [tensor.movedim(dim, -1).reshape(-1, x.shape[dim]) for tensor in (x, reference)]
    given = gradient.reshape(-1, 1) if name == "logsumexp" else gradient.movedim(dim, -1).reshape(-1, x.shape[dim])
    wanted = torch.stack([g @ SOFT[name](*rows) for g, *rows in zip(given, *last, strict=True)])
    found = call.multipliers(gradient, x, reference).movedim(dim, -1).reshape(wanted.shape)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [(0, 2), (2, 0), (-1, -3)])
def test_logsumexp_over_several_dimensions_is_that_of_the_flat_slice(dim: tuple[int, ...], keepdim: bool) -> None:
    x, reference = _draw(2, 4, 3, seed=1), _draw(2, 4, 3, seed=2)
    call = Call("logsumexp", dim, keepdim)
    gradient = _draw(*call.at(x).output.shape, seed=3)
    flat = [tensor.movedim(1, 0).reshape(4, 6) for tensor in (x, reference)]
    wanted = Call("logsumexp", 1).multipliers(gradient.flatten(), *flat)
    found = call.multipliers(gradient, x, reference).movedim(1, 0).reshape(4, 6)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def _hand_written_norm(
    gradient: Tensor, x: Tensor, reference: Tensor, eps: float, centred: bool, divide: bool
) -> Tensor:
    """Return the multipliers of c * rsqrt(mean(c^2) + eps), or of c / sqrt(...), operation by operation."""

    def parts(row: Tensor) -> tuple[Operation, Operation, Operation]:
        c = row - row.mean(-1, keepdim=True) if centred else row
        square = Operation("square", torch.square, (c,), {}, ((0,),), (c,), c.square())
        q = square.output.mean(-1, keepdim=True) + eps
        root = torch.sqrt if divide else torch.rsqrt
        s = Operation(root.__name__, root, (q,), {}, ((0,),), (q,), root(q))
        joined = torch.div if divide else torch.mul
        y = joined(c, s.output)
        places, inverses = ((0,), (1,)), (False, not divide)
        last = Operation(joined.__name__, joined, (c, s.output), {}, places, (c, s.output), y, (), inverses)
        return square, s, last

    new, old = parts(x), parts(reference)
    for_c = _ruled(new[2].name, gradient, new[2], old[2], 0)
    for_s = _ruled(new[2].name, gradient, new[2], old[2], 1)
    for_q = _ruled(new[1].name, for_s, new[1], old[1]).expand_as(x) / x.shape[-1]
    for_c = for_c + _ruled("square", for_q, new[0], old[0])
    return for_c - for_c.mean(-1, keepdim=True) if centred else for_c


@pytest.mark.parametrize("divide", [False, True], ids=["times rsqrt", "divided by sqrt"])
@pytest.mark.parametrize(("name", "centred"), [("layer_norm", True), ("rms_norm", False)])
@pytest.mark.parametrize("spread", [1.0, 1e-7])
def test_norms_written_by_hand_are_the_norms_of_torch(name: str, centred: bool, divide: bool, spread: float) -> None:
    x, gradient = _draw(5, 6, seed=1), _draw(5, 6, seed=3)
    reference = x + spread * _draw(5, 6, seed=2)
    call = Call(name, (6,), None, None, 1e-3) if centred else Call(name, (6,), None, 1e-3)
    found = _hand_written_norm(gradient, x, reference, 1e-3, centred, divide)
    torch.testing.assert_close(found, call.multipliers(gradient, x, reference), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("call", "shape"), CALLS[: len(NORMS)], ids=_label)
@every_dtype
def test_a_constant_slice_is_finite_beside_another(call: Call, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, constant = _draw(*shape, seed=1, dtype=dtype), torch.zeros(shape, dtype=dtype)
    gradient = torch.ones(shape, dtype=dtype)
    for pair in ((x, constant), (constant, x), (constant, constant)):
        assert torch.isfinite(call.multipliers(gradient, *pair)).all()


@every_soft
@every_dtype
@pytest.mark.parametrize("mask", ["-inf", "lowest"])
def test_masked_entries_get_nothing_and_leave_the_rest_as_without_them(
    name: str, dtype: torch.dtype, mask: str
) -> None:
    blocked = -math.inf if mask == "-inf" else torch.finfo(dtype).min
    x, reference = _draw(3, 4, seed=1, dtype=dtype), _draw(3, 4, seed=2, dtype=dtype)
    wide = [torch.cat([row, torch.full((3, 2), blocked, dtype=dtype)], 1) for row in (x, reference)]
    call = Call(name, 1)
    gradient = _draw(*call.at(x).output.shape, seed=3, dtype=dtype)
    padded = gradient if name == "logsumexp" else torch.cat([gradient, torch.zeros(3, 2, dtype=dtype)], 1)
    found = call.multipliers(padded, *wide)
    assert (found[:, 4:] == 0).all()
    torch.testing.assert_close(found[:, :4], call.multipliers(gradient, x, reference), rtol=1e-5, atol=1e-6)


@every_dtype
def test_the_weight_of_a_masked_entry_is_zero_whatever_is_asked_of_it(dtype: torch.dtype) -> None:
    x, reference = (torch.tensor([[1.0, -math.inf, last]], dtype=dtype) for last in (0.5, -2.0))
    found = Call("softmax", 1).multipliers(torch.tensor([[1.0, 100.0, -1.0]], dtype=dtype), x, reference)
    assert found[0, 1] == 0
    assert torch.isfinite(found).all()


def test_a_row_of_finite_masks_alone_is_uniform() -> None:
    x = torch.full((1, 4), torch.finfo(F32).min)
    found = Call("softmax", 1).multipliers(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), x, x)
    torch.testing.assert_close(found, torch.tensor([[3 / 16, -1 / 16, -1 / 16, -1 / 16]]))


@every_soft
@pytest.mark.parametrize("shift", [-1e4, 1e4, 80.0])
def test_a_shift_of_both_rows_changes_nothing(name: str, shift: float) -> None:
    x, reference = _draw(3, 4, seed=1), _draw(3, 4, seed=2)
    call = Call(name, 1)
    gradient = _draw(*call.at(x).output.shape, seed=3)
    found = call.multipliers(gradient, x + shift, reference + shift)
    torch.testing.assert_close(found, call.multipliers(gradient, x, reference), rtol=1e-9, atol=1e-9)


@every_soft
def test_a_large_shift_of_both_rows_costs_no_digits_in_float32(name: str) -> None:
    x, reference = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[6.0, -1.0, -3.0]])
    call, gradient = Call(name, 1), torch.tensor([1.0]) if name == "logsumexp" else torch.tensor([[1.0, 0.0, 0.0]])
    found = call.multipliers(gradient, x + 10_000, reference + 10_000)  # whole numbers: no rounding in the sum
    torch.testing.assert_close(found, call.multipliers(gradient, x, reference), rtol=1e-5, atol=1e-7)


@every_soft
@every_dtype
@pytest.mark.parametrize("gap", [20.0, 60.0, 120.0, 800.0, 1e4])
def test_rows_of_very_different_height_stay_finite_and_complete(name: str, dtype: torch.dtype, gap: float) -> None:
    call, x = Call(name, 1), _draw(3, 4, seed=1, dtype=dtype)
    reference = x - gap + _draw(3, 4, seed=2, dtype=dtype)
    gradient = _draw(*call.at(x).output.shape, seed=3, dtype=dtype)
    for pair in ((x, reference), (reference, x)):
        told = call.multipliers(gradient, *pair) * (pair[0] - pair[1])
        wanted = gradient * (call.at(pair[0]).output - call.at(pair[1]).output)
        size = told.abs().sum() + wanted.abs().sum()
        assert torch.isfinite(size)
        assert abs(told.sum() - wanted.sum()) <= (1e-12 if dtype == F64 else 1e-5) * size


def test_softmax_that_casts_is_softmax_of_the_cast() -> None:
    x, reference, gradient = _draw(2, 4, seed=1, dtype=F32), _draw(2, 4, seed=2, dtype=F32), _draw(2, 4, seed=3)
    cast = Call("softmax", 1, dtype=F64).multipliers(gradient, x, reference)
    torch.testing.assert_close(cast, Call("softmax", 1).multipliers(gradient, x.double(), reference.double()))


@pytest.mark.parametrize("name", ["GLU", "Softmin", "Softmax", "LogSoftmax"])
def test_activations_over_several_units_have_the_closed_form_on_two_layers(name: str) -> None:
    first, last = nn.Linear(4, 6).double(), nn.Linear(3 if name == "GLU" else 6, 1).double()
    model = nn.Sequential(first, getattr(nn, name)(-1), last)
    x, reference = _draw(3, 4, seed=1), _draw(3, 4, seed=2)
    with torch.no_grad():
        rows = zip(first(x), first(reference), strict=True)
        jacobians = torch.stack([_activating(name, new, old) for new, old in rows])
        wanted = (x - reference) * (last.weight @ jacobians @ first.weight).squeeze(1)
    found = axplain.explain(model, x, "deeplift", baselines=reference).attributions
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def _activating(name: str, z: Tensor, z_old: Tensor) -> Tensor:
    if name == "GLU":
        (values, gates), (values_old, gates_old) = z.chunk(2), z_old.chunk(2)
        by_value = (gates.sigmoid() + gates_old.sigmoid()) / 2
        by_gate = (values + values_old) / 2 * (gates.sigmoid() - gates_old.sigmoid()) / (gates - gates_old)
        return torch.cat([torch.diag(by_value), torch.diag(by_gate)], 1)
    if name == "Softmin":
        return -_softmaxing(-z, -z_old)
    return _softmaxing(z, z_old) if name == "Softmax" else _log_softmaxing(z, z_old)


def test_softmax2d_is_softmax_over_channels() -> None:
    x, reference, weight = _draw(1, 3, 3, 4, seed=1), _draw(1, 3, 3, 4, seed=2), _draw(3, 3, 4, seed=3)
    found = axplain.explain(
        lambda rows: (nn.Softmax2d()(rows) * weight).sum((1, 2, 3)), x, "deeplift", baselines=reference
    ).attributions
    for i in range(12):
        z, z_old, w = (tensor.view(3, 12)[:, i] for tensor in (x, reference, weight))
        wanted = (z - z_old) * (w @ _softmaxing(z, z_old))
        torch.testing.assert_close(found.view(3, 12)[:, i], wanted, rtol=1e-10, atol=1e-12)


def test_no_normalisation_is_without_a_case() -> None:
    names = {*vars(torch), *vars(functional), *vars(torch.Tensor)}
    ruled = {n for n in names if (r := Rescale().rule(n)) and r.multipliers.__module__.endswith(".normalisations")}
    assert ruled == {call.name for call, _ in CALLS}
