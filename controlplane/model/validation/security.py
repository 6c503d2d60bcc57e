"""AuthorizationPolicy, RequestAuthentication, PeerAuthentication."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

from controlplane.model.validation.checks import Checker, Fields, each, subnet_problem
from controlplane.model.validation.conditions import (
    condition_problem,
    path_template_problem,
    service_account_problem,
)

DRY_RUN = "istio.io/dry-run"
_ADDRESSES = ("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks")
_NOT_FOR_CUSTOM = (
    "namespaces",
    "notNamespaces",
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "serviceAccounts",
    "notServiceAccounts",
)
# What takes an HTTP request to look at.
_HTTP_ONLY = frozenset(
    {
        "requestPrincipals",
        "notRequestPrincipals",
        "hosts",
        "notHosts",
        "methods",
        "notMethods",
        "paths",
        "notPaths",
    }
)
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "k"})
_HOST = re.compile(r"[A-Za-z0-9._\-\[\]:]+")


def check_authorization_policy(check: Checker) -> None:
    spec = check.spec
    check.selector(spec.get("selector"), "spec.selector")
    check.target_refs()
    action = spec.get("action", "ALLOW")
    custom = action == "CUSTOM"
    provider = spec.get("provider")
    if custom:
        check.need(spec.get("rules"), "spec.rules", "CUSTOM without rules is never triggered")
        name = (provider or {}).get("name")
        check.need(name, "spec.provider.name", "is required with CUSTOM")
    elif provider is not None:
        check.error("spec.provider", f"is for CUSTOM, not {action}")
    dry_run = check.resource.annotations.get(DRY_RUN)
    if dry_run is not None:
        place = f"metadata.annotations.{DRY_RUN}"
        valid = dry_run.lower() in ("true", "false", "1", "0", "t", "f")
        check.need(valid, place, f"{dry_run!r} is neither true nor false")
        check.need(not custom, place, "works with ALLOW and DENY only")
    for path, rule in each(spec.get("rules"), "spec.rules"):
        _check_rule(check, rule or {}, path, custom=custom)
        if action == "DENY" and _http_only(rule or {}):
            message = (
                "looks at HTTP only: it denies all traffic to TCP ports; add to.operation.ports"
            )
            check.warn(path, message)


def _check_rule(check: Checker, rule: Fields, path: str, *, custom: bool) -> None:
    for side, member in (("from", "source"), ("to", "operation")):
        if side not in rule:
            continue
        check.need(rule[side], f"{path}.{side}", "must not be an empty list: leave it out")
        for place, item in each(rule[side], f"{path}.{side}"):
            fields = (item or {}).get(member) or {}
            where = f"{place}.{member}"
            if not check.need(fields, where, "is required, with at least one field"):
                continue
            _check_fields(check, fields, where)
            for name in _NOT_FOR_CUSTOM if custom else ():
                check.need(not fields.get(name), f"{where}.{name}", "does not work with CUSTOM")
    for place, condition in each(rule.get("when"), f"{path}.when"):
        key = condition.get("key", "")
        values = [*condition.get("values", ()), *condition.get("notValues", ())]
        check.need(values, place, "values or notValues is required")
        if (problem := condition_problem(key, values)) is not None:
            check.error(place, problem)
        internal = key in ("source.namespace", "source.principal") or key.startswith(
            "request.auth."
        )
        check.need(not (custom and internal), f"{place}.key", f"{key} does not work with CUSTOM")


def _check_fields(check: Checker, fields: Fields, path: str) -> None:
    for name, values in fields.items():
        for place, value in each(values, f"{path}.{name}"):
            if not check.need(value, place, "must not be empty"):
                continue
            if name in _ADDRESSES:
                check.subnet(value, place)
            elif name in ("ports", "notPorts"):
                valid = value.isdigit() and 1 <= int(value) <= 65535
                check.need(valid, place, f"{value!r} is not a port: 1 to 65535")
            elif name in ("paths", "notPaths"):
                problem = path_template_problem(value)
                check.need(problem is None, place, problem or "")
            elif name in ("serviceAccounts", "notServiceAccounts"):
                problem = service_account_problem(value)
                check.need(problem is None, place, problem or "")


def _http_only(rule: Fields) -> bool:
    """Whether a rule asks for HTTP and names no port."""
    used: set[str] = set()
    for side, member in (("from", "source"), ("to", "operation")):
        for item in rule.get(side) or ():
            used |= ((item or {}).get(member) or {}).keys()
    keys = {condition.get("key", "") for condition in rule.get("when") or ()}
    asks_http = used & _HTTP_ONLY or any(key.startswith("request.") for key in keys)
    return bool(asks_http) and "ports" not in used and "destination.port" not in keys


def check_request_authentication(check: Checker) -> None:
    check.selector(check.spec.get("selector"), "spec.selector")
    check.target_refs()
    if DRY_RUN in check.resource.annotations:
        check.error(f"metadata.annotations.{DRY_RUN}", "is for AuthorizationPolicies")
    for path, rule in each(check.spec.get("jwtRules"), "spec.jwtRules"):
        _check_jwt_rule(check, rule or {}, path)


def _check_jwt_rule(check: Checker, rule: Fields, path: str) -> None:
    uri = rule.get("jwksUri", rule.get("jwks_uri", ""))
    named = rule.get("issuer") or uri or rule.get("jwks")
    check.need(named, path, "issuer is required where neither jwksUri nor jwks is set")
    if uri and (problem := jwks_uri_problem(uri)) is not None:
        check.error(f"{path}.jwksUri", problem)
    if rule.get("jwks"):
        _check_jwks(check, rule["jwks"], f"{path}.jwks")
    for name in ("audiences", "fromParams", "fromCookies"):
        for place, value in each(rule.get(name), f"{path}.{name}"):
            check.need(value, place, "must not be empty")
    for place, header in each(rule.get("fromHeaders"), f"{path}.fromHeaders"):
        check.need((header or {}).get("name"), f"{place}.name", "is required")
    for place, output in each(rule.get("outputClaimToHeaders"), f"{path}.outputClaimToHeaders"):
        for name in ("header", "claim"):
            check.need((output or {}).get(name), f"{place}.{name}", "is required")


def jwks_uri_problem(uri: str) -> str | None:
    """Istio security.ParseJwksURI."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return f"{uri!r} is not a URL (its port is wrong)"
    if parts.scheme not in ("http", "https"):
        return f"{uri!r} is neither http:// nor https://"
    if not parts.hostname or not _HOST.fullmatch(parts.netloc) or port == 0:
        return f"{uri!r} is not a URL"
    return None


def _check_jwks(check: Checker, text: str, path: str) -> None:
    """The keys are never repeated in a message."""
    try:
        document: Any = json.loads(text)
    except ValueError:
        check.error(path, "is not JSON")
        return
    keys = document.get("keys") if isinstance(document, dict) else None
    single = isinstance(document, dict) and "kty" in document
    if single:
        keys = [document]
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        check.error(path, 'is not a key set: {"keys": [...]}')
        return
    for index, key in enumerate(keys):
        check.need(key.get("kty"), path, f"key {index} has no kty")
        if _PRIVATE_MEMBERS & key.keys():
            check.warn(path, f"key {index} holds its private part: publish the public one only")


def check_peer_authentication(check: Checker) -> None:
    spec = check.spec
    selector = spec.get("selector")
    check.selector(selector, "spec.selector")
    if "portLevelMtls" not in spec:
        return
    ports = spec["portLevelMtls"]
    check.need(ports, "spec.portLevelMtls", "must have at least one port")
    labels = (selector or {}).get("matchLabels")
    check.need(labels, "spec.portLevelMtls", "needs a selector: ports belong to workloads")
    for name in ports or {}:
        valid = name.isdigit() and 1 <= int(name) <= 65535
        check.need(valid, f"spec.portLevelMtls.{name}", f"{name!r} is not a port: 1 to 65535")


__all__ = [
    "check_authorization_policy",
    "check_peer_authentication",
    "check_request_authentication",
    "jwks_uri_problem",
    "subnet_problem",
]
