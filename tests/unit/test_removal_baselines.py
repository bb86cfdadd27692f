"""What stands for absence, single features and token ids: every removal method against brute force in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.games import attributions, banzhaf, by_subsets, close, network, normal, shapley
from torch import Tensor, nn

import axplain

SHAPLEY = ("shapley_values", "kernel_shap", "leverage_shap")
GROUPED = (*SHAPLEY, "banzhaf_values", "shapley_value_sampling", "feature_ablation", "lime")


FORMS: dict[str, Any] = {
    "nothing": None,
    "a number": 0.4,
    "a row": normal(1, 4, seed=5),
    "a row each": normal(3, 4, seed=6),
    "an array": normal(1, 4, seed=5).numpy(),
    "a callable": lambda x: x.mean(0, keepdim=True),
    "a name": "mean",
    "a mapping": {"use": "value", "value": 0.25},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", [*SHAPLEY, "feature_ablation", "occlusion"])
def test_baselines_of_every_form_stand_for_absence(method: str, form: str) -> None:
    model, x, given = network(4), normal(3, 4), FORMS[form]
    reference = {
        "nothing": torch.zeros_like(x),
        "a number": torch.full_like(x, 0.4),
        "a callable": x.mean(0, keepdim=True).expand_as(x),
        "a name": x.mean(1, keepdim=True).expand_as(x),
        "a mapping": torch.full_like(x, 0.25),
    }.get(form)
    absent = torch.as_tensor(given).expand_as(x) if reference is None else reference
    weight = shapley if method in SHAPLEY else (lambda size, count: float(size == count - 1))
    close(attributions(model, x, method, baselines=given), by_subsets(model, x, absent, weight))


@pytest.mark.parametrize("method", [*SHAPLEY, "banzhaf_values", "feature_ablation", "occlusion"])
def test_a_distribution_is_averaged_over(method: str) -> None:
    """For Shapley values: the marginal ones, since they are linear in the game."""
    model, x, rows = network(4), normal(3, 4), normal(5, 4, seed=1)
    weight = shapley if method in SHAPLEY else banzhaf
    if method in ("feature_ablation", "occlusion"):
        weight = lambda size, count: float(size == count - 1)  # noqa: E731
    expected = torch.stack([by_subsets(model, x, row[None], weight) for row in rows]).mean(0)
    found = axplain.explain(model, x, method, baselines=axplain.distribution(rows))
    close(found.attributions, expected)
    if found.delta is not None:
        assert float(found.delta.abs().max()) < 1e-12


def test_sampled_methods_average_over_a_distribution() -> None:
    model, x, rows = network(4), normal(2, 4), normal(3, 4, seed=1)
    for method in ("shapley_value_sampling", "lime"):
        each = [attributions(model, x, method, baselines=row[None]) for row in rows]
        found = attributions(model, x, method, baselines=axplain.distribution(rows))
        close(found, torch.stack(each).mean(0))


@pytest.mark.parametrize(
    "method", [*SHAPLEY, "banzhaf_values", "shapley_value_sampling", "feature_ablation", "occlusion"]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_single_feature_gets_the_whole_difference(method: str, batch: int) -> None:
    model, x = network(1), normal(batch, 1)
    with torch.no_grad():
        difference = model(x) - model(torch.zeros_like(x))
    close(attributions(model, x, method)[:, 0], difference)


@pytest.mark.parametrize("method", ["lime", "feature_permutation", "rise"])
def test_a_single_feature_works_where_it_means_something_else(method: str) -> None:
    model = network(1)
    x = normal(3, 1, 1) if method == "rise" else normal(3, 1)
    more = {"surrogate": "linear"} if method == "lime" else {}
    found = attributions(model, x, method, **more)
    assert found.shape == x.shape
    if method == "lime":
        with torch.no_grad():
            torch.testing.assert_close(found[:, 0], model(x) - model(torch.zeros_like(x)), rtol=0, atol=1e-8)


class Tokens(nn.Module):
    """Reads 5 token ids; knows nothing but integers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 3), nn.Linear(15, 1)
        self.table.weight.data, self.head.weight.data = normal(11, 3, seed=8), normal(1, 15, seed=9)
        self.double().eval()

    def forward(self, ids: Tensor) -> Tensor:
        assert ids.dtype == torch.long
        out: Tensor = torch.tanh(self.head(self.table(ids).flatten(1)))[:, 0]
        return out


@pytest.mark.parametrize("method", GROUPED)
def test_token_ids_are_features(method: str) -> None:
    model, pad = Tokens(), torch.tensor([[10, 10, 0, 10, 10]])
    ids = torch.randint(1, 10, (3, 5), generator=torch.Generator().manual_seed(0))
    found = attributions(model, ids, method, baselines=pad)
    assert found.dtype == torch.float32 and found.shape == ids.shape
    if method == "lime":
        floats = _lime_of_game(model, ids, pad)
        torch.testing.assert_close(found, floats.float(), rtol=0, atol=1e-6)
        return
    if method == "shapley_value_sampling":
        with torch.no_grad():
            difference = model(ids) - model(pad)
        torch.testing.assert_close(found.sum(1), difference.float(), rtol=0, atol=1e-6)
        return
    weights = {"banzhaf_values": banzhaf, "feature_ablation": lambda size, count: float(size == count - 1)}
    expected = by_subsets(model, ids, pad, weights.get(method, shapley))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6)


def _lime_of_game(model: nn.Module, ids: Tensor, pad: Tensor) -> Tensor:
    """Return LIME of the same game played with numbers: 1 shows the token, 0 the padding."""
    columns = []
    for row in ids:

        def game(present: Tensor, row: Tensor = row) -> Tensor:
            out: Tensor = model(torch.where(present > 0.5, row, pad))
            return out

        columns.append(attributions(game, torch.ones(1, 5, dtype=torch.float64), "lime"))
    return torch.cat(columns)


@pytest.mark.parametrize(
    ("baselines", "words"),
    [
        ("mean", "'mean' came for an input of torch.int64"),
        ("gaussian", "'gaussian' came for an input"),
        (torch.full((1, 4), 2.5), "fractions came"),
        (lambda x: x / 2 + 0.1, "fractions came"),
        (axplain.distribution(torch.zeros(0, 4)), r"a set of shape \(0, 4\)"),
        ({"n": 3}, r'\{"use": name'),
    ],
)
def test_what_cannot_stand_for_a_token_id_is_refused(baselines: Any, words: str) -> None:
    ids = torch.tensor([[3, 1, 4, 1]])
    with pytest.raises(axplain.ArgumentError, match=words):
        axplain.explain(lambda ids: ids.double().sum(1), ids, "feature_ablation", baselines=baselines)
