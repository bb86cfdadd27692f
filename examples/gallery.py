"""Six methods that ask a network what it says where parts of a picture are missing, side by side.

Run it from the repository root: `make gallery`, or `pip install '.[demo]'` and then `python -m examples.gallery`.
The network, the picture and the predicted class are those of cat.py. What is missing is blurred, as mid-grey
pieces would have hard edges that the network sees; four methods take out superpixels, two take out squares and soft
blobs of their own. It writes examples/output/removal.png.
"""

from __future__ import annotations

import dataclasses
import os
import textwrap
from typing import Final

import torch
from examples import cat
from examples.superpixels import outlines, superpixels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import axplain

OUTPUT: Final = cat.HERE / "output" / "removal.png"
PATCHES: Final = 50

LEGEND: Final = """\
rise      F(picture) - F(blurred picture): the difference of logits to explain
residual  the sum of the attributions minus that
rows      pictures with missing parts that went through the model, none of them twice
checks    more pictures, for the predicted class and the residual"""

#: Two minutes on two cores. Shapley values of single superpixels need thousands of rows before they are steady.
QUERIES: Final = (
    cat.Query(
        "Kernel SHAP",
        "kernel_shap",
        {"baselines": "blur", "n_samples": 1500},
        "Shapley values: what each superpixel adds to the logit, averaged over all sets of others that may be there "
        "before it. Here from a least-squares fit to 1500 sets.",
    ),
    cat.Query(
        "Shapley value sampling",
        "shapley_value_sampling",
        {"baselines": "blur", "n_samples": 30},
        "The same values by another way: superpixels come in one by one, in 30 orders, and each gets what the logit "
        "rises by when it comes.",
    ),
    cat.Query(
        "LIME",
        "lime",
        {"baselines": "blur", "n_samples": 1000},
        "The coefficients of a linear model, fitted to 1000 pictures from which superpixels are missing. Those from "
        "which few are missing weigh more.",
    ),
    cat.Query(
        "Feature ablation",
        "feature_ablation",
        {"baselines": "blur"},
        "What the logit loses when one superpixel is missing and all others are there. Blue: this network is surer of "
        "the class without that one. Only when much is missing does the logit fall.",
    ),
    cat.Query(
        "Occlusion",
        "occlusion",
        {"baselines": "blur", "window": 48, "stride": 16},
        "What the logit loses when a square of 48 pixels is missing, averaged over the squares that cover a pixel. "
        "Again one part at a time, and again mostly blue.",
    ),
    cat.Query(
        "RISE, above its mean",
        "rise",
        {"baselines": "blur", "n_samples": 1000, "cells": 5},
        "The mean logit under 1000 soft masks that show a pixel. It has no zero point of its own, so the picture shows "
        "by how much a pixel is above the mean of all.",
    ),
)


def ask(model: torch.nn.Module, patches: Tensor) -> list[axplain.Explanation]:
    """Explain the picture in every way of `QUERIES`; methods over groups of pixels get the superpixels."""
    answers = []
    for query in QUERIES:
        print(f"\n{query}\n{textwrap.fill(query.meaning, 100)}", flush=True)  # the progress bar follows, on stderr
        requires = axplain.describe(query.method).requires
        if requires is not None and requires.features == "grouped":
            query = dataclasses.replace(query, arguments=query.arguments | {"feature_mask": patches})
        answers.append(cat.explain(model, cat.PICTURE, query, progress=True))
    return answers


def map_of(explanation: axplain.Explanation) -> Tensor:
    """Return (height, width): the attributions of a picture; those of RISE without their mean."""
    values = cat.pixel_map(explanation)
    return values - values.mean() if explanation.method == "rise" else values


def draw(x: Tensor, patches: Tensor, answers: list[axplain.Explanation], seen: str) -> Figure:
    """Return the picture, its superpixels and the maps, in two rows of four."""
    figure = Figure(figsize=(15, 8.6), dpi=100)
    panels = figure.subplots(2, 4).flatten()
    figure.subplots_adjust(left=0.01, right=0.99, top=0.925, bottom=0.055, wspace=0.03, hspace=0.17)
    colours = cat.colours_of(x)
    titles = [f"The picture\n{seen}", f"Cut into pieces\n{int(patches.max()) + 1} superpixels"]
    draw_pieces(panels[0], panels[1], colours, patches)
    for panel, query, answer in zip(panels[2:], QUERIES, answers, strict=True):
        cat.draw_map(panel, map_of(answer), colours.mean(2))
        titles.append(f"{query.title}\n{answer.cost.forward_rows} rows, {answer.seconds:.0f} s")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=13, linespacing=1.3)
        panel.set_axis_off()
    notes = (
        (cat.RED, "Red parts raise the logit of this class,"),
        (cat.BLUE, "blue parts lower it."),
        ("0.3", "Parts that are missing are blurred."),
        ("0.3", "rows: pictures that the network saw"),
    )
    for quarter, (colour, note) in enumerate(notes):
        figure.text(0.01 + 0.247 * quarter, 0.018, note, color=colour, fontsize=13)
    return figure


def draw_pieces(whole: Axes, pieces: Axes, colours: Tensor, patches: Tensor) -> None:
    """Draw the picture, and again with the outlines of its superpixels."""
    whole.imshow(colours.numpy(), interpolation="bicubic")
    lined = torch.where(outlines(patches)[..., None], torch.tensor([1.0, 0.9, 0.2]), colours)
    pieces.imshow(lined.numpy(), interpolation="nearest")


def main() -> None:
    """Cut the picture into superpixels, explain it six times, print a table and write the maps."""
    model = cat.load_model()
    x = cat.preprocess(Image.open(cat.PICTURE).convert("RGB")).unsqueeze(0)
    first = cat.classify(model, x)
    patches = superpixels(x[0], PATCHES)
    print("\nWhy the first one? Six ways to find out by taking parts of the picture away:")
    answers = ask(model, patches)
    print(f"\n{cat.table(answers)}\n\n{LEGEND}")
    OUTPUT.parent.mkdir(exist_ok=True)
    draw(x, patches, answers, first).savefig(OUTPUT)
    print(f"\nThe maps are in {os.path.relpath(OUTPUT)}: red parts speak for the class, blue ones against it.")


if __name__ == "__main__":
    main()
