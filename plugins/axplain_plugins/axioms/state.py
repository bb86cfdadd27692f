"""Contracts on what a call leaves behind: nothing, neither of itself nor of a failure; and equal calls, equal bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from axplain import hookimpl
from axplain.conformance.case import Axiom, Case, NotApplicable, Violation
from axplain.conformance.witness import Witness, generators_at
from axplain.references import Distribution
from axplain.seats.neurons import Neuron
from axplain.structure import Tensors


def check_clean_model(case: Case) -> None:
    """Hooks, attributes, buffers, parameters and their storage, gradients, flags, inputs, generators: all as before."""
    model = _lived_in(case)
    with _unchanged(case, model, "a call"):
        case.explain(model, verify=True)
    with torch.no_grad(), _unchanged(case, model, "a call under no_grad"):
        case.explain(model)


def _lived_in(case: Case) -> nn.Module:
    """Return the model with what a user may have left on it: hooks, gradients, and a parameter that is frozen."""
    model = case.module
    if case.recipe is None:
        return model
    for module in model.modules():
        module.register_forward_hook(_listen)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    parameter.requires_grad_(False)  # the last; every model of the kit has some
    return model


def _listen(*_: Any) -> None:
    pass


class _PlannedError(Exception):
    pass


class _Tripwire(nn.Module):
    """A model that fails on one of its passes."""

    def __init__(self, model: nn.Module, action: Callable[[], None], at: int) -> None:
        super().__init__()
        self.model, self.action, self.left = model, action, [at]
        self.train(model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.left[0] -= 1
        if self.left[0] == 0:
            self.action()
        return self.model(*args, **kwargs)


def _fail() -> None:
    raise _PlannedError


def _interrupt() -> None:
    raise KeyboardInterrupt


def check_exception_safety(case: Case) -> None:
    """After a failure of the model in any pass, an interrupt, or a bad target, everything is as before and works."""
    if isinstance(case.target, Neuron):
        raise NotApplicable("the target is a unit of the model, which a wrapper would hide")
    model = case.module
    expected = case.attributions()
    counter = _Tripwire(model, _fail, -1)
    case.explain(counter)
    passes = -1 - counter.left[0]
    for at in sorted({1, (passes + 1) // 2, passes}):
        for action, error in ((_fail, _PlannedError), (_interrupt, KeyboardInterrupt)):
            with _unchanged(case, model, f"a failure in pass {at} of {passes}"):
                try:
                    case.explain(_Tripwire(model, action, at))
                except error:
                    continue
                raise Violation(f"pass {at} of {passes} failed, and the call went on as if it had not")
    with _unchanged(case, model, "a target out of range"):
        _refused(case)
    if not all(map(torch.equal, case.attributions(), expected)):
        raise Violation("after failed calls the same question gets other numbers")


def _refused(case: Case) -> None:
    try:
        case.explain(target=99)
    except Exception:  # whatever error it is: what counts is what it leaves behind
        return
    raise Violation("a target out of range is accepted")


def check_determinism(case: Case) -> None:
    """Equal calls with an equal seed give equal bits, whatever state the global generators are in."""
    answers: list[Tensors] = []
    for seed in (1, 2):
        with generators_at(seed):
            answers.append(case.attributions())
    if not all(map(torch.equal, *answers)):
        raise Violation("the numbers depend on a global random generator, not on seed= alone")


def check_idempotence(case: Case) -> None:
    """The second call gives the bits of the first, also with another question between them."""
    first = case.attributions()
    kept = tuple(map(Tensor.clone, first))
    other = [x * 0.5 if x.is_floating_point() else x.roll(1, -1) for x in case.inputs]  # ids stay those of words
    case.explain(x=case.structure.pack(other))
    if not all(map(torch.equal, first, kept)):
        raise Violation("the next answer overwrites the first: it is written into the same memory")
    if not all(map(torch.equal, case.attributions(), first)):
        raise Violation("the same question, asked again, gets other numbers")


def check_training_guard(case: Case) -> None:
    """A model with dropout or batch normalisation in training is refused or warned of, and left in training."""
    model = nn.Sequential(nn.Dropout(0.5), case.module).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    usual = set(case.heard(nn.Sequential(nn.Dropout(0.5), case.module).eval(), verify=True)[1])
    model.train()
    try:
        warned = set(case.heard(model, verify=True)[1]) - usual
    except Exception:  # a refusal, by whatever name
        warned = {"refused"}
    if not warned:
        raise Violation("dropout was active and nothing was said")
    if not all(module.training for module in model.modules()):
        raise Violation("the model is no longer in training mode")
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    if moved:
        raise Violation(f"changed by a call in training mode: {', '.join(moved)}")


@contextmanager
def _unchanged(case: Case, model: nn.Module, after: str) -> Iterator[None]:
    """Raise where anything differs afterwards."""
    witness = Witness.of(model, *case.inputs, *_tensors(case.baselines))
    yield
    changed = witness.differences()
    if changed:
        raise Violation(f"changed by {after}: {', '.join(changed[:5])}")


def _tensors(baselines: Any) -> Tensors:
    rows = baselines.rows if isinstance(baselines, Distribution) else baselines
    rows = rows if isinstance(rows, tuple) else (rows,)
    return tuple(row for row in rows if isinstance(row, Tensor))


_MODELS: Final = ("smooth", "piecewise_linear", "conv_pool", "attention", "shared_modules", "two_input")
_AXIOMS: Final[dict[str, Any]] = {
    "clean_model": partial(Axiom, check_clean_model, models=_MODELS),
    "exception_safety": partial(Axiom, check_exception_safety, models=_MODELS),
    "determinism": partial(Axiom, check_determinism, models=_MODELS),
    "idempotence": partial(Axiom, check_idempotence, models=_MODELS),
    "training_guard": partial(Axiom, check_training_guard, models=("smooth", "conv_pool"), own=False),
}


@hookimpl
def axplain_plugin(name: str) -> Any:
    """Return the maker of a contract."""
    return _AXIOMS[name]
