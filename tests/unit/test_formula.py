"""The arithmetic of specs: what it computes, and that nothing else gets in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axplain.formula import Formula


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("batch * n_steps", {"batch": 3, "n_steps": 50}, 150),
        ("2 ** features - 2", {"features": 5}, 30),
        ("n * inner.forward_rows", {"n": 4, "inner.forward_rows": 7}, 28),
        ("min(n, 2 ** features)", {"n": 100, "features": 3}, 8),
        ("max(1, -n)", {"n": 5}, 1),
        ("ceil(n / 2) + n // 2 + n % 2", {"n": 5}, 6),
        ("0", {}, 0),
    ],
)
def test_it_computes_what_it_says(text: str, values: dict[str, int], expected: int) -> None:
    assert Formula(text)(values) == expected


def test_names_are_those_that_a_value_is_needed_for() -> None:
    assert Formula("n_samples * inner.forward_rows + 2").names == {"n_samples", "inner.forward_rows"}


@given(a=st.integers(-50, 50), b=st.integers(-50, 50), c=st.integers(1, 9))
def test_it_agrees_with_python(a: int, b: int, c: int) -> None:
    assert Formula("(a - b) * c ** 2 // c")({"a": a, "b": b, "c": c}) == (a - b) * c**2 // c


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "a.b.c",
        "[1, 2]",
        "a if b else c",
        "f(x)",
        "min(x, key=y)",
        "'text'",
        "a and b",
        "1 +",
        "x[0]",
    ],
)
def test_anything_but_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="arithmetic"):
        Formula(text)
