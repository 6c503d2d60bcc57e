"""Matchers against the meaning that Envoy gives them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshsdk.matching import (
    Fraction,
    HeaderMatch,
    PathKind,
    PathMatch,
    QueryMatch,
    StringKind,
    StringMatch,
)
from meshsdk.routing import Request

text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)


def request(*headers: tuple[str, str], path: str = "/") -> Request:
    return Request("GET", path, authority="svc", headers=headers)


@pytest.mark.parametrize(
    ("kind", "value", "hit", "miss"),
    [
        (StringKind.EXACT, "ab", "ab", "abc"),
        (StringKind.PREFIX, "ab", "abc", "cab"),
        (StringKind.SUFFIX, "ab", "cab", "abc"),
        (StringKind.CONTAINS, "ab", "xabx", "a-b"),
        (StringKind.REGEX, "a.", "ab", "abc"),
    ],
)
def test_each_kind_of_string_match(kind: StringKind, value: str, hit: str, miss: str) -> None:
    assert StringMatch(kind, value).matches(hit)
    assert not StringMatch(kind, value).matches(miss)


def test_ignoring_case_applies_to_everything_but_expressions() -> None:
    assert StringMatch(StringKind.PREFIX, "Ab", ignore_case=True).matches("aBc")
    assert not StringMatch(StringKind.REGEX, "AB", ignore_case=True).matches("ab")


@pytest.mark.parametrize("pattern", ["(?=a)", r"(a)\1", "(", "a{2000}"])
def test_what_re2_cannot_do_is_refused_with_the_pattern_named(pattern: str) -> None:
    with pytest.raises(ValueError, match="RE2"):
        StringMatch(StringKind.REGEX, pattern)


@given(text, text)
def test_prefix_and_suffix_agree_with_python(value: str, subject: str) -> None:
    assert StringMatch(StringKind.PREFIX, value).matches(subject) == subject.startswith(value)
    assert StringMatch(StringKind.SUFFIX, value).matches(subject) == subject.endswith(value)


def test_a_path_prefix_is_a_string_prefix_and_a_segment_prefix_ends_at_a_slash() -> None:
    assert PathMatch(PathKind.PREFIX, "/foo").matches("/foobar")
    segment = PathMatch(PathKind.SEGMENT_PREFIX, "/foo")
    assert segment.matches("/foo")
    assert segment.matches("/foo/bar")
    assert not segment.matches("/foobar")


def test_a_path_may_ignore_case() -> None:
    assert PathMatch(PathKind.EXACT, "/Foo", ignore_case=True).matches("/fOO")
    assert PathMatch(PathKind.PREFIX, "/Foo", ignore_case=True).matches("/fOO/x")


def test_a_repeated_header_is_asked_value_by_value() -> None:
    exact = HeaderMatch("x", StringMatch(StringKind.EXACT, "a,b"))
    assert not exact.matches(request(("x", "a"), ("x", "b")))
    assert exact.matches(request(("x", "a,b")))


def test_inverting_speaks_of_all_values_of_a_header() -> None:
    # Seen on Envoy 1.40: [a, b] does not match "not a", [b, c] does.
    inverted = HeaderMatch("x", StringMatch(StringKind.EXACT, "a"), invert=True)
    assert not inverted.matches(request(("x", "a"), ("x", "b")))
    assert inverted.matches(request(("x", "b"), ("x", "c")))


def test_an_absent_header_matches_neither_way() -> None:
    condition = StringMatch(StringKind.EXACT, "a")
    assert not HeaderMatch("x", condition).matches(request())
    assert not HeaderMatch("x", condition, invert=True).matches(request())
    assert HeaderMatch("x", condition, invert=True, missing_as_empty=True).matches(request())


@given(st.booleans(), st.booleans(), st.booleans())
def test_presence_is_a_yes_or_no_question(present: bool, invert: bool, there: bool) -> None:
    headers = [("x", "1")] if there else []
    match = HeaderMatch("x", present=present, invert=invert)
    assert match.matches(request(*headers)) == ((there == present) != invert)


def test_a_range_counts_integers_only_and_excludes_its_end() -> None:
    match = HeaderMatch("x", range=(1, 5))
    assert match.matches(request(("x", "4")))
    for value in ("5", "0", "4.5", "four"):
        assert not match.matches(request(("x", value)))


def test_pseudo_headers_can_be_asked() -> None:
    assert HeaderMatch(":method", StringMatch(StringKind.EXACT, "GET")).matches(request())
    assert HeaderMatch("host", StringMatch(StringKind.EXACT, "svc")).matches(request())
    path = HeaderMatch(":path", StringMatch(StringKind.EXACT, "/a?b=c"))
    assert path.matches(request(path="/a?b=c"))


def test_query_parameters_are_compared_as_written() -> None:
    match = QueryMatch("lang", StringMatch(StringKind.EXACT, "a%20b"))
    assert match.matches("x=1&lang=a%20b")
    assert not match.matches("lang=a b")
    assert not match.matches("lang=x&lang=a%20b"), "of a repeated parameter the first counts"
    assert QueryMatch("flag").matches("flag")
    assert not QueryMatch("flag").matches("")


@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_a_fraction_holds_for_its_share_of_the_numbers(numerator: int, draw: float) -> None:
    assert Fraction(numerator).holds(draw) == (int(draw * 100) < numerator)
