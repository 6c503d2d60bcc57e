"""Unit tests for routes, in the file format of Envoy's router check tool.

Pure: a RouteConfiguration and one test in, what failed out. As in that tool only the route table is
asked, no filter: faults, CORS and rate limits play no part, and a share of the requests counts only
where the test names its runtime key.

Source: Envoy `test/tools/router_check/validation.proto` and "Route table check tool".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf import json_format

from meshsdk import routing
from meshsdk.balancing import ClusterPool
from meshsdk.call.answers import answer, must_use_tls, virtual_cluster_of
from meshsdk.call.deciding import draw, forward, named
from meshsdk.call.decisions import Forward, Reply
from meshsdk.formats import Caller
from meshsdk.matching import NEVER, Fraction, HeaderMatch
from meshsdk.model import (
    Cluster,
    ForwardAction,
    ListenerView,
    Route,
    RouteConfiguration,
    VirtualHost,
)
from meshsdk.routing import Draw, Request
from meshsdk.xds.decode.common import Bad, header_match
from meshsdk.xds.document import message_of

_WHOLE = 1 << 53
# Headers of which Envoy keeps one line, joining what is added.
_ONE_LINE = frozenset({"content-type", "content-length", "x-forwarded-for", "accept", "via"})


class BadTest(ValueError):
    """A test that cannot be run; says why."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One validation that did not hold."""

    check: str
    expected: str
    actual: str


@dataclass(frozen=True, slots=True)
class Input:
    """The request of a test."""

    authority: str
    path: str
    method: str = "GET"
    random_value: int = 0
    ssl: bool = False
    internal: bool = False
    request_headers: tuple[tuple[str, str], ...] = ()
    response_headers: tuple[tuple[str, str], ...] = ()
    runtime: str = ""
    address: str = "127.0.0.1"
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the request, in the words of the tool; empty where there is no such thing."""

    cluster_name: str = ""
    virtual_cluster_name: str = ""
    virtual_host_name: str = ""
    host_rewrite: str = ""
    path_rewrite: str = ""
    path_redirect: str = ""
    code_redirect: int = 0
    request_headers: tuple[tuple[str, str], ...] = ()
    response_headers: tuple[tuple[str, str], ...] = ()


# --- reading ---------------------------------------------------------------------------------

_INPUT = {
    "authority", "path", "method", "random_value", "ssl", "internal", "runtime",
    "additional_request_headers", "additional_response_headers", "additional_headers",
    "dynamic_metadata", ":authority", ":path", ":method",
}  # fmt: skip
_TEXTS = (
    "cluster_name", "virtual_cluster_name", "virtual_host_name", "host_rewrite", "path_rewrite",
    "path_redirect",
)  # fmt: skip
_FIELDS = {
    "request_header_fields": "request_headers",
    "header_fields": "request_headers",
    "custom_header_fields": "request_headers",
    "response_header_fields": "response_headers",
}
_MATCHES = {
    "request_header_matches": "request_headers",
    "response_header_matches": "response_headers",
}
_VALIDATE = {*_TEXTS, "code_redirect", *_FIELDS, *_MATCHES}


def tests_of(document: Any) -> list[Mapping[str, Any]]:
    """The tests of a test file.

    Raises:
        BadTest: the document is no test file.
    """
    tests = document.get("tests") if isinstance(document, Mapping) else document
    if not isinstance(tests, list) or not all(isinstance(test, Mapping) for test in tests):
        raise BadTest("`tests`, a list of tests with test_name, input and validate, is needed")
    return tests


def _input(test: Mapping[str, Any]) -> Input:
    given = _part(test, "input", _INPUT)
    headers = given.get("additional_request_headers", given.get("additional_headers", ()))
    metadata: dict[str, Any] = {}
    for item in given.get("dynamic_metadata", ()):
        namespace = item.get("metadata_namespace", "")
        if namespace not in metadata or item.get("allow_overwrite"):
            metadata[namespace] = item.get("value", {})
    return Input(
        str(given.get("authority", given.get(":authority", ""))),
        str(given.get("path", given.get(":path", ""))),
        str(given.get("method", given.get(":method", "GET"))),
        int(given.get("random_value", 0)),
        bool(given.get("ssl", False)),
        bool(given.get("internal", False)),
        _pairs(headers),
        _pairs(given.get("additional_response_headers", ())),
        str(given.get("runtime", "")),
        metadata=metadata,
    )


def _part(test: Mapping[str, Any], name: str, known: set[str]) -> Mapping[str, Any]:
    part = test.get(name)
    if not isinstance(part, Mapping):
        raise BadTest(f"{name} is needed")
    unknown = sorted(part.keys() - known)
    if unknown:
        raise BadTest(f"{name}.{unknown[0]}: unknown field; one of {', '.join(sorted(known))} is")
    return part


def _pairs(headers: Any) -> tuple[tuple[str, str], ...]:
    return tuple(
        (str(h.get("key", h.get("field", ""))).lower(), str(h.get("value", ""))) for h in headers
    )


# --- asking ----------------------------------------------------------------------------------


class _Every(Mapping[str, Any]):
    """A cluster of every name, without endpoints."""

    def __init__(self) -> None:
        self._pool = ClusterPool(lambda: 0.0)

    def __getitem__(self, name: str) -> Any:
        return self._pool.view(Cluster(name), None)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def outcome(config: RouteConfiguration, asked: Input) -> Outcome:
    """What becomes of a request."""
    config = _with_runtime(config, asked.runtime)
    scheme = "https" if asked.ssl else "http"
    headers = [("x-forwarded-proto", scheme), *asked.request_headers]
    if asked.internal:
        headers.insert(1, ("x-envoy-internal", "true"))
    request = Request(
        asked.method,
        asked.path,
        authority=asked.authority,
        scheme=scheme,
        headers=headers,
        grpc=_is_grpc(asked.request_headers),
        metadata=asked.metadata,
    )
    nothing = Outcome(request_headers=_all(request), response_headers=asked.response_headers)
    host = routing.virtual_host(config, request)
    if host is None:
        return nothing
    if must_use_tls(host, request):
        location = routing.tls_location(request)
        return replace(nothing, path_redirect=location, code_redirect=301)
    number = Draw(lambda: asked.random_value % _WHOLE / _WHOLE)
    route = routing.select(config, host, request, number)
    if route is None:
        return nothing
    view = ListenerView("", config, _Every(), caller=Caller(asked.address))
    if isinstance(route.action, ForwardAction):
        return _forwarded(view, host, route, request, number, asked)
    return _answered(view, host, route, request, asked)


def _is_grpc(headers: tuple[tuple[str, str], ...]) -> bool:
    kind = dict(headers).get("content-type", "")
    return kind == "application/grpc" or kind.startswith(("application/grpc+", "application/grpc;"))


def _forwarded(
    view: ListenerView,
    host: VirtualHost,
    route: Route,
    request: Request,
    number: Draw,
    asked: Input,
) -> Outcome:
    action = route.action
    assert isinstance(action, ForwardAction)
    chosen = named(draw(view, action, request, _zero, number), request)
    decision = forward(view, host, route, chosen, request, 0.0, _zero, number)
    assert isinstance(decision, Forward)
    sent = decision.request_headers(request.headers)
    if decision.path_rewritten:
        sent.append(("x-envoy-original-path", request.target))
    if decision.host_rewritten:
        sent.append(("x-envoy-original-host", request.authority))
    final = request.having(sent, path=decision.path, authority=decision.authority)
    return Outcome(
        cluster_name=chosen.cluster,
        virtual_cluster_name=virtual_cluster_of(host, final) or _rest(host),
        virtual_host_name=host.name,
        host_rewrite=decision.authority,
        path_rewrite=decision.path,
        request_headers=_all(final),
        response_headers=tuple(decision.response_headers(asked.response_headers)),
    )


def _rest(host: VirtualHost) -> str:
    """Where the calls count that are in no virtual cluster."""
    return "other" if host.virtual_clusters else ""


def _zero() -> float:
    return 0.0


def _answered(
    view: ListenerView, host: VirtualHost, route: Route, request: Request, asked: Input
) -> Outcome:
    reply: Reply = answer(view, host, route, request, 0.0)
    length = (("content-length", str(len(reply.body))),) if reply.body else ()
    location = dict(reply.headers).get("location") or routing.own_uri(request)
    return Outcome(
        path_redirect=location,
        code_redirect=reply.status,
        request_headers=_all(request),
        response_headers=(*asked.response_headers, *length, *reply.headers),
    )


def _all(request: Request) -> tuple[tuple[str, str], ...]:
    """The headers with the pseudo headers, as the tool sees them."""
    return (
        (":authority", request.authority),
        (":path", request.target),
        (":method", request.method),
        (":scheme", request.scheme),
        *request.headers,
    )


def _with_runtime(config: RouteConfiguration, active: str) -> RouteConfiguration:
    """With the shares that the tool's runtime gives: those of the active key, at least one call."""

    def at(route: Route) -> Route:
        share = route.match.fraction
        if share is None:
            return route
        if active and route.match.runtime_key == active:
            share = Fraction(max(share.numerator, 1), share.denominator)
        else:
            share = NEVER
        return replace(route, match=replace(route.match, fraction=share))

    hosts = tuple(
        replace(host, routes=tuple(at(route) for route in host.routes))
        for host in config.virtual_hosts
    )
    return replace(config, virtual_hosts=hosts)


# --- judging ---------------------------------------------------------------------------------


class _Headers:
    """Headers as matchers ask for them; of some Envoy keeps one line."""

    def __init__(self, pairs: tuple[tuple[str, str], ...]) -> None:
        self._pairs = pairs

    def values(self, name: str) -> list[str]:
        name = ":authority" if name == "host" else name
        found = [value for key, value in self._pairs if key.lower() == name]
        return [",".join(found)] if found and name in _ONE_LINE else found


def check(config: RouteConfiguration, test: Mapping[str, Any]) -> list[Failure]:
    """What of one test does not hold.

    Raises:
        BadTest: the test cannot be run.
    """
    unknown = sorted(test.keys() - {"test_name", "input", "validate"})
    if unknown:
        raise BadTest(f"{unknown[0]}: unknown field; test_name, input and validate are")
    asked = _input(test)
    validate = _part(test, "validate", _VALIDATE)
    seen = outcome(config, asked)
    failures = [
        Failure(name, str(validate[name]), str(getattr(seen, name)))
        for name in (*_TEXTS, "code_redirect")
        if name in validate and str(validate[name]) != str(getattr(seen, name))
    ]
    for name, side in _FIELDS.items():
        source = _Headers(getattr(seen, side))
        for key, value in _pairs(validate.get(name, ())):
            actual = ",".join(source.values(key))
            if actual != value:
                failures.append(Failure(f"{name}.{key}", value, actual))
    for name, side in _MATCHES.items():
        source = _Headers(getattr(seen, side))
        for item in validate.get(name, ()):
            failures += _match(name, item, source)
    return failures


def _match(name: str, item: Any, source: _Headers) -> list[Failure]:
    matcher = _matcher(name, item)
    if matcher.matches(source):
        return []
    expected = ", ".join(f"{key}: {value}" for key, value in item.items() if key != "name")
    actual = ",".join(source.values(matcher.name))
    return [Failure(f"{name}.{matcher.name}", expected or "present", actual)]


def _matcher(name: str, item: Any) -> HeaderMatch:
    try:
        message = message_of(item, "envoy.config.route.v3.HeaderMatcher")
        return header_match(message, [])
    except (ValueError, json_format.ParseError) as error:
        raise BadTest(f"validate.{name}: {error}") from None
    except Bad as bad:
        raise BadTest(f"validate.{name}: {bad.problems[0][0]}: {bad.problems[0][1]}") from None
