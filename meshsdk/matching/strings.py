"""Text conditions, regular expressions and shares of calls."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import re2


class StringKind(enum.Enum):
    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    REGEX = "regex"


def compile_regex(pattern: str) -> Any:
    """Compile an RE2 pattern.

    Raises:
        ValueError: the pattern is not valid RE2 (look-around and back-references are not).
    """
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "invalid"
        if isinstance(reason, bytes):
            reason = reason.decode()
        raise ValueError(f"{pattern!r} is not a valid RE2 regular expression: {reason}") from None


@dataclass(frozen=True, slots=True)
class StringMatch:
    """One string condition. `ignore_case` has no effect on REGEX, as in Envoy."""

    kind: StringKind
    value: str
    ignore_case: bool = False
    _test: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fold = self.ignore_case and self.kind is not StringKind.REGEX
        want = lower(self.value) if fold else self.value
        test: Any
        match self.kind:
            case StringKind.EXACT:
                test = want.__eq__
            case StringKind.PREFIX:
                test = lambda s: s.startswith(want)  # noqa: E731
            case StringKind.SUFFIX:
                test = lambda s: s.endswith(want)  # noqa: E731
            case StringKind.CONTAINS:
                test = lambda s: want in s  # noqa: E731
            case StringKind.REGEX:
                fullmatch = compile_regex(want).fullmatch
                test = lambda s: fullmatch(s) is not None  # noqa: E731
        object.__setattr__(self, "_test", (lambda s: test(lower(s))) if fold else test)

    def matches(self, text: str) -> bool:
        return bool(self._test(text))


_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def lower(text: str) -> str:
    """ASCII letters in lower case, nothing else: how Envoy ignores case."""
    return text.lower() if text.isascii() else text.translate(_ASCII_LOWER)


@dataclass(frozen=True, slots=True)
class Fraction:
    """`numerator` of `denominator` calls (Envoy FractionalPercent: 100, 10 000 or 1 000 000)."""

    numerator: int
    denominator: int = 100

    def holds(self, random: float) -> bool:
        """Whether a call with this uniform random number in [0, 1) belongs to the fraction."""
        return int(random * self.denominator) < self.numerator

    def takes(self, value: int) -> bool:
        """Whether a call with this random whole number belongs to the fraction."""
        return value % self.denominator < self.numerator


ALWAYS = Fraction(100)
NEVER = Fraction(0)
