"""Answers that the mesh gives itself, and what all decisions say of their way."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from meshsdk import routing
from meshsdk.call.decisions import Reply, described
from meshsdk.errors import NoRoute, UnusableRoute, grpc_code_of_http
from meshsdk.formats import Context, Exchange, Format
from meshsdk.model import (
    DirectResponseAction,
    HeaderMutations,
    JsonBody,
    ListenerView,
    NonForwardingAction,
    RedirectAction,
    RequireTls,
    Route,
    UnsupportedAction,
    VirtualHost,
    WeightedCluster,
)
from meshsdk.routing import Request


def no_route(host: VirtualHost, request: Request) -> Reply:
    return Reply.of(NoRoute(f"no route for {request.method} {request.target} in {host.name}"))


def must_use_tls(host: VirtualHost, request: Request) -> bool:
    """Whether the virtual host sends this request away to https."""
    if request.scheme == "https" or host.require_tls is RequireTls.NONE:
        return False
    internal = request.values("x-envoy-internal")[:1] == ["true"]
    return host.require_tls is RequireTls.ALL or not internal


def to_tls(request: Request) -> Reply:
    headers = (("location", routing.tls_location(request)),)
    return Reply(301, headers, grpc_code=grpc_code_of_http(301))


def answer(
    view: ListenerView, host: VirtualHost, route: Route, request: Request, delay: float
) -> Reply:
    """The answer of a route that sends nothing on; response mutations apply to it too."""
    action = route.action
    if isinstance(action, UnsupportedAction):
        return Reply.of(UnusableRoute(action.problem, route=route.name), delay)
    if isinstance(action, NonForwardingAction):
        problem = "non_forwarding_action: the route is for received calls"
        return Reply.of(UnusableRoute(problem, route=route.name), delay)
    exchange = described(route, "", view, host)
    headers: tuple[tuple[str, str], ...] = ()
    body = b""
    seen = request
    if isinstance(action, RedirectAction):
        path = routing.redirected_target(action, route.match.path, request.target)
        location = routing.redirect_location(
            action, request, route.match.path, Context(request, exchange)
        )
        headers = (("location", location),)
        seen = request.having(request.headers, path=path)
    else:
        assert isinstance(action, DirectResponseAction)
        body, headers = _direct(action, request, exchange)
    found = Reply(
        action.status,
        headers,
        body,
        grpc_code=grpc_code_of_http(action.status),
        grpc_message=body.decode("utf-8", "replace"),
        delay=delay,
        route=route.name,
    )
    return mutated(found, mutations(view, host, route, None), seen, exchange)


def _direct(
    action: DirectResponseAction, request: Request, exchange: Exchange
) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """(body, headers) of a direct response."""
    body = action.body
    kind = "text/plain"
    if action.status in (204, 304):
        body = b""
    elif action.format is not None:
        text = body.decode("utf-8", "replace")
        # As in Envoy the status of the answer is not known yet.
        context = Context(request, exchange, response=(), body=text)
        body = _formatted(action.format, context)
        kind = action.content_type or kind
    headers = [("content-type", kind)] if body else []
    if action.status == 201 or 300 <= action.status < 400:
        headers.append(("location", routing.own_uri(request)))
    return body, tuple(headers)


def _formatted(form: Format | JsonBody, context: Context) -> bytes:
    if isinstance(form, Format):
        return form.fill(context).encode()

    def filled(value: Any) -> Any:
        if isinstance(value, Format):
            return value.fill(context)
        if isinstance(value, dict):
            return {key: filled(part) for key, part in value.items()}
        return [filled(part) for part in value] if isinstance(value, list) else value

    return json.dumps(filled(form.document), separators=(",", ":")).encode() + b"\n"


def mutated(
    found: Reply, levels: list[HeaderMutations], request: Request, exchange: Exchange
) -> Reply:
    changes = routing.response_levels(levels)
    if not changes:
        return found
    headers = routing.mutate(
        found.headers,
        changes,
        request,
        of_request=False,
        exchange=exchange,
        status=0,  # as in Envoy: the status is set behind the mutations
    )
    return replace(found, headers=tuple(headers))


def mutations(
    view: ListenerView, host: VirtualHost, route: Route, chosen: WeightedCluster | None
) -> list[HeaderMutations]:
    """In the order of application: the last one wins.

    Source: Envoy `RouteConfiguration.most_specific_header_mutations_wins`.
    """
    config = view.route_config
    assert config is not None
    levels = [route.mutations, host.mutations, config.mutations]
    if config.most_specific_mutations_win:
        levels.reverse()
    if chosen is not None:
        levels.insert(0, chosen.mutations)
    return [level for level in levels if level]


def virtual_cluster_of(host: VirtualHost, request: Request) -> str:
    """The virtual cluster that a request counts for; empty where it is none that has a name."""
    for cluster in host.virtual_clusters:
        if all(header.matches(request) for header in cluster.headers):
            return cluster.name
    return ""
