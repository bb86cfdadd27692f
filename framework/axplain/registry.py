"""Loads one plugin on use, registers its module in pluggy, and builds what its spec declares."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from axplain import hooks
from axplain.discovery import catalog
from axplain.errors import PluginError, log
from axplain.specs import GROUPS, Spec

LISTENERS = "axplain.listeners"


class Registry:
    """The plugins that this process has used. One plugin is found by lookup; events are broadcast to all."""

    def __init__(self) -> None:
        self.plugins = _manager()
        self._factories: dict[tuple[str, str], Any] = {}
        for point in entry_points(group=LISTENERS):
            try:
                self._register(point)
            except PluginError as error:
                log.warning("%s", error)

    def build(self, spec: Spec, values: Mapping[str, Any]) -> Any:
        """Return the plugin that a spec declares, made with its parameters.

        Raises:
            PluginError: it cannot be imported, has a wrong hook or refuses its own parameters.
        """
        factory = self.factory(spec)
        try:
            return factory(**values)
        except TypeError as error:
            try:
                inspect.signature(factory).bind(**values)
            except TypeError as mismatch:
                raise PluginError(f"{_who(spec)}: {factory} does not take the spec's parameters: {mismatch}") from error
            raise

    def factory(self, spec: Spec) -> Any:
        """Return the class that implements a spec, importing its module on first use."""
        key = (spec.kind, spec.name)
        if key not in self._factories:
            self._factories[key] = self._load(spec)
        return self._factories[key]

    def _load(self, spec: Spec) -> Any:
        point = catalog().modules.get((spec.kind, spec.name))
        if point is None:
            raise PluginError(
                f"{_who(spec)}: no entry point in group {GROUPS[spec.kind]!r}; install again (pip install -e .)"
            )
        module = self._register(point)
        for implementation in self.plugins.hook.axplain_plugin.get_hookimpls():
            if implementation.plugin is module:
                given = {"kind": spec.kind, "name": spec.name}
                try:
                    return implementation.function(*(given[argument] for argument in implementation.argnames))
                except Exception as error:
                    raise PluginError(f"{_who(spec)}: its hook failed: {type(error).__name__}: {error}") from error
        raise PluginError(f"{_who(spec)}: module {point.value} has no @hookimpl def axplain_plugin()")

    def _register(self, point: EntryPoint) -> ModuleType:
        known: ModuleType | None = self.plugins.get_plugin(point.value)
        if known is not None:
            return known
        owner = f"{point.dist.name if point.dist else 'unknown'}: plugin {point.name!r} ({point.value})"
        if self.plugins.is_blocked(point.value):
            raise PluginError(f"{owner} is blocked")
        try:
            module: ModuleType = point.load()
        except (Exception, SystemExit) as error:
            raise PluginError(f"{owner} cannot be imported: {type(error).__name__}: {error}") from error
        try:
            _manager(module).check_pending()  # apart from ours, which a failure would leave half registered
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{owner} has a hook that axplain does not know: {error}") from error
        self.plugins.register(module, name=point.value)
        return module


def _manager(*modules: ModuleType) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("axplain")
    manager.add_hookspecs(hooks)
    for module in modules:
        manager.register(module)
    return manager


@functools.cache
def registry() -> Registry:
    """Return the registry of this process."""
    return Registry()


def _who(spec: Spec) -> str:
    return f"{spec.distribution}: {spec.kind} {spec.name!r}"
