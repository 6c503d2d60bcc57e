"""The index of routes: a linear search, only faster. First match wins."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshsdk import routing
from meshsdk.matching import (
    Fraction,
    HeaderMatch,
    PathKind,
    PathMatch,
    QueryMatch,
    StringKind,
    StringMatch,
)
from meshsdk.model import DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost
from meshsdk.routing import Request

texts = st.sampled_from(["/", "/a", "/A", "/a/", "/a/b", "/ab", "/b", "", "/a;x/b", "/Kelvin"])
paths = st.one_of(
    *(
        st.builds(PathMatch, st.just(kind), texts, st.booleans())
        for kind in (PathKind.EXACT, PathKind.PREFIX, PathKind.SEGMENT_PREFIX)
    ),
    st.builds(
        PathMatch,
        st.just(PathKind.REGEX),
        st.sampled_from(["/a.*", "/[ab]", ".*", "/a/b", "(?i)/a"]),
    ),
    st.builds(
        PathMatch, st.just(PathKind.TEMPLATE), st.sampled_from(["/a/{x}", "/{x=**}", "/*/b"])
    ),
    st.just(PathMatch(PathKind.CONNECT, "")),
)
strings = st.builds(
    StringMatch,
    st.sampled_from([StringKind.EXACT, StringKind.EXACT, StringKind.PREFIX]),
    st.sampled_from(["a", "b", ""]),
    st.booleans(),
)
headers = st.builds(
    HeaderMatch,
    st.sampled_from(["x-a", "x-b", ":method"]),
    st.none() | strings,
    invert=st.booleans(),
    missing_as_empty=st.booleans(),
)
matches = st.builds(
    RouteMatch,
    paths,
    headers=st.one_of(st.just(()), st.lists(headers, max_size=2).map(tuple)),
    queries=st.sampled_from([(), (), (QueryMatch("q"),)]),
    fraction=st.sampled_from([None, None, Fraction(0), Fraction(100)]),
)
ROUTES = st.lists(matches, min_size=1, max_size=30).map(
    lambda found: tuple(
        Route(f"r{n}", match, DirectResponseAction(200)) for n, match in enumerate(found)
    )
)
requests = st.builds(
    lambda method, path, pairs: Request(method, path, authority="h", headers=pairs),
    st.sampled_from(["GET", "POST", "CONNECT"]),
    st.sampled_from(
        ["/", "/a", "/A", "/a/b?q=1", "/ab", "/b?q", "/a;x/b", "/a;x", "/x", "/kelvin"]
    ),
    st.lists(
        st.tuples(st.sampled_from(["x-a", "X-B"]), st.sampled_from(["a", "B", "b", ""])), max_size=3
    ),
)


def linear(config: RouteConfiguration, request: Request) -> Route | None:
    path = routing.comparable_path(config, request)
    routes = config.virtual_hosts[0].routes
    found = [r for r in routes if routing.matches(r, request, lambda: 0, path)]
    return found[0] if found else None


def configured(routes: tuple[Route, ...], **more: Any) -> RouteConfiguration:
    return RouteConfiguration("rc", (VirtualHost("vh", ("*",), routes),), **more)


@settings(max_examples=1000)
@given(ROUTES, st.lists(requests, min_size=1, max_size=8), st.booleans())
def test_the_index_finds_what_a_linear_search_finds(
    routes: tuple[Route, ...], asked: list[Request], without_parameters: bool
) -> None:
    config = configured(routes, ignore_path_parameters=without_parameters)
    for request in asked:
        found = routing.select(config, config.virtual_hosts[0], request, lambda: 0)
        assert found is linear(config, request)


@given(st.permutations(range(12)), st.integers(0, 11))
def test_the_first_match_wins(order: list[int], asked: int) -> None:
    """Of routes that all match, whatever they are filed under, it is the first."""
    kinds = [
        PathMatch(PathKind.EXACT, "/a/b"),
        PathMatch(PathKind.PREFIX, "/a"),
        PathMatch(PathKind.PREFIX, "/"),
        PathMatch(PathKind.SEGMENT_PREFIX, "/a"),
        PathMatch(PathKind.REGEX, "/a/.*"),
        PathMatch(PathKind.REGEX, ".*"),
        PathMatch(PathKind.REGEX, "/a/b"),
        PathMatch(PathKind.REGEX, "/[a]/b"),
        PathMatch(PathKind.TEMPLATE, "/a/{x}"),
        PathMatch(PathKind.EXACT, "/A/B", True),
        PathMatch(PathKind.PREFIX, "/A", True),
        PathMatch(PathKind.PREFIX, "/a/b"),
    ]
    routes = tuple(
        Route(f"r{n}", RouteMatch(kinds[n]), DirectResponseAction(200)) for n in order[asked:]
    ) + tuple(
        Route(
            f"no{n}", RouteMatch(PathMatch(PathKind.EXACT, f"/no/{n}")), DirectResponseAction(200)
        )
        for n in range(10)
    )
    config = configured(routes)
    request = Request("GET", "/a/b", authority="h")
    assert routing.select(config, config.virtual_hosts[0], request, lambda: 0) is routes[0]


@given(st.integers(1, 99), st.lists(st.integers(0, (1 << 53) - 1), min_size=1, max_size=50))
@example(50, [0, 49, 50, 99, 100, 150])
def test_shares_are_taken_of_one_number(percent: int, numbers: list[int]) -> None:
    shared = RouteMatch(PathMatch(PathKind.PREFIX, "/"), fraction=Fraction(percent))
    rest = RouteMatch(PathMatch(PathKind.PREFIX, "/"))
    routes = (
        Route("some", shared, DirectResponseAction(200)),
        Route("rest", rest, DirectResponseAction(200)),
    )
    config = configured(routes)
    for number in numbers:
        found = routing.select(
            config, config.virtual_hosts[0], Request("GET", "/", authority="h"), lambda n=number: n
        )
        assert found is routes[number % 100 >= percent]
