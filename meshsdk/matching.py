"""Matchers as values: string, path, header, query parameter, fraction.

Built once by the decoders, asked on every call. Regular expressions are RE2 and match the whole
string, as in Envoy. Semantics: Envoy `config/route/v3/route_components.proto` and
`type/matcher/v3`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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
        want = self.value.lower() if fold else self.value
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
        object.__setattr__(self, "_test", (lambda s: test(s.lower())) if fold else test)

    def matches(self, text: str) -> bool:
        return bool(self._test(text))


class PathKind(enum.Enum):
    EXACT = "path"
    PREFIX = "prefix"
    SEGMENT_PREFIX = "path_separated_prefix"
    REGEX = "safe_regex"


@dataclass(frozen=True, slots=True)
class PathMatch:
    """Condition on the path without query and fragment; `ignore_case` not for REGEX."""

    kind: PathKind
    value: str
    ignore_case: bool = False
    _regex: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        regex = compile_regex(self.value) if self.kind is PathKind.REGEX else None
        object.__setattr__(self, "_regex", regex)

    def matches(self, path: str) -> bool:
        value = self.value
        if self._regex is not None:
            return self._regex.fullmatch(path) is not None
        if self.ignore_case:
            value, path = value.lower(), path.lower()
        if self.kind is PathKind.EXACT:
            return path == value
        if not path.startswith(value):
            return False
        return self.kind is PathKind.PREFIX or len(path) == len(value) or path[len(value)] == "/"


class HeaderSource(Protocol):
    """What a header matcher asks: all values of a header, in order, name in lower case."""

    def values(self, name: str) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """One header condition. Exactly one of `string`, `range`, or neither (presence) decides.

    A header that comes several times is asked value by value, never joined (Envoy's
    `match_headers_individually`, default since CVE-2026-26308). An absent header never matches,
    inverted or not, except for presence and `missing_as_empty`.
    """

    name: str
    string: StringMatch | None = None
    range: tuple[int, int] | None = None
    present: bool = True
    invert: bool = False
    missing_as_empty: bool = False

    def matches(self, headers: HeaderSource) -> bool:
        values = headers.values(self.name)
        if self.string is None and self.range is None:
            found = bool(values) or self.missing_as_empty
            return (found == self.present) != self.invert
        if not values:
            if not self.missing_as_empty:
                return False
            values = ("",)
        return any(map(self._one, values)) != self.invert

    def _one(self, value: str) -> bool:
        if self.string is not None:
            return self.string.matches(value)
        assert self.range is not None
        try:
            return self.range[0] <= int(value) < self.range[1]
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class QueryMatch:
    """One query parameter condition; `string` None asks for presence only.

    The value is compared as it stands in the URL, without percent-decoding; of a repeated
    parameter the first counts. Source: Envoy `QueryParameterMatcher`.
    """

    name: str
    string: StringMatch | None = None
    present: bool = True

    def matches(self, query: str) -> bool:
        value = first_query_value(query, self.name)
        if self.string is None:
            return (value is not None) == self.present
        return value is not None and self.string.matches(value)


def first_query_value(query: str, name: str) -> str | None:
    """Raw value of the first parameter of that name; None when absent."""
    for item in query.split("&") if query else ():
        key, _, value = item.partition("=")
        if key == name:
            return value
    return None


@dataclass(frozen=True, slots=True)
class Fraction:
    """`numerator` of `denominator` calls (Envoy FractionalPercent: 100, 10 000 or 1 000 000)."""

    numerator: int
    denominator: int = 100

    def holds(self, random: float) -> bool:
        """Whether a call with this uniform random number in [0, 1) belongs to the fraction."""
        return int(random * self.denominator) < self.numerator
