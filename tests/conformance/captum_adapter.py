"""captum's classes behind the call of `axplain.explain`, so that the conformance kit can ask them.

captum gets what its documentation asks for: tensors as sets of baselines, modules where hooks are to reach the layers,
a seeded process in place of a seed. What it refuses aloud, as its documentation says it does, is no fault of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import attrs
import captum.attr
import torch
from captum.attr import NoiseTunnel, Saliency
from tests.conformance.captum_claims import SPECS
from torch import Tensor, nn

from axplain.conformance import Case, NotApplicable, Subject
from axplain.conformance.witness import generators_at
from axplain.parameters import Call, settle
from axplain.references import Distribution
from axplain.specs import Spec
from axplain.structure import Tensors, structure_of

#: what captum says of its own mechanics in every call; it would hide what it says of a model in training
_MECHANICS: Final = ("Input Tensor", "Setting ", "You are providing multiple inputs", "Internal batch size")
#: (part of a message, in whatever error): a refusal that the documentation, or the message itself, explains
_REFUSALS: Final = ("used more than once", "has no rule defined", "is not supported")
#: exact Shapley values ask the model for every order of the features
_MOST_FEATURES: Final = 6
_RULES: Final = {
    "gauss_legendre": "gausslegendre",
    "left": "riemann_left",
    "right": "riemann_right",
    "midpoint": "riemann_middle",
    "trapezoid": "riemann_trapezoid",
}


@attrs.frozen(eq=False)
class Peer:
    """One row of the table: a class of captum, and how it is called.

    `make`: from a model. `names`: of parameters, where captum has others. `fixed`: further arguments. `extra`: those
    that follow from the inputs. `rows`: the argument that limits rows in a pass; `each`: it counts for one example.
    `hooked`: it takes modules, not functions.
    """

    spec: Spec
    make: Callable[..., Any]
    names: Mapping[str, str] = attrs.field(factory=dict)
    fixed: Mapping[str, Any] = attrs.field(factory=dict)
    extra: Callable[[Tensors], dict[str, Any]] = lambda inputs: {}
    rows: str = ""
    each: bool = False
    hooked: bool = False
    parameters: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def subject(self) -> Subject:
        """The class as the kit takes it."""
        lacks = {"forward_kwargs"} | (set() if self.rows else {"batch_size"})
        return Subject(self.spec, explain, frozenset(lacks), self.parameters)


@attrs.frozen(eq=False)
class Answer:
    """What the kit reads of an explanation."""

    attributions: Any
    notes: Mapping[str, Any] = attrs.field(factory=dict)


class _Module(nn.Module):
    """A function as the module that hooks ask for, with the modules that it calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(_modules_of(function))
        self.training = any(part.training for part in self.parts)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def _modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that a function of the kit's calls, which its closure knows."""
    found: dict[int, nn.Module] = {}
    todo: list[Any] = [function]
    while todo:
        item = todo.pop()
        if isinstance(item, nn.Module):
            found[id(item)] = item
        elif isinstance(item, Case):
            todo.append(item.model)
        else:
            todo += [cell.cell_contents for cell in getattr(item, "__closure__", None) or ()]
            todo += [owner for owner in (getattr(item, "__self__", None),) if isinstance(owner, Case)]
    return list(found.values())


def explain(
    model: Callable[..., Any],
    x: Any,
    spec: Spec,
    *,
    target: Any = None,
    baselines: Any = None,
    seed: int = 0,
    verify: bool = False,
    additional_forward_args: Any = None,
    batch_size: int | str | None = None,
    layer: str | None = None,
    **parameters: Any,
) -> Answer:
    """Explain as `axplain.explain` does, by the class of captum that a spec stands for; there is nothing to verify."""
    peer = BY_NAME[spec.name]
    structure = structure_of(x)
    assert structure is not None, "the kit asks about tensors and tuples of them"
    inputs = structure.unpack(x)
    values = settle(spec, parameters).values
    named = {
        peer.names.get(name, name): _RULES.get(str(value), value)
        for name, value in values.items()
        if not isinstance(value, Call)  # the method inside is made, not named
    }
    named |= {"target": target, "additional_forward_args": additional_forward_args, **peer.fixed, **peer.extra(inputs)}
    if spec.baseline != "none":
        named["baselines"] = _baselines(baselines, inputs, spec)
    if isinstance(batch_size, int):
        named[peer.rows] = max(1, batch_size // len(inputs[0])) if peer.each else batch_size
    if peer.hooked and not isinstance(model, nn.Module):
        model = _Module(model)
    made = peer.make(model) if layer is None else peer.make(model, dict(model.named_modules())[layer])  # type: ignore[attr-defined]
    with generators_at(seed), _quiet(), _refusing():
        return Answer(made.attribute(x, **named))


def _baselines(given: Any, inputs: Tensors, spec: Spec) -> Any:
    """Return baselines as captum takes them: numbers or tensors, and only tensors for a set."""
    is_set = spec.baseline == "reference_set"
    if isinstance(given, Distribution) and not is_set:
        raise NotApplicable("it takes one baseline for each example")
    rows = given.rows if isinstance(given, Distribution) else given
    items = rows if isinstance(rows, tuple) else (0.0 if rows is None else rows,) * len(inputs)
    if is_set:
        items = tuple(_set_of(item, x) for item, x in zip(items, inputs, strict=True))
    return items if len(items) > 1 else items[0]


def _set_of(item: Any, x: Tensor) -> Tensor:
    """Return a set of two rows at least, which is what DeepLiftShap asks for; a row that is there twice weighs once."""
    rows = item if isinstance(item, Tensor) else torch.full_like(x[:1], item)
    return rows if len(rows) > 1 else rows.repeat(2, *[1] * (rows.ndim - 1))


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for start in _MECHANICS:
            warnings.filterwarnings("ignore", message=start)
        yield


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (AssertionError, RuntimeError, TypeError) as error:
        if any(part in str(error) for part in _REFUSALS):
            raise NotApplicable(f"captum refuses the model: {error}") from error
        raise


def _window(inputs: Tensors) -> dict[str, Any]:
    """Return windows of one element for every input."""
    shapes = tuple((1,) * (x.ndim - 1) for x in inputs)
    return {"sliding_window_shapes": shapes if len(shapes) > 1 else shapes[0]}


def _several_rows(inputs: Tensors) -> dict[str, Any]:
    if len(inputs[0]) < 2:
        raise NotApplicable("it compares the rows of a batch, and skips a batch of one")
    return {}


def _few_features(inputs: Tensors) -> dict[str, Any]:
    features = sum(x[0].numel() for x in inputs)
    if features > _MOST_FEATURES:
        raise NotApplicable(f"{features} features have too many orders for a test")
    return {}


def _tunnel(model: Any) -> Any:
    return NoiseTunnel(Saliency(model))


def _peers() -> Iterator[Peer]:
    steps: dict[str, Any] = {"names": {"quadrature": "method"}, "rows": "internal_batch_size"}
    some: dict[str, Any] = {"rows": "perturbations_per_eval", "each": True}
    many: dict[str, Any] = {**some, "fixed": {"perturbations_per_eval": 32}}  # for speed alone
    hooked: dict[str, Any] = {"hooked": True}
    table: dict[str, dict[str, Any]] = {
        "Saliency": {"names": {"absolute": "abs"}},
        "IntegratedGradients": steps,
        "IntegratedGradients (riemann_trapezoid)": {**steps, "parameters": {"quadrature": "trapezoid"}},
        "LayerConductance": steps,
        "GradientShap": {"names": {"stdev": "stdevs"}},
        "DeepLift": hooked,
        "DeepLiftShap": hooked,
        "GuidedBackprop": hooked,
        "Deconvolution": hooked,
        "LRP": hooked,
        "FeatureAblation": some,
        "Occlusion": {**some, "extra": _window},
        "FeaturePermutation": {**some, "extra": _several_rows},
        "ShapleyValueSampling": many,
        "ShapleyValues": {**many, "extra": _few_features},
        "KernelShap": many,
        "Lime": many,
    }
    for name, spec in SPECS.items():
        kind, _, variant = name.partition(" ")
        if kind == "NoiseTunnel":
            names = {"n_samples": "nt_samples", "stdev": "stdevs"}
            fixed = {"nt_type": variant.strip("()")}
            yield Peer(spec, _tunnel, names, fixed, rows="nt_samples_batch_size", each=True)
        else:
            yield Peer(spec, partial(_made, kind), **table.get(name, {}))


def _made(kind: str, *args: Any) -> Any:
    return getattr(captum.attr, kind)(*args)


PEERS: Final[Mapping[str, Peer]] = {peer.spec.name: peer for peer in _peers()}
#: the limit without noise is asked of our saliency's name
BY_NAME: Final[Mapping[str, Peer]] = {**PEERS, "saliency": PEERS["captum.Saliency"]}
