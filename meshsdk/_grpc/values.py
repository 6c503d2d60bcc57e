"""gRPC's view of a decision, without I/O: targets, metadata, status codes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from meshsdk.call import Decision, Forward, Reply
from meshsdk.errors import CallError, NotReady

Pairs = Sequence[tuple[str, Any]]

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

# Schemes of the C core's resolvers whose targets do not name a service of the mesh.
_FOREIGN = frozenset(
    {"google-c2p", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds", "uds", "passthrough"}
)


def authority_of(target: str) -> str | None:
    """The `host:port` that a gRPC target names; None when the mesh has no say in it.

    `reviews:9080`, `dns:reviews:9080` and `dns:///reviews:9080` are one service. Addresses by
    another scheme (`unix:`, `ipv4:`, `xds:` …) and names with an own DNS server go out as they are.
    """
    scheme, colon, rest = target.partition(":")
    if not colon:
        return target or None
    if scheme == "dns":
        if rest.startswith("//"):
            server, _, name = rest[2:].partition("/")
            return name if name and not server else None
        return rest or None
    return None if scheme in _FOREIGN else target


def host_of(authority: str) -> str:
    """`authority` without its port."""
    host, colon, port = authority.rpartition(":")
    return host.strip("[]") if colon and port.isdigit() else authority


# --- metadata --------------------------------------------------------------------------------


def with_traces(metadata: Iterable[tuple[str, Any]] | None, traces: Pairs) -> Pairs:
    """The caller's metadata, then each trace header that the caller did not set."""
    if metadata is None:
        return traces
    pairs = tuple(metadata)
    names = {name for name, _ in pairs}
    return pairs + tuple(pair for pair in traces if pair[0] not in names)


def headers_of(metadata: Iterable[Any] | None) -> list[tuple[str, str]]:
    """Metadata as a route matcher sees it: text, binary values in base64.

    Metadata that gRPC itself will refuse is left to gRPC: it does not match anything here.
    """
    headers = []
    try:
        for name, value in metadata or ():
            if isinstance(value, bytes):
                value = base64.b64encode(value).decode() if name.endswith("-bin") else _text(value)
            headers.append((name.lower(), value))
    except (AttributeError, TypeError, ValueError):
        return []
    return headers


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def sendable(headers: Iterable[tuple[str, Any]]) -> Pairs:
    """Mutated headers as metadata: no pseudo headers, binary values as bytes."""
    return tuple(
        (name, _binary(value) if name.endswith("-bin") and isinstance(value, str) else value)
        for name, value in headers
        if name != "host" and not name.startswith(":")
    )


def _binary(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return value.encode()


# --- failures --------------------------------------------------------------------------------


class Failure(Exception):
    """A call ended by the mesh before or instead of a call of grpc; never leaves the adapters.

    Attributes:
        code, details: as through Envoy; `details` may be empty.
        cause: the mesh's error, `__cause__` of what the application sees.
        trailing: metadata of the mesh's own answer. initial: what a server had sent before.
        debug: `debug_error_string`, with what Envoy keeps to itself: why.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str,
        cause: Exception | None = None,
        trailing: Pairs = (),
        *,
        initial: Pairs = (),
        why: str = "",
    ) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.cause = cause
        self.trailing = trailing
        self.initial = initial
        why = why or str(cause or "")
        self.debug = f"{code.name}:{details}" + (f" ({why})" if why not in ("", details) else "")


def replied(reply: Reply) -> Failure:
    """What a gRPC caller sees of a mesh reply: status by code, body as details (as in Envoy).

    An answer without gRPC status (a redirect, a direct response) is never a success: a plain HTTP
    answer carries no gRPC message.
    """
    code = CODES.get(reply.grpc_code, grpc.StatusCode.UNKNOWN)
    if code is grpc.StatusCode.OK:
        code = grpc.StatusCode.UNKNOWN
    trailing = [pair for pair in reply.headers if pair[0] not in ("content-type", "content-length")]
    why = "" if reply.error else f"the mesh answered with HTTP status {reply.status}"
    return Failure(code, reply.grpc_message, reply.error, sendable(trailing), why=why)


def given_up(error: CallError, decision: Decision) -> Failure:
    """What a gRPC caller sees of a call that failed after it was decided."""
    return replied(decision.reply(error) if isinstance(decision, Forward) else Reply.of(error))


def out_of_time() -> Failure:
    return Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")


def not_ready(name: str, error: NotReady, seconds: float | None, *, expired: bool) -> Failure:
    """No configuration came: DEADLINE_EXCEEDED when the caller's time is up, else UNAVAILABLE.

    The same as a raw channel whose name does not resolve: it waits for the resolver until the
    deadline, and fails with UNAVAILABLE once the resolver gives up.
    """
    if expired:
        code = grpc.StatusCode.DEADLINE_EXCEEDED
        details = f"no configuration for {name} arrived within {seconds:.3g} s: {error}"
    else:
        code = grpc.StatusCode.UNAVAILABLE
        details = f"no configuration for {name}: {error}"
    return Failure(code, details, error)


_CONNECT_FAILED = "failed to connect to all addresses; last error: "


def connect_failed(code: grpc.StatusCode | None, details: str | None) -> bool:
    """Whether the core gave up before it had a connection, so that nothing was sent.

    A server may send the same words on: callers check the state of the channel too.
    """
    return code is grpc.StatusCode.UNAVAILABLE and (details or "").startswith(_CONNECT_FAILED)
