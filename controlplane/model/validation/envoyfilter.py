"""EnvoyFilter. Source: istio/istio pkg/config/validation/envoyfilter."""

from __future__ import annotations

import re

from controlplane.model.envoyfilter import MANAGER, MANAGERS, build
from controlplane.model.validation.checks import Checker, Fields, each

_LISTENER = ("LISTENER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER", "LISTENER_FILTER")
_ROUTE = ("ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE")
_KINDS = {
    **dict.fromkeys(_LISTENER, ("listener", "waypoint")),
    **dict.fromkeys(_ROUTE, ("routeConfiguration", "waypoint")),
    "CLUSTER": ("cluster",),
}
_OBJECTS = ("listener", "routeConfiguration", "cluster", "waypoint")
# Names that Envoy had before its filters were named by their packages.
_OLD_NAMES = {
    "envoy.http_connection_manager": MANAGER,
    "envoy.tcp_proxy": "envoy.filters.network.tcp_proxy",
    "envoy.ratelimit": "envoy.filters.network.ratelimit",
    "envoy.redis_proxy": "envoy.filters.network.redis_proxy",
    "envoy.mongo_proxy": "envoy.filters.network.mongo_proxy",
    "envoy.router": "envoy.filters.http.router",
    "envoy.cors": "envoy.filters.http.cors",
    "envoy.fault": "envoy.filters.http.fault",
    "envoy.lua": "envoy.filters.http.lua",
    "envoy.ext_authz": "envoy.filters.http.ext_authz",
    "envoy.grpc_web": "envoy.filters.http.grpc_web",
    "envoy.buffer": "envoy.filters.http.buffer",
    "envoy.gzip": "envoy.filters.http.gzip",
    "envoy.health_check": "envoy.filters.http.health_check",
    "envoy.rate_limit": "envoy.filters.http.ratelimit",
}


def check_envoy_filter(check: Checker) -> None:
    spec = check.spec
    selector = spec.get("workloadSelector")
    if selector is not None:
        check.selector(selector, "spec.workloadSelector", "labels")
    for path, patch in each(spec.get("configPatches"), "spec.configPatches"):
        _check_patch(check, patch, path)


def _check_patch(check: Checker, patch: Fields, path: str) -> None:
    apply_to = patch.get("applyTo", "INVALID")
    if not check.need(apply_to != "INVALID", f"{path}.applyTo", "is required"):
        return
    body = patch.get("patch")
    if not check.need(body is not None, f"{path}.patch", "is required"):
        return
    operation, value = (body or {}).get("operation", "INVALID"), (body or {}).get("value")
    if not check.need(operation != "INVALID", f"{path}.patch.operation", "is required"):
        return
    needed = value is not None or operation == "REMOVE"
    if not check.need(needed, f"{path}.patch.value", f"{operation} needs a value"):
        return
    match = patch.get("match") or {}
    if not _check_match(check, apply_to, match, f"{path}.match"):
        return
    if value is not None:
        _check_value(check, apply_to, value, f"{path}.patch.value")


def _check_match(check: Checker, apply_to: str, match: Fields, path: str) -> bool:
    version = (match.get("proxy") or {}).get("proxyVersion", "")
    try:
        re.compile(version)
    except re.error as error:
        check.error(f"{path}.proxy.proxyVersion", f"{version!r} is not a pattern: {error}")
        return False
    allowed = _KINDS.get(apply_to)
    for name in _OBJECTS:
        if allowed is not None and match.get(name) is not None and name not in allowed:
            check.error(f"{path}.{name}", f"applyTo {apply_to} is matched by {allowed[0]}")
            return False
    chain = (match.get("listener") or {}).get("filterChain") or {}
    if (named := chain.get("filter")) is None:
        return True
    return _check_filter(check, apply_to, named, f"{path}.listener.filterChain.filter")


def _check_filter(check: Checker, apply_to: str, named: Fields, path: str) -> bool:
    if apply_to in ("LISTENER", "FILTER_CHAIN"):
        check.warn(path, f"has no effect with applyTo {apply_to}")
    name, sub = named.get("name", ""), named.get("subFilter")
    if not check.need(name, f"{path}.name", "is required"):
        return False
    if sub is not None:
        place = f"{path}.subFilter"
        if not check.need(apply_to == "HTTP_FILTER", place, "goes with applyTo HTTP_FILTER only"):
            return False
        if not check.need(name in MANAGERS, place, f"needs the filter {MANAGER}"):
            return False
        if not check.need(sub.get("name"), f"{place}.name", "is required"):
            return False
    for place, text in ((path, name), (f"{path}.subFilter", (sub or {}).get("name", ""))):
        if (new := _OLD_NAMES.get(text)) is not None:
            check.warn(f"{place}.name", f"{text!r} is a name of old: write {new!r}")
    return True


def _check_value(check: Checker, apply_to: str, value: Fields, path: str) -> None:
    try:
        build(apply_to, value)
    except ValueError as error:
        hint = "; the v2 API is gone: use v3" if ".v2." in str(error) else ""
        check.error(path, f"is not a value for {apply_to}: {error}{hint}")
        return
    try:
        build(apply_to, value, strict=True)
    except ValueError as error:
        check.warn(path, f"{error}")
    typed = apply_to in ("HTTP_FILTER", "NETWORK_FILTER")
    known = {"typedConfig", "typed_config", "configDiscovery", "config_discovery"}
    if typed and value.get("name") and not known & value.keys():
        check.warn(path, f"{value['name']}: a filter is known by its typed_config, not its name")
