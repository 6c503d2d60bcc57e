"""When is a count too far from its share to be chance?"""

from __future__ import annotations

import functools
import math

CONFIDENCE = 0.9999


@functools.cache
def interval(trials: int, share: float, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """The smallest and the largest count to accept of `trials` draws that succeed with `share`.

    Exact and two-sided: by chance a count falls below the interval with a probability of at most
    half of `1 - confidence`, and above it with at most as much.

    Args:
        trials: 0 or more.
        share: from 0 to 1.
        confidence: from 0 to 1, both excluded.

    Raises:
        ValueError: an argument is out of its range.
    """
    if trials < 0 or not 0 <= share <= 1 or not 0 < confidence < 1:
        raise ValueError(f"interval({trials}, {share}, {confidence}) is not defined")
    tail = (1 - confidence) / 2
    chances = [_chance(count, trials, share) for count in range(trials + 1)]
    low = _first_above(chances, tail)
    high = trials - _first_above(chances[::-1], tail)
    return low, high


def _chance(count: int, trials: int, share: float) -> float:
    """The binomial probability of exactly `count` successes."""
    if share in (0, 1):
        return float(count == trials * share)
    ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    return math.exp(ways + count * math.log(share) + (trials - count) * math.log1p(-share))


def _first_above(chances: list[float], tail: float) -> int:
    """The first index up to which, itself included, the sum exceeds `tail`."""
    total = 0.0
    for index, chance in enumerate(chances):
        total += chance
        if total > tail:
            return index
    return len(chances) - 1
