"""Rescale rules of one number at a time: secants, the derivative where example and reference meet, and kinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import axplain
from axplain.errors import UncoveredOperation
from axplain.propagation.operations import Operation, flat, name_of, replaced
from axplain_plugins.propagation.rescale import Rescale

X: Final = torch.empty(0)  #: stands in a call where the dependent tensors go
F64, F32 = torch.float64, torch.float32
STEPS: Final = (1e-3, 1e-6, 1e-9, 0.0)
_CLOSE: Final = {F64: (1e-8, 3e-9), F32: (1e-3, 1e-4)}


class Call:
    """An operation with room for its dependent tensors."""

    def __init__(self, name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        self.name, self.function, self.arguments, self.keywords = name, function, arguments or (X,), keywords
        self.places = tuple(place for place, tensor in flat(self.arguments, keywords) if tensor is X)

    def at(self, *inputs: Tensor) -> Operation:
        """Return the operation on some inputs; constants take their type."""
        cast = [
            item.to(inputs[0].dtype) if isinstance(item, Tensor) and item is not X else item for item in self.arguments
        ]
        given, named = replaced(tuple(cast), self.keywords, self.places, inputs)
        output = self.function(*given, **named)
        return Operation(self.name, self.function, tuple(given), named, self.places, inputs, output)

    def multipliers(self, gradient: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what the rule of the operation gives to each input."""
        found = _rule(self).multipliers(gradient, self.at(*new), self.at(*old))
        assert all(isinstance(multiplier, Tensor) for multiplier in found)
        return tuple(multiplier for multiplier in found if multiplier is not None)

    def slope(self, x: Tensor, reference: Tensor) -> Tensor:
        """Return the slope that the rule gives to each element of one input."""
        (found,) = self.multipliers(torch.ones_like(self.at(x).output), (x,), (reference,))
        return found

    def gradient(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the plain derivative in float64."""
        leaves = [tensor.detach().double().clone().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(self.at(*leaves).output.sum(), leaves)


def _rule(call: Call) -> Any:
    rule = Rescale().rule(call.name)
    assert rule is not None, call.name
    return rule


Row = tuple[Call, tuple[float, float], tuple[float, ...]]


def _row(
    function: Callable[..., Any], low: float, high: float, *more: Any, kinks: tuple[float, ...] = (), **keywords: Any
) -> Row:
    return Call(name_of(function).name, function, X, *more, **keywords), (low, high), kinks


_NN: Final = torch._C._nn
_PAIRWISE: Final = ("atan2", "arctan2", "hypot", "logaddexp", "logaddexp2")
#: call, where its inputs are drawn from, where it has a kink
ROWS: Final[tuple[Row, ...]] = (
    *(_row(f, -3, 3) for f in (torch.sigmoid, torch.tanh, functional.silu, functional.mish, functional.softsign)),
    _row(_NN.gelu, -3, 3),
    _row(_NN.gelu, -3, 3, approximate="tanh"),
    _row(functional.elu, -3, 3, kinks=(0.0,), alpha=0.6),
    _row(torch.selu, -3, 3, kinks=(0.0,)),
    _row(torch.celu, -3, 3, alpha=2.0),
    _row(_NN.softplus, -3, 3, 2.0, 20.0),
    _row(_NN.log_sigmoid, -3, 3),
    _row(functional.tanhshrink, -3, 3),
    _row(functional.hardswish, -4, 4, kinks=(-3.0, 3.0)),
    _row(functional.relu6, -2, 8, kinks=(0.0, 6.0)),
    _row(functional.hardtanh, -2, 2, kinks=(-1.0, 1.0)),
    _row(functional.leaky_relu, -3, 3, 0.1, kinks=(0.0,)),
    _row(torch.prelu, -3, 3, torch.tensor([0.2]), kinks=(0.0,)),
    _row(torch.rrelu, -3, 3, 0.1, 0.3, False, kinks=(0.0,)),
    _row(functional.hardsigmoid, -4, 4, kinks=(-3.0, 3.0)),
    _row(_NN.softshrink, -2, 2, 0.5, kinks=(-0.5, 0.5)),
    _row(torch.threshold, -2, 2, 0.0, 0.0, kinks=(0.0,)),
    _row(torch.relu, -2, 2, kinks=(0.0,)),
    *(_row(f, -2, 2, kinks=(0.0,)) for f in (torch.abs, torch.absolute)),
    _row(torch.clamp_min, -2, 2, 0.25, kinks=(0.25,)),
    _row(torch.clamp_max, -2, 2, 0.25, kinks=(0.25,)),
    *(_row(f, -1, 1) for f in (torch.erf, torch.erfc, torch.sin, torch.cos, torch.tan, torch.sinh, torch.cosh)),
    *(_row(f, -0.8, 0.8) for f in (torch.asin, torch.acos, torch.arcsin, torch.arccos, torch.atanh, torch.arctanh)),
    *(_row(f, -2, 2) for f in (torch.atan, torch.arctan, torch.asinh, torch.arcsinh, torch.sinc, torch.exp2)),
    *(_row(f, 1.3, 4) for f in (torch.acosh, torch.arccosh)),
    *(_row(f, -0.5, 2) for f in (torch.expm1, torch.log1p)),
    *(_row(f, -2, 2) for f in (torch.special.expit, torch.special.erf, torch.rad2deg, torch.deg2rad)),
    _row(torch.logit, 0.1, 0.9),
    _row(torch.erfinv, -0.8, 0.8),
    *(_row(f, 0.2, 5) for f in (torch.log, torch.log2, torch.log10)),
    *(_row(f, 0.2, 4) for f in (torch.sqrt, torch.rsqrt, torch.reciprocal)),
    *(_row(f, -2, 2) for f in (torch.exp, torch.square)),
    *(_row(torch.pow, 0.3, 3, exponent) for exponent in (2, 0.5, -0.5, -1, 3, 1.7, -2, torch.tensor([1.5]))),
    (Call("pow", torch.pow, 2.0, X), (-2, 2), ()),
    *((Call(name, getattr(torch, name), X, torch.tensor(0.7)), (0.3, 2), ()) for name in _PAIRWISE),
)
KINKED: Final = [(call, kink) for call, _, kinks in ROWS for kink in kinks]


def _label(value: Any) -> str | None:
    return f"{value.name}{[a for a in value.arguments if a is not X] or ''}" if isinstance(value, Call) else None


every_row = pytest.mark.parametrize(("call", "bounds", "kinks"), ROWS, ids=_label)
every_dtype = pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])


def _draw(low: float, high: float, count: int = 60, seed: int = 3, dtype: torch.dtype = F64) -> Tensor:
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return (low + (high - low) * uniform).to(dtype)


def _smooth(x: Tensor, kinks: tuple[float, ...]) -> Tensor:
    """Return the points of which no short step crosses a kink."""
    for kink in kinks:
        x = x[(x - kink).abs() > 0.01]
    return x


def _assert_complete(call: Call, gradient: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> None:
    """Demand g (y - y') = sum of v (x - x') at every element, up to rounding of what is subtracted."""
    found = call.multipliers(gradient, new, old)
    y, y_old = call.at(*new).output, call.at(*old).output
    wanted = gradient * (y - y_old)
    told = sum((v * (a - b) for v, a, b in zip(found, new, old, strict=True)), torch.zeros_like(wanted))
    size = (
        (gradient * y).abs()
        + (gradient * y_old).abs()
        + sum(v.abs() * (a.abs() + b.abs()) for v, a, b in zip(found, new, old, strict=True))
    )
    assert torch.isfinite(told).all()
    assert ((told - wanted).abs() <= 1e-12 * size).all(), (told - wanted).abs().max()


@every_row
def test_every_element_tells_its_own_difference(call: Call, bounds: tuple[float, float], kinks: Any) -> None:
    x, reference, gradient = _draw(*bounds), _draw(*bounds, seed=4), _draw(-2, 2, seed=5)
    _assert_complete(call, gradient, (x,), (reference,))
    exact = (call.at(x).output - call.at(reference).output) / (x - reference)
    torch.testing.assert_close(call.slope(x, reference), exact, rtol=1e-10, atol=1e-12)


@every_row
@every_dtype
@pytest.mark.parametrize("step", STEPS)
def test_the_slope_becomes_the_derivative(
    call: Call, bounds: tuple[float, float], kinks: tuple[float, ...], dtype: torch.dtype, step: float
) -> None:
    x = _smooth(_draw(*bounds, dtype=dtype), kinks)
    reference = (x + step * torch.where(torch.arange(len(x)) % 2 == 0, 1.0, -1.0)).to(dtype)
    # the secant is the derivative halfway, but for the square of the step
    (halfway,) = call.gradient((x.double() + reference.double()) / 2)
    room = (1 + halfway.abs()) * (20 * step**2 + (1e-8 if dtype == F64 else 4e-4))
    assert ((call.slope(x, reference).double() - halfway).abs() <= room).all()


@every_row
@every_dtype
def test_short_and_long_steps_in_one_tensor_do_not_disturb_each_other(
    call: Call, bounds: tuple[float, float], kinks: tuple[float, ...], dtype: torch.dtype
) -> None:
    x = _smooth(_draw(*bounds, dtype=dtype), kinks)
    steps = torch.tensor([0.09, *STEPS], dtype=dtype).repeat(len(x))[: len(x)]
    reference = x + steps
    alone = torch.cat([call.slope(x[i : i + 1], reference[i : i + 1]) for i in range(len(x))])
    # torch rounds long tensors, which it vectorises, unlike short ones
    torch.testing.assert_close(call.slope(x, reference), alone, rtol=_CLOSE[dtype][0], atol=_CLOSE[dtype][1])


@pytest.mark.parametrize(("call", "kink"), KINKED, ids=_label)
@every_dtype
@pytest.mark.parametrize("turned", [False, True])
def test_a_short_step_over_a_kink_takes_each_side_by_its_length(
    call: Call, kink: float, dtype: torch.dtype, turned: bool
) -> None:
    size = 1e-8 if dtype == F64 else 1e-3
    x, reference = (torch.tensor([kink + move], dtype=dtype) for move in (3 * size, -size))
    (right,), (left,) = call.gradient(torch.tensor([kink + 0.01])), call.gradient(torch.tensor([kink - 0.01]))
    found = call.slope(reference, x) if turned else call.slope(x, reference)
    assert found.item() == pytest.approx((3 * right + left).item() / 4, abs=6e-3)


@pytest.mark.parametrize(("call", "kink"), KINKED, ids=_label)
@every_dtype
def test_a_kink_itself_has_a_slope_between_its_sides(call: Call, kink: float, dtype: torch.dtype) -> None:
    at = torch.tensor([kink], dtype=dtype)
    (right,), (left,) = call.gradient(torch.tensor([kink + 0.01])), call.gradient(torch.tensor([kink - 0.01]))
    low, high = sorted((left.item(), right.item()))
    assert low - 0.02 <= call.slope(at, at).item() <= high + 0.02


@pytest.mark.parametrize(
    ("x", "reference", "slope"),
    [
        (0, 0, 0),
        (0, -1, 0),
        (0, 1, 1),
        (3e-30, -1e-30, 0.75),
        (-1e-30, 3e-30, 0.75),
        (2, -2, 0.5),
        (2, 2, 1),
        (-1, -1, 0),
    ],
)
@every_dtype
def test_relu_has_the_exact_slope_however_short_the_step(
    x: float, reference: float, slope: float, dtype: torch.dtype
) -> None:
    found = Call("relu", torch.relu).slope(torch.tensor([x], dtype=dtype), torch.tensor([reference], dtype=dtype))
    assert found.item() == pytest.approx(slope, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    "function", [torch.sigmoid, torch.tanh, functional.hardtanh, _NN.gelu, _NN.log_sigmoid], ids=name_of
)
@every_dtype
@pytest.mark.parametrize("side", [-50.0, 50.0])
def test_saturated_activations_have_their_flat_or_straight_slope(
    function: Callable[..., Tensor], dtype: torch.dtype, side: float
) -> None:
    call, x = Call(name_of(function).name, function), torch.full((5,), side, dtype=dtype)
    reference = x - torch.tensor([0, 1e-9, 1e-6, 1e-3, 1.0], dtype=dtype)
    (wanted,) = call.gradient(x)
    torch.testing.assert_close(call.slope(x, reference).double(), wanted, rtol=1e-5, atol=1e-12)
    _assert_complete(call, torch.ones(5, dtype=F64), (x.double(),), (-x.double(),))


def test_sigmoid_from_end_to_end_rises_by_one() -> None:
    ends = torch.tensor([50.0], dtype=F64)
    assert Call("sigmoid", torch.sigmoid).slope(ends, -ends).item() == pytest.approx(1 / 100, rel=1e-15)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "exp", "relu"])
def test_minus_infinity_in_both_rows_has_no_slope(name: str) -> None:
    x, reference = torch.tensor([-torch.inf, 1.0], dtype=F64), torch.tensor([-torch.inf, 0.5], dtype=F64)
    slope = Call(name, getattr(torch, name)).slope(x, reference)
    assert slope[0] == 0
    assert slope[1] > 0


@pytest.mark.parametrize("middle", [-600.0, -3.0, 0.0, 40.0, 600.0])
@pytest.mark.parametrize("half", [0.0, 1e-14, 1e-9, 1e-3, 1.0, 80.0])
def test_exp_neither_cancels_nor_overflows(middle: float, half: float) -> None:
    x, reference = torch.tensor([middle + half], dtype=F64), torch.tensor([middle - half], dtype=F64)
    centre, width = (x + reference) / 2, (x - reference) / 2
    wanted = centre.exp() * (torch.where(width == 0, 1.0, torch.sinh(width) / torch.where(width == 0, 1.0, width)))
    torch.testing.assert_close(Call("exp", torch.exp).slope(x, reference), wanted, rtol=1e-13, atol=0)


def test_exp_of_ends_far_apart_is_finite_in_float32() -> None:
    x, reference = torch.tensor([80.0, -1e30], dtype=F32), torch.tensor([-1e30, 3.0], dtype=F32)
    slope = Call("exp", torch.exp).slope(x, reference)
    torch.testing.assert_close(slope * (x - reference), x.exp() - reference.exp(), rtol=1e-5, atol=0)


def test_the_square_root_of_zero_has_no_slope_and_of_near_zero_the_secant() -> None:
    x, reference = torch.tensor([0.0, 4e-20, 1.0], dtype=F64), torch.tensor([0.0, 0.0, 0.0], dtype=F64)
    assert Call("sqrt", torch.sqrt).slope(x, reference).tolist() == pytest.approx([0, 5e9, 1])


def test_the_inverse_square_root_of_a_tiny_number_is_finite_in_float32() -> None:
    x = torch.tensor([1e-14], dtype=F32)
    assert Call("rsqrt", torch.rsqrt).slope(x, x).item() == pytest.approx(-0.5e21, rel=1e-5)


def test_a_reciprocal_and_a_square_across_zero_have_the_slope_of_their_secant() -> None:
    x, reference = torch.tensor([2.0], dtype=F64), torch.tensor([-4.0], dtype=F64)
    assert Call("reciprocal", torch.reciprocal).slope(x, reference).item() == 0.125
    assert Call("square", torch.square).slope(x, reference).item() == -2
    assert Call("pow", torch.pow, X, 3).slope(x, reference).item() == pytest.approx(12)


@pytest.mark.parametrize("function", [torch.log, torch.log10, torch.log2], ids=name_of)
@every_dtype
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_logarithms_are_as_exact_at_small_numbers_as_at_large_ones(
    function: Callable[..., Tensor], dtype: torch.dtype, scale: float
) -> None:
    call, x = Call(name_of(function).name, function), scale * _draw(0.5, 2, dtype=dtype)
    for share in (0.5, 1e-3, 1e-6, 1e-9, 0.0):
        reference = x * (1 + share)
        step = (reference.double() - x.double()) / x.double()
        wanted = call.gradient(x)[0] * torch.where(
            step == 0, 1.0, torch.log1p(step) / torch.where(step == 0, 1.0, step)
        )
        torch.testing.assert_close(
            call.slope(x, reference).double(), wanted, rtol=1e-7 if dtype == F64 else 1e-3, atol=0
        )


def test_no_elementwise_rule_is_without_a_case() -> None:
    spaces = (torch, torch.Tensor, functional, torch._C._nn, torch.special, torch.linalg)
    names = {
        name_of(item).name
        for space in spaces
        for item in vars(space).values()
        if callable(item) and hasattr(item, "__name__")
    }
    ruled = {
        name for name in names if (rule := Rescale().rule(name)) and rule.multipliers.__module__.endswith(".secants")
    }
    assert ruled <= {call.name for call, _, _ in ROWS}
    assert len(ruled) > 50


@pytest.mark.parametrize(("call", "bounds"), [row[:2] for row in ROWS if _rule(row[0]).by_element], ids=_label)
def test_rules_by_element_take_references_that_broadcast(call: Call, bounds: tuple[float, float]) -> None:
    x, reference, gradient = _draw(*bounds, 24), _draw(*bounds, 8, seed=4), _draw(-1, 1, 24)
    x[:4] = reference[:4]
    new, old = call.at(x.view(2, 3, 4)), call.at(reference.view(2, 1, 4).expand(2, 3, 4))
    (found,) = _rule(call).multipliers(gradient.view(2, 3, 4), new, old)
    assert found is not None
    repeated = reference.view(2, 4).repeat_interleave(3, 0).flatten()
    torch.testing.assert_close(found.flatten(), gradient * call.slope(x, repeated), rtol=1e-12, atol=1e-12)


def _two_layers(activation: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Sequential]:
    first, last = nn.Linear(4, 6).double(), nn.Linear(6, 1).double()
    first.weight.data, last.weight.data = _draw(-1.5, 1.5, 24, seed=30).view(6, 4), _draw(-1.5, 1.5, 6).view(1, 6)
    return first, last, nn.Sequential(first, activation, last).double().eval()


_ARGUMENTS: Final[dict[str, tuple[Any, ...]]] = {
    "Threshold": (0.1, 0.1),
    "LeakyReLU": (0.2,),
    "ELU": (0.7,),
    "Hardtanh": (-0.4, 0.7),
}
_SEVERAL: Final = {"GLU", "Softmin", "Softmax", "Softmax2d", "LogSoftmax", "MultiheadAttention"}
_REFUSED: Final = {"Hardshrink"}
_SINGLE: Final = sorted(set(nn.modules.activation.__all__) - _SEVERAL - _REFUSED)


@pytest.mark.parametrize("name", _SINGLE)
def test_activations_of_torch_have_the_closed_form_on_two_layers(name: str) -> None:
    activation = getattr(nn, name)(*_ARGUMENTS.get(name, ()))
    first, last, model = _two_layers(activation)
    x, reference = _draw(-2, 2, 12, seed=40).view(3, 4), _draw(-2, 2, 12, seed=41).view(3, 4)
    with torch.no_grad():
        z, z_old = first(x), first(reference)
        secants = (activation(z) - activation(z_old)) / (z - z_old)
        wanted = (x - reference) * ((last.weight * secants) @ first.weight)
    found = axplain.explain(model, x, "deeplift", baselines=reference).attributions
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", [nn.Hardshrink(), nn.RReLU()], ids=["Hardshrink", "RReLU in training"])
def test_activations_that_jump_or_draw_are_refused(activation: nn.Module) -> None:
    _, _, model = _two_layers(activation)
    activation.train()
    x = torch.ones(2, 4, dtype=F64)
    with pytest.raises(UncoveredOperation, match=r"hardshrink|rrelu"):
        axplain.explain(model, x, "deeplift", baselines=-x)
