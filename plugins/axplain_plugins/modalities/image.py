"""Pictures as model inputs: a PIL image, a path, an array, or a list of these, through the model's own transform."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, MissingExtra, hookimpl

if TYPE_CHECKING:
    import PIL.Image

EXPECTED = "a PIL image, the path of a picture, or a uint8 array (height, width) or (height, width, 3 or 4)"


@attrs.frozen(eq=False)
class Image:
    """Opens what is no picture yet, in RGB, and hands it to the transform that the model was trained with."""

    transform: Callable[[Any], Any]

    def encode(self, x: Any) -> Tensor:
        """Return (batch, channels, height, width); one picture is a batch of one."""
        pictures = x if isinstance(x, list) else [x]
        if not pictures:
            raise ArgumentError("x", "an empty list of pictures came", "at least one picture")
        labels = [f"x[{i}]" for i in range(len(pictures))] if isinstance(x, list) else ["x"]
        tensors = [self._tensor(_open(picture, label)) for picture, label in zip(pictures, labels, strict=True)]
        for tensor, label in zip(tensors, labels, strict=True):
            if tensor.shape != tensors[0].shape:
                raise ArgumentError(
                    "modality", f"the transform returned the shape {tuple(tensor.shape)} for {label}",
                    f"{tuple(tensors[0].shape)}, as for x[0]", "Resize or crop every picture to one size in it.",
                )  # fmt: skip
        return torch.stack(tensors)

    def _tensor(self, picture: PIL.Image.Image) -> Tensor:
        tensor = self.transform(picture)
        if not isinstance(tensor, Tensor):
            raise ArgumentError(
                "modality", f"the transform returned {type(tensor).__name__}", "a tensor (channels, height, width)"
            )
        if tensor.ndim == 4 and len(tensor) == 1:
            tensor = tensor[0]
        if tensor.ndim != 3:
            raise ArgumentError(
                "modality", f"the transform returned the shape {tuple(tensor.shape)}", "(channels, height, width)"
            )
        return tensor


def _open(picture: Any, label: str) -> PIL.Image.Image:
    """Return a PIL image in RGB."""
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtra("The image modality", "image") from error

    if isinstance(picture, PIL.Image.Image):
        return _rgb(picture, label)
    if not isinstance(picture, str | Path):
        return _rgb(PIL.Image.fromarray(_array(picture, label)), label)
    try:
        with PIL.Image.open(picture) as opened:
            opened.load()
            return _rgb(opened, label)
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # Pillow calls a broken PNG a SyntaxError
        raise ArgumentError(label, f"{str(picture)!r} cannot be opened: {error}", "the path of a picture") from error


def _rgb(picture: PIL.Image.Image, label: str) -> PIL.Image.Image:
    """Convert to RGB, but not what Pillow would clip to white on the way: more than 8 bits a channel."""
    if picture.mode == "F" or picture.mode.startswith("I"):
        raise ArgumentError(
            label, f"a picture of mode {picture.mode!r} came", "8 bits a channel",
            "Scale its values to 0..255 and convert them to uint8.",
        )  # fmt: skip
    return picture.convert("RGB")


def _array(picture: Any, label: str) -> Any:
    """Check that an array or a tensor holds a picture, and return it as Pillow reads it."""
    array = picture.numpy(force=True) if isinstance(picture, Tensor) else picture
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None:
        raise ArgumentError(label, f"{type(picture).__name__} came", EXPECTED, "Several pictures go in a list.")
    spatial = len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))
    if str(dtype) != "uint8" or not spatial or 0 in shape:
        raise ArgumentError(
            label, f"{type(picture).__name__} of {dtype}, shape {tuple(shape)}, came", EXPECTED,
            "A tensor that is preprocessed already needs no modality.",
        )  # fmt: skip
    return array


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `image`."""
    return Image
