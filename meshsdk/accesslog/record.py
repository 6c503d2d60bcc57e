"""What an access log says of one call. Pure: times are arguments, in seconds of one clock.

Source: Envoy "Access logging"; flags and details were asked of Envoy 1.40.
"""

from __future__ import annotations

import enum
import errno
import json
import os
from collections.abc import Callable, Iterable
from typing import Any, Final

from meshsdk.balancing import EndpointState
from meshsdk.call import Decision, Forward, Passthrough, Reply, Request
from meshsdk.errors import (
    CallError,
    ClusterNotFound,
    ConnectFailure,
    DnsFailure,
    DropOverload,
    FaultAbort,
    ListenerNotFound,
    NoHealthyUpstream,
    NoRoute,
    RouteTimeout,
    grpc_code_of_http,
)
from meshsdk.formats import Context, Ended, Exchange, Format
from meshsdk.model import JsonLine, ListenerView

_PASSTHROUGH: Final = "PassthroughCluster"
_SERVICE_TIME: Final = "x-envoy-upstream-service-time"
_RESET: Final = "upstream_reset_{}_response_started{{{}}}"

_DETAILS: Final[tuple[tuple[type[CallError], str], ...]] = (
    (ListenerNotFound, "route_not_found"),
    (NoRoute, "route_not_found"),
    (ClusterNotFound, "cluster_not_found"),
    (DnsFailure, "dns_resolution_failure"),
    (NoHealthyUpstream, "no_healthy_upstream"),
    (DropOverload, "drop_overload"),
    (RouteTimeout, "response_timeout"),
    (FaultAbort, "fault_filter_abort"),
)


class Outcome(enum.Enum):
    """How a call ended, where no error of the mesh says that."""

    DONE = enum.auto()
    GIVEN_UP = enum.auto()
    """By the caller: cancelled, out of its own time, its response not read to the end."""
    RESET = enum.auto()
    """By the endpoint: the connection broke."""


class Record:
    """One call, for the access logs of its listener; collects until the call ends.

    Args:
        request: as the application made it, with its `start`.
        began: when.
        random: uniform numbers in [0, 1), for logs of a share of the calls.

    Attributes:
        decision: what the mesh decided; None before.
        received, sent: bytes of the bodies of request and response, so far.
    """

    __slots__ = (
        "_answered", "_attempts", "_began", "_connected", "_endpoint", "_headers",
        "_open", "_random", "_request", "_status", "_tried", "_view", "decision", "received",
        "sent",
    )  # fmt: skip

    def __init__(
        self, view: ListenerView, request: Request, began: float, random: Callable[[], float]
    ) -> None:
        self._view = view
        self._request = request
        self._began = began
        self._random = random
        self.decision: Decision | None = None
        self._endpoint: EndpointState | None = None
        self._attempts = 0
        self._connected = False
        self._tried = began
        self._answered: float | None = None
        self._status = 0
        self._headers: tuple[tuple[str, str], ...] = ()
        self._open = [True]
        self.received = 0
        self.sent = 0

    @property
    def answers(self) -> bool:
        """Whether the response of an endpoint is known to have begun."""
        return self._answered is not None

    def decided(self, decision: Decision) -> None:
        self.decision = decision

    def tried(self, endpoint: EndpointState | None, now: float) -> None:
        """An endpoint is going to be tried."""
        self._endpoint = endpoint
        self._attempts += 1
        self._tried = now

    def answered(self, now: float, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """The response of an endpoint began; `headers` as the caller sees them."""
        self._status = status
        now = self.began_to_answer(now)
        took = (_SERVICE_TIME, str(int((now - self._tried) * 1000)))
        self._headers = (*(pair for pair in headers if pair[0].lower() != _SERVICE_TIME), took)

    def began_to_answer(self, now: float) -> float:
        """The response of an endpoint is there; returns since when."""
        self._connected = True
        if self._answered is None:
            self._answered = now
        return self._answered

    def replied(self, status: int, headers: Iterable[tuple[str, str]], sent: int) -> None:
        """The mesh answered itself, with a body of so many bytes."""
        self._status = status
        self._headers = tuple(headers)
        self.sent = sent

    def end(
        self,
        now: float,
        outcome: Outcome = Outcome.DONE,
        error: CallError | None = None,
        *,
        trailers: Iterable[tuple[str, str]] = (),
        grpc: int | None = None,
    ) -> list[tuple[str, str]]:
        """(path, line) of each log that the call goes into; nothing when asked again.

        Args:
            error: with which the mesh ended the call.
            grpc: number of the gRPC status.
        """
        try:
            self._open.pop()
        except IndexError:  # whoever was first, perhaps in another thread
            return []
        if error is None and isinstance(self.decision, Reply):
            error = self.decision.error
        if outcome is Outcome.RESET and self._answered is None and not self._request.grpc:
            self._status = 503
        if self._request.grpc and grpc is None and self._status:
            grpc = grpc_code_of_http(self._status)
        self._connected |= isinstance(error, RouteTimeout) and self._endpoint is not None
        ended = self._ended(now, outcome, error, tuple(trailers), grpc)
        context = self._context(ended, error)
        call = _Call(context, self._random)
        return [
            (log.path, _line(log.form, context))
            for log in self._view.access_logs
            if log.filter.takes(call)
        ]

    def _ended(
        self,
        now: float,
        outcome: Outcome,
        error: CallError | None,
        trailers: tuple[tuple[str, str], ...],
        grpc: int | None,
    ) -> Ended:
        flags = []
        if self.decision is not None and self.decision.delay:
            flags.append("DI")
        failure = _failure(error)
        if error is not None:
            flags += [error.flag] if error.flag != "-" else []
        elif outcome is not Outcome.DONE:
            flags.append("DC" if outcome is Outcome.GIVEN_UP else "UC")
        began = self._answered
        # Envoy counts an attempt that finds no host, too.
        vain = isinstance(error, NoHealthyUpstream) and not isinstance(error, DnsFailure)
        return Ended(
            duration=now - self._began,
            response_duration=None if began is None else began - self._began,
            received=self.received if self._attempts else 0,
            sent=self.sent,
            flags=tuple(flags),
            details=self._details(outcome, error, failure),
            failure=failure,
            trailers=trailers,
            attempts=max(1, self._attempts) if vain else self._attempts,
            connected=self._connected,
            grpc=grpc,
        )

    def _details(self, outcome: Outcome, error: CallError | None, failure: str) -> str:
        when = "before" if self._answered is None else "after"
        if isinstance(error, ConnectFailure):
            why = f"remote_connection_failure|{failure}" if failure else "connection_timeout"
            return _RESET.format(when, why)
        if error is not None:
            return next(
                (text for kind, text in _DETAILS if isinstance(error, kind)), "direct_response"
            )
        if outcome is Outcome.GIVEN_UP:
            return "http2.remote_reset" if self._request.grpc else "downstream_remote_disconnect"
        if outcome is Outcome.RESET:
            return _RESET.format(when, "connection_termination")
        return "direct_response" if isinstance(self.decision, Reply) else "via_upstream"

    def _context(self, ended: Ended, error: CallError | None) -> Context:
        decision, request = self.decision, self._request
        route = cluster = ""
        metadata: Any = {}
        if isinstance(decision, Forward):
            route, cluster = decision.route.name, decision.cluster.cluster.name
            metadata = decision.route.metadata
            headers = decision.request_headers(request.headers)
            if decision.path_rewritten:
                headers.append(("x-envoy-original-path", request.target))
            endpoint = self._endpoint
            authority = decision.authority_at(endpoint) if endpoint else decision.authority
            request = request.having(headers, path=decision.path, authority=authority)
        elif isinstance(decision, Reply):
            route = decision.route
            if error is not None and not isinstance(error, ClusterNotFound):
                cluster = error.cluster
        elif isinstance(decision, Passthrough):
            cluster = _PASSTHROUGH
        found = self._view.clusters.get(cluster)
        exchange = Exchange(
            route=route,
            cluster=cluster,
            cluster_metadata={} if found is None else found.cluster.metadata,
            route_metadata=metadata,
            caller=self._view.caller,
        )
        return Context(
            request,
            exchange,
            response=self._headers,
            status=self._status,
            endpoint=None if self._endpoint is None else self._endpoint.endpoint,
            body=decision.body.decode("utf-8", "replace") if isinstance(decision, Reply) else "",
            ended=ended,
        )


class _Call:
    """What filters see."""

    __slots__ = ("draw", "duration", "flags", "grpc", "request", "status")

    def __init__(self, context: Context, random: Callable[[], float]) -> None:
        ended = context.ended
        assert ended is not None
        self.status = context.status
        self.duration = ended.duration
        self.flags = ended.flags
        self.grpc = ended.grpc
        if self.grpc is None and self.status:
            self.grpc = grpc_code_of_http(self.status)
        self.request = context.request
        self.draw = random


def _failure(error: CallError | None) -> str:
    """Why there was no connection, in Envoy's words; empty where time was up."""
    if not isinstance(error, ConnectFailure):
        return ""
    reason, cause = str(error), error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return "delayed_connect_error:_" + os.strerror(cause.errno).replace(" ", "_")
        cause = cause.__cause__ or cause.__context__
    for number in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET):
        if os.strerror(number) in reason:
            return "delayed_connect_error:_" + os.strerror(number).replace(" ", "_")
    return ""


# --- lines -------------------------------------------------------------------------------------


def _line(form: Format | JsonLine, context: Context) -> str:
    if isinstance(form, Format):
        return form.fill(context)
    found = _filled(form.document, context, omit=form.omit_empty)
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False) + "\n"


def _filled(value: Any, context: Context, *, omit: bool) -> Any:
    if isinstance(value, Format):
        return value.value(context)
    if isinstance(value, dict):
        pairs = {key: _filled(part, context, omit=omit) for key, part in value.items()}
        return {key: part for key, part in pairs.items() if not (omit and _is_empty(part))}
    if isinstance(value, list):
        parts = [_filled(part, context, omit=omit) for part in value]
        return [part for part in parts if not (omit and _is_empty(part))]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # a number of a protobuf Struct is a double
    return value


def _is_empty(value: Any) -> bool:
    return value is None or value == {}  # an empty list stays, in Envoy too
