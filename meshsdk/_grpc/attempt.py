"""One try of one call on one endpoint: how long it may take, and what its end means.

What ends a call through Envoy ends it here with the same status. Without I/O: `now` is an
argument, in seconds of `time.monotonic()`.

Source: Envoy, "What timeouts apply": the timeout of a route runs from the end of the request to
the end of the response. Before the response has begun Envoy answers in its place; afterwards all
that is left is to reset the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from meshsdk._grpc.values import Failure, Pairs, connect_failed, given_up, sendable
from meshsdk.balancing import EndpointState
from meshsdk.call import Forward
from meshsdk.errors import ConnectFailure, RouteTimeout

# The core's own words when its clock ends a call: before and after the response has begun.
_RESPONSE_REMOVED = "Stream removed ("
_OUT_OF_TIME = ("Deadline Exceeded", "Stream removed (Deadline Exceeded)")

# What grpcio makes of the RST_STREAM (INTERNAL_ERROR) with which Envoy ends a response.
_RESET = "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))"

# The core's clock has milliseconds, and the server counts down on its own.
_CLOCKS_DIFFER = 0.005


class Limit:
    """How long a call on a route may take.

    Args:
        own: seconds that the caller leaves; None is no limit.
        streams: the request is a stream, whose end starts the route's timeout; a single request
            has ended when it is sent.

    Attributes:
        ends: the deadline for grpc, None for none.
        expires: the same, if that is not the caller's own; of two that are equal it is.
        cut: the route's timeout ran out on a stream of requests, which was cancelled for it.
        answered: the response is known to have begun.
    """

    __slots__ = ("_capped", "_route", "answered", "cut", "ends", "expires")

    def __init__(
        self, own: float | None, forward: Forward, now: float, *, streams: bool = False
    ) -> None:
        self._route = forward.timeout
        route = None if streams else forward.timeout
        # A timeout in a VirtualService is sent as both: then it is the route's timeout.
        cap = forward.max_grpc_timeout if forward.max_grpc_timeout != forward.timeout else None
        if own is None:
            cap = None
        seconds = min((s for s in (own, cap, route) if s is not None), default=None)
        self.ends = None if seconds is None else now + seconds
        self.expires = None if seconds == own else self.ends
        self._capped = self.expires is not None and seconds != route
        self.cut = False
        self.answered = False

    def left(self, now: float) -> float | None:
        """Seconds for grpc."""
        return None if self.ends is None else max(0.0, self.ends - now)

    def of_request_end(self, now: float) -> float | None:
        """A stream of requests ended: seconds until the call is to be cut, if it is at all."""
        if self._route is None or (self.ends is not None and self.ends <= now + self._route):
            return None
        return self._route

    def passed(self, code: Any, details: str | None, now: float) -> bool:
        """Whether a call that ended like this, then, was ended by a limit of the route."""
        if self.cut:
            return code is grpc.StatusCode.CANCELLED
        if self.expires is None or code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            return False
        return details in _OUT_OF_TIME and now >= self.expires - _CLOCKS_DIFFER

    def failure(self, forward: Forward, target: str, initial: Pairs | None) -> Failure:
        """What the caller sees when it passed; `initial` is None before the response began."""
        capped = self._capped and not self.cut
        name, seconds = forward.route.name, forward.max_grpc_timeout if capped else self._route
        what = f"route {name!r} allows {seconds} s"
        if capped:
            what += ", whatever the caller's own deadline"
        error = RouteTimeout(
            what, route=name, cluster=forward.cluster.cluster.name, endpoint=target, sent=True
        )
        if initial is not None:
            return Failure(grpc.StatusCode.INTERNAL, _RESET, error, initial=initial)
        if capped:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            return Failure(code, "downstream duration timeout", error)
        return given_up(error, forward)


class Attempt:
    """One try, and what the application sees of its end.

    Whoever makes it has `over()` called at the end: an application may look much later.

    Args:
        is_down: whether there is no connection to the endpoint; None where there was one.
    """

    __slots__ = ("_down", "_is_down", "_over", "endpoint", "forward", "limit")

    def __init__(
        self,
        forward: Forward,
        endpoint: EndpointState,
        limit: Limit,
        is_down: Callable[[Forward, EndpointState], bool] | None,
    ) -> None:
        self.forward = forward
        self.endpoint = endpoint
        self.limit = limit
        self._is_down = is_down
        self._over: float | None = None
        self._down = False

    def over(self, now: float) -> None:
        """The call has ended."""
        if self._over is None:
            down = self._is_down
            self._down = down is not None and down(self.forward, self.endpoint)
            self._over = now

    def failure(
        self, code: Any, details: str | None, initial: Callable[[], Any], now: float
    ) -> Failure | None:
        """What the mesh makes of an end that grpc reports; None where it is the server's answer.

        Args:
            initial: the metadata that had come from the server.
            now: at the end, or when it was first looked at.
        """
        self.over(now)
        assert self._over is not None
        target = self.endpoint.target
        if self.limit.passed(code, details, self._over):
            metadata = initial()
            removed = (details or "").startswith(_RESPONSE_REMOVED)
            began = bool(metadata) or removed or self.limit.answered
            seen = self.initial(metadata) if began else None
            return self.limit.failure(self.forward, target, seen)
        if connect_failed(code, details) and self._down:
            error = ConnectFailure(
                f"{target}: {details}",
                route=self.forward.route.name,
                cluster=self.forward.cluster.cluster.name,
                endpoint=target,
            )
            return given_up(error, self.forward)
        return None

    def initial(self, metadata: Any) -> Pairs:
        """Initial metadata after what the route does to it."""
        pairs = tuple(metadata or ())
        if not self.forward.changes_response:
            return pairs
        return sendable(self.forward.response_headers(pairs))
