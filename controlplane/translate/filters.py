"""HTTP filters and what routes say to them: fault injection (V21) and CORS (V23)."""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as rc
from envoy.extensions.filters.common.fault.v3 import fault_pb2 as common_fault_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.type.matcher.v3 import regex_pb2, string_pb2

from controlplane.model.traffic import CorsPolicy, HTTPFault, HTTPRoute, StringMatch
from controlplane.translate.node import Dialect
from controlplane.translate.scope import Scope
from controlplane.translate.wire import duration, fraction, pack

FAULT = "envoy.filters.http.fault"
CORS = "envoy.filters.http.cors"
ROUTER = "envoy.filters.http.router"

_GRPC_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


def client_filters(dialect: Dialect) -> list[hcm_pb2.HttpFilter]:
    """The filter chain of a client listener, the router last."""
    filters = [hcm_pb2.HttpFilter(name=FAULT, typed_config=pack(fault_pb2.HTTPFault()))]
    if dialect is not Dialect.GRPC:
        cors = hcm_pb2.HttpFilter(name=CORS, typed_config=pack(cors_pb2.Cors()), is_optional=True)
        filters.append(cors)
    return [*filters, router_filter()]


def router_filter() -> hcm_pb2.HttpFilter:
    return hcm_pb2.HttpFilter(name=ROUTER, typed_config=pack(router_pb2.Router()))


def add_route_filters(rule: HTTPRoute, out: rc.Route, scope: Scope) -> None:
    """What a rule says to the filters of its listener."""
    if rule.fault is not None and (rule.fault.delay or rule.fault.abort):
        out.typed_per_filter_config[FAULT].CopyFrom(pack(fault_filter(rule.fault)))
    if rule.cors_policy is None:
        return
    if scope.dialect is Dialect.GRPC:
        scope.note("corsPolicy is not known to gRPC's own client: left out")
    else:
        # Optional: a client that does not know CORS goes on without it.
        wrapper = rc.FilterConfig(config=pack(_cors(rule.cors_policy)), is_optional=True)
        out.typed_per_filter_config[CORS].CopyFrom(pack(wrapper))


def fault_filter(fault: HTTPFault) -> fault_pb2.HTTPFault:
    """The fault of a rule; an absent percentage is none at all (V21)."""
    out = fault_pb2.HTTPFault()
    if fault.delay is not None and fault.delay.fixed_delay is not None:
        out.delay.CopyFrom(
            common_fault_pb2.FaultDelay(
                fixed_delay=duration(fault.delay.fixed_delay),
                percentage=fraction(fault.delay.percentage, absent=0),
            )
        )
    abort = fault.abort
    if abort is None:
        return out
    code = grpc_code(abort.grpc_status) if abort.grpc_status is not None else None
    if code is not None:
        out.abort.grpc_status = code
    elif abort.http_status is not None:
        out.abort.http_status = abort.http_status
    else:
        return out
    out.abort.percentage.CopyFrom(fraction(abort.percentage, absent=0))
    return out


def grpc_code(name: str) -> int | None:
    """The number of a gRPC status given by name or number; None when there is no such status."""
    text = name.strip().upper()
    if text == "CANCELED":
        return 1
    if text in _GRPC_CODES:
        return _GRPC_CODES.index(text)
    return int(text) if text.isdecimal() and int(text) < len(_GRPC_CODES) else None


def _origin(want: StringMatch) -> string_pb2.StringMatcher:
    if want.prefix is not None:
        return string_pb2.StringMatcher(prefix=want.prefix)
    if want.regex is not None:
        return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=want.regex))
    return string_pb2.StringMatcher(exact=want.exact or "")


def _cors(policy: CorsPolicy) -> cors_pb2.CorsPolicy:
    out = cors_pb2.CorsPolicy(
        allow_methods=",".join(policy.allow_methods),
        allow_headers=",".join(policy.allow_headers),
        expose_headers=",".join(policy.expose_headers),
    )
    if policy.allow_origins:
        out.allow_origin_string_match.extend(map(_origin, policy.allow_origins))
    else:
        for exact in policy.allow_origin:
            out.allow_origin_string_match.add(exact=exact)
    if policy.allow_credentials is not None:
        out.allow_credentials.value = policy.allow_credentials
    if policy.max_age is not None:
        out.max_age = str(int(policy.max_age))
    out.forward_not_matching_preflights.value = policy.unmatched_preflights != "IGNORE"
    out.filter_enabled.CopyFrom(
        base_pb2.RuntimeFractionalPercent(default_value=fraction(None, absent=100))
    )
    return out
