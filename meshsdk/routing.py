"""Authority → virtual host → first matching route; and what a route changes on the way.

Pure functions over the frozen model. Semantics: Envoy `config/route/v3/route_components.proto`
and "HTTP header manipulation".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from meshsdk.matching import PathKind, PathMatch, compile_regex
from meshsdk.model import (
    AppendAction,
    HeaderMutations,
    HeaderOption,
    RedirectAction,
    RegexRewrite,
    Route,
    VirtualHost,
)

Headers = Sequence[tuple[str, str]]
Random = Callable[[], float]


class Request:
    """What a decision may look at. Headers are (lower-case name, value), `host` not among them.

    Args:
        path: with query, as it stands on the request line.
        grpc: the request is a gRPC call (content-type application/grpc).
    """

    __slots__ = ("authority", "grpc", "headers", "method", "path", "query", "scheme", "target")

    def __init__(
        self,
        method: str,
        path: str,
        *,
        authority: str,
        scheme: str = "http",
        headers: Headers = (),
        grpc: bool = False,
    ) -> None:
        self.method = method
        self.target = path
        self.path, _, rest = path.partition("?")
        self.query = rest.partition("#")[0]
        if "#" in self.path:
            self.path = self.path.partition("#")[0]
        self.authority = authority
        self.scheme = scheme
        self.headers = headers
        self.grpc = grpc

    def values(self, name: str) -> list[str]:
        """All values of a header, in order; answers pseudo headers and `host` too."""
        pseudo = _PSEUDO.get(name)
        if pseudo is not None:
            return [getattr(self, pseudo)]
        values = [value for key, value in self.headers if key == name]
        if not values and self.grpc and name == "content-type":
            return ["application/grpc"]
        return values

    def having(
        self, headers: Headers, *, path: str | None = None, authority: str | None = None
    ) -> Request:
        """The same request with other headers, and possibly another path or authority."""
        return Request(
            self.method,
            self.target if path is None else path,
            authority=self.authority if authority is None else authority,
            scheme=self.scheme,
            headers=headers,
            grpc=self.grpc,
        )


_PSEUDO = {
    ":method": "method",
    ":path": "target",
    ":authority": "authority",
    ":scheme": "scheme",
    "host": "authority",
}


def matches(route: Route, request: Request, random: Random) -> bool:
    """Whether a route takes this request."""
    match = route.match
    if not match.path.matches(request.path):
        return False
    return conditions_hold(route, request, random)


def conditions_hold(route: Route, request: Request, random: Random) -> bool:
    """Everything but the path: headers, query, gRPC, fraction."""
    match = route.match
    if match.grpc_only and not request.grpc:
        return False
    for header in match.headers:
        if not header.matches(request):
            return False
    for query in match.queries:
        if not query.matches(request.query):
            return False
    return match.fraction is None or match.fraction.holds(random())


def select(host: VirtualHost, request: Request, random: Random) -> Route | None:
    """The first route that matches; None when none does."""
    for route in host.routes:
        if matches(route, request, random):
            return route
    return None


def unconditional(route: Route) -> bool:
    """Whether the path alone decides about this route."""
    match = route.match
    return not (match.headers or match.queries or match.fraction or match.grpc_only)


# --- rewriting -------------------------------------------------------------------------------


def rewrite_path(
    target: str, match: PathMatch, prefix: str | None, regex: RegexRewrite | None
) -> str:
    """Path with query after `prefix_rewrite` or `regex_rewrite`; the query stays.

    A prefix rewrite replaces the matched prefix, and the whole path where the route matched it
    exactly or by expression.
    """
    if prefix is None and regex is None:
        return target
    end = min((i for i in (target.find("?"), target.find("#")) if i >= 0), default=len(target))
    path, rest = target[:end], target[end:]
    if prefix is not None:
        whole = match.kind in (PathKind.EXACT, PathKind.REGEX)
        return prefix + ("" if whole else path[len(match.value) :]) + rest
    assert regex is not None
    rewritten: str = compile_regex(regex.pattern).sub(regex.substitution, path)
    return rewritten + rest


def redirect_location(action: RedirectAction, request: Request, match: PathMatch) -> str:
    """The Location header of a redirect. Source: Envoy `RouteEntryImplBase::newUri`."""
    scheme = action.scheme or ("https" if action.https else request.scheme)
    if action.host is not None:
        host = action.host
    else:
        host = _host_for(request, scheme, drop_port=action.port is not None)
    port = f":{action.port}" if action.port is not None else ""
    return f"{scheme}://{host}{port}{_redirect_path(action, request, match)}"


def _host_for(request: Request, scheme: str, *, drop_port: bool) -> str:
    """The request's host; its port goes when it is the old scheme's default or is replaced."""
    host, colon, port = request.authority.rpartition(":")
    if not colon or not port.isdigit():
        return request.authority
    default = "443" if request.scheme == "https" else "80"
    if drop_port or (scheme != request.scheme and port == default):
        return host
    return request.authority


def _redirect_path(action: RedirectAction, request: Request, match: PathMatch) -> str:
    query = f"?{request.query}" if request.query else ""
    if action.path is not None:
        if action.strip_query or "?" in action.path:
            return action.path
        return action.path + query
    path = rewrite_path(request.path, match, action.prefix_rewrite, action.regex_rewrite)
    return path if action.strip_query else path + query


# --- header mutations ------------------------------------------------------------------------


def mutate(
    headers: Headers,
    levels: Iterable[tuple[tuple[HeaderOption, ...], tuple[str, ...]]],
    request: Request,
    *,
    of_request: bool,
) -> list[tuple[str, str]]:
    """Headers after the mutations of each level, in order: the last level wins.

    Within a level names are removed first; then all values and conditions are evaluated, and only
    then written, overwriting before appending (seen on Envoy 1.40).

    Args:
        levels: (options, names to remove).
        request: answers `%REQ(name)%` in values.
        of_request: these are the request's own headers, so that a level sees what earlier ones did.
    """
    result = list(headers)
    for options, remove in levels:
        if remove:
            result = [pair for pair in result if pair[0].lower() not in remove]
        if of_request:
            request = request.having(result)
        result = _write(result, options, request)
    return result


def _write(
    headers: list[tuple[str, str]], options: tuple[HeaderOption, ...], request: Request
) -> list[tuple[str, str]]:
    present = {name.lower() for name, _ in headers}
    overwritten: dict[str, str] = {}
    added: list[tuple[str, str]] = []
    for option in options:
        value = substitute(option.value, request)
        if not value and not option.keep_empty:
            continue
        match option.action:
            case AppendAction.OVERWRITE if option.name not in present:
                pass
            case AppendAction.ADD_IF_ABSENT if option.name in present:
                pass
            case AppendAction.OVERWRITE | AppendAction.OVERWRITE_OR_ADD:
                overwritten[option.name] = value
            case _:
                added.append((option.name, value))
    kept = [pair for pair in headers if pair[0].lower() not in overwritten]
    return [*kept, *overwritten.items(), *added]


_COMMAND = re.compile(r"%%|%([A-Z_]+)(?:\(([^)]*)\))?%")


@lru_cache(maxsize=1024)
def _is_plain(value: str) -> bool:
    return "%" not in value


def substitute(value: str, request: Request) -> str:
    """A header value with Envoy's command operators filled in; an absent header gives nothing.

    `%REQ(NAME?ALTERNATIVE)%`, `%PROTOCOL%` and `%%` have a meaning on the client side; other
    operators are left empty.
    """
    if _is_plain(value):
        return value

    def fill(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        if found[1] == "REQ":
            return _first_value(request, found[2] or "")
        if found[1] == "PROTOCOL":
            return "HTTP/2" if request.grpc else "HTTP/1.1"
        return ""

    return _COMMAND.sub(fill, value)


def _first_value(request: Request, names: str) -> str:
    for name in names.lower().split("?"):
        values = request.values(name)
        if values:
            return values[0]  # of a header that comes twice Envoy takes the first only
    return ""


def request_levels(mutations: Iterable[HeaderMutations]) -> tuple[Any, ...]:
    return tuple(
        (m.request_set, m.request_remove) for m in mutations if m.request_set or m.request_remove
    )


def response_levels(mutations: Iterable[HeaderMutations]) -> tuple[Any, ...]:
    return tuple(
        (m.response_set, m.response_remove)
        for m in mutations
        if m.response_set or m.response_remove
    )
