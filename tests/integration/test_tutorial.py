"""The tutorial in CONTRIBUTING, followed to the letter: write the files it shows, install, test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

from axplain.conformance import Question, Recipe
from axplain.conformance.skeleton import Skeleton
from axplain.reader import structure_spec

GUIDE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
FILE = re.compile(r"^`([\w./]+)`\n\n```\w+\n(.*?)```$", re.DOTALL | re.MULTILINE)
COMMANDS = re.compile(r"^\$ (.*)$", re.MULTILINE)


@attrs.frozen
class Lesson:
    """One half of the tutorial: the folder it names, the files it shows, and how many lines it may have."""

    heading: str
    skeleton: Skeleton
    most_lines: int

    @property
    def text(self) -> str:
        """The words under the heading."""
        start = GUIDE.index(self.heading)
        return GUIDE[start : GUIDE.index("\n##", start + 4)]

    def files(self) -> dict[str, str]:
        """The files that the reader is told to write; the empty one is named in the text."""
        shown = dict(FILE.findall(self.text))
        (empty,) = re.findall(r"an\s+empty `([\w/]+/__init__\.py)`", self.text)
        return {**shown, empty: ""}


LESSONS = [
    Lesson("### First: no code", Skeleton("noisy_paths"), 25),
    Lesson("### Then: code", Skeleton("walked_gradients", code=True), 40),
]
lessons = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.skeleton.name)


@lessons
def test_it_is_short(lesson: Lesson) -> None:
    lines = [line for text in lesson.files().values() for line in text.splitlines() if line.strip()]
    assert 10 < len(lines) <= lesson.most_lines


@lessons
def test_new_method_writes_what_it_shows(lesson: Lesson, tmp_path: Path) -> None:
    paths = lesson.skeleton.write(tmp_path)
    written = {str(path.relative_to(tmp_path / lesson.skeleton.folder)): path.read_text() for path in paths}
    assert written == lesson.files()
    assert lesson.skeleton.folder in lesson.text and f"new-method\n{lesson.skeleton.name}" in lesson.text.replace(
        "new-method ", "new-method\n"
    )


@lessons
def test_following_it_ends_with_a_method_that_is_installed_and_conformant(lesson: Lesson, tmp_path: Path) -> None:
    root, site = tmp_path / lesson.skeleton.folder, tmp_path / "site"
    for name, text in lesson.files().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # axplain itself is what is under test, so it is not installed again; neither is the build backend
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), "."]
    run(install, root, site)
    tested = run(["-m", "pytest", "-q", "-p", "no:cacheprovider"], root, site)
    assert re.search(r"1\d passed, \d+ skipped|1\d passed", tested) and "failed" not in tested
    checked = run(["-m", "axplain.cli", "check", lesson.skeleton.folder], root, site)
    assert "fail" not in checked and "pass" in checked
    listed = run(["-m", "axplain.cli", "list"], root, site)
    assert f"[{lesson.skeleton.folder}]" in listed


def test_the_commands_it_shows_are_those_that_were_run() -> None:
    shown = COMMANDS.findall(LESSONS[0].text)
    assert shown == ["pip install -e . 'axplain[conformance]'", "pytest", "axplain check axplain-noisy-paths"]


def block(containing: str) -> str:
    """Return the one code block that contains a text."""
    (found,) = [text for text in re.findall(r"```\w+\n(.*?)```", GUIDE, re.DOTALL) if containing in text]
    return str(found)


def test_the_claims_it_shows_are_read_and_the_counter_example_is_built() -> None:
    document = {**tomllib.loads(LESSONS[1].files()["axplain_walked_gradients/walked_gradients.toml"])}
    spec = structure_spec({**document, **tomllib.loads(block("known_failures = {"))}, "shown.toml")
    assert {claim.kind for claim in spec.axioms} == {
        "exact", "approximate", "converges", "statistical", "for_class", "not_claimed",
    }  # fmt: skip
    scope: dict[str, Any] = {}
    exec(block("case = Question("), scope)
    assert scope["case"].attributions()[0].shape == (2, 3)


def test_the_axiom_it_shows_finds_a_method_that_is_not_odd() -> None:
    assert structure_spec(tomllib.loads(block('name = "oddness"')), "oddness.toml").axiom is not None
    scope: dict[str, Any] = {}
    exec(block("def check_oddness"), scope)
    axiom = scope["axplain_plugin"]()()
    for method, odd in (("integrated_gradients", True), ("saliency", False)):
        gap = axiom.check(Question(Recipe("smooth")).case(method))
        assert (gap.worst < 1e-12) == odd


def test_the_strategies_it_shows_draw_models_and_inputs() -> None:
    scope: dict[str, Any] = {}
    exec(block("def test_sums"), scope)
    scope["test_sums"]()


def run(arguments: list[str], folder: Path, site: Path) -> str:
    """Run Python in a folder, with what was installed on the path; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
