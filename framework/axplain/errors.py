"""Every error and warning that axplain raises: who, what, where, and what to do."""

from __future__ import annotations

import difflib
import logging
import sys
import warnings
from collections.abc import Iterable

log = logging.getLogger("axplain")
_OURS = {"axplain", "axplain_plugins", "contextlib"}  # contextlib: warnings given while a guard is left


class AxplainError(Exception):
    """Base of every error that axplain raises on purpose."""


class ArgumentError(AxplainError, ValueError):
    """An argument of the call cannot be used; the message names it, what came, what was expected and the cure."""

    def __init__(self, argument: str, came: str, expected: str, cure: str = "") -> None:
        self.argument, self.parts = argument, (came, expected, cure)
        super().__init__(f"{argument}: {came}; expected {expected}." + (f" {cure}" if cure else ""))

    def of(self, argument: str) -> ArgumentError:
        """Return the same finding about another argument: a plugin does not know which item of a tuple it serves."""
        return ArgumentError(argument, *self.parts)


class UnknownMethod(AxplainError, LookupError):  # noqa: N818 - the name is the finding; callers catch AxplainError
    """No installed distribution declares a plugin of that name."""

    def __init__(self, name: str, kind: str, installed: Iterable[str], note: str = "") -> None:
        installed = sorted(installed)
        near = near_names(name, installed)
        hint = f" Did you mean {near}?" if near else ""
        super().__init__(f"{name!r} is not a {kind}.{hint} Installed: {', '.join(installed) or 'none'}.{note}")


class UnsupportedModel(AxplainError):  # noqa: N818 - see UnknownMethod
    """The model does something that cannot be explained correctly."""


class UncoveredOperation(UnsupportedModel):
    """A rule set meets an operation that it has no rule for; the message names it and the module that called it."""


class SpecError(AxplainError):
    """A spec is wrong; the message lists every fault of the file as `description @ file.key`."""

    def __init__(self, origin: str, faults: Iterable[str]) -> None:
        self.found = tuple(faults)
        self.faults = tuple(f"{fault} @ {origin}{key}" for fault, key in map(_split_fault, self.found))
        super().__init__("; ".join(self.faults))


class PluginError(AxplainError):
    """A plugin cannot be loaded or breaks its protocol; the message names distribution, plugin and cause."""


class MissingExtra(AxplainError, ImportError):  # noqa: N818 - see UnknownMethod
    """An optional library is not installed; the message names the extra that brings it."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional library: pip install 'axplain[{extra}]'.")


class AxplainWarning(UserWarning):
    """The one class of every warning that axplain gives."""


def warn(message: str) -> None:
    """Give an `AxplainWarning` that points at the first caller outside axplain."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, AxplainWarning, stacklevel=level)  # skip_file_prefixes needs Python 3.12


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number and its noun: 1 index, 2 indices."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def near_names(name: str, known: Iterable[str]) -> str:
    """Return the known names that look like `name`, as a phrase; empty where none does."""
    return " or ".join(repr(match) for match in difflib.get_close_matches(name, list(known), n=3, cutoff=0.6))


def _split_fault(fault: str) -> tuple[str, str]:
    description, _, key = fault.partition(" @ ")
    return description, f".{key}" if key else ""
