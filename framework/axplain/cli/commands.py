"""The command line: list, show, explain, doctor. Only `explain` and `doctor --load` import torch or a plugin.

`check` and `new-method` are in `axplain.cli.conformance`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from axplain.cli.page import UNLIMITED, columns, cost_text, document, heading, spec_page, terminal_width, value_text
from axplain.discovery import Broken, catalog, describe
from axplain.errors import AxplainError, AxplainWarning, log
from axplain.parameters import find_spec
from axplain.specs import EXPLAINS, GROUPS, Spec

if TYPE_CHECKING:
    from axplain.cost import Cost
    from axplain.explanation import Explanation, Feature

SHOWN_EXAMPLES = 5
NO_TARGET = "none"  # what an explanation says where its method explains none


class Program(click.Group):
    """A group whose failures are one line on stderr and exit status 1; `--debug` lets the traceback through."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order in which they are met."""
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if context.params["debug"] or getattr(error, "errno", None) == errno.EPIPE:
                raise
            message = " ".join(str(error).split())
            if not isinstance(error, AxplainError):
                name = type(error).__name__
                message = f"{name}: {message} (`{context.info_name} --debug ...` shows where)"
            raise click.ClickException(message) from error


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="axplain")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(context: click.Context, debug: bool) -> None:
    """Explain what a PyTorch model did, by methods whose claims are tested."""
    if os.environ.get("NO_COLOR"):
        context.color = False
    context.with_resource(_one_line_notes())


@contextmanager
def _one_line_notes() -> Iterator[None]:
    """Show each warning of axplain as one line on stderr, once; the log of left-out plugins is for the doctor."""
    seen: set[str] = set()
    plain = warnings.showwarning
    silent = logging.NullHandler()

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        if not issubclass(category, AxplainWarning):
            plain(message, category, *rest, **named)
        elif str(message) not in seen:
            seen.add(str(message))
            _note(str(message), "warning")

    log.addHandler(silent)
    with warnings.catch_warnings():
        warnings.simplefilter("always", AxplainWarning)
        warnings.showwarning = show
        try:
            yield
        finally:
            log.removeHandler(silent)


def _note(message: str, label: str = "note") -> None:
    click.echo(f"{click.style(label, fg='yellow')}: {' '.join(message.split())}", err=True)


@main.command("list")
@click.option("--kind", type=click.Choice([*GROUPS, "all"]), help="Plugins of this kind.  [default: method and noise]")
@click.option("--family", metavar="NAME", help="Plugins of this family, such as path.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(kind: str | None, family: str | None, as_json: bool) -> None:
    """List methods and noise modes, or plugins of another kind."""
    kinds = EXPLAINS if kind is None else tuple(GROUPS) if kind == "all" else (kind,)
    specs = [spec for spec in catalog().specs.values() if spec.kind in kinds]
    families = sorted({spec.family for spec in specs} - {""})
    if family is not None and family not in families:
        hint = f"there are {', '.join(families)}" if families else "this kind has no families"
        raise click.BadParameter(f"no family {family!r}: {hint}.", param_hint="--family")
    found = [spec for spec in specs if family in (None, spec.family)]
    found.sort(key=lambda spec: (list(GROUPS).index(spec.kind) if kind == "all" else 0, spec.family, spec.name))
    if as_json:
        click.echo(json.dumps([_entry(spec) for spec in found], indent=2))
    else:
        _print_list(found, show_kind=kind == "all")
    broken = len(catalog().broken)
    if broken:
        _note(f"{broken} {'plugin is' if broken == 1 else 'plugins are'} left out: `axplain doctor` says why.")


def _entry(spec: Spec) -> dict[str, Any]:
    cost = document(spec.cost) if spec.cost else None
    names = ("kind", "name", "family", "title", "summary", "distribution")
    return {name: getattr(spec, name) for name in names} | {"cost": cost}


def _print_list(specs: list[Spec], *, show_kind: bool) -> None:
    width = terminal_width()
    names = ["name"]
    names += ["kind"] if show_kind else []
    names += ["family"] if any(spec.family for spec in specs) else []
    costs = [cost_text(spec.cost) if spec.cost else "" for spec in specs]
    room = width - sum(2 + max((len(getattr(spec, name)) for spec in specs), default=0) for name in names)
    beside = any(costs) and room - 2 - max(map(len, costs)) >= 40  # narrower, the summary would be a ribbon
    rows = []
    for spec, cost in zip(specs, costs, strict=True):
        row = [getattr(spec, name) for name in names] + ([cost] if beside else [])
        foreign = "" if spec.distribution == "axplain" else f" [{spec.distribution}]"
        under = "" if beside or not cost else f"\ncost: {cost}"
        rows.append([*row, f"{spec.summary}{foreign}{under}"])
    header = [*names, *(["cost"] if beside else []), "summary"]
    for line in columns([[name.upper() for name in header], *rows], width, header=True):
        click.echo(line)


@main.command(short_help="Show everything that a method declares.")
@click.argument("name", metavar="METHOD")
@click.option("--kind", type=click.Choice(list(GROUPS)), help="What METHOD is, where two plugins share the name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, kind: str | None, as_json: bool) -> None:
    """Show what a method, or another plugin, declares: parameters, baselines, cost, axioms, source.

    METHOD is a name that `axplain list` shows, or the path of a TOML file that composes a method.
    """
    spec = _find(name, kind)
    if as_json:
        click.echo(json.dumps(document(spec), indent=2))
        return
    for line in spec_page(spec, terminal_width(100)):
        click.echo(line)


def _find(name: str, kind: str | None) -> Spec:
    """Return the spec of that name; without a kind, methods first, then the only other plugin of that name."""
    if name.endswith(".toml"):
        return find_spec(name)
    others = [other for other, known in catalog().specs if known == name and other not in EXPLAINS]
    if kind is None and len(others) > 1 and not any((mine, name) in catalog().specs for mine in EXPLAINS):
        raise click.UsageError(f"{name!r} is a plugin of the kinds {', '.join(others)}: say which with --kind.")
    is_other = kind is None and len(others) == 1 and name not in catalog().names(*EXPLAINS)
    return describe(name, others[0] if is_other else kind)


def _number_or(word: str) -> Callable[[click.Context, click.Parameter, str | None], int | str | None]:
    def convert(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
        if value is None or value == word:
            return value
        try:
            return int(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} came; expected {word!r} or a whole number.") from None

    return convert


def _output(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse, before anything runs, a file that could not be written afterwards."""
    if path is not None and path.suffix.lower() not in (".safetensors", ".json"):
        raise click.BadParameter(f"{path} came; expected a path that ends in .safetensors or .json.")
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"the directory {path.parent} does not exist.")
    return path


@main.command(options_metavar="--model PKG.MOD:NAME --input FILE [OPTIONS]")
@click.argument("method")
@click.option("--model", required=True, metavar="PKG.MOD:NAME", help="The model, or a function that returns it.")
@click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Arrays: .npy, .npz, .safetensors, .pt, .csv, .txt; pictures with --modality. Several files are several "
    "inputs of the model; several arrays in one file are its keyword inputs.",
)
@click.option(
    "--target",
    metavar="T",
    help="3 for all examples; 3,1,2 one for each; '(3,7)' a tuple; LAYER:7,2,2 a neuron; PKG.MOD:FUNCTION of the "
    "output.  "
    "[default: the predicted class]",
)
@click.option(
    "--baselines",
    metavar="X",
    help="What stands for absence: a number, a file, PKG.MOD:NAME, or a name of `axplain list --kind baseline`.",
)
@click.option(
    "-p",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of METHOD, as `axplain show METHOD` lists them: a tensor is a file, values are a number or a "
    "file, a callable is PKG.MOD:NAME, a neuron is LAYER:7,2,2. inner.NAME=VALUE reaches the method inside; "
    "noise.NAME, baselines.NAME and modality.NAME reach those.",
)
@click.option("--layer", multiple=True, metavar="NAME", help="Explain what a layer returns; several are one seat.")
@click.option(
    "--feature-mask",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Whole numbers shaped like one example, or one mask for each: elements with one number are one feature.",
)
@click.option("--noise", metavar="MODE", help="A noise mode around METHOD.")
@click.option("--modality", metavar="NAME", help="How to read inputs that are no arrays, such as image.")
@click.option("--transform", metavar="PKG.MOD:FUNCTION", help="The model's own preprocessing, for --modality.")
@click.option(
    "--batch-size", metavar="ROWS", callback=_number_or("auto"), help="Rows of one model pass.  [default: auto]"
)
@click.option(
    "--seed",
    metavar="NUMBER",
    callback=_number_or("fresh"),
    help="Of everything drawn; `fresh` draws one and records it.  [default: 0]",
)
@click.option("--tolerance", type=float, help="Refine until the residual is at most this, in units of the target.")
@click.option("--no-verify", is_flag=True, help="Do not check the answer.")
@click.option("--top", type=click.IntRange(0), default=5, show_default=True, help="Features to print per example.")
@click.option(
    "--output",
    metavar="FILE",
    callback=_output,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Save the explanation: .safetensors or .json.",
)
@click.option("--estimate", "only_cost", is_flag=True, help="Print what it would cost, without running the model.")
def explain(method: str, top: int, output: Path | None, only_cost: bool, **options: Any) -> None:
    """Explain the output of a model at some inputs.

    The current directory is importable. METHOD is a name of `axplain list`, or the path of a TOML file.
    """
    import axplain
    from axplain.cli.inputs import importable, read_call

    with importable(os.getcwd()):
        call, columns_of_x, notes = read_call(method, options)
        for text in notes:
            _note(text)
        if only_cost:
            click.echo(f"{heading(method)}: estimate")
            _print_cost(axplain.estimate(**call), planned=True)
            return
        explanation = axplain.explain(**call, progress=sys.stderr.isatty())
    _print_explanation(explanation, options)
    _print_features(explanation, columns_of_x, top, _innermost(method, call))
    if output is not None:
        _save(explanation, output)
        click.echo(f"\nsaved {output}")


def _print_cost(cost: Cost, *, planned: bool = False) -> None:
    most = "at most " if planned and cost.bound == "upper" else ""
    checks = f"{', and at most' if planned else ','} {cost.check_rows} more for checks" if cost.check_rows else ""
    _fact("cost", f"{most}{cost.forward_rows} rows forward, {cost.backward_rows} backward{checks}")


def _fact(name: str, text: str) -> None:
    for line in columns([[name.ljust(9), text]], terminal_width(100), indent=2):
        click.echo(line)


def _print_explanation(explanation: Explanation, options: Mapping[str, Any]) -> None:
    batch = len(explanation.tensors[0])
    shapes = ", ".join(" x ".join(map(str, tensor.shape[1:])) or "1" for tensor in explanation.tensors)
    inner = [value["use"] for value in explanation.parameters.values() if isinstance(value, dict) and "use" in value]
    method = " of ".join([explanation.method, *inner])
    click.echo(f"{heading(method)}: {batch} example{'s' * (batch > 1)} of {shapes}")
    _fact("target", _target_text(explanation.target, predicted=options["target"] is None))
    if explanation.provenance.get("layer"):
        _fact("layer", _layer_text(explanation))
    if not explanation.residuals:
        _fact("residual", "not checked" if options["no_verify"] else "none claimed")
    for name, values in explanation.residuals.items():
        worst = int(values.abs().argmax())
        text = f"{name} {float(values[worst]):+.2g}"
        if explanation.difference is not None:
            text += f" beside F(x) - F(x') = {float(explanation.difference[worst]):+.4g}"
        _fact("residual", text + (f", the worst of {batch} (example {worst})" if batch > 1 else ""))
    for name, note in explanation.notes.items():
        facts = note if isinstance(note, dict) else {"": note}
        _fact(name, ", ".join(f"{key} {value_text(value)}".strip() for key, value in facts.items()))
    _print_cost(explanation.cost)
    _fact("time", f"{explanation.seconds:.3g} s")


def _target_text(target: Any, *, predicted: bool) -> str:
    if target is None:
        return "the output itself"
    if target == NO_TARGET:
        return "none: the method explains no target"
    targets = target if isinstance(target, list) else [target]
    shown = ", ".join(map(_index, targets[:10])) + (", ..." if len(targets) > 10 else "")
    return f"{shown} (predicted)" if predicted else shown


def _index(target: Any) -> str:
    return f"({', '.join(map(str, target))})" if isinstance(target, list) else str(target)


def _innermost(method: str, call: Mapping[str, Any]) -> Spec:
    """Return the spec of the method inside all others, which says what attributions mirror."""
    spec = find_spec(method)
    inner = next((name for name, parameter in spec.parameters.items() if parameter.type == "method"), None)
    if inner is None:
        return spec
    given = call.get(inner, spec.parameters[inner].default)
    values = given if isinstance(given, Mapping) else {"use": given}
    return _innermost(values["use"], values)


def _print_features(explanation: Explanation, names: tuple[str, ...], top: int, spec: Spec) -> None:
    """Print the strongest features of the first examples, with a bar that is full for the strongest of its example."""
    batch = len(explanation.tensors[0])
    shown = min(batch, SHOWN_EXAMPLES) if top else 0
    rows = [["feature", "attribution", ""]]
    labels = dict(zip(explanation.structure.labels("x"), _labels(explanation, spec), strict=True))
    for example in range(shown):
        features = explanation.top(top, example)
        largest = max(abs(feature.value) for feature in features) or 1.0
        for feature in features:
            bar = "#" * round(20 * abs(feature.value) / largest)
            rows.append([_feature_name(feature, labels[feature.input], names), _with_error(explanation, feature), bar])
    header, *lines = columns(rows, UNLIMITED, indent=2)  # one table, so that the examples line up
    for example in range(shown):
        mine = slice(example * len(lines) // shown, (example + 1) * len(lines) // shown)
        target = explanation.target[example] if isinstance(explanation.target, list) else explanation.target
        about = "" if target in (None, NO_TARGET) else f", target {_index(target)}"
        click.echo("\n".join(["", heading(f"example {example}{about}"), header, *lines[mine]]))
    if top and batch > shown:
        click.echo(f"\n{batch - shown} more examples: --output FILE keeps them all.")


def _labels(explanation: Explanation, spec: Spec) -> tuple[str, ...]:
    """Return what each tensor of the attributions lies on: the input, what a layer holds, or a map made from it."""
    if not explanation.provenance.get("layer") or spec.mirrors == "input":
        return explanation.structure.labels("x")
    if not spec.mirrors:
        return explanation.structure.labels("map")
    if explanation.structure.kind == "dict":
        return explanation.structure.names
    return explanation.structure.labels(_layer_text(explanation))


def _layer_text(explanation: Explanation) -> str:
    """Return the names of the layers that were explained."""
    return re.sub(r"layer '([^']*)'", r"\1", str(explanation.provenance["layer"]))


def _feature_name(feature: Feature, label: str, names: tuple[str, ...]) -> str:
    """Return the column that a file's header names, or where the feature lies: `[3, 1]` behind the label."""
    if names and len(feature.index) == 1:
        return names[feature.index[0]]
    return f"{label}{list(feature.index) or ''}"


def _with_error(explanation: Explanation, feature: Feature) -> str:
    text = f"{feature.value:+.4g}"
    if explanation.standard_errors is None:
        return text
    structure = explanation.structure
    errors = structure.unpack(explanation.standard_errors)
    mine = dict(zip(structure.labels("x"), errors, strict=True))[feature.input]
    return f"{text} +- {float(mine[feature.example][feature.index]):.1g}"


def _save(explanation: Explanation, path: Path) -> None:
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps(explanation.to_dict()) + "\n", "utf-8")
    else:
        explanation.save(path)


@main.command(short_help="Say what is installed, and what is broken and why.")
@click.option("--load", is_flag=True, help="Import the module of every plugin, and torch with them.")
@click.pass_context
def doctor(context: click.Context, load: bool) -> None:
    """Say what is installed, and what is broken and why; exit status 1 if something is."""
    needed = _requirements("")
    _section("Versions", [("python", platform.python_version()), ("axplain", version("axplain")), *_versions(needed)])
    counts: dict[str, Counter[str]] = {}
    for kind, name in sorted(catalog().specs, key=lambda key: list(GROUPS).index(key[0])):
        counts.setdefault(catalog().specs[kind, name].distribution, Counter())[kind] += 1
    tally = {owner: ", ".join(f"{kind} {n}" for kind, n in kinds.items()) for owner, kinds in counts.items()}
    _section("Plugins", [(_with_version(owner), text) for owner, text in sorted(tally.items())])
    _section("Extras", [(extra, _extra_text(extra)) for extra in metadata("axplain").get_all("Provides-Extra", [])])
    faults = [(name, "is needed and not installed") for name, installed in needed.items() if not installed]
    faults += [(broken.distribution, _reason(broken)) for broken in catalog().broken]
    faults += _orphans() + (_load_all() if load else [])
    _section("Broken", faults)
    loaded = f"; {len(catalog().modules)} plugins load" if load else "; --load imports every plugin, too"
    click.echo(f"{len(faults)} broken." if faults else f"Nothing is broken{loaded}.")
    context.exit(1 if faults else 0)


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        click.echo("\n".join([heading(title), *columns(rows, terminal_width(100), indent=2), ""]))


def _requirements(extra: str) -> dict[str, str | None]:
    """Return the distributions that axplain, or one of its extras, needs, with their installed versions."""
    found: dict[str, str | None] = {}
    for line in requires("axplain") or ():
        requirement, _, marker = line.partition(";")
        wanted = re.search(r"""extra\s*==\s*['"]([^'"]+)""", marker)
        parts = re.match(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?", requirement)
        if parts is None or (wanted[1] if wanted else "") != extra:
            continue
        if parts[1] == "axplain":  # an extra that is made of others
            for other in (parts[2] or "").split(","):
                found |= _requirements(other.strip())
        else:
            found[parts[1]] = _version(parts[1])
    return found


def _versions(needed: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [(name, installed or "not installed") for name, installed in needed.items()]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _with_version(distribution: str) -> str:
    return f"{distribution} {_version(distribution) or ''}".strip()


def _extra_text(extra: str) -> str:
    needed = _requirements(extra)
    missing = [name for name, installed in needed.items() if installed is None]
    if missing:
        return f"not installed, without {', '.join(missing)}: pip install 'axplain[{extra}]'"
    return "installed: " + ", ".join(f"{name} {installed}" for name, installed in needed.items())


def _reason(broken: Broken) -> str:
    """Return why a plugin is broken, one fault a line."""
    return broken.reason.replace("; ", "\n")


def _orphans() -> list[tuple[str, str]]:
    """Return the entry points whose plugins no spec declares, and so nobody can use."""
    told = {(broken.kind, broken.name) for broken in catalog().broken}
    return [
        (point.dist.name if point.dist else "unknown", f"{GROUPS[kind]}: entry point {name!r} has no spec of that name")
        for (kind, name), point in catalog().modules.items()
        if not {(kind, name), ("", name)} & (told | catalog().specs.keys())
    ]


def _load_all() -> list[tuple[str, str]]:
    """Import the module of every plugin and return what fails."""
    from axplain.registry import registry

    faults = []
    for key in catalog().modules.keys() & catalog().specs.keys():
        try:
            registry().factory(catalog().specs[key])
        except AxplainError as error:
            faults.append((catalog().specs[key].distribution, str(error)))
    return sorted(faults)
