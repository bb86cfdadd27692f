"""Pictures as model inputs: a PIL image, a path, an array, or a list of these, through the model's own transform."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from axplain import ArgumentError, MissingExtra, hookimpl


@attrs.frozen(eq=False)
class Image:
    """Opens what is no picture yet, in RGB, and hands it to the transform that the model was trained with."""

    transform: Callable[[Any], Any]

    def encode(self, x: Any) -> Tensor:
        """Return (batch, channels, height, width); one picture is a batch of one."""
        pictures = x if isinstance(x, list) else [x]
        if not pictures:
            raise ArgumentError("x", "an empty list of pictures came", "at least one picture")
        tensors = [
            self._tensor(picture, f"x[{i}]" if isinstance(x, list) else "x") for i, picture in enumerate(pictures)
        ]
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if len(shapes) > 1:
            raise ArgumentError(
                "modality", f"the transform returned the shapes {sorted(shapes)}", "one shape for all pictures"
            )
        return torch.stack(tensors)

    def _tensor(self, picture: Any, label: str) -> Tensor:
        tensor = self.transform(_open(picture, label))
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


def _open(picture: Any, label: str) -> Any:
    """Return a PIL image in RGB."""
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtra("The image modality", "image") from error

    if isinstance(picture, PIL.Image.Image):
        return picture.convert("RGB")
    if isinstance(picture, str | Path):
        try:
            with PIL.Image.open(picture) as opened:
                return opened.convert("RGB")
        except (OSError, PIL.UnidentifiedImageError) as error:
            raise ArgumentError(
                label, f"{str(picture)!r} cannot be opened: {error}", "the path of a picture"
            ) from error
    array = picture.numpy(force=True) if isinstance(picture, Tensor) else picture
    if getattr(array, "ndim", 0) not in (2, 3) or str(getattr(array, "dtype", "")) != "uint8":
        came = f"{type(picture).__name__} of {getattr(array, 'dtype', 'no dtype')}, shape {getattr(array, 'shape', 'none')}"
        raise ArgumentError(label, f"{came} came", "a picture: PIL image, path, or uint8 array (height, width[, 3])")
    return PIL.Image.fromarray(array).convert("RGB")


@hookimpl
def axplain_plugin() -> Any:
    """Return the class behind `image`."""
    return Image
