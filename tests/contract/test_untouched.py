"""Model, inputs and process are as before, whether a call succeeds or fails, and at whatever stage it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import numpy
import pytest
import torch
from tests.contract.accidents import PlannedError, fail, interrupt, spoil
from torch import Tensor, nn

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]


@attrs.define(eq=False)
class Tripwire:
    """Lets passes through and counts them; does something else at one of them. It keeps its count off the module."""

    action: Callable[[Tensor], Tensor]
    at: int = 0
    passes: int = 0

    def __call__(self, output: Tensor) -> Tensor:
        self.passes += 1
        return self.action(output) if self.passes == self.at else output


class Wired(nn.Module):
    """A network behind a tripwire."""

    def __init__(self, network: nn.Module, wire: Tripwire) -> None:
        super().__init__()
        self.network, self.wire = network, wire

    def forward(self, x: Tensor) -> Tensor:
        return self.wire(self.network(x))


def stages(passes: int) -> list[int]:
    """The first pass, one in the middle and the last."""
    return sorted({1, (passes + 1) // 2, passes})


def clean_passes(case: Case, model: nn.Module, x: Tensor, **given: Any) -> int:
    """The passes of a call, without those that tell once what the model needs."""
    wire = Tripwire(fail)
    wired = Wired(model, wire)
    case(wired, x, **given)
    first = wire.passes
    case(wired, x, **given)
    return wire.passes - first


def still_usable(case: Case, model: nn.Module, x: Tensor) -> bool:
    """A neuron's layer is refused while another call holds the model, so this also sees that no call holds it."""
    layer = "network.last" if isinstance(model, Wired) else "last"
    answer = case(model, x, target=axplain.neuron(layer, 1), batch_size=2)
    return bool(torch.isfinite(answer.attributions).all())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "mixed"])
def test_success_changes_nothing(case: Case, network: Make, draw: Make, unchanged: Make, training: bool) -> None:
    model, x = network(), draw(5, 4)
    model.hidden[0].training = training  # a flag of its own, that a blunt model.train() or .eval() would lose
    leaf = draw(5, 4, key=1).requires_grad_()
    with unchanged(model, x, leaf):
        for target in (None, 1, [0, 1, 2, 1, 0]):
            case(model, x, target=target)
        case(model, leaf, target=1, batch_size=2)


def test_success_changes_no_argument(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    model, x = network(features=6), (draw(3, 4), draw(3, 2, key=1))
    offset, gain = draw(3, 6, key=2).requires_grad_(), draw(3, key=3)
    baselines = (draw(3, 4, key=4), draw(3, 2, key=5))
    target = torch.tensor([[0], [2], [1]])
    with unchanged(model, *x, offset, gain, *baselines, target):
        case(model, x, target=target, baselines=baselines, forward_kwargs={"offset": offset, "gain": gain})


def test_success_leaves_no_hook_on_a_neurons_layer(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    model, x = network(), draw(5, 4)
    with unchanged(model, x):
        case(model, x, target=axplain.neuron(model.first, 2), batch_size=3)


def test_success_keeps_gradients_and_graphs_of_the_user(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4).requires_grad_()
    loss = model(x).square().sum()  # a graph that is alive while the model is explained
    model.last.bias.grad = torch.full_like(model.last.bias, 5.0)
    case(model, x, target=0)
    assert model.last.bias.grad.tolist() == [5.0, 5.0, 5.0] and model.first.weight.grad is None and x.grad is None
    model.last.bias.grad = None
    loss.backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and bool(x.grad.any())


def test_a_target_that_is_found_bad_after_the_first_pass(
    case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    model, x = network(), draw(5, 4)
    for target in (99, (0, 1), [0, 1, 2, 3, 0], lambda output: output, axplain.neuron("first", 99)):
        with unchanged(model, x), pytest.raises(axplain.ArgumentError, match="target"):
            case(model, x, target=target)
    assert still_usable(case, model, x)


@pytest.mark.parametrize("action", [fail, interrupt], ids=["exception", "interrupt"])
def test_a_module_that_fails_in_any_pass(
    case: Case, network: Make, draw: Make, unchanged: Make, action: Callable[[Tensor], Tensor]
) -> None:
    net, x = network(), draw(5, 4)
    expected = PlannedError if action is fail else KeyboardInterrupt
    for at in stages(clean_passes(case, net, x, target=1, batch_size=2)):
        model = Wired(net, Tripwire(action, at))
        with unchanged(model, x), pytest.raises(expected):
            case(model, x, target=1, batch_size=2)
        assert still_usable(case, model, x), f"after pass {at}"


def test_a_module_that_fails_while_the_class_is_predicted_or_memory_is_measured(
    case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    net, x = network(), draw(5, 4)
    for at in range(1, min(3, clean_passes(case, net, x)) + 1):
        model = Wired(net, Tripwire(fail, at))
        with unchanged(model, x), pytest.raises(PlannedError):
            case(model, x)
        assert still_usable(case, model, x), f"after pass {at}"


def test_a_model_that_turns_nan_in_any_pass(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    net, x = network(), draw(5, 4)
    for at in stages(clean_passes(case, net, x, target=1, batch_size=2)):
        model = Wired(net, Tripwire(spoil, at))
        with unchanged(model, x), pytest.raises(axplain.UnsupportedModel, match="NaN"):
            case(model, x, target=1, batch_size=2)
        assert still_usable(case, model, x), f"after pass {at}"


def test_a_target_callable_that_fails_in_any_pass(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    net, x = network(), draw(5, 4)
    case(net, x, target=1, batch_size=2)
    for at in stages(clean_passes(case, net, x, target=1, batch_size=2)):
        wire = Tripwire(fail, at)
        with unchanged(net, x), pytest.raises(PlannedError):
            case(net, x, target=lambda output, wire=wire: wire(output)[:, 1], batch_size=2)
        assert still_usable(case, net, x), f"after pass {at}"


@pytest.mark.parametrize("error", [PlannedError, KeyboardInterrupt], ids=["exception", "interrupt"])
def test_a_progress_callback_cancels_at_any_call(
    case: Case, network: Make, draw: Make, unchanged: Make, error: type[BaseException]
) -> None:
    model, x = network(), draw(5, 4)
    calls: list[tuple[int, int]] = []
    case(model, x, target=1, batch_size=2, progress=lambda done, total: calls.append((done, total)))
    for at in stages(len(calls)):
        left = iter(range(at - 1))

        def cancel(done: int, total: int, left: Any = left) -> None:
            if next(left, None) is None:
                raise error

        with unchanged(model, x), pytest.raises(error):
            case(model, x, target=1, batch_size=2, progress=cancel)
        assert still_usable(case, model, x), f"after call {at}"


def test_baselines_that_fail_or_change_their_input_leave_it_alone(
    baseline_case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    model, x = network(), draw(5, 4)
    with unchanged(model, x), pytest.raises(PlannedError):
        baseline_case(model, x, target=1, baselines=fail)


def test_generators_that_the_model_moves_are_put_back_and_it_is_said(
    case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    net, x = network(), draw(5, 4)

    def noisy(output: Tensor) -> Tensor:
        return output + 1e-9 * (torch.rand(()) + numpy.random.rand())

    model = Wired(net, Tripwire(noisy, at=1))
    with unchanged(model, x), pytest.warns(axplain.AxplainWarning, match="draws random numbers"):
        case(model, x, target=1)


def test_buffers_that_the_model_changes_or_replaces_are_put_back(case: Case, network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    scale = model.scale

    def change(module: Any, args: Any) -> None:
        module.scale.add_(0.0).mul_(1.0)
        module.norm.num_batches_tracked.add_(1)
        module.norm.running_mean = module.norm.running_mean.clone()

    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    handle = model.register_forward_pre_hook(change)
    case(model, x, target=1)
    handle.remove()
    assert model.scale is scale
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0] and torch.equal(buffer, before[name][1]), name


def test_state_of_the_process_is_kept_where_it_is_not_the_default(
    case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    model, x = network(), draw(5, 4)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), torch.autograd.set_detect_anomaly(True, check_nan=False), unchanged(model, x):
            case(model, x, target=1)
            with pytest.raises(axplain.ArgumentError):
                case(model, x, target=99)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)
