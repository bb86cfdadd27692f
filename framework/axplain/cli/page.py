"""A spec as a page of text for a terminal, and as the plain values of its TOML file."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
import click

from axplain.formula import Formula
from axplain.specs import (
    EXPLAINS,
    Claim,
    Composition,
    CostFormula,
    Evaluation,
    FromParameter,
    Parameter,
    Rate,
    Spec,
    Use,
)

UNLIMITED = 100_000
_GAP = 2


def terminal_width(piped: int = UNLIMITED) -> int:
    """Return the columns of the terminal; `piped` where the output goes elsewhere and COLUMNS does not say."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return max(40, shutil.get_terminal_size().columns)
    return piped


def heading(text: str) -> str:
    """Return the heading of a section."""
    return click.style(text, bold=True)


def columns(rows: Sequence[Sequence[str]], width: int, *, indent: int = 0, header: bool = False) -> Iterator[str]:
    """Yield the lines of a table: the last column wraps into what the others leave, and may hold several lines."""
    sizes = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)][:-1] if rows else []
    left = indent + sum(sizes) + _GAP * len(sizes)
    for number, row in enumerate(rows):
        first = " " * indent + "".join(cell.ljust(size + _GAP) for cell, size in zip(row, sizes, strict=False))
        wrapped = [line for part in row[-1].split("\n") for line in _wrap(part, max(20, width - left))]
        lines = [first + wrapped[0], *(" " * left + line for line in wrapped[1:])]
        for line in lines:
            yield heading(line.rstrip()) if header and not number else line.rstrip()


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def cost_text(cost: CostFormula) -> str:
    """Return the rows of one call in a few words; `inner` stands for the rows of the method inside."""
    forward = cost.forward_rows.text.replace("inner.forward_rows", "inner")
    backward = cost.backward_rows.text.replace("inner.backward_rows", "inner")
    most = "at most " if cost.bound == "upper" else ""
    if forward == backward:
        return f"{most}{forward} rows each way"
    return f"{most}{forward} rows forward" + (f", {backward} backward" if backward != "0" else "")


def spec_page(spec: Spec, width: int) -> Iterator[str]:
    """Yield the lines of everything that a spec says."""
    family = f", {spec.family} family" if spec.family and spec.family != spec.kind else ""
    yield from map(heading, columns([[f"{spec.title} ({spec.kind} {spec.name}{family})"]], width))
    for text in (spec.summary, spec.formula):
        if text:
            yield ""
            yield from columns([[text]], width, indent=2)
    sections: dict[str, list[tuple[str, str]]] = {
        "Parameters": [(name, _parameter(p)) for name, p in spec.parameters.items()],
        "Takes": list(_takes(spec)),
        "Gives": list(_gives(spec)),
        "Costs": list(_costs(spec.cost)),
        "Axioms": [(claim.id, _claim(claim)) for claim in spec.axioms],
        "Known failures": list(spec.known_failures.items()),
        "Claims": list(_claimable(spec)),
        "Composed of": list(_parts(spec.composition)),
        "Source": list(_source(spec)),
        "Use": list(_usage(spec)),
    }
    for title, rows in sections.items():
        if rows:
            yield ""
            yield heading(title)
            yield from columns(rows, width, indent=2)


def _parameter(parameter: Parameter) -> str:
    words = [f"choice of {', '.join(parameter.choices)}" if parameter.choices else parameter.type]
    words[0] += ", or one for each input" if parameter.per_input else ""
    if parameter.default is not None:
        words.append(f"default {value_text(parameter.default)}")
    elif parameter.required:
        words.append("required")
    else:
        words.append("optional")
    words += [f"at least {value_text(parameter.min)}"] if parameter.min is not None else []
    words += [f"at most {value_text(parameter.max)}"] if parameter.max is not None else []
    words += [f"in {parameter.unit}"] if parameter.unit else []
    return f"{'; '.join(words)}\n{parameter.doc}"


_FEATURES = {
    "elements": "all elements, one by one",
    "grouped": "grouped by feature_mask; without one, every element is a feature",
}
_BASELINES = {
    "none": "none",
    "reference": "one reference per example; over a set of them the answers are averaged",
    "reference_set": "a set of references, from which it draws or over which it averages (reference_set)",
}


def _takes(spec: Spec) -> Iterator[tuple[str, str]]:
    inner = [name for name, parameter in spec.parameters.items() if parameter.type == "method"]
    if inner:
        yield "baselines", f"what the method {' or '.join(inner)} takes"
    elif spec.kind == "method":
        default = f"; by default {value_text(spec.baselines)}" if spec.baselines else ""
        yield "baselines", _BASELINES[spec.baseline] + default
    if spec.kind in EXPLAINS:
        least = f", at least {spec.requires.min_batch} examples" if spec.requires.min_batch > 1 else ""
        dims = f", at least {spec.requires.min_dims} dimensions" if spec.requires.min_dims > 1 else ""
        yield "inputs", f"tensors of {spec.requires.input_dtype} type{dims}{least}"
    elif spec.requires.input_dtype != "any":
        yield "inputs", f"tensors of {spec.requires.input_dtype} type"
    if spec.requires.operations == "some":
        yield "operations", "refuses some that it does not define"
    if not spec.requires.target:
        yield "target", "none: it explains no target"
    if spec.requires.layer == "spatial":
        yield "layer", "one that holds maps (spatial); by default the last convolution"
    if spec.requires.features != "none":
        yield "features", _FEATURES[spec.requires.features]
    if spec.kind == "rules" and spec.references != "none":
        yield "baselines", _BASELINES[spec.references]
    if spec.needs:
        yield "needs", ", ".join(sorted(spec.needs))


def _gives(spec: Spec) -> Iterator[tuple[str, str]]:
    if spec.kind in EXPLAINS:
        where = "where the inner method puts them" if spec.seats == "inner" else f"at the {' or a '.join(spec.seats)}"
        shape = "" if spec.mirrors else ", one number for each place or token"
        yield "attributions", f"{'signed' if spec.signed else 'unsigned'}, {where}{shape}"
    if spec.perturb_at == "input":
        yield "looks", "at points of the input"
    if spec.provides:
        yield "provides", ", ".join(sorted(spec.provides))
    reason = f": {spec.determinism.reason}" if spec.determinism.reason else ""
    yield "numbers", _DETERMINISM[spec.determinism.kind] + reason


_DETERMINISM = {
    "deterministic": "deterministic: equal calls, equal numbers",
    "seeded": "seeded: equal calls with an equal seed, equal numbers",
    "nondeterministic": "nondeterministic, even for an equal seed",
}


def _costs(cost: CostFormula | None) -> Iterator[tuple[str, str]]:
    if cost is None:
        return
    most = "at most " if cost.bound == "upper" else ""
    yield "forward", f"{most}{cost.forward_rows.text} rows"
    yield "backward", f"{most}{cost.backward_rows.text} rows"
    if cost.bound == "upper":
        yield "bound", "upper: a call may need less"
    if cost.refined_rows is not None:
        both = "" if cost.backward_rows.text == "0" else ", and as many backward"
        yield "tolerance=", f"at most {cost.refined_rows.text} rows forward{both}"


def _claim(claim: Claim) -> str:
    words = [claim.kind.replace("_", " ")]
    words += [f"within {claim.tolerance.text}"] if claim.tolerance else []
    words += [f"order {claim.rate.order:g} in {claim.rate.parameter}"] if claim.rate else []
    words += [f"when {claim.when.replace('_', ' ')}"] if claim.when else []
    words += [f"for {claim.model_class.replace('_', ' ')} models"] if claim.model_class else []
    words += [f"from {name} = {least}" for name, least in claim.n_at_least.items()]
    words += [f"limit {claim.limit}"] if claim.limit else []
    text = ", ".join(words) + (f": {claim.reason}" if claim.reason else "")
    if claim.warn_above is not None:
        text += f"\nwarns above {value_text(claim.warn_above)} of |F(x) - F(x')|: {claim.cure}".rstrip(": ")
    return text


def _claimable(spec: Spec) -> Iterator[tuple[str, str]]:
    """Say how an axiom can be claimed, and whether it has to be."""
    facts = spec.axiom
    if facts is None:
        return
    yield "kinds", ", ".join(kind.replace("_", " ") for kind in facts.kinds)
    if facts.universal:
        yield "universal", "a contract: every method keeps it, none declares it"
    if not facts.asserted:
        yield "asserted", "no: it is measured and reported"


_ASKED: Final = {
    "activation": ", what the layer holds at points of the input",
    "jvp": ", the gradient at the layer times its rate along the tangents",
    "through": " the neuron",
}


def _parts(composition: Composition | None) -> Iterator[tuple[str, str]]:
    if composition is None:
        return
    yield "perturbation", _use(composition.perturbation)
    evaluation = composition.evaluation
    asked = evaluation.kind + _ASKED.get(evaluation.kind, "")
    words = f"the method {_use(evaluation.method)}" if evaluation.method else asked
    yield "evaluation", f"{words} under the rules {_use(evaluation.rules)}" if evaluation.rules else words
    yield "aggregation", _use(composition.aggregation)
    if composition.refinement:
        yield "refinement", f"{_use(composition.refinement)}, for tolerance="
    for name, switch in composition.post.items():
        yield "then", f"{name}, if {value_text(switch)}" if isinstance(switch, FromParameter) else name


def _use(use: Use) -> str:
    arguments = ", ".join(f"{name} = {value_text(value)}" for name, value in use.arguments.items())
    return value_text(use.name) + (f" ({arguments})" if arguments else "")


def _source(spec: Spec) -> Iterator[tuple[str, str]]:
    if spec.citation:
        yield "citation", ", ".join(spec.citation)
    if spec.replaces:
        yield "replaces", ", ".join(spec.replaces)
    if spec.aliases:
        yield "also called", ", ".join(spec.aliases)
    yield "from", f"{spec.distribution or 'a file of yours'}: {spec.origin}, version {spec.version}"


def _usage(spec: Spec) -> Iterator[tuple[str, str]]:
    """Show one call that runs: all that must be given, else the first parameter that has a value to show."""
    if spec.kind not in EXPLAINS:
        return
    needed = [(name, parameter) for name, parameter in spec.parameters.items() if parameter.required]
    shown = needed or [(name, parameter) for name, parameter in spec.parameters.items() if _has_example(parameter)][:1]
    examples = [(name, *_example(parameter)) for name, parameter in shown]
    arguments = "".join(f", {name}={python}" for name, python, _ in examples)
    options = "".join(f" -p {name}={text}" for name, _, text in examples)
    if spec.seats == ("layer",) and spec.requires.layer == "any":
        arguments, options = f', layer="{_LAYER}"{arguments}', f" --layer {_LAYER}{options}"
    yield "Python", f'axplain.explain(model, x, "{spec.name}"{arguments})'
    yield "shell", f"axplain explain {spec.name} --model pkg.mod:factory --input x.npy{options}"


_LAYER: Final = "features.3"
#: Values of types that have no default to show: in Python, and on a command line.
_EXAMPLES: Final = {
    "int": ("1", "1"),
    "float": ("1.0", "1.0"),
    "bool": ("True", "true"),
    "text": ('"text"', "text"),
    "shape": ("8", "8"),
    "values": ("1.0", "1.0"),
    "tensor": ("tensor", "tensor.npy"),
    "callable": ("function", "pkg.mod:function"),
    "neuron": (f'axplain.neuron("{_LAYER}", (7, 2, 2))', f"{_LAYER}:7,2,2"),
    "table": ('"table.toml"', "table.toml"),
    "method": ('"name"', "name"),
}


def _has_example(parameter: Parameter) -> bool:
    """Whether the default can be written in a call: arithmetic over the features cannot."""
    return parameter.default is not None and not parameter.by_features


def _example(parameter: Parameter) -> tuple[str, str]:
    """Return a value as Python writes it, and as a command line does."""
    value = parameter.default
    if value is None and parameter.type == "choice":
        value = parameter.choices[0]
    if value is None and parameter.min is not None and not isinstance(parameter.min, Formula):
        value = int(parameter.min) if parameter.type == "int" else parameter.min
    if value is None:
        return _EXAMPLES[parameter.type]
    return json.dumps(value) if isinstance(value, str) else str(value), value_text(value)


def value_text(value: Any) -> str:
    """Return a value as a spec writes it."""
    if isinstance(value, FromParameter):
        return value.parameter
    if isinstance(value, Use):
        return _use(value)
    if isinstance(value, Formula):
        return value.text
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def document(value: Any) -> Any:
    """Return a spec, or a part of one, as its TOML file would say it, with defaults filled in and without what is None.

    `axplain.reader.structure_spec` reads the result again, once `origin` and `distribution` are taken out.
    """
    match value:
        case Formula():
            return value.text
        case Use():
            arguments = {name: document(argument) for name, argument in value.arguments.items()}
            return {"use": document(value.name), **arguments}
        case Evaluation(through=FromParameter() as parameter):
            return {"through": parameter.parameter}
        case Evaluation(rules=Use() as use):
            return {"rules": document(use.name), **{k: document(v) for k, v in use.arguments.items()}}
        case Evaluation(method=Use() as use):
            return {"method": document(use.name), **{k: document(v) for k, v in use.arguments.items()}}
        case Evaluation():
            return value.kind
        case Mapping():
            return {name: document(item) for name, item in value.items()}
        case frozenset():
            return sorted(value)
        case tuple():
            return [document(item) for item in value]
        case _ if attrs.has(type(value)):
            renamed = {"model_class": "class"} | ({"parameter": "in"} if isinstance(value, Rate) else {})
            fields = {renamed.get(f.name, f.name): getattr(value, f.name) for f in attrs.fields(type(value))}
            return {name: document(item) for name, item in fields.items() if item is not None}
        case _:
            return value
