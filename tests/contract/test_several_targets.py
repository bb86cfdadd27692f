"""Several targets in one call get what each gets alone, up to rounding; methods that ask for values ask once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch

import axplain
from axplain.composition import shares_passes
from axplain.parameters import settle

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]


TARGETS: Final[list[Any]] = [2, [0, 1, 2, 1, 0], lambda output: output[:, 1] - output[:, 0], (1,)]


def test_each_target_gets_what_it_gets_alone(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    together = case.several(model, x, targets=TARGETS)
    for one, target in zip(together, TARGETS, strict=True):
        alone = case(model, x, target=target)
        torch.testing.assert_close(one.attributions, alone.attributions, rtol=1e-9, atol=1e-12)
        assert one.target == alone.target
        assert (one.delta is None) == (alone.delta is None)
        if one.delta is not None:
            torch.testing.assert_close(one.delta, alone.delta, rtol=0, atol=1e-12)
            torch.testing.assert_close(one.difference, alone.difference, rtol=1e-9, atol=1e-12)
        if one.standard_errors is not None:
            torch.testing.assert_close(one.standard_errors, alone.standard_errors, rtol=1e-9, atol=1e-12)


def test_chunks_and_blocks_change_nothing(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    whole = case.several(model, x, targets=[0, 2])
    small = case.several(model, x, targets=[0, 2], batch_size=3)
    for one, other in zip(whole, small, strict=True):
        torch.testing.assert_close(one.attributions, other.attributions, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["feature_ablation", "shapley_values", "shapley_value_sampling", "kernel_shap"])
def test_values_are_asked_once_for_all_targets(method: str, network: Make, draw: Make) -> None:
    model, x = network(), draw(2, 4)
    one = axplain.explain(model, x, method, target=[0, 1])
    rows = {answer.cost.forward_rows for answer in axplain.explain_targets(model, x, method, targets=[[0, 1], [1, 2]])}
    assert rows == {one.cost.forward_rows}
    assert shares_passes(settle(method, {}), None)


def test_gradients_are_asked_once_for_each_target(network: Make, draw: Make) -> None:
    answers = axplain.explain_targets(network(), draw(2, 4), "integrated_gradients", targets=[0, 1, 2], n_steps=5)
    assert [answer.cost.forward_rows for answer in answers] == [30, 30, 30]


def test_a_set_of_references_and_own_masks_follow_the_examples(network: Make, draw: Make) -> None:
    model, x = network(), draw(3, 4)
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 2], [0, 1, 2, 3]])
    options: dict[str, Any] = {"feature_mask": mask, "baselines": axplain.distribution(draw(3, 4, key=1))}
    together = axplain.explain_targets(model, x, "shapley_values", targets=[1, 2], **options)
    for answer, target in zip(together, (1, 2), strict=True):
        alone = axplain.explain(model, x, "shapley_values", target=target, **options)
        torch.testing.assert_close(answer.attributions, alone.attributions, rtol=1e-12, atol=1e-14)
        assert answer.delta is not None and float(answer.delta.abs().max()) < 1e-12


def test_units_of_layers_are_targets_among_others(network: Make, draw: Make) -> None:
    model, x = network(), draw(3, 4)
    name = next(name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear))
    units = [axplain.neuron(name, 0), axplain.neuron(name, 1), 0]
    for answer, unit in zip(
        axplain.explain_targets(model, x, "occlusion", targets=units, window=1), units, strict=True
    ):
        assert torch.equal(
            answer.attributions, axplain.explain(model, x, "occlusion", target=unit, window=1).attributions
        )


@pytest.mark.parametrize(
    ("targets", "argument"),
    [([], "targets"), ("01", "targets"), (3, "targets"), ([0, None], "targets[1]"), ([0.5], "targets[0]")],
)
def test_what_is_no_list_of_targets_is_refused(targets: Any, argument: str, network: Make, draw: Make) -> None:
    with pytest.raises(axplain.ArgumentError) as caught:
        axplain.explain_targets(network(), draw(2, 4), "feature_ablation", targets=targets)
    assert caught.value.argument == argument


def test_target_beside_targets_is_refused(network: Make, draw: Make) -> None:
    with pytest.raises(axplain.ArgumentError, match="beside targets"):
        axplain.explain_targets(network(), draw(2, 4), "feature_ablation", targets=[0], target=1)
