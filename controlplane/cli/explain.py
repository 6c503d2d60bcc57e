"""Where a request would go, and why: every rule that was looked at, in words.

Pure: the same view, matchers and functions that a call of the SDK uses, asked one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.model.schema import counted
from meshsdk import routing
from meshsdk.matching import HeaderMatch, QueryMatch, StringMatch, first_query_value
from meshsdk.model import (
    Action,
    DirectResponseAction,
    Fault,
    ForwardAction,
    HashKind,
    HashPolicy,
    HeaderMutations,
    ListenerView,
    MirrorPolicy,
    NonForwardingAction,
    RedirectAction,
    RegexRewrite,
    RetryPolicy,
    Route,
    VirtualHost,
)
from meshsdk.routing import Request


def explain(view: ListenerView, request: Request) -> dict[str, Any]:
    """The answer of `meshctl route` as data (see docs/meshctl.md for the fields).

    Fractions are not drawn: a route that takes a share of the requests is told as such and the
    next one is looked at as if it had not.
    """
    why: list[str] = []
    answer: dict[str, Any] = {
        "listener": view.name, "virtual_host": None, "route": None, "action": "none",
        "cluster": None, "weights": {}, "rewrite": None, "headers": None, "timeout": None,
        "retries": None, "fault": None, "mirror": None, "hash": None, "why": why,
    }  # fmt: skip
    if view.absent or view.route_config is None:
        why.append(view.absent or f"listener {view.name} has no routes")
        return answer
    host = view.route_config.virtual_host(request.authority)
    if host is None:
        why.append(f"no virtual host has a domain for {request.authority!r}: 404 NR")
        return answer
    answer["virtual_host"] = host.name
    why.append(f"virtual host {host.name!r}: a domain of it matches {request.authority!r}")
    route = _find(host, request, why)
    if route is None:
        why.append("no route matches: 404 NR")
        return answer
    answer["route"] = route.name
    answer.update(_action(view, host, route, request, why))
    return answer


def _find(host: VirtualHost, request: Request, why: list[str]) -> Route | None:
    for index, route in enumerate(host.routes):
        reasons = list(_misses(route, request))
        name = f"route[{index}] {route.name!r}" if route.name else f"route[{index}]"
        if reasons:
            why.append(f"{name}: no, {'; '.join(reasons)}")
            continue
        share = route.match.fraction
        if share is not None and share.numerator < share.denominator:
            why.append(f"{name}: takes {share.numerator}/{share.denominator} of such requests")
            continue
        why.append(f"{name}: yes, {_matched(route)}")
        return route
    return None


def _misses(route: Route, request: Request) -> Iterator[str]:
    match = route.match
    if not match.path.matches(request.path):
        yield f"path {request.path!r} is not {match.path.kind.value} {match.path.value!r}"
    if match.grpc_only and not request.grpc:
        yield "it takes gRPC only"
    for header in match.headers:
        if not header.matches(request):
            seen = ", ".join(map(repr, request.values(header.name))) or "absent"
            yield f"header {header.name} is {seen}, wanted {_header(header)}"
    for query in match.queries:
        if not query.matches(request.query):
            value = first_query_value(request.query, query.name)
            seen = "absent" if value is None else repr(value)
            yield f"query parameter {query.name} is {seen}, wanted {_query(query)}"


def _matched(route: Route) -> str:
    match = route.match
    parts = [f"path is {match.path.kind.value} {match.path.value!r}"]
    parts += [f"header {h.name} is {_header(h)}" for h in match.headers]
    parts += [f"query parameter {q.name} is {_query(q)}" for q in match.queries]
    return ", ".join(parts)


def _string(string: StringMatch) -> str:
    folded = " (any case)" if string.ignore_case else ""
    return f"{string.kind.value} {string.value!r}{folded}"


def _header(header: HeaderMatch) -> str:
    if header.string is not None:
        text = _string(header.string)
    elif header.range is not None:
        text = f"a number from {header.range[0]} to below {header.range[1]}"
    else:
        text = "present" if header.present else "absent"
    return f"not {text}" if header.invert else text


def _query(query: QueryMatch) -> str:
    return _string(query.string) if query.string else "present" if query.present else "absent"


def _action(
    view: ListenerView, host: VirtualHost, route: Route, request: Request, why: list[str]
) -> dict[str, Any]:
    fault = route.fault or host.fault or view.fault
    config = view.route_config
    found: dict[str, Any] = {
        "fault": (_fault(fault) or None) if fault is not None else None,
        "headers": _headers(
            [route.mutations, host.mutations, *([config.mutations] if config else [])]
        ),
    }
    action: Action = route.action
    if isinstance(action, RedirectAction):
        location = routing.redirect_location(action, request, route.match.path)
        why.append(f"answered with a redirect to {location}")
        return found | {
            "action": "redirect",
            "redirect": {"status": action.status, "location": location},
        }
    if isinstance(action, DirectResponseAction):
        why.append(f"answered directly with {action.status}")
        body = action.body.decode("utf-8", "replace")
        return found | {
            "action": "direct_response",
            "direct_response": {"status": action.status, "body": body},
        }
    if isinstance(action, NonForwardingAction):
        why.append("the route answers nothing: it is for servers")
        return found | {"action": "non_forwarding"}
    if not isinstance(action, ForwardAction):
        why.append(f"the SDK cannot follow this route: {action.problem}")
        return found | {"action": "unsupported"}
    return found | _forward(view, route, action, request, why)


def _forward(
    view: ListenerView, route: Route, action: ForwardAction, request: Request, why: list[str]
) -> dict[str, Any]:
    weights = {entry.cluster: entry.weight for entry in action.clusters}
    for entry in action.clusters:
        cluster = view.clusters.get(entry.cluster)
        if cluster is None:
            why.append(f"cluster {entry.cluster} does not exist: 503 NC")
        elif cluster.passthrough:
            why.append(_passed(entry.cluster))
        else:
            many = counted(len(cluster.endpoints), "usable endpoint")
            why.append(f"cluster {entry.cluster}: {many}")
    path = routing.rewrite_path(
        request.target, route.match.path, action.prefix_rewrite, action.regex_rewrite
    )
    rewrite = {
        "path": path if path != request.target else None,
        "authority": action.host_rewrite,
        "regex": _regex(action.regex_rewrite),
    }
    return {
        "action": "route",
        "cluster": max(weights, key=lambda name: weights[name]) if weights else None,
        "weights": weights,
        "rewrite": rewrite if any(rewrite.values()) else None,
        "timeout": action.timeout,
        "retries": _retries(action.retry),
        "mirror": [_mirror(policy) for policy in action.mirrors] or None,
        "hash": [_hash(policy) for policy in action.hash_policy] or None,
    }


def _mirror(policy: MirrorPolicy) -> dict[str, Any]:
    share = policy.fraction
    return {"cluster": policy.cluster, "percentage": 100 * share.numerator / share.denominator}


def _hash(policy: HashPolicy) -> str:
    """What the key is made of, in words."""
    if policy.kind is HashKind.SOURCE_IP:
        return "source address"
    made = f", made for {policy.ttl} s where absent" if policy.ttl is not None else ""
    return f"{policy.kind.value.replace('_', ' ')} {policy.name}{made}"


def _passed(cluster: str) -> str:
    """Why a call goes to where it was going."""
    if cluster.startswith("outbound|"):
        return f"cluster {cluster} has no endpoints of its own: it goes out unchanged"
    return "the host is not in the registry: it goes out unchanged (ALLOW_ANY)"


def _regex(rewrite: RegexRewrite | None) -> dict[str, str] | None:
    return {"pattern": rewrite.pattern, "substitution": rewrite.substitution} if rewrite else None


def _retries(policy: RetryPolicy | None) -> dict[str, Any] | None:
    if policy is None:
        return None
    return {
        "attempts": policy.num_retries,
        "retry_on": list(policy.retry_on),
        "per_try_timeout": policy.per_try_timeout,
    }


def _fault(fault: Fault) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if fault.delay is not None:
        share = fault.delay.fraction
        found["delay"] = {
            "seconds": fault.delay.seconds,
            "percentage": 100 * share.numerator / share.denominator,
        }
    if fault.abort is not None:
        share = fault.abort.fraction
        found["abort"] = {
            "http_status": fault.abort.http_status,
            "grpc_status": fault.abort.grpc_status,
            "percentage": 100 * share.numerator / share.denominator,
        }
    return found


def _headers(levels: list[HeaderMutations]) -> dict[str, Any] | None:
    found = {
        "request": {
            "set": {o.name: o.value for m in reversed(levels) for o in m.request_set},
            "remove": [name for m in levels for name in m.request_remove],
        },
        "response": {
            "set": {o.name: o.value for m in reversed(levels) for o in m.response_set},
            "remove": [name for m in levels for name in m.response_remove],
        },
    }
    return found if any(levels) else None
