"""VirtualService."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Any

from controlplane.model.hosts import is_address, matches, subset_of
from controlplane.model.traffic import MESH_GATEWAY
from controlplane.model.validation.checks import (
    CLAIM_PREFIX,
    Checker,
    Fields,
    each,
    header_name_problem,
    header_operation_problem,
    header_value_problem,
    is_label,
    sni_problem,
    wildcard_problem,
)
from controlplane.model.validation.reachability import check_reachability
from controlplane.model.validation.retries import check_retries

GRPC_CODES = frozenset(
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS"  # noqa: SIM905
    " PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE"
    " UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED".split()
)
METHODS = frozenset(
    {"*", "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
_BODY_LIMIT, _BODY_WARNING = 1 << 20, 100 << 10


def check_virtual_service(check: Checker) -> None:
    spec = check.spec
    gateways = spec.get("gateways", ())
    hosts = spec.get("hosts", ())
    is_delegate = not hosts
    if is_delegate:
        for name in ("gateways", "tls", "tcp"):
            message = "a VirtualService without hosts is a delegate and cannot have it"
            check.need(not spec.get(name), f"spec.{name}", message)
    check_gateway_names(check, gateways, "spec.gateways")
    for_mesh = not gateways or MESH_GATEWAY in gateways
    _check_hosts(check, hosts, for_mesh)
    if not any(spec.get(name) for name in ("http", "tls", "tcp")):
        check.error("spec", "one of http, tls, tcp must have a route")
    for path, route in each(spec.get("http"), "spec.http"):
        _HttpRoute(check, route, path, is_delegate, gateways).check_all()
    for path, route in each(spec.get("tls"), "spec.tls"):
        _check_tls_route(check, route, path, hosts)
    for path, route in each(spec.get("tcp"), "spec.tcp"):
        for place, match in each(route.get("match"), f"{path}.match"):
            _check_layer4(check, match, place)
        check.need(route.get("route"), f"{path}.route", "is required")
        check_destinations(check, route.get("route"), f"{path}.route")
    check.export_to()
    check_reachability(check, spec.get("http") or ())


def check_gateway_names(check: Checker, names: Iterable[str], path: str) -> None:
    """Names of gateways: `mesh`, `name`, `namespace/name`, or the old `name.namespace.svc…`."""
    for place, name in each(names, path):
        owner, slash, rest = name.partition("/")
        if not slash:
            if "." in name:
                parts = name.split(".")
                check.warn(
                    place, f"{name!r} is the old way to name a gateway: {parts[1]}/{parts[0]}"
                )
            check.fqdn(name, place)
        elif not (owner == "." or is_label(owner)) or not rest:
            check.error(place, f"{name!r} is not namespace/name")
        else:
            check.fqdn(rest, place)


def _check_hosts(check: Checker, hosts: list[str], for_mesh: bool) -> None:
    valid = True
    for path, host in each(hosts, "spec.hosts"):
        problem = None if is_address(host) else wildcard_problem(host)
        if problem is None and host == "*" and for_mesh:
            problem = "`*` is for gateways only: list the hosts, or name gateways without `mesh`"
        if problem is not None:
            check.error(path, problem)
            valid = False
    if not valid:
        return
    for index, host in enumerate(hosts):
        for other in hosts[:index]:
            if matches(host, other):
                check.error(f"spec.hosts[{index}]", f"{host!r} overlaps with {other!r}")


def check_destination(check: Checker, destination: Any, path: str) -> None:
    """A Destination: host, subset, port."""
    if not check.need(destination, path, "is required"):
        return
    host = destination.get("host", "")
    if host == "*":
        check.error(f"{path}.host", "`*` is no destination")
    elif not is_address(host):
        check.wildcard_domain(host, f"{path}.host")
    subset = destination.get("subset", "")
    check.need(not subset or is_label(subset), f"{path}.subset", f"{subset!r} is not a DNS label")
    if (port := destination.get("port")) is not None:
        check.port(port.get("number", 0), f"{path}.port.number")


def check_destinations(check: Checker, routes: Any, path: str) -> None:
    """Weighted destinations."""
    total = 0
    for place, route in each(routes, path):
        if not check.need(route.get("destination"), f"{place}.destination", "is required"):
            continue
        check_headers(check, route.get("headers"), f"{place}.headers", ("host",))
        check_destination(check, route["destination"], f"{place}.destination")
        weight = route.get("weight", 0)
        check.need(weight >= 0, f"{place}.weight", f"{weight} is negative")
        total += weight
    if routes and len(routes) > 1 and total == 0:
        check.error(path, "all weights are 0: no destination would get traffic")


def check_headers(check: Checker, headers: Any, path: str, allowed: tuple[str, ...]) -> None:
    """Header operations; `allowed` names pseudo headers that may be set on requests."""
    for side, names in (("request", allowed), ("response", ())):
        operations = (headers or {}).get(side) or {}
        for verb in ("set", "add"):
            for name, value in (operations.get(verb) or {}).items():
                place = f"{path}.{side}.{verb}.{name}"
                _say(check, place, header_operation_problem(name, allowed=names))
                _say(check, place, header_value_problem(value))
        for place, name in each(operations.get("remove"), f"{path}.{side}.remove"):
            _say(check, place, header_operation_problem(name))


def _say(check: Checker, path: str, problem: str | None) -> None:
    if problem is not None:
        check.error(path, problem)


class _HttpRoute:
    """One entry of `spec.http`."""

    def __init__(
        self, check: Checker, route: Fields, path: str, is_delegate: bool, gateways: Any
    ) -> None:
        self.check = check
        self.route = route
        self.path = path
        self.is_delegate = is_delegate
        self.for_gateway = any(name != MESH_GATEWAY for name in gateways)

    def check_all(self) -> None:
        check, route, path = self.check, self.route, self.path
        self._conflicts()
        for place, match in each(route.get("match"), f"{path}.match"):
            self._match(match, place)
        check_headers(check, route.get("headers"), f"{path}.headers", (":authority", "host"))
        parts: dict[str, Callable[[Any, str], None]] = {
            "corsPolicy": self._cors,
            "fault": self._fault,
            "redirect": self._redirect,
            "directResponse": self._direct_response,
            "retries": lambda value, path: check_retries(self.check, value, path),
            "rewrite": self._rewrite,
        }
        for name, function in parts.items():
            if route.get(name) is not None:
                function(route[name], f"{path}.{name}")
        self._mirrors()
        check_destinations(check, route.get("route"), f"{path}.route")
        check.durations(route, path, "timeout")

    def _conflicts(self) -> None:
        check, route, path = self.check, self.route, self.path
        delegate = route.get("delegate")
        if delegate is not None:
            if self.is_delegate:
                check.error(f"{path}.delegate", "a delegate cannot delegate again")
            for name in ("route", "redirect", "directResponse"):
                if route.get(name):
                    check.error(f"{path}.{name}", "cannot stand beside delegate")
            check.need(delegate.get("name"), f"{path}.delegate.name", "is required")
            return
        actions = [name for name in ("redirect", "directResponse") if route.get(name) is not None]
        if len(actions) == 2:
            check.error(path, "redirect and directResponse exclude each other")
        for action in actions[:1]:
            excluded = ["route", "rewrite"] + (["fault"] if action == "redirect" else [])
            for name in excluded:
                if route.get(name):
                    check.error(f"{path}.{name}", f"cannot stand beside {action}")
        if not actions and not route.get("route"):
            check.error(path, "one of route, redirect, directResponse, delegate is required")

    def _match(self, match: Any, path: str) -> None:
        check = self.check
        if match is None:
            return
        for name in ("uri", "scheme", "method", "authority"):
            check.string_match(match.get(name), f"{path}.{name}")
        for group in ("headers", "withoutHeaders", "queryParams"):
            for name, value in (match.get(group) or {}).items():
                place = f"{path}.{group}.{name}"
                check.string_match(value, place)
                if group == "queryParams":
                    continue
                if name.startswith(CLAIM_PREFIX):
                    if not self.for_gateway:
                        check.error(place, "claims can be matched on gateways only")
                else:
                    _say(check, place, header_name_problem(name, matched=True))
        if "port" in match and match["port"] != 0:
            check.port(match["port"], f"{path}.port")
        check.labels(match.get("sourceLabels"), f"{path}.sourceLabels")
        check_gateway_names(check, match.get("gateways", ()), f"{path}.gateways")
        redirect = self.route.get("redirect") or {}
        if redirect.get("prefixRewrite") and "prefix" not in (match.get("uri") or {"prefix": ""}):
            check.error(f"{path}.uri", "redirect.prefixRewrite needs a prefix here")

    def _cors(self, cors: Fields, path: str) -> None:
        check = self.check
        for place, origin in each(cors.get("allowOrigins"), f"{path}.allowOrigins"):
            for form, value in origin.items():
                check.need(value, f"{place}.{form}", "must not be empty")
            check.string_match(origin, place)
        for place, method in each(cors.get("allowMethods"), f"{path}.allowMethods"):
            check.need(method in METHODS, place, f"{method!r} is not an HTTP method")
        for name in ("allowHeaders", "exposeHeaders"):
            for place, header in each(cors.get(name), f"{path}.{name}"):
                _say(check, place, None if header == "*" else header_name_problem(header))
        if "maxAge" in cors:
            check.duration(cors["maxAge"], f"{path}.maxAge")

    def _fault(self, fault: Fields, path: str) -> None:
        check = self.check
        check.need("delay" in fault or "abort" in fault, path, "delay or abort is required")
        for name in ("delay", "abort"):
            percentage = (fault.get(name) or {}).get("percentage")
            if percentage is not None:
                check.percent(percentage.get("value", 0), f"{path}.{name}.percentage.value")
        if (delay := fault.get("delay")) is not None:
            check.percent(delay.get("percent", 0), f"{path}.delay.percent")
            check.durations(delay, f"{path}.delay", "fixedDelay", "exponentialDelay")
            unsupported = "exponentialDelay" in delay
            check.need(not unsupported, f"{path}.delay.exponentialDelay", "is not supported")
        if (abort := fault.get("abort")) is not None:
            if "httpStatus" in abort:
                status = abort["httpStatus"]
                message = f"{status} is not an HTTP status from 200 to 599"
                check.need(200 <= status <= 599, f"{path}.abort.httpStatus", message)
            if "grpcStatus" in abort:
                code = abort["grpcStatus"]
                message = f"{code!r} is not a gRPC status such as UNAVAILABLE"
                check.need(code in GRPC_CODES, f"{path}.abort.grpcStatus", message)
            unsupported = "http2Error" in abort
            check.need(not unsupported, f"{path}.abort.http2Error", "is not supported")

    def _redirect(self, redirect: Fields, path: str) -> None:
        check = self.check
        said = ("uri", "authority", "port", "derivePort", "scheme", "prefixRewrite")
        given = any(redirect.get(name) not in (None, "") for name in said)
        check.need(given, path, "says nothing: set uri, authority, scheme, port or prefixRewrite")
        code = redirect.get("redirectCode", 0)
        message = f"{code} is not a redirect code (3xx)"
        check.need(code == 0 or 300 <= code <= 399, f"{path}.redirectCode", message)
        scheme = redirect.get("scheme", "")
        message = f"{scheme!r} is neither http nor https"
        check.need(scheme in ("", "http", "https"), f"{path}.scheme", message)
        both = redirect.get("uri") and redirect.get("prefixRewrite")
        check.need(not both, path, "only one of uri, prefixRewrite may be set")

    def _direct_response(self, response: Fields, path: str) -> None:
        check = self.check
        status = response.get("status", 0)
        message = f"{status} is not an HTTP status from 200 to 599"
        check.need(200 <= status <= 599, f"{path}.status", message)
        body = response.get("body") or {}
        try:
            size = len(body.get("string", "").encode()) or len(
                base64.b64decode(body.get("bytes", ""), validate=True)
            )
        except ValueError:
            check.error(f"{path}.body.bytes", "is not base64")
            return
        if size > _BODY_LIMIT:
            check.error(f"{path}.body", f"has {size} bytes, more than 1 MiB")
        elif size > _BODY_WARNING:
            check.warn(f"{path}.body", f"has {size} bytes: every proxy holds it in memory")

    def _rewrite(self, rewrite: Fields, path: str) -> None:
        check = self.check
        pattern = rewrite.get("uriRegexRewrite")
        given = rewrite.get("uri") or rewrite.get("authority") or pattern is not None
        check.need(given, path, "says nothing: set uri, uriRegexRewrite or authority")
        if pattern is not None:
            check.need(not rewrite.get("uri"), path, "only one of uri, uriRegexRewrite may be set")
            for name in ("match", "rewrite"):
                check.need(pattern.get(name), f"{path}.uriRegexRewrite.{name}", "is required")
            check.regex(pattern.get("match", ""), f"{path}.uriRegexRewrite.match")
        sets = ((self.route.get("headers") or {}).get("request") or {}).get("set") or {}
        if rewrite.get("authority") and any(
            name.lower() in (":authority", "host") for name in sets
        ):
            check.error(path, "authority is rewritten here and by headers.request.set")

    def _mirrors(self) -> None:
        check, route, path = self.check, self.route, self.path
        if route.get("mirror") is not None:
            check_destination(check, route["mirror"], f"{path}.mirror")
            check.need(not route.get("mirrors"), path, "only one of mirror, mirrors may be set")
        for name in ("mirrorPercent", "mirror_percent"):
            if name in route:
                check.percent(route[name], f"{path}.{name}")
                check.warn(f"{path}.{name}", "deprecated: use mirrorPercentage.value", "IST0002")
        if (percentage := route.get("mirrorPercentage")) is not None:
            check.percent(percentage.get("value", 0), f"{path}.mirrorPercentage.value")
        for place, mirror in each(route.get("mirrors"), f"{path}.mirrors"):
            check_destination(check, mirror.get("destination"), f"{place}.destination")
            if (percentage := mirror.get("percentage")) is not None:
                check.percent(percentage.get("value", 0), f"{place}.percentage.value")


def _check_layer4(check: Checker, match: Fields, path: str) -> None:
    for place, subnet in each(match.get("destinationSubnets"), f"{path}.destinationSubnets"):
        check.subnet(subnet, place)
    if "sourceSubnet" in match:
        check.subnet(match["sourceSubnet"], f"{path}.sourceSubnet")
    if match.get("port"):
        check.port(match["port"], f"{path}.port")
    check.labels(match.get("sourceLabels"), f"{path}.sourceLabels")
    check_gateway_names(check, match.get("gateways", ()), f"{path}.gateways")


def _check_tls_route(check: Checker, route: Fields, path: str, hosts: Any) -> None:
    check.need(route.get("match"), f"{path}.match", "a TLS route needs one (sniHosts)")
    for place, match in each(route.get("match"), f"{path}.match"):
        names = match.get("sniHosts") or ()
        check.need(names, f"{place}.sniHosts", "is required")
        for where, name in each(names, f"{place}.sniHosts"):
            _check_sni(check, name, where, hosts)
        _check_layer4(check, match, place)
    check.need(route.get("route"), f"{path}.route", "is required")
    check_destinations(check, route.get("route"), f"{path}.route")


def _check_sni(check: Checker, name: str, path: str, hosts: Any) -> None:
    if is_address(name):
        check.warn(path, f"{name} is an address; clients send no address as SNI")
    elif (problem := sni_problem(name, sni=True)) is not None:
        check.error(path, problem)
    elif not any(subset_of(name, host) for host in hosts):
        check.error(path, f"{name!r} is not among the hosts: {', '.join(hosts)}")
