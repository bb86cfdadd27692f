"""Pictures in every form give the same answer as the tensor that the transform makes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import axplain

np = pytest.importorskip("numpy")
PIL_Image = pytest.importorskip("PIL.Image")


def scaled(picture: Any) -> Tensor:
    """The transform of these tests: RGB in, (3, height, width) in 0..1 out."""
    assert picture.mode == "RGB"
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


@pytest.fixture
def pixels() -> Any:
    """A picture of 4 rows of 5 pixels, every value another one."""
    return np.random.default_rng(0).permutation(240)[:60].reshape(4, 5, 3).astype("uint8")


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 3), torch.nn.Tanh()).eval()


def attributions(model: torch.nn.Module, x: Any, transform: Any = scaled) -> Tensor:
    modality = {"use": "image", "transform": transform}
    answer: Tensor = axplain.explain(model, x, "input_x_gradient", target=1, modality=modality).attributions
    return answer


def encoded(pixels: Any) -> Tensor:
    """What `scaled` makes of a picture, computed without Pillow."""
    return torch.tensor(pixels.astype("float32")).permute(2, 0, 1)[None] / 255


def expected(model: torch.nn.Module, x: Tensor) -> Tensor:
    """The same attributions by plain autograd at the encoded tensor."""
    x = x.clone().requires_grad_()
    model(x)[:, 1].sum().backward()
    assert x.grad is not None
    return (x * x.grad).detach()


@pytest.mark.parametrize("form", ["image", "array", "read-only array", "tensor", "path", "str"])
def test_each_form_of_a_picture_is_explained_like_its_encoded_tensor(
    form: str, pixels: Any, model: torch.nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    PIL_Image.fromarray(pixels).save(path)
    frozen = pixels.copy()
    frozen.flags.writeable = False
    given = {
        "image": PIL_Image.fromarray(pixels),
        "array": pixels,
        "read-only array": frozen,
        "tensor": torch.tensor(pixels),
        "path": path,
        "str": str(path),
    }[form]
    assert torch.equal(attributions(model, given), expected(model, encoded(pixels)))


def test_baselines_and_the_predicted_class_are_those_of_the_encoded_tensor(pixels: Any, model: torch.nn.Module) -> None:
    x = encoded(pixels)
    asked: dict[str, Any] = {"method": "integrated_gradients", "baselines": torch.full_like(x, 0.5)}
    answer = axplain.explain(model, pixels, **asked, modality={"use": "image", "transform": scaled})
    plain = axplain.explain(model, x, **asked)
    assert answer.target == plain.target == int(model(x).argmax())
    assert torch.equal(answer.attributions, plain.attributions)
    assert answer.provenance["modality"] == "image"
    assert plain.provenance["modality"] is None


def test_a_list_is_a_batch_in_its_order_and_may_mix_forms(pixels: Any, model: torch.nn.Module, tmp_path: Path) -> None:
    pictures = [pixels, pixels[::-1].copy(), 255 - pixels]
    path = tmp_path / "second.png"
    PIL_Image.fromarray(pictures[1]).save(path)
    given = [pictures[0], path, PIL_Image.fromarray(pictures[2])]
    batch = torch.cat([encoded(picture) for picture in pictures])
    torch.testing.assert_close(attributions(model, given), expected(model, batch))


def test_a_grey_picture_reaches_the_transform_as_rgb(pixels: Any, model: torch.nn.Module) -> None:
    grey = pixels[..., 0]
    same = np.stack([grey] * 3, axis=-1)
    assert torch.equal(attributions(model, grey), expected(model, encoded(same)))
    assert torch.equal(attributions(model, PIL_Image.fromarray(grey)), expected(model, encoded(same)))


def test_transparency_is_dropped(pixels: Any, model: torch.nn.Module) -> None:
    transparent = np.concatenate([pixels, np.full((4, 5, 1), 9, "uint8")], axis=-1)
    assert torch.equal(attributions(model, transparent), expected(model, encoded(pixels)))


def test_a_transform_may_return_a_batch_of_one(pixels: Any, model: torch.nn.Module) -> None:
    batched = attributions(model, [pixels, pixels], lambda picture: scaled(picture)[None])
    assert batched.shape == (2, 3, 4, 5)
    torch.testing.assert_close(batched[:1], expected(model, encoded(pixels)))


def test_the_picture_and_the_file_stay_as_they_were(pixels: Any, model: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    image = PIL_Image.fromarray(pixels[..., 0])
    image.save(path)
    before = path.read_bytes()

    def careless(picture: Any) -> Tensor:
        picture.putpixel((0, 0), (1, 2, 3))
        return scaled(picture)

    attributions(model, image, careless)
    attributions(model, path, careless)
    assert image.mode == "L"
    assert (np.asarray(image) == pixels[..., 0]).all()
    assert path.read_bytes() == before


def test_an_rgb_picture_that_the_transform_changes_in_place_stays_as_it_was(
    pixels: Any, model: torch.nn.Module
) -> None:
    image = PIL_Image.fromarray(pixels)

    def careless(picture: Any) -> Tensor:
        picture.putpixel((0, 0), (1, 2, 3))
        return scaled(picture)

    attributions(model, image, careless)
    assert (np.asarray(image) == pixels).all()


@pytest.mark.parametrize("modality", ["image", {"use": "image"}])
def test_a_missing_transform_is_named(modality: Any, pixels: Any, model: torch.nn.Module) -> None:
    with pytest.raises(axplain.ArgumentError, match=r"transform.*nothing came.*callable.*preprocessing"):
        axplain.explain(model, pixels, target=0, modality=modality)


def test_a_transform_that_cannot_be_called_is_named(pixels: Any, model: torch.nn.Module) -> None:
    with pytest.raises(axplain.ArgumentError, match=r"transform.*'bicubic'.*callable"):
        attributions(model, pixels, "bicubic")


def test_an_unknown_parameter_is_named(pixels: Any, model: torch.nn.Module) -> None:
    with pytest.raises(axplain.ArgumentError, match=r"modality\['size'\]: image has no such parameter.*transform"):
        axplain.explain(model, pixels, modality={"use": "image", "transform": scaled, "size": 224})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda pixels: pixels.astype("float32"), r"ndarray of float32, shape \(4, 5, 3\)"),
        (lambda pixels: pixels > 9, r"of bool"),
        (lambda pixels: torch.tensor(pixels).float(), r"Tensor of float32.*needs no modality"),
        (lambda pixels: pixels.transpose(2, 0, 1), r"shape \(3, 4, 5\).*\(height, width, 3 or 4\)"),
        (lambda pixels: pixels[..., :1], r"shape \(4, 5, 1\)"),
        (lambda pixels: pixels[None], r"shape \(1, 4, 5, 3\)"),
        (lambda pixels: pixels[:0], r"shape \(0, 5, 3\)"),
        (lambda pixels: (pixels, pixels), r"tuple came.*go in a list"),
        (lambda pixels: 7, r"int came"),
        (lambda pixels: None, r"NoneType came"),
    ],
    ids=["float", "bool", "preprocessed", "channels first", "one channel", "batch", "empty", "tuple", "int", "None"],
)
def test_what_is_no_picture_is_refused_by_its_type_and_shape(
    change: Any, what: str, pixels: Any, model: torch.nn.Module
) -> None:
    with pytest.raises(axplain.ArgumentError, match=f"^x: .*{what}"):
        attributions(model, change(pixels))


def test_a_fault_in_a_list_names_its_place(pixels: Any, model: torch.nn.Module) -> None:
    with pytest.raises(axplain.ArgumentError, match=r"^x\[1\]: .*float64"):
        attributions(model, [pixels, pixels / 255])


def test_an_empty_list_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(axplain.ArgumentError, match=r"^x: an empty list"):
        attributions(model, [])


@pytest.mark.parametrize("fault", ["absent", "folder", "text", "cut", "damaged"])
def test_a_file_that_cannot_be_read_is_named(fault: str, pixels: Any, model: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PIL_Image.fromarray(np.tile(pixels, (50, 50, 1))).save(path)
    content = path.read_bytes()
    damaged = content[:60] + b"\0" * 40 + content[100:]
    broken = {"text": b"a cat", "cut": content[: len(content) // 2], "damaged": damaged}
    if fault in broken:
        path.write_bytes(broken[fault])
    elif fault == "absent":
        path = tmp_path / "nowhere.png"
    else:
        path = tmp_path
    with pytest.raises(
        axplain.ArgumentError, match=r"^x: .*cannot be opened.*expected the path of a picture"
    ) as caught:
        attributions(model, path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("as_file", [True, False])
def test_sixteen_bits_a_channel_are_refused_and_not_clipped_to_white(
    as_file: bool, model: torch.nn.Module, tmp_path: Path
) -> None:
    deep = PIL_Image.fromarray((np.arange(20, dtype="uint16") * 3000).reshape(4, 5))
    path = tmp_path / "deep.png"
    deep.save(path)
    with pytest.raises(axplain.ArgumentError, match=r"^x: a picture of mode 'I;16' came; expected 8 bits"):
        attributions(model, path if as_file else deep)


def test_pictures_of_different_sizes_need_a_transform_that_makes_them_equal(
    pixels: Any, model: torch.nn.Module
) -> None:
    pictures = [pixels, pixels[:3]]
    with pytest.raises(axplain.ArgumentError, match=r"^modality: .*\(3, 3, 5\) for x\[1\].*\(3, 4, 5\).*Resize"):
        attributions(model, pictures)
    resized = attributions(model, pictures, lambda picture: scaled(picture.resize((5, 4))))
    torch.testing.assert_close(resized[:1], expected(model, encoded(pixels)))


@pytest.mark.parametrize(
    ("transform", "what"),
    [
        (lambda picture: np.array(picture), "ndarray"),
        (lambda picture: scaled(picture)[0], r"\(4, 5\)"),
        (lambda picture: torch.stack([scaled(picture)] * 2), r"\(2, 3, 4, 5\)"),
    ],
    ids=["array", "no channels", "batch of two"],
)
def test_a_transform_that_returns_no_single_picture_is_refused(
    transform: Any, what: str, pixels: Any, model: torch.nn.Module
) -> None:
    with pytest.raises(axplain.ArgumentError, match=f"^modality: the transform returned .*{what}"):
        attributions(model, pixels, transform)


def test_an_error_inside_the_transform_comes_out_as_it_is(pixels: Any, model: torch.nn.Module) -> None:
    def broken(picture: Any) -> Tensor:
        raise KeyError("mean")

    with pytest.raises(KeyError, match="mean"):
        attributions(model, pixels, broken)


def test_without_pillow_the_error_names_the_extra(
    pixels: Any, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(axplain.MissingExtra, match=r"image modality.*pip install 'axplain\[image\]'"):
        attributions(model, pixels)


def test_a_picture_without_a_modality_is_told_about_it(pixels: Any, model: torch.nn.Module) -> None:
    with pytest.raises(axplain.ArgumentError, match=r"^x: Image came.*modality=.*image"):
        axplain.explain(model, PIL_Image.fromarray(pixels), target=0)
