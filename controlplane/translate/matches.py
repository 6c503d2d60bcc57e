"""HTTPMatch of a VirtualService as an Envoy RouteMatch (V1 to V7)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from envoy.config.route.v3 import route_components_pb2 as rc
from envoy.type.matcher.v3 import regex_pb2, string_pb2

from controlplane.model.traffic import MESH_GATEWAY, HTTPMatch, StringMatch
from controlplane.translate.node import Dialect
from controlplane.translate.scope import Scope

_CLAIMS = ("@request.auth.claims.", "@request.auth.claims[")
_MOST_EXPANSIONS = 3


def applies(match: HTTPMatch, gateways: tuple[str, ...], port: int, scope: Scope) -> bool:
    """Whether these callers can ever fulfil the parts that are known before a call (V1, V7)."""
    return not misses(match, gateways, port, scope)


def misses(match: HTTPMatch, gateways: tuple[str, ...], port: int, scope: Scope) -> str:
    """Why these callers never fulfil a match; empty when they can."""
    if match.port and match.port != port:
        return f"it is for port {match.port}, not {port}"
    if match.gateways:  # overrides the rule's list, and the source is then not looked at
        if MESH_GATEWAY in match.gateways:
            return ""
        return f"it is for gateways {', '.join(match.gateways)}"
    if MESH_GATEWAY not in gateways:
        return f"its VirtualService is for gateways {', '.join(gateways)}"
    if match.source_namespace and match.source_namespace != scope.namespace:
        return f"it is for callers in {match.source_namespace}, not in {scope.namespace}"
    lacking = [
        f"{key}={value}"
        for key, value in match.source_labels.items()
        if scope.labels.get(key) != value
    ]
    return f"the caller lacks the labels {', '.join(lacking)}" if lacking else ""


def is_catch_all(match: rc.RouteMatch) -> bool:
    """Whether every request matches. Source: Istio IsCatchAllRoute."""
    kind = match.WhichOneof("path_specifier")
    if kind == "prefix":
        every_path = match.prefix == "/"
    elif kind == "path_separated_prefix":
        every_path = match.path_separated_prefix == "/"
    elif kind == "safe_regex":
        every_path = match.safe_regex.regex == ".*"
    else:
        every_path = False
    return every_path and not (match.headers or match.query_parameters or match.dynamic_metadata)


def route_matches(match: HTTPMatch | None, scope: Scope) -> list[rc.RouteMatch]:
    """The RouteMatches, one of which must hold: one, several for gRPC nodes, or none at all.

    gRPC ignores `treat_missing_header_as_empty`: there a header that must not have a value is
    said twice, once for its absence and once for another value.
    """
    if match is None:
        return [rc.RouteMatch(prefix="/")]
    if any(name.startswith(_CLAIMS) for name in match.headers):
        return []  # what a token claims is known where it was checked: at gateways
    if scope.dialect is Dialect.GRPC and match.query_params:
        scope.note("a match on queryParams never holds for gRPC calls: the rule is left out")
        return []
    base = _path(match)
    base.headers.extend(_pseudo_headers(match))
    base.headers.extend(_header(name, want) for name, want in sorted(match.headers.items()))
    for name, want in sorted(match.query_params.items()):
        base.query_parameters.append(_query(name, want))
    without = [
        (name, want)
        for name, want in sorted(match.without_headers.items())
        if not name.startswith(_CLAIMS)
    ]
    if scope.dialect is Dialect.GRPC:
        return _without_for_grpc(base, without, scope)
    base.headers.extend(_without(name, want) for name, want in without)
    return [base]


def _path(match: HTTPMatch) -> rc.RouteMatch:
    out = rc.RouteMatch(prefix="/")
    uri = match.uri
    if uri is None:
        return out
    if uri.exact is not None:
        out.path = uri.exact
    elif uri.prefix is not None:
        out.prefix = uri.prefix
    elif uri.regex is not None:
        out.safe_regex.CopyFrom(regex_pb2.RegexMatcher(regex=uri.regex))
    if match.ignore_uri_case and uri.regex is None:  # V4; Envoy refuses it with a regex
        out.case_sensitive.value = False
    return out


def _pseudo_headers(match: HTTPMatch) -> Iterator[rc.HeaderMatcher]:
    for name, want in (
        (":method", match.method),
        (":authority", match.authority),
        (":scheme", match.scheme),
    ):
        if want is not None:
            yield _header(name, want)


def _is_presence(want: StringMatch) -> bool:
    """Envoy refuses an empty prefix; it asks no more than that the name is there."""
    return want.is_presence or want.regex == "*" or want.prefix == ""


def _string(want: StringMatch) -> string_pb2.StringMatcher:
    if want.exact is not None:
        return string_pb2.StringMatcher(exact=want.exact)
    if want.prefix is not None:
        return string_pb2.StringMatcher(prefix=want.prefix)
    return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=want.regex or ""))


def _header(name: str, want: StringMatch) -> rc.HeaderMatcher:
    out = rc.HeaderMatcher(name=name)
    if _is_presence(want):
        out.present_match = True
    else:
        out.string_match.CopyFrom(_string(want))
    return out


def _without(name: str, want: StringMatch) -> rc.HeaderMatcher:
    out = _header(name, want)
    out.invert_match = True
    if not out.HasField("present_match"):
        out.treat_missing_header_as_empty = True
    return out


def _query(name: str, want: StringMatch) -> rc.QueryParameterMatcher:
    if _is_presence(want):
        return rc.QueryParameterMatcher(name=name, present_match=True)
    return rc.QueryParameterMatcher(name=name, string_match=_string(want))


def _without_for_grpc(
    base: rc.RouteMatch, without: list[tuple[str, StringMatch]], scope: Scope
) -> list[rc.RouteMatch]:
    choices: list[list[rc.HeaderMatcher]] = []
    for name, want in without:
        absent = rc.HeaderMatcher(name=name, present_match=True, invert_match=True)
        other = _header(name, want)
        if other.HasField("present_match"):
            choices.append([absent])
            continue
        other.invert_match = True
        choices.append([absent, other])
    if sum(len(choice) > 1 for choice in choices) > _MOST_EXPANSIONS:
        scope.note("a match with more than 3 withoutHeaders values is left out for gRPC")
        return []
    out = []
    for combination in product(*choices):
        one = rc.RouteMatch()
        one.CopyFrom(base)
        one.headers.extend(combination)
        out.append(one)
    return out
