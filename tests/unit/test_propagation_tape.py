"""The tape: what is kept stays as it was, the rows are found, and a pass that is out of step is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import axplain
from axplain.errors import UncoveredOperation
from axplain.propagation.mode import Following, Recording
from axplain.propagation.operations import Operation
from axplain.propagation.rules import Rule, RuleSet
from axplain.propagation.tape import Kept, Reader, Tape, row_axes


@attrs.frozen
class Secants(RuleSet):
    """A rule set of two operations, with the rule spelled out: the change of the output over that of the input."""

    references: bool = True
    unknown: Any = "refuse"

    def rule(self, operation: str) -> Rule | None:
        return Rule(self._secant) if operation in ("tanh", "relu") else None

    @staticmethod
    def _secant(gradient: Tensor, new: Operation, old: Operation | None) -> tuple[Tensor]:
        assert old is not None
        return (gradient * (new.output - old.output) / (new.inputs[0] - old.inputs[0]),)


def recorded(work: Callable[[Tensor], Any], x: Tensor) -> Tape:
    tape = Tape()
    mode = Recording(Secants(), None, set(), tape)
    mode.depend((x,))
    with torch.no_grad(), mode:
        work(x)
    mode.marks.release()
    return tape


def multipliers(work: Callable[[Tensor], Tensor], x: Tensor, reference: Tensor) -> Tensor:
    """Return d work / d x under the rules, from a tape of the reference; work sums up over all elements."""
    reader = Reader(recorded(work, reference.clone()), None)
    leaf = x.clone().requires_grad_()
    start = leaf.clone()
    mode = Following(Secants(), None, set(), reader)
    mode.depend((start,))
    with mode:
        value = work(start)
    reader.finish()
    return torch.autograd.grad(value.sum(), leaf)[0]


@pytest.mark.parametrize("part", [slice(None), slice(1, 3)])
def test_what_is_kept_outlives_a_write_to_the_tensor_or_to_a_view_of_it(part: slice) -> None:
    tensor, kept = torch.arange(4.0), Kept()
    held = kept.keep((tensor, tensor[2:]))
    kept.before_writing(tensor[part])
    tensor[part] = 9.0
    assert held[0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert held[1].tolist() == [2.0, 3.0]


def test_what_nobody_overwrites_is_not_copied() -> None:
    tensor, other, kept = torch.arange(4.0), torch.zeros(2), Kept()
    held = kept.keep((tensor,))
    kept.keep((other,))
    kept.before_writing(other)
    assert held[0].data_ptr() == tensor.data_ptr()


def test_what_is_kept_carries_no_graph() -> None:
    tensor = torch.ones(2, requires_grad=True) * 2
    assert not Kept().keep((tensor,))[0].requires_grad


@pytest.mark.parametrize(
    ("work", "axes"),
    [
        (lambda x: x.tanh(), ((0, 0),)),
        (lambda x: x.transpose(0, 1).tanh(), ((1, 1),)),
        (lambda x: x.permute(2, 1, 0).relu().tanh(), ((2, 2), (2, 2))),
        (lambda x: x.unsqueeze(0).tanh(), ((1, 1),)),
        (lambda x: x.flatten(0, 1).tanh(), None),  # rows folded with another dimension
        (lambda x: x.tanh().sum().relu(), None),  # no rows are left
        (lambda x: torch.zeros(3).copy_(x[0, :, 0]).tanh(), None),  # the first row, whatever their number
    ],
)
def test_the_row_axis_is_where_two_passes_differ(work: Callable[[Tensor], Tensor], axes: Any) -> None:
    one, two = (recorded(work, torch.randn(rows, 3, 2)) for rows in (1, 2))
    assert row_axes(one, two, (1, 2)) == axes


def test_passes_that_differ_have_no_row_axis() -> None:
    few = recorded(lambda x: x.tanh(), torch.randn(1, 3))
    longer = recorded(lambda x: x.tanh().tanh(), torch.randn(2, 3))
    other = recorded(lambda x: x.relu(), torch.randn(2, 3))
    assert row_axes(few, longer, (1, 2)) is None
    assert row_axes(few, other, (1, 2)) is None
    assert row_axes(recorded(lambda x: len(x) * bool(x.sum() < 9), torch.ones(1, 2)), few, (1, 2)) is None


def test_numbers_that_leave_torch_are_on_the_tape() -> None:
    tape = recorded(lambda x: (x.sum().item(), bool(x.sum())), torch.ones(1, 2))
    assert [(record.name, record.values) for record in tape.records if record.values is not None] == [
        ("item", 2.0),
        ("__bool__", True),
    ]


def test_rows_of_the_tape_follow_the_examples_on_their_axis() -> None:
    x = torch.randn(2, 3)
    tape = recorded(lambda x: x.t().tanh(), x)
    tape.axes = ((1, 1),)
    inputs, output = tape.aligned(0, torch.tensor([1, 1, 0]))
    assert torch.equal(inputs, x[[1, 1, 0]].t())
    assert torch.equal(output, x[[1, 1, 0]].t().tanh())


def test_one_row_of_the_tape_serves_all_examples_without_a_copy() -> None:
    tape = recorded(lambda x: x.t().tanh(), torch.randn(1, 3))
    tape.axes = ((1, 1),)
    inputs, _ = tape.aligned(0, torch.zeros(5, dtype=torch.long))
    assert inputs.shape == (3, 5)
    assert inputs.stride(1) == 0


def test_a_reader_goes_through_the_tape_once_and_in_order() -> None:
    reader = Reader(recorded(lambda x: x.tanh().relu(), torch.randn(1, 2)), None)
    assert [reader.next("tanh", str), reader.next("relu", str)] == [0, 1]
    reader.finish()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("relu",), "here calls 'relu' where the references came to 'tanh'"),
        (("tanh", "tanh"), "here calls 'tanh' where the references came to 'relu'"),
        (("tanh", "relu", "relu"), "here calls 'relu' where the references came to 'the end'"),
    ],
)
def test_a_reader_that_is_out_of_step_refuses(asked: tuple[str, ...], said: str) -> None:
    reader = Reader(recorded(lambda x: x.tanh().relu(), torch.randn(1, 2)), None)
    with pytest.raises(UncoveredOperation, match=said):
        for name in asked:
            reader.next(name, lambda: "here")


def test_a_reader_that_stops_early_refuses() -> None:
    reader = Reader(recorded(lambda x: x.tanh().relu(), torch.randn(1, 2)), None)
    reader.next("tanh", str)
    with pytest.raises(UncoveredOperation, match="the references came to 'relu'"):
        reader.finish()


def test_agreement_is_that_of_every_value_shape_and_number() -> None:
    tape = recorded(lambda x: (x > 0, x.sum().item()), torch.tensor([[1.0, -1.0]]))
    reader, same = Reader(tape, None), torch.tensor([[True, False]])
    assert reader.agrees(0, (same,), None)
    assert not reader.agrees(0, (~same,), None)
    assert not reader.agrees(0, (same[0],), None)
    assert reader.agrees(1, (), 0.0)
    assert not reader.agrees(1, (), 1e-9)


def _in_place(x: Tensor) -> Tensor:
    h = 2 * x
    y = h.tanh()
    h += 1  # the record of tanh holds h
    h.relu_()
    return y + 3 * h


def _view_of_the_record(x: Tensor) -> Tensor:
    h = 2 * x
    y = h.tanh()
    h[:, :1].mul_(0.5)
    h.view(-1).add_(1)
    return y + 3 * h.relu()


def _output_overwritten(x: Tensor) -> Tensor:
    h = (2 * x).tanh()
    kept = h * 1
    h.mul_(5).add_(1)  # the output that the tape recorded
    return kept + h


def _twice_in_place(x: Tensor) -> Tensor:
    h = 2 * x
    h.tanh_()
    h.mul_(2)
    h.tanh_()
    return h


def _secant_of(function: Callable[[Tensor], Tensor], x: Tensor, reference: Tensor) -> Tensor:
    return (function(x) - function(reference)) / (x - reference)


@pytest.mark.parametrize("work", [_in_place, _view_of_the_record, _output_overwritten, _twice_in_place])
def test_writing_after_a_record_changes_nothing_of_it(work: Callable[[Tensor], Tensor]) -> None:
    x, reference = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    expected = _secant_of(work, x, reference)  # each is elementwise: its secant is known without rules
    torch.testing.assert_close(multipliers(work, x, reference), expected, rtol=1e-12, atol=1e-12)


def test_marks_are_taken_off_what_outlives_the_pass() -> None:
    buffer, x = torch.zeros(2, 3), torch.randn(2, 3)
    recorded(lambda x: buffer.copy_(x).tanh(), x)
    recorded(lambda x: buffer.relu_(), x)
    assert vars(buffer) == {}


def test_what_does_not_depend_on_x_is_left_alone() -> None:
    constant = torch.randn(2, 3)
    tape = recorded(lambda x: constant.tanh() + x, torch.randn(2, 3))
    assert tape.records == []


class Counting(nn.Module):
    """A network of two outputs for words or plain rows; notes the rows of each pass and whether it had a graph."""

    def __init__(self, folded: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.folded = nn.Linear(4, 6), nn.Linear(6, 3), folded
        self.seen: list[tuple[int, bool]] = []
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), torch.is_grad_enabled()))
        h = self.first(x)
        h = h.view(-1).tanh().view(-1, 6) if self.folded else h.tanh()  # folded: rows and features on one axis
        return self.last(h)  # type: ignore[no-any-return]

    def rows(self, *, graph: bool) -> int:
        return sum(rows for rows, had in self.seen if had == graph)


def rows(count: int, width: int = 4) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64)


def test_each_reference_runs_once_and_each_pair_once() -> None:
    model, given = Counting(), axplain.distribution(rows(3))
    settings: dict[str, Any] = {"target": 1, "baselines": given, "verify": False, "batch_size": 64}
    axplain.explain(model, rows(5), "deeplift_shap", **settings)
    model.seen.clear()
    explanation = axplain.explain(model, rows(5), "deeplift_shap", **settings)
    assert model.rows(graph=True) == 15  # n = 5 examples x 3 references
    assert model.rows(graph=False) == 3  # u = 3
    assert (explanation.cost.forward_rows, explanation.cost.backward_rows) == (18, 15)


def test_one_reference_for_all_runs_once() -> None:
    model = Counting()
    settings: dict[str, Any] = {"target": 1, "baselines": rows(1), "verify": False, "batch_size": 64}
    axplain.explain(model, rows(5), "deeplift", **settings)
    model.seen.clear()
    axplain.explain(model, rows(5), "deeplift", **settings)
    assert (model.rows(graph=True), model.rows(graph=False)) == (5, 1)


def test_the_layout_is_probed_once_for_a_model() -> None:
    model, given = Counting(), axplain.distribution(rows(3))
    settings: dict[str, Any] = {"target": 1, "baselines": given, "verify": False, "batch_size": 64}
    axplain.explain(model, rows(5), "deeplift_shap", **settings)
    first = model.seen.copy()
    model.seen.clear()
    axplain.explain(model, rows(5), "deeplift_shap", **settings)
    probes = [seen for seen in ((1, False), (2, False)) if seen in first]
    assert len(probes) == 2
    assert sorted(first) == sorted([*model.seen, *probes])


def test_folded_rows_are_recorded_for_each_pair() -> None:
    model, x, references = Counting(folded=True), rows(5), rows(3)
    plain = Counting()
    plain.load_state_dict(model.state_dict())
    settings: dict[str, Any] = {"target": 1, "baselines": axplain.distribution(references), "batch_size": 64}
    folded = axplain.explain(model, x, "deeplift_shap", verify=False, **settings)
    assert folded.cost.forward_rows == 30  # each of 15 pairs with a reference row of its own
    expected = axplain.explain(plain, x, "deeplift_shap", verify=False, **settings).attributions
    torch.testing.assert_close(folded.attributions, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("folded", [True, False])
def test_chunks_of_any_size_give_the_same(batch_size: int, folded: bool) -> None:
    model, x, given = Counting(folded), rows(5), axplain.distribution(rows(3))
    settings: dict[str, Any] = {"target": [0, 1, 2, 1, 0], "baselines": given}
    expected = axplain.explain(model, x, "deeplift_shap", batch_size=15, **settings)
    found = axplain.explain(model, x, "deeplift_shap", batch_size=batch_size, **settings)
    torch.testing.assert_close(found.attributions, expected.attributions, rtol=0, atol=1e-12)
    assert float(found.residuals["completeness"].abs().max()) <= 1e-10


class Parted(nn.Module):
    """Outputs a dict of a tuple; reads two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Counting()

    def forward(self, left: Tensor, right: Tensor) -> Any:
        return {"scores": (self.inner(left * right.sigmoid()), left)}


TARGETS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "number": (1, lambda y: y[:, 1]),
    "list": ([0, 1, 2, 1], lambda y: y[range(4), [0, 1, 2, 1]]),
    "tensor": (torch.tensor([2, 2, 0, 1]), lambda y: y[range(4), [2, 2, 0, 1]]),
    "tuple": ((2,), lambda y: y[:, 2]),
    "callable": (lambda y: y[:, 0] * y[:, 1].sigmoid(), lambda y: y[:, 0] * y[:, 1].sigmoid()),
}


@pytest.mark.parametrize(("target", "chosen"), TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("method", ["deeplift", "deeplift_shap"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_sum_is_that_of_the_target(
    target: Any, chosen: Callable[[Tensor], Tensor], method: str, count: int
) -> None:
    model, x, references = Counting(), rows(4), rows(count)
    given = references if count == 1 else axplain.distribution(references)
    explanation = axplain.explain(model, x, method, target=target, baselines=given)
    with torch.no_grad():
        away = torch.stack([chosen(model(row.expand_as(x))) for row in references]).mean(0)
        difference = chosen(model(x)) - away
    torch.testing.assert_close(explanation.attributions.sum(1), difference, rtol=0, atol=1e-10)
    torch.testing.assert_close(explanation.difference, difference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", [1, 3])
def test_named_inputs_and_outputs_share_the_sum(count: int) -> None:
    model, x = Parted(), {"left": rows(4), "right": rows(4)}
    away = {name: rows(count) for name in x}
    given = away if count == 1 else axplain.distribution(away)
    explanation = axplain.explain(model, x, "deeplift_shap", target=lambda out: out["scores"][0][:, 2], baselines=given)
    with torch.no_grad():
        left, right = (
            torch.stack(
                [model(**{k: v[i].expand(4, -1) for k, v in away.items()})["scores"][0][:, 2] for i in range(count)]
            ),
            model(**x)["scores"][0][:, 2],
        )
    total = sum(tensor.sum(1) for tensor in explanation.attributions.values())
    torch.testing.assert_close(total, right - left.mean(0), rtol=0, atol=1e-10)


def test_a_pair_of_inputs_is_that_of_one_wide_input() -> None:
    inner, x, away = Counting(), rows(4), rows(1)
    pair = axplain.explain(
        lambda a, b: inner(torch.cat([a, b], 1)),
        (x[:, :1], x[:, 1:]),
        "deeplift",
        target=0,
        baselines=(away[:, :1], away[:, 1:]),
    )
    wide = axplain.explain(inner, x, "deeplift", target=0, baselines=away)
    torch.testing.assert_close(torch.cat(pair.attributions, 1), wide.attributions, rtol=0, atol=1e-12)


def test_a_neuron_is_explained_like_the_network_that_ends_there() -> None:
    model, x, away = Counting(), rows(4), rows(2)
    given = axplain.distribution(away)
    inside = axplain.explain(model, x, "deeplift_shap", target=axplain.neuron("first", 3), baselines=given)
    expected = (x[:, None] - away).mean(1) * model.first.weight[3].detach()  # linear up to there
    torch.testing.assert_close(inside.attributions, expected, rtol=0, atol=1e-12)


def test_noise_around_it_averages_the_sums() -> None:
    model, x, away = Counting(), rows(4), rows(1)
    settings: dict[str, Any] = {"target": 1, "baselines": away, "n_samples": 3, "seed": 4, "verify": False}
    lifted = axplain.explain(model, x, "smoothgrad", inner="deeplift", stdev=1e-9, **settings)
    plain = axplain.explain(model, x, "deeplift", target=1, baselines=away)
    torch.testing.assert_close(lifted.attributions, plain.attributions, rtol=0, atol=1e-7)
    noisy = axplain.explain(model, x, "smoothgrad", inner="deeplift", stdev=0.5, **settings)
    assert float((noisy.attributions - plain.attributions).abs().max()) > 1e-3


def test_ambient_inference_mode_changes_nothing() -> None:
    model, x, given = Counting(), rows(4), axplain.distribution(rows(3))
    expected = axplain.explain(model, x, "deeplift_shap", target=1, baselines=given).attributions
    with torch.inference_mode():
        found = axplain.explain(model, x, "deeplift_shap", target=1, baselines=given).attributions
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


ASKED: dict[str, Any] = {
    "index": 1,
    "each its own": [0, 1, 2],
    "sum of exponentials": lambda out: out.logsumexp(1),
    "the same on another axis": lambda out: out.t().logsumexp(0),
    "norm": lambda out: out.norm(dim=1),
    "largest": lambda out: out.max(1).values,
}


@pytest.mark.parametrize("first", ASKED)
@pytest.mark.parametrize("second", ASKED)
def test_a_target_of_other_operations_has_rows_of_its_own_on_the_tape(first: str, second: str) -> None:
    torch.manual_seed(1)
    model, x = Counting(), rows(3)
    asked: dict[str, Any] = {"method": "deeplift", "baselines": 0.0}
    fresh = axplain.explain(copy.deepcopy(model), x, target=ASKED[second], **asked)
    axplain.explain(model, x, target=ASKED[first], **asked)
    after = axplain.explain(model, x, target=ASKED[second], **asked)
    torch.testing.assert_close(after.attributions, fresh.attributions, rtol=0, atol=0)
