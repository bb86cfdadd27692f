"""Threads that explain one model at the same time get the bits that one thread gets, or a refusal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import axplain

if TYPE_CHECKING:
    from tests.contract.conftest import Case

Make = Callable[..., Any]
THREADS = 8


def together(ask: Callable[[int], Any]) -> list[Any]:
    """Call `ask` in eight threads that start at the same time; an exception is an answer."""
    start = threading.Barrier(THREADS)

    def run(number: int) -> Any:
        start.wait()
        try:
            return ask(number)
        except axplain.AxplainError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def test_eight_threads_get_the_bits_of_one(case: Case, network: Make, draw: Make, unchanged: Make) -> None:
    model, x = network(), draw(5, 4)
    targets: list[Any] = [None, 0, 1, 2, [0, 1, 2, 1, 0], lambda out: out[:, 1], (2,), torch.tensor(0)]
    expected = [case(model, x, target=target, batch_size=5) for target in targets]
    with unchanged(model, x):
        answers = together(lambda number: case(model, x, target=targets[number], batch_size=5))
    for answer, single in zip(answers, expected, strict=True):
        assert torch.equal(answer.attributions, single.attributions)
        assert answer.cost == single.cost, "each call counts its own rows"


def test_eight_threads_measure_an_unknown_model_at_once(case: Case, network: Make, draw: Make) -> None:
    x = draw(5, 4)
    expected = case(network(), x, target=1).attributions
    model = network()
    assert all(torch.equal(answer.attributions, expected) for answer in together(lambda _: case(model, x, target=1)))


def test_threads_that_ask_for_neurons_are_right_or_refused(
    case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    model, x = network(), draw(5, 4)
    expected = [case(model, x, target=axplain.neuron("first", unit % 5)).attributions for unit in range(THREADS)]
    with unchanged(model, x):
        answers = together(lambda number: case(model, x, target=axplain.neuron("first", number % 5), batch_size=1))
        for answer, single in zip(answers, expected, strict=True):
            if isinstance(answer, axplain.AxplainError):
                assert isinstance(answer, axplain.UnsupportedModel) and "thread" in str(answer)
            else:
                torch.testing.assert_close(answer.attributions, single, rtol=1e-9, atol=1e-12)
    assert torch.equal(case(model, x, target=axplain.neuron("first", 0)).attributions, expected[0])


def test_a_hooked_model_refuses_the_other_threads_until_it_is_done(
    case: Case, network: Make, draw: Make, unchanged: Make
) -> None:
    net, x = network(), draw(5, 4)
    inside, leave = threading.Event(), threading.Event()

    def wait(module: Any, args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            leave.wait(10)

    handle = net.register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(case, net, x, target=axplain.neuron("first", 1))
        assert inside.wait(10)
        with pytest.raises(axplain.UnsupportedModel, match="thread"):
            case(net, x, target=1)
        with pytest.raises(axplain.UnsupportedModel, match="thread"):
            case(net, x, target=axplain.neuron("first", 2))
        case(network(), x, target=axplain.neuron("first", 2))  # another model is free
        leave.set()
        answer = first.result()
    expected = case(net, x, target=axplain.neuron("first", 1))
    handle.remove()
    assert torch.equal(answer.attributions, expected.attributions)


def test_a_pass_of_another_thread_is_not_taken_for_the_neurons(network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    unit = axplain.neuron("first", 1)
    expected = axplain.explain(model, x, "integrated_gradients", target=unit, batch_size=1).attributions
    done = threading.Event()

    def predict() -> None:
        while not done.is_set():
            model(x)

    thread = threading.Thread(target=predict)
    thread.start()
    try:
        answer = axplain.explain(model, x, "integrated_gradients", target=unit, batch_size=1).attributions
    finally:
        done.set()
        thread.join()
    assert torch.equal(answer, expected)


@pytest.mark.parametrize("wrappers", ["one for all", "one each"])
def test_threads_may_share_a_model_in_training_behind_evaluating(network: Make, draw: Make, wrappers: str) -> None:
    model, x = network(), draw(5, 4)

    def ask(model: Any) -> Any:
        return axplain.explain(model, x, "integrated_gradients", target=1, n_steps=20, batch_size=1).attributions

    expected = ask(model)
    model.train()
    wrapped = axplain.evaluating(model)
    answers = together(lambda _: ask(wrapped if wrappers == "one for all" else axplain.evaluating(model)))
    assert all(isinstance(answer, Tensor) and torch.equal(answer, expected) for answer in answers)
    assert all(module.training for module in model.modules()), "every module is in training again"
