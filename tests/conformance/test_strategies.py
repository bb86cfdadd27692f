"""The public strategies build what they say: models with the property of their kind, and arguments of every form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from axplain.conformance import Recipe, strategies
from axplain.conformance.networks import KINDS, Kind, kinds_with
from axplain.references import Distribution

few = settings(max_examples=25, derandomize=True, database=None, deadline=None)


def draw(recipe: Recipe, batch: int = 3, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in recipe.shapes)


def jacobian(model: Any, x: Tensor) -> Tensor:
    """Return (outputs, features) at one row."""
    return torch.autograd.functional.jacobian(lambda row: model(row.unsqueeze(0))[0], x)  # type: ignore[no-untyped-call,no-any-return]


def hessian(model: Any, x: Tensor, output: int = 0) -> Tensor:
    return torch.autograd.functional.hessian(lambda row: model(row.unsqueeze(0))[0, output], x)  # type: ignore[no-untyped-call,no-any-return]


def check_equal(left: Tensor, right: Tensor) -> None:
    assert torch.allclose(left, right, rtol=1e-12, atol=1e-12), (left - right).abs().max()


@few
@given(strategies.models())
def test_every_model_is_small_float64_in_evaluation_mode_and_reads_its_shapes(recipe: Recipe) -> None:
    model, x = recipe.build(), draw(recipe)
    output = model(*x)
    assert output.dtype == torch.float64 and output.shape == (3, recipe.outputs) and bool(output.isfinite().all())
    assert not model.training and sum(parameter.numel() for parameter in model.parameters()) < 1000
    check_equal(output[1:2], model(*(tensor[1:2] for tensor in x)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_varies_with_every_input_but_its_dummy(kind: Kind) -> None:
    recipe = Recipe(kind, 3, 2, seed=1)
    leaves = tuple(tensor.requires_grad_() for tensor in draw(recipe, batch=8))
    for slope in torch.autograd.grad(recipe.build()(*leaves).sum(), leaves):
        dead = (slope.abs().flatten(1).amax(0) == 0).nonzero().flatten().tolist()
        assert dead == ([0] if kind == "with_dummy" else [])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_recipes_build_equal_networks_and_others_do_not(kind: Kind) -> None:
    recipe = Recipe(kind, 3, 2, seed=5)
    x = draw(recipe)
    assert torch.equal(recipe.build()(*x), eval(repr(recipe), {"Recipe": Recipe}).build()(*x))
    assert not torch.equal(recipe.build()(*x), Recipe(kind, 3, 2, seed=6).build()(*x))
    assert eval(repr(recipe), {"Recipe": Recipe}) == recipe


def test_building_moves_no_global_generator() -> None:
    before = torch.get_rng_state()
    for kind in KINDS:
        Recipe(kind).build()
    assert torch.equal(before, torch.get_rng_state())


@few
@given(strategies.models("linear"))
def test_linear_is_linear(recipe: Recipe) -> None:
    model, (x, y) = recipe.build(), draw(recipe, batch=2)[0]
    check_equal(model((0.3 * x + 0.7 * y)[None]), 0.3 * model(x[None]) + 0.7 * model(y[None]))
    assert not jacobian(model, x).eq(0).any()


@few
@given(strategies.models("additive"))
def test_additive_has_no_mixed_derivatives_and_is_curved(recipe: Recipe) -> None:
    second = hessian(recipe.build(), draw(recipe, batch=1)[0][0])
    check_equal(second, torch.diag(second.diagonal()))
    assert second.diagonal().all()


@few
@given(strategies.models("multilinear"))
def test_multilinear_has_no_pure_second_derivatives_and_has_mixed_ones(recipe: Recipe) -> None:
    second = hessian(recipe.build(), draw(recipe, batch=1)[0][0])
    check_equal(second.diagonal(), torch.zeros(recipe.features, dtype=torch.float64))
    assert second[0, 1].abs() > 1e-6


@few
@given(strategies.models("monotone"))
def test_monotone_never_falls(recipe: Recipe) -> None:
    model = recipe.build()
    for row in draw(recipe, batch=6)[0]:
        assert bool((jacobian(model, row) > 0).all())


@few
@given(strategies.models("bias_free_relu"))
def test_bias_free_relu_is_positively_homogeneous(recipe: Recipe) -> None:
    model, (x,) = recipe.build(), draw(recipe)
    check_equal(model(2.5 * x), 2.5 * model(x))
    assert not model(0 * x).any()


@few
@given(strategies.models("symmetric"))
def test_symmetric_does_not_tell_its_first_two_features_apart(recipe: Recipe) -> None:
    model, (x,) = recipe.build(), draw(recipe)
    swapped = torch.cat([x[:, 1:2], x[:, :1], x[:, 2:]], 1)
    check_equal(model(x), model(swapped))
    assert not torch.allclose(model(x), model(torch.cat([x[:, 1:2], x[:, 1:]], 1)))


@few
@given(strategies.models("with_dummy"))
def test_with_dummy_ignores_its_first_feature_alone(recipe: Recipe) -> None:
    model, (x,) = recipe.build(), draw(recipe)
    for feature in range(recipe.features):
        moved = x.clone()
        moved[:, feature] += 1.0
        assert torch.equal(model(moved), model(x)) == (feature == 0)


@few
@given(strategies.models("saturated"))
def test_saturated_is_flat_above_one_and_rises_below(recipe: Recipe) -> None:
    model = recipe.build()
    assert not jacobian(model, torch.full((recipe.features,), 1.5, dtype=torch.float64)).any()
    assert bool((jacobian(model, torch.full((recipe.features,), 0.5, dtype=torch.float64)) > 0).all())


@pytest.mark.parametrize("kind", kinds_with("piecewise_linear", KINDS))
def test_piecewise_linear_has_no_curvature_where_it_is_smooth(kind: Kind) -> None:
    recipe = Recipe(kind, 3, 1, seed=2)
    model, x = recipe.build(), draw(recipe, batch=1)[0]
    step = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    check_equal(model(x + step) - model(x), model(x) - model(x - step))


@pytest.mark.parametrize("kind", kinds_with("smooth", KINDS))
def test_smooth_has_slopes_that_change_little_by_little(kind: Kind) -> None:
    recipe = Recipe(kind, 3, 1, seed=2)
    model, rows = recipe.build(), draw(recipe, batch=1)

    def slopes(share: float) -> Tensor:
        leaves = tuple((share * row).requires_grad_() for row in rows)
        return torch.cat([s.flatten() for s in torch.autograd.grad(model(*leaves).sum(), leaves)])

    along = torch.stack([slopes(i / 400) for i in range(-400, 401)])
    assert (along[1:] - along[:-1]).abs().max() < 0.05 * (1 + along.abs().max())


@few
@given(strategies.models("smooth", "piecewise_linear", "bias_free_relu"))
def test_twins_are_equal_functions_of_other_modules(recipe: Recipe) -> None:
    model, (x,) = recipe.build(), 2 * draw(recipe, batch=20)[0][None]
    for twin in (recipe.respelled(), recipe.rewritten()):
        assert twin is not None
        check_equal(twin(x), model(x))
        mine, its = ({type(module) for module in each.modules()} for each in (model, twin))
        assert not mine & its


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in kinds_with("respelled", KINDS)])
def test_kinds_without_a_twin_say_so(kind: Kind) -> None:
    assert Recipe(kind).respelled() is None and Recipe(kind).rewritten() is None


def test_kinds_are_those_with_the_property() -> None:
    assert kinds_with("linear", KINDS) == ("linear",)
    assert kinds_with("additive", KINDS) == ("linear", "additive", "saturated")
    assert kinds_with("positively_homogeneous", KINDS) == ("bias_free_relu",)
    assert kinds_with(None, ("smooth", "linear")) == ("smooth", "linear")


@few
@given(strategies.models("smooth", "linear", features=(4, 5), outputs=(2, 2)))
def test_models_keep_to_what_was_asked_for(recipe: Recipe) -> None:
    assert recipe.kind in ("smooth", "linear") and 4 <= recipe.features <= 5 and recipe.outputs == 2


@few
@given(strategies.inputs(2, 3, batch=(2, 4), dtype=torch.float32))
def test_inputs_have_shape_batch_and_dtype(x: Tensor) -> None:
    assert x.dtype == torch.float32 and x.shape[1:] == (2, 3) and 2 <= len(x) <= 4
    assert bool(x.isfinite().all()) and 0.01 < float(x.std()) < 3


def test_baselines_come_in_every_form() -> None:
    x = torch.zeros(4, 2, 3, dtype=torch.float64)
    seen: set[object] = set()

    @few
    @given(strategies.baselines(x))
    def collect(value: object) -> None:
        if isinstance(value, Distribution):
            assert value.rows.shape == (3, 2, 3) and value.rows.dtype == x.dtype
            seen.add("set")
        elif isinstance(value, Tensor):
            assert value.shape[1:] == (2, 3) and value.dtype == x.dtype
            seen.add(len(value))
        else:
            seen.add(value)

    collect()
    assert seen == {None, 0.3, 1, 4, "set"}


@few
@given(strategies.baselines(torch.zeros(2, 3), forms=("each",)))
def test_baselines_keep_to_the_forms_that_were_asked_for(value: object) -> None:
    assert isinstance(value, Tensor) and value.shape == (2, 3) and value.dtype == torch.float32


def test_targets_come_in_every_spelling_and_in_range() -> None:
    output, seen = torch.arange(8.0).view(2, 4), set()

    @few
    @given(strategies.targets(4, 2))
    def collect(target: Any) -> None:
        seen.add("callable" if callable(target) and not isinstance(target, Tensor) else type(target))
        if callable(target) and not isinstance(target, Tensor):
            assert target(output).shape == (2,)
        else:
            index = torch.as_tensor(target)
            assert bool(((index >= 0) & (index < 4)).all()) and index.numel() in (1, 2)
            assert not isinstance(target, list) or len(target) == 2

    collect()
    assert seen == {int, tuple, list, Tensor, "callable"}


@few
@given(strategies.masks(2, 5, groups=(2, 4)))
def test_masks_number_their_groups_from_zero_without_a_gap(mask: Tensor) -> None:
    assert mask.shape == (1, 2, 5) and mask.dtype == torch.int64
    ids = sorted(set(mask.flatten().tolist()))
    assert ids == list(range(len(ids))) and 1 <= len(ids) <= 4


@few
@given(st.data())
def test_every_strategy_shrinks_to_something_that_can_be_written_down(data: st.DataObject) -> None:
    recipe = data.draw(strategies.models())
    assert repr(recipe).startswith("Recipe(kind='") and "tensor" not in repr(recipe)
