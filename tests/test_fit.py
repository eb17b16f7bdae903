"""The line through trials: Student's t against printed tables, Fieller's interval against sums done by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from replay.fit import INFINITE_MARGIN, Point, fieller, finite_margins, student_t


@pytest.mark.parametrize(
    ("probability", "degrees", "printed"),
    [
        # Abramowitz & Stegun, table 26.10, and every statistics textbook.
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 3, 3.182),
        (0.975, 7, 2.365),
        (0.975, 16, 2.120),
        (0.975, 30, 2.042),
        (0.975, 120, 1.980),
        (0.995, 1, 63.657),
        (0.995, 7, 3.499),
        (0.995, 25, 2.787),
        (0.95, 4, 2.132),
        (0.95, 9, 1.833),
        (0.9995, 2, 31.599),
        (0.5, 5, 0.0),
    ],
)
def test_student_t_is_as_printed_in_tables(probability: float, degrees: int, printed: float) -> None:
    assert student_t(probability, degrees) == pytest.approx(printed, abs=5.1e-4)


def test_student_t_has_closed_forms_for_one_and_two_degrees_of_freedom() -> None:
    assert student_t(0.975, 1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-10)
    assert student_t(0.975, 2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-10)


@pytest.mark.parametrize(("probability", "degrees"), [(0.4, 5), (1.0, 5), (0.975, 0)])
def test_student_t_refuses_what_has_no_quantile(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        student_t(probability, degrees)


def points(*pairs: tuple[int, float]) -> list[Point]:
    return [Point(trial, agents, margin) for trial, (agents, margin) in enumerate(pairs, start=1)]


def test_fieller_as_worked_by_hand() -> None:
    """x = log2 N = 0, 1, 2, 3. Mean 1.5, Sxx 5, Sxy 4.7, slope 0.94, residuals −.09 .07 .13 −.11, s² = 0.042 / 2.

    t(2) = 4.30265, so g = 18.5128 · 0.021 / (0.94² · 5) = 0.0880, and the root at 1.5 lies within
    ± sqrt(0.388769 / (0.94² · 4) / (1 − g)) = ± 0.34729.
    """
    fit = fieller(points((1, -1.5), (2, -0.4), (4, 0.6), (8, 1.3)))
    assert fit is not None
    assert fit.root == pytest.approx(2**1.5)
    assert fit.low == pytest.approx(2 ** (1.5 - 0.34729), rel=1e-5)
    assert fit.high == pytest.approx(2 ** (1.5 + 0.34729), rel=1e-5)
    assert fit.g == pytest.approx(0.0880, abs=5e-5)
    assert fit.slope == pytest.approx(0.94 / math.log(2))
    assert fit.intercept == pytest.approx(-1.41)
    assert fit.residual_sd == pytest.approx(math.sqrt(0.021))
    assert fit.trials == (1, 2, 3, 4)


def test_fieller_is_lopsided_where_the_root_lies_off_the_middle() -> None:
    """The same line 0.47 higher: the root moves to x = 1, the ends to 1.5 + (−0.5 ± 0.349737) / 0.912003."""
    fit = fieller(points((1, -1.03), (2, 0.07), (4, 1.07), (8, 1.77)))
    assert fit is not None
    assert fit.root == pytest.approx(2.0)
    assert fit.low == pytest.approx(2 ** (1.5 - 0.849737 / 0.912003), rel=1e-5)
    assert fit.high == pytest.approx(2 ** (1.5 - 0.150263 / 0.912003), rel=1e-5)


@given(
    st.lists(st.tuples(st.integers(1, 4000), st.floats(-3, 3)), min_size=3, max_size=20),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_the_ends_of_the_interval_are_where_the_line_is_just_told_from_zero(
    pairs: list[tuple[int, float]], confidence: float
) -> None:
    fit = fieller(points(*pairs), confidence)
    assume(fit is not None)
    assert fit is not None
    if fit.low is None or fit.high is None or fit.root is None:
        assert fit.g >= 1 or fit.slope <= 0
        return
    assume(fit.low > 1e-9 and fit.high < 1e11 and fit.residual_sd > 1e-6)
    assert fit.low <= fit.root <= fit.high
    logs = [math.log(agents) for agents, _ in pairs]
    mean = sum(logs) / len(logs)
    spread = sum((log - mean) ** 2 for log in logs)
    for end in (fit.low, fit.high):
        x = math.log(end)
        line = fit.intercept + fit.slope * x
        error = fit.residual_sd * math.sqrt(1 / len(pairs) + (x - mean) ** 2 / spread)
        assert abs(line) == pytest.approx(student_t((1 + confidence) / 2, len(pairs) - 2) * error, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("what", "pairs"),
    [
        ("two points", [(1, -1.0), (2, 1.0)]),
        ("one level", [(5, -0.1), (5, 0.1), (5, 0.0)]),
    ],
)
def test_no_line_through(what: str, pairs: list[tuple[int, float]]) -> None:
    assert fieller(points(*pairs)) is None


def test_a_falling_line_has_no_root_and_a_flat_one_no_interval() -> None:
    falling = fieller(points((8, 1.0), (9, 0.0), (10, -1.0)))
    assert falling is not None
    assert (falling.root, falling.low, falling.high) == (None, None, None)
    noisy = fieller(points((8, -1.0), (9, 2.0), (10, -2.0), (11, 1.5)))
    assert noisy is not None
    assert noisy.g > 1
    assert (noisy.low, noisy.high) == (None, None)
    level = fieller(points((8, 0.0), (9, 0.0), (10, 0.0)))
    assert level is not None
    assert level.g == math.inf


def test_an_infinite_margin_counts_as_the_largest_finite_one_or_a_published_one_and_is_named() -> None:
    assert finite_margins([-0.2, math.inf, 0.3]) == [-0.2, INFINITE_MARGIN, 0.3]
    assert finite_margins([-0.2, math.inf, 2.5]) == [-0.2, 2.5, 2.5]
    fit = fieller(points((8, -0.4), (9, -0.2), (10, math.inf), (11, math.inf)))
    assert fit is not None
    assert fit.infinite == (3, 4)
    assert fit.root is not None
    assert 8 < fit.root < 9.5  # the infinite ones pull it down
