"""gRPC methods, compiled once per view."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable
from dataclasses import replace

from meshsdk import routing
from meshsdk.balancing import ClusterView
from meshsdk.call import answers, deciding
from meshsdk.call.decisions import Decision, Forward
from meshsdk.model import (
    ForwardAction,
    ListenerView,
    Route,
    VirtualHost,
    WeightedCluster,
)
from meshsdk.routing import Draw, Random, Request


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
    if view.passthrough or view.absent or config is None:
        return _constant(view, request, deciding.decide(view, request, _unused))
    if config.host_header:
        return _open(view, request)
    host = config.virtual_host(authority)
    if host is None:
        return _constant(view, request, deciding.decide(view, request, _unused))
    if host.tree is not None or answers.must_use_tls(host, request):
        return _open(view, request)
    compared = routing.comparable_path(config, request)
    routes = _candidates(host, request, compared)
    if not routes:
        return _constant(view, request, deciding.decide(view, request, _unused))
    first = routes[0]
    if first.match.unconditional and _settles(view, host, first):
        return _settled(view, host, first, request)

    def choose(request: Request, random: Random) -> Decision:
        number = Draw(random)
        for route in routes:
            if routing.conditions_hold(route, request, number):
                return deciding.follow(view, host, route, request, random, number)
        return answers.no_route(host, request)

    return MethodTable(view, request, None, choose, needs_request=True)


def _open(view: ListenerView, request: Request) -> MethodTable:
    """Nothing is known beforehand."""

    def decide(request: Request, random: Random) -> Decision:
        return deciding.decide(view, request, random)

    return MethodTable(view, request, None, decide, needs_request=True)


def _settles(view: ListenerView, host: VirtualHost, route: Route) -> bool:
    """Whether calls on this route differ in their weighted cluster and headers at most."""
    action = route.action
    if not isinstance(action, ForwardAction):
        return not any(deciding.faults_of(view, host, route, None)) and _answers_alike(
            view, host, route
        )
    entries: tuple[WeightedCluster, ...] = action.clusters
    for entry in entries:
        possible = deciding.faults_of(view, host, route, entry)
        if any(fault.delay or fault.abort for fault in possible):
            return False
        if entry.header or deciding.cors_of(route, entry):
            return False
        cluster = view.clusters.get(entry.cluster)
        if cluster is not None and _differs(cluster):
            return False
    chooses = action.random_header or action.hashed_choice
    return not (chooses or action.mirrors or deciding.looks_at_sent(action))


def _differs(cluster: ClusterView) -> bool:
    """Whether the cluster has a say in each call that comes to it."""
    config = cluster.cluster
    return bool(cluster.drops or config.original_dst_header or config.lb.hash_policy)


def _answers_alike(view: ListenerView, host: VirtualHost, route: Route) -> bool:
    levels = routing.response_levels(answers.mutations(view, host, route, None))
    action = route.action
    formatted = getattr(action, "format", None) or getattr(action, "path_format", None)
    return routing.is_constant(levels) and formatted is None


def _candidates(host: VirtualHost, request: Request, path: str) -> list[Route]:
    """Routes whose path matches, up to the first that takes everything."""
    found = []
    for route in host.routes:
        if routing.path_matches(route, request, path):
            found.append(route)
            if route.match.unconditional:
                break
    return found


def _constant(view: ListenerView, request: Request, decision: Decision) -> MethodTable:
    return MethodTable(view, request, None, lambda request, random: decision, needs_request=False)


def _settled(view: ListenerView, host: VirtualHost, route: Route, request: Request) -> MethodTable:
    """One route for all calls: at most the weighted cluster is left to be drawn."""
    action = route.action
    if not isinstance(action, ForwardAction):
        return _constant(view, request, answers.answer(view, host, route, request, 0.0))
    number = Draw(_unused)
    decisions = [
        deciding.forward(view, host, route, entry, request, 0.0, _unused, number)
        for entry in action.clusters
    ]
    dynamic = any(isinstance(d, Forward) and not d.alike for d in decisions)
    if len(decisions) == 1 and not dynamic:
        only = decisions[0]
        static = only if isinstance(only, Forward) else None
        return MethodTable(view, request, static, lambda request, random: only, False)
    bounds = list(itertools.accumulate(entry.weight for entry in action.clusters))
    total = bounds[-1]

    def choose(request: Request, random: Random) -> Decision:
        decision = decisions[bisect.bisect(bounds, Draw(random)() % total)]
        if dynamic and isinstance(decision, Forward):
            return replace(decision, _request=request)
        return decision

    return MethodTable(view, request, None, choose, needs_request=dynamic)


def _unused() -> float:
    raise AssertionError("a constant decision draws nothing")
