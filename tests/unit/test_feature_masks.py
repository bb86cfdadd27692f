"""Feature masks: which elements are one feature, in every spelling, and how a mask that does not fit is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import axplain

METHODS = ("feature_ablation", "shapley_values", "banzhaf_values", "kernel_shap", "shapley_value_sampling", "lime")
COMPLETE = ("shapley_values", "kernel_shap", "leverage_shap", "shapley_value_sampling")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(x: Tensor) -> Tensor:
    """Mixes everything of an example: no two groupings give the same answer by accident."""
    rows = x.flatten(1)
    place = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype)
    return torch.tanh(rows @ place.sqrt() * 0.3) * (1 + (rows * place).sin().sum(1))


def pair(a: Tensor, b: Tensor) -> Tensor:
    return product(torch.cat([a.flatten(1), b.flatten(1)], 1))


def ask(model: Any, x: Any, mask: Any, method: str = "shapley_values", **more: Any) -> Any:
    return axplain.explain(model, x, method, feature_mask=mask, **more)


def of(*ids: int) -> Tensor:
    return torch.tensor([ids])


def two_player(x: Tensor, first: Tensor) -> Tensor:
    """Return the Shapley value of the elements where `first`, as one of two players; zeros stand for absence."""
    only, rest = x * first, x * ~first
    gains = product(only) - product(0 * x), product(x) - product(rest)
    return (gains[0] + gains[1]) / 2


def test_a_group_is_switched_as_one() -> None:
    x = normal(3, 4)
    found = ask(product, x, of(0, 1, 1, 0)).attributions
    first = torch.tensor([True, False, False, True])
    torch.testing.assert_close(found[:, 0], two_player(x, first), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[:, 1], two_player(x, ~first), rtol=0, atol=1e-12)
    assert torch.equal(found[:, 0], found[:, 3]) and torch.equal(found[:, 1], found[:, 2])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "ids", [(0, 7, 7, 900), (-5, 3, 3, 10), (-(2**62), 0, 0, 2**62)], ids=["sparse", "negative", "far"]
)
def test_only_which_ids_are_equal_matters(method: str, ids: tuple[int, ...]) -> None:
    x = normal(2, 4)
    assert torch.equal(
        ask(product, x, of(*ids), method).attributions, ask(product, x, of(0, 1, 1, 2), method).attributions
    )


@pytest.mark.parametrize("method", METHODS)
def test_sparse_ids_cost_no_more_rows(method: str) -> None:
    x = normal(2, 4)
    sparse, dense = ask(product, x, of(0, 70, 70, 900), method), ask(product, x, of(0, 1, 1, 2), method)
    assert sparse.cost.forward_rows == dense.cost.forward_rows


@pytest.mark.parametrize("method", METHODS)
def test_one_id_in_two_tensors_is_one_feature(method: str) -> None:
    a, b = normal(2, 2), normal(2, 3, seed=1)
    split = ask(pair, (a, b), (of(0, 1), of(1, 2, 2)), method)
    whole = ask(product, torch.cat([a, b], 1), of(0, 1, 1, 2, 2), method)
    torch.testing.assert_close(torch.cat(split.attributions, 1), whole.attributions, rtol=0, atol=1e-14)
    assert split.cost.forward_rows == whole.cost.forward_rows
    assert torch.equal(split.attributions[0][:, 1], split.attributions[1][:, 0])


def test_one_id_in_two_tensors_is_permuted_in_one_piece() -> None:
    """Where a = b in every example the two move together, and |a - b| never changes."""
    a = normal(6, 1)
    together = ask(lambda a, b: (a - b).abs()[:, 0], (a, a.clone()), (of(0), of(0)), "feature_permutation", n_samples=4)
    assert all(float(tensor.abs().max()) == 0 for tensor in together.attributions)
    apart = ask(lambda a, b: (a - b).abs()[:, 0], (a, a.clone()), (of(0), of(1)), "feature_permutation", n_samples=4)
    assert all(float(tensor.abs().max()) > 0.1 for tensor in apart.attributions)


@pytest.mark.parametrize("method", METHODS)
def test_each_example_may_have_groups_of_its_own(method: str) -> None:
    x, masks = normal(3, 4), torch.tensor([[0, 0, 1, 2], [0, 1, 2, 2], [1, 0, 2, 1]])
    together = ask(product, x, masks, method).attributions
    for i in range(3):
        alone = ask(product, x[i : i + 1], masks[i : i + 1], method).attributions
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


MORE_OR_FEWER = torch.tensor([[7, 7, 1, 2, 2], [900, 3, 3, 3, 3], [0, 1, 2, 3, 4], [5, 5, 6, 6, 5]])


@pytest.mark.parametrize("method", [*METHODS, "leverage_shap"])
def test_examples_may_have_more_or_fewer_groups(method: str) -> None:
    """Each gets what it gets alone, at no more rows, also where the number of features decides what is drawn."""
    x, more = normal(4, 5), {"n_samples": 12} if "samples" in str(axplain.describe(method).parameters) else {}
    together = ask(product, x, MORE_OR_FEWER, method, **more)
    rows = 0
    for i in range(4):
        alone = ask(product, x[i : i + 1], MORE_OR_FEWER[i : i + 1], method, **more)
        torch.testing.assert_close(together.attributions[i : i + 1], alone.attributions, rtol=0, atol=1e-12)
        if alone.delta is not None:
            torch.testing.assert_close(together.difference[i : i + 1], alone.difference, rtol=1e-12, atol=1e-14)
        rows += alone.cost.forward_rows
    assert together.cost.forward_rows <= rows


def test_several_targets_of_examples_with_more_or_fewer_groups() -> None:
    x = normal(4, 5)

    def both(x: Tensor) -> Tensor:
        return torch.stack([product(x), x.sum(1)], 1)

    found = axplain.explain_targets(both, x, "shapley_values", targets=[0, 1], feature_mask=MORE_OR_FEWER)
    for target, answer in enumerate(found):
        alone = ask(both, x, MORE_OR_FEWER, target=target)
        torch.testing.assert_close(answer.attributions, alone.attributions, rtol=0, atol=1e-12)


def test_groups_of_each_example_follow_it_into_blocks() -> None:
    x, masks = (
        normal(5, 4),
        torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i)) % 3 for i in range(5)]),
    )
    whole = ask(product, x, masks, batch_size=1000)
    blocks = ask(product, x, masks, batch_size=2)
    torch.testing.assert_close(blocks.attributions, whole.attributions, rtol=0, atol=1e-14)


def test_an_id_that_an_example_lacks_adds_nothing() -> None:
    x = normal(2, 3)
    found = ask(product, x, torch.tensor([[0, 0, 0], [0, 1, 2]]))
    with torch.no_grad():
        whole = product(x) - product(torch.zeros_like(x))
    torch.testing.assert_close(found.attributions[0], whole[0].expand(3), rtol=0, atol=1e-12)
    plain = ask(product, x[1:], None).attributions
    torch.testing.assert_close(found.attributions[1:], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 2, 3), (1, 2, 2, 3), (2, 1, 2, 3)])
def test_a_dimension_of_one_holds_for_all(shape: tuple[int, ...]) -> None:
    x = normal(2, 2, 2, 3)
    mask = torch.arange(torch.Size(shape[1:]).numel()).view(1, *shape[1:]).expand(shape) // 2
    found = ask(product, x, mask, "kernel_shap").attributions
    full = ask(product, x, mask.expand(2, 2, 2, 3).contiguous(), "kernel_shap").attributions
    assert found.shape == x.shape and torch.equal(found, full)
    if shape[1] == 1:
        assert torch.equal(found[:, 0], found[:, 1]), "channels share a feature"


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "bool", "numpy"])
def test_masks_of_whole_numbers_of_every_kind(kind: str) -> None:
    x, ids = normal(2, 4), of(0, 1, 1, 0)
    mask: Any = ids.numpy() if kind == "numpy" else ids.to(getattr(torch, kind))
    assert torch.equal(ask(product, x, mask).attributions, ask(product, x, ids).attributions)


def test_keyword_inputs_take_a_mask_for_each_name() -> None:
    a, b = normal(2, 2), normal(2, 3, seed=1)
    named = ask(lambda *, b, a: pair(a, b), {"b": b, "a": a}, {"a": of(0, 1), "b": of(1, 2, 2)}).attributions
    plain = ask(pair, (a, b), (of(0, 1), of(1, 2, 2))).attributions
    torch.testing.assert_close(named["a"], plain[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(named["b"], plain[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch_size", ["auto", 3])
@pytest.mark.parametrize("method", COMPLETE)
def test_sums_count_a_group_once(method: str, batch_size: Any) -> None:
    """Every element shows what its whole group is worth; the residual adds each group once."""
    a, b = normal(3, 2), normal(3, 3, seed=1)
    found = ask(pair, (a, b), (of(0, 1), of(1, 2, 2)), method, batch_size=batch_size)
    with torch.no_grad():
        difference = pair(a, b) - pair(0 * a, 0 * b)
    assert float(found.residuals["completeness"].abs().max()) < 1e-12
    torch.testing.assert_close(found.difference, difference, rtol=0, atol=1e-12)
    first, second = found.attributions
    torch.testing.assert_close(first[:, 0] + first[:, 1] + second[:, 1], difference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", COMPLETE)
def test_sums_count_a_group_once_over_a_distribution(method: str) -> None:
    x, rows = normal(2, 4), normal(3, 4, seed=1)
    found = ask(product, x, of(0, 1, 1, 0), method, baselines=axplain.distribution(rows))
    assert float(found.residuals["completeness"].abs().max()) < 1e-12
    with torch.no_grad():
        difference = product(x) - product(rows).mean()
    torch.testing.assert_close(found.attributions[:, :2].sum(1), difference, rtol=0, atol=1e-12)


def test_standard_errors_are_those_of_the_group() -> None:
    found = ask(product, normal(2, 6), of(0, 1, 1, 2, 0, 3), "shapley_value_sampling", n_samples=40, antithetic=False)
    errors = found.standard_errors
    assert torch.equal(errors[:, 0], errors[:, 4]) and torch.equal(errors[:, 1], errors[:, 2])
    assert float(errors.min()) > 0


def test_all_elements_in_one_group_get_the_whole_difference() -> None:
    x = normal(3, 4)
    with torch.no_grad():
        difference = product(x) - product(torch.zeros_like(x))
    for method in (*COMPLETE, "feature_ablation", "banzhaf_values"):
        found = ask(product, x, of(4, 4, 4, 4), method).attributions
        torch.testing.assert_close(found, difference[:, None].expand(3, 4), rtol=0, atol=1e-12)


# what is refused: (x, mask, what the message says)
X, A, B = normal(3, 4), normal(3, 2), normal(3, 3, seed=1)
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a wrong shape": (X, of(0, 1, 2), r"feature_mask: shape \(1, 3\) came; expected \(1, 4\), or \(3, 4\) for groups"),
    "a wrong batch": (
        X,
        torch.zeros(2, 4).long(),
        r"feature_mask: shape \(2, 4\) came; expected \(1, 4\), or \(3, 4\)",
    ),
    "no batch dimension": (X, torch.arange(4), r"feature_mask: shape \(4,\) came; expected \(1, 4\).*unsqueeze\(0\)"),
    "no dimension": (X, torch.tensor(0), r"feature_mask: shape \(\) came; expected \(1, 4\)"),
    "fractions": (X, torch.zeros(1, 4), r"feature_mask: torch\.float32 came; expected a tensor of whole numbers"),
    "an array of fractions": (
        X,
        torch.zeros(1, 4).numpy(),
        r"feature_mask: torch\.float32 came; expected a tensor of w",
    ),
    "a list": (X, [[0, 1, 2, 3]], r"feature_mask: list came; expected a tensor of whole numbers"),
    "a tuple for one tensor": (X, (of(0, 1, 2, 3),), r"feature_mask: tuple came; expected a tensor of whole numbers"),
    "one tensor for two": ((A, B), of(0, 1), r"feature_mask: Tensor came; expected a tuple of 2, one for each input"),
    "too many": ((A, B), (of(0, 1),) * 3, r"feature_mask: .*3.* came; expected a tuple of 2, one for each input"),
    "a wrong second": ((A, B), (of(0, 1), of(0, 1)), r"feature_mask\[1\]: shape \(1, 2\) came; expected \(1, 3\)"),
    "none of two": ((A, B), (of(0, 1), None), r"feature_mask\[1\]: NoneType came; expected a tensor of whole numbers"),
    "other names": ({"a": A}, {"b": of(0, 1)}, r"feature_mask: .*\['b'\].* came; expected a dict with \['a'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("method", ["shapley_values", "feature_permutation"])
def test_a_mask_that_does_not_fit_is_refused_before_any_pass(name: str, method: str) -> None:
    x, mask, message = REFUSED[name]

    def model(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("the model was asked")

    with pytest.raises(axplain.ArgumentError, match=message):
        ask(model, x, mask, method)


@pytest.mark.parametrize("method", ["occlusion", "rise", "saliency"])
def test_methods_without_groups_refuse_a_mask(method: str) -> None:
    with pytest.raises(axplain.ArgumentError, match=f"feature_mask: .*{method} does not group features"):
        ask(product, normal(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).long(), method)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 3e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64], ids=str)
def test_rows_hold_the_bits_of_the_input_or_of_the_reference(dtype: torch.dtype, scale: float) -> None:
    """Also where the two are so far apart that their difference overflows: 3e4 in half precision."""
    x, absent = (normal(2, 70, seed=seed).mul(scale).clamp(-6e4, 6e4).to(dtype) for seed in (1, 2))
    seen: list[Tensor] = []

    def model(rows: Tensor) -> Tensor:
        seen.append(rows.clone())
        return rows.double().sum(1)

    axplain.explain(model, x, "feature_ablation", target=lambda out: out, baselines=absent, batch_size=1000)
    rows = seen[-1][:142].view(71, 2, 70)
    present = torch.cat([torch.ones(1, 70, dtype=torch.bool), ~torch.eye(70, dtype=torch.bool)])[:, None]
    assert torch.equal(rows, torch.where(present, x, absent))


def test_permutation_takes_groups_of_own_numbers_from_the_whole_batch() -> None:
    """Examples with more or fewer groups still take them from each other, not from those with as many groups."""
    x, seen = normal(4, 5), []

    def model(rows: Tensor) -> Tensor:
        seen.append(rows.clone())
        return product(rows)

    found = ask(model, x, MORE_OR_FEWER, "feature_permutation", n_samples=3, target=lambda out: out)
    assert bool(found.attributions.any(0).all())
    rows = torch.cat(seen)
    for column in range(5):
        assert set(rows[:, column].tolist()) == set(x[:, column].tolist())
    for example, ids in enumerate(MORE_OR_FEWER):
        for group in ids.unique():
            values = found.attributions[example, ids == group]
            torch.testing.assert_close(values, values[:1].expand_as(values))
