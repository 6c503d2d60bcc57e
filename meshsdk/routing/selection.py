"""Which route a request gets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from meshsdk.matching import PathKind
from meshsdk.model import Route, RouteConfiguration, VirtualHost
from meshsdk.routing.request import Random, Request

_WHOLE = 1 << 53
_PARAMETERS = re.compile(";[^/]*")


class Draw:
    """The one random whole number of a call, drawn when it is first asked for.

    As in Envoy, all shares and weights of a route table that a call meets are taken of the same
    number: a call in the 10 % of one route is in the first 10 % of weights too.
    """

    __slots__ = ("_random", "_value")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._value = -1

    def __call__(self) -> int:
        if self._value < 0:
            self._value = int(self._random() * _WHOLE)
        return self._value


Number = Callable[[], int]


def virtual_host(config: RouteConfiguration, request: Request) -> VirtualHost | None:
    """The virtual host of a request; None when none matches."""
    if not config.host_header:
        return config.virtual_host(request.authority)
    values = request.values(config.host_header)
    return config.virtual_host(values[0]) if values else None


def comparable_path(config: RouteConfiguration, request: Request) -> str:
    """The path by which routes are chosen."""
    path = request.path
    return _PARAMETERS.sub("", path) if config.ignore_path_parameters and ";" in path else path


def matches(route: Route, request: Request, number: Number, path: str | None = None) -> bool:
    """Whether a route takes this request.

    Args:
        path: by which to choose, where it is not the path of the request.
    """
    path = request.path if path is None else path
    return path_matches(route, request, path) and conditions_hold(route, request, number)


def path_matches(route: Route, request: Request, path: str) -> bool:
    """Whether the path is the route's; of a CONNECT route, whether the method is."""
    match = route.match.path
    if match.kind is PathKind.CONNECT:
        return request.method == "CONNECT"
    if not request.target and request.method == "CONNECT":
        return False
    # Envoy leaves path parameters where they are for templates.
    return match.matches(request.path if match.kind is PathKind.TEMPLATE else path)


def conditions_hold(route: Route, request: Request, number: Number) -> bool:
    """Everything but the path."""
    match = route.match
    if match.fraction is not None and not match.fraction.takes(number()):
        return False
    if match.grpc_only and not request.grpc:
        return False
    for header in match.headers:
        if not header.matches(request):
            return False
    for query in match.queries:
        if not query.matches(request.query):
            return False
    if match.cookies and not all(cookie.matches(request) for cookie in match.cookies):
        return False
    if match.presented or match.validated or match.impossible:
        return False
    return not match.metadata or all(m.matches(request.metadata) for m in match.metadata)


def routes_for(host: VirtualHost, request: Request, path: str) -> Iterable[Route]:
    """The routes that may take a request, in the order in which they are asked."""
    if host.tree is not None:
        return host.tree.find(request) or ()
    return host.index.candidates(path, request)


def select(
    config: RouteConfiguration, host: VirtualHost, request: Request, number: Number
) -> Route | None:
    """The first route that matches; None when none does."""
    path = comparable_path(config, request)
    for route in routes_for(host, request, path):
        if matches(route, request, number, path):
            return route
    return None
