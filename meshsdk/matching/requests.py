"""Conditions on headers, query parameters and cookies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from meshsdk.matching.strings import StringMatch


class HeaderSource(Protocol):
    """What a header matcher asks: all values of a header, in order, name in lower case."""

    def values(self, name: str) -> Sequence[str]: ...


_INTEGER: Final = re.compile(r"[\t-\r ]*([+-]?[0-9]+)[\t-\r ]*")


def integer(text: str) -> int | None:
    """The whole number that a text is, within 64 bits; None when it is none."""
    found = _INTEGER.fullmatch(text)
    if found is None:
        return None
    value = int(found[1]) if len(text) < 64 else 1 << 63
    return value if -(1 << 63) <= value < 1 << 63 else None


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
        number = integer(value)
        return number is not None and self.range[0] <= number < self.range[1]


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
class CookieMatch:
    """One cookie condition. Source: Envoy `CookieMatcher`."""

    name: str
    string: StringMatch
    invert: bool = False

    def matches(self, headers: HeaderSource) -> bool:
        value = cookies(headers.values("cookie")).get(self.name)
        return (value is not None and self.string.matches(value)) != self.invert


def cookies(values: Sequence[str]) -> dict[str, str]:
    """Names and values of all cookies in `cookie` headers; of one name the first counts."""
    found: dict[str, str] = {}
    for header in values:
        for item in header.split(";"):
            name, equals, value = item.strip(" \t").partition("=")
            if not equals or name in found:
                continue
            if len(value) >= 2 and value[0] == value[-1] == '"':
                value = value[1:-1]
            found[name] = value
    return found
