"""The doors of the kit: `axplain.check`, `axplain check`, pytest's options and three lines in a test file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tests.conformance.conftest import Shelf
from tests.conformance.test_bad_plugins import GOOD, SPEC
from torch import Tensor, nn

import axplain
from axplain.cli import main
from axplain.conformance import Record, Report, conformance_suite
from axplain.conformance.claims import pairs_of
from axplain.conformance.report import Outcome
from axplain.conformance.skeleton import Skeleton
from axplain.conformance.suite import conclude

LITTLE: dict[str, Any] = {"examples": 2, "contracts": 2}


def command(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == status, result.output
    return result


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


X = torch.linspace(-1, 1, 12).view(3, 4)


# axplain.check


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"methods": "saliencey"}, axplain.UnknownMethod, "saliency"),
        ({"methods": "saliency", "axioms": ["completness"]}, axplain.ArgumentError, "axioms: 'completness' came"),
        ({"methods": "saliency", "model": network()}, axplain.ArgumentError, "x: nothing came"),
        ({"methods": "saliency", "x": X}, axplain.ArgumentError, "model: nothing came"),
        ({"methods": "saliency", "target": 1}, axplain.ArgumentError, "target: 1 came without a model"),
        ({"methods": 7}, axplain.ArgumentError, "7 came"),
        ({"methods": "nowhere.toml"}, axplain.ArgumentError, "nowhere.toml"),
        ({"methods": "saliency", "model": network(), "x": [1.0]}, axplain.ArgumentError, "x: list came"),
        ({"methods": "saliency", "model": network(), "x": X, "targt": 1}, axplain.ArgumentError, "targt"),
        ({"methods": "saliency", "examples": 0}, axplain.ArgumentError, "examples: 0 came"),
        ({"methods": "saliency", "seconds": 0}, axplain.ArgumentError, "seconds: 0 came"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_asked_is_refused_by_name(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        axplain.check(**arguments)


def test_a_misspelt_method_is_told_that_distributions_can_be_asked_for() -> None:
    with pytest.raises(axplain.UnknownMethod) as caught:
        axplain.check("axplane")
    assert any("distribution" in note for note in caught.value.__notes__)


def test_only_the_axioms_that_were_asked_for_are_checked_of_every_method() -> None:
    report = axplain.check(["saliency", "integrated_gradients"], axioms=["mirror", "shift"], **LITTLE)
    asked = [(record.method, record.axiom) for record in report]
    assert sorted(asked) == [(m, a) for m in ("integrated_gradients", "saliency") for a in ("mirror", "shift")]
    assert report.ok and len(report) == 4 and report.counts == {"pass": 4} and repr(report) == "Report(4 pass)"


def test_progress_is_told_every_record_and_how_many_there_will_be() -> None:
    seen: list[tuple[Record, int, int]] = []
    report = axplain.check("saliency", axioms=["mirror", "shift"], progress=lambda *told: seen.append(told), **LITTLE)
    assert [record for record, _, _ in seen] == list(report) and [told[1:] for told in seen] == [(1, 2), (2, 2)]


def test_progress_is_told_of_broken_plugins_too(shelf: Shelf) -> None:
    good = SPEC.format(name="good", axiom="dummy")
    shelf.put("axplain-half", {"odd": "spec = = 1", "good": good}, {"good": GOOD})
    seen: list[tuple[int, int]] = []
    report = axplain.check("axplain-half", progress=lambda _, *count: seen.append(count), **LITTLE)
    assert seen == [(i + 1, len(report)) for i in range(len(report))]


def test_a_report_counts_lists_and_writes_itself_down() -> None:
    found: list[tuple[str, Outcome, str]] = [
        ("a", "pass", ""),
        ("b", "fail", "off by 1"),
        ("c", "known failure", "old"),
        ("d", "pass", ""),
        ("e", "skip", "no claim"),
    ]
    made = [Record("m", "d", name, "exact", outcome, reason) for name, outcome, reason in found]
    report = Report(tuple(made))
    assert not report.ok and report.failures == (made[1],) and list(report) == made
    assert report.counts == {"pass": 2, "known failure": 1, "skip": 1, "fail": 1}
    assert str(report).splitlines() == [
        "fail: d: m, b (exact): off by 1",
        "known failure: d: m, c (exact): old",
        "Report(2 pass, 1 known failure, 1 skip, 1 fail)",
    ]
    assert json.loads(json.dumps(report.to_dict()))["records"][1]["reason"] == "off by 1"
    assert Report(tuple(made[2:])).ok, "known failures and skips are no failures"


def test_a_report_of_real_records_is_json() -> None:
    report = axplain.check("smoothgrad", axioms=["completeness", "smoothing_limit", "cost"], **LITTLE)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert len(plain["records"]) == 3 and plain["counts"] == report.counts


def _seen(**more: Any) -> list[tuple[Any, ...]]:
    report = axplain.check("integrated_gradients", axioms=["completeness", "linearity"], examples=5, **more)
    return [(record.outcome, record.cases, record.gap, record.used) for record in report]


def test_two_runs_draw_the_same_cases_and_random_ones_draw_others() -> None:
    assert _seen() == _seen()
    assert len({tuple(_seen(random=True)) for _ in range(3)}) > 1


def test_a_path_and_a_spec_are_methods(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        SPEC.format(name="mine", axiom="dummy")
        + '[composition]\nperturbation = "identity"\nevaluation = "gradient"\naggregation = "weighted_sum"\n'
    )
    for method in (str(path), axplain.describe("saliency")):
        report = axplain.check(method, axioms=["implementation_invariance"], **LITTLE)
        assert [record.outcome for record in report] == ["pass"]


def test_importing_the_kit_and_its_pytest_plugin_loads_neither_torch_nor_hypothesis(tmp_path: Path) -> None:
    code = (
        "import json, sys, axplain.conformance, axplain.conformance.pytest_plugin, axplain.conformance.suite\n"
        "from axplain.conformance.claims import pairs_of, specs_of\n"
        "assert pairs_of(specs_of(['saliency'])[0][0])\n"
        "print(json.dumps([name for name in ('torch', 'hypothesis', 'numpy') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


# a model of one's own


class Detaching(nn.Module):
    """Half of what flows to the output is hidden from autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(hidden + hidden.detach())  # type: ignore[no-any-return]


def test_claims_hold_on_a_users_own_model_with_their_gaps() -> None:
    report = axplain.check("deeplift", model=network(), x=X, target=1)
    assert report.ok and report.counts["pass"] >= 15
    found = {record.axiom: record for record in report}
    assert 0 < found["completeness"].gap < 1e-5 and 0 < found["completeness"].used < 1
    assert found["completeness"].cases == 1 and found["dummy"].cases == 3, "some checks ask one example at a time"
    assert (
        found["linear_exactness"].outcome == "skip" and "models that the kit makes" in found["linear_exactness"].reason
    )


def test_the_predicted_class_is_the_target_where_none_is_given() -> None:
    report = axplain.check("integrated_gradients", model=network(), x=X, axioms=["completeness"], n_steps=256)
    assert report.ok, report
    assert [record.axiom for record in report] == ["completeness"] * 2


def test_a_model_that_hides_a_part_of_the_flow_breaks_completeness_with_a_message() -> None:
    torch.manual_seed(0)
    report = axplain.check("gradient_shap", model=Detaching(), x=X, target=0, axioms=["completeness", "dummy"])
    broken = {record.axiom: record for record in report}
    assert not report.ok and broken["completeness"].outcome == "fail" and broken["dummy"].outcome == "pass"
    assert "16 times as much of n_samples leaves" in broken["completeness"].reason


def test_a_claim_on_models_of_a_kind_is_reported_of_a_users_own_and_not_failed() -> None:
    """Nobody knows whether the model is smooth; what is found is said, with the gap."""
    torch.manual_seed(0)
    report = axplain.check("integrated_gradients", model=Detaching(), x=X, target=0, axioms=["completeness"])
    [found] = [record for record in report if record.kind == "approximate"]
    assert found.outcome == "reported" and found.gap > 1e-3 and report.ok
    assert "sum of the attributions against F(x) - F(x'): off by" in found.reason
    [whole] = axplain.check("input_x_gradient", model=network(), x=X, target=0, axioms=["completeness"])
    assert whole.outcome == "skip" and "positively homogeneous models only" in whole.reason


def test_every_axiom_is_asked_where_the_predicted_classes_are_the_target() -> None:
    def outcomes(**given: Any) -> dict[str, str]:
        report = axplain.check("integrated_gradients", model=network(), x=X, **given)
        return {record.axiom: record.outcome for record in report if record.kind == "exact"}

    assert outcomes() == outcomes(target=1)


def test_a_users_inputs_baselines_and_arguments_are_what_is_asked_about() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)

        def forward(self, left: Tensor, right: Tensor, factor: Tensor) -> Tensor:
            return self.last(left * right) * factor[:, None]  # type: ignore[no-any-return]

    given: dict[str, Any] = {
        "x": {"left": X, "right": X + 1},
        "baselines": {"left": 0.1 * X, "right": 0.0},
        "target": [0, 1, 1],
    }
    report = axplain.check(
        "integrated_gradients", model=Pair(), axioms=["completeness", "batch_consistency", "mirror", "linearity"],
        forward_kwargs={"factor": torch.tensor([1.0, 2.0, 3.0])}, **given,
    )  # fmt: skip
    assert {record.axiom: record.outcome for record in report if record.kind != "converges"} == {
        "completeness": "pass", "batch_consistency": "pass", "mirror": "pass", "linearity": "pass",
    }, report  # fmt: skip


# the command


def test_the_command_prints_what_fails_and_a_summary() -> None:
    result = command("check", "saliency", "--examples", "2", "--axiom", "shift", "--axiom", "mirror")
    assert "2 pairs of a method and an axiom" in result.output and "2 pass" in result.output
    verbose = command("check", "saliency", "--examples", "2", "--axiom", "shift", "-v").output
    assert "shift" in verbose and " cases, gap at most" in verbose
    plain = json.loads(command("check", "saliency", "--axiom", "mirror", "--json").output)
    assert plain["counts"] == {"pass": 1}


def test_the_command_fails_where_something_fails(shelf: Shelf) -> None:
    shelf.put("axplain-odd", {"odd": "spec = = 1"})
    output = command("check", "axplain-odd", status=1).output
    assert "fail" in output and "not TOML" in output and "odd" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name methods or distributions, or say --all"),
        (("saliency", "--all"), "name methods or distributions, or say --all"),
        (("saliency", "--model", "m:f"), "--model and --input belong together"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(arguments: tuple[str, ...], message: str) -> None:
    assert message in command("check", *arguments, status=2).output


def test_the_matrix_of_all_claims_follows_the_specs() -> None:
    output = command("check", "--all", "--examples", "2", "--axiom", "mirror").output
    lines = output.splitlines()
    header = next(line for line in lines if line.startswith("axiom ")).split()
    assert set(header[1:]) >= {"saliency", "integrated_gradients", "deeplift"}
    shift = next(line for line in lines if line.startswith("shift "))
    column = next(line for line in lines if line.startswith("axiom ")).index("input_x_gradient")
    assert shift[column:].startswith("not claimed")
    for axiom in axplain.catalog().names("axiom"):
        assert any(line.startswith(axiom) for line in lines), axiom


# pytest


def pytest_run(folder: Path, *arguments: str, status: int) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_option_of_pytest_checks_a_method_without_a_test_file(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other():\n    assert False\n")
    output = pytest_run(tmp_path, "--axplain-method", "saliency", "--axplain-examples", "2", "-rs", status=0)
    pairs = pairs_of(axplain.describe("saliency"))
    ran = sum(pair.runs for pair in pairs)
    assert f"{ran} passed, {len(pairs) - ran} skipped" in output
    assert "magnitudes do not add up" in output


def test_pytest_collects_tests_that_are_named_beside_the_option(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")
    output = pytest_run(tmp_path, "test_other.py", "--axplain-method", "saliency", "--co", status=0)
    assert "test_other.py::test_other" in output and "saliency-mirror" in output


def test_a_name_that_nobody_knows_is_a_usage_error(tmp_path: Path) -> None:
    output = pytest_run(tmp_path, "--axplain-method", "saliencey", status=4)
    assert "saliencey" in output and "saliency" in output and "Traceback" not in output


def test_a_broken_distribution_fails_and_its_good_method_passes(shelf: Shelf, tmp_path: Path) -> None:
    good = SPEC.format(name="good", axiom="dummy")
    shelf.put("axplain-half", {"odd": "spec = = 1", "good": good}, {"good": GOOD})
    output = pytest_run(tmp_path, "--axplain-distribution", "axplain-half", "--axplain-examples", "2", status=1)
    assert (
        "1 failed" in output and "not TOML" in output and f"{len(pairs_of(axplain.describe('good')))} passed" in output
    )


def test_three_lines_in_a_test_file_are_a_suite(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from axplain.conformance import conformance_suite\n\nTestMine = conformance_suite('saliency', examples=2)\n"
    )
    output = pytest_run(tmp_path, "-k", "shift or mirror", status=0)
    assert "2 passed" in output


def test_a_suite_has_one_test_for_each_pair() -> None:
    suite = conformance_suite("saliency")
    [mark] = suite.test_conformance.pytestmark  # type: ignore[attr-defined]
    assert list(mark.args[1]) == pairs_of(axplain.describe("saliency"))
    names = list(map(str, mark.args[1]))
    assert len(names) == len(set(names)) and "saliency-mirror" in names
    with pytest.raises(axplain.UnknownMethod):
        conformance_suite("saliencey")


def test_a_record_is_told_to_pytest() -> None:
    pairs = {pair.axiom: pair for pair in pairs_of(axplain.describe("saliency"))}
    conclude(pairs["mirror"], {"contracts": 2})
    with pytest.raises(pytest.skip.Exception, match="magnitudes do not add up"):
        conclude(pairs["linearity"], {})
    with pytest.raises(pytest.fail.Exception, match=r"saliency, mirror .*: it ran for more than 1e-06 s"):
        conclude(pairs["mirror"], {"seconds": 1e-6})


# axplain new-method


@pytest.mark.parametrize("code", [False, True])
def test_a_new_method_is_a_package_with_its_test(tmp_path: Path, code: bool) -> None:
    output = command("new-method", "noisy_paths", "--into", str(tmp_path), *["--code"] * code).output
    root = tmp_path / "axplain-noisy-paths"
    found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    module = ["axplain_noisy_paths/method.py"] if code else []
    package = ["axplain_noisy_paths/__init__.py", *module, "axplain_noisy_paths/noisy_paths.toml"]
    assert found == [*package, "pyproject.toml", "test_conformance.py"]
    assert output.count("wrote ") == len(found) and "pip install -e ." in output


@pytest.mark.parametrize("code", [False, True])
def test_what_is_written_passes_the_kit_as_it_is(shelf: Shelf, code: bool) -> None:
    texts = dict(Skeleton("noisy_paths", code=code).files())
    package = "axplain_noisy_paths"
    modules = {"noisy_paths": texts[f"{package}/method.py"]} if code else {}
    shelf.put("axplain-noisy-paths", {"noisy_paths": texts[f"{package}/noisy_paths.toml"]}, modules)
    report = axplain.check("axplain-noisy-paths", examples=3, contracts=2)
    assert report.ok and len(report) > 15, report
    lines = [line for text in texts.values() for line in text.splitlines() if line.strip()]
    assert len(lines) <= (60 if code else 40)


def test_a_folder_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "axplain-mine").mkdir()
    output = command("new-method", "mine", "--into", str(tmp_path), status=1).output
    assert "exists already" in output and not list((tmp_path / "axplain-mine").iterdir())


@pytest.mark.parametrize("name", ["Noisy", "noisy-paths", "2fast", "class", "a b"])
def test_a_name_that_is_none_of_a_package_is_refused(tmp_path: Path, name: str) -> None:
    output = command("new-method", name, "--into", str(tmp_path), status=1).output
    assert "lower-case Python name" in output and not list(tmp_path.iterdir())
