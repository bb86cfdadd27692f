"""Class activation maps against captum and, where it is installed, pytorch-grad-cam: the same, or the fault by name.

pytorch-grad-cam needs OpenCV and torchvision, which the project does not install: without it its tests are skipped.
They were run with 1.5.7.
"""

from __future__ import annotations

from typing import Any

import captum.attr as peer
import pytest
import torch
from tests.parity.networks import quietly
from torch import Tensor, nn
from torch.nn import functional

import axplain

TARGET = [0, 2, 1]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Network(nn.Module):
    """Every rectifier a module of its own, which captum's hooks need."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.second, self.rect, self.mid = nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Linear(8 * 36, 9)
        self.third, self.last = nn.ReLU(), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Any:
        maps = self.rect(self.second(self.pool(self.act(self.first(x)))))
        return self.last(self.third(self.mid(maps.flatten(1))))


class Tokens(nn.Module):
    """A small vision transformer: a class token and 4 x 4 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.zeros(1, 1, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.last(self.block(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))[:, 0])


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return kind().double().eval()


MODEL, X = made(Network), seeded(3, 3, 16, 16)


def ours(method: str, layer: str = "rect", model: nn.Module = MODEL, **given: Any) -> Tensor:
    target: dict[str, Any] = {} if method == "eigencam" else {"target": TARGET}
    found: Tensor = axplain.explain(model, X, method, layer=layer, **(target | given)).attributions
    return found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layer", ["first", "act", "pool", "second", "rect"])
def test_captums_layer_grad_cam(layer: str, relu: bool) -> None:
    explainer = peer.LayerGradCam(MODEL, getattr(MODEL, layer))
    theirs = quietly(explainer.attribute, X, target=torch.tensor(TARGET), relu_attributions=relu).detach()
    close(ours("gradcam", layer, relu=relu, upsample=False), theirs)
    whole = peer.LayerAttribution.interpolate(theirs, (16, 16), "bilinear")
    close(ours("gradcam", layer, relu=relu), whole)


def test_captums_layer_grad_cam_without_its_sum_is_no_hirescam() -> None:
    """`attr_dim_summation=False` keeps the channels, each with its mean gradient: the summands of Grad-CAM."""
    explainer = peer.LayerGradCam(MODEL, MODEL.rect)
    theirs = quietly(explainer.attribute, X, target=torch.tensor(TARGET), attr_dim_summation=False).detach()
    close(ours("gradcam", relu=False, upsample=False), theirs.sum(1, keepdim=True))
    assert not torch.allclose(ours("hirescam", relu=False, upsample=False), theirs.sum(1, keepdim=True), rtol=0.05)


def test_captums_guided_grad_cam() -> None:
    explainer = peer.GuidedGradCam(MODEL, MODEL.rect)
    theirs = quietly(explainer.attribute, X, target=torch.tensor(TARGET), interpolate_mode="bilinear")
    close(ours("guided_gradcam"), theirs.detach())


def test_captum_takes_tokens_for_channels() -> None:
    """Its map of a vision transformer has a place for each channel of the embedding, and none for a patch."""
    model = made(Tokens)
    explainer = peer.LayerGradCam(model, model.block.norm1)  # type: ignore[union-attr]
    theirs = quietly(explainer.attribute, X, target=torch.tensor(TARGET))
    assert theirs.shape == (3, 1, 8)
    assert ours("gradcam", "block.norm1", model, upsample=False).shape == (3, 1, 4, 4)


def test_captum_answers_guided_grad_cam_with_nothing_where_the_map_fits_no_input() -> None:
    """S9: an empty tensor and a warning; here it is refused."""

    class Signal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = made(Network)

        def forward(self, x: Tensor) -> Any:
            return self.model(x.unflatten(1, (3, 16, 16)))  # type: ignore[no-untyped-call]

    model, x = Signal().eval(), X.flatten(1)
    theirs = quietly(peer.GuidedGradCam(model, model.model.rect).attribute, x, target=torch.tensor(TARGET))
    assert theirs.numel() == 0
    with pytest.raises(axplain.ArgumentError, match=r"x: the shape .3, 768. came, and the layer's map is .6, 6."):
        axplain.explain(model, x, "guided_gradcam", layer="model.rect", target=TARGET)


NAMES = {
    "gradcam": "GradCAM", "gradcam_plus_plus": "GradCAMPlusPlus", "hirescam": "HiResCAM", "layercam": "LayerCAM",
    "xgradcam": "XGradCAM", "scorecam": "ScoreCAM", "ablationcam": "AblationCAM",
}  # fmt: skip


@pytest.fixture
def other() -> Any:
    return pytest.importorskip("pytorch_grad_cam", exc_type=ImportError)


def raw(explainer: Any, x: Tensor) -> Tensor:
    """Return the small map: what its public call gives is scaled to [0, 1] for each picture, and its size lost."""
    explainer.batch_size = 4
    outputs = explainer.activations_and_grads(x)
    targets = [_Index(target) for target in TARGET]
    explainer.model.zero_grad()
    if explainer.uses_gradients:
        values = [target(output) for target, output in zip(targets, outputs, strict=True)]
        torch.autograd.backward(values)
    (held,) = (tensor.cpu().data.numpy() for tensor in explainer.activations_and_grads.activations)
    gradients = [tensor.cpu().data.numpy() for tensor in explainer.activations_and_grads.gradients]
    layer = explainer.target_layers[0]
    found = explainer.get_cam_image(x, layer, targets, held, gradients[0] if gradients else None, False)
    return torch.as_tensor(found).unsqueeze(1)


class _Index:
    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, output: Tensor) -> Tensor:
        return output[self.index]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam", "xgradcam"])
def test_pytorch_grad_cam_agrees(method: str, other: Any) -> None:
    """XGrad-CAM adds 1e-7 to what it divides by."""
    model = made(Network)
    theirs = raw(getattr(other, NAMES[method])(model, [model.rect]), X)
    found = ours(method, relu=False, upsample=False)
    within = 1e-5 if method == "xgradcam" else 1e-9
    assert float((found - theirs).abs().max()) < within * float(found.abs().max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scale", [1e3, 1.0, 1e-3])
def test_pytorch_grad_cam_plus_plus_loses_small_gradients(scale: float, other: Any) -> None:
    """It adds 1e-6 to what it divides by, in which gradients are squared: at 1e-3 nothing of the map is left."""
    model = made(Network)
    with torch.no_grad():
        model.last.weight *= scale  # type: ignore[union-attr,operator]
    theirs = raw(other.GradCAMPlusPlus(model, [model.rect]), X)
    found = ours("gradcam_plus_plus", model=model, relu=False, upsample=False)
    off = float((found - theirs).abs().max() / found.abs().max())
    assert off < 1e-4 if scale > 1 else 1e-3 < off < 0.02 if scale == 1.0 else off > 0.9


@pytest.mark.filterwarnings("ignore")
def test_pytorch_grad_cam_scales_what_it_returns(other: Any) -> None:
    """Beside the picture it is the same: bilinear at the size of x, each map between 0 and 1."""
    model = made(Network).float()
    explainer = other.GradCAM(model, [model.rect])
    theirs = torch.from_numpy(explainer(X.float(), [_Index(target) for target in TARGET]))
    found = ours("gradcam").squeeze(1)
    low, high = (end.view(3, 1, 1) for end in (found.flatten(1).amin(1), found.flatten(1).amax(1)))
    scaled = (found - low) / (high - low)
    assert theirs.shape == scaled.shape
    assert float((theirs - scaled).abs().mean()) < 0.02  # it scales before it stretches, and again afterwards


@pytest.mark.filterwarnings("ignore")
def test_pytorch_grad_cam_leaves_gradients_in_the_model(other: Any) -> None:
    model = made(Network).float()
    other.GradCAM(model, [model.rect])(X.float(), [_Index(target) for target in TARGET])
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_pytorch_grad_cams_scorecam_has_other_corners(other: Any) -> None:
    """Its masks put the corner cells' centres on the corners of x: a little larger, so the weights differ a little."""
    model = made(Network)
    theirs = raw(other.ScoreCAM(model, [model.second]), X)
    found = ours("scorecam", "second", relu=False, upsample=False)
    held = axplain.explain(model, X, "layer_activation", layer="second").attributions
    for i in range(3):
        masks = functional.interpolate(held[i : i + 1], size=(16, 16), mode="bilinear", align_corners=True)[0]
        low, high = (end.view(-1, 1, 1) for end in (masks.flatten(1).amin(1), masks.flatten(1).amax(1)))
        scores = model(X[i] * ((masks - low) / (high - low)).unsqueeze(1))[:, TARGET[i]].detach()
        expected = torch.einsum("k,khw->hw", scores.softmax(0), held[i])
        torch.testing.assert_close(theirs[i, 0].double(), expected, rtol=1e-6, atol=1e-7)
    assert float((found - theirs).abs().max()) < 0.02 * float(found.abs().max())


@pytest.mark.filterwarnings("ignore")
def test_pytorch_grad_cams_ablationcam_turns_round_where_the_value_is_negative(other: Any) -> None:
    model = made(Network)
    theirs = raw(other.AblationCAM(model, [model.rect]), X)
    sign = model(X).detach()[torch.arange(3), TARGET].sign().view(3, 1, 1, 1)
    assert bool((sign < 0).any())
    torch.testing.assert_close(sign * theirs, ours("ablationcam", relu=False, upsample=False), rtol=1e-5, atol=1e-6)
