"""One request on its way to a cluster, over all its attempts. Pure but for the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from meshsdk.accesslog import Record
from meshsdk.balancing import ClusterView, EndpointState
from meshsdk.call import Forward
from meshsdk.errors import ConnectFailure, RouteTimeout

# --- where a request goes --------------------------------------------------------------------


class Trip:
    """One request on its way to a cluster, over all its attempts.

    Attributes:
        timeout: the route's, in seconds; None is no limit.
        waited: seconds of the caller's time that an injected delay has taken.
        host: that the call names, for TLS that the mesh begins.
        forward: the decision; None for what is opaque.
        endpoint: of the newest attempt.
        server_name: the name that the application's own TLS verifies; None: it does none.
        connect_timeout: of the endpoint's cluster, in seconds.
        connecting: seconds spent on connecting, successfully or not.
        record: for the access logs; None where there are none.
    """

    __slots__ = (
        "_caller", "cluster", "connect_timeout", "connecting", "endpoint", "extensions", "forward",
        "host", "key", "limited_by", "record", "route", "server_name", "timeout", "waited",
    )  # fmt: skip

    def __init__(
        self,
        cluster: ClusterView,
        route: str,
        extensions: dict[str, Any],
        *,
        timeout: float | None = None,
        waited: float = 0.0,
        host: str = "",
        server_name: str | None = None,
        forward: Forward | None = None,
        key: int | None = None,
        record: Record | None = None,
    ) -> None:
        self.cluster = cluster
        self.route = route
        self.timeout = timeout
        self.waited = waited
        self.host = host
        self.forward = forward
        self.key = key
        self.record = record
        self.endpoint: EndpointState | None = None
        self.server_name = server_name
        self.connect_timeout = cluster.cluster.connect_timeout
        self.connecting = 0.0
        self._caller: dict[str, float | None] = extensions.get("timeout") or {}
        self.limited_by = "cluster"

    def to_connect(self, since: float | None = None) -> float:
        """Seconds for connecting: the shortest of the caller's, the route's and the cluster's.

        Args:
            since: when this attempt began, if that is a while ago (monotonic).
        """
        spent = 0.0 if since is None else time.monotonic() - since
        caller = self._caller.get("connect")
        limits = [(self.connect_timeout - spent, "cluster")]
        if self.timeout is not None:
            limits.append((self.timeout - self.connecting - spent, "route"))
        if caller is not None:
            limits.append((caller - self.connecting - spent, "caller"))
        limit, self.limited_by = min(limits)
        return max(limit, 0.001)

    def timed_out(self) -> RouteTimeout:
        return RouteTimeout(
            f"upstream request timeout: the route {self.route!r} allows {self.timeout:g} s",
            route=self.route,
            cluster=self.cluster.cluster.name,
            sent=True,
        )

    def connect_failure(self, endpoint: EndpointState, reason: BaseException) -> ConnectFailure:
        return ConnectFailure(
            f"cannot connect to {endpoint.target}: {_why(reason)}",
            route=self.route,
            cluster=endpoint.cluster.name,
            endpoint=endpoint.target,
        )

    def pick(self, random: Callable[[], float]) -> EndpointState:
        """An endpoint, acquired.

        Raises:
            NoHealthyUpstream: there is none.
        """
        return self.cluster.pick(random, self.key)

    def another(self, failed: set[str], random: Callable[[], float]) -> EndpointState | None:
        """An endpoint, acquired, that has not failed yet: as the policy picks, or the next one."""
        for _ in range(len(failed) + 1):
            state = self.pick(random)
            if state.target not in failed:
                return state
            state.release()
        for state in self.cluster.sequence(random, self.key):
            if state.target not in failed:
                state.acquire()
                return state
        return None


def _why(error: BaseException) -> str:
    """The first thing that an error, or what caused it, has to say."""
    cause: BaseException | None = error
    while cause is not None:
        if str(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__
