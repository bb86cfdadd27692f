"""Contracts on what a call leaves behind find the faulty methods planted for them, and let right ones pass."""

from __future__ import annotations

import itertools
import random
import re
import warnings
from typing import Any

import numpy
import pytest
import torch
from tests.conformance.plain import Answer, asked
from tests.conformance.planting import Garden, Planted, changed, each, method
from torch import Tensor, nn

import axplain
from axplain.conformance import Effort, Subject
from axplain.conformance.claims import pairs_of
from axplain.conformance.runner import run

FAULTS = Garden()
CALL = "changed by a call: "


def _leaves(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if not list(module.children())]


@FAULTS.plant("clean_model", CALL + r".*hooks", base="saliency")
def a_hook_left(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    _leaves(model)[0].register_forward_hook(lambda *_: None)
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + r".*__dict__", base="saliency")
def an_attribute_left(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    model.activations = [x]
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + r".*\.storage", base="saliency")
def storage_moved(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + r".*\.id", base="saliency")
def parameters_replaced(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    layer = next(m for m in _leaves(model) if isinstance(m, nn.Linear))
    layer.weight = nn.Parameter(layer.weight.detach())
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + r".*\.version", base="saliency")
def parameters_written_and_written_back(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2).div_(2)
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + r".*\.requires_grad", base="saliency")
def parameters_frozen(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    model.requires_grad_(False)
    return axplain.explain(model, x, spec, **more)


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


@FAULTS.plant("clean_model", CALL + r".*\.grad", base="saliency")
def gradients_in_the_parameters(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    leaves = each(lambda tensor: tensor.detach().clone().requires_grad_(), x)
    question = asked(model, leaves, more)
    with torch.enable_grad():
        torch.autograd.backward(question.value(question.inputs).sum())
    return Answer(each(_gradient, leaves))


@FAULTS.plant("clean_model", CALL + r".*\.training", base="saliency")
def left_in_training(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    model.train()
    return answer


@FAULTS.plant("clean_model", CALL + "input 0.requires_grad", base="saliency")
def requires_grad_left_on_the_input(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    each(Tensor.requires_grad_, x)
    return answer


@FAULTS.plant("clean_model", CALL + "input 0.value", base="saliency")
def the_input_written(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    each(lambda tensor: tensor.clamp_(-0.1, 0.1), x)
    return answer


@FAULTS.plant("clean_model", CALL + r"input \d.v")
def the_baselines_written(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    if isinstance(more["baselines"], Tensor):
        more["baselines"].zero_()
    return answer


@FAULTS.plant("clean_model", CALL + "random.torch", base="saliency")
def a_global_generator_moved(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    torch.manual_seed(more["seed"])
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + "random.numpy", base="saliency")
def the_generator_of_numpy_moved(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    numpy.random.rand()
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + "deterministic", base="saliency")
def deterministic_algorithms_left_on(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    torch.use_deterministic_algorithms(True)
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", "changed by a call under no_grad: grad mode", base="saliency")
def gradients_left_on(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    torch.set_grad_enabled(True)
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + "_global_forward_hooks", base="saliency")
def a_hook_for_all_modules_left(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    GLOBAL.append(nn.modules.module.register_module_forward_hook(lambda *_: None))
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + r".*\.hooks", base="saliency")
def a_hook_left_on_a_parameter(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    next(model.parameters()).register_hook(lambda slope: slope)
    return axplain.explain(model, x, spec, **more)


GLOBAL: list[Any] = []


@FAULTS.plant("clean_model", CALL + r".*hooks", base="saliency")
def all_hooks_removed_and_not_only_its_own(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    for module in model.modules():
        module._forward_hooks.clear()
    return answer


@FAULTS.plant("clean_model", CALL + r".*\.grad", base="saliency")
def gradients_of_the_user_dropped(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    model.zero_grad()
    return axplain.explain(model, x, spec, **more)


@FAULTS.plant("clean_model", CALL + r".*\.requires_grad", base="saliency")
def frozen_parameters_thawed(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    model.requires_grad_(True)
    return answer


@FAULTS.plant("exception_safety", r"changed by a failure in pass 1 of \d+: .*hooks", base="saliency")
def hooks_left_after_a_failure_only(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    hook = _leaves(model)[0].register_forward_hook(lambda *_: None)
    answer = axplain.explain(model, x, spec, **more)
    hook.remove()
    return answer


@FAULTS.plant("exception_safety", r"changed by a failure in pass \d+ of \d+: .*hooks", base="saliency")
def hooks_left_after_an_interrupt_only(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    hook = _leaves(model)[0].register_forward_hook(lambda *_: None)
    try:
        answer = axplain.explain(model, x, spec, **more)
    except Exception:
        hook.remove()
        raise
    hook.remove()
    return answer


@FAULTS.plant("exception_safety", "pass 1 of 1 failed, and the call went on", base="saliency")
def zeros_for_an_exception(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    try:
        return axplain.explain(model, x, spec, **more)
    except Exception:
        return Answer(each(torch.zeros_like, x))


@FAULTS.plant("exception_safety", r"pass \d+ of \d+ failed, and the call went on", base="saliency")
def zeros_for_an_interrupt(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    try:
        return axplain.explain(model, x, spec, **more)
    except KeyboardInterrupt:
        return Answer(each(torch.zeros_like, x))


@FAULTS.plant("exception_safety", "a target out of range is accepted", base="saliency")
def targets_clipped(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, x, spec, **{**more, "target": min(more["target"], 0)})


@FAULTS.plant("exception_safety", "changed by a target out of range: .*hooks", base="saliency")
def hooks_left_after_a_bad_target(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    try:
        return axplain.explain(model, x, spec, **more)
    except axplain.ArgumentError:
        _leaves(model)[0].register_forward_hook(lambda *_: None)
        raise


BROKEN: list[bool] = []


@FAULTS.plant("exception_safety", "after failed calls the same question gets other numbers", base="saliency")
def a_state_that_a_failure_breaks(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    try:
        answer = axplain.explain(model, x, spec, **more)
    except BaseException:
        BROKEN.append(True)
        raise
    factor = 1.1 if BROKEN else 1.0
    BROKEN.clear()
    return changed(answer, lambda phi: phi * factor)


def _blurred(x: Any, number: float) -> Any:
    return each(lambda tensor: tensor + 1e-3 * number, x)


@FAULTS.plant("determinism", "depend on a global random generator", base="saliency")
def noise_of_the_global_generator(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, _blurred(x, float(torch.rand(()))), spec, **more)


@FAULTS.plant("determinism", "depend on a global random generator", base="saliency")
def noise_of_numpy(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, _blurred(x, float(numpy.random.rand())), spec, **more)


@FAULTS.plant("determinism", "depend on a global random generator", base="saliency")
def noise_of_python(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return axplain.explain(model, _blurred(x, random.random()), spec, **more)


CALLS = itertools.count()


@FAULTS.plant("idempotence", "asked again, gets other numbers", base="saliency")
def numbers_that_follow_the_calls(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    number = next(CALLS)
    return changed(axplain.explain(model, x, spec, **more), lambda phi: phi + 1e-3 * number)


LAST: list[Any] = []


@FAULTS.plant("idempotence", "asked again, gets other numbers", base="saliency")
def the_last_answer_mixed_in(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    sums = [float(part.sum()) for part in answer.tensors]
    before, LAST[:] = list(LAST), sums
    return changed(answer, lambda phi: phi + sum(before) * 1e-3)


BUFFERS: dict[Any, Tensor] = {}


@FAULTS.plant("idempotence", "", base="saliency")
def one_buffer_for_all_answers(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    """An answer that is kept is overwritten by the next one."""

    def written(phi: Tensor) -> Tensor:
        return BUFFERS.setdefault((phi.shape, phi.dtype), torch.empty_like(phi)).copy_(phi)

    return changed(axplain.explain(model, x, spec, **more), written)


@FAULTS.plant("training_guard", "dropout was active and nothing was said", base="saliency")
def warnings_swallowed(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return axplain.explain(model, x, spec, **more)


@FAULTS.plant("training_guard", "no longer in training mode", base="saliency")
def evaluation_mode_left(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    answer = axplain.explain(model, x, spec, **more)
    model.eval()
    return answer


@FAULTS.plant("training_guard", r"changed by a call in training mode: .*running_mean", base="saliency")
def statistics_of_the_input(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    if model.training:
        with torch.no_grad():
            model(x)
    return axplain.explain(model, x, spec, **more)


OURS = {
    "clean_model": "deeplift",
    "exception_safety": "deeplift",
    "determinism": "gradient_shap",
    "idempotence": "vargrad",
    "training_guard": "integrated_gradients",
    "randomisation_sanity": "saliency",
}


@pytest.fixture(autouse=True)
def _process_as_before() -> Any:
    """Undo what faulty methods do to the process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_grad_enabled(True)
    while GLOBAL:
        GLOBAL.pop().remove()


@pytest.mark.parametrize("plant", FAULTS.plants, ids=str)
def test_a_planted_fault_is_found(plant: Planted) -> None:
    record = plant.record()
    assert record.outcome == "fail", record
    assert re.search(plant.says, record.reason), record.reason
    assert record.counterexample.startswith("Question(")


@pytest.mark.parametrize("contract", OURS)
def test_a_right_method_that_is_installed_passes(contract: str) -> None:
    subject = Subject.of(OURS[contract])
    [pair] = [pair for pair in pairs_of(subject.spec) if pair.axiom == contract]
    record = run(pair, Effort(contracts=4, seconds=30.0), subject)
    assert record.outcome == ("reported" if contract == "randomisation_sanity" else "pass"), record
    assert record.cases > 0


def _edges(model: Any, x: Any, spec: Any, **more: Any) -> Any:
    return Answer(each(Tensor.square, x))


def test_a_map_that_does_not_look_at_the_model_is_reported_as_such_and_fails_nothing() -> None:
    planted = Planted("randomisation_sanity", "edges", lambda: method("saliency", _edges, name="edges", axioms=()))
    record, ours = planted.record(), Planted("randomisation_sanity", "ours", lambda: Subject.of("saliency")).record()
    assert record.outcome == "reported" and record.reason.startswith("1.00 ")
    assert record.gap == pytest.approx(1.0) and ours.outcome == "reported" and ours.gap < 1.0
    assert not record.failed
