"""Settles the parameters of one call against its spec: names, types, bounds, defaults; nothing is coerced silently."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from axplain.discovery import catalog, composition_fault
from axplain.errors import ArgumentError, SpecError, near_names
from axplain.formula import Formula
from axplain.reader import RESERVED, read_spec, spec_faults
from axplain.specs import EXPLAINS, Parameter, Spec


@attrs.frozen
class Call:
    """A method and its settled parameters; an inner method is a `Call` among the values."""

    spec: Spec
    values: Mapping[str, Any]
    unsized: Call | None = attrs.field(default=None, eq=False, repr=False)
    inner: Call | None = attrs.field(init=False, eq=False, repr=False)  #: the method inside a lift

    @inner.default
    def _inside(self) -> Call | None:
        return next((value for value in self.values.values() if isinstance(value, Call)), None)

    @property
    def innermost(self) -> Call:
        """The method inside all lifts; the call itself where it is none."""
        return self.inner.innermost if self.inner else self

    @property
    def specs(self) -> tuple[Spec, ...]:
        """The specs of the method and of all methods inside it, outermost to innermost."""
        return (self.spec, *(self.inner.specs if self.inner else ()))

    @property
    def claims_completeness(self) -> bool:
        """Whether the method claims completeness, and so do all methods inside it."""
        return all(spec.claim("completeness") is not None for spec in self.specs)

    def describe(self) -> dict[str, Any]:
        """Return the parameters as JSON can hold them."""
        return {name: _plain(value) for name, value in self.values.items()}


def settle(method: Any, given: Mapping[str, Any], argument: str = "method") -> Call:
    """Find a method and settle its parameters.

    Raises:
        UnknownMethod: nobody declares it.
        ArgumentError: a parameter is unknown, missing, mistyped or out of bounds.
    """
    spec = find_spec(method, argument)
    return Call(spec, settle_values(spec, given))


def settle_values(spec: Spec, given: Mapping[str, Any], label: str = "{}") -> dict[str, Any]:
    """Settle the parameters of a plugin; `label` says how an error names one of them.

    Raises:
        ArgumentError: a parameter is unknown, missing, mistyped or out of bounds.
    """
    unknown = sorted(str(name) for name in given if name not in spec.parameters)
    if unknown:
        near = near_names(unknown[0], {*spec.parameters, *(RESERVED if label == "{}" else ())})
        raise ArgumentError(
            label.format(unknown[0]),
            f"{spec.name} has no such parameter",
            f"one of {', '.join(sorted(spec.parameters))}" if spec.parameters else "none: it has no parameters",
            f"Did you mean {near}?" if near else "",
        )
    values: dict[str, Any] = {}
    for name, parameter in spec.parameters.items():
        values[name] = settle_parameter(label.format(name), parameter, given.get(name, parameter.default), spec)
    _check_bounds(spec, values, label)
    return values


def find_spec(method: Any, argument: str = "method") -> Spec:
    """Return the spec of a method name, a `Spec`, or a user's own TOML file that composes.

    Raises:
        UnknownMethod: nobody declares it.
        ArgumentError: it is none of these.
        SpecError: the file or the composition is wrong.
    """
    if isinstance(method, str) and not method.endswith(".toml"):
        return catalog().find(method, *EXPLAINS)
    if isinstance(method, str | Path):
        try:
            method = read_spec(Path(method))
        except OSError as error:
            came = f"{str(method)!r} cannot be read: {error.strerror}"
            raise ArgumentError(argument, came, "the name of a method, or the path of a TOML file") from error
    if not isinstance(method, Spec):
        raise ArgumentError(argument, f"{method!r} came", "the name of a method, a Spec, or the path of a TOML file")
    if method.kind not in EXPLAINS:
        raise ArgumentError(argument, f"the {method.kind} {method.name!r} came", "a method or a noise mode")
    if not method.distribution:
        _check_own_spec(method)
    return method


def _check_own_spec(spec: Spec) -> None:
    """Hold a user's own spec to what the catalog holds installed ones to."""
    if spec.composition is None:
        raise SpecError(spec.origin or spec.name, ["only an installed distribution may bring code @ composition"])
    faults = spec_faults(spec) or list(filter(None, [composition_fault(spec, catalog().specs)]))
    if faults:
        raise SpecError(spec.origin or spec.name, faults)


def sized(call: Call, features: int) -> Call:
    """Settle what depends on the number of features: defaults that are arithmetic over it, and bounds.

    Raises:
        ArgumentError: a parameter is out of bounds.
    """
    call = call.unsized or call
    values: dict[str, Any] = {}
    for name, value in call.values.items():
        if isinstance(value, Formula):
            value = int(value({"features": features}))
        values[name] = sized(value, features) if isinstance(value, Call) else value
    _check_bounds(call.spec, values, "{}", {"features": features})
    return Call(call.spec, values, call)


def settle_use(value: Any, argument: str) -> Call:
    """Settle a method given as a name, a Spec, or `{"use": name, parameter: value, ...}`."""
    if isinstance(value, Mapping):
        if "use" not in value:
            raise ArgumentError(
                argument, f"{value!r} came", "a mapping with the key 'use'", 'Write {"use": name, ...}.'
            )
        return settle(value["use"], {name: item for name, item in value.items() if name != "use"}, argument)
    return settle(value, {}, argument)


def settle_parameter(name: str, parameter: Parameter, value: Any, spec: Spec) -> Any:
    """Check one value against its declaration.

    Raises:
        ArgumentError: it does not fit.
    """
    if value is None:
        if parameter.optional:
            return None
        came = f"nothing came and {spec.name} needs it" if parameter.required else "None came"
        raise ArgumentError(name, came, _expected(parameter), parameter.doc)
    if value is parameter.default and parameter.by_features:
        return _formula(value)  # settled by `sized`, once the features are known
    if parameter.type == "method":
        return value if isinstance(value, Call) else settle_use(value, name)
    if parameter.type == "shape":
        return _settle_shape(name, parameter, value, spec)
    if parameter.per_input and isinstance(value, tuple | list):
        return tuple(settle_parameter(name, attrs.evolve(parameter, per_input=False), item, spec) for item in value)
    if not _TYPES[parameter.type](value, parameter):
        raise ArgumentError(name, f"{value!r} ({type(value).__name__}) came", _expected(parameter), parameter.doc)
    if parameter.type == "int":
        return int(value)
    return float(value) if parameter.type == "float" else value


def _settle_shape(name: str, parameter: Parameter, value: Any, spec: Spec) -> Any:
    """Return a number, a tuple of numbers, or a tuple of these, one for each input."""
    nested = isinstance(value, tuple | list) and any(isinstance(item, tuple | list) for item in value)
    if parameter.per_input and nested:
        return tuple(_settle_shape(name, attrs.evolve(parameter, per_input=False), item, spec) for item in value)
    if not _is_shape(value, parameter):
        raise ArgumentError(name, f"{value!r} ({type(value).__name__}) came", _expected(parameter), parameter.doc)
    return tuple(map(int, value)) if isinstance(value, tuple | list) else int(value)


def _check_bounds(spec: Spec, values: Mapping[str, Any], label: str, sizes: Mapping[str, int] | None = None) -> None:
    """Check the bounds that follow from the parameters and the sizes that are known."""
    known = {**values, **(sizes or {})}
    for name, parameter in spec.parameters.items():
        items = values[name] if isinstance(values[name], tuple) else (values[name],)
        for low, bound in ((True, parameter.min), (False, parameter.max)):
            limit = None if bound is None else _limit(bound, known)
            if limit is None:
                continue
            for item in items:
                if item is None or isinstance(item, Formula) or (item >= limit if low else item <= limit):
                    continue
                expected = _expected(parameter, f" of at {'least' if low else 'most'} {limit:g}")
                raise ArgumentError(label.format(name), f"{item!r} came", expected, parameter.doc)


def _limit(bound: float | Formula, values: Mapping[str, Any]) -> float | None:
    if not isinstance(bound, Formula):
        return bound
    return bound(values) if bound.names <= values.keys() else None


def _is_int(value: Any, _: Parameter) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_float(value: Any, _: Parameter) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_shape(value: Any, parameter: Parameter) -> bool:
    sizes = value if isinstance(value, tuple | list) else (value,)
    return bool(sizes) and all(_is_int(size, parameter) for size in sizes)


_TYPES: dict[str, Callable[[Any, Parameter], bool]] = {
    "int": _is_int,
    "float": _is_float,
    "bool": lambda value, _: isinstance(value, bool),
    "choice": lambda value, parameter: value in parameter.choices if isinstance(value, str) else False,
    "text": lambda value, _: isinstance(value, str),
    "shape": _is_shape,
    "tensor": lambda value, _: hasattr(value, "dtype") and hasattr(value, "shape"),
    "callable": lambda value, _: callable(value),
    "neuron": lambda value, _: hasattr(value, "layer") and hasattr(value, "index"),
    "table": lambda value, _: isinstance(value, str | Path | Mapping),
    "values": lambda value, parameter: _is_float(value, parameter) or hasattr(value, "dtype"),
}
_NOUNS = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "True or False",
    "text": "a string",
    "shape": "a whole number or a tuple of them",
    "neuron": "axplain.neuron(layer, index)",
    "table": "a name, a table, or the path of a TOML file",
    "values": "a number, or a tensor",
}


_formula = functools.lru_cache(Formula)


def _expected(parameter: Parameter, bound: str = "") -> str:
    if parameter.type == "choice":
        return f"one of {', '.join(parameter.choices)}"
    noun = _NOUNS.get(parameter.type, f"a {parameter.type}") + bound
    return f"{noun}, or one for each input" if parameter.per_input else noun


def _plain(value: Any) -> Any:
    if isinstance(value, Call):
        return {"use": value.spec.name, **value.describe()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if isinstance(value, int | float | str | bool | None) else f"<{type(value).__name__}>"
