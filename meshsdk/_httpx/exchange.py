"""What a request looks like to a route, and what an answer of the mesh looks like to httpx.

Pure. Requests and responses are httpcore's; `core` is the module that they come from, httpcore or
httpcore2.
"""

from __future__ import annotations

from typing import Any

from meshsdk.balancing import EndpointState
from meshsdk.call import Forward, Reply, Request
from meshsdk.errors import CallError

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


def with_host(headers: RawHeaders, authority: str) -> RawHeaders:
    rest = [pair for pair in headers if pair[0].lower() != b"host"]
    return [(b"Host", raw(authority)), *rest]


def headers_to_hand_on(
    headers: RawHeaders, forward: Forward, status: int, endpoint: EndpointState | None
) -> RawHeaders:
    given = [(text(k), text(v)) for k, v in headers]
    pairs = forward.response_headers(given, status=status, endpoint=endpoint)
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
