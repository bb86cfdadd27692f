"""Which plugins are installed: entry points to TOML to specs, without importing torch or any plugin."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import attrs

from axplain.errors import SpecError, UnknownMethod, log, near_names
from axplain.reader import read_spec
from axplain.specs import AT_LAYER, EXPLAINS, GIVES, GROUPS, FromParameter, Spec, Use

_KEYS = {"rules": "evaluation"}  # kind -> the key of the composition that names it, where the two differ
SPEC_GROUP = "axplain.specs"


@attrs.frozen
class Broken:
    """A plugin that cannot be used, and why; listed by `axplain doctor`, harmless to all others."""

    origin: str
    distribution: str
    faults: tuple[str, ...]
    kind: str = ""
    name: str = ""

    @property
    def reason(self) -> str:
        """Every fault with its place, in one line."""
        return str(SpecError(self.origin, self.faults))


@attrs.frozen
class Catalog:
    """Every declared plugin: the specs that hold, by kind and name, and those that do not, with the reason."""

    specs: Mapping[tuple[str, str], Spec]
    broken: tuple[Broken, ...]
    modules: Mapping[tuple[str, str], EntryPoint]

    def names(self, *kinds: str) -> list[str]:
        """Return the sorted names of those kinds."""
        return sorted(name for kind, name in self.specs if kind in kinds)

    def find(self, name: str, *kinds: str) -> Spec:
        """Return the spec of that name or alias.

        Raises:
            SpecError: the plugin is declared but broken, or two distributions declare it; the message says why.
            UnknownMethod: nobody declares it; the message gives near names and the installed ones.
        """
        for kind in kinds:
            if (kind, name) in self.specs:
                return self.specs[kind, name]
        for spec in self.specs.values():
            if spec.kind in kinds and name in spec.aliases:
                return spec
        for broken in self.broken:
            if broken.name == name and broken.kind in (*kinds, ""):
                raise SpecError(broken.origin, broken.faults)
        note = f" {len(self.broken)} more failed to load: run `axplain doctor`." if self.broken else ""
        raise UnknownMethod(name, " or ".join(map(noun, kinds)), self.names(*kinds), note)


def noun(kind: str) -> str:
    """Return how a sentence names a kind."""
    return {"noise": "noise mode", "rules": "rule set"}.get(kind, kind)


@functools.cache
def catalog() -> Catalog:
    """Return the catalog of this environment; read once per process."""
    specs, broken = _read_all()
    modules = {(kind, point.name): point for kind, group in GROUPS.items() for point in entry_points(group=group)}
    accepted, refused = _settle(specs, modules)
    for fault in (*broken, *refused):
        log.warning("left out %s of %s: %s", fault.origin, fault.distribution, fault.reason)
    return Catalog(accepted, (*broken, *refused), modules)


def methods() -> list[str]:
    """Return the names that `explain(method=...)` takes, sorted."""
    return catalog().names(*EXPLAINS)


def describe(name: str, kind: str | None = None) -> Spec:
    """Return the spec of a method or noise mode, or of a plugin of another kind such as "baseline".

    Raises:
        UnknownMethod: nobody declares it.
    """
    return catalog().find(name, *([kind] if kind else EXPLAINS))


def _read_all() -> tuple[list[Spec], list[Broken]]:
    specs: list[Spec] = []
    broken: list[Broken] = []
    for point in entry_points(group=SPEC_GROUP):
        distribution = point.dist.name if point.dist else point.name
        try:
            for path, origin in _files(point):
                try:
                    specs.append(read_spec(path, origin, distribution))
                except SpecError as error:
                    broken.append(Broken(origin, distribution, error.found, name=path.stem))
        except (ImportError, OSError, ValueError) as error:
            broken.append(Broken(point.value, distribution, (f"cannot be located: {error}",)))
    return specs, broken


def _files(point: EntryPoint) -> Iterator[tuple[Path, str]]:
    """Yield the TOML files of `package` or `package:folder` and how to name them; the package is not imported."""
    package, _, folder = point.value.partition(":")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"no package {package!r}")
    root = Path(next(iter(found.submodule_search_locations))) / folder
    for path in sorted(root.rglob("*.toml")):
        yield path, f"{package}/{path.relative_to(root).as_posix()}"


def _settle(
    specs: list[Spec], modules: Mapping[tuple[str, str], EntryPoint]
) -> tuple[dict[tuple[str, str], Spec], list[Broken]]:
    """Keep the specs whose names are their own and whose components exist and fit each other."""
    claims: dict[tuple[str, str], list[Spec]] = {}
    for spec in specs:
        namespace = "method" if spec.kind == "noise" else spec.kind  # explain(method=) reaches both
        for name in (spec.name, *spec.aliases):
            claims.setdefault((namespace, name), []).append(spec)
    reasons: dict[int, str] = {}
    for (_, name), rivals in claims.items():
        if len(rivals) > 1:
            owners = " and ".join(f"{rival.distribution} ({rival.origin})" for rival in rivals)
            reasons |= {id(rival): f"two plugins are called {name!r}: {owners}; uninstall one" for rival in rivals}
    alone = {(spec.kind, spec.name): spec for spec in specs if id(spec) not in reasons}
    for spec in alone.values():
        fault = composition_fault(spec, alone) or _module_fault(spec, modules)
        if fault:
            reasons[id(spec)] = fault
    refused = [Broken(s.origin, s.distribution, (reasons[id(s)],), s.kind, s.name) for s in specs if id(s) in reasons]
    return {key: spec for key, spec in alone.items() if id(spec) not in reasons}, refused


def composition_fault(spec: Spec, specs: Mapping[tuple[str, str], Spec]) -> str:
    """Say what is wrong between the components that a spec composes; empty where they fit."""
    if spec.baselines is not None and ("baseline", spec.baselines.name) not in specs:
        return f"there is no baseline {spec.baselines.name!r} @ baselines"
    composition = spec.composition
    if composition is None:
        return ""
    uses: dict[str, Use | None] = {
        "perturbation": composition.perturbation,
        "aggregation": composition.aggregation,
        "refinement": composition.refinement,
        "rules": composition.evaluation.rules,
    }
    found: dict[str, Spec] = {}
    for kind, use in uses.items():
        if use is None or isinstance(use.name, FromParameter):
            continue
        if (kind, use.name) not in specs:
            near = near_names(use.name, {name for known, name in specs if known == kind})
            hint = f", did you mean {near}?" if near else ""
            return f"there is no {noun(kind)} {use.name!r}{hint} @ composition.{_KEYS.get(kind, kind)}"
        found[kind] = specs[kind, use.name]
        extra = use.arguments.keys() - found[kind].parameters.keys()
        if extra:
            return f"{kind} {use.name!r} has no parameter {sorted(extra)[0]!r} @ composition.{_KEYS.get(kind, kind)}"
    rules = found.get("rules")
    if rules is not None and rules.references != "none" and composition.baseline == "none":
        return f"rules {rules.name!r} compare with references: say which @ composition.baseline"
    perturbation, aggregation = found.get("perturbation"), found.get("aggregation")
    if perturbation is None or aggregation is None:
        return ""
    if "references" in perturbation.provides and composition.baseline == "none":
        return f"perturbation {perturbation.name!r} starts from references: say which @ composition.baseline"
    given = GIVES[composition.evaluation.kind] | (AT_LAYER if spec.perturb_at == "input" else frozenset())
    missing = aggregation.needs - perturbation.provides - given
    multiply = composition.aggregation.arguments.get("multiply_by")
    along = multiply == "tangent" or composition.evaluation.kind == "jvp"
    if along and "tangent" not in perturbation.provides:
        missing |= {"tangent"}
    if missing:
        return (
            f"aggregation {aggregation.name!r} needs {', '.join(sorted(missing))}, which neither perturbation "
            f"{perturbation.name!r} provides nor evaluation {composition.evaluation.kind!r} gives @ composition"
        )
    if perturbation.determinism.kind == "seeded" and spec.determinism.kind == "deterministic":
        return f"perturbation {perturbation.name!r} is seeded, so the method is not deterministic @ determinism.kind"
    return ""


def _module_fault(spec: Spec, modules: Mapping[tuple[str, str], EntryPoint]) -> str:
    has_module = (spec.kind, spec.name) in modules
    if spec.composition is not None and has_module:
        return "a composition has no code: delete its composition or its entry point"
    if spec.composition is None and not has_module:
        return (
            f"no entry point {spec.name!r} in group {GROUPS[spec.kind]!r}: add the line to pyproject.toml, "
            "then install again (pip install -e .)"
        )
    return ""
