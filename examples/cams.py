"""Where a network sees the cat: ten class activation maps of one picture, from one layer.

Run it from the repository root: `make gallery`, or `pip install '.[demo]'` and then `python -m examples.cams`.
The network, the picture and the predicted class are those of cat.py. No layer is named: the last convolution is taken,
whose channels see the picture through 7 x 7 places. It writes examples/output/cams.png.
"""

from __future__ import annotations

import os
from typing import Final

from examples import cat
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import axplain

OUTPUT: Final = cat.HERE / "output" / "cams.png"

LEGEND: Final = """\
rows      pictures that went through the model; Score-CAM shows it one for each of the layer's channels
checks    one more picture, for the predicted class"""

QUERIES: Final = (
    cat.Query("Grad-CAM", "gradcam", {}, "A channel weighs what its gradient is on average over the 7 x 7 places."),
    cat.Query(
        "Grad-CAM++",
        "gradcam_plus_plus",
        {},
        "Only positive gradients count, and the more a channel holds in all the less each does: for several objects.",
    ),
    cat.Query(
        "HiResCAM",
        "hirescam",
        {},
        "Each place has its own gradient. Behind global average pooling, as here, it is Grad-CAM again, times 49.",
    ),
    cat.Query(
        "LayerCAM", "layercam", {}, "The same with positive gradients alone, so that no channel takes anything away."
    ),
    cat.Query("XGrad-CAM", "xgradcam", {}, "Grad-CAM whose mean weighs places by what the channel holds there."),
    cat.Query(
        "Finer-CAM",
        "finercam",
        {},
        "Grad-CAM of what sets the class apart from the three that the network finds nearest to it.",
    ),
    cat.Query("Ablation-CAM", "ablationcam", {}, "A channel weighs what the logit loses when it is set to zero."),
    cat.Query("Score-CAM", "scorecam", {}, "A channel weighs what the logit is where the picture shows through it."),
    cat.Query("Eigen-CAM", "eigencam", {}, "The first principal component of what the layer holds, for any class."),
    cat.Query(
        "Guided Grad-CAM",
        "guided_gradcam",
        {},
        "Pixels of guided backpropagation, kept where Grad-CAM is: edges and textures, with a sign.",
    ),
)


def draw(x: Tensor, answers: list[axplain.Explanation], seen: str) -> Figure:
    """Return the picture and the maps, in three rows of four; the last panel says what they show."""
    figure = Figure(figsize=(15, 12.6), dpi=100)
    panels = figure.subplots(3, 4).flatten()
    figure.subplots_adjust(left=0.01, right=0.99, top=0.95, bottom=0.01, wspace=0.03, hspace=0.16)
    colours = cat.colours_of(x)
    panels[0].imshow(colours.numpy(), interpolation="bicubic")
    panels[0].set_title(f"The picture\n{seen}", fontsize=13, linespacing=1.3)
    for panel, query, answer in zip(panels[1:], QUERIES, answers, strict=False):
        cat.draw_map(panel, cat.pixel_map(answer), colours.mean(2))
        rows = f"{answer.cost.forward_rows} rows" if answer.cost.forward_rows > 1 else "1 row"
        panel.set_title(f"{query.title}\n{rows}, {answer.seconds:.1f} s", fontsize=13, linespacing=1.3)
    for panel in panels:
        panel.set_axis_off()
    notes = (
        (cat.RED, "Red parts speak for this class."),
        (cat.BLUE, "Blue pixels, of the last one, against it."),
        ("0.3", "All of them look at one layer,\nthrough 7 x 7 places, and are\nstretched over the picture."),
        ("0.3", "Eigen-CAM asks for no class."),
        ("0.3", "rows: pictures that the network saw"),
    )
    for line, (colour, note) in enumerate(notes):
        panels[-1].text(0.05, 0.9 - 0.13 * line - 0.16 * (line > 2), note, color=colour, fontsize=13, va="top")
    return figure


def main() -> None:
    """Explain the picture ten times, print a table and write the maps."""
    x = cat.preprocess(Image.open(cat.PICTURE).convert("RGB")).unsqueeze(0)
    model = cat.load_model()
    first = cat.classify(model, x)
    print("\nWhere is it? Ten maps of one layer:")
    answers = list(cat.ask(model, QUERIES).values())
    print(f"\nThe layer: {answers[0].provenance['layer']}\n\n{cat.table(answers)}\n\n{LEGEND}")
    OUTPUT.parent.mkdir(exist_ok=True)
    draw(x, answers, first).savefig(OUTPUT)
    print(f"\nThe maps are in {os.path.relpath(OUTPUT)}: red parts speak for the class.")


if __name__ == "__main__":
    main()
