"""One client call, decided without I/O: what is to be done with this request?

`decide()` answers with one of

- `Forward`      send it to an endpoint of a cluster, changed as the route says
- `Reply`        the mesh answers itself (redirect, direct response, abort, no route …)
- `Passthrough`  send it unchanged to where the caller was going (ALLOW_ANY, mesh off)

each with the `delay` that a fault injection asks for before anything else happens. The delay lies
outside the route's timeout and inside the caller's own limit. An adapter drives it:

    decision = decide(view, request, random)
    sleep(decision.delay)
    if isinstance(decision, Forward):
        endpoint = decision.pick(random)     # an EndpointState, or raises NoHealthyUpstream
        try: send within decision.timeout
        finally: endpoint.release()

A gRPC method asks the same questions over and over: `compile_method()` answers once per view what
does not depend on the call, and leaves only the rest to `MethodTable.decide()`.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from meshsdk import faults, routing
from meshsdk.balancing import ClusterView, EndpointState
from meshsdk.errors import (
    CallError,
    ClusterNotFound,
    ListenerNotFound,
    NoRoute,
    UnusableRoute,
    grpc_code_of_http,
)
from meshsdk.model import (
    DirectResponseAction,
    ForwardAction,
    HeaderMutations,
    ListenerView,
    RedirectAction,
    Route,
    UnsupportedAction,
    VirtualHost,
    WeightedCluster,
)
from meshsdk.routing import Headers, Random, Request

__all__ = [
    "Decision",
    "Forward",
    "MethodTable",
    "Passthrough",
    "Reply",
    "Request",
    "compile_method",
    "decide",
]


@dataclass(frozen=True, slots=True)
class Passthrough:
    """Send the request unchanged to where the caller was going."""

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """The mesh answers itself; nothing was sent.

    Attributes:
        grpc_code: number of the gRPC status that a gRPC caller sees; `grpc_message` its text.
        error: why, where the answer is an error; None for redirects and direct responses.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    flag: str = "-"
    grpc_code: int = 2
    grpc_message: str = ""
    delay: float = 0.0
    error: CallError | None = None
    route: str = ""

    @classmethod
    def of(cls, error: CallError, delay: float = 0.0) -> Reply:
        """The answer that Envoy gives for this error."""
        body = error.body.encode()
        headers = (("content-type", "text/plain"),) if body else ()
        return cls(
            status=error.http_status,
            headers=headers,
            body=body,
            flag=error.flag,
            grpc_code=error.grpc_code,
            grpc_message=error.body or str(error),
            delay=delay,
            error=error,
            route=error.route,
        )


_Levels = tuple[tuple[Any, Any], ...]
_NO_REQUEST = Request("GET", "/", authority="")


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """Send the call to an endpoint of `cluster`.

    Attributes:
        timeout: seconds for the whole call by the route; None is no limit.
        max_grpc_timeout: upper limit for the caller's own gRPC deadline; None is no limit.
        path: with query, after rewriting.
        authority: after host rewriting.
        changes_request, changes_response: False means that the header functions change nothing.
    """

    route: Route
    cluster: ClusterView
    path: str
    authority: str
    timeout: float | None = None
    max_grpc_timeout: float | None = None
    delay: float = 0.0
    path_rewritten: bool = False
    host_rewritten: bool = False
    changes_request: bool = False
    changes_response: bool = False
    _request: Request = field(default=_NO_REQUEST, repr=False)
    _request_levels: _Levels = field(default=(), repr=False)
    _response_levels: _Levels = field(default=(), repr=False)

    def pick(self, random: Random) -> EndpointState:
        """Choose an endpoint and count an attempt on it; `release()` it in a `finally`.

        Raises:
            NoHealthyUpstream: the cluster has no endpoint that may be used.
        """
        return self.cluster.pick(random)

    def request_headers(self, headers: Headers) -> list[tuple[str, str]]:
        """The headers to send: the caller's after the mutations of the route."""
        return routing.mutate(headers, self._request_levels, self._request, of_request=True)

    def response_headers(self, headers: Headers) -> list[tuple[str, str]]:
        """The headers to hand to the caller; operators in them see the request as it was sent."""
        asked = self._request
        sent = asked.having(
            self.request_headers(asked.headers), path=self.path, authority=self.authority
        )
        return routing.mutate(headers, self._response_levels, sent, of_request=False)

    def reply(self, error: CallError) -> Reply:
        """The answer to a call that failed after it was decided (UH, UF, UT)."""
        answer = Reply.of(error)
        if not self.changes_response:
            return answer
        return replace(answer, headers=tuple(self.response_headers(answer.headers)))


Decision = Forward | Reply | Passthrough


def decide(view: ListenerView, request: Request, random: Random) -> Decision:
    """What is to be done with this request under this configuration.

    Args:
        random: uniform numbers in [0, 1): one is drawn per fraction, weight and fault looked at.
    """
    if view.passthrough:
        return _PASSTHROUGH
    if view.absent or view.route_config is None:
        return Reply.of(ListenerNotFound(view.absent or f"{view.name} has no routes"))
    host = view.route_config.virtual_host(request.authority)
    if host is None:
        return Reply.of(NoRoute(f"no virtual host for {request.authority} in {view.name}"))
    route = routing.select(host, request, random)
    if route is None:
        return Reply.of(NoRoute(f"no route for {request.method} {request.target} in {host.name}"))
    return _follow(view, host, route, request, random)


_PASSTHROUGH = Passthrough()


def _follow(
    view: ListenerView, host: VirtualHost, route: Route, request: Request, random: Random
) -> Decision:
    """The decision of a route that was chosen, faults first."""
    action = route.action
    chosen = _draw(action, random) if isinstance(action, ForwardAction) else None
    delay = 0.0
    fault = (chosen.fault if chosen else None) or route.fault or host.fault or view.fault
    if fault is not None and faults.applies(fault, request, chosen.cluster if chosen else ""):
        delay = faults.delay_of(fault, request, random)
        aborted = faults.abort_of(fault, request, random, route.name)
        if aborted is not None:
            # Envoy leaves the aborts of routes alone that would not have sent anything on.
            levels = _mutations(view, host, route, chosen) if chosen else []
            return _mutated(Reply.of(aborted, delay), levels, request)
    if chosen is None:
        return _answer(view, host, route, request, delay)
    return _forward(view, host, route, chosen, request, delay)


def _draw(action: ForwardAction, random: Random) -> WeightedCluster:
    clusters = action.clusters
    if len(clusters) == 1:
        return clusters[0]
    bounds = list(itertools.accumulate(entry.weight for entry in clusters))
    return clusters[bisect.bisect(bounds, int(random() * bounds[-1]))]


def _answer(
    view: ListenerView, host: VirtualHost, route: Route, request: Request, delay: float
) -> Reply:
    """The answer of a route that sends nothing on; response mutations apply to it too."""
    action = route.action
    if isinstance(action, UnsupportedAction):
        return Reply.of(UnusableRoute(action.problem, route=route.name), delay)
    headers: tuple[tuple[str, str], ...] = ()
    body = b""
    seen = request
    if isinstance(action, RedirectAction):
        headers = (("location", routing.redirect_location(action, request, route.match.path)),)
        seen = request.having(
            request.headers,
            path=routing.rewrite_path(
                request.target, route.match.path, action.prefix_rewrite, action.regex_rewrite
            ),
        )
    else:
        assert isinstance(action, DirectResponseAction)
        body = action.body
        if body:
            headers = (("content-type", "text/plain"),)
    answer = Reply(
        action.status,
        headers,
        body,
        grpc_code=grpc_code_of_http(action.status),
        grpc_message=body.decode("utf-8", "replace"),
        delay=delay,
        route=route.name,
    )
    return _mutated(answer, _mutations(view, host, route, None), seen)


def _mutated(answer: Reply, mutations: list[HeaderMutations], request: Request) -> Reply:
    levels = routing.response_levels(mutations)
    if not levels:
        return answer
    headers = routing.mutate(answer.headers, levels, request, of_request=False)
    return replace(answer, headers=tuple(headers))


def _forward(
    view: ListenerView,
    host: VirtualHost,
    route: Route,
    chosen: WeightedCluster,
    request: Request,
    delay: float,
) -> Decision:
    cluster: ClusterView | None = view.clusters.get(chosen.cluster)
    if cluster is None:
        missing = f"cluster {chosen.cluster} of route {route.name!r} does not exist"
        return Reply.of(ClusterNotFound(missing, route=route.name, cluster=chosen.cluster), delay)
    if cluster.passthrough:
        return Passthrough(delay) if delay else _PASSTHROUGH
    action = route.action
    assert isinstance(action, ForwardAction)
    path = routing.rewrite_path(
        request.target, route.match.path, action.prefix_rewrite, action.regex_rewrite
    )
    host_rewrite = action.host_rewrite or chosen.host_rewrite  # Envoy takes the route's first
    mutations = _mutations(view, host, route, chosen)
    request_levels = routing.request_levels(mutations)
    response_levels = routing.response_levels(mutations)
    return Forward(
        route=route,
        cluster=cluster,
        path=path,
        authority=host_rewrite or request.authority,
        timeout=action.timeout,
        max_grpc_timeout=action.max_grpc_timeout,
        delay=delay,
        path_rewritten=path != request.target,
        host_rewritten=host_rewrite is not None,
        changes_request=bool(request_levels),
        changes_response=bool(response_levels),
        _request=request,
        _request_levels=request_levels,
        _response_levels=response_levels,
    )


def _mutations(
    view: ListenerView, host: VirtualHost, route: Route, chosen: WeightedCluster | None
) -> list[HeaderMutations]:
    """In the order of application: the last one wins.

    Source: Envoy `RouteConfiguration.most_specific_header_mutations_wins`.
    """
    config = view.route_config
    assert config is not None
    levels = [route.mutations, host.mutations, config.mutations]
    if chosen is not None:
        levels.insert(0, chosen.mutations)
    if config.most_specific_mutations_win:
        levels.reverse()
    return [level for level in levels if level]


# --- gRPC methods, compiled once per view ----------------------------------------------------


class MethodTable:
    """All decisions of one gRPC method under one view, as far as they do not depend on the call.

    Attributes:
        view: the view that it was compiled from; compare with `is`.
        static: the one `Forward` that every call gets, or None when calls differ.
        needs_request: whether `decide` looks at metadata; if not, any `Request` will do.
    """

    __slots__ = ("_decide", "needs_request", "request", "static", "view")

    def __init__(
        self,
        view: ListenerView,
        request: Request,
        static: Forward | None,
        decide: Callable[[Request, Random], Decision],
        needs_request: bool,
    ) -> None:
        self.view = view
        self.request = request
        self.static = static
        self.needs_request = needs_request
        self._decide = decide

    def decide(self, request: Request | None, random: Random) -> Decision:
        """The decision for one call; `request` may be None unless `needs_request`."""
        return self._decide(request or self.request, random)


def compile_method(view: ListenerView, authority: str, path: str) -> MethodTable:
    """Decide for a gRPC method everything that its metadata cannot change.

    Args:
        authority: `:authority` of the calls, `host:port`.
        path: `/package.Service/Method`.
    """
    request = Request("POST", path, authority=authority, grpc=True)
    config = view.route_config
    host = config.virtual_host(authority) if config is not None else None
    if view.passthrough or view.absent or config is None or host is None:
        return _constant(view, request, decide(view, request, _unused))
    routes = _candidates(host, request)
    if not routes:
        return _constant(view, request, decide(view, request, _unused))
    first = routes[0]
    if routing.unconditional(first) and not _may_fault(view, host, first):
        return _settled(view, host, first, request)

    def choose(request: Request, random: Random) -> Decision:
        for route in routes:
            if routing.conditions_hold(route, request, random):
                return _follow(view, host, route, request, random)
        return Reply.of(NoRoute(f"no route for {path} in {host.name}"))

    return MethodTable(view, request, None, choose, needs_request=True)


def _may_fault(view: ListenerView, host: VirtualHost, route: Route) -> bool:
    """Whether any call on this route may be delayed or aborted."""
    action = route.action
    clusters = action.clusters if isinstance(action, ForwardAction) else ()
    possible = [entry.fault for entry in clusters if entry.fault is not None]
    possible += [f for f in (route.fault, host.fault, view.fault) if f is not None][:1]
    return any(fault.delay or fault.abort for fault in possible)


def _candidates(host: VirtualHost, request: Request) -> list[Route]:
    """Routes whose path matches, up to the first that takes everything."""
    found = []
    for route in host.routes:
        if route.match.path.matches(request.path):
            found.append(route)
            if routing.unconditional(route):
                break
    return found


def _constant(view: ListenerView, request: Request, decision: Decision) -> MethodTable:
    return MethodTable(view, request, None, lambda request, random: decision, needs_request=False)


def _settled(view: ListenerView, host: VirtualHost, route: Route, request: Request) -> MethodTable:
    """One route for all calls: at most the weighted cluster is left to be drawn."""
    action = route.action
    if not isinstance(action, ForwardAction):
        return _constant(view, request, _answer(view, host, route, request, 0.0))
    ready = {entry: _forward(view, host, route, entry, request, 0.0) for entry in action.clusters}
    dynamic = any(isinstance(d, Forward) and d.changes_request for d in ready.values())
    if len(action.clusters) == 1:
        only = ready[action.clusters[0]]
        static = only if isinstance(only, Forward) and not dynamic else None
        if not dynamic:
            return MethodTable(view, request, static, lambda request, random: only, False)
    bounds = list(itertools.accumulate(entry.weight for entry in action.clusters))
    total = bounds[-1]
    decisions = [ready[entry] for entry in action.clusters]

    def draw(request: Request, random: Random) -> Decision:
        decision = decisions[bisect.bisect(bounds, int(random() * total))]
        if dynamic and isinstance(decision, Forward):
            return replace(decision, _request=request)
        return decision

    return MethodTable(view, request, None, draw, needs_request=dynamic)


def _unused() -> float:
    raise AssertionError("a constant decision draws nothing")
