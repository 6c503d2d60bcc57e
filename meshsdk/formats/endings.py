"""The operators that say how a call ended; without an end they are what `operators` says.

Source: Envoy "Access log command operators"; the values were asked of Envoy 1.40.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from meshsdk.formats.context import Context, Ended

Value = Callable[[Context], str | None]

FLAGS: Final = {
    "UH": "NoHealthyUpstream",
    "UF": "UpstreamConnectionFailure",
    "UC": "UpstreamConnectionTermination",
    "UO": "UpstreamOverflow",
    "UR": "UpstreamRemoteReset",
    "UT": "UpstreamRequestTimeout",
    "URX": "UpstreamRetryLimitExceeded",
    "UMSDR": "UpstreamMaxStreamDurationReached",
    "NR": "NoRouteFound",
    "NC": "NoClusterFound",
    "DI": "DelayInjected",
    "FI": "FaultInjected",
    "DC": "DownstreamConnectionTermination",
    "RL": "RateLimited",
    "UAEX": "UnauthorizedExternalService",
    "DF": "DnsResolutionFailed",
    "DO": "DropOverload",
}
"""Response flags that a call of the SDK can have, with Envoy's long names."""

_GRPC: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else str(int(seconds * 1000))


def _grpc(parameters: str) -> Callable[[Ended], str | None]:
    def value(ended: Ended) -> str | None:
        code = ended.grpc
        if code is None:
            return None
        if parameters == "NUMBER" or not 0 <= code < len(_GRPC):
            return str(code)
        name = _GRPC[code]
        if parameters == "SNAKE_STRING":
            return name
        if name == "CANCELLED":
            return "Canceled"
        return name if name == "OK" else "".join(map(str.capitalize, name.split("_")))

    return value


def _trailer(parameters: str) -> Callable[[Ended], str | None]:
    names = [name.lower() for name in parameters.split("?") if name]

    def value(ended: Ended) -> str | None:
        for name in names:
            for key, text in ended.trailers:
                if key.lower() == name:
                    return text
        return None

    return value


def _plain(read: Callable[[Ended], str | None]) -> Callable[[str], Callable[[Ended], str | None]]:
    return lambda parameters: read


_Make = Callable[[str], Callable[[Ended], str | None]]
_NOT_CONNECTED: Final = (
    "UPSTREAM_HOSTS_ATTEMPTED", "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_HOST_NAMES_ATTEMPTED", "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_PROTOCOL", "UPSTREAM_REMOTE_ADDRESS", "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_REMOTE_PORT",
)  # fmt: skip

AT_END: Final[dict[str, _Make | None]] = {
    # None: as without an end, if there was a connection.
    **dict.fromkeys(_NOT_CONNECTED),
    "ACCESS_LOG_TYPE": _plain(lambda e: "DownstreamEnd"),
    "BYTES_RECEIVED": _plain(lambda e: str(e.received)),
    "BYTES_SENT": _plain(lambda e: str(e.sent)),
    "DURATION": _plain(lambda e: _milliseconds(e.duration)),
    "GRPC_STATUS": _grpc,
    "GRPC_STATUS_NUMBER": _plain(lambda e: None if e.grpc is None else str(e.grpc)),
    "RESPONSE_CODE_DETAILS": _plain(lambda e: e.details or None),
    "RESPONSE_DURATION": _plain(lambda e: _milliseconds(e.response_duration)),
    "RESPONSE_FLAGS": _plain(lambda e: ",".join(e.flags) or "-"),
    "RESPONSE_FLAGS_LONG": _plain(lambda e: ",".join(FLAGS.get(f, f) for f in e.flags) or "-"),
    "RESPONSE_TRAILER": _trailer,
    "TRAILER": _trailer,
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": _plain(lambda e: str(e.attempts)),
    "UPSTREAM_TRANSPORT_FAILURE_REASON": _plain(lambda e: e.failure or None),
}


_NUMBERS: Final = frozenset(
    {
        "CONNECTION_ID", "DOWNSTREAM_CX_RTT", "DURATION", "GRPC_STATUS_NUMBER",
        "PACKETS_RETRANSMITTED", "RESPONSE_CODE", "ROUTE_RESOLUTION_COUNT",
        "ROUTE_RESOLUTION_TIME_US", "UPSTREAM_CONNECTION_ID", "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    }
)  # fmt: skip


def is_number(name: str, parameters: str) -> bool:
    """Whether an operator gives a number, where a format tells numbers from texts."""
    if name == "GRPC_STATUS":
        return parameters == "NUMBER"
    return name in _NUMBERS or "BYTES" in name or name.endswith(("_DURATION", "_PORT"))


def at_end(name: str, parameters: str, before: Value) -> Value:
    """What an operator of `AT_END` gives; `before` is what it gives as long as a call goes on."""
    make = AT_END[name]
    end = None if make is None else make(parameters)

    def value(context: Context) -> str | None:
        ended = context.ended
        if ended is None:
            return before(context)
        if end is not None:
            return end(ended)
        return before(context) if ended.connected else None

    return value
