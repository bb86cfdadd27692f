"""Distributions of others: a broken one is listed with its reason, and harms nobody; a whole one is as good as ours."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import axplain
from axplain.discovery import Broken, catalog
from axplain.registry import registry

Make = Callable[..., Any]

METHOD = """
spec = 1
kind = "method"
name = "{name}"
title = "A method"
version = "1.0.0"
summary = "The gradient."
{more}
[cost]
forward_rows = "batch"
backward_rows = "batch"
"""
COMPOSITION = """
[composition]
perturbation = "identity"
evaluation = "gradient"
aggregation = "weighted_sum"
"""
CODE = """
import torch
from axplain import hookimpl
from axplain.protocols import Outcome

class Ones:
    def __init__({arguments}):
        pass

    def run(self, problem, engine, settings):
        engine.ask(problem, problem.inputs, problem.everyone(), "gradient")
        return Outcome(tuple(torch.ones_like(x) for x in problem.inputs))

@hookimpl
def {hook}({given}):
    return Ones
"""


def code(arguments: str = "self", hook: str = "axplain_plugin", given: str = "kind, name") -> str:
    return CODE.format(arguments=arguments, hook=hook, given=given)


@attrs.frozen
class Site:
    """A folder of installed distributions, as pip leaves them: packages beside their .dist-info."""

    root: Path

    def install(self, distribution: str, specs: dict[str, str], modules: dict[str, str] | None = None) -> None:
        """Put a distribution there: specs by name, code by the name of the method that it implements."""
        package = distribution.replace("-", "_")
        folder, info = self.root / package, self.root / f"{package}-1.0.dist-info"
        folder.mkdir()
        info.mkdir()
        (folder / "__init__.py").write_text("raise AssertionError('a package of specs is not imported')\n")
        for name, text in specs.items():
            (folder / f"{name}.toml").write_text(text)
        points = ["[axplain.specs]", f"{distribution} = {package}", "[axplain.methods]"]
        for name, text in (modules or {}).items():
            (self.root / f"{package}_{name}.py").write_text(text)
            points.append(f"{name} = {package}_{name}")
        (info / "entry_points.txt").write_text("\n".join(points))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (catalog, registry):
        cached.cache_clear()
    yield Site(tmp_path)
    monkeypatch.undo()
    for cached in (catalog, registry):
        cached.cache_clear()


def broken(name: str) -> Broken:
    found = [fault for fault in catalog().broken if fault.name == name]
    assert len(found) == 1, catalog().broken
    return found[0]


def check_harmless(network: Make, draw: Make) -> None:
    ours = {"saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "smoothgrad", "vargrad"}
    assert ours <= set(axplain.methods())
    assert axplain.explain(network(), draw(5, 4), "integrated_gradients", target=1).attributions.any()


def test_a_composition_of_another_distribution_is_a_method(site: Site, network: Make, draw: Make) -> None:
    site.install("axplain-theirs", {"theirs": METHOD.format(name="theirs", more=COMPOSITION)})
    assert "theirs" in axplain.methods() and axplain.describe("theirs").distribution == "axplain-theirs"
    model, x = network(), draw(5, 4)
    answer = axplain.explain(model, x, "theirs", target=1)
    expected = axplain.explain(model, x, "saliency", target=1, absolute=False)
    assert torch.equal(answer.attributions, expected.attributions)
    assert answer.provenance["distribution"] == "axplain-theirs"
    assert answer.provenance["distribution_version"] == "1.0"
    lifted = axplain.explain(model, x, "theirs", target=1, noise={"mode": "smoothgrad", "stdev": 0.0, "n_samples": 2})
    assert torch.equal(lifted.attributions, expected.attributions)


def test_code_of_another_distribution_is_a_method_and_is_imported_on_use(site: Site, network: Make, draw: Make) -> None:
    site.install("axplain-coded", {"coded": METHOD.format(name="coded", more="")}, {"coded": code()})
    assert "coded" in axplain.methods() and "axplain_coded_coded" not in sys.modules
    answer = axplain.explain(network(), draw(5, 4), "coded", target=1)
    assert answer.attributions.tolist() == [[1.0] * 4] * 5 and "axplain_coded_coded" in sys.modules
    assert answer.cost.forward_rows == answer.cost.backward_rows == 5


def test_parameters_of_code_are_settled_and_handed_to_it(site: Site, network: Make, draw: Make) -> None:
    """A method that is code gets its parameters the way every other plugin does, or through its settings."""
    more = '[parameters.scale]\ntype = "float"\ndefault = 2.0\ndoc = "What to give."\n'
    text = code().replace("torch.ones_like(x)", "torch.full_like(x, settings.values['scale'])")
    site.install("axplain-scaled", {"scaled": METHOD.format(name="scaled", more=more)}, {"scaled": text})
    model, x = network(), draw(2, 4)
    assert axplain.explain(model, x, "scaled", target=1).attributions.unique().tolist() == [2.0]
    assert axplain.explain(model, x, "scaled", target=1, scale=3).attributions.unique().tolist() == [3.0]
    with pytest.raises(axplain.ArgumentError, match="scale: 'a'"):
        axplain.explain(model, x, "scaled", target=1, scale="a")


SPECS: dict[str, tuple[str, str]] = {
    "not TOML": ("spec = = 1", "not TOML"),
    "another version": (METHOD.format(name="bad", more="").replace("spec = 1", "spec = 2"), "reads spec = 1 @ .*spec"),
    "an unknown key": (METHOD.format(name="bad", more='flavour = "sweet"'), r"flavour"),
    "a missing key": (METHOD.format(name="bad", more="").replace("title", "# title"), "title"),
    "a mistyped key": (METHOD.format(name="bad", more='signed = "no"'), r"expected bool, got 'no' @ .*signed"),
    "an unknown kind": (METHOD.format(name="bad", more="").replace('"method"', '"magic"'), "'magic' is none of"),
    "no cost": (METHOD.format(name="bad", more=COMPOSITION).partition("[cost]")[0], "states its cost"),
    "no arithmetic": (METHOD.format(name="bad", more=COMPOSITION).replace('"batch"', '"import os"', 1), "arithmetic"),
    "an unknown size": (METHOD.format(name="bad", more=COMPOSITION).replace('"batch"', '"batch * n"', 1), "'n' is"),
    "an unknown part": (
        METHOD.format(name="bad", more=COMPOSITION.replace("identity", "nowhere")), "no perturbation 'nowhere'"
    ),
    "parts that do not fit": (
        METHOD.format(name="bad", more=COMPOSITION.replace("identity", "gaussian_noise")),
        "'weighted_sum' needs weight.*'gaussian_noise'",
    ),
    "a part's unknown parameter": (
        METHOD.format(name="bad", more=COMPOSITION.replace('"identity"', '{ use = "identity", n = 3 }')),
        "'identity' has no parameter 'n'",
    ),
    "no entry point": (METHOD.format(name="bad", more=""), "no entry point 'bad' in group 'axplain.methods'"),
    "an argument's name": (
        METHOD.format(name="bad", more=COMPOSITION + '[parameters.target]\ntype = "int"\ndoc = "."\n'),
        "'target' is an argument of explain @ .*parameters.target",
    ),
    "a choice without choices": (
        METHOD.format(name="bad", more=COMPOSITION + '[parameters.mode]\ntype = "choice"\ndoc = "."\n'), "choices"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", SPECS)
def test_a_broken_spec_is_listed_with_its_reason_and_harms_nobody(
    site: Site, network: Make, draw: Make, fault: str
) -> None:
    text, pattern = SPECS[fault]
    good = METHOD.format(name="good", more=COMPOSITION)
    site.install("axplain-broken", {"bad": text, "good": good})
    entry = broken("bad")
    assert entry.distribution == "axplain-broken" and entry.origin.endswith("axplain_broken/bad.toml")
    with pytest.raises(axplain.SpecError, match=f"(?s){pattern}") as caught:
        axplain.explain(network(), draw(5, 4), "bad")
    message = str(caught.value)
    assert re.search(pattern, entry.reason) and "bad.toml" in message and "$" not in message
    assert "bad.toml.axplain_broken" not in message, "the file is named once for each fault"
    assert "bad" not in axplain.methods() and "good" in axplain.methods()
    check_harmless(network, draw)


def test_all_faults_of_a_file_are_told_at_once(site: Site) -> None:
    text = METHOD.format(name="bad", more='flavour = "sweet"\nsigned = "no"').replace("title", "name_of_honour")
    site.install("axplain-broken", {"bad": text})
    reason = broken("bad").reason
    assert all(word in reason for word in ("flavour", "signed", "title", "name_of_honour"))


def test_an_unknown_method_says_that_others_failed_to_load(site: Site, network: Make, draw: Make) -> None:
    site.install("axplain-broken", {"bad": "spec = = 1"})
    with pytest.raises(axplain.UnknownMethod, match="1 more failed to load: run `axplain doctor`"):
        axplain.explain(network(), draw(5, 4), "nobody_knows")


def test_a_distribution_whose_package_is_gone_is_listed(site: Site, network: Make, draw: Make) -> None:
    site.install("axplain-gone", {})
    (site.root / "axplain_gone" / "__init__.py").unlink()
    (site.root / "axplain_gone").rmdir()
    entry = next(fault for fault in catalog().broken if fault.distribution == "axplain-gone")
    assert "axplain_gone" in entry.reason and "cannot be located" in entry.reason
    check_harmless(network, draw)


def test_two_distributions_with_one_name_are_both_named(site: Site, network: Make, draw: Make) -> None:
    for owner in ("axplain-one", "axplain-two"):
        site.install(owner, {"twin": METHOD.format(name="twin", more=COMPOSITION)})
    with pytest.raises(axplain.SpecError, match="two plugins are called 'twin'") as caught:
        axplain.explain(network(), draw(5, 4), "twin")
    assert "axplain-one" in str(caught.value) and "axplain-two" in str(caught.value)
    assert "twin" not in axplain.methods()
    assert {fault.distribution for fault in catalog().broken} == {"axplain-one", "axplain-two"}
    check_harmless(network, draw)


@pytest.mark.parametrize("kind", ["method", "noise"])
def test_a_name_of_ours_that_another_takes_is_told_with_both_owners(
    site: Site, network: Make, draw: Make, kind: str
) -> None:
    """Neither may win silently: a pipeline would change its meaning with what else is installed."""
    taken = {"method": "saliency", "noise": "vargrad"}[kind]
    site.install("axplain-thief", {"stolen": METHOD.format(name=taken, more=COMPOSITION)})
    with pytest.raises(axplain.SpecError, match=f"two plugins are called '{taken}'") as caught:
        axplain.explain(network(), draw(5, 4), taken)
    assert "axplain-thief" in str(caught.value) and "axplain (axplain_specs" in str(caught.value)
    assert axplain.explain(network(), draw(5, 4), "input_x_gradient", target=1).attributions.any()


def test_an_alias_may_not_be_the_name_of_another(site: Site, network: Make, draw: Make) -> None:
    text = METHOD.format(name="own", more='aliases = ["integrated_gradients"]' + COMPOSITION)
    site.install("axplain-thief", {"own": text})
    with pytest.raises(axplain.SpecError, match="two plugins are called 'integrated_gradients'"):
        axplain.explain(network(), draw(5, 4), "own")


def test_an_alias_is_a_name(site: Site, network: Make, draw: Make) -> None:
    site.install("axplain-theirs", {"own": METHOD.format(name="own", more='aliases = ["mine"]' + COMPOSITION)})
    assert axplain.explain(network(), draw(5, 4), "mine", target=1).method == "own"
    assert axplain.describe("mine") is axplain.describe("own")


PLUGINS: dict[str, tuple[str, str]] = {
    "raises on import": ("raise RuntimeError('no licence')", "cannot be imported: RuntimeError: no licence"),
    "imports what is missing": ("import a_library_of_nobody", "cannot be imported: ModuleNotFoundError"),
    "exits on import": ("raise SystemExit(3)", "cannot be imported: SystemExit"),
    "is no Python": ("def def", "cannot be imported: SyntaxError"),
    "has a hook that is unknown": (code(hook="axplain_plugins"), "hook that axplain does not know"),
    "has a hook with other arguments": (code(given="kind, colour"), "hook that axplain does not know"),
    "has no hook": ("x = 1", "has no @hookimpl def axplain_plugin"),
    "takes other parameters": (code(arguments="self, size"), "does not take the spec's parameters"),
    "knows only other names": (
        code().replace("return Ones", "return {'other': Ones}[name]"), "KeyError"
    ),
    "gives nothing": (code().replace("return Ones", "return None"), "None"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLUGINS)
def test_a_broken_plugin_is_told_with_its_owner_and_harms_nobody(
    site: Site, network: Make, draw: Make, unchanged: Make, fault: str
) -> None:
    text, pattern = PLUGINS[fault]
    package = f"axplain-broken-{list(PLUGINS).index(fault)}"  # a module that was imported once would be found again
    site.install(package, {"bad": METHOD.format(name="bad", more="")}, {"bad": text})
    model, x = network(), draw(5, 4)
    for _ in range(2):  # also when it is asked for again
        with unchanged(model, x), pytest.raises(axplain.PluginError, match=pattern) as caught:
            axplain.explain(model, x, "bad", target=1)
        assert package in str(caught.value) and "'bad'" in str(caught.value)
    check_harmless(network, draw)


def test_a_users_own_file_composes_and_may_bring_no_code(tmp_path: Path, network: Make, draw: Make) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(METHOD.format(name="mine", more=COMPOSITION))
    model, x = network(), draw(5, 4)
    expected = axplain.explain(model, x, "saliency", target=1, absolute=False).attributions
    for method in (path, str(path)):
        answer = axplain.explain(model, x, method, target=1)
        assert torch.equal(answer.attributions, expected) and answer.method == "mine"
        inside = axplain.explain(model, x, "smoothgrad", inner=method, stdev=0.0, n_samples=2, target=1)
        assert torch.equal(inside.attributions, expected)
    assert "mine" not in axplain.methods()
    assert axplain.estimate(model, x, path, target=1).forward_rows == 5
    path.write_text(METHOD.format(name="mine", more=""))
    with pytest.raises(axplain.SpecError, match="only an installed distribution may bring code"):
        axplain.explain(model, x, path, target=1)
    path.write_text(METHOD.format(name="mine", more=COMPOSITION.replace("identity", "nowhere")))
    with pytest.raises(axplain.SpecError, match="no perturbation 'nowhere'"):
        axplain.explain(model, x, path, target=1)


def test_a_spec_object_is_a_method(network: Make, draw: Make) -> None:
    model, x = network(), draw(5, 4)
    spec = axplain.describe("integrated_gradients")
    named = axplain.explain(model, x, "integrated_gradients", target=1, n_steps=6)
    given = axplain.explain(model, x, spec, target=1, n_steps=6)
    assert torch.equal(named.attributions, given.attributions) and given.method == "integrated_gradients"
    steps = attrs.evolve(spec.parameters["n_steps"], default=6)
    own = attrs.evolve(spec, name="quick", parameters={**spec.parameters, "n_steps": steps}, distribution="")
    quick = axplain.explain(model, x, own, target=1)
    assert torch.equal(quick.attributions, named.attributions) and quick.method == "quick"
    assert axplain.explain(model, x, "vargrad", inner=own, target=1, n_samples=2).parameters["inner"]["use"] == "quick"


def test_a_spec_object_without_a_distribution_may_bring_no_code(network: Make, draw: Make) -> None:
    spec = attrs.evolve(axplain.describe("saliency"), composition=None, distribution="")
    with pytest.raises(axplain.SpecError, match="only an installed distribution may bring code"):
        axplain.explain(network(), draw(5, 4), spec, target=1)


def test_a_spec_object_of_another_kind_is_refused(network: Make, draw: Make) -> None:
    with pytest.raises(axplain.ArgumentError, match=r"method: .*baseline"):
        axplain.explain(network(), draw(5, 4), axplain.describe("zeros", "baseline"), target=1)


def test_a_spec_object_whose_parameter_is_named_like_an_argument_is_refused(network: Make, draw: Make) -> None:
    spec = axplain.describe("saliency")
    own = attrs.evolve(spec, parameters={**spec.parameters, "seed": spec.parameters["absolute"]}, distribution="")
    with pytest.raises(axplain.SpecError, match="'seed' is an argument of explain"):
        axplain.explain(network(), draw(5, 4), own, target=1)
