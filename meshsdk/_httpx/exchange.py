"""What a request looks like to a route, and what an answer of the mesh looks like to httpx.

Pure. Requests and responses are httpcore's; `core` is the module that they come from, httpcore or
httpcore2.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from meshsdk.balancing import ClusterView, EndpointState
from meshsdk.call import Forward, Reply, Request
from meshsdk.errors import CallError, ConnectFailure, RouteTimeout

RawHeaders = list[tuple[bytes, bytes]]


class CallInfo:
    """What the mesh did with a call: `response.extensions["meshsdk"]`.

    Attributes:
        flag: Envoy response flag; `-` where there is none.
        route: name of the route that matched.
        cluster, endpoint: where the request went; empty when the mesh answered by itself.
        error: why the mesh answered by itself; None for redirects and direct responses too.
        local: the mesh answered by itself.
    """

    __slots__ = ("cluster", "endpoint", "error", "flag", "local", "route")

    def __init__(
        self,
        flag: str,
        route: str,
        cluster: str = "",
        endpoint: str = "",
        *,
        error: CallError | None = None,
        local: bool = False,
    ) -> None:
        self.flag = flag
        self.route = route
        self.cluster = cluster
        self.endpoint = endpoint
        self.error = error
        self.local = local

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"CallInfo({shown})"


def timeouts(request: Any) -> dict[str, float | None]:
    """The caller's limits in seconds: connect, read, write, pool; None is no limit."""
    return request.extensions.get("timeout") or {}


def authority(url: Any) -> str:
    """`host` or `host:port` of an httpcore URL."""
    host: str = url.host.decode("ascii")
    if ":" in host:
        host = f"[{host}]"
    return host if url.port is None else f"{host}:{url.port}"


def bare_host(authority: str) -> str:
    """An authority without its port and brackets."""
    host, colon, port = authority.rpartition(":")
    return (host if colon and port.isdigit() else authority).strip("[]")


# --- headers ---------------------------------------------------------------------------------


def text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape")


def raw(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def described(request: Any, carried: tuple[tuple[str, str], ...]) -> tuple[Request, bool]:
    """The request as a route sees it, and whether `carried` headers were added to it.

    Args:
        carried: headers of the request being served, for those that the caller did not set.
    """
    authority = ""
    grpc = False
    headers = []
    for key, value in request.headers:
        name = key.lower()
        if name == b"host":
            authority = text(value)
            continue
        headers.append((text(name), text(value)))
        if name == b"content-type" and value.startswith(b"application/grpc"):
            grpc = True
    added = False
    if carried:
        present = {name for name, _ in headers}
        extra = [pair for pair in carried if pair[0] not in present]
        headers += extra
        added = bool(extra)
    seen = Request(
        text(request.method),
        text(request.url.target),
        authority=authority,
        scheme=text(request.url.scheme),
        headers=headers,
        grpc=grpc,
    )
    return seen, added


def headers_to_send(request: Any, seen: Request, forward: Forward) -> RawHeaders:
    """The headers with everything that the route, and the carried ones, change about them."""
    original = request.headers
    host = [pair for pair in original if pair[0].lower() == b"host"]
    if forward.host_rewritten or not host:
        host = [(b"Host", raw(forward.authority))]
    if forward.changes_request:
        changed = forward.request_headers(seen.headers)
        return host + [(raw(name), raw(value)) for name, value in changed]
    rest = [pair for pair in original if pair[0].lower() != b"host"]
    return host + rest + [(raw(name), raw(value)) for name, value in seen.headers[len(rest) :]]


def headers_to_hand_on(headers: RawHeaders, forward: Forward) -> RawHeaders:
    pairs = forward.response_headers([(text(k), text(v)) for k, v in headers])
    return [(raw(name), raw(value)) for name, value in pairs]


def replayable(request: Any, byte_stream: type) -> bool:
    """Whether the request may be sent again after a connection broke under it.

    Its method has to be idempotent (RFC 9110 9.2.2), and its body has to be in memory.
    """
    return request.method in _IDEMPOTENT and isinstance(request.stream, byte_stream)


_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))


# --- answers of the mesh itself --------------------------------------------------------------


def response(core: Any, request: Any, reply: Reply) -> Any:
    """The response that the caller sees; without a body where HTTP knows none."""
    headers = [(raw(name), raw(value)) for name, value in reply.headers]
    bodiless = reply.status < 200 or reply.status in (204, 304)
    if not bodiless:
        headers.append((b"content-length", str(len(reply.body)).encode()))
    error = reply.error
    return core.Response(
        status=reply.status,
        headers=headers,
        content=b"" if bodiless or request.method == b"HEAD" else reply.body,
        extensions={
            "http_version": b"HTTP/1.1",
            "meshsdk": CallInfo(
                reply.flag,
                reply.route,
                error.cluster if error else "",
                error.endpoint if error else "",
                error=error,
                local=True,
            ),
        },
    )


# --- where a request goes --------------------------------------------------------------------


class Trip:
    """One request on its way to a cluster, over all its attempts.

    Attributes:
        timeout: the route's, in seconds; None is no limit.
        waited: seconds of the caller's time that an injected delay has taken.
        host: that the call names, without port, for TLS that the mesh begins.
        server_name: the name that the application's own TLS verifies; None: it does none.
        connect_timeout: of the endpoint's cluster, in seconds.
        connecting: seconds spent on connecting, successfully or not.
    """

    __slots__ = (
        "_caller", "cluster", "connect_timeout", "connecting", "extensions", "host", "limited_by",
        "route", "server_name", "timeout", "waited",
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
    ) -> None:
        self.cluster = cluster
        self.route = route
        self.timeout = timeout
        self.waited = waited
        self.host = host
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

    def another(self, failed: set[str], random: Callable[[], float]) -> EndpointState | None:
        """An endpoint, acquired, that has not failed yet: as the policy picks, or any other."""
        for _ in range(len(failed) + 1):
            state = self.cluster.pick(random)
            if state.target not in failed:
                return state
            state.release()
        for state in self.cluster.endpoints:
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
