"""The commands of the conformance kit: `check` holds methods to their claims, `new-method` writes one to start from."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from axplain.cli.page import UNLIMITED, columns, heading, terminal_width
from axplain.conformance.skeleton import Skeleton
from axplain.discovery import catalog
from axplain.specs import EXPLAINS

if TYPE_CHECKING:
    from axplain.conformance.report import Record, Report

_COLOURS = {"fail": "red", "known failure": "yellow", "pass": "green", "reported": "cyan", "skip": None}
_OWN = "A model of yours: which claims hold on it, and by how much? "


@click.command(short_help="Hold methods to the axioms they claim and to the contracts of all.")
@click.argument("names", nargs=-1, metavar="[METHOD|DISTRIBUTION]...")
@click.option("--all", "everything", is_flag=True, help="Every installed method, and the matrix of all claims.")
@click.option("--axiom", "axioms", multiple=True, metavar="ID", help="Only this axiom; may be given several times.")
@click.option("--examples", type=click.IntRange(1), default=20, show_default=True, help="Drawn cases per claim.")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="What one pair may take.")
@click.option("--random", "anew", is_flag=True, help="Draw other cases in every run.")
@click.option("--verbose", "-v", is_flag=True, help="Print what passes and what is skipped, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--model", metavar="PKG.MOD:NAME", help=_OWN + "The model, or a function that returns it; needs --input.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --model: its input, as `axplain explain --input` takes it.",
)
@click.option("--target", metavar="T", help="With --model: its target, as `axplain explain --target` takes it.")
@click.option(
    "--baselines", metavar="X", help="With --model: its baselines, as `axplain explain --baselines` takes them."
)
@click.option("-p", "given", multiple=True, metavar="NAME=VALUE", help="With --model: a parameter of the method.")
@click.pass_context
def check(
    context: click.Context, /, names: tuple[str, ...], everything: bool, verbose: bool, as_json: bool, **options: Any
) -> None:
    """Hold methods to the axioms they claim and to the contracts of all; exit status 1 if something fails.

    A pass says that no case was found in which a claim fails. It does not say that explanations are useful.
    """
    import axplain

    if bool(names) == everything:
        raise click.UsageError("name methods or distributions, or say --all.")
    idle = [f"--{name}" for name in ("target", "baselines") if options[name]] + ["-p"] * bool(options["given"])
    if idle and not options["model"]:
        raise click.UsageError(f"{idle[0]} belongs to a model of yours: say --model and --input, too.")
    own = _own_question(context, names, options) if options["model"] or options["inputs"] else {}
    amount = {"examples": options["examples"], "seconds": options["seconds"], "random": options["anew"]}
    show = _Printer(verbose or bool(own), as_json)
    report = axplain.check(
        None if everything else list(names), axioms=options["axioms"], progress=show, **amount, **own
    )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        if everything:
            _print_matrix()
        _print_summary(report)
    context.exit(0 if report.ok else 1)


def _own_question(context: click.Context, names: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    from axplain.cli.inputs import importable, read_call

    if not options["model"] or not options["inputs"]:
        raise click.UsageError("--model and --input belong together.")
    if len(names) != 1:
        raise click.UsageError("a model of your own is asked about one METHOD at a time.")
    absent = dict.fromkeys(
        ("layer", "feature_mask", "noise", "modality", "transform", "batch_size", "tolerance", "seed")
    )
    context.with_resource(importable(os.getcwd()))  # until the command ends: a model may import when it is asked
    call, _, _ = read_call(names[0], {**options, **absent, "pairs": options["given"], "no_verify": True})
    return {name: value for name, value in call.items() if name not in ("method", "verify")}


class _Printer:
    """Prints records as they come, and on a terminal how far the work is."""

    def __init__(self, verbose: bool, silent: bool) -> None:
        self.verbose, self.silent = verbose, silent
        self.lively = sys.stderr.isatty()

    def __call__(self, record: Record, done: int, total: int) -> None:
        if self.lively:
            click.echo(f"\r{done}/{total} {record.method}, {record.axiom}".ljust(72)[:72], nl=done == total, err=True)
        expected = record.outcome in ("pass", "skip", "reported")
        if self.silent or (expected and not self.verbose):
            return
        if self.lively:
            click.echo("\r" + " " * 72 + "\r", nl=False, err=True)
        for line in _lines(record):
            click.echo(line)


def _lines(record: Record) -> Iterator[str]:
    """Yield what was found in one line; what failed gets its reason and its case in lines of their own."""
    outcome = click.style(record.outcome.ljust(13), fg=_COLOURS[record.outcome])
    kind = record.kind.replace("_", " ") or "not declared"
    seen = "" if record.counterexample else _seen(record)
    yield f"{outcome}  {record.method:<22}{record.axiom:<26}{kind:<13}{seen}".rstrip()
    if record.counterexample:
        yield from textwrap.wrap(record.reason, terminal_width(100), initial_indent="  ", subsequent_indent="  ")
        yield f"  in {record.counterexample}"


def _seen(record: Record) -> str:
    gap = f", gap at most {record.gap:.1e}" if record.gap else ""
    return record.reason or (f"{record.cases} cases{gap}" if record.cases else "")


def _print_matrix() -> None:
    from axplain.conformance.claims import every_distribution, specs_of
    from axplain.conformance.matrix import matrix_of

    specs, _ = specs_of(every_distribution())
    header, *rows = matrix_of(specs).rows()
    click.echo()
    for line in columns([header, *rows], UNLIMITED, header=True):
        click.echo(line)
    click.echo()


def _print_summary(report: Report) -> None:
    seconds = sum(record.seconds for record in report)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.counts.items())
    click.echo(f"{heading(str(len(report)))} pairs of a method and an axiom in {seconds:.0f} s: {counts}")


@click.command("new-method", short_help="Write a package with a method of your own to start from.")
@click.argument("name")
@click.option("--code", is_flag=True, help="A method in Python, for loops with feedback; otherwise TOML alone.")
@click.option(
    "--into", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="The folder.  [default: here]"
)
def new_method(name: str, code: bool, into: Path) -> None:
    """Write a package with a method of your own: its spec, its project file and its conformance test."""
    if name in catalog().names(*EXPLAINS):
        raise click.UsageError(f"{name!r} is installed already: two plugins of one name would both be refused.")
    skeleton = Skeleton(name, code=code)
    for path in skeleton.write(into):
        click.echo(f"wrote {path}")
    click.echo(f"\nnext: cd {into / skeleton.folder} && pip install -e . 'axplain[conformance]' && pytest")
