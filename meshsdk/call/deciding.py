"""From a request to a decision."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import replace

from meshsdk import faults, routing
from meshsdk.balancing import ClusterView, toward
from meshsdk.call.answers import (
    answer,
    must_use_tls,
    mutated,
    mutations,
    no_route,
    to_tls,
    virtual_cluster_of,
)
from meshsdk.call.decisions import (
    NO_EXCHANGE,
    PASSTHROUGH,
    Decision,
    Forward,
    Mirror,
    Passthrough,
    Reply,
    described,
)
from meshsdk.errors import (
    ClusterNotFound,
    ListenerNotFound,
    NoRoute,
    grpc_code_of_http,
)
from meshsdk.matching.requests import integer
from meshsdk.model import (
    CorsPolicy,
    Fault,
    ForwardAction,
    ListenerView,
    RequireTls,
    Route,
    VirtualHost,
    WeightedCluster,
)
from meshsdk.routing import Draw, Random, Request


def decide(view: ListenerView, request: Request, random: Random) -> Decision:
    """What is to be done with this request under this configuration.

    Args:
        random: uniform numbers in [0, 1): one for the whole route table, one per fault looked at.
    """
    if view.passthrough:
        return PASSTHROUGH
    config = view.route_config
    if view.absent or config is None:
        return Reply.of(ListenerNotFound(view.absent or f"{view.name} has no routes"))
    host = routing.virtual_host(config, request)
    if host is None:
        return Reply.of(NoRoute(f"no virtual host for {request.authority} in {view.name}"))
    if host.require_tls is not RequireTls.NONE and must_use_tls(host, request):
        return to_tls(request)
    number = Draw(random)
    route = routing.select(config, host, request, number)
    if route is None:
        return no_route(host, request)
    return follow(view, host, route, request, random, number)


def follow(
    view: ListenerView,
    host: VirtualHost,
    route: Route,
    request: Request,
    random: Random,
    number: Draw,
) -> Decision:
    """The decision of a route that was chosen: filters first, in their order."""
    action = route.action
    chosen = None
    if isinstance(action, ForwardAction):
        chosen = named(draw(view, action, request, random, number), request)
    cors = None
    policies = cors_of(route, chosen)
    if chosen is not None and policies:
        cors = routing.cors_answer(policies, request, random)
        if cors is not None and cors.preflight and view.filters.cors_first:
            return _preflight(route, cors.headers, 0.0)
    delay = 0.0
    for fault in faults_of(view, host, route, chosen):
        if not faults.applies(fault, request, chosen.cluster if chosen else ""):
            continue
        delay += faults.delay_of(fault, request, random)
        aborted = faults.abort_of(fault, request, random, route.name)
        if aborted is not None:
            aborted.cluster = chosen.cluster if chosen else ""
            # Envoy leaves the aborts of routes alone that would not have sent anything on.
            levels = mutations(view, host, route, chosen) if chosen else []
            exchange = described(route, chosen.cluster if chosen else "", view, host)
            reply = mutated(Reply.of(aborted, delay), levels, request, exchange)
            return reply.having(cors.headers) if cors and view.filters.cors_first else reply
    if chosen is None:
        return answer(view, host, route, request, delay)
    if cors is not None and cors.preflight:
        return _preflight(route, cors.headers, delay)
    return forward(
        view, host, route, chosen, request, delay, random, number, cors.headers if cors else ()
    )


def faults_of(
    view: ListenerView, host: VirtualHost, route: Route, chosen: WeightedCluster | None
) -> Iterable[Fault]:
    """The faults that a call meets, in the order of their filters."""
    first = (chosen.fault if chosen else None) or route.fault or host.fault or view.fault
    if first is not None:
        yield first
    yield from view.filters.further_faults


def cors_of(route: Route, chosen: WeightedCluster | None) -> tuple[CorsPolicy, ...]:
    if chosen is not None and chosen.cors is not None:
        return chosen.cors
    return route.cors


def _preflight(route: Route, headers: tuple[tuple[str, str], ...], delay: float) -> Reply:
    return Reply(200, headers, grpc_code=grpc_code_of_http(200), delay=delay, route=route.name)


# --- which cluster ---------------------------------------------------------------------------


def draw(
    view: ListenerView, action: ForwardAction, request: Request, random: Random, number: Draw
) -> WeightedCluster:
    """The cluster of a call by its weight."""
    clusters = action.clusters
    if len(clusters) == 1:
        return clusters[0]
    value = None
    if action.random_header:
        values = request.values(action.random_header)
        value = integer(values[0]) if len(values) == 1 else None
    elif action.hashed_choice:
        value, _ = routing.hash_key(action.hash_policy, request, view.caller, random)
    if value is None or value < 0:
        value = number()
    bounds = list(itertools.accumulate(entry.weight for entry in clusters))
    return clusters[bisect.bisect(bounds, value % bounds[-1])]


def named(chosen: WeightedCluster, request: Request) -> WeightedCluster:
    """With its name, where a header of the request has that."""
    if not chosen.header:
        return chosen
    return replace(chosen, cluster=next(iter(request.values(chosen.header)), ""))


# --- sending on ------------------------------------------------------------------------------


def forward(
    view: ListenerView,
    host: VirtualHost,
    route: Route,
    chosen: WeightedCluster,
    request: Request,
    delay: float,
    random: Random,
    number: Draw,
    cors: tuple[tuple[str, str], ...] = (),
) -> Decision:
    """The decision to send on; or why it cannot be."""
    action = route.action
    assert isinstance(action, ForwardAction)
    cluster: ClusterView | None = view.clusters.get(chosen.cluster)
    if cluster is None:
        missing = _not_found(route, action, chosen.cluster, delay)
        exchange = described(route, chosen.cluster, view, host)
        found = mutated(missing, mutations(view, host, route, chosen), request, exchange)
        return found.having(cors)
    cluster = _aimed(cluster, action, request)
    dropped = cluster.dropped(random) if cluster.drops else None
    if dropped is not None:
        levels = mutations(view, host, route, chosen)
        counted = virtual_cluster_of(host, request)
        exchange = described(route, chosen.cluster, view, host, counted)
        return mutated(Reply.of(dropped, delay), levels, request, exchange)
    if cluster.passthrough:
        return Passthrough(delay) if delay else PASSTHROUGH
    levels = mutations(view, host, route, chosen)
    request_levels = routing.request_levels(levels, chosen.mutations, chosen.host_rewrite or "")
    response_levels = routing.response_levels(levels)
    exchange = NO_EXCHANGE
    if request_levels or response_levels or action.host_format or action.path_format:
        counted = virtual_cluster_of(host, request)
        exchange = described(route, chosen.cluster, view, host, counted)
    authority = chosen.host_rewrite or request.authority
    sent = request
    hash_policy = cluster.cluster.lb.hash_policy or action.hash_policy
    if hash_policy or looks_at_sent(action):
        changed = routing.mutate(
            request.headers, request_levels, request, of_request=True, exchange=exchange
        )
        sent = request.having(changed, authority=authority)
    own = routing.host_of(action, sent, exchange)
    by_endpoint = own is None and action.host_of_endpoint and _has_hostnames(cluster)
    xfh = authority if action.forwarded_host and (own is not None or by_endpoint) else ""
    if own is not None:
        authority = own
        if action.path_format is not None:
            sent = sent.having(sent.headers, authority=authority)
    path = routing.path_of(action, route.match.path, sent, exchange)
    key: int | None = None
    made: tuple[str, ...] = ()
    if hash_policy:
        final = sent.having(sent.headers, path=path, authority=authority)
        key, made = routing.hash_key(hash_policy, final, view.caller, random)
    return Forward(
        route=route,
        cluster=cluster,
        path=path,
        authority=authority,
        timeout=_timeout(view, action),
        max_grpc_timeout=action.max_grpc_timeout,
        delay=delay,
        path_rewritten=path != request.target,
        host_rewritten=authority != request.authority,
        changes_request=bool(request_levels or xfh),
        changes_response=bool(response_levels or cors or made),
        key=key,
        set_cookies=made,
        mirrors=_mirrors(
            view, action, request, path, authority, number, xfh if by_endpoint else ""
        ),
        host_of_endpoint=action.host_of_endpoint,
        _forwarded_host=xfh,
        _cors=cors,
        _request=request,
        _request_levels=request_levels,
        _response_levels=response_levels,
        _exchange=exchange,
    )


def _aimed(cluster: ClusterView, action: ForwardAction, request: Request) -> ClusterView:
    """The part of a cluster that this call may go to: a subset, or what a header names."""
    header = cluster.cluster.original_dst_header
    if header:
        given = request.values(header)
        return toward(cluster, given[0]) if given else cluster
    return cluster.subset(action.subset) if action.subset else cluster


def _has_hostnames(cluster: ClusterView) -> bool:
    return any(state.endpoint.hostname for state in cluster.endpoints)


def _timeout(view: ListenerView, action: ForwardAction) -> float | None:
    """The route's limit; where it says nothing of the longest stream, that of the listener."""
    longest = view.max_stream_duration
    if longest is None or action.max_stream_duration is not None:
        return action.timeout
    return longest if action.timeout is None else min(action.timeout, longest)


def looks_at_sent(action: ForwardAction) -> bool:
    """Whether anything but headers depends on the headers as they are sent."""
    return bool(
        action.hash_policy or action.host_header or action.host_format or action.path_format
    )


def _not_found(route: Route, action: ForwardAction, cluster: str, delay: float) -> Reply:
    missing = f"cluster {cluster} of route {route.name!r} does not exist"
    found = Reply.of(ClusterNotFound(missing, route=route.name, cluster=cluster), delay)
    if action.not_found_status == found.status:
        return found
    status = action.not_found_status
    return replace(found, status=status, grpc_code=grpc_code_of_http(status))


def _mirrors(
    view: ListenerView,
    action: ForwardAction,
    request: Request,
    path: str,
    authority: str,
    number: Draw,
    endpoint_host: str,
) -> tuple[Mirror, ...]:
    found = []
    for policy in action.mirrors:
        name = policy.cluster or next(iter(request.values(policy.header)), "")
        cluster = view.clusters.get(name)
        # What was looked at in vain is left out: a copy never harms the call.
        if cluster is None or cluster.passthrough or not policy.fraction.takes(number()):
            continue
        host = policy.host_rewrite
        if not host:
            host = routing.shadow_host(authority) if policy.suffix else authority
        found.append(
            Mirror(
                cluster,
                host,
                path,
                policy.trace_sampled,
                changes=policy.changes,
                _endpoint_host=endpoint_host,
                _request=request,
            )
        )
    return tuple(found)
