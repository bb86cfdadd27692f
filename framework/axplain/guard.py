"""Leaves the process as it was: random states, the model's buffers and training flags, on success and on failure."""

from __future__ import annotations

import ctypes
import pickle
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from axplain.errors import UnsupportedModel, warn

_lock = threading.Lock()
_users: Counter[tuple[int, str]] = Counter()  # calls that explain a model, by its id and how
_evaluations: Counter[int] = Counter()  # passes that hold a model in evaluation mode, by its id
_seen: tuple[Any, bytes | None] | None = None  # numpy's state as it was read last, and its words
_modes: dict[int, list[tuple[torch.nn.Module, bool]]] = {}  # the training flags that those passes put back


@attrs.frozen(eq=False)
class RandomStates:
    """The states of every global generator that a model might move."""

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: tuple[Tensor, int] | None

    @classmethod
    def capture(cls, device: torch.device) -> RandomStates:
        """Read the states; none is moved."""
        cuda = (torch.cuda.get_rng_state(device), device.index or 0) if device.type == "cuda" else None
        return cls(random.getstate(), _numpy_state(), torch.get_rng_state(), cuda)

    def moved(self) -> bool:
        """Whether a generator has been used since."""
        same_cuda = self.cuda is None or torch.equal(self.cuda[0], torch.cuda.get_rng_state(self.cuda[1]))
        same_cpu = torch.equal(self.cpu, torch.get_rng_state())
        return not (same_cuda and same_cpu and self.python == random.getstate() and _same_numpy(self.numpy))

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self.python)
        torch.set_rng_state(self.cpu)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy[0])
        if self.cuda is not None:
            torch.cuda.set_rng_state(*self.cuda)


def _numpy_state() -> Any:
    """Return the state of numpy's generator, the one read last where it has not moved since; None without numpy.

    A state without a Gaussian left over gets one only by drawing, which moves it.
    """
    global _seen
    if "numpy" in sys.modules and (_seen is None or not _same_numpy(_seen)):
        state = sys.modules["numpy"].random.get_state(legacy=False)
        _seen = state, None if state["has_gauss"] else _numpy_words()
    return _seen


def _same_numpy(before: tuple[Any, bytes | None] | None) -> bool:
    """Whether numpy's generator is where it was; reading all of its state again takes longer than a small model."""
    if before is None:
        return True
    state, words = before
    if words is not None:  # nothing but a draw that moves them leaves a Gaussian over
        return words == _numpy_words()
    return pickle.dumps(state) == pickle.dumps(sys.modules["numpy"].random.get_state(legacy=False))


def _numpy_words() -> bytes | None:
    """Return the 624 words and the position of numpy's generator; None where it is none of these."""
    source = sys.modules["numpy"].random.get_bit_generator()
    if type(source).__name__ != "MT19937":
        return None
    return ctypes.string_at(source.ctypes.state_address, 625 * 4)


@contextmanager
def plain_mode() -> Iterator[None]:
    """Run without a graph, whatever mode the caller is in.

    Not in inference mode: what a model caches on the way must stay fit for the user's training.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def untouched(parts: Mapping[str, torch.nn.Module], device: torch.device) -> Iterator[None]:
    """Run something with the model and put back whatever its passes changed."""
    random_states = RandomStates.capture(device)
    buffers = _copies(parts.values())
    flags = [] if isinstance(parts.get(""), _Evaluating) else _training_flags(parts.values())

    def restore() -> bool:
        _put_back(buffers)
        _set_training(flags)
        moved = random_states.moved()
        if moved:
            random_states.restore()
        return moved

    try:
        yield
    except BaseException:
        restore()  # without a warning: where warnings are errors it would hide what happened
        raise
    if restore():
        warn(
            "the model draws random numbers from a global generator: two passes over one input differ, and so do "
            "explanations. Call model.eval(), or make the model deterministic."
        )


def _training_flags(parts: Iterable[torch.nn.Module]) -> list[tuple[torch.nn.Module, bool]]:
    return [(part, part.training) for part in parts]


def _set_training(flags: list[tuple[torch.nn.Module, bool]]) -> None:
    for part, training in flags:
        if part.training != training:  # setting an attribute of a module is slow
            part.training = training


def _copies(parts: Iterable[torch.nn.Module]) -> list[tuple[torch.nn.Module, str, Tensor, int, Tensor]]:
    return [
        (owner, name, buffer, buffer._version, buffer.clone())
        for owner in parts
        for name, buffer in owner._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]


def _put_back(buffers: list[tuple[torch.nn.Module, str, Tensor, int, Tensor]]) -> None:
    for owner, name, buffer, version, copy in buffers:
        owner._buffers[name] = buffer
        # batch normalisation in training writes its statistics without a new version
        if buffer._version != version or (owner.training and not torch.equal(buffer, copy)):
            with torch.no_grad():
                buffer.copy_(copy)


def warn_in_training(parts: Mapping[str, torch.nn.Module]) -> None:
    """Warn where batch normalisation or dropout run in training mode: they mix examples or draw random numbers."""
    if isinstance(parts.get(""), _Evaluating):
        return
    suspects = [
        f"{name} ({type(m).__name__})" if name else type(m).__name__
        for name, m in parts.items()
        if m.training and (isinstance(m, _BatchNorm) or (isinstance(m, _DropoutNd) and m.p > 0))
    ]
    if suspects:
        shown = ", ".join(suspects[:3]) + (f" and {len(suspects) - 3} more" if len(suspects) > 3 else "")
        warn(
            f"the model is in training mode, where {shown} would mix examples or draw random numbers, so this "
            "explains a model that prediction never uses. Call model.eval(), or explain axplain.evaluating(model)."
        )


class _Evaluating(torch.nn.Module):
    """A model that is in evaluation mode for the length of each call; the wrapped model keeps its own mode."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; of several threads the first one switches its mode and the last one restores it."""
        model = id(self.model)
        with _lock:
            if not _evaluations[model]:
                _modes[model] = _training_flags(self.model.modules())
                self.model.eval()
            _evaluations[model] += 1
        try:
            return self.model(*args, **kwargs)
        finally:
            with _lock:
                _evaluations[model] -= 1
                if not _evaluations[model]:
                    _set_training(_modes.pop(model))
                    del _evaluations[model]


def evaluating(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model as it behaves after `model.eval()`, without changing its mode: for models in training.

    The wrapper shares the model's parameters. Each pass switches the mode and restores it, also after an error.
    """
    return _Evaluating(model)


@contextmanager
def occupied(function: Any, hooked: bool) -> Iterator[None]:
    """Let calls share a model, except with one that puts a hook on a layer or exchanges parameters.

    Raises:
        UnsupportedModel: another thread explains the model and one of the two does.
    """
    shared, hooks = (id(function), "shared"), (id(function), "hooked")
    mine = hooks if hooked else shared
    with _lock:
        if _users[hooks] or (hooked and _users[shared]):
            raise UnsupportedModel(
                "model: another thread explains it, and a layer is hooked or parameters are exchanged; explain one "
                "after the other, or a copy of it."
            )
        _users[mine] += 1
    try:
        yield
    finally:
        with _lock:
            _users[mine] -= 1
            if not _users[mine]:
                del _users[mine]
