"""The one door: every argument of a call is normalised here, once; every error names the argument."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from axplain.adapters import BatchModel
from axplain.aims import Several, resolve_target
from axplain.arguments import resolve_arguments
from axplain.discovery import catalog
from axplain.errors import ArgumentError, UnsupportedModel
from axplain.groups import Groups, resolve_groups
from axplain.hidden import refuse_hidden_code
from axplain.model import Model
from axplain.parameters import Call, settle, settle_values, sized
from axplain.problem import Problem, References
from axplain.protocols import Modality
from axplain.randomness import Key
from axplain.references import resolve_references
from axplain.registry import registry
from axplain.seats.sites import AtSeat, Site, resolve_sites
from axplain.specs import Composition, Spec
from axplain.structure import Structure, Tensors, all_finite, structure_of, usable
from axplain.targets import (
    NoTarget,
    OutputTarget,
    Target,
)


@attrs.frozen(eq=False)
class Layers:
    """The layers of a call, none where one is to be chosen, and what waits until it is known what they hold."""

    sites: tuple[Site, ...]
    several: bool
    feature_mask: Any
    baselines: Any


@attrs.frozen(eq=False)
class Question:
    """A normalised call, before the first forward pass. `target` is None where the predicted class is meant."""

    call: Call
    problem: Problem
    structure: Structure
    target: Target | None
    batch_size: int | Literal["auto"]
    tolerance: float | None
    verify: bool
    seed: int
    modality: str | None
    baselines: str
    layers: Layers | None = None


def question(
    model: Any,
    x: Any,
    method: Any,
    *,
    target: Any,
    baselines: Any,
    layer: Any,
    feature_mask: Any,
    additional_forward_args: Any,
    forward_kwargs: Any,
    noise: Any,
    modality: Any,
    batch_size: Any,
    seed: int,
    tolerance: Any,
    verify: Any,
    parameters: Mapping[str, Any],
) -> Question:
    """Normalise every argument of `explain`.

    Raises:
        ArgumentError: an argument cannot be used; the message names it.
        UnknownMethod: the method, noise mode, baseline or modality is not installed.
        UncoveredOperation: a layer is asked for, or chosen, of a model that is compiled, scripted or run by threads.
    """
    call = settle_call(method, noise, parameters)
    spec = call.innermost.spec
    _check_wanted(call, layer, target, baselines, feature_mask)
    if not callable(model):
        raise ArgumentError("model", f"{type(model).__name__} came", "a torch.nn.Module or a callable")
    exchanging = next((each for each in call.specs if each.requires.module), None)
    if exchanging is not None and not isinstance(model, torch.nn.Module):
        came = f"a plain callable ({type(model).__name__}) came"
        raise ArgumentError("model", came, f"a torch.nn.Module: {exchanging.name} exchanges its parameters")
    encoded, modality_name = _encode(x, modality)
    inputs, structure = _inputs(encoded)
    at_layer = layer is not None or spec.seats == ("layer",)
    adapter = Model(model, structure)
    _check_subject(adapter, inputs, call, at_layer=at_layer)
    key = Key(_seed(seed))
    baselines = _default_baselines(call) if baselines is None else baselines
    layers = _layers(layer, adapter, feature_mask, baselines, spec) if at_layer else None
    problem = Problem(
        model=adapter,
        inputs=inputs,
        target=OutputTarget(),
        references=_references(baselines, spec, encoded, inputs, structure, key),
        arguments=resolve_arguments(
            additional_forward_args, forward_kwargs, inputs, structure, whole=isinstance(model, BatchModel)
        ),
        key=key,
        groups=None if at_layer else _groups(feature_mask, spec, inputs, structure),
    )
    return Question(
        call=call if problem.groups is None else sized(call, problem.groups.count),
        problem=problem,
        structure=structure,
        target=resolve_target(target, adapter, len(inputs[0])) if spec.requires.target else NoTarget(),
        batch_size=_batch_size(batch_size),
        tolerance=_tolerance(tolerance, call, parameters),
        verify=_flag(verify, "verify"),
        seed=key.seed,
        modality=modality_name,
        baselines=_baselines_in_words(baselines, problem.references),
        layers=layers,
    )


def _check_wanted(call: Call, layer: Any, target: Any, baselines: Any, feature_mask: Any) -> None:
    """Refuse arguments that the method has no use for, and a missing one that it cannot do without."""
    spec = call.innermost.spec
    if layer is not None and "layer" not in spec.seats:
        cure = "For one unit of it pass target=axplain.neuron(layer, index)."
        raise ArgumentError("layer", "a layer came", f"nothing: {spec.name} explains the input", cure)
    if layer is None and spec.seats == ("layer",) and spec.requires.layer != "spatial":
        raise ArgumentError("layer", "nothing came", f"a layer: {spec.name} attributes to what one holds")
    if target is not None and not spec.requires.target:
        several = isinstance(target, Several)
        name, came, cure = "target", target, "Leave it out."
        if several:
            name, came, cure = "targets", target.targets, "Call axplain.explain without a target."
        raise ArgumentError(name, f"{came!r} came", f"nothing: {spec.name} explains no target", cure)
    if isinstance(baselines, AtSeat):
        _check_at_seat(layer, spec)
    if feature_mask is not None and spec.requires.features != "grouped":
        expected = f"nothing: {call.spec.name} does not group features"
        raise ArgumentError("feature_mask", "a mask came", expected, "Leave it out.")


def _check_subject(model: Model, inputs: Tensors, call: Call, *, at_layer: bool) -> None:
    """Refuse inputs that the methods which disturb them cannot take, and a model that cannot take the inputs."""
    disturbing = [each for each in call.specs if not at_layer or each.seats == "inner" or each.perturb_at == "input"]
    check_requirements(inputs, model.structure, disturbing, "x")
    _check_model(model, inputs[0].device)
    _check_numbers(inputs, model.structure)


def _default_baselines(call: Call) -> Any:
    """Return what stands for absence in the method's own spec, where it says."""
    spec, values = call.innermost.spec, call.innermost.values
    return None if spec.baselines is None else {"use": spec.baselines.name, **spec.baselines.resolve(values)}


def _references(
    given: Any, spec: Spec, encoded: Any, inputs: Tensors, structure: Structure, key: Key
) -> References | None:
    """Turn baselines into references; those that are values of a layer wait until it is known."""
    at_seat = isinstance(given, AtSeat)
    kind = "none" if at_seat else spec.baseline
    given = None if at_seat else given
    return resolve_references(given, kind, encoded, inputs, structure, key.at("baselines"), spec.name)


def _groups(feature_mask: Any, spec: Spec, inputs: Tensors, structure: Structure) -> Groups | None:
    return None if spec.requires.features == "none" else resolve_groups(feature_mask, inputs, structure)


def _check_at_seat(layer: Any, spec: Spec) -> None:
    if layer is None:
        raise ArgumentError("baselines", "at_seat(...) came without a layer", "layer=, or baselines of the input")
    if spec.baseline == "none":
        expected = f"nothing: {spec.name} uses no baselines"
        raise ArgumentError("baselines", "at_seat(...) came", expected, "Leave it out.")
    if spec.perturb_at == "input":
        expected = f"baselines of the input: {spec.name} moves along a path of inputs"
        raise ArgumentError("baselines", "at_seat(...) came", expected)


def _layers(layer: Any, model: Model, feature_mask: Any, baselines: Any, spec: Spec) -> Layers:
    """Find the layers, and keep what waits for their shapes."""
    given = baselines.value if isinstance(baselines, AtSeat) else None
    refuse_hidden_code(model, "What runs around a layer must be seen.")
    if layer is None:
        return Layers((), False, feature_mask, given)
    if isinstance(layer, list | tuple) and spec.mirrors is not True:
        raise ArgumentError("layer", "several came", f"one: {spec.name} gives one map", "Call it once for each.")
    return Layers(resolve_sites(layer, model), isinstance(layer, list | tuple), feature_mask, given)


def _baselines_in_words(given: Any, references: References | None) -> str:
    """Say for the record what stood for absence: a name or a number as given, else its kind, and how many."""
    if isinstance(given, AtSeat):
        return f"at the layer: {given.value!s}"[:80]
    if references is None:
        return "none"
    plain = isinstance(given, str | int | float) or (isinstance(given, Mapping) and "use" in given)
    words = "zeros (default)" if given is None else str(given) if plain else type(given).__name__
    return f"{words[:80]}, {references.count} for each example"


def settle_call(method: Any, noise: Any, parameters: Mapping[str, Any]) -> Call:
    """Settle the method, wrapped in a noise mode where one is given."""
    if noise is None:
        return settle(method, parameters)
    if isinstance(noise, str):
        noise = {"mode": noise}
    if not isinstance(noise, Mapping) or "mode" not in noise:
        raise ArgumentError("noise", f"{noise!r} came", 'the name of a noise mode or {"mode": name, ...}')
    mode = catalog().find(noise["mode"], "noise") if isinstance(noise["mode"], str) else noise["mode"]
    if not isinstance(mode, Spec) or mode.kind != "noise":
        raise ArgumentError("noise", f"{noise['mode']!r} came", "the name of a noise mode, or its Spec")
    inner = settle(method, parameters)
    if inner.spec.kind == "noise":
        raise ArgumentError(
            "noise", f"{noise['mode']!r} came and method={inner.spec.name!r} is a noise mode itself", "one of the two",
            f"Write method=..., noise={noise['mode']!r}, or method={inner.spec.name!r}, inner=... .",
        )  # fmt: skip
    if "inner" in noise:
        raise ArgumentError(
            "noise", "the key 'inner' came", "no inner method here: it is method=", "Move it to method=."
        )
    rest = {name: value for name, value in noise.items() if name != "mode"}
    return settle(mode, {**rest, "inner": inner})


def _encode(x: Any, modality: Any) -> tuple[Any, str | None]:
    if modality is None:
        return x, None
    given = {"use": modality} if isinstance(modality, str) else modality
    if not isinstance(given, Mapping) or not isinstance(given.get("use"), str):
        raise ArgumentError("modality", f"{modality!r} came", 'a name or {"use": name, ...}')
    spec = catalog().find(given["use"], "modality")
    rest = {name: value for name, value in given.items() if name != "use"}
    values = settle_values(spec, rest, "modality[{!r}]")
    plugin: Modality = registry().build(spec, values)
    return plugin.encode(x), spec.name


def _inputs(x: Any) -> tuple[Tensors, Structure]:
    structure = structure_of(x)
    if structure is None:
        raise ArgumentError(
            "x", f"{type(x).__name__} came", "a tensor, a tuple of tensors or a dict of keyword inputs", _cure_of_x(x)
        )
    items = structure.unpack(x)
    labels = structure.labels("x")
    for label, item in zip(labels, items, strict=True):
        _check_input(label, item, items[0])
    return tuple(usable(item).detach() for item in items), structure


def _cure_of_x(x: Any) -> str:
    if hasattr(x, "__array__"):
        return "Call torch.from_numpy(x)."
    if isinstance(x, list) and all(isinstance(item, Tensor) for item in x):
        return "Several inputs go in a tuple, examples of one input in torch.stack(x)."
    return f"For pictures, paths and the like pass modality=, one of: {', '.join(catalog().names('modality'))}."


def _check_input(label: str, item: Any, first: Any) -> None:
    if not isinstance(item, Tensor):
        raise ArgumentError(label, f"{type(item).__name__} came", "a tensor")
    if item.ndim == 0 or len(item) == 0:
        came = "a tensor without dimensions came" if item.ndim == 0 else "an empty batch came"
        raise ArgumentError(
            label, came, "at least one example in the first dimension", "For one example call .unsqueeze(0)."
        )
    if item.device != first.device:
        raise ArgumentError(label, f"a tensor on {item.device} came", f"one on {first.device}, as the first input")
    if len(item) != len(first):
        raise ArgumentError(
            label,
            f"{len(item)} examples came",
            f"{len(first)}, as in the first input",
            "The first dimension is the batch.",
        )


def check_requirements(inputs: Tensors, structure: Structure, specs: Iterable[Spec], argument: str) -> None:
    """Hold what is disturbed or explained to what some methods need.

    Raises:
        ArgumentError: it has too few dimensions or examples, or no numbers that can be differentiated.
    """
    for label, item in zip(structure.labels(argument), inputs, strict=True):
        for spec in specs:
            _check_requirement(label, item, spec)


def _check_requirement(label: str, item: Tensor, spec: Spec) -> None:
    if item.ndim < spec.requires.min_dims:
        raise ArgumentError(
            label,
            f"shape {tuple(item.shape)} came",
            f"at least {spec.requires.min_dims} dimensions, the batch first: {spec.name} needs them",
        )
    if len(item) < spec.requires.min_batch:
        expected = f"at least {spec.requires.min_batch} examples: {spec.name} compares them"
        raise ArgumentError(label, f"{len(item)} came", expected)
    if spec.requires.input_dtype == "floating" and not item.is_floating_point():
        raise ArgumentError(
            label, f"{item.dtype} came", f"a floating tensor: {spec.name} differentiates with respect to it",
            "For token ids pass the embeddings (inputs_embeds=...) as x; pass what is not to be explained through "
            "additional_forward_args or forward_kwargs.",
        )  # fmt: skip


def _check_numbers(inputs: Tensors, structure: Structure) -> None:
    for label, item in zip(structure.labels("x"), inputs, strict=True):
        if item.is_meta:
            raise ArgumentError(label, "a meta tensor came", "a tensor that holds numbers")
        if item.is_floating_point() and not all_finite(item):
            raise ArgumentError(label, f"{int((~item.isfinite()).sum())} NaN or inf came", "finite numbers")


def _check_model(model: Model, device: torch.device) -> None:
    parameters = model.parameters
    if any(parameter.is_inference() for parameter in parameters):
        raise UnsupportedModel(
            "model: its parameters were made in inference mode, so autograd cannot use them. Build the model outside "
            "torch.inference_mode(), or explain copy.deepcopy(model)."
        )
    devices = {parameter.device for parameter in parameters}
    if len(devices) == 1 and device not in devices:  # a model spread over devices moves its inputs itself
        raise ArgumentError(
            "x", f"a tensor on {device} came", f"one on {devices.pop()}, where the model is", "Move one of them."
        )


def _batch_size(given: Any) -> int | Literal["auto"]:
    if isinstance(given, str) and given == "auto":
        return "auto"
    if isinstance(given, numbers.Integral) and not isinstance(given, bool) and int(given) >= 1:
        return int(given)
    raise ArgumentError("batch_size", f"{given!r} came", '"auto" or the number of rows of one pass, at least 1')


def _tolerance(given: Any, call: Call, parameters: Mapping[str, Any]) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, numbers.Real) or not 0 < float(given) < math.inf:
        raise ArgumentError("tolerance", f"{given!r} came", "a positive number, in units of the target")
    composition = call.spec.composition
    if composition is None or not (composition.refinement or composition.until):
        able = [
            name
            for (_, name), spec in catalog().specs.items()
            if spec.composition and (spec.composition.refinement or spec.composition.until)
        ]
        raise ArgumentError(
            "tolerance",
            f"{given} came",
            f"nothing: {call.spec.name} cannot refine",
            f"Methods that can: {', '.join(able)}.",
        )
    idle = sorted(parameters.keys() & _idle(composition, call.spec))
    if idle:
        raise ArgumentError(
            idle[0], f"{parameters[idle[0]]!r} came beside tolerance={given}", "one of the two",
            "tolerance= asks for accuracy instead of a fixed rule.",
        )  # fmt: skip
    return float(given)


def _idle(composition: Composition, spec: Spec) -> set[str]:
    """Return the parameters that a tolerance takes the place of."""
    names = {name: name for name in spec.parameters}
    if composition.refinement is not None:
        return spec.parameters.keys() - set(composition.refinement.resolve(names).values())
    before = composition.perturbation.resolve(names)
    return {before[argument] for argument in composition.until if before.get(argument) in names}


def _seed(given: Any) -> int:
    if isinstance(given, numbers.Integral) and not isinstance(given, bool):
        return int(given)
    raise ArgumentError("seed", f"{given!r} came", "a whole number, or None for a fresh one")


def _flag(given: Any, argument: str) -> bool:
    if isinstance(given, bool):
        return given
    raise ArgumentError(argument, f"{given!r} came", "True or False")
