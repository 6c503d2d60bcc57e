"""HTTP filters: the chain of a listener, their per-route configuration, faults, CORS, rate limits.

Known filters: fault, CORS, local rate limit and router. Every other one of a chain is rejected
unless it says `is_optional` (gRFC A39). Per-route configuration of a filter that Envoy has and this
SDK has not is noted and left out: its filter is in no chain that was accepted.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from google.protobuf import json_format

from meshsdk.matching import ALWAYS, NEVER, Fraction
from meshsdk.model import (
    CorsPolicy,
    Fault,
    FaultAbort,
    FaultDelay,
    FilterChain,
    FilterOverrides,
    LocalRateLimit,
)
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    each,
    fraction,
    header_match,
    seconds,
    string_match,
    sub,
    type_name,
    unpack,
)
from meshsdk.xds.decode.rules import check_rules
from meshsdk.xds.schema import amended, message_class

_HTTP: Final = "envoy.extensions.filters.http."
_FAULT: Final = f"{_HTTP}fault.v3.HTTPFault"
_CORS: Final = f"{_HTTP}cors.v3.Cors"
_CORS_POLICY: Final = f"{_HTTP}cors.v3.CorsPolicy"
_RATE_LIMIT: Final = f"{_HTTP}local_ratelimit.v3.LocalRateLimit"
_ROUTER: Final = f"{_HTTP}router.v3.Router"
_FILTER_CONFIG: Final = "envoy.config.route.v3.FilterConfig"
_NO_FAULT: Final = Fault()

# --- the chain of a listener -------------------------------------------------------------------


def http_filters(filters: Any, notes: Notes) -> tuple[Fault | None, FilterChain]:
    """(the first fault, all else) of a filter chain.

    A chain that is given must end with the router, its only terminal filter (gRFC A39). An empty
    one is accepted: what the router does, this SDK does without being told.
    """
    found = each("http_filters", filters, _http_filter, notes)
    names = [item.name for item in filters]
    for index, item in enumerate(filters):
        if item.name in names[:index]:
            raise Bad(f"http_filters[{index}].name", f"{item.name!r} comes twice")
        last = index == len(filters) - 1
        if (found[index] == _ROUTER) != last:
            problem = "the router must be the last filter and come only once"
            raise Bad(f"http_filters[{index}]", problem)
    faults = [item for item in found if isinstance(item, Fault)]
    limit = next((item for item in found if isinstance(item, LocalRateLimit)), None)
    cors = found.index(_CORS) if _CORS in found else len(found)
    first = next((i for i, item in enumerate(found) if isinstance(item, Fault)), len(found))
    chain = FilterChain(tuple(faults[1:]), cors < first, limit)
    return (faults[0] if faults else None), chain


def _http_filter(item: Any, notes: Notes) -> Fault | LocalRateLimit | str:
    """What a filter does, or its type when it has nothing to tell."""
    if not item.name:
        raise Bad("name", "must not be empty")
    if item.HasField("config_discovery"):
        if item.is_optional:
            return ""
        raise Bad("config_discovery", "is not supported; typed_config is needed")
    kind = type_name(item.typed_config)
    if kind == _FAULT:
        fault = sub("typed_config", _unpack_fault, item.typed_config, notes)
        return "" if item.disabled else fault
    if kind == _RATE_LIMIT:
        limit = sub("typed_config", _unpack_limit, item.typed_config, notes)
        return "" if item.disabled else limit
    if kind not in (_ROUTER, _CORS) and not (item.is_optional or item.disabled):
        raise Bad("typed_config", f"the HTTP filter {kind or 'without a type'} is not supported")
    return kind


# --- typed_per_filter_config -------------------------------------------------------------------


class Overrides:
    """The per-filter configuration of one level on top of those it is part of.

    Attributes:
        own: of the level itself.
    """

    def __init__(
        self,
        own: FilterOverrides,
        outer: tuple[FilterOverrides, ...] = (),
        plain_cors: tuple[CorsPolicy, ...] = (),
    ) -> None:
        self.own = own
        self._levels = (own, *outer)
        self._plain_cors = plain_cors

    def below(self, message: Any, notes: Notes) -> Overrides:
        """Those of a level inside this one; `message` has its `typed_per_filter_config`."""
        own = filter_overrides(message, notes)
        return Overrides(own, self._levels, self._plain_cors)

    def with_cors(self, policy: Any, notes: Notes) -> Overrides:
        """With the policy of a field `cors`, which counts where no filter configuration does."""
        decoded = sub("cors", cors_policy, policy, notes)
        return Overrides(self.own, self._levels[1:], (decoded, *self._plain_cors))

    def cors(self) -> tuple[CorsPolicy, ...]:
        """The CORS policies that apply, the most specific one first."""
        said = [level.cors for level in self._levels if level.cors is not None]
        if not said:
            return self._plain_cors
        if said[0] is False:
            return ()
        return tuple(policy for policy in said if isinstance(policy, CorsPolicy))

    def fault(self) -> Fault | None:
        return next((level.fault for level in self._levels if level.fault is not None), None)


_NOTHING: Final = FilterOverrides()


def filter_overrides(message: Any, notes: Notes) -> FilterOverrides:
    configs = message.typed_per_filter_config
    if not configs:
        return _NOTHING
    found = _NOTHING
    for name in sorted(configs):
        field = f'typed_per_filter_config["{name}"]'
        found = found.over(sub(field, _override, configs[name], notes))
    return found


def _override(container: Any, notes: Notes) -> FilterOverrides:
    optional = False
    if type_name(container) == _FILTER_CONFIG:
        wrapper = unpack(container, route_components_pb2.FilterConfig)
        optional, container = wrapper.is_optional, wrapper.config
        if wrapper.disabled:
            # A filter that is switched off here and unknown altogether does no harm.
            return _switched_off(type_name(container))
    kind = type_name(container)
    if kind == _FAULT:
        return FilterOverrides(fault=_unpack_fault(container, notes))
    if kind == _CORS_POLICY:
        return FilterOverrides(cors=cors_policy(unpack(container, cors_pb2.CorsPolicy), notes))
    if kind == _RATE_LIMIT:
        return FilterOverrides(local_rate_limit=_unpack_limit(container, notes))
    if optional:
        return _NOTHING
    known = _class_of_envoy(kind)
    if known is None:
        problem = f"configuration of the type {kind or 'without a name'} is not supported"
        raise Bad("", problem)
    check_rules(unpack(container, known))
    notes.append(f"{kind} is not supported, calls go without it")
    return _NOTHING


def _switched_off(kind: str) -> FilterOverrides:
    """What a filter without configuration is cannot be seen: fault and CORS are the two."""
    if kind == _CORS_POLICY:
        return FilterOverrides(cors=False)
    return FilterOverrides(fault=_NO_FAULT)


def _class_of_envoy(kind: str) -> Any:
    """The configuration of that type, if Envoy has an HTTP filter with it; else None."""
    try:
        return message_class(kind) if kind.startswith(_HTTP) else None
    except KeyError:
        return None


# --- faults ----------------------------------------------------------------------------------


def _unpack_fault(container: Any, notes: Notes) -> Fault:
    return _fault(unpack(container, amended(fault_pb2.HTTPFault)), notes)


def _fault(message: Any, notes: Notes) -> Fault:
    most = message.max_active_faults.value if message.HasField("max_active_faults") else None
    if most:
        notes.append("max_active_faults: is not counted, the fault applies to any number of calls")
    if message.HasField("response_rate_limit"):
        notes.append("response_rate_limit: is not supported, the fault applies without it")
    return Fault(
        sub("delay", _delay, message.delay, notes) if message.HasField("delay") else None,
        sub("abort", _abort, message.abort, notes) if message.HasField("abort") else None,
        tuple(each("headers", message.headers, header_match, notes)),
        message.upstream_cluster,
        tuple(message.downstream_nodes),
        most,
    )


def _delay(message: Any, notes: Notes) -> FaultDelay:
    share = fraction("percentage", message.percentage)
    which = message.WhichOneof("fault_delay_secifier")
    if which == "fixed_delay":
        duration = seconds("fixed_delay", message.fixed_delay)
        if not duration:
            raise Bad("fixed_delay", "must be more than 0")
        return FaultDelay(duration, share)
    if which == "header_delay":
        return FaultDelay(None, share)
    raise Bad("", "fixed_delay or header_delay is needed")


def _abort(message: Any, notes: Notes) -> FaultAbort:
    share = fraction("percentage", message.percentage)
    body = getattr(message, "response_body", "") or None
    which = message.WhichOneof("error_type")
    if which == "http_status":
        if not 200 <= message.http_status < 600:
            raise Bad("http_status", f"is {message.http_status}, must be from 200 to 599")
        return FaultAbort(share, http_status=message.http_status, body=body)
    if which == "grpc_status":
        return FaultAbort(share, grpc_status=message.grpc_status, body=body)
    if which == "header_abort":
        return FaultAbort(share, body=body)
    raise Bad("", "http_status, grpc_status or header_abort is needed")


# --- CORS ------------------------------------------------------------------------------------


def cors_policy(message: Any, notes: Notes) -> CorsPolicy:
    """`CorsPolicy` of the filter, or of the deprecated fields of routes and virtual hosts."""
    origins = each(
        "allow_origin_string_match", message.allow_origin_string_match, string_match, notes
    )
    return CorsPolicy(
        tuple(origins),
        message.allow_methods,
        message.allow_headers,
        message.expose_headers,
        message.max_age,
        _flag(message, "allow_credentials"),
        _flag(message, "allow_private_network_access"),
        _flag(message, "forward_not_matching_preflights"),
        _share(message, "filter_enabled", ALWAYS),
        _share(message, "shadow_enabled", NEVER),
    )


def _flag(message: Any, field: str) -> bool | None:
    return bool(getattr(message, field).value) if message.HasField(field) else None


def _share(message: Any, field: str, absent: Fraction) -> Fraction:
    if not message.HasField(field):
        return absent
    value = getattr(message, field)
    if not value.HasField("default_value"):
        raise Bad(f"{field}.default_value", "is needed")
    return fraction(f"{field}.default_value", value.default_value)


# --- local rate limit --------------------------------------------------------------------------


def _unpack_limit(container: Any, notes: Notes) -> LocalRateLimit:
    message = unpack(container, local_rate_limit_pb2.LocalRateLimit)
    notes.append("local_ratelimit: is not enforced yet")
    bucket = message.token_bucket
    interval = seconds("token_bucket.fill_interval", bucket.fill_interval)
    if message.HasField("token_bucket"):
        if not bucket.max_tokens:
            raise Bad("token_bucket.max_tokens", "must be more than 0")
        if interval < 0.05:
            raise Bad("token_bucket.fill_interval", "must be at least 0.05 s")
    if not message.stat_prefix:
        raise Bad("stat_prefix", "must not be empty")
    status = message.status.code
    return LocalRateLimit(
        bucket.max_tokens,
        bucket.tokens_per_fill.value if bucket.HasField("tokens_per_fill") else 1,
        interval,
        429 if status < 400 else status,
        _share(message, "filter_enabled", NEVER),
        _share(message, "filter_enforced", NEVER),
        json_format.MessageToJson(message, indent=None),
    )
