"""Torch's forward derivatives: how they are entered without noise, and without the fused attention that has none."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import attrs
import torch
import torch.autograd.forward_ad as forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel


def lacks_forward_derivative(error: BaseException) -> bool:
    """Whether torch says that an operation has none."""
    return "forward AD" in str(error) or "forward mode" in str(error)


@contextmanager
def unfused() -> Iterator[None]:
    """Let attention run as plain mathematics, and no encoder layer as one fused operation; restored afterwards."""
    _unfused.enter()
    try:
        yield
    finally:
        _unfused.leave()


@contextmanager
def dual_level() -> Iterator[None]:
    """Enter a level of dual numbers; the first time, silent about what torch says of its own code as it is loaded."""
    _dual_numbers.prepare()
    with forward_ad.dual_level():
        yield


@attrs.define(eq=False)
class _DualNumbers:
    """Makes torch load its forward derivatives, once in a process: filters of warnings belong to all threads."""

    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _ready: bool = False

    def prepare(self) -> None:
        """Make the first dual number, which loads them."""
        with self._lock:
            if self._ready:
                return
            with warnings.catch_warnings(), forward_ad.dual_level():
                warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
                forward_ad.make_dual(torch.zeros(1, device="cpu"), torch.zeros(1, device="cpu"))  # type: ignore[no-untyped-call]
            self._ready = True


_dual_numbers = _DualNumbers()


@attrs.define(eq=False)
class _Unfused:
    """Turns torch's fused attention off for as long as any thread needs it off: the switches are the process's."""

    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _users: int = 0
    _back: ExitStack = attrs.field(factory=ExitStack)

    def enter(self) -> None:
        """Turn it off, unless it is already."""
        with self._lock:
            if not self._users:
                self._back.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
                torch.backends.mha.set_fastpath_enabled(False)
                self._back.enter_context(sdpa_kernel([SDPBackend.MATH]))
            self._users += 1

    def leave(self) -> None:
        """Put back what was found, once nobody needs it off."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self._back.close()


_unfused = _Unfused()
