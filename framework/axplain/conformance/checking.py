"""The door without pytest: `axplain.check` returns a record for each pair of a method and an axiom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from axplain.conformance.claims import Pair, every_distribution, left_out, pairs_of, specs_of
from axplain.conformance.report import Record, Report
from axplain.discovery import Broken, catalog
from axplain.errors import ArgumentError, near_names
from axplain.parameters import find_spec
from axplain.reader import RESERVED
from axplain.specs import Spec


def check(
    methods: str | Spec | Sequence[str | Spec] | None = None,
    *,
    model: Callable[..., Any] | None = None,
    x: Any = None,
    axioms: str | Iterable[str] = (),
    examples: int = 20,
    contracts: int = 5,
    seconds: float = 60.0,
    random: bool = False,
    progress: Callable[[Record, int, int], None] | None = None,
    **given: Any,
) -> Report:
    """Hold methods to their claims and to the contracts of every method, and say what holds.

    Args:
        methods: names of methods or distributions, `Spec`s, or paths of TOML files; None means all that are installed.
        model: a model of your own: which claims hold on it, and by how much? Without it the kit draws small models.
        x: the input of that model, as `explain` takes it. Further keywords go to `explain`: target, baselines,
            additional_forward_args, forward_kwargs, and the method's parameters.
        axioms: check these only.
        examples: drawn cases per claim.
        contracts: drawn cases per contract.
        seconds: what one pair may take; then it has failed.
        random: draw other cases each time; otherwise they are the same in every run.
        progress: called with every record, how many there are by then, and how many there will be.

    Returns:
        One record per pair: passed, failed with the smallest case found, a known failure, reported, or skipped.

    Raises:
        UnknownMethod: nobody declares one of the methods.
        ArgumentError: an axiom is unknown, or only one of model and x came.
        MissingExtra: hypothesis is not installed.
    """
    if (model is None) != (x is None):
        raise ArgumentError("model" if model is None else "x", "nothing came", "a model and its input, both or neither")
    if model is None and given:
        name = sorted(given)[0]
        raise ArgumentError(name, f"{given[name]!r} came without a model", "no such argument", "Pass model= and x=.")
    for name, number in (("examples", examples), ("contracts", contracts), ("seconds", seconds)):
        if not number > 0:
            raise ArgumentError(name, f"{number!r} came", "more than 0")
    specs, broken = _asked(methods)
    _check_names(given, specs)
    pairs = [(spec, pair) for spec in specs for pair in pairs_of(spec)]
    pairs = _chosen(pairs, (axioms,) if isinstance(axioms, str) else tuple(axioms))
    runner = _runner(model, x, given, (examples, contracts, seconds, random))
    work = [partial(_left_out, entry) for entry in broken] + [partial(runner, spec, pair) for spec, pair in pairs]
    records: list[Record] = []
    for make in work:
        records.append(make())
        if progress:
            progress(records[-1], len(records), len(work))
    return Report(tuple(records))


def _check_names(given: Iterable[str], specs: Sequence[Spec]) -> None:
    known = {*RESERVED, *(name for spec in specs for name in spec.parameters)}
    unknown = sorted(set(given) - known)
    if unknown:
        near = near_names(unknown[0], known)
        raise ArgumentError(unknown[0], "it came", "an argument of explain", f"Did you mean {near}?" if near else "")


def _asked(methods: Any) -> tuple[list[Spec], list[Broken]]:
    if methods is None:
        return specs_of(every_distribution())
    names = [methods] if isinstance(methods, str | Spec) or not isinstance(methods, Sequence) else list(methods)
    own = [find_spec(name, "methods") for name in names if not isinstance(name, str) or name.endswith(".toml")]
    specs, broken = specs_of(name for name in names if isinstance(name, str) and not name.endswith(".toml"))
    return own + specs, broken


def _chosen(pairs: list[tuple[Spec, Pair]], axioms: tuple[str, ...]) -> list[tuple[Spec, Pair]]:
    unknown = sorted(set(axioms) - {*catalog().names("axiom"), *(pair.axiom for _, pair in pairs)})
    if unknown:
        near = near_names(unknown[0], catalog().names("axiom"))
        cure = f"Did you mean {near}?" if near else "`axplain doctor` says what does not load."
        raise ArgumentError("axioms", f"{unknown[0]!r} came", f"some of {', '.join(catalog().names('axiom'))}", cure)
    chosen = [(spec, pair) for spec, pair in pairs if not axioms or pair.axiom in axioms]
    if pairs and not chosen:
        raise ArgumentError("axioms", f"{', '.join(axioms)} came", "axioms that one of the methods claims")
    return chosen


def _runner(
    model: Any, x: Any, given: dict[str, Any], effort: tuple[int, int, float, bool]
) -> Callable[[Spec, Pair], Record]:
    from axplain.conformance.own import own_case, run_own
    from axplain.conformance.runner import Effort, run
    from axplain.conformance.subject import Subject

    amount = Effort(*effort)
    if model is None:
        return lambda spec, pair: run(pair, amount, Subject.of(spec))

    questions: dict[int, Any] = {}

    def on_own(spec: Spec, pair: Pair) -> Record:
        if id(spec) not in questions:
            subject = Subject.of(spec, **{name: value for name, value in given.items() if name in spec.parameters})
            rest = {name: value for name, value in given.items() if name in RESERVED}
            questions[id(spec)] = subject, own_case(subject, model, x, rest)
        return run_own(pair, amount, *questions[id(spec)])

    return on_own


def _left_out(entry: Broken) -> Record:
    """A plugin that cannot be used has one record, which says why."""
    pair = left_out(entry)
    return Record(pair.method, pair.distribution, pair.axiom, "contract", "fail", pair.fault)
