"""What each class of captum 0.9.0 is held to: the claims of our method of its name, or those that theory has for it.

captum itself claims none of these. A claim that no implementation of the method could keep is not made.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from axplain.conformance.claims import Pair, pairs_of
from axplain.discovery import describe
from axplain.formula import Formula
from axplain.specs import Claim, CostFormula, Determinism, Parameter, Rate, Requires, Spec

DISTRIBUTION: Final = "captum"
_NO_COST: Final = Claim("cost", "not_claimed", reason="captum documents no number of rows")
_STEPS: Final = {"n_steps": 64}
_COALITIONS: Final = {"n_samples": 300}
#: a weight of a million in place of the constraint, and what 300 random coalitions leave of a regression's noise
_REGRESSION: Final = Formula("1e-3 * (1 + abs_out)")


def _ours(name: str, method: str, *, without: tuple[str, ...] = (), claims: tuple[Claim, ...] | None = None) -> Spec:
    """Return our spec under captum's name: its claims, or others, less the parameters that captum does not have."""
    spec = describe(method)
    kept = {key: value for key, value in spec.parameters.items() if key not in without}
    return attrs.evolve(
        spec,
        name=f"captum.{name}",
        distribution=DISTRIBUTION,
        parameters=kept,
        axioms=(*(spec.axioms if claims is None else claims), _NO_COST),
    )


def _own(name: str, family: str, claims: tuple[Claim, ...], **more: Any) -> Spec:
    """Return a spec for a class whose method we do not have under that name."""
    return Spec(
        spec=1,
        kind="method",
        name=f"captum.{name}",
        title=name,
        version="0.9.0",
        summary=f"captum.attr.{name}",
        family=family,
        distribution=DISTRIBUTION,
        requires=Requires(input_dtype="floating"),
        axioms=(*claims, _NO_COST),
        **more,
    )


def _exact(*axioms: str) -> tuple[Claim, ...]:
    return tuple(Claim(axiom, "exact") for axiom in axioms)


def _not(reason: str, *axioms: str) -> tuple[Claim, ...]:
    return tuple(Claim(axiom, "not_claimed", reason=reason) for axiom in axioms)


def _near(axiom: str, tolerance: Formula, **more: Any) -> Claim:
    return Claim(axiom, "approximate", tolerance=tolerance, **more)


_SEEDED: Final = Determinism("seeded")
_OVERFLOW: Final = "the check asks beside the largest numbers of float64, and a regression on their outputs overflows"


def _samples(default: int) -> dict[str, Any]:
    """Return what a method of that many samples declares; the cost only names what a case may lower."""
    rows = Formula("batch * n_samples")
    return {
        "parameters": {"n_samples": Parameter("int", "Samples.", default, min=1)},
        "determinism": _SEEDED,
        "cost": CostFormula(rows, Formula("0 * batch"), "upper"),
    }


#: of every removal class, by name or through those below
_UNASKED: Final = _not("the adapter passes no feature masks", "feature_masks")
_GAMES: Final = _exact("sensitivity", "dummy", "linearity", "implementation_invariance", "linear_exactness")
_MASKS: Final = _exact("affine_scale", "shift", "null_at_baseline", "conservative_masks", "positivity")
_ADDITIVE: Final = Claim("shapley", "for_class", model_class="additive")
_ABLATION: Final = (
    Claim("completeness", "for_class", model_class="additive"),
    _ADDITIVE,
    *_exact("symmetry"),
    *_GAMES,
    *_MASKS,
    *_UNASKED,
)
_SHAPLEY: Final = (*_exact("completeness", "shapley", "symmetry", "strong_monotonicity"), *_GAMES, *_MASKS, *_UNASKED)
_SAMPLED: Final = (
    *_exact("completeness"),
    *_not("an order of its own for each feature is symmetric in law only", "symmetry"),
    _ADDITIVE,
    *_GAMES,
    *_MASKS,
    *_UNASKED,
    Claim("monte_carlo_rate", "statistical"),
)
_KERNEL: Final = (
    *_UNASKED,
    _near("completeness", _REGRESSION, n_at_least=_COALITIONS),
    _near("linear_exactness", _REGRESSION, n_at_least=_COALITIONS),
    Claim("shapley", "for_class", tolerance=_REGRESSION, model_class="additive", n_at_least=_COALITIONS),
    *_exact("linearity", "implementation_invariance", "affine_scale", "shift", "null_at_baseline"),
    *_not(_OVERFLOW, "conservative_masks"),
    *_not("random coalitions are a sample of the game", "sensitivity", "dummy", "symmetry"),
)
_LIME: Final = (
    *_UNASKED,
    *_exact("implementation_invariance", "affine_scale", "null_at_baseline"),
    *_not(_OVERFLOW, "conservative_masks"),
    *_not("its default is a lasso, which shrinks and drops features", "completeness", "sensitivity", "linearity"),
    *_not("its default is a lasso, which shrinks and drops features", "linear_exactness", "symmetry"),
    *_not("random coalitions are a sample of the game", "dummy"),
)
_PERMUTATION: Final = (
    *_UNASKED,
    *_exact("dummy", "linearity", "implementation_invariance", "shift", "affine_scale", "conservative_masks"),
    *_not("it compares rows of a batch, and has no baseline", "completeness", "sensitivity", "linear_exactness"),
    *_not("it compares rows of a batch, and has no baseline", "null_at_baseline", "batch_consistency"),
    *_not("each feature has a permutation of its own", "symmetry"),
)
_HOOKED: Final = (
    *_exact("dummy", "symmetry", "shift"),
    Claim("implementation_invariance", "for_class", model_class="respelled"),
    *_not("it is a gradient with some of its signs cut off", "completeness", "sensitivity", "linearity"),
    *_not("it is not multiplied by a displacement", "linear_exactness", "null_at_baseline"),
)
#: the least that a stabiliser of 1e-9 changes in a small network
_RELEVANCE: Final = Formula("1e-6 * (1 + abs_out)")
_LRP: Final = (
    Claim("completeness", "for_class", tolerance=_RELEVANCE, model_class="positively_homogeneous"),
    Claim("homogeneity", "for_class", tolerance=_RELEVANCE, model_class="positively_homogeneous"),
    *_exact("dummy", "symmetry"),
    Claim("implementation_invariance", "for_class", tolerance=_RELEVANCE, model_class="respelled"),
    *_not("relevance depends on the layers", "linearity"),
    *_not("it has no baseline", "sensitivity", "linear_exactness", "null_at_baseline"),
)
_TRAPEZOID: Final = (
    Claim("completeness", "converges", rate=Rate("n_steps", 2), when="smooth"),
    Claim("completeness", "converges", rate=Rate("n_steps", 1), when="piecewise_linear"),
    # a node of it is the baseline, where a ReLU of a twin may have another slope
    Claim("implementation_invariance", "exact", when="smooth"),
    *_exact("linear_exactness", "linearity", "dummy", "symmetry", "affine_scale", "shift", "null_at_baseline"),
    *_exact("positivity"),
    _near("sensitivity", Formula("0.05 * (1 + abs_out)"), n_at_least=_STEPS),
    Claim("shapley", "for_class", model_class="linear"),
)
_LAYER: Final = (
    _near("layer_conservation", Formula("100 * eps * (1 + abs_out)"), when="smooth", n_at_least=_STEPS),
    Claim("layer_conservation", "converges", rate=Rate("n_steps", 1), when="piecewise_linear"),
)
_NOISE: Final = _exact("dummy", "implementation_invariance")


def _noise(mode: str) -> Spec:
    """Return a mode of the tunnel around Saliency, so nothing is inherited: what Saliency keeps is claimed outright."""
    claims = tuple(
        claim
        for claim in describe(mode).axioms
        if claim.kind != "inherited" and claim.id not in ("completeness", "monte_carlo_rate")
    )
    rate = () if mode == "vargrad" else (Claim("monte_carlo_rate", "statistical"),)
    gradients = _not("magnitudes of gradients do not sum to a difference of outputs", "completeness")
    return _ours(f"NoiseTunnel ({mode})", mode, without=("unit",), claims=(*claims, *rate, *gradients, *_NOISE))


def _specs() -> list[Spec]:
    reference: dict[str, Any] = {"references": "reference"}
    steps = ("max_steps",)
    return [
        _ours("Saliency", "saliency"),
        _ours("InputXGradient", "input_x_gradient"),
        _ours("IntegratedGradients", "integrated_gradients", without=steps),
        _ours("IntegratedGradients (riemann_trapezoid)", "integrated_gradients", without=steps, claims=_TRAPEZOID),
        attrs.evolve(
            _ours("LayerConductance", "integrated_gradients", without=steps, claims=_LAYER), family="conductance"
        ),
        _ours("GradientShap", "gradient_shap"),
        _ours("DeepLift", "deeplift", without=("rules", "unknown")),
        _ours("DeepLiftShap", "deeplift_shap", without=("rules", "unknown")),
        *map(_noise, ("smoothgrad", "smoothgrad_sq", "vargrad")),
        _own("GuidedBackprop", "propagation", _HOOKED),
        _own("Deconvolution", "propagation", _HOOKED),
        _own("LRP", "propagation", _LRP),
        _own("FeatureAblation", "removal", _ABLATION, **reference),
        _own("Occlusion", "removal", _ABLATION, **reference),
        _own("FeaturePermutation", "removal", _PERMUTATION, determinism=_SEEDED),
        _own("ShapleyValues", "removal", _SHAPLEY, **reference),
        _own("ShapleyValueSampling", "removal", _SAMPLED, **reference, **_samples(25)),
        _own("KernelShap", "removal", _KERNEL, **reference, **_samples(25)),
        _own("Lime", "removal", _LIME, **reference, **_samples(25)),
    ]


SPECS: Final[Mapping[str, Spec]] = {spec.name.removeprefix("captum."): spec for spec in _specs()}


@attrs.frozen
class Fault:
    """One cause of failures. `severity`: numbers, digits or contract."""

    says: str
    severity: str


@attrs.frozen
class Finding:
    """One pair that fails: why, in its own words where the fault's are too general, and by how much."""

    fault: str
    says: str = ""
    gap: str = ""


@attrs.frozen
class Findings:
    """What the kit finds: `failures` by class and pair, and pairs it has nothing to say about, with the reason."""

    version: str
    faults: Mapping[str, Fault]
    failures: Mapping[tuple[str, str], Finding]
    silent: Mapping[str, Mapping[str, str]]


def _findings() -> Findings:
    data = tomllib.loads((Path(__file__).parent / "captum_failures.toml").read_text("utf-8"))
    failures = {
        (name, key): Finding(**finding) for name, pairs in data["failures"].items() for key, finding in pairs.items()
    }
    faults = {name: Fault(**fault) for name, fault in data["faults"].items()}
    return Findings(data["captum"], faults, failures, data["silent"])


FINDINGS: Final = _findings()


def key_of(pair: Pair) -> str:
    """Return what a pair is called in the table of failures: without its class."""
    return str(pair).removeprefix(f"{pair.method}-")


def asked_of(name: str) -> list[Pair]:
    """Return the pairs that are asked of a class; of layers only what is claimed, as the contracts are on inputs."""
    spec = SPECS[name]
    pairs = [pair for pair in pairs_of(spec) if pair.runs or pair.fault]
    return [pair for pair in pairs if pair.claim] if spec.family == "conductance" else pairs
