"""A limit on wall time that other people's code cannot miss."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TooLong(BaseException):
    """The time is up."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TooLong` once the time is up, also inside a sleep or a wait.

    That takes a signal, so it works in the main thread of a POSIX system; elsewhere the time is looked at when the
    block ends.
    """
    started = time.monotonic()
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        with _alarm(seconds):
            yield
        return
    yield
    if time.monotonic() - started > seconds:
        raise TooLong


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
