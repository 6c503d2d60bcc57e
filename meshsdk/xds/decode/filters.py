"""HTTP filters: the chain of a listener, their per-route configuration, and fault injection.

Known filters: fault and router. Every other one is rejected unless it says `is_optional`
(gRFC A39).
"""

from __future__ import annotations

from typing import Any, Final

from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2

from meshsdk.model import Fault, FaultAbort, FaultDelay
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    each,
    fraction,
    header_match,
    seconds,
    sub,
    type_name,
    unpack,
)

_FAULT: Final = "envoy.extensions.filters.http.fault.v3.HTTPFault"
_ROUTER: Final = "envoy.extensions.filters.http.router.v3.Router"
_FILTER_CONFIG: Final = "envoy.config.route.v3.FilterConfig"
_NO_FAULT: Final = Fault()


def http_filters(filters: Any, notes: Notes) -> Fault | None:
    """The fault of a filter chain.

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
    return next((fault for fault in found if isinstance(fault, Fault)), None)


def _http_filter(item: Any, notes: Notes) -> Fault | str:
    """The fault, or the type of a filter that has nothing to tell."""
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
    if kind != _ROUTER and not (item.is_optional or item.disabled):
        raise Bad("typed_config", f"the HTTP filter {kind or 'without a type'} is not supported")
    return kind


def per_route_fault(message: Any, notes: Notes) -> Fault | None:
    """The fault of a `typed_per_filter_config`; None: inherit.

    An empty `Fault` switches off what a less specific level says.
    """
    configs = message.typed_per_filter_config
    if not configs:
        return None
    faults = [
        sub(f'typed_per_filter_config["{name}"]', _override, configs[name], notes)
        for name in sorted(configs)
    ]
    return next((fault for fault in faults if fault is not None), None)


def _override(container: Any, notes: Notes) -> Fault | None:
    optional = False
    if type_name(container) == _FILTER_CONFIG:
        wrapper = unpack(container, route_components_pb2.FilterConfig)
        optional, container = wrapper.is_optional, wrapper.config
        if wrapper.disabled:
            # A filter that is switched off here and unknown altogether does no harm.
            return _NO_FAULT
    kind = type_name(container)
    if kind == _FAULT:
        return _unpack_fault(container, notes)
    if optional:
        return None
    raise Bad("", f"configuration of the type {kind or 'without a name'} is not supported")


def _unpack_fault(container: Any, notes: Notes) -> Fault:
    return _fault(unpack(container, fault_pb2.HTTPFault), notes)


_IGNORED: Final = ("downstream_nodes", "max_active_faults", "response_rate_limit")


def _fault(message: Any, notes: Notes) -> Fault:
    for field, _ in message.ListFields():
        if field.name in _IGNORED:
            notes.append(f"{field.name}: is not supported, the fault applies without it")
    return Fault(
        sub("delay", _delay, message.delay, notes) if message.HasField("delay") else None,
        sub("abort", _abort, message.abort, notes) if message.HasField("abort") else None,
        tuple(each("headers", message.headers, header_match, notes)),
        message.upstream_cluster,
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
    which = message.WhichOneof("error_type")
    if which == "http_status":
        if not 200 <= message.http_status < 600:
            raise Bad("http_status", f"is {message.http_status}, must be from 200 to 599")
        return FaultAbort(share, http_status=message.http_status)
    if which == "grpc_status":
        return FaultAbort(share, grpc_status=message.grpc_status)
    if which == "header_abort":
        return FaultAbort(share)
    raise Bad("", "http_status, grpc_status or header_abort is needed")
