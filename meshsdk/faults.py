"""Fault injection: is this call delayed, is it aborted?

Semantics: Envoy "Fault Injection" filter. The delay comes first, then the abort; both are drawn
on their own, and an abort ends the call before any endpoint is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from meshsdk.errors import FaultAbort as FaultAborted
from meshsdk.matching import Fraction, HeaderSource
from meshsdk.model import Fault

Random = Callable[[], float]

_UNKNOWN: Final = 2


def applies(fault: Fault, request: HeaderSource, cluster: str) -> bool:
    """Whether the fault speaks of this request at all."""
    if fault.max_active == 0 or (fault.upstream_cluster and fault.upstream_cluster != cluster):
        return False
    if fault.downstream_nodes:
        values = request.values("x-envoy-downstream-service-node")
        if not values or values[0] not in fault.downstream_nodes:
            return False
    return all(header.matches(request) for header in fault.headers)


def delay_of(fault: Fault, request: HeaderSource, random: Random) -> float:
    """Seconds to wait before the call goes on; 0.0 for most calls."""
    delay = fault.delay
    if delay is None:
        return 0.0
    seconds, fraction = delay.seconds, delay.fraction
    if seconds is None:
        asked = _number(request, "x-envoy-fault-delay-request")
        if asked is None:
            return 0.0
        seconds = asked / 1000
        fraction = _asked_fraction(request, "x-envoy-fault-delay-request-percentage", fraction)
    return seconds if fraction.holds(random()) else 0.0


def abort_of(
    fault: Fault, request: HeaderSource, random: Random, route: str
) -> FaultAborted | None:
    """The error with which the call ends here, or None."""
    abort = fault.abort
    if abort is None:
        return None
    http, grpc, fraction = abort.http_status, abort.grpc_status, abort.fraction
    if http is None and grpc is None:
        http = _number(request, "x-envoy-fault-abort-request")
        grpc = _number(request, "x-envoy-fault-abort-grpc-request")
        if http is not None and not 200 <= http < 600:
            http = None
        if http is None and grpc is None:
            return None
        fraction = _asked_fraction(request, "x-envoy-fault-abort-request-percentage", fraction)
    if not fraction.holds(random()):
        return None
    if http is not None:
        error = FaultAborted("fault filter abort", http_status=http, route=route)
    else:
        # An OK without a message is no answer to a call: grpc-go makes it UNKNOWN.
        grpc = grpc or _UNKNOWN
        # An HTTP caller sees 200 here: Envoy answers a gRPC abort as gRPC does, whoever asked.
        error = FaultAborted("fault filter abort", http_status=200, grpc_code=grpc, route=route)
    if abort.body:
        error.body = abort.body
    return error


def _asked_fraction(request: HeaderSource, header: str, limit: Fraction) -> Fraction:
    """The caller may lower the configured percentage by header, never raise it."""
    asked = _number(request, header)
    if asked is None or asked >= limit.numerator:
        return limit
    return Fraction(asked, limit.denominator)


def _number(request: HeaderSource, header: str) -> int | None:
    values = request.values(header)
    return int(values[0]) if values and values[0].isdigit() else None
