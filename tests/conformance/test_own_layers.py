"""`axplain.check` on a user's own model, asked about layers, neurons and token ids: what holds is not said to fail."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import axplain
from axplain.conformance.own import own_case
from axplain.conformance.subject import Subject
from axplain_plugins.axioms.answers import check_mirror

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


class Words(nn.Module):
    """Token ids, embedded and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.head = nn.Embedding(10, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.inner(self.words(ids))).sum(1))
        return out


def vector() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()


def picture() -> nn.Sequential:
    convolutions = (nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 3)).double().eval()


def words() -> nn.Module:
    return Words().double().eval()


#: id -> the method, the model, what else is given, and claims and contracts that must have been asked and hold
ASKED: dict[str, tuple[str, Any, dict[str, Any], set[str]]] = {
    "chosen": ("gradcam", picture, {"target": 1}, {"shift", "cost", "mirror"}),
    "named": ("gradcam", picture, {"target": 1, "layer": "1"}, {"shift", "cost", "exception_safety"}),
    "held": ("layer_activation", picture, {"layer": "3"}, {"cost", "exception_safety", "mirror"}),
    "several": ("layer_activation", vector, {"layer": ["1", "3"]}, {"cost", "detached", "exception_safety"}),
    "conductance": ("layer_conductance", vector, {"target": 1, "layer": "1"}, {"null_at_baseline", "cost", "mirror"}),
    "seat": (
        "layer_conductance", vector, {"target": 1, "layer": axplain.seat("2", of="input")},
        {"null_at_baseline", "cost", "randomisation_sanity"},
    ),
    "neuron": (
        "neuron_conductance", vector, {"target": 1, "neuron": axplain.neuron("1", 2)},
        {"null_at_baseline", "dummy", "cost", "exception_safety"},
    ),
    "at a layer": ("saliency", vector, {"target": 1, "layer": "1"}, {"cost", "exception_safety", "mirror"}),
    "ids": ("layer_activation", words, {"layer": "inner"}, {"detached", "idempotence", "mirror", "cost"}),
    "above ids": (
        "integrated_gradients", words, {"target": 1, "layer": "words"}, {"detached", "mirror", "idempotence", "cost"},
    ),
    "removed ids": ("feature_ablation", words, {"target": 1}, {"detached", "idempotence", "mirror"}),
}  # fmt: skip
X = {
    vector: torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4),
    picture: torch.linspace(-1, 1, 192, dtype=torch.float64).sin().view(3, 1, 8, 8),
    words: IDS,
}


@pytest.mark.parametrize("name", ASKED)
def test_nothing_that_holds_is_said_to_fail(name: str) -> None:
    method, make, given, held = ASKED[name]
    torch.manual_seed(0)
    report = axplain.check(method, model=make(), x=X[make], **given)
    assert report.ok, report.failures
    outcomes = {record.axiom: record.outcome for record in report}
    wrong = {axiom: outcomes.get(axiom) for axiom in held if outcomes.get(axiom) not in ("pass", "reported")}
    assert not wrong, [record for record in report if record.axiom in wrong]


def test_a_module_that_is_given_as_the_layer_is_found_in_copies() -> None:
    model = vector()
    report = axplain.check("internal_influence", model=model, x=X[vector], target=1, layer=model[1])
    assert report.ok, report.failures


def test_claims_about_the_input_are_left_out_at_a_layer() -> None:
    report = axplain.check(
        "integrated_gradients", model=vector(), x=X[vector], target=1, layer="1", axioms=["completeness", "linearity"]
    )
    assert {record.outcome for record in report} == {"skip"}
    assert all("layer=" in record.reason for record in report), [record.reason for record in report]


def test_a_layer_that_is_not_there_is_refused_once() -> None:
    with pytest.raises(axplain.ArgumentError, match="layer '9' came"):
        axplain.check("layer_activation", model=vector(), x=X[vector], layer="9")


def test_attributions_that_do_not_mirror_the_layer_are_found() -> None:
    """The layer's own values are compared with, not whatever came."""

    def other(model: Any, x: Any, method: Any, *, layer: Any, **more: Any) -> Any:
        return axplain.explain(model, x, "layer_activation", layer=model[3], **more)

    subject = attrs.evolve(Subject.of("layer_activation"), explain=other)
    case = own_case(subject, vector(), X[vector], {"layer": "1"})
    with pytest.raises(AssertionError, match=r"\(3, 6\).*got attributions \(3, 5\)"):
        check_mirror(case)
