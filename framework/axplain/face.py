"""The public calls that run or price a method: data flows from here to the door, the engine and the explanation."""

from __future__ import annotations

import functools
import inspect
import math
import platform
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import attrs
import torch

from axplain.aims import Several
from axplain.composition import need_of, planned_samples, run_targets, shares_passes
from axplain.cost import Cost, planned_cost
from axplain.door import Question, question
from axplain.engine import Engine
from axplain.errors import ArgumentError, PluginError, UnsupportedModel, log, warn
from axplain.explanation import Explanation
from axplain.guard import occupied, plain_mode, untouched, warn_in_training
from axplain.hidden import refuse_hidden_code
from axplain.problem import Problem
from axplain.protocols import Outcome, Settings
from axplain.randomness import fresh_seed
from axplain.registry import registry
from axplain.residuals import warn_if_drifting, warn_incomplete
from axplain.seats.neurons import NeuronTarget
from axplain.seats.settling import carried_rows, references_of, seated, shaped
from axplain.specs import FromParameter, Spec
from axplain.structure import Rows, Structure, Tensors, all_finite
from axplain.targets import PredictedTarget

P = ParamSpec("P")
R = TypeVar("R")


def _called_like(function: Callable[P, Any]) -> Callable[[Callable[[dict[str, Any]], R]], Callable[P, R]]:
    """Give a function of a dict of arguments the signature, and the types, of another one."""
    signature = inspect.signature(function)

    def decorate(body: Callable[[dict[str, Any]], R]) -> Callable[P, R]:
        @functools.wraps(body)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return body(bound.arguments)

        call.__signature__ = signature.replace(return_annotation=body.__annotations__["return"])  # type: ignore[attr-defined]
        return call

    return decorate


def explain(
    model: Callable[..., Any],
    x: Any,
    method: str | Path | Spec = "integrated_gradients",
    *,
    target: Any = None,
    baselines: Any = None,
    layer: Any = None,
    feature_mask: Any = None,
    additional_forward_args: Any = None,
    forward_kwargs: Any = None,
    noise: Any = None,
    modality: Any = None,
    batch_size: int | Literal["auto"] = "auto",
    seed: int | None = 0,
    tolerance: float | None = None,
    verify: bool = True,
    progress: bool | Callable[[int, int], None] = False,
    **parameters: Any,
) -> Explanation:
    """Attribute one scalar of a model's output, per example, to the elements of its input.

    Args:
        model: a module or any callable that returns a tensor, a tuple, a dict, or an object with `logits`.
        x: what is explained, batch first: a tensor, a tuple, a dict of keyword inputs, or anything a modality encodes.
        method: the name of a method or noise mode, a `Spec`, or the path of a TOML file that composes one.
        target: an index for all examples; a list, array or tensor with one per example; a tuple into several
            dimensions, or a list of them; a callable from the raw output to (batch,); `axplain.neuron(layer, index)`.
            None means the output itself for (batch,) and (batch, 1), the predicted class of x for (batch, classes).
        baselines: what stands for absence: a number, a tensor, a callable, the name of a baseline plugin or
            {"use": name, ...}; a tuple or dict of these for several inputs; `axplain.distribution(t)` for a set.
        layer: attributions land at what a layer returns, and mirror it, the batch moved to the front: a module of the
            model, its dotted name, or `axplain.seat(layer, of="input", call=0, item=0)`. Several tensors of a layer
            give a tuple; a list of layers side by side gives a dict by name, and takes `feature_mask` as one; methods
            that only read take any layers. Baselines are given at the input and carried there, or by
            `axplain.at_seat(...)` as values of the layer.
        feature_mask: whole numbers in the structure of x, (1 or batch, ...) each: elements with one number are one
            feature, also across inputs. For methods that switch features on and off; None: every element is one.
        additional_forward_args: positional arguments after x (before it, where x is a dict), not explained. Tensors
            with one row per example follow the examples; `axplain.shared(t)` passes one as it is.
        forward_kwargs: the same, by keyword.
        noise: a noise mode around the method: a name or {"mode": name, "n_samples": 10, "stdev": 0.1}.
        modality: how to encode an x that is no tensor: a name or {"use": "image", "transform": ...}.
        batch_size: rows of one model pass; "auto" measures what fits.
        seed: of everything drawn; None draws a fresh one and records it.
        tolerance: refine until the residual, or every standard error of a sampled method, is at most this, in units of
            the target, instead of a fixed number of samples. A residual bounds the sum; where errors of both signs
            cancel, single attributions are off by a little more.
        verify: where the method claims completeness, check the answer, and whether the model is deterministic.
        progress: True shows a bar; a callback gets (rows done, rows in all), and may raise to cancel.
        **parameters: of the method; `axplain.describe(method)` lists them.

    Returns:
        The attributions, mirroring x, with their residual, cost and provenance. Cost in rows: the method's spec.

    Raises:
        ArgumentError: an argument cannot be used; the message names it.
        UnknownMethod: the method is not installed.
        UnsupportedModel: the model does what cannot be explained correctly.
    """
    arguments = locals()
    with plain_mode():
        return _explain(arguments)[0]


def explain_targets(
    model: Callable[..., Any],
    x: Any,
    method: str | Path | Spec = "integrated_gradients",
    *,
    targets: Sequence[Any],
    **options: Any,
) -> tuple[Explanation, ...]:
    """Attribute several scalars of a model's output, each as `explain` does it alone.

    Methods that ask for values, such as the removal family, tell all targets from the passes of one; those that
    differentiate, and calls with a `tolerance`, take theirs for every target.

    Args:
        model, x, method: as in `explain`.
        targets: what `explain` takes as `target`, one after the other; None, the predicted class, is not among them.
        **options: every other argument of `explain`, and the method's parameters.

    Returns:
        One explanation for each target, in their order. The cost in each is that of the whole call.

    Raises:
        ArgumentError: as `explain` does; or there are no targets.
    """
    if hasattr(targets, "tolist") and getattr(targets, "ndim", 0) == 1:  # an array of indices
        targets = targets.tolist()
    if not isinstance(targets, Sequence) or isinstance(targets, str) or not targets:
        raise ArgumentError("targets", f"{targets!r} came", "a list of at least one target")
    if "target" in options:
        raise ArgumentError("target", f"{options['target']!r} came beside targets", "one of the two")
    bound = inspect.signature(explain).bind(model, x, method, target=Several(tuple(targets)), **options)
    bound.apply_defaults()
    with plain_mode():
        return _explain(bound.arguments)


@_called_like(explain)
def estimate(arguments: dict[str, Any]) -> Cost:
    """Return what the same call of `explain` would cost in rows, without running the model.

    Where it explains a layer, a few small passes find the layer's shape.

    Raises:
        ArgumentError: as `explain` does, for everything that can be seen before the first forward pass.
    """
    arguments.pop("progress")
    with plain_mode():
        return _planned(seated(_normalise(arguments)))


def _explain(arguments: dict[str, Any]) -> tuple[Explanation, ...]:
    """Run a call; of several targets one explanation each."""
    started = time.perf_counter()
    progress = arguments.pop("progress")
    asked = seated(_normalise(arguments))
    model = asked.problem.model
    warn_in_training(model.parts)
    if need_of(asked.call) == "rules":
        refuse_hidden_code(model)
    planned = _planned(asked)
    with ExitStack() as stack:
        callback = stack.enter_context(_progress(progress, asked.call.spec.name))
        floating = asked.call.innermost.spec.requires.input_dtype == "floating"
        engine = Engine(asked.batch_size, callback, planned.forward_rows, differentiates=floating)
        stack.enter_context(occupied(model.function, _hooks(asked)))
        stack.enter_context(untouched(model.parts, asked.problem.device))
        problem = _aim(asked, engine)
        registry().plugins.hook.axplain_before_explain(call=asked.call, problem=problem)
        outcomes = run_targets(asked.call, problem, engine, Settings({}, asked.tolerance, asked.verify))
        engine.settle_doubt(problem)
        parts = problem.target.parts
        aimed = [problem] if len(parts) == 1 else [attrs.evolve(problem, target=part) for part in parts]
        if asked.verify and asked.call.claims_completeness:
            warn_if_drifting(aimed[0], engine, outcomes[0])
        if callback:
            callback(engine.count.forward, engine.count.forward)  # the plan may have been an upper bound
    seconds = time.perf_counter() - started
    explanations = []
    for problem, outcome in zip(aimed, outcomes, strict=True):
        explanation = _explanation(asked, problem, outcome, engine, planned.bound, seconds)
        _judge(asked, outcome, explanation)
        registry().plugins.hook.axplain_after_explain(call=asked.call, explanation=explanation)
        log.debug("%r cost %s", explanation, explanation.cost)
        explanations.append(explanation)
    return tuple(explanations)


def _hooks(asked: Question) -> bool:
    neurons = asked.target is not None and any(isinstance(part, NeuronTarget) for part in asked.target.parts)
    passed = any(parameter.type == "neuron" for spec in asked.call.specs for parameter in spec.parameters.values())
    exchanges = any(spec.requires.module for spec in asked.call.specs)
    return neurons or passed or exchanges or asked.layers is not None


def _normalise(arguments: dict[str, Any]) -> Question:
    if arguments["seed"] is None:
        arguments["seed"] = fresh_seed()
    return question(**arguments)


def _planned(asked: Question) -> Cost:
    cost = planned_cost(
        asked.call,
        asked.problem.batch,
        references_of(asked),
        asked.problem.groups.count if asked.problem.groups else 0,
        carried_rows(asked),
        lambda call: planned_samples(call, shaped(asked)),
        tolerance=asked.tolerance,
        verify=asked.verify,
        predicts=asked.target is None,
    )
    targets = 1 if asked.target is None else len(asked.target.parts)
    return cost if targets == 1 or shares_passes(asked.call, asked.tolerance) else cost.times(targets)


def _aim(asked: Question, engine: Engine) -> Problem:
    """Settle the target: where none is given, one pass tells the predicted class and F(x)."""
    if asked.target is not None:
        return attrs.evolve(asked.problem, target=asked.target)
    predicted = PredictedTarget(torch.zeros(asked.problem.batch, dtype=torch.long, device="cpu"))
    problem = attrs.evolve(asked.problem, target=predicted)
    clean = engine.check_values(problem, Rows(problem.inputs, problem.everyone()))
    return attrs.evolve(problem, target=predicted.resolved(), clean=clean)


@contextmanager
def _progress(wanted: bool | Callable[[int, int], None], label: str) -> Iterator[Callable[[int, int], None] | None]:
    """Turn `progress=` into a callback; the bar is closed whatever happens."""
    if callable(wanted):
        yield wanted
    elif not isinstance(wanted, bool):
        raise ArgumentError("progress", f"{wanted!r} came", "True, False or a callable that takes (done, total)")
    elif not wanted:
        yield None
    else:
        from tqdm.auto import tqdm

        with tqdm(desc=label, unit=" rows") as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield show


def _explanation(
    asked: Question, problem: Problem, outcome: Outcome, engine: Engine, bound: str, seconds: float
) -> Explanation:
    call = asked.call
    structure = asked.structure if call.innermost.spec.mirrors else Structure("tensor", ("x",))
    checks = {name: values.detach() for name, values in outcome.checks.items()}
    function = problem.model.function
    errors = outcome.standard_errors
    return Explanation(
        attributions=structure.pack(_mirror(outcome.attributions, asked, problem)),
        method=call.spec.name,
        spec_version=call.spec.version,
        parameters=call.describe(),
        target=problem.target.describe(),
        residuals={name: values for name, values in checks.items() if name != "difference"},
        difference=checks.get("difference"),
        standard_errors=None if errors is None else structure.pack(_mirror(errors, asked, problem)),
        cost=Cost(engine.count.forward, engine.count.backward, engine.count.check_forward, bound),
        seconds=seconds,
        notes=_notes(asked, outcome, engine),
        provenance=_provenance(asked),
        structure=structure,
        model=weakref.ref(function) if isinstance(function, torch.nn.Module) else None,
    )


def _notes(asked: Question, outcome: Outcome, engine: Engine) -> dict[str, Any]:
    notes = (_tolerance_note(asked, outcome, engine), _gradient_note(engine), _seat_note(asked), _absorbed_note(engine))
    return {name: note for each in (outcome.notes, *notes) for name, note in each.items()}


def _tolerance_note(asked: Question, outcome: Outcome, engine: Engine) -> dict[str, Any]:
    """Say whether the tolerance that was asked for was reached, and what that took."""
    if asked.tolerance is None:
        return {}
    what, _ = _bounded(asked)
    worst = _worst(what, outcome)
    reached = worst <= asked.tolerance
    return {"tolerance": {"asked": asked.tolerance, "reached": reached, what: worst, "rows": engine.count.forward}}


def _bounded(asked: Question) -> tuple[str, str]:
    """Return what a tolerance bounds, and the parameter that would let it shrink."""
    composition = asked.call.spec.composition
    assert composition is not None and (composition.until or composition.refinement), "the door refuses others"
    if composition.until:
        return "standard error", _parameter_of(composition.until)
    assert composition.refinement is not None
    return "residual", _parameter_of(composition.refinement.arguments)


def _worst(what: str, outcome: Outcome) -> float:
    """Return how large that is."""
    if what == "standard error":
        errors = outcome.standard_errors
        return max((float(error.max()) for error in errors), default=0.0) if errors else math.inf
    residual = outcome.checks.get("completeness")
    return math.inf if residual is None else float(residual.abs().max())


def _parameter_of(arguments: Mapping[str, Any]) -> str:
    return next((value.parameter for value in arguments.values() if isinstance(value, FromParameter)), "")


def _gradient_note(engine: Engine) -> dict[str, Any]:
    """Say which operations have no rule, where their plain gradient was asked for."""
    return {"plain gradient": sorted(engine.notes)} if engine.notes else {}


def _absorbed_note(engine: Engine) -> dict[str, Any]:
    """Say what operations kept of the relevance: of each example in all, and one by one from the target backwards."""
    if not engine.ledgers:
        return {}
    runs = Counter(example for example, _ in engine.ledgers)  # several, where noise was added
    places = {example: place for place, example in enumerate(sorted(runs))}
    kept: dict[str, list[float]] = {}
    for example, ledger in engine.ledgers:
        for name, amount in ledger.kept.items():
            kept.setdefault(name, [0.0] * len(places))[places[example]] += amount / runs[example]
    shown = {name: amounts for name, amounts in kept.items() if any(amounts)}
    absorbed = [sum(amounts[place] for amounts in kept.values()) for place in places.values()]
    return {"absorbed": absorbed, "absorbed by": shown}


def _seat_note(asked: Question) -> dict[str, Any]:
    """Say where completeness cannot hold: where x reaches the target by other ways than the layer."""
    seating = asked.problem.seating
    if seating is None or seating.cut or not asked.call.claims_completeness:
        return {}
    return {"completeness": f"does not apply: what the target knows of x does not all pass {seating}"}


def _mirror(tensors: Tensors, asked: Question, problem: Problem) -> Tensors:
    """Give attributions the shape, device and dtype of the inputs, or of the seat; integers get float32.

    Of a method that mirrors neither, a number for each example and place.
    """
    mirrors = asked.call.innermost.spec.mirrors
    wanted = attrs.evolve(problem, seating=None).seat_shapes if mirrors == "input" else problem.seat_shapes
    if not mirrors:
        if len(tensors) != 1 or len(tensors[0]) != problem.batch:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise PluginError(f"the method returned {shapes}; expected one tensor with {problem.batch} rows")
        wanted = [(tensors[0].shape, wanted[0][1])]
    for tensor, (shape, _) in zip(tensors, wanted, strict=True):
        if tensor.shape != shape:
            raise PluginError(f"the method returned the shape {tuple(tensor.shape)} for an input {tuple(shape)}")
    return tuple(
        tensor.detach().to(problem.device, dtype if dtype.is_floating_point else torch.float32).contiguous()
        for tensor, (_, dtype) in zip(tensors, wanted, strict=True)
    )


def _judge(asked: Question, outcome: Outcome, explanation: Explanation) -> None:
    """Warn where the answer misses what its spec claims, or what the caller asked for."""
    for tensor in outcome.attributions:
        if not all_finite(tensor):
            raise UnsupportedModel(
                f"model: {int((~tensor.isfinite()).sum())} attributions are NaN or inf: a gradient is not finite where "
                "the model was asked; look for sqrt or log at 0 and for overflow in half precision."
            )
    told = explanation.notes.get("tolerance", {})
    reached = told.get("reached")
    if reached is False:
        what, parameter = _bounded(asked)
        warn(
            f"{explanation.method}: tolerance={asked.tolerance:g} was not reached after "
            f"{explanation.cost.forward_rows} rows; the largest {what} is {told[what]:.3g}. Raise {parameter}."
        )
    claim = asked.call.innermost.spec.claim("completeness")
    if reached is None and claim is not None and "completeness" in outcome.checks:
        warn_incomplete(claim, explanation.method, outcome, explanation.tensors[0].dtype)


def _provenance(asked: Question) -> dict[str, Any]:
    spec = asked.call.spec
    first = asked.problem.inputs[0]
    return {
        "axplain": _version("axplain"),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "distribution": spec.distribution or spec.origin,
        "distribution_version": _version(spec.distribution),
        "seed": asked.seed,
        "features": asked.problem.groups.count if asked.problem.groups else None,
        "layer": None if asked.problem.seating is None else str(asked.problem.seating),
        "device": str(first.device),
        "dtype": str(first.dtype).removeprefix("torch."),
        "modality": asked.modality,
        "baselines": asked.baselines,
        "batch_size": asked.batch_size,
    }


@functools.cache  # a look into the file system that would cost more than a small model's passes
def _version(distribution: str) -> str | None:
    try:
        return version(distribution) if distribution else None
    except PackageNotFoundError:
        return None
