"""What stands for absence, in every form. F is the sum of all elements, so its integrated gradients are x - x'.

So each test reads the baseline back from the answer: x minus the attributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import axplain

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PICTURES = torch.randn(3, 2, 7, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _sum(*tensors: Tensor, **named: Tensor) -> Tensor:
    return sum((tensor.flatten(1).sum(1) for tensor in (*tensors, *named.values())), torch.zeros(()))


def _read(x: Any, baselines: Any, **arguments: Any) -> Any:
    """Return the baselines of each example, in the structure of x; the mean where they are a set."""
    found = axplain.explain(_sum, x, baselines=baselines, n_steps=1, verify=False, **arguments).attributions
    if isinstance(x, dict):
        return {name: tensor - found[name] for name, tensor in x.items()}
    if isinstance(x, tuple):
        return tuple(tensor - part for tensor, part in zip(x, found, strict=True))
    return x - found


def _close(found: Any, expected: Any, atol: float = 1e-14) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected).to(found).expand_as(found), rtol=0, atol=atol)


ONE, EACH, SET = X[:1] + 1, X + 1, torch.cat([X, X + 2])
FORMS: dict[str, tuple[Any, Any]] = {
    "nothing": (None, 0.0),
    "number": (0.5, 0.5),
    "integer": (2, 2.0),
    "numpy number": (np.float32(0.5), 0.5),
    "tensor without dimensions": (torch.tensor(0.5), 0.5),
    "one row": (ONE, ONE),
    "a row per example": (EACH, EACH),
    "array": (EACH.numpy(), EACH),
    "tensor of another dtype": (torch.ones(1, 4, dtype=torch.long), 1.0),
    "tensor that requires gradients": (ONE.clone().requires_grad_(), ONE),
    "name": ("zeros", 0.0),
    "use zeros": ({"use": "zeros"}, 0.0),
    "use value": ({"use": "value", "value": -1.5}, -1.5),
    "use tensor": ({"use": "tensor", "rows": EACH}, EACH),
    "use distribution": ({"use": "distribution", "rows": SET}, SET.mean(0)),
    "use callable": ({"use": "callable", "function": lambda x: 2 * x}, 2 * X),
    "distribution": (axplain.distribution(SET), SET.mean(0)),
    "distribution as long as the batch": (axplain.distribution(EACH), EACH.mean(0)),
    "tuple of one": ((0.5,), 0.5),
    "function of x": (lambda x: x[:1] * 3, 3 * X[:1]),
    "function of nothing": (lambda: 0.25, 0.25),
    "function that names a plugin": (lambda x: "zeros", 0.0),
    "function that returns a set": (lambda x: axplain.distribution(x[:3]), X[:3].mean(0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_stands_for_what_it_says(form: str) -> None:
    given, expected = FORMS[form]
    _close(_read(X, given), expected)


def test_tuples_mix_forms_and_a_single_one_holds_for_all_inputs() -> None:
    x = (X, PICTURES[:, 0].repeat(2, 1, 1)[:5], X[:, :1])
    first, second, third = _read(x, (0.5, {"use": "mean"}, X[:, :1] + 4))
    _close(first, 0.5)
    _close(second, x[1].mean((2,), keepdim=True))
    _close(third, X[:, :1] + 4)
    for part in _read(x, 1.25):
        _close(part, 1.25)
    for part, tensor in zip(_read(x, "mean"), x, strict=True):
        _close(part, tensor.mean(tuple(range(2, tensor.ndim)) or (1,), keepdim=True))
    called = _read(x, lambda parts: (parts[0] + 1, 2.0, None))
    _close(called[0], X + 1)
    _close(called[1], 2.0)
    _close(called[2], 0.0)


def test_functions_in_a_tuple_get_their_own_input() -> None:
    first, second = _read((X, PICTURES[:1].expand(5, -1, -1, -1)), (lambda t: 2 * t, lambda t: t[:1] - 1))
    _close(first, 2 * X)
    _close(second, PICTURES[:1] - 1)


def test_dict_inputs_take_dicts_of_the_same_keys_in_any_order() -> None:
    x = {"tabular": X, "picture": PICTURES[:1].expand(5, -1, -1, -1)}
    found = _read(x, {"picture": {"use": "value", "value": 3.0}, "tabular": EACH})
    _close(found["picture"], 3.0)
    _close(found["tabular"], EACH)
    for part in _read(x, {"use": "value", "value": 7}).values():
        _close(part, 7.0)
    joint = _read(x, axplain.distribution({"tabular": SET, "picture": torch.zeros(10, 2, 7, 9)}))
    _close(joint["tabular"], SET.mean(0))
    _close(joint["picture"], 0.0)


def test_a_set_for_one_input_meets_a_row_per_example_of_another() -> None:
    x = (X, X + 1)
    first, second = _read(x, (axplain.distribution(SET), EACH))
    _close(first, SET.mean(0))
    _close(second, EACH)
    first, second = _read(x, (axplain.distribution(SET), 0.5))
    _close(first, SET.mean(0))
    _close(second, 0.5)


REFUSED: dict[str, tuple[Any, str]] = {
    "no batch dimension": (torch.zeros(4), r"baselines: shape \(4,\) came.*expected \(1, 4\)"),
    "other features": (torch.zeros(5, 3), r"baselines: .*\(5, 3\).*expected shape \(4,\)"),
    "a dimension too many": (torch.zeros(1, 4, 1), r"baselines: .*\(1, 4, 1\).*expected shape \(4,\)"),
    "neither one nor the batch": (torch.zeros(3, 4), r"baselines: 3 references came for 5 examples.*distribution"),
    "empty": (torch.zeros(0, 4), "baselines: 0 references came"),
    "empty set": (axplain.distribution(torch.zeros(0, 4)), r"baselines: .*\(0, 4\)"),
    "set of other features": (axplain.distribution(torch.zeros(9, 3)), r"baselines: .*\(9, 3\)"),
    "set without a first dimension": (axplain.distribution(torch.zeros(4)), "baselines: .*without a batch dimension"),
    "set of sets": (axplain.distribution(axplain.distribution(X)), "baselines: Distribution"),
    "rows of a plugin": ({"use": "tensor", "rows": torch.zeros(3, 4)}, "baselines: (?s:.*)expected"),
    "rows of a plugin without dimensions": ({"use": "tensor", "rows": torch.tensor(1.0)}, "baselines"),
    "list": ([0.0, 0.0, 0.0, 0.0], "baselines: list .*expected a number"),
    "truth": (True, "baselines: bool True came"),
    "complex number": (1j, "baselines: complex 1j came"),
    "complex tensor": (torch.zeros(1, 4, dtype=torch.complex64), "baselines: .*complex"),
    "nan": (torch.full((1, 4), math.nan), "baselines: NaN or inf came"),
    "inf": (torch.full((5, 4), math.inf), "baselines: NaN or inf came"),
    "not a number": (math.nan, "baselines"),
    "too many items": ((0, 0), "baselines: 2 items came; expected 1"),
    "keys for one tensor": ({"x": 0}, "baselines: a dict with the keys"),
    "a name that is no text": ({"use": 3}, "baselines"),
    "unknown parameter": ({"use": "value", "valeu": 1}, r"baselines\['valeu'\]: value has no such parameter"),
    "missing parameter": ({"use": "value"}, r"baselines.*value.*nothing came"),
    "mistyped parameter": ({"use": "value", "value": "a"}, r"baselines.*value.*'a' \(str\) came"),
    "no references asked for": ({"use": "gaussian", "n": 0}, "baselines.*n.*0 came.*at least 1"),
    "negative noise": ({"use": "gaussian", "stdev": -1.0}, r"baselines.*stdev.*-1.0 came.*at least 0"),
    "blur without space": ("blur", "baselines: 'blur' came.*channels and space"),
    "function of a number": ({"use": "callable", "function": lambda x: 3}, "baselines: the callable returned int"),
    "function of another shape": (lambda x: x[:, :2], r"baselines: .*expected shape \(4,\)"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_stand_for_absence_is_refused_by_name(what: str) -> None:
    given, message = REFUSED[what]
    with pytest.raises(axplain.ArgumentError, match=f"^{message}"):
        axplain.explain(_sum, X, baselines=given)


def test_a_blur_of_nothing_is_refused() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"^baselines.*sigma.*0.0 came.*at least 0.1"):
        axplain.explain(_sum, PICTURES, baselines={"use": "blur", "sigma": 0.0})


def test_an_unknown_name_is_answered_with_near_and_installed_ones() -> None:
    with pytest.raises(
        axplain.UnknownMethod, match=r"'zero' is not a baseline\. Did you mean 'zeros'.*Installed: blur"
    ):
        axplain.explain(_sum, X, baselines="zero")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, torch.zeros(4)), r"baselines\[1\]: shape \(4,\) came"),
        ((torch.zeros(3, 4), 0), r"baselines\[0\]: 3 references came for 5 examples"),
        (torch.zeros(5, 4), r"baselines: one tensor came; expected one item for each of the 2 inputs"),
        ((0, 0, 0), r"baselines: 3 items came; expected 2"),
        ({"a": 0, "b": 0}, r"baselines: a dict with the keys .*expected no dict"),
        (axplain.distribution((torch.zeros(3, 4), torch.zeros(2, 4))), r"baselines\[[01]\]: .*Rows belong together"),
        ((0, "blur"), r"baselines\[1\]: 'blur' came"),
    ],
)
def test_the_item_of_a_tuple_that_does_not_fit_is_named(given: Any, message: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=f"^{message}"):
        axplain.explain(_sum, (X, X), baselines=given)


def test_the_item_of_a_dict_that_does_not_fit_is_named() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"^baselines\['b'\]: shape \(4,\) came"):
        axplain.explain(_sum, {"a": X, "b": X}, baselines={"a": 0, "b": torch.zeros(4)})
    with pytest.raises(axplain.ArgumentError, match=r"^baselines: .*\['a', 'c'\].*\['a', 'b'\]"):
        axplain.explain(_sum, {"a": X, "b": X}, baselines={"a": 0, "c": 0})


def test_methods_without_baselines_refuse_them() -> None:
    with pytest.raises(axplain.ArgumentError, match=r"^baselines: .*saliency uses no baselines"):
        axplain.explain(_sum, X, "saliency", baselines=0)
    with pytest.raises(axplain.ArgumentError, match=r"^baselines: .*saliency uses no baselines"):
        axplain.explain(_sum, X, "saliency", baselines=0, noise="smoothgrad")


def _mean(x: Any) -> Any:
    space = tuple(range(2, x.ndim)) or (1,)
    return x.mean(space, keepdims=True)


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 7), (3, 2, 7, 9), (2, 1, 3, 4, 5)])
def test_mean_is_that_of_each_channel_or_of_all_features(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _close(_read(x, "mean"), torch.from_numpy(_mean(x.numpy())))


def _mirrored(i: int, size: int) -> int:
    """Return the place inside 0 .. size - 1 that i is the reflection of; the border itself is not repeated."""
    period = 2 * (size - 1) or 1
    i %= period
    return i if i < size else period - i


def _blurred(line: Any, sigma: float) -> Any:
    """Convolve the last axis directly with a Gaussian that is cut at four sigma, and at the size of the input."""
    size = line.shape[-1]
    radius = min(math.ceil(4 * sigma), size - 1)
    weights = {k: math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)}
    total = math.fsum(weights.values())
    columns = [
        sum(weight / total * line[..., _mirrored(i + k, size)] for k, weight in weights.items()) for i in range(size)
    ]
    return np.stack(columns, -1)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 10.0])
@pytest.mark.parametrize("shape", [(3, 2, 12), (3, 2, 7, 9), (2, 1, 3, 4, 5), (2, 3, 1, 6)])
def test_blur_is_a_direct_convolution_with_reflected_borders(shape: tuple[int, ...], sigma: float) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = x.numpy()
    for axis in range(2, x.ndim):
        expected = np.moveaxis(_blurred(np.moveaxis(expected, axis, -1), sigma), -1, axis)
    _close(_read(x, {"use": "blur", "sigma": sigma}), torch.from_numpy(expected))


def test_blur_keeps_constants_and_mixes_no_channels() -> None:
    constant = torch.full((1, 2, 8, 8), 3.0, dtype=torch.float64)
    constant[:, 1] = -1.0
    _close(_read(constant, {"use": "blur", "sigma": 2.0}), constant, 1e-14)
    flat = _read(PICTURES, {"use": "blur", "sigma": 50.0})
    assert float(flat.std((2, 3)).max()) < 0.3 * float(PICTURES.std((2, 3)).min()), "a wide blur leaves little"


def test_uniform_fills_the_range_of_each_example_with_shared_noise() -> None:
    x = torch.stack([torch.linspace(0, 1, 2000), torch.linspace(-10, 30, 2000)]).double()
    found = _read(x, "uniform")
    for row, low, high in zip(found, (0, -10), (1, 30), strict=True):
        assert low - 1e-12 <= float(row.min()) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < float(row.max()) <= high + 1e-12
        assert float(row.mean()) == pytest.approx((low + high) / 2, abs=5 * (high - low) / (12 * 2000) ** 0.5)
    _close(found[1], -10 + 40 * found[0], 1e-11)


def test_uniform_takes_bounds() -> None:
    x = torch.zeros(2, 2000, dtype=torch.float64)
    found = _read(x, {"use": "uniform", "low": -1.0, "high": 3.0})
    assert -1 <= float(found.min()) < -0.98
    assert 2.98 < float(found.max()) <= 3
    above = _read(x - 1, {"use": "uniform", "high": 1.0})
    assert -1 <= float(above.min()) < -0.98
    assert 0.98 < float(above.max()) <= 1


def test_gaussian_surrounds_the_input_with_shared_noise() -> None:
    x = torch.stack([torch.zeros(4000), torch.full((4000,), 100.0)]).double()
    moved = _read(x, {"use": "gaussian", "stdev": 0.5}) - x
    _close(moved[1], moved[0], 1e-12)
    assert float(moved[0].mean()) == pytest.approx(0, abs=5 * 0.5 / 4000**0.5)
    assert float(moved[0].std()) == pytest.approx(0.5, rel=5 / 8000**0.5)
    _close(_read(x, {"use": "gaussian", "stdev": 0.0}), x)


@pytest.mark.parametrize("name", ["uniform", "gaussian"])
def test_drawn_baselines_follow_the_seed(name: str) -> None:
    first = _read(X, name, seed=1)
    assert torch.equal(first, _read(X, name, seed=1))
    assert not bool((_read(X, name, seed=2) == first).any())


@pytest.mark.parametrize("name", ["uniform", "gaussian"])
def test_inputs_of_a_tuple_draw_apart(name: str) -> None:
    first, second = _read((X, X.clone()), name)
    assert not bool((first == second).any())


@pytest.mark.parametrize("name", ["uniform", "gaussian"])
def test_several_draws_are_a_set_that_begins_with_the_first(name: str) -> None:
    """The mean of n draws gives each draw back: the k-th is k times the mean of k minus the sum before it."""
    means = [_read(X, {"use": name, "n": n}) for n in (1, 2, 3)]
    second, third = 2 * means[1] - means[0], 3 * means[2] - 2 * means[1]
    assert not bool(torch.isclose(second, means[0]).any())
    assert not bool(torch.isclose(third, second).any())
    found = axplain.explain(_sum, X, baselines={"use": name, "n": 3}, n_steps=2, verify=False)
    assert found.cost.forward_rows == 3 * 5 * 2


@pytest.mark.parametrize(
    "given",
    [
        0.5,
        "mean",
        {"use": "blur", "sigma": 1.0},
        "uniform",
        {"use": "gaussian", "n": 3},
        lambda x: x.flip(-1),
        axplain.distribution(PICTURES + 1),
    ],
    ids=["value", "mean", "blur", "uniform", "gaussian", "callable", "distribution"],
)
def test_a_batch_equals_one_at_a_time(given: Any) -> None:
    def model(pictures: Tensor) -> Tensor:
        return torch.tanh(pictures).square().flatten(1).sum(1)

    arguments: dict[str, Any] = {"baselines": given, "n_steps": 8, "verify": False}
    together = axplain.explain(model, PICTURES, **arguments).attributions
    alone = [axplain.explain(model, PICTURES[i : i + 1], **arguments).attributions for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-14)


@pytest.mark.parametrize("given", [SET, axplain.distribution(SET), lambda: SET, {"use": "distribution", "rows": SET}])
def test_a_method_of_sets_draws_from_every_form_of_a_set(given: Any) -> None:
    found = axplain.explain(_sum, X, "gradient_shap", baselines=given, n_samples=3000, verify=False)
    _within(found, X - SET.mean(0))


def test_a_method_of_sets_takes_a_tensor_as_long_as_the_batch_as_a_set_too() -> None:
    """Elsewhere it would be a row per example: the spec decides."""
    found = axplain.explain(_sum, X, "gradient_shap", baselines=EACH, n_samples=3000, verify=False)
    _within(found, X - EACH.mean(0))


@pytest.mark.parametrize(("given", "expected"), [(0.5, X - 0.5), ("mean", X - X.mean(1, keepdim=True)), (ONE, X - ONE)])
def test_a_method_of_sets_takes_a_single_reference(given: Any, expected: Tensor) -> None:
    found = axplain.explain(_sum, X, "gradient_shap", baselines=given, n_samples=4, verify=False)
    torch.testing.assert_close(found.attributions, expected, rtol=0, atol=1e-14)


def _within(found: axplain.Explanation, expected: Tensor) -> None:
    assert bool(((found.attributions - expected).abs() <= 5 * found.standard_errors).all())
    assert 0 < float(found.standard_errors.max()) < 0.1


@pytest.mark.parametrize(
    "function", [lambda rows: rows.flatten(1).sum(1), lambda rows: 0 * rows.flatten(1).sum(1), lambda rows: rows[:, 0]]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_baseline_that_makes_no_difference_alarms_nobody(
    dtype: torch.dtype, function: Callable[[Tensor], Tensor]
) -> None:
    """The sum of x equals that of its mean: F(x) - F(x') is rounding, and so is the residual."""
    x = X.to(dtype)
    found = axplain.explain(function, x, baselines="mean")
    assert found.delta is not None
    assert float(found.delta.abs().max()) <= 20 * torch.finfo(dtype).eps


def test_given_baselines_are_not_changed() -> None:
    rows = EACH.clone().requires_grad_()
    version = rows._version
    axplain.explain(_sum, X, baselines=rows)
    assert torch.equal(rows, EACH)
    assert rows._version == version
    assert rows.requires_grad
    assert rows.grad is None
