"""The interval that the demo accepts counts in, against exact arithmetic."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.demo.statistics import CONFIDENCE, interval

EIGHTHS = [Fraction(n, 8) for n in range(9)]  # floats hold them exactly


def chance(count: int, trials: int, share: Fraction) -> Fraction:
    return math.comb(trials, count) * share**count * (1 - share) ** (trials - count)


def below(count: int, trials: int, share: Fraction) -> Fraction:
    return sum((chance(k, trials, share) for k in range(count)), Fraction(0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.sampled_from(EIGHTHS), st.sampled_from([0.5, 0.95, 0.9999]))
def test_each_tail_is_as_small_as_promised_and_no_count_is_refused_needlessly(
    trials: int, share: Fraction, confidence: float
) -> None:
    low, high = interval(trials, float(share), confidence)
    tail = Fraction((1 - confidence) / 2)
    rounding = Fraction(1, 10**12)
    assert 0 <= low <= high <= trials
    assert below(low, trials, share) <= tail + rounding
    assert below(low + 1, trials, share) > tail - rounding
    above = 1 - below(high + 1, trials, share)
    assert above <= tail + rounding
    assert above + chance(high, trials, share) > tail - rounding


@pytest.mark.parametrize(
    ("trials", "share", "expected"),
    [
        (1000, 0.0, (0, 0)),
        (1000, 1.0, (1000, 1000)),
        (0, 0.5, (0, 0)),
        (1, 0.5, (0, 1)),
        (1000, 0.5, (439, 561)),
        (1000, 0.1, (65, 139)),
        (1000, 0.9, (861, 935)),
        (1000, 0.2, (152, 251)),
    ],
)
def test_the_intervals_of_the_demo(trials: int, share: float, expected: tuple[int, int]) -> None:
    assert interval(trials, share) == expected


def test_a_share_and_its_complement_mirror_each_other() -> None:
    for trials in (10, 999, 1000):
        low, high = interval(trials, 0.1)
        assert interval(trials, 1 - 0.1) == (trials - high, trials - low)


def test_draws_with_the_right_share_are_accepted_and_with_a_wrong_one_refused() -> None:
    source = random.Random(7)
    low, high = interval(1000, 0.1, CONFIDENCE)
    right = [sum(source.random() < 0.1 for _ in range(1000)) for _ in range(300)]
    assert all(low <= count <= high for count in right)
    wrong = [sum(source.random() < 0.2 for _ in range(1000)) for _ in range(300)]
    assert not any(low <= count <= high for count in wrong)


@pytest.mark.parametrize(
    "arguments", [(-1, 0.5, 0.9), (10, -0.1, 0.9), (10, 1.1, 0.9), (10, 0.5, 0.0), (10, 0.5, 1.0)]
)
def test_what_has_no_interval_is_refused(arguments: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="not defined"):
        interval(*arguments)
