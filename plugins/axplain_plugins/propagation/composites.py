"""Composites: which rule of relevance propagation which operation gets. Data, as a table in Python or a TOML file."""

from __future__ import annotations

import fnmatch
import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs
import torch

from axplain.errors import ArgumentError

#: rule -> the settings that it takes
RULES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "epsilon": frozenset({"epsilon"}),
        "norm": frozenset({"epsilon"}),
        "gamma": frozenset({"gamma", "epsilon", "bias"}),
        "alpha_beta": frozenset({"alpha", "beta", "epsilon", "bias"}),
        "zplus": frozenset({"epsilon", "bias"}),
        "zbox": frozenset({"low", "high", "epsilon"}),
        "flat": frozenset({"epsilon"}),
        "wsquare": frozenset({"epsilon"}),
        "pass": frozenset(),
    }
)
_ALPHA2_BETA1: Final = {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0}
#: the composites of the literature: dense layers by epsilon, convolutions and the first layer by other rules
COMPOSITES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "epsilon": {},
        "epsilon_plus": {"operations": {"convolution": "zplus"}},
        "epsilon_plus_flat": {"first": "flat", "operations": {"convolution": "zplus"}},
        "epsilon_gamma_box": {"first": "zbox", "operations": {"convolution": "gamma"}},
        "epsilon_alpha2_beta1": {"operations": {"convolution": _ALPHA2_BETA1}},
        "epsilon_alpha2_beta1_flat": {"first": "flat", "operations": {"convolution": _ALPHA2_BETA1}},
    }
)
#: `bias`: whether biases take their share of the relevance, which is then absorbed
_DEFAULTS: Final = {"bias": True}
#: what a composite may say, most particular first
_PARTS: Final = ("layers", "first", "types", "operations")


@attrs.frozen
class Assigned:
    """A rule and its settings."""

    rule: str
    settings: Mapping[str, Any] = attrs.field(factory=dict)

    def setting(self, name: str) -> Any:
        """Return one of the settings; those that nobody gave are the call's."""
        return self.settings[name]


@attrs.define
class Met:
    """What a pass has met: the modules that make products, by name, with the names of their types and bases.

    `first`: whether the product at hand is the first one of the model.
    """

    modules: dict[str, tuple[str, ...]] = attrs.field(factory=dict)
    first: bool = True


@attrs.frozen
class Composite:
    """Rules by the module that makes a call, for the first product, by the module's type, and by operation."""

    layers: Mapping[str, Assigned]
    first: Assigned | None
    types: Mapping[str, Assigned]
    operations: Mapping[str, Assigned]
    otherwise: Assigned

    @property
    def by_module(self) -> bool:
        """Whether it matters which module makes a call."""
        return bool(self.layers or self.types)

    @property
    def by_weights(self) -> bool:
        """Whether some rule looks at weights, which the epsilon rule does not."""
        tables = (self.layers, self.types, self.operations, {"": self.first} if self.first else {})
        return any(each.rule not in ("epsilon", "pass") for table in tables for each in table.values())

    def assigned(
        self, kind: str, operation: str, module: Callable[[], tuple[str, torch.nn.Module | None]], *, met: Met
    ) -> Assigned:
        """Return the rule of one call: by layer, else of the first product, by type, by operation, else epsilon."""
        layer = base = None
        if self.by_module:
            name, part = module()
            layer = next((pattern for pattern in self.layers if fnmatch.fnmatchcase(name, pattern)), None)
            base = next((each.__name__ for each in type(part).__mro__ if each.__name__ in self.types), None)
            met.modules[name] = tuple(each.__name__ for each in type(part).__mro__)
        if layer is not None:
            return self.layers[layer]
        if met.first and self.first is not None:
            return self.first
        if base is not None:
            return self.types[base]
        return self.operations.get(operation) or self.operations.get(kind) or self.otherwise

    def check_used(self, met: Met) -> None:
        """Refuse names of layers and types that no product with weights of a pass had.

        Raises:
            ArgumentError: naming the first of them.
        """
        names, types = sorted(met.modules), sorted({bases[0] for bases in met.modules.values()})
        idle = [f"layers.{key!r}" for key in self.layers if not fnmatch.filter(names, key)]
        idle += [f"types.{key!r}" for key in self.types if not any(key in bases for bases in met.modules.values())]
        if idle:
            known = names if idle[0].startswith("layers") else types
            expected = f"what fits one of those that have some: {', '.join(known) or 'there are none'}"
            raise ArgumentError("composite", f"{idle[0]} came, which fits no layer with weights", expected)


def read(given: Any, settings: Mapping[str, Any], known: frozenset[str]) -> Composite:
    """Return the composite that a name, a table or the path of a TOML file means.

    Args:
        given: the name of a composite; a table with the keys layers, first, types, operations, each a rule or a table
            of rules; or the path of a TOML file with these keys. A rule is a name, or {"rule": name, setting: value}.
        settings: of rules that do not bring their own: epsilon, gamma, low, high.
        known: the operations, and kinds of operations, that may get a rule.

    Raises:
        ArgumentError: it is none of these, or names a rule, a setting or an operation that there is not.
    """
    table = _table(given)
    unknown = sorted(set(table) - set(_PARTS))
    if unknown:
        raise ArgumentError("composite", f"the key {unknown[0]!r} came", f"some of {', '.join(_PARTS)}")
    parts = {part: _rules(part, table.get(part, {}), settings) for part in _PARTS if part != "first"}
    strange = sorted(set(parts["operations"]) - known)
    if strange:
        expected = f"one of {', '.join(sorted(known))}"
        raise ArgumentError("composite", f"the operation {strange[0]!r} came", expected)
    first = table.get("first")
    return Composite(
        layers=parts["layers"],
        first=None if first is None else _rule("first", first, settings),
        types=parts["types"],
        operations=parts["operations"],
        otherwise=_rule("epsilon", "epsilon", settings),
    )


def _table(given: Any) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    if isinstance(given, str) and given in COMPOSITES:
        return COMPOSITES[given]
    path = Path(str(given))
    if path.suffix != ".toml":
        expected = f"one of {', '.join(COMPOSITES)}, the path of a TOML file (.toml), or a table of rules"
        raise ArgumentError("composite", f"{given!r} came", expected)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ArgumentError("composite", f"{path} cannot be read: {error.strerror}", "the path of a file") from error
    except tomllib.TOMLDecodeError as error:
        raise ArgumentError("composite", f"{path} came, which is no TOML: {error}", "a TOML file") from error


def _rules(part: str, given: Any, settings: Mapping[str, Any]) -> dict[str, Assigned]:
    if not isinstance(given, Mapping):
        raise ArgumentError("composite", f"{part} = {given!r} came", "a table of rules")
    named = {key.__name__ if part == "types" and isinstance(key, type) else key: rule for key, rule in given.items()}
    strange = next((key for key in named if not isinstance(key, str)), None)
    if strange is not None:
        raise ArgumentError("composite", f"a {type(strange).__name__} came as a key of {part}", f"the names of {part}")
    return {name: _rule(f"{part}.{name}", rule, settings) for name, rule in named.items()}


def _rule(place: str, given: Any, settings: Mapping[str, Any]) -> Assigned:
    table = {"rule": given} if isinstance(given, str) else given
    name = str(table.get("rule")) if isinstance(table, Mapping) else ""
    if name not in RULES:
        expected = f"one of the rules {', '.join(RULES)}, or a table {{'rule': name, setting: value}}"
        raise ArgumentError("composite", f"{place} = {given!r} came", expected)
    own = {key: value for key, value in table.items() if key != "rule"}
    strange = sorted(set(own) - RULES[name])
    if strange:
        expected = f"settings of the rule {name}: {', '.join(sorted(RULES[name])) or 'none'}"
        raise ArgumentError("composite", f"{place}.{strange[0]} came", expected)
    values = {key: own.get(key, settings.get(key, _DEFAULTS.get(key))) for key in sorted(RULES[name])}
    missing = [key for key, value in values.items() if value is None]
    if missing:
        if name == "zbox":
            cure = "Give low and high, the least and the largest value that an input can have."
            raise ArgumentError(missing[0], "nothing came and the rule zbox needs it", "a number, or a tensor", cure)
        expected = f"a table {{'rule': {name!r}, {', '.join(f'{key!r}: number' for key in missing)}}}"
        raise ArgumentError("composite", f"{place} = {given!r} came", expected)
    _check_numbers(place, values)
    return Assigned(name, values)


def _check_numbers(place: str, values: Mapping[str, Any]) -> None:
    """Refuse settings that are no numbers of theirs, and shares that do not sum to one."""
    for key in values.keys() & {"epsilon", "gamma", "alpha", "beta"}:
        number = values[key]
        if not isinstance(number, int | float) or isinstance(number, bool) or not number >= 0:
            raise ArgumentError("composite", f"{place}.{key} = {number!r} came", "a number of at least 0")
    if "alpha" in values and not math.isclose(values["alpha"] - values["beta"], 1):
        came = f"{place} with alpha = {values['alpha']} and beta = {values['beta']} came"
        raise ArgumentError("composite", came, "alpha - beta = 1, so that relevance is conserved")
    if not isinstance(values.get("bias", True), bool):
        raise ArgumentError("composite", f"{place}.bias = {values['bias']!r} came", "true or false")
