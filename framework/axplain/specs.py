"""What a spec can say: frozen classes without IO. `axplain.reader` knows TOML, `axplain.discovery` where files lie."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import attrs

from axplain.formula import Formula

API_VERSION: Final = 1

#: kind -> entry-point group of the modules that implement plugins of that kind
GROUPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "method": "axplain.methods",
        "noise": "axplain.noise",
        "modality": "axplain.modalities",
        "baseline": "axplain.baselines",
        "perturbation": "axplain.perturbations",
        "aggregation": "axplain.aggregations",
        "refinement": "axplain.refinements",
        "rules": "axplain.rules",
        "axiom": "axplain.axioms",
    }
)

#: kinds that `explain` runs
EXPLAINS: Final = ("method", "noise")

#: what an evaluation answers at the points; `terms` are the per-row tensors that aggregations sum
GIVES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "value": frozenset({"value"}),
        "gradient": frozenset({"value", "gradient", "terms"}),
        "activation": frozenset({"activation", "terms"}),
        "jvp": frozenset({"value", "activation", "terms"}),
        "through": frozenset({"value", "terms"}),
        "method": frozenset({"attribution", "terms"}),
    }
)
PROVIDES: Final = frozenset({"weight", "mask", "soft", "coefficients", "tangent", "references", "model"})

#: what a layer gives beside gradients, where a method perturbs the input and reads there
AT_LAYER: Final = frozenset({"activation"})

ParameterType = Literal[
    "int", "float", "bool", "choice", "text", "shape", "method", "tensor", "callable", "neuron", "table", "values"
]
BaselineKind = Literal["none", "reference", "reference_set"]
Post = Literal["abs"]
Seat = Literal["input", "layer"]
ClaimKind = Literal["exact", "approximate", "converges", "for_class", "statistical", "inherited", "not_claimed"]
Condition = Literal["smooth", "piecewise_linear", "stdev_zero"]
ModelClass = Literal["additive", "linear", "multilinear", "positively_homogeneous", "respelled"]


@attrs.frozen
class FromParameter:
    """`{ parameter = "n_steps" }`: the value of the spec's own parameter; a bare string is a literal."""

    parameter: str


@attrs.frozen
class Parameter:
    """One parameter of a plugin; the only place where its type, default, bounds and documentation are written."""

    type: ParameterType
    doc: str
    default: Any = None
    min: float | Formula | None = None
    max: float | Formula | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    per_input: bool = False
    unit: str = ""

    @property
    def required(self) -> bool:
        """Whether a call must give a value."""
        return self.default is None and not self.optional

    @property
    def by_features(self) -> bool:
        """Whether the default is arithmetic over the number of features, which is known once the input is."""
        return isinstance(self.default, str) and self.type in ("int", "float")


@attrs.frozen
class Use:
    """A component by name, with arguments for its parameters."""

    name: str | FromParameter
    arguments: Mapping[str, Any] = attrs.field(factory=dict)

    def resolve(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments with every `{ parameter = ... }` replaced by its value."""
        return {name: _resolve(value, settings) for name, value in self.arguments.items()}


@attrs.frozen
class Evaluation:
    """What is asked at the points: values or gradients of the model, or the attributions of another method.

    At a layer of which the points are inputs, also what it holds, or its gradient times its rate along the tangents;
    `through`: the gradient of what passes a neuron. `rules`: the rule set that the gradient is taken under.
    """

    kind: Literal["value", "gradient", "activation", "jvp", "through", "method"]
    method: Use | None = None
    rules: Use | None = None
    through: FromParameter | None = None


@attrs.frozen
class Composition:
    """A method as a pipeline of named components: perturbation, evaluation, aggregation.

    With `tolerance=` a `refinement` answers instead; or the perturbation gets the arguments `until` in the place of its
    own, and is drawn from until every standard error is within the tolerance.
    """

    perturbation: Use
    evaluation: Evaluation
    aggregation: Use
    baseline: BaselineKind = "none"
    post: Mapping[Post, FromParameter | bool] = attrs.field(factory=dict)
    refinement: Use | None = None
    until: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Requires:
    """What must hold before the first forward pass.

    `min_dims`: least dimensions of each input, batch included. `min_batch`: least examples. `min_outputs`: least
    outputs of each, of a method that compares them. `features`: what the method switches on and off: nothing, every
    element by itself, or groups of them, which `feature_mask` gives. `operations`: whether the method explains models
    of any operations, or refuses some that it does not define. `target`: whether it explains one. `layer`: what a layer
    has to hold; a method that explains layers alone and needs axes of space takes the last convolution where the call
    names none. `module`: whether the model has to be a `torch.nn.Module`, because its parameters are exchanged; no
    other call may then use it at the same time.
    """

    input_dtype: Literal["any", "floating"] = "any"
    min_dims: int = 1
    min_batch: int = 1
    min_outputs: int = 1
    features: Literal["none", "elements", "grouped"] = "none"
    operations: Literal["any", "some"] = "any"
    target: bool = True
    layer: Literal["any", "spatial"] = "any"
    module: bool = False


@attrs.frozen
class Determinism:
    """Whether equal calls give equal numbers: always, for an equal seed, or not (with the reason)."""

    kind: Literal["deterministic", "seeded", "nondeterministic"] = "deterministic"
    reason: str = ""


@attrs.frozen
class CostFormula:
    """Rows of one call, over parameters, `batch`, `references` and `inner.*`; the check's rows are counted apart.

    `refined_rows` bounds the forward and the backward rows, each, of a call with `tolerance=`.
    """

    forward_rows: Formula
    backward_rows: Formula
    bound: Literal["exact", "upper"] = "exact"
    refined_rows: Formula | None = None


@attrs.frozen
class Rate:
    """How a gap closes as a parameter grows: like `parameter` to the power of minus `order`."""

    parameter: str
    order: float


@attrs.frozen
class Claim:
    """One axiom that the spec claims, or openly does not; read by `verify=` and by the conformance kit.

    `tolerance`: over `eps`, of the dtype, and `abs_out`, the size of what is compared. `reason`: why a claim that is
    expected of the family, or a universal contract, is not made. `limit`: what a noise mode is without noise.
    """

    id: str
    kind: ClaimKind
    tolerance: Formula | None = None
    when: Condition | None = None
    model_class: ModelClass | None = None
    n_at_least: Mapping[str, int] = attrs.field(factory=dict)
    rate: Rate | None = None
    limit: Literal["inner", "square", "zero"] | None = None
    reason: str = ""
    warn_above: float | None = None
    cure: str = ""


@attrs.frozen
class AxiomFacts:
    """What the spec of an axiom says: the kinds in which it can be claimed, and the families that have to say so.

    `universal`: a contract that every method keeps without a claim. `asserted`: whether a gap fails the kit, or is
    reported only.
    """

    kinds: tuple[str, ...] = ("exact",)
    universal: bool = False
    asserted: bool = True


@attrs.frozen
class Spec:
    """The declaration of one plugin.

    A method either has a `composition` or is code, found by the entry point of its name; `references` says what such
    code, or a rule set, takes as baselines; `baselines` is what stands for absence where a call does not say.
    `perturb_at`: where the model is looked at for a method that attributes to a layer: at points of its values, or
    of the input. `mirrors`: whether attributions have the shape of the seat; "input": of the input, although the method
    has a layer; else they are (batch, ...), a number for each place or token. `known_failures` says of axioms that the
    kit finds broken why they are. `provides` belongs to perturbations, `needs` to aggregations, `axiom` to axioms.
    """

    spec: int
    kind: str
    name: str
    title: str
    version: str
    summary: str
    formula: str = ""
    family: str = ""
    citation: tuple[str, ...] = ()
    seats: tuple[Seat, ...] | Literal["inner"] = ("input",)
    perturb_at: Literal["seat", "input"] = "seat"
    mirrors: bool | Literal["input"] = True
    aliases: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    signed: bool = True
    composition: Composition | None = None
    parameters: Mapping[str, Parameter] = attrs.field(factory=dict)
    requires: Requires = attrs.field(factory=Requires)
    determinism: Determinism = attrs.field(factory=Determinism)
    cost: CostFormula | None = None
    axioms: tuple[Claim, ...] = ()
    known_failures: Mapping[str, str] = attrs.field(factory=dict)
    axiom: AxiomFacts | None = None
    baselines: Use | None = None
    provides: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    references: BaselineKind = "none"
    origin: str = attrs.field(default="", eq=False)
    distribution: str = attrs.field(default="", eq=False)

    def claim(self, axiom: str) -> Claim | None:
        """Return the first claim of that axiom that is made for models of every class; None where there is none."""
        silent = ("not_claimed", "for_class")
        return next((claim for claim in self.axioms if claim.id == axiom and claim.kind not in silent), None)

    @property
    def baseline(self) -> BaselineKind:
        """What the method takes as baselines: none, one reference per example, or a set of references."""
        return self.composition.baseline if self.composition else self.references


def _resolve(value: Any, settings: Mapping[str, Any]) -> Any:
    return settings[value.parameter] if isinstance(value, FromParameter) else value
