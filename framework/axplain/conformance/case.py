"""One case of one axiom: a method, a model, an input; what checks ask of them, and what they return."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import attrs
import torch
from torch import Tensor, nn

from axplain.conformance.networks import KINDS, Kind, Recipe
from axplain.conformance.subject import Subject
from axplain.cost import Cost
from axplain.errors import PluginError
from axplain.face import estimate
from axplain.problem import References
from axplain.randomness import Key
from axplain.references import Distribution, distribution, resolve_references
from axplain.seats.neurons import Neuron, neuron
from axplain.seats.sites import Seat
from axplain.specs import Claim
from axplain.structure import Structure, Tensors, map_tensors, structure_of, total

Form = Literal["zeros", "number", "one", "each", "set"]
#: an argument of `Case.explain` that was not given
KEEP: Final = object()
SEED: Final = 5


class Violation(AssertionError):  # noqa: N818 - the name is the finding
    """An axiom or contract does not hold in a case; the message says by how much, and of what."""


class NotApplicable(Exception):  # noqa: N818 - no fault of anybody
    """A check has nothing to say of this method or model; the message says why."""


@attrs.frozen(eq=False)
class Gap:
    """How far an answer is from what an axiom demands.

    `error`: (n,) absolute deviations. `scale`: (n,) the size of what is compared. `tolerance`: (n,) where the check
    itself knows it; otherwise the claim says what is allowed.
    """

    error: Tensor = attrs.field(converter=torch.detach)
    scale: Tensor = attrs.field(converter=torch.detach)
    about: str
    tolerance: Tensor | None = None

    @classmethod
    def between(cls, got: Tensors | Tensor, expected: Tensors | Tensor, about: str, within: float | None = None) -> Gap:
        """Compare element by element; `within`: allowed, as a fraction of the largest expected magnitude."""
        left, right = _flat(got), _flat(expected)
        if left.shape != right.shape:
            raise Violation(f"{about}: the shape {tuple(left.shape)} came, {tuple(right.shape)} was expected")
        scale = right.abs().amax().expand_as(right) if right.numel() else right
        tolerance = None if within is None else within * scale
        return cls((left - right).abs(), scale, about, tolerance)

    @property
    def worst(self) -> float:
        """The largest deviation."""
        return float(self.error.max()) if self.error.numel() else 0.0


def _flat(tensors: Tensors | Tensor) -> Tensor:
    parts = (tensors,) if isinstance(tensors, Tensor) else tensors
    return torch.cat([part.detach().double().reshape(-1) for part in parts])


@attrs.frozen
class Axiom:
    """What an axiom's plugin makes: a check, and the cases it is asked of.

    `check`: returns a `Gap`, or None; raises `Violation`, or `NotApplicable`. `models`, `baselines`, `batch`: what its
    cases are drawn from. `wraps`: the check explains functions made from the model, one example at a time. `own`:
    whether a user's own model can be asked.
    """

    check: Callable[[Case], Gap | None]
    models: tuple[Kind, ...] = KINDS
    baselines: tuple[Form, ...] = ("zeros", "number", "one", "each", "set")
    batch: tuple[int, int] = (1, 4)
    features: tuple[int, int] = (2, 6)
    wraps: bool = False
    own: bool = True

    def __attrs_post_init__(self) -> None:
        """Refuse words that name no kind of model.

        Raises:
            PluginError: one does.
        """
        unknown = sorted(set(self.models) - set(KINDS))
        if unknown:
            raise PluginError(f"an axiom asks for models={unknown[0]!r}; there are {', '.join(KINDS)}")


@attrs.frozen
class Question:
    """One drawn case as a recipe: its repr is the counter-example, and `case` builds it."""

    model: Recipe
    batch: int = 1
    baselines: Form = "zeros"
    target: int = 0
    seed: int = 0

    def case(self, subject: Subject | str, claim: Claim | None = None, **parameters: Any) -> Case:
        """Return the case for a method, or for its name and parameters; the same question gives the same numbers."""
        subject = Subject.of(subject, **parameters) if isinstance(subject, str) else subject
        generator = torch.Generator("cpu").manual_seed(1000 + self.seed)
        x = tuple(normal(generator, self.batch, *shape) for shape in self.model.shapes)
        network = self.model.build()
        return Case(
            subject=subject,
            claim=claim,
            model=network,
            network=network,
            x=x if len(x) > 1 else x[0],
            target=self.target % self.model.outputs,
            baselines=self._baselines(generator, subject) if subject.baseline != "none" else None,
            recipe=self.model,
            seed=self.seed,
        )

    def _baselines(self, generator: torch.Generator, subject: Subject) -> Any:
        rows = rows_of(self.baselines, self.batch)
        if rows is None:
            return 0.3 if self.baselines == "number" else 0.0
        drawn = tuple(0.5 * normal(generator, rows, *shape) for shape in self.model.shapes)
        packed = drawn if len(drawn) > 1 else drawn[0]
        return distribution(packed) if self.baselines == "set" else packed


def rows_of(form: Form, batch: int) -> int | None:
    """Return how many rows baselines of a form have; None where they are one number."""
    return {"one": 1, "each": batch, "set": 3}.get(form)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Return standard normal numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@attrs.frozen(eq=False, repr=False)
class Case:
    """A method asked about a model at an input: everything a check may use.

    `extra`: further arguments of `explain`. `network`: the module that the model is or is a function of. `recipe`: what
    it was made from; None for a user's own.
    """

    subject: Subject
    claim: Claim | None
    model: Callable[..., Any]
    x: Any
    target: Any = 0
    baselines: Any = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    recipe: Recipe | None = None
    seed: int = 0
    network: nn.Module | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in self.inputs)
        return f"Case({self.subject}, {self.recipe or type(self.model).__name__}, x={shapes})"

    @property
    def structure(self) -> Structure:
        """How the inputs are put together."""
        structure = structure_of(self.x)
        if structure is None:
            raise NotApplicable("x is neither a tensor, a tuple of tensors nor a dict of them")
        return structure

    @property
    def inputs(self) -> Tensors:
        """The inputs as a flat tuple."""
        return self.structure.unpack(self.x)

    @property
    def numeric(self) -> Tensors:
        """The inputs, for checks that calculate with them."""
        if not all(tensor.is_floating_point() for tensor in self.inputs):
            raise NotApplicable("x holds whole numbers, such as token ids, which cannot be scaled, moved or added")
        return self.inputs

    @property
    def module(self) -> nn.Module:
        """The model, for checks that ask more of it than to be called."""
        if not isinstance(self.model, nn.Module):
            raise NotApplicable("the model is no torch.nn.Module")
        return self.model

    @property
    def made(self) -> nn.Module:
        """The network that the kit made, or the user's own, also where the case asks about a function of it."""
        return self.network if self.network is not None else self.module

    def with_parameters(self, **parameters: Any) -> Case:
        """Return the same case with other parameters of the method."""
        return attrs.evolve(self, subject=self.subject.evolve(**parameters))

    def explain(self, model: Any = None, x: Any = KEEP, **changed: Any) -> Any:
        """Explain, by default what the case is about; unchecked, with one seed."""
        return self.heard(model, x, **changed)[0]

    def heard(self, model: Any = None, x: Any = KEEP, **changed: Any) -> tuple[Any, list[str]]:
        """Explain, and return the answer with the warnings that were given."""
        arguments = self._arguments(changed)
        lacking = self.subject.lacks & changed.keys()
        if lacking:
            raise NotApplicable(f"it takes no {', '.join(sorted(lacking))}")
        arguments = {name: value for name, value in arguments.items() if name not in self.subject.lacks}
        model, x = self.model if model is None else model, self.x if x is KEEP else x
        if self.network is not None and (self.subject.needs_module or "layer" in arguments):
            model = model if isinstance(model, nn.Module) else Holding(model, self.network)
        if self.recipe is not None and self.subject.needs_layer:
            arguments = self._at_layer(model) | arguments
        elif self.recipe is None and self.network is not None and isinstance(model, nn.Module):
            mine = {"layer", "target", *self.subject.neurons}
            arguments = {n: self._placed(value, model) if n in mine else value for n, value in arguments.items()}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            answer = self.subject.explain(model, x, self.subject.spec, **arguments)
        return answer, [str(warning.message) for warning in caught]

    def _arguments(self, changed: Mapping[str, Any]) -> dict[str, Any]:
        arguments = {"verify": False, "seed": SEED, "target": self.target, "baselines": self.baselines, **self.extra}
        arguments |= {**self.subject.parameters, **changed}
        if self.subject.baseline == "none":
            del arguments["baselines"]
        if not self.subject.call.innermost.spec.requires.target and "target" not in changed:
            del arguments["target"]
        return arguments

    def _at_layer(self, model: nn.Module) -> dict[str, Any]:
        """Return the layer of the case, or a neuron of it, in the model itself, a part of another one, or a copy."""
        assert self.recipe is not None, "asked for cases that the kit made"
        own = self.made.get_submodule(self.recipe.layer)
        layer = own if any(part is own for part in model.modules()) else self.recipe.layer
        if not self.subject.neurons:
            return {"layer": layer}
        rows = [torch.zeros(1, *shape, dtype=torch.float64) for shape in self.recipe.shapes]
        unit = (0,) * (self.held_at(*rows).ndim - 1)
        return dict.fromkeys(self.subject.neurons, neuron(layer, unit))

    def _placed(self, value: Any, model: nn.Module) -> Any:
        """Return the user's layer as it is where a model has it as a part, and by its name in a copy."""
        if isinstance(value, Neuron | Seat):
            return attrs.evolve(value, layer=self._placed(value.layer, model))
        if isinstance(value, list | tuple):
            return type(value)(self._placed(each, model) for each in value)
        if not isinstance(value, str | nn.Module):
            return value
        layers = dict(self.made.named_modules())
        own = layers.get(value) if isinstance(value, str) else value
        name = next((name for name, part in layers.items() if part is own), "")
        held = own is not None and any(part is own for part in model.modules())
        return own if held else name or value

    def held_at(self, *inputs: Tensor) -> Tensor:
        """Return what the layer of the case holds at some rows."""
        assert self.recipe is not None, "asked for cases that the kit made"
        found: list[Any] = []
        model = copy.deepcopy(self.made)
        layer = model.get_submodule(self.recipe.layer)
        with layer.register_forward_hook(lambda _, __, out: found.append(out)), torch.no_grad():
            model.double()(*inputs)
        held: Tensor = found[0][0] if isinstance(found[0], tuple) else found[0]
        return held

    def price(self, **changed: Any) -> Cost:
        """Return what the spec says that the same call costs; its arithmetic is the kernel's, for any subject."""
        arguments = self._arguments(changed)
        if self.recipe is not None and self.subject.needs_layer:
            arguments = self._at_layer(self.module) | arguments
        return estimate(self.model, self.x, self.subject.spec, **arguments)

    def attributions(self, model: Any = None, x: Any = KEEP, **more: Any) -> Tensors:
        """Return the attributions as a flat tuple, (batch, ...) each."""
        x = self.x if x is KEEP else x
        answer = self.explain(model, x, **more).attributions
        structure = structure_of(answer)
        assert structure is not None
        return map_tensors(torch.detach, structure.unpack(answer))

    @property
    def absent(self) -> Tensors:
        """The references of the only example: (k, ...) for each input."""
        return tuple(torch.cat(rows) for rows in zip(*self.references(), strict=True))

    def attributions_of(
        self, function: Callable[..., Tensor], inputs: Tensors | None = None, absent: Tensors | None = None, **more: Any
    ) -> Tensors:
        """Return the attributions of a scalar function of the inputs, one example's, against its own references."""
        inputs = self.inputs if inputs is None else inputs
        absent = self.absent if absent is None else absent
        is_set = len(absent[0]) > 1 or self.subject.baseline == "reference_set"
        plain = attrs.evolve(
            self, x=inputs, extra=self._layer_alone, target=None, baselines=distribution(absent) if is_set else absent
        )
        return plain.attributions(function, **more)

    @property
    def _layer_alone(self) -> dict[str, Any]:
        return {name: value for name, value in self.extra.items() if name == "layer"}

    def output(self, *inputs: Tensor) -> Any:
        """Return what the model says at some rows, with the further arguments of the case."""
        arguments = self.extra.get("additional_forward_args", ())
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        named = dict(self.extra.get("forward_kwargs", {}))
        if self.structure.kind == "dict":
            return self.model(*arguments, **dict(zip(self.structure.names, inputs, strict=True)), **named)
        return self.model(*inputs, *arguments, **named)

    def value(self, *inputs: Tensor) -> Tensor:
        """Return the target's value at some rows, (rows,), by the model alone."""
        return _selected(self.output(*inputs), self.target)

    def example(self, i: int) -> Case:
        """Return the case about one of its examples; everything that has a row for each example follows."""
        batch = len(self.inputs[0])
        x = self.structure.pack([tensor[i : i + 1] for tensor in self.inputs])
        is_set = self.subject.baseline == "reference_set" or isinstance(self.baselines, Distribution)
        return attrs.evolve(
            self,
            x=x,
            target=_row(self.target, i, batch),
            baselines=self.baselines if is_set else _row(self.baselines, i, batch),
            extra={name: _row(value, i, batch) for name, value in self.extra.items()} | self._layer_alone,
            seed=self.seed + i,
        )

    def references(self) -> list[Tensors]:
        """Return the references of every example, one (batch, ...) tuple for each; zeros where none are taken."""
        kind = "reference" if self.subject.baseline == "none" else self.subject.baseline
        table = resolve_references(
            0.0 if self.baselines is None else self.baselines,
            kind,  # type: ignore[arg-type]
            self.x,
            self.inputs,
            self.structure,
            Key(SEED).at("baselines"),
            self.subject.spec.name,
        )
        assert isinstance(table, References)
        return [tuple(rows[table.index[:, k]] for rows in table.rows) for k in range(table.count)]

    def difference(self) -> tuple[Tensor, Tensor]:
        """Return F(x) - mean F(x') and the larger of the two magnitudes: (batch,) each."""
        with torch.no_grad():
            clean = self.value(*self.inputs).double()
            absent = torch.stack([self.value(*rows).double() for rows in self.references()]).mean(0)
        return clean - absent, torch.maximum(clean.abs(), absent.abs())

    def estimates(self, runs: int, **changed: Any) -> Tensor:
        """Return the answers to the same question with independent seeds: (runs, elements), in float64."""
        answers = [self.attributions(seed=100 + run, **changed) for run in range(runs)]
        return torch.stack([_flat(answer) for answer in answers])

    def summed(self, attributions: Tensors) -> Tensor:
        """Return the sum of each example's attributions: (batch,), in float64."""
        return total(attributions)

    def numbers(self, *shape: int) -> Tensor:
        """Return numbers that belong to the case, standard normal, the same each time."""
        generator = torch.Generator("cpu").manual_seed(2000 + self.seed)
        like = self.inputs[0]
        return normal(generator, *shape).to(like.device, like.dtype if like.is_floating_point() else torch.float32)

    def whole(self, count: int) -> int:
        """Return a whole number below `count` that belongs to the case."""
        return self.seed % count


class Holding(nn.Module):
    """A function of a model, as a module that has the model as a part."""

    def __init__(self, function: Callable[..., Any], model: nn.Module) -> None:
        super().__init__()
        self.function, self.model = function, model

    def forward(self, *x: Any, **named: Any) -> Any:
        """Call the function."""
        return self.function(*x, **named)


def _row(value: Any, i: int, batch: int) -> Any:
    """Return the i-th row of what has one for each example, also inside tuples and dicts; anything else as it is."""
    match value:
        case Tensor() if value.ndim and len(value) == batch:
            return value[i : i + 1]
        case list() if len(value) == batch:
            return value[i : i + 1]
        case tuple():
            return tuple(_row(item, i, batch) for item in value)
        case dict():
            return {name: _row(item, i, batch) for name, item in value.items()}
    return value


def _selected(output: Any, target: Any) -> Tensor:
    """Return one scalar for each row of an output."""
    if callable(target) and not isinstance(target, Tensor):
        return target(output)  # type: ignore[no-any-return]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise NotApplicable("the output is no tensor: give a callable target")
    if target is None:
        if output[0].numel() > 1:
            raise NotApplicable("the predicted class changes with the input: give a target")
        return output.reshape(len(output))
    if isinstance(target, int):
        return output[:, target]
    if isinstance(target, tuple):
        return output[(slice(None), *target)]
    if isinstance(target, list | Tensor) and len(target) in (1, len(output)):
        index = torch.as_tensor(target, device=output.device).reshape(-1).expand(len(output))
        return output[torch.arange(len(output), device=output.device), index]
    raise NotApplicable(f"the kit reads targets that are an index, a tuple or a callable, not {type(target).__name__}")
