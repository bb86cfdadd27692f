"""What goes back through a network: ten ways from the class to the pixels of one picture.

Run it from the repository root: `make gallery`, or `pip install '.[demo]'` and then `python -m examples.propagation`.
The network, the picture and the predicted class are those of cat.py. Each map takes one pass forward and one backward.
It writes examples/output/propagation.png.
"""

from __future__ import annotations

import os
from typing import Any, Final

from examples import cat
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import axplain

OUTPUT: Final = cat.HERE / "output" / "propagation.png"

#: black and white, as the network sees them
RANGE: Final[dict[str, Any]] = {"low": -1.01, "high": 1.01}  # resizing overshoots black and white a little

LEGEND: Final = """\
rows      pictures that went forward and backward through the model
checks    one more picture, for the predicted class; DeepLIFT's is for the residual, too"""

QUERIES: Final = (
    cat.Query("Gradient x input", "input_x_gradient", {}, "The plain gradient, for comparison."),
    cat.Query("Guided backpropagation", "guided_backprop", {}, "Rectifiers hand back what is positive, where active."),
    cat.Query("Deconvolution", "deconvolution", {}, "Rectifiers hand back what is positive, active or not."),
    cat.Query("DeepLIFT", "deeplift", {"baselines": "blur"}, "The difference from a blurred picture, shared out."),
    cat.Query(
        "LRP, epsilon",
        "lrp",
        {"composite": "epsilon"},
        "The logit is shared out by what each input adds to each sum. Sums that nearly cancel make it rough.",
    ),
    cat.Query(
        "LRP, z+",
        "lrp",
        {"composite": "epsilon_plus"},
        "Convolutions share by what adds to their outputs alone: nothing cancels, nothing speaks against the class.",
    ),
    cat.Query(
        "LRP, z+ and flat",
        "lrp",
        {"composite": "epsilon_plus_flat"},
        "The same, and the first convolution shares evenly among the pixels that it sees.",
    ),
    cat.Query(
        "LRP, gamma and box",
        "lrp",
        {"composite": "epsilon_gamma_box", **RANGE},
        "What agrees with the sign of an output counts 1.25 times; the first layer knows black and white.",
    ),
    cat.Query(
        "LRP, alpha 2, beta 1",
        "lrp",
        {"composite": "epsilon_alpha2_beta1_flat"},
        "What adds gets twice the relevance, what takes pays once.",
    ),
    cat.Query(
        "LRP, z+ without biases",
        "lrp",
        {"composite": {"operations": {"convolution": {"rule": "zplus", "bias": False}}}},
        "Biases get no share, so that more of the logit arrives at the pixels.",
    ),
)


def absorbed(model: nn.Module) -> str:
    """Say what arrives at the pixels, and what biases and stabilisers keep on the way: together the logit."""
    query = cat.Query("", "lrp", {"composite": "epsilon_gamma_box", "report": True, **RANGE}, "")
    told = cat.explain(model, cat.PICTURE, query)
    arrived, kept = float(told.attributions.double().sum()), told.notes["absorbed"][0]
    value = arrived + kept - float(told.residuals["conservation"])
    return f"LRP, gamma and box: {arrived:.2f} at the pixels + {kept:.2f} absorbed = {value:.2f}, the logit"


def draw(x: Tensor, answers: list[axplain.Explanation], seen: str) -> Figure:
    """Return the picture and the maps, in three rows of four; the last panel says what they show."""
    figure = Figure(figsize=(15, 12.1), dpi=100)
    panels = figure.subplots(3, 4).flatten()
    figure.subplots_adjust(left=0.01, right=0.99, top=0.95, bottom=0.01, wspace=0.03, hspace=0.12)
    colours = cat.colours_of(x)
    panels[0].imshow(colours.numpy(), interpolation="bicubic")
    panels[0].set_title("The picture", fontsize=13)
    for panel, query, answer in zip(panels[1:], QUERIES, answers, strict=False):
        cat.draw_map(panel, cat.pixel_map(answer), colours.mean(2))
        panel.set_title(query.title, fontsize=13)
    for panel in panels:
        panel.set_axis_off()
    notes = (
        ("0.3", f"The network sees: {seen}"),
        (cat.RED, "Red pixels speak for this class,"),
        (cat.BLUE, "blue pixels against it."),
        ("0.3", "Guided backpropagation, deconvolution:\nred brighter, blue darker would raise it."),
        ("0.3", "Each map: one pass forward,\none pass backward."),
        ("0.3", "Blurred by 1.4 pixels;\nfull colour: the top 1 % of a map"),
    )
    height = 0.92
    for colour, note in notes:
        panels[-1].text(0.05, height, note, color=colour, fontsize=13, va="top")
        height -= 0.05 + 0.065 * (1 + note.count("\n"))
    return figure


def main() -> None:
    """Explain the picture ten times, print a table and write the maps."""
    x = cat.preprocess(Image.open(cat.PICTURE).convert("RGB")).unsqueeze(0)
    model = cat.load_model()
    first = cat.classify(model, x)
    print("\nWhich pixels made it so? Ten ways back from the class to the pixels:")
    answers = list(cat.ask(model, QUERIES).values())
    print(f"\n{cat.table(answers)}\n\n{LEGEND}\n\n{absorbed(model)}")
    OUTPUT.parent.mkdir(exist_ok=True)
    draw(x, answers, first).savefig(OUTPUT)
    print(f"\nThe maps are in {os.path.relpath(OUTPUT)}: red pixels speak for the class, blue ones against it.")


if __name__ == "__main__":
    main()
