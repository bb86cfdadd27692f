"""TOML to specs: the one converter that knows the file format, refuses unknown keys and coerces nothing silently."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override
from cattrs.v import format_exception

from axplain.errors import SpecError
from axplain.formula import Formula
from axplain.specs import (
    API_VERSION,
    EXPLAINS,
    GIVES,
    GROUPS,
    PROVIDES,
    AxiomFacts,
    Claim,
    Composition,
    CostFormula,
    Determinism,
    Evaluation,
    FromParameter,
    Parameter,
    Rate,
    Requires,
    Spec,
    Use,
)

#: explain's own arguments; a spec's parameter may not have such a name, or a call could not say which one it means
RESERVED = frozenset(
    {
        *("model", "x", "method", "target", "baselines", "layer", "feature_mask", "additional_forward_args"),
        *("forward_kwargs", "noise", "modality", "batch_size", "seed", "tolerance", "verify", "progress"),
    }
)
_FORMULA_NAMES = {"batch", "references", "features", "samples", "inner.forward_rows", "inner.backward_rows"}
_DEFAULTS: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "choice": (str,), "text": (str,), "method": (str, dict),
    "shape": (int,), "tensor": (), "callable": (), "neuron": (),
    "table": (str,), "values": (int, float),
}  # fmt: skip
_INTERNAL = {"origin", "distribution"}


def read_spec(path: Path, origin: str = "", distribution: str = "") -> Spec:
    """Read one TOML file.

    Raises:
        SpecError: with every fault of the file at once.
    """
    origin = origin or path.name
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(origin, [f"not TOML: {error}"]) from error
    return structure_spec(document, origin, distribution)


def structure_spec(document: Mapping[str, Any], origin: str, distribution: str = "") -> Spec:
    """Turn a parsed document into a checked `Spec`.

    Raises:
        SpecError: with every fault of the document at once.
    """
    if document.get("spec") != API_VERSION:
        raise SpecError(origin, [f"spec = {document.get('spec')!r}, this axplain reads spec = {API_VERSION} @ spec"])
    internal = [f"extra fields found ({name}) @ {name}" for name in sorted(_INTERNAL & document.keys())]
    try:
        spec = _CONVERTER.structure(document, Spec)
    except cattrs.BaseValidationError as error:
        raise SpecError(origin, internal + transform(error)) from error
    faults = internal + spec_faults(spec)
    if faults:
        raise SpecError(origin, faults)
    return attrs.evolve(spec, origin=origin, distribution=distribution)


def transform(error: cattrs.BaseValidationError) -> list[str]:
    """Return the faults of a cattrs error as `description @ key` lines, without the leading `$.`."""
    faults = cattrs.transform_error(error, format_exception=_describe)
    return [fault.replace(" @ $.", " @ ").removesuffix(" @ $") for fault in faults]


def _describe(error: BaseException, type_: type | None) -> str:
    return str(error) if isinstance(error, ValueError) and error.args else format_exception(error, type_)


def spec_faults(spec: Spec) -> list[str]:
    """Return what is wrong with a spec that its types do not say, as `description @ key`."""
    faults = [] if spec.kind in GROUPS else [f"kind {spec.kind!r} is none of {', '.join(GROUPS)} @ kind"]
    explains = spec.kind in EXPLAINS
    faults += [
        f"{name!r} is an argument of explain @ parameters.{name}" for name in sorted(RESERVED & spec.parameters.keys())
    ]
    if explains and spec.cost is None:
        faults.append("a method states its cost @ cost")
    if not explains:
        given = {"composition": spec.composition, "cost": spec.cost, "axioms": spec.axioms}
        faults += [f"a {spec.kind} has no {name} @ {name}" for name, value in given.items() if value]
    if (spec.axiom is None) == (spec.kind == "axiom"):
        faults.append("an axiom, and only an axiom, has a table [axiom] @ axiom")
    if not explains and (spec.known_failures or spec.baselines):
        faults.append(f"a {spec.kind} has no known_failures and no baselines @ known_failures")
    faults += [f"a claim of {claim.id!r} {fault} @ axioms" for claim in spec.axioms for fault in _claim_faults(claim)]
    faults += [
        f"a known failure has a reason @ known_failures.{n}" for n, why in spec.known_failures.items() if not why
    ]
    if spec.provides and spec.kind != "perturbation":
        faults.append("only a perturbation provides @ provides")
    if spec.needs and spec.kind != "aggregation":
        faults.append("only an aggregation needs @ needs")
    faults += [
        f"{name!r} is none of {', '.join(sorted(PROVIDES))} @ provides" for name in sorted(spec.provides - PROVIDES)
    ]
    known = PROVIDES.union(*GIVES.values())
    faults += [f"{name!r} is none of {', '.join(sorted(known))} @ needs" for name in sorted(spec.needs - known)]
    return faults + _layer_faults(spec) + _parameter_faults(spec) + _formula_faults(spec) + _reference_faults(spec)


def _layer_faults(spec: Spec) -> list[str]:
    """Return what does not fit between where a method perturbs, what it asks there, and where it attributes to."""
    kind = spec.composition.evaluation.kind if spec.composition else ""
    faults = []
    if spec.perturb_at == "input" and spec.seats != ("layer",):
        faults.append("a method that perturbs the input and reads elsewhere has seats = ['layer'] @ perturb_at")
    if kind in ("activation", "jvp") and spec.perturb_at != "input":
        faults.append(f"{kind!r} is read at a layer: perturb_at = 'input' @ composition.evaluation")
    return faults


def _claim_faults(claim: Claim) -> list[str]:
    """Return what a claim of its kind has to say and does not."""
    said: dict[str, tuple[object, str]] = {
        "converges": (claim.rate, "rate"),
        "approximate": (claim.tolerance, "tolerance"),
        "for_class": (claim.model_class, "class"),
    }
    value, name = said.get(claim.kind, (True, ""))
    return [] if value else [f"that is {claim.kind.replace('_', ' ')} states its {name}"]


def _parameter_faults(spec: Spec) -> list[str]:
    faults = []
    for name, parameter in spec.parameters.items():
        if (parameter.type == "choice") != bool(parameter.choices):
            faults.append(f"choices belong to type = 'choice' and only there @ parameters.{name}.choices")
        elif parameter.choices and parameter.default is not None and parameter.default not in parameter.choices:
            faults.append(f"default {parameter.default!r} is not among the choices @ parameters.{name}.default")
        elif parameter.by_features:
            faults += _default_faults(name, parameter.default)
        elif parameter.default is not None and type(parameter.default) not in _DEFAULTS[parameter.type]:
            faults.append(f"default {parameter.default!r} is no {parameter.type} @ parameters.{name}.default")
    return faults


def _default_faults(name: str, text: str) -> list[str]:
    """A number's default may be arithmetic over `features`, which are known once the input is."""
    try:
        names = Formula(text).names
    except ValueError as error:
        return [f"{error} @ parameters.{name}.default"]
    strangers = sorted(names - {"features"})
    if not names:
        return [f"default {text!r} is no number @ parameters.{name}.default"]
    return [f"{stranger!r} is not 'features' @ parameters.{name}.default" for stranger in strangers]


def _formula_faults(spec: Spec) -> list[str]:
    known = _FORMULA_NAMES | spec.parameters.keys()
    places = {
        f"parameters.{name}.{bound}": getattr(p, bound)
        for name, p in spec.parameters.items()
        for bound in ("min", "max")
    }
    if spec.cost:
        places |= {f"cost.{field.name}": getattr(spec.cost, field.name) for field in attrs.fields(CostFormula)}
    return [
        f"{name!r} is neither a parameter nor one of {', '.join(sorted(_FORMULA_NAMES))} @ {place}"
        for place, formula in places.items()
        if isinstance(formula, Formula)
        for name in sorted(formula.names - known)
    ]


def _reference_faults(spec: Spec) -> list[str]:
    composition = spec.composition
    uses: dict[str, Use | None] = {"baselines": spec.baselines}
    named: list[tuple[str, Any]] = []
    if composition is not None:
        for name in ("perturbation", "aggregation", "refinement"):
            uses[f"composition.{name}"] = getattr(composition, name)
        uses["composition.evaluation"] = composition.evaluation.method or composition.evaluation.rules
        named += [(f"composition.post.{name}", value) for name, value in composition.post.items()]
        named.append(("composition.evaluation", composition.evaluation.through))
    for place, use in uses.items():
        if use is not None:
            named += [(place, use.name), *((f"{place}.{key}", value) for key, value in use.arguments.items())]
    return [
        f"{value.parameter!r} is not a parameter of this spec @ {place}"
        for place, value in named
        if isinstance(value, FromParameter) and value.parameter not in spec.parameters
    ]


def _literal(value: Any) -> Any:
    """Turn `{ parameter = name }` into a reference and keep every other value as it is."""
    if isinstance(value, dict) and value.keys() == {"parameter"}:
        return FromParameter(_text(value["parameter"], str))
    return value


def _use(value: Any, _: type) -> Use:
    if isinstance(value, str):
        return Use(value)
    if not isinstance(value, dict) or "use" not in value:
        raise ValueError("expected a name or { use = name, ... }")
    arguments = {name: _literal(argument) for name, argument in value.items() if name != "use"}
    return Use(_literal(value["use"]), arguments)


def _evaluation(value: Any, _: type) -> Evaluation:
    if value in ("value", "gradient", "activation", "jvp"):
        return Evaluation(value)
    if isinstance(value, dict) and value.keys() == {"through"}:
        return Evaluation("through", through=FromParameter(_text(value["through"], str)))
    if isinstance(value, dict) and "method" in value:
        arguments = {name: _literal(argument) for name, argument in value.items() if name != "method"}
        return Evaluation("method", Use(_literal(value["method"]), arguments))
    if isinstance(value, dict) and "rules" in value:
        arguments = {name: _literal(argument) for name, argument in value.items() if name != "rules"}
        return Evaluation("gradient", rules=Use(_literal(value["rules"]), arguments))
    kinds = "'value', 'gradient', 'activation', 'jvp'"
    raise ValueError(f"expected {kinds}, {{ through = parameter }}, {{ rules = ... }} or {{ method = ... }}")


def _exact(type_: type) -> Any:
    def hook(value: Any, _: type) -> Any:
        if type(value) is not type_:
            raise ValueError(f"expected {type_.__name__}, got {value!r}")
        return value

    return hook


def _float(value: Any, _: type) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def _formula(value: Any, _: type) -> Formula:
    return Formula(_text(value, str))


def _bound(value: Any, _: type) -> float | Formula | None:
    return Formula(value) if isinstance(value, str) else _float(value, float)


def _seats(value: Any, _: type) -> Any:
    if value == "inner":
        return value
    known = {"input", "layer"}
    if not isinstance(value, list) or not value or not set(value) <= known:
        raise ValueError(f"expected 'inner' or a list of {sorted(known)}, got {value!r}")
    return tuple(value)


def _mirrors(value: Any, _: type) -> Any:
    if type(value) is not bool and value != "input":
        raise ValueError(f"expected true, false or 'input', got {value!r}")
    return value


def _choice(value: Any, type_: Any) -> Any:
    if value not in get_args(type_):
        raise ValueError(f"{value!r} is none of {', '.join(map(repr, get_args(type_)))}")
    return value


def _is_literal(type_: Any) -> bool:
    return get_origin(type_) is Literal


def _strings(container: type) -> Any:
    def hook(value: Any, _: type) -> Any:
        if not isinstance(value, list) or not all(type(item) is str for item in value):
            raise ValueError(f"expected a list of strings, got {value!r}")
        return container(value)

    return hook


def _arguments(value: Any, _: type) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a table, got {value!r}")
    return {name: _literal(item) for name, item in value.items()}


def _texts(value: Any, _: type) -> dict[str, str]:
    if not isinstance(value, dict) or not all(type(item) is str for item in value.values()):
        raise ValueError(f"expected a table of strings, got {value!r}")
    return value


def _post(value: Any, _: type) -> dict[str, Any]:
    if not isinstance(value, dict) or not value.keys() <= {"abs"}:
        raise ValueError(f"expected a table with the key abs, got {value!r}")
    return {name: _literal(switch) for name, switch in value.items()}


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for type_ in (int, bool, str):
        converter.register_structure_hook(type_, _exact(type_))
    converter.register_structure_hook(float, _float)
    converter.register_structure_hook(Formula, _formula)
    converter.register_structure_hook(Use, _use)
    converter.register_structure_hook(Evaluation, _evaluation)
    converter.register_structure_hook_func(_is_literal, _choice)
    converter.register_structure_hook_func(lambda t: t == tuple[str, ...], _strings(tuple))
    converter.register_structure_hook_func(lambda t: t == frozenset[str], _strings(frozenset))
    converter.register_structure_hook_func(lambda t: t == attrs.fields(Parameter).min.type, _bound)
    converter.register_structure_hook_func(lambda t: t == attrs.fields(Spec).seats.type, _seats)
    converter.register_structure_hook_func(lambda t: t == attrs.fields(Spec).mirrors.type, _mirrors)
    converter.register_structure_hook_func(lambda t: t == attrs.fields(Composition).post.type, _post)
    converter.register_structure_hook_func(lambda t: t == Mapping[str, str], _texts)
    converter.register_structure_hook_func(lambda t: t == Mapping[str, Any], _arguments)
    for class_ in (Spec, Composition, Requires, Determinism, CostFormula, Parameter, AxiomFacts):
        converter.register_structure_hook(
            class_, make_dict_structure_fn(class_, converter, _cattrs_forbid_extra_keys=True)
        )
    renamed = make_dict_structure_fn(
        Claim, converter, _cattrs_forbid_extra_keys=True, model_class=override(rename="class")
    )
    converter.register_structure_hook(Claim, renamed)
    rate = make_dict_structure_fn(Rate, converter, _cattrs_forbid_extra_keys=True, parameter=override(rename="in"))
    converter.register_structure_hook(Rate, rate)
    return converter


_text = _exact(str)
for _class in (Spec, Composition, Requires, Determinism, CostFormula, Parameter, Claim, Rate, AxiomFacts):
    attrs.resolve_types(_class)
_CONVERTER = _converter()
