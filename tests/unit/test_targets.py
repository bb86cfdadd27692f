"""What each form of a target means, in numbers: gradients against autograd by hand."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import attrs
import pytest
import torch
from torch import Tensor, nn

import axplain


def drawn(*shape: int, key: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)


def network(classes: int = 3) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)).double()
    for key, parameter in enumerate(model.parameters()):
        parameter.data = drawn(*parameter.shape, key=key + 10)
    model.get_parameter("2.bias").data.fill_(0.0)  # so that every class is predicted for some input
    return model.eval()


def gradient(values: Any, x: Tensor) -> Tensor:
    """The gradient of the sum of (batch,) values of a function of x, by autograd alone."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(values(leaf).sum(), leaf)[0]


def explained(model: Any, x: Any, **given: Any) -> Any:
    return axplain.explain(model, x, "saliency", absolute=False, **given).attributions


def check(model: Any, x: Tensor, values: Any, **given: Any) -> None:
    expected = gradient(values, x)
    assert bool(expected.any())
    for batch_size in (2, 64, "auto"):
        torch.testing.assert_close(
            explained(model, x, batch_size=batch_size, **given), expected, rtol=1e-12, atol=1e-14
        )


def test_one_index_is_that_output_of_every_example() -> None:
    model, x = network(), drawn(5, 4)
    for index in (0, 2, -1, -3):
        check(model, x, lambda x, index=index: model(x)[:, index], target=index)


def test_a_list_is_one_output_for_each_example() -> None:
    model, x = network(), drawn(5, 4)
    picks = [2, 0, 1, -1, 0]
    check(model, x, lambda x: torch.stack([model(x)[i, pick] for i, pick in enumerate(picks)]), target=picks)
    check(
        model, x, lambda x: torch.stack([model(x)[i, pick] for i, pick in enumerate(picks)]), target=torch.tensor(picks)
    )


def test_a_list_of_one_is_for_all() -> None:
    model, x = network(), drawn(5, 4)
    check(model, x, lambda x: model(x)[:, 1], target=[1])
    check(model, x, lambda x: model(x)[:, 1], target=torch.tensor([[1]]))


def test_a_tuple_indexes_the_dimensions_behind_the_batch() -> None:
    flat, x = network(24), drawn(5, 4)
    model = nn.Sequential(flat, nn.Unflatten(1, (2, 3, 4)))
    check(model, x, lambda x: model(x)[:, 1, 2, 3], target=(1, 2, 3))
    check(model, x, lambda x: model(x)[:, 0, 2, 1], target=(0, -1, 1))
    picks = [(1, 2, 3), (0, 0, 0), (1, 0, 2), (0, 2, 3), (1, 1, 1)]
    check(model, x, lambda x: torch.stack([model(x)[i, *pick] for i, pick in enumerate(picks)]), target=picks)
    check(
        model,
        x,
        lambda x: torch.stack([model(x)[i, *pick] for i, pick in enumerate(picks)]),
        target=torch.tensor(picks),
    )


def test_a_tuple_is_not_one_index_for_each_example() -> None:
    """Two examples and two dimensions: a list names an output for each, a tuple one place for both."""
    deep, x = nn.Sequential(network(6), nn.Unflatten(1, (3, 2))), drawn(2, 4)
    check(deep, x, lambda x: deep(x)[:, 2, 1], target=(2, 1))
    flat = network()
    check(flat, x, lambda x: torch.stack([flat(x)[0, 2], flat(x)[1, 1]]), target=[2, 1])
    with pytest.raises(axplain.ArgumentError, match="2 indices came"):
        explained(flat, x, target=(2, 1))


def test_none_is_the_output_itself_where_there_is_one_number() -> None:
    model, x = network(1), drawn(5, 4)
    check(model, x, lambda x: model(x)[:, 0])
    check(lambda x: model(x)[:, 0], x, lambda x: model(x)[:, 0])
    answer = axplain.explain(lambda x: model(x)[:, 0], x, "saliency")
    assert answer.target is None


def test_none_is_the_predicted_class_where_there_are_classes() -> None:
    model, x = network(), drawn(20, 4)
    predicted = model(x).argmax(1)
    assert len(set(predicted.tolist())) == 3, "every class is predicted for some example"
    check(model, x, lambda x: model(x).gather(1, predicted[:, None]).squeeze(1))
    assert axplain.explain(model, x, "saliency").target == predicted.tolist()


def test_the_predicted_class_is_that_of_the_clean_input_along_a_whole_path() -> None:
    """Where the prediction changes on the way from the baseline, the explained class does not."""
    model, x = network(), 2 * drawn(8, 4)
    baseline = drawn(8, 4, key=3)
    assert bool((model(x).argmax(1) != model(baseline).argmax(1)).any())
    answer = axplain.explain(model, x, baselines=baseline, n_steps=80)
    rows = torch.arange(8)
    expected = (model(x) - model(baseline))[rows, model(x).argmax(1)].detach()
    torch.testing.assert_close(answer.attributions.sum(1), expected, rtol=1e-8, atol=1e-8)


def test_a_callable_gets_the_raw_output_and_gives_one_value_a_row() -> None:
    model, x = network(), drawn(5, 4)

    def raw(x: Tensor) -> dict[str, Any]:
        return {"scores": model(x), "names": ["a", "b", "c"], "extra": (x,)}

    check(
        raw, x, lambda x: model(x)[:, 0] - model(x)[:, 1], target=lambda out: out["scores"][:, 0] - out["scores"][:, 1]
    )
    check(raw, x, lambda x: model(x).logsumexp(1), target=lambda out: out["scores"].logsumexp(1, keepdim=True))
    check(raw, x, lambda x: x.square().sum(1), target=lambda out: out["extra"][0].square().sum(1))


class Pair(NamedTuple):
    """A named tuple whose first field is not the one that counts."""

    loss: Tensor
    logits: Tensor


@attrs.define(eq=False)
class Plain:
    """An object with logits."""

    logits: Tensor
    loss: float = 0.0


class ModelOutput(OrderedDict[str, Any]):
    """A mapping whose entries are attributes, too, and that is indexed by position as well as by name."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@pytest.mark.parametrize(
    "wrap",
    [
        lambda out: (out, out * 2),
        lambda out: [out, "more"],
        lambda out: {"scores": out},
        lambda out: {"scores": out, "text": "x", "none": None},
        lambda out: {"hidden": out * 2, "logits": out},
        lambda out: Plain(out),
        lambda out: Pair(out.mean(), out),
        lambda out: ModelOutput(loss=out.mean(), logits=out, past=(out * 2,)),
        lambda out: ModelOutput(last_hidden_state=out),
    ],
)
def test_the_tensor_that_an_output_means(wrap: Any) -> None:
    model, x = network(), drawn(5, 4)
    check(lambda x: wrap(model(x)), x, lambda x: model(x)[:, 1], target=1)
    predicted = model(x).argmax(1)
    check(lambda x: wrap(model(x)), x, lambda x: model(x).gather(1, predicted[:, None]).squeeze(1))


def test_outputs_in_half_precision_are_summed_in_single() -> None:
    model, x = network().float(), drawn(5, 4).float()
    seen: list[torch.dtype] = []

    def watch(value: Tensor) -> Tensor:
        seen.append(value.dtype)
        return value[:, 0]

    answer = explained(lambda x: model(x).bfloat16(), x, target=watch)
    assert set(seen) == {torch.bfloat16} and answer.dtype == torch.float32


def test_a_neuron_by_index() -> None:
    model, x = network(), drawn(5, 4)
    weight = model.get_parameter("0.weight").detach()
    for unit in (0, 3, -1):
        torch.testing.assert_close(explained(model, x, target=axplain.neuron("0", unit)), weight[unit].expand(5, 4))
    check(model, x, lambda x: model[1](model[0](x))[:, 2], target=axplain.neuron(model[1], 2))
    check(model, x, lambda x: model[1](model[0](x))[:, 2], target=axplain.neuron("1", (2,)))


def picture() -> tuple[nn.Sequential, Tensor]:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)).double()
    for key, parameter in enumerate(model.parameters()):
        parameter.data = drawn(*parameter.shape, key=key + 20)
    return model, drawn(3, 2, 6, 6)


def test_a_neuron_of_a_map_by_a_tuple_and_by_slices_that_are_summed() -> None:
    model, x = picture()
    check(model, x, lambda x: model[:2](x)[:, 1, 2, 3], target=axplain.neuron("1", (1, 2, 3)))
    check(model, x, lambda x: model[:2](x)[:, 1].sum((1, 2)), target=axplain.neuron("1", (1, slice(None), slice(None))))
    check(
        model,
        x,
        lambda x: model[0](x)[:, :2, 1:3, -1].sum((1, 2)),
        target=axplain.neuron("0", (slice(2), slice(1, 3), -1)),
    )


def test_a_neuron_by_a_callable_of_the_layers_output() -> None:
    model, x = picture()
    unit = axplain.neuron("0", lambda out: out.square().mean((1, 2, 3)))
    check(model, x, lambda x: model[0](x).square().mean((1, 2, 3)), target=unit)


def test_a_neurons_layer_may_be_in_the_depths_and_have_a_dotted_name() -> None:
    model = nn.Sequential(OrderedDict(body=network(), head=nn.Sequential(nn.Tanh(), nn.Linear(3, 2).double()))).eval()
    x = drawn(5, 4)
    check(model, x, lambda x: model.get_submodule("body")(x)[:, 1], target=axplain.neuron("body.2", 1))
    answer = axplain.explain(model, x, "saliency", target=axplain.neuron(model.get_submodule("body")[2], 1))  # type: ignore[index]
    assert answer.target == "neuron body.2[1]"


def test_a_neurons_value_is_what_its_layer_returned_though_the_next_one_writes_over_it() -> None:
    linear = network()
    model = nn.Sequential(linear[0], nn.ReLU(inplace=True), linear[2])
    x = drawn(5, 4)
    assert bool((linear[0](x)[:, 1] < 0).any()), "some unit is negative before it is rectified"
    weight = model.get_parameter("0.weight").detach()
    torch.testing.assert_close(explained(model, x, target=axplain.neuron("0", 1)), weight[1].expand(5, 4))
    check(model, x, lambda x: linear[0](x)[:, 1].relu(), target=axplain.neuron("1", 1))
    answer = axplain.explain(model, x, target=axplain.neuron("0", 1), n_steps=4)
    torch.testing.assert_close(answer.difference, (linear[0](x) - linear[0](x * 0))[:, 1].detach())


def test_a_neuron_of_a_layer_that_returns_a_tuple() -> None:
    lstm, x = nn.LSTM(4, 3, batch_first=True).double().eval(), drawn(2, 5, 4)
    head = nn.Linear(3, 2).double()

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = lstm, head

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.lstm(x)[0][:, -1])
            return out

    check(Reader(), x, lambda x: lstm(x)[0][:, 4, 1], target=axplain.neuron("lstm", (4, 1)))


def test_integrated_gradients_of_a_neuron_is_complete() -> None:
    model, x = network(), drawn(5, 4)
    answer = axplain.explain(model, x, target=axplain.neuron("1", 3), n_steps=60)
    difference = (model[:2](x) - model[:2](torch.zeros_like(x)))[:, 3].detach()
    torch.testing.assert_close(answer.attributions.sum(1), difference, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(answer.difference, difference, rtol=1e-12, atol=1e-12)


class SequenceFirst(nn.Module):
    """Gives, and holds in its layer, (sequence, batch, units); `folds` as many heads as examples into the batch."""

    def __init__(self, folds: int = 0) -> None:
        super().__init__()
        self.core = nn.Tanh()
        self.folds = folds

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.core(x.transpose(0, 1) * torch.arange(1.0, 7.0, dtype=x.dtype).view(3, 1, 2))
        if self.folds:
            told = self.core(told.repeat(1, self.folds, 1))
        return told.cumsum(0)


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_a_neuron_of_a_sequence_as_long_as_the_batch_is_read_on_the_batch(batch: int) -> None:
    model, x = SequenceFirst(), drawn(batch, 3, 2)
    unit = axplain.neuron("core", (1, 0))
    check(model, x, lambda x: model(x).diff(dim=0, prepend=torch.zeros_like(model(x)[:1]))[1, :, 0], target=unit)
    summed = axplain.neuron("core", lambda held: held.flatten(1).sum(1))
    check(model, x, lambda x: model(x).diff(dim=0, prepend=torch.zeros_like(model(x)[:1])).sum((0, 2)), target=summed)
    both = axplain.explain_targets(model, x, "saliency", absolute=False, targets=[unit, summed])
    torch.testing.assert_close(both[0].attributions, explained(model, x, target=unit))


def test_a_neuron_of_a_layer_that_folds_the_batch_is_refused() -> None:
    folded = axplain.neuron(axplain.seat("core", call=1), (1, 0))
    with pytest.raises(axplain.ArgumentError, match=r"holds \(3, 4, 2\) for 2 rows and \(3, 6, 2\) for 3; expected .*"):
        explained(SequenceFirst(folds=2), drawn(4, 3, 2), target=folded)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "feature_ablation"])
def test_an_output_as_long_as_the_batch_by_chance_is_refused(method: str) -> None:
    """The model gives (sequence, batch, units): with three examples its first axis would pass for the batch."""
    model = SequenceFirst()
    for batch in (2, 3):
        with pytest.raises(axplain.UnsupportedModel, match="sequence-first output needs a wrapper"):
            axplain.explain(model, drawn(batch, 3, 2), method, target=(1, 0))


def test_an_output_with_as_many_classes_as_examples_costs_one_look() -> None:
    model, rows = network(), []
    model.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    for _ in range(2):
        explained(model, drawn(3, 4), target=1)
    assert rows == [3, 2, 3]


class OneSize(nn.Module):
    """Takes three rows at a time, and no other number."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.core = nn.Identity()
        self.state, self.length = nn.Parameter(drawn(1, 3, 1)), length

    def forward(self, x: Tensor) -> Tensor:
        held: Tensor = self.core(x.T[: self.length, :, None] * self.state.expand(self.length, 3, 1))
        return torch.stack([held.sum((0, 2)), held.prod(0)[:, 0], held.amax((0, 2))], 1)


def test_a_model_that_takes_one_number_of_rows_is_told_why_another_was_tried() -> None:
    """It has as many classes as examples, so nothing but another number of rows tells which axis is which."""
    x, model = drawn(3, 4), OneSize(2)
    with pytest.raises(RuntimeError) as failed:
        explained(OneSize(2), x, target=1)
    assert "target=lambda output: output[:, 1]" in "".join(failed.value.__notes__)
    found = explained(OneSize(2), x, target=lambda output: output[:, 1])
    torch.testing.assert_close(found, gradient(lambda x: model(x)[:, 1], x))
    with pytest.raises(RuntimeError) as failed:
        explained(OneSize(2), x, target=axplain.neuron("core", (1, 0)))
    assert "where layer 'core' holds the batch" in "".join(failed.value.__notes__)
