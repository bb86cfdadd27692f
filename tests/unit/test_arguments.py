"""What is explained and what is not: inputs by position and by name, further arguments that follow the examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import axplain

METHODS = ["saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "smoothgrad"]


def drawn(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def explain(model: Any, x: Any, method: str = "integrated_gradients", **given: Any) -> axplain.Explanation:
    if method == "gradient_shap":
        given = {"baselines": 0.0} | given
    if method == "smoothgrad":
        given = {"stdev": 0.0, "n_samples": 2} | given
    return axplain.explain(model, x, method, **given)


def bilinear(left: Tensor, right: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    return (left * right * gain).sum(1)


@pytest.mark.parametrize("method", METHODS)
def test_the_entries_of_a_dict_are_attributed_and_keyword_arguments_are_not(method: str) -> None:
    left, right = drawn(4, 3), drawn(4, 3, key=1)
    answer = explain(bilinear, {"left": left}, method, forward_kwargs={"right": right})
    assert list(answer.attributions) == ["left"]
    expected = {"saliency": right.abs(), "smoothgrad": right.abs()}.get(method, left * right)
    torch.testing.assert_close(answer.attributions["left"], expected, rtol=1e-9, atol=1e-12)


def test_both_entries_of_a_dict_share_a_product_evenly() -> None:
    """Integrated gradients of a product along the diagonal give each factor half of it."""
    left, right = drawn(4, 3), drawn(4, 3, key=1)
    answer = explain(bilinear, {"right": right, "left": left}, n_steps=4)
    torch.testing.assert_close(answer.attributions["left"], left * right / 2, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(answer.attributions["right"], left * right / 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_with_a_row_for_each_example_follows_the_examples(method: str) -> None:
    left, right = drawn(4, 3), drawn(4, 3, key=1)
    whole = explain(bilinear, left, method, additional_forward_args=right, batch_size=3).attributions
    for i in range(4):
        one = explain(lambda rows, i=i: (rows * right[i]).sum(1), left[i : i + 1], method).attributions
        torch.testing.assert_close(whole[i : i + 1], one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_shared_tensor_is_passed_as_it_is(method: str) -> None:
    """A square matrix has as many rows as the batch, and is meant as a whole."""
    x, matrix = drawn(3, 3), drawn(3, 3, key=1)
    seen: list[Tensor] = []

    def model(x: Tensor, matrix: Tensor) -> Tensor:
        seen.append(matrix)
        return torch.tanh(x @ matrix.T).sum(1) if matrix.shape == (3, 3) else torch.tanh(x * matrix).sum(1)

    answer = explain(model, x, method, additional_forward_args=axplain.shared(matrix), batch_size=2)
    assert all(item is matrix for item in seen)
    expected = explain(lambda x: torch.tanh(x @ matrix.T).sum(1), x, method, batch_size=2)
    assert torch.equal(answer.attributions, expected.attributions)
    seen.clear()
    followed = explain(model, x, method, additional_forward_args=matrix, batch_size=2)
    assert {len(item) for item in seen} <= {1, 2}
    assert not torch.equal(followed.attributions, expected.attributions)


def test_a_shared_keyword_is_passed_as_it_is() -> None:
    x, matrix = drawn(3, 3), drawn(3, 3, key=1)
    answer = explain(
        lambda x, matrix: (x @ matrix).sum(1), x, "saliency", forward_kwargs={"matrix": axplain.shared(matrix)}
    )
    torch.testing.assert_close(answer.attributions, matrix.sum(1).abs().expand(3, 3))


def test_what_is_no_tensor_of_the_batch_is_passed_as_it_is() -> None:
    seen: list[tuple[Any, ...]] = []
    table, scalar, names = drawn(2, 3), torch.tensor(2.0), ["a", "b", "c"]

    def model(x: Tensor, *more: Any, **named: Any) -> Tensor:
        seen.append((*more, *named.values()))
        return x.sum(1)

    explain(model, drawn(4, 3), additional_forward_args=(table, 3, None), forward_kwargs={"s": scalar, "names": names})
    for call in seen:
        assert call[0] is table and call[1:3] == (3, None) and call[3] is scalar and call[4] is names


def test_the_order_of_arguments_is_inputs_then_positional_then_named() -> None:
    def model(a: Tensor, b: Tensor, c: Tensor, d: float, *, e: float) -> Tensor:
        return (a + 10 * b + 100 * c).sum(1) * d * e

    x, c = (drawn(4, 2), drawn(4, 2, key=1)), drawn(4, 2, key=2)
    answer = explain(model, x, "saliency", additional_forward_args=(c, 2.0), forward_kwargs={"e": 3.0})
    assert answer.attributions[0].tolist() == [[6.0, 6.0]] * 4 and answer.attributions[1].tolist() == [[60.0, 60.0]] * 4
    named = explain(
        lambda c, d, a, b, e: model(a, b, c, d, e=e), {"b": x[1], "a": x[0]}, "saliency",
        additional_forward_args=(c, 2.0), forward_kwargs={"e": 3.0},
    )  # fmt: skip
    assert torch.equal(named.attributions["b"], answer.attributions[1])


def test_a_single_tensor_is_one_additional_argument_and_a_list_too() -> None:
    seen: list[Any] = []

    def model(x: Tensor, more: Any) -> Tensor:
        seen.append(more)
        return x.sum(1)

    listed = [1, 2]
    explain(model, drawn(4, 3), additional_forward_args=listed)
    assert all(item is listed for item in seen)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [2, "auto"])
def test_an_unused_input_of_a_tuple_gets_zeros(method: str, batch_size: Any) -> None:
    x = (drawn(4, 3), drawn(4, 2, 2, key=1))
    answer = explain(lambda used, unused: used.square().sum(1), x, method, batch_size=batch_size)
    assert answer.attributions[1].tolist() == torch.zeros(4, 2, 2).tolist()
    assert bool(answer.attributions[0].all())


def test_an_input_that_no_gradient_reaches_gets_zeros() -> None:
    x = (drawn(4, 3), drawn(4, 3, key=1))
    for wall in (lambda t: t.detach(), lambda t: t.round(), lambda t: (t > 0).double()):
        answer = explain(lambda a, b, wall=wall: (a * wall(b)).sum(1), x, "saliency")
        assert bool(answer.attributions[0].any()) and not bool(answer.attributions[1].any())


def test_baselines_by_name_belong_to_the_inputs_of_that_name() -> None:
    x = {"left": drawn(4, 3), "right": drawn(4, 3, key=1)}
    right = drawn(1, 3, key=2)
    baselines = {"right": right, "left": 0.5}
    answer = explain(lambda left, right: (2 * left + 3 * right).sum(1), x, baselines=baselines, n_steps=3)
    torch.testing.assert_close(answer.attributions["left"], 2 * (x["left"] - 0.5))
    torch.testing.assert_close(answer.attributions["right"], 3 * (x["right"] - right))


def test_a_callable_baseline_gets_the_inputs_in_their_structure() -> None:
    x = {"left": drawn(4, 3), "right": drawn(4, 3, key=1)}
    seen: list[Any] = []

    def baselines(given: Any) -> Any:
        seen.append(given)
        return {name: tensor * 0.5 for name, tensor in given.items()}

    answer = explain(lambda left, right: (2 * left + 3 * right).sum(1), x, baselines=baselines, n_steps=3)
    assert len(seen) == 1 and seen[0] is x
    torch.testing.assert_close(answer.attributions["left"], x["left"])
    torch.testing.assert_close(answer.attributions["right"], 1.5 * x["right"])


@pytest.mark.parametrize(
    "value", [[1.0, 2.0, 3.0], (1, 2, 3), {"weight": torch.ones(3, 1)}], ids=["list", "tuple", "dict"]
)
def test_a_container_with_a_row_for_each_example_is_refused_unless_it_is_shared(value: object) -> None:
    """It cannot follow the examples, and silence would give every chunk the rows of the first examples."""

    def model(x: Tensor, extra: object) -> Tensor:
        return x.sum(1)

    with pytest.raises(axplain.ArgumentError, match=r"forward_kwargs\['extra'\]: a .* one item for each of 3 examples"):
        axplain.explain(model, torch.ones(3, 2), "saliency", forward_kwargs={"extra": value})
    answer = axplain.explain(model, torch.ones(3, 2), "saliency", forward_kwargs={"extra": axplain.shared(value)})
    assert answer.attributions.tolist() == [[1.0, 1.0]] * 3


def test_a_model_that_fails_says_so_beside_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        axplain.explain(torch.nn.Linear(3, 2), torch.ones(4, 5), "saliency", target=0)
    assert any("first dimension is the batch" in note for note in caught.value.__notes__)
