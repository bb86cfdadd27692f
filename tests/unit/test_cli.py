"""The command line lists, shows and examines plugins, and says all that a spec says; a failure is one line."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import axplain
from axplain.cli import main
from axplain.cli.page import cost_text, document, spec_page
from axplain.discovery import catalog
from axplain.reader import structure_spec
from axplain.specs import Spec


def run(*arguments: str, status: int = 0, width: int | None = None) -> Result:
    result = CliRunner().invoke(main, arguments, env={"COLUMNS": str(width) if width else None})
    assert result.exit_code == status, result.output
    return result


# --- list


def test_list_shows_name_family_summary_and_cost_of_every_method_and_noise_mode() -> None:
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "FAMILY", "COST", "SUMMARY"]
    assert sorted(line.split()[0] for line in lines[1:]) == axplain.methods()
    line = next(line for line in lines if line.startswith("integrated_gradients "))
    spec = axplain.describe("integrated_gradients")
    assert line.split()[1] == spec.family
    assert "batch * n_steps rows each way" in line
    assert line.endswith(spec.summary)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_list_keeps_within_the_terminal_and_loses_no_word(width: int) -> None:
    text = run("list", width=width).stdout
    assert max(map(len, text.splitlines())) <= width
    words = " ".join(text.split())
    assert all(name in words for name in axplain.methods())
    # of the columns on the left only the first line of a plugin has something, so its summary reads on line by line
    start = next(i for i, line in enumerate(text.splitlines()) if line.startswith("gradient_shap"))
    column = text.splitlines()[start].index("Mean of")
    told = " ".join(line[column:].strip() for line in text.splitlines()[start:])
    assert axplain.describe("gradient_shap").summary in told


@pytest.mark.parametrize("kind", ["baseline", "noise", "perturbation"])
def test_list_of_a_kind_lists_that_kind_only(kind: str) -> None:
    lines = run("list", "--kind", kind).stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == axplain.catalog().names(kind)


def test_list_of_all_kinds_says_of_which_kind_each_plugin_is() -> None:
    lines = run("list", "--kind", "all").stdout.splitlines()[1:]
    found = {tuple(line.split()[1::-1]) for line in lines}
    assert found == set(axplain.catalog().specs)


def test_list_of_a_family_lists_that_family_only() -> None:
    found = json.loads(run("list", "--family", "path", "--json").stdout)
    expected = [name for name in axplain.methods() if axplain.describe(name).family == "path"]
    assert sorted(entry["name"] for entry in found) == expected
    assert "integrated_gradients" in expected


def test_list_of_an_unknown_family_says_which_there_are() -> None:
    error = run("list", "--family", "paths", status=2).stderr
    assert "'paths'" in error
    assert "gradient, layer, noise, path" in error


def test_list_as_json_gives_what_the_specs_say() -> None:
    found = {entry["name"]: entry for entry in json.loads(run("list", "--json").stdout)}
    assert sorted(found) == axplain.methods()
    spec = axplain.describe("smoothgrad")
    assert found["smoothgrad"]["kind"] == "noise"
    assert found["smoothgrad"]["summary"] == spec.summary
    assert found["smoothgrad"]["distribution"] == "axplain"
    assert found["smoothgrad"]["cost"]["forward_rows"] == "n_samples * inner.forward_rows"


# --- show


def spec_files() -> list[Spec]:
    return [spec for spec in axplain.catalog().specs.values() if spec.distribution == "axplain"]


def leaves(value: Any) -> Iterator[str]:
    """Yield every string and number of a TOML document, but those that the page says in a place of their own."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in ("spec", "id", "kind"):
                yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif not isinstance(value, bool):
        yield f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("spec", spec_files(), ids=lambda spec: f"{spec.kind}-{spec.name}")
def test_show_says_everything_that_the_spec_file_says(spec: Spec) -> None:
    package, _, path = spec.origin.partition("/")
    root = importlib.util.find_spec(package)
    assert root is not None and root.submodule_search_locations
    written = tomllib.loads((Path(root.submodule_search_locations[0]) / path).read_text("utf-8"))
    page = " ".join(run("show", spec.name, "--kind", spec.kind, width=100).stdout.split())
    said = [" ".join(leaf.split()) for leaf in leaves(written)]
    assert [leaf for leaf in said if leaf not in page and leaf.replace("_", " ") not in page] == []
    assert all(name in page for name in written.get("parameters", {}))
    assert all(claim["id"] in page for claim in written.get("axioms", []))
    assert written.get("determinism", {}).get("kind", "deterministic") in page


@pytest.mark.parametrize("spec", spec_files(), ids=lambda spec: f"{spec.kind}-{spec.name}")
def test_show_as_json_can_be_read_as_the_same_spec_again(spec: Spec) -> None:
    found = json.loads(run("show", spec.name, "--kind", spec.kind, "--json").stdout)
    assert found.pop("distribution") == "axplain"
    assert structure_spec({k: v for k, v in found.items() if k != "origin"}, "again.toml") == spec


#: a method in code that says what the built-in ones leave out
RARE: dict[str, Any] = {
    "spec": 1,
    "kind": "method",
    "name": "rare",
    "title": "Rare",
    "version": "3.1",
    "summary": "A method with everything.",
    "aliases": ["seldom"],
    "signed": False,
    "seats": ["input", "layer"],
    "references": "reference_set",
    "parameters": {
        "low": {"type": "float", "doc": "Lower.", "max": "high", "unit": "volts"},
        "high": {"type": "float", "doc": "Upper.", "optional": True, "max": 2.5},
    },
    "determinism": {"kind": "nondeterministic", "reason": "it asks a coin"},
    "cost": {"forward_rows": "batch * 3", "backward_rows": "0", "bound": "upper"},
    "axioms": [
        {"id": "symmetry", "kind": "for_class", "class": "additive"},
        {"id": "dummy", "kind": "not_claimed", "reason": "it counts them"},
    ],
}


def test_show_has_words_for_what_only_others_declare() -> None:
    spec = structure_spec(RARE, "rare.toml")
    words = " ".join(" ".join(spec_page(spec, 200)).split())
    for said in (
        "low float; required; at most high; in volts Lower.",
        "high float; optional; at most 2.5 Upper.",
        "baselines a set of references",
        "unsigned, at the input or a layer",
        "nondeterministic, even for an equal seed: it asks a coin",
        "forward at most batch * 3 rows",
        "symmetry for class, for additive models",
        "dummy not claimed: it counts them",
        "also called seldom",
        "from a file of yours: rare.toml, version 3.1",
    ):
        assert said in words, f"{said!r} is not in {words}"
    assert spec.cost is not None
    assert cost_text(spec.cost) == "at most batch * 3 rows forward"
    assert structure_spec({k: v for k, v in document(spec).items() if k not in ("origin", "distribution")}, "") == spec


def test_show_gives_type_default_bounds_and_choices_of_a_parameter() -> None:
    text = " ".join(run("show", "integrated_gradients", width=200).stdout.split())
    assert "n_steps int; default 50; at least 1 Quadrature nodes." in text
    assert "quadrature choice of gauss_legendre, left, right, midpoint, trapezoid; default gauss_legendre" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("integrated_gradients", "baselines one reference per example"),
        ("gradient_shap", "baselines a set of references"),
        ("saliency", "baselines none"),
        ("smoothgrad", "baselines what the method inner takes"),
    ],
)
def test_show_says_which_baselines_a_method_takes(name: str, expected: str) -> None:
    assert expected in " ".join(run("show", name, width=200).stdout.split())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_show_keeps_within_the_terminal(width: int) -> None:
    for name in axplain.methods():
        lines = run("show", name, width=width).stdout.splitlines()
        # a single word, such as a dotted name, and the line of the shell to copy may be longer than the room
        assert [line for line in lines if len(line) > width and " " in line.strip()] == []


def test_show_finds_the_only_plugin_of_a_name_whatever_its_kind() -> None:
    assert "(baseline zeros)" in run("show", "zeros").stdout


def test_show_asks_which_of_two_plugins_of_one_name_is_meant() -> None:
    error = run("show", "mean", status=2).stderr
    assert "aggregation, baseline" in error and "--kind" in error
    assert "(baseline mean)" in run("show", "mean", "--kind", "baseline").stdout


def test_show_of_an_unknown_name_gives_near_names() -> None:
    result = run("show", "integrated_gradient", status=1)
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: 'integrated_gradient'") and "Did you mean 'integrated_gradients'" in line


def test_headings_are_bold_in_a_terminal_that_wants_colour() -> None:
    plain = CliRunner().invoke(main, ["show", "saliency"], color=True, env={"NO_COLOR": "1"}).stdout
    bold = CliRunner().invoke(main, ["show", "saliency"], color=True, env={"NO_COLOR": None}).stdout
    assert "\x1b" not in plain
    assert "\x1b[1mParameters\x1b[0m" in bold


# --- doctor, and what others install


@pytest.fixture
def install(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Install a distribution `axplain-guest` of given entry points and files, in a folder of its own."""
    site = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(str(site))

    def write(entry_points: str, files: dict[str, str]) -> None:
        info = site / "axplain_guest-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: axplain-guest\nVersion: 2.5\n", "utf-8")
        (info / "entry_points.txt").write_text(entry_points, "utf-8")
        for name, content in files.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(content, "utf-8")
        importlib.invalidate_caches()
        catalog.cache_clear()

    yield write
    for name in [name for name in sys.modules if name.startswith("guest_")]:
        del sys.modules[name]
    catalog.cache_clear()


BASELINE = 'spec = 1\nkind = "baseline"\nname = "{name}"\ntitle = "Ones"\nversion = "1"\nsummary = "One everywhere."\n'
METHOD = """spec = 1
kind = "method"
name = "guest_gradient"
title = "Guest gradient"
version = "1"
family = "gradient"
summary = "The gradient, as a guest has it."
[composition]
perturbation = "identity"
evaluation = "gradient"
aggregation = "weighted_sum"
[cost]
forward_rows = "batch"
backward_rows = "batch"
"""


def test_the_doctor_finds_nothing_wrong_here_and_says_what_is_installed() -> None:
    out = run("doctor").stdout
    assert "Nothing is broken" in out
    words = " ".join(out.split())
    assert f"python {sys.version.split()[0]}" in words
    assert f"torch {importlib.metadata.version('torch')}" in words
    assert f"axplain {importlib.metadata.version('axplain')}" in words
    methods = [spec for spec in axplain.catalog().specs.values() if spec.kind == "method"]
    assert f"method {len(methods)}, noise {len(axplain.catalog().names('noise'))}" in words
    for extra in ("demo", "image", "plot"):
        assert any(line.split()[:1] == [extra] for line in out.splitlines())


def test_the_doctor_loads_every_plugin_when_asked() -> None:
    assert f"{len(axplain.catalog().modules)} plugins load" in run("doctor", "--load").stdout


def test_a_missing_extra_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "pillow":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr("axplain.cli.commands.version", version)
    lines = run("doctor").stdout.splitlines()
    assert any("without pillow: pip install 'axplain[image]'" in line for line in lines)


def test_a_missing_requirement_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr("axplain.cli.commands.version", version)
    out = run("doctor", status=1).stdout
    assert "torch  is needed and not installed" in out and "1 broken" in out


def test_another_distribution_is_named_where_its_plugins_are(install: Any) -> None:
    install("[axplain.specs]\nguest = guest_specs\n", {"guest_specs/guest.toml": METHOD})
    line = next(line for line in run("list").stdout.splitlines() if line.startswith("guest_gradient"))
    assert line.endswith("[axplain-guest]")
    assert not any("[axplain]" in line for line in run("list").stdout.splitlines())
    assert "axplain-guest: guest_specs/guest.toml" in run("show", "guest_gradient").stdout
    assert "axplain-guest 2.5 method 1" in " ".join(run("doctor").stdout.split())


def test_a_broken_spec_is_listed_with_its_reason_and_harms_nobody(install: Any) -> None:
    broken = METHOD.replace('"identity"', '"nothing"')
    install(
        "[axplain.specs]\nguest = guest_specs\n", {"guest_specs/guest.toml": broken, "guest_specs/bad.toml": "spec = ["}
    )
    result = run("list")
    assert sorted(line.split()[0] for line in result.stdout.splitlines()[1:]) == axplain.methods()
    assert result.stderr == "note: 2 plugins are left out: `axplain doctor` says why.\n"
    words = " ".join(run("doctor", status=1).stdout.split())
    assert "there is no perturbation 'nothing' @ guest_specs/guest.toml.composition.perturbation" in words
    assert "guest_specs/bad.toml" in words and "not TOML" in words
    assert "2 broken." in words
    assert "there is no perturbation 'nothing'" in run("show", "guest_gradient", status=1).stderr


def test_a_module_that_does_not_import_is_found_only_by_loading(install: Any) -> None:
    install(
        "[axplain.specs]\nguest = guest_specs\n[axplain.baselines]\nguest_ones = guest_code\n",
        {"guest_specs/guest_ones.toml": BASELINE.format(name="guest_ones"), "guest_code.py": "import no_such_module\n"},
    )
    assert "Nothing is broken" in run("doctor").stdout
    assert "guest_code" not in sys.modules
    words = " ".join(run("doctor", "--load", status=1).stdout.split())
    assert "axplain-guest" in words and "No module named 'no_such_module'" in words
    assert "1 broken." in words


def test_an_entry_point_without_a_spec_is_broken(install: Any) -> None:
    install("[axplain.baselines]\nguest_ones = guest_code\n", {"guest_code.py": ""})
    words = " ".join(run("doctor", status=1).stdout.split())
    assert "axplain.baselines: entry point 'guest_ones' has no spec of that name" in words


def test_the_version_is_that_of_the_distribution() -> None:
    assert importlib.metadata.version("axplain") in run("--version").stdout
