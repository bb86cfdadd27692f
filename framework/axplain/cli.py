"""The command line: list, show, explain, doctor. Only `explain` and `doctor --load` import torch or a plugin."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from axplain.discovery import catalog, describe
from axplain.errors import ArgumentError, AxplainError, AxplainWarning, log
from axplain.page import columns, cost_text, document, heading, spec_page, terminal_width
from axplain.parameters import find_spec
from axplain.specs import GROUPS, Spec

if TYPE_CHECKING:
    from axplain.cost import Cost
    from axplain.explanation import Explanation
    from axplain.inputs import Inputs

EXPLAINS = ("method", "noise")
SHOWN_EXAMPLES = 5


class Program(click.Group):
    """A group whose failures are one line on stderr and exit status 1; `--debug` lets the traceback through."""

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


@main.command()
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
        return value if value in (None, word) else int(click.INT.convert(value, option, context))

    return convert


def _output(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse, before anything runs, a file that could not be written afterwards."""
    if path is not None and path.suffix.lower() not in (".safetensors", ".json"):
        raise click.BadParameter(f"{path} came; expected a path that ends in .safetensors or .json.")
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"the directory {path.parent} does not exist.")
    return path


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@main.command(options_metavar="--model PKG.MOD:NAME --input FILE [OPTIONS]")
@click.argument("method")
@click.option("--model", required=True, metavar="PKG.MOD:NAME", help="The model, or a function that returns it.")
@click.option("--input", "inputs", required=True, multiple=True, type=FILE, help="Arrays: .npy, .npz, .safetensors, .pt, .csv, .txt; pictures with --modality. Several files are several inputs of the model; a .npz or .safetensors with several arrays is its keyword inputs.")  # fmt: skip  # noqa: E501
@click.option("--target", metavar="T", help="3 for all examples; 3,1,2 one for each; (3,7) a tuple; PKG.MOD:FUNCTION of the output.  [default: the predicted class]")  # fmt: skip  # noqa: E501
@click.option("--baselines", metavar="X", help="What stands for absence: a number, a file, PKG.MOD:NAME, or a name of `axplain list --kind baseline`.")  # fmt: skip  # noqa: E501
@click.option("-p", "pairs", multiple=True, metavar="NAME=VALUE", help="A parameter of METHOD, as `axplain show METHOD` lists them. inner.NAME=VALUE reaches the method inside; noise.NAME, baselines.NAME and modality.NAME reach those.")  # fmt: skip  # noqa: E501
@click.option("--noise", metavar="MODE", help="A noise mode around METHOD.")
@click.option("--modality", metavar="NAME", help="How to read inputs that are no arrays, such as image.")
@click.option("--transform", metavar="PKG.MOD:FUNCTION", help="The model's own preprocessing, for --modality.")
@click.option("--batch-size", metavar="ROWS", callback=_number_or("auto"), help="Rows of one model pass.  [default: auto]")
@click.option("--seed", metavar="NUMBER", callback=_number_or("fresh"), help="Of everything drawn; fresh draws one.  [default: 0]")
@click.option("--tolerance", type=float, help="Refine until the residual is at most this, in units of the target.")
@click.option("--no-verify", is_flag=True, help="Do not check the answer.")
@click.option("--top", type=click.IntRange(0), default=5, show_default=True, help="Features to print per example.")
@click.option("--output", callback=_output, type=click.Path(dir_okay=False, path_type=Path), help="Save the explanation: .safetensors or .json.")  # fmt: skip  # noqa: E501
@click.option("--estimate", "only_cost", is_flag=True, help="Print what it would cost, without running the model.")
def explain(method: str, top: int, output: Path | None, only_cost: bool, **options: Any) -> None:
    """Explain the output of a model at some inputs.

    The current directory is importable. METHOD is a name of `axplain list`, or the path of a TOML file.
    """
    import axplain

    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        call, given = _call(method, options)
        if only_cost:
            _print_cost(axplain.estimate(**call), planned=True)
            return
        explanation = axplain.explain(**call, progress=sys.stderr.isatty())
    finally:
        sys.path.remove(here)
    _print_explanation(explanation, given, options)
    _print_features(explanation, given, top)
    if output is not None:
        _save(explanation, output)
        click.echo(f"\nsaved {output}")


def _call(method: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], Inputs]:
    """Return the arguments of `axplain.explain`; what was not given is left to its defaults."""
    from axplain.inputs import Frame, Inputs, Settings, load_model, load_object, parse_baselines, parse_target, read_inputs

    settings = Settings(options["pairs"])
    parameters = settings.of_method(find_spec(method))
    noise, modality = options["noise"], options["modality"]
    call: dict[str, Any] = {
        "noise": noise and settings.of_component("noise", noise, "noise", key="mode"),
        "batch_size": options["batch_size"],
        "tolerance": options["tolerance"],
        "target": options["target"] and parse_target(options["target"]),
    }
    model = load_model(options["model"])
    frame = Frame.of(model)
    if modality:
        paths = [str(path) for path in options["inputs"]]
        given = Inputs(paths[0] if len(paths) == 1 else paths)
        call["modality"] = settings.of_component("modality", modality, "modality")
    else:
        given = read_inputs(options["inputs"], frame)
    if options["transform"]:
        if not modality:
            raise ArgumentError("--transform", f"{options['transform']} came", "a modality", "Add --modality image.")
        chosen = call["modality"] if isinstance(call["modality"], dict) else {"use": modality}
        call["modality"] = {**chosen, "transform": load_object(options["transform"], "--transform")}
    if options["baselines"] is not None:
        call["baselines"] = parse_baselines(options["baselines"], settings, frame)
    settings.check_all_taken()
    for note in given.notes:
        _note(note)
    call = {name: value for name, value in call.items() if value is not None}
    if options["seed"] is not None:
        call["seed"] = None if options["seed"] == "fresh" else options["seed"]
    return {**parameters, **call, "model": model, "x": given.x, "method": method, "verify": not options["no_verify"]}, given


def _print_cost(cost: Cost, *, planned: bool = False) -> None:
    most = "at most " if planned and cost.bound == "upper" else ""
    checks = f"{', and at most' if planned else ','} {cost.check_rows} more for checks" if cost.check_rows else ""
    _fact("cost", f"{most}{cost.forward_rows} rows forward, {cost.backward_rows} backward{checks}")


def _fact(name: str, text: str) -> None:
    for line in columns([[name.ljust(8), text]], terminal_width(100), indent=2):
        click.echo(line)


def _print_explanation(explanation: Explanation, given: Inputs, options: Mapping[str, Any]) -> None:
    batch = len(explanation.tensors[0])
    shapes = ", ".join(" x ".join(map(str, tensor.shape[1:])) or "1" for tensor in explanation.tensors)
    noise = f" under {explanation.method}" if options["noise"] else ""
    click.echo(f"{heading(explanation.method)}{noise}: {batch} example{'s' * (batch > 1)} of {shapes}")
    _fact("target", _target_text(explanation, options["target"] is None))
    if not explanation.residuals:
        _fact("residual", "not checked" if options["no_verify"] else "none claimed")
    for name, values in explanation.residuals.items():
        worst = int(values.abs().argmax())
        text = f"{name} {float(values[worst]):+.2g}"
        if explanation.difference is not None:
            text += f" beside F(x) - F(x') = {float(explanation.difference[worst]):+.4g}"
        _fact("residual", text + (f", the worst of {batch} (example {worst})" if batch > 1 else ""))
    _print_cost(explanation.cost)
    _fact("time", f"{explanation.seconds:.3g} s")


def _target_text(explanation: Explanation, predicted: bool) -> str:
    if explanation.target is None:
        return "the output itself"
    targets = explanation.target if isinstance(explanation.target, list) else [explanation.target]
    shown = ", ".join(map(str, targets[:10])) + (", ..." if len(targets) > 10 else "")
    return f"{shown} (predicted)" if predicted else shown
