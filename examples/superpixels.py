"""Cuts a picture into patches of similar colour: k-means over colour and position, started from a grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def superpixels(picture: Tensor, count: int, compactness: float = 3.0, rounds: int = 10) -> Tensor:
    """Return the number of its patch for each pixel, (1, 1, height, width), from a picture (colours, height, width).

    `compactness`: how many standard deviations of colour weigh as much as the distance between two neighbouring
    centres. The larger, the squarer the patches.
    """
    height, width = picture.shape[1:]
    spacing = (height * width / count) ** 0.5
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    smooth = functional.avg_pool2d(picture, 7, stride=1, padding=3, count_include_pad=False)  # stripes are no patches
    colour = smooth.flatten(1) / picture.std()
    pixels = torch.cat([colour, compactness / spacing * torch.stack([rows, columns]).flatten(1)]).T
    centres = pixels[_grid(count, height, width)]
    for _ in range(rounds):
        nearest = torch.cdist(pixels, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, pixels)
        sizes = torch.bincount(nearest, minlength=count)
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp(min=1), centres)
    return nearest.view(1, 1, height, width)


def _grid(count: int, height: int, width: int) -> Tensor:
    """Return the pixels that start the patches: rows of nearly equal length, evenly spread."""
    lines = max(round((count * height / width) ** 0.5), 1)
    ends = torch.linspace(0, count, lines + 1).round().long()
    starts = []
    for line, here in enumerate(ends.diff().tolist()):
        row = int((line + 0.5) * height / lines)
        starts.append(row * width + ((torch.arange(here) + 0.5) * width / here).long())
    return torch.cat(starts)


def outlines(patches: Tensor) -> Tensor:
    """Return where a patch borders on the next one to the right or below, (height, width)."""
    numbers = patches[0, 0]
    border = torch.zeros_like(numbers, dtype=torch.bool)
    border[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    border[:-1] |= numbers[:-1] != numbers[1:]
    return border
