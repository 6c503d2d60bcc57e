"""Retry policies (V16 to V19). Source: Istio networking/core/route/retry."""

from __future__ import annotations

from envoy.config.route.v3 import route_components_pb2 as rc
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2

from controlplane.model.traffic import HTTPRetry
from controlplane.translate.node import Dialect
from controlplane.translate.scope import Scope
from controlplane.translate.wire import duration, pack

DEFAULT_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
_DEFAULT_ATTEMPTS = 2
_HOST_SELECTION_ATTEMPTS = 5
_STATUS_CODES = "retriable-status-codes"
_GRPC_CONDITIONS = frozenset(
    {"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}
)


def retry_policy(
    asked: HTTPRetry | None, scope: Scope, *, consistent_hash: bool = False
) -> rc.RetryPolicy | None:
    """The policy of one route; None when calls are not repeated."""
    effective = scope.world.mesh.default_http_retry if asked is None else asked
    if effective is None:
        effective = HTTPRetry(attempts=_DEFAULT_ATTEMPTS)
    elif effective.attempts <= 0:
        return None
    if scope.dialect is Dialect.GRPC:
        return _for_grpc(effective, scope, explicit=asked is not None)
    conditions, codes = _parse(effective.retry_on)
    out = rc.RetryPolicy(retry_on=conditions, retriable_status_codes=codes)
    out.num_retries.value = effective.attempts
    if effective.per_try_timeout:
        out.per_try_timeout.CopyFrom(duration(effective.per_try_timeout))
    _back_off(effective, out)
    # Going elsewhere would break the affinity that a consistent hash is there for (V19).
    if not consistent_hash and effective.retry_ignore_previous_hosts is not False:
        out.retry_host_predicate.add(
            name="envoy.retry_host_predicates.previous_hosts",
            typed_config=pack(previous_hosts_pb2.PreviousHostsPredicate()),
        )
        out.host_selection_retry_max_attempts = _HOST_SELECTION_ATTEMPTS
    if effective.retry_remote_localities:
        out.retry_priority.name = "envoy.retry_priorities.previous_priorities"
        out.retry_priority.typed_config.CopyFrom(
            pack(previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=2))
        )
    return out


def _parse(retry_on: str) -> tuple[str, list[int]]:
    """Conditions and status codes: a bare number is a code and implies the condition (V18)."""
    if not retry_on:
        return DEFAULT_RETRY_ON, []
    conditions: list[str] = []
    codes: list[int] = []
    for part in filter(None, (item.strip() for item in retry_on.split(","))):
        if part.isdecimal():
            codes.append(int(part))
        else:
            conditions.append(part)
    if codes and _STATUS_CODES not in conditions:
        conditions.append(_STATUS_CODES)
    return ",".join(conditions), codes


def _back_off(effective: HTTPRetry, out: rc.RetryPolicy) -> None:
    if effective.backoff:
        out.retry_back_off.base_interval.CopyFrom(duration(effective.backoff))


def _for_grpc(effective: HTTPRetry, scope: Scope, *, explicit: bool) -> rc.RetryPolicy | None:
    conditions, codes = _parse(effective.retry_on)
    names = conditions.split(",")
    kept = [name for name in names if name in _GRPC_CONDITIONS]
    lost = [name for name in names if name not in _GRPC_CONDITIONS] if effective.retry_on else []
    if lost or codes:
        scope.note(f"retryOn {', '.join(lost)} is not known to gRPC's own client: left out")
    if explicit and effective.per_try_timeout:
        scope.note("retries.perTryTimeout is not known to gRPC's own client: left out")
    if not kept:
        return None
    out = rc.RetryPolicy(retry_on=",".join(kept))
    out.num_retries.value = effective.attempts
    _back_off(effective, out)
    return out
