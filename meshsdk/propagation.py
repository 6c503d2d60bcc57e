"""Trace headers of the request being served, for the calls made while serving it.

A server adapter captures them, a client adapter sends them on: a trace stays whole with no line in
the application. They live in a context variable, which asyncio tasks and the thread pools of
`asyncio.to_thread`, Starlette and anyio inherit; a thread that the application starts itself does
not, unless it is started through `contextvars.copy_context().run`.

Headers that are no trace but have to travel with the request, such as the `end-user` that a route
matches on, are named in `MESHSDK_PROPAGATE`, separated by commas.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar, Token
from typing import NamedTuple

from meshsdk.errors import ConfigurationError

_log = logging.getLogger("meshsdk.propagation")

VARIABLE = "MESHSDK_PROPAGATE"
REQUEST_ID = "x-request-id"

TRACE_HEADERS = frozenset(
    {
        # W3C Trace Context and Baggage
        "traceparent",
        "tracestate",
        "baggage",
        # Zipkin: several headers, or all in one
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-flags",
        "b3",
        # Envoy, LightStep, Google, OpenCensus, Datadog, SkyWalking
        REQUEST_ID,
        "x-ot-span-context",
        "x-cloud-trace-context",
        "grpc-trace-bin",
        "x-datadog-trace-id",
        "x-datadog-parent-id",
        "x-datadog-sampling-priority",
        "sw8",
    }
)
"""What is always carried. Source: Istio, "Distributed Tracing", the headers of each tracer."""

# Lists by their specifications: several header lines are one line joined by commas.
_LISTS = frozenset({"tracestate", "baggage"})

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")

# Each belongs to one connection, one body or one call of gRPC, never to the next hop's.
_NEVER = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

Pairs = Iterable[tuple[str, str | bytes]]


class Carried(NamedTuple):
    """What travels on from one received request.

    Attributes:
        headers: for HTTP requests: lower-case names, text.
        metadata: for gRPC calls: the same, and binary values as bytes.
    """

    headers: tuple[tuple[str, str], ...] = ()
    metadata: tuple[tuple[str, str | bytes], ...] = ()


_NOTHING = Carried()
# Set by the server adapters, each in the context of the one request that it serves.
_served: ContextVar[Carried] = ContextVar("meshsdk_served", default=_NOTHING)


def outgoing() -> tuple[tuple[str, str], ...]:
    """Headers for a new HTTP request: `()` while no request is being served."""
    return _served.get().headers


def outgoing_metadata() -> tuple[tuple[str, str | bytes], ...]:
    """Metadata for a new gRPC call: `()` while no request is being served."""
    return _served.get().metadata


def serve(carried: Carried) -> Token[Carried]:
    """From here on, in this context, a request with `carried` is being served."""
    return _served.set(carried)


def incoming(headers: Pairs, extra: Collection[str] = ()) -> Token[Carried]:
    """Begin serving a request with `headers` (lower-case name, value) in this context.

    Args:
        extra: names that are carried besides `TRACE_HEADERS`.

    Returns:
        What `reset` takes when the request is over.
    """
    return _served.set(carried(headers, extra))


def reset(token: Token[Carried]) -> None:
    """End what `incoming` or `serve` began."""
    # Ended from another context, as a coroutine is that the garbage collector closes, there is
    # nothing to restore: the context that it was set in is gone.
    with contextlib.suppress(ValueError):
        _served.reset(token)


@contextlib.contextmanager
def serving(headers: Pairs, extra: Collection[str] = ()) -> Iterator[Carried]:
    """Serve a request with `headers` within the `with` block: for servers without an adapter."""
    token = incoming(headers, extra)
    try:
        yield _served.get()
    finally:
        reset(token)


def new_request_id() -> str:
    """A random UUID, version 4."""
    import uuid

    return str(uuid.uuid4())


def carried(
    headers: Pairs, extra: Collection[str] = (), new_id: Callable[[], str] = new_request_id
) -> Carried:
    """What of a received request's headers travels on.

    Empty values and values that gRPC cannot send are left out. Two `traceparent` lines are none,
    and `tracestate` means nothing without them. A request without `x-request-id` gets `new_id()`.

    Source: W3C Trace Context 3.2 and 3.3; Envoy HTTP connection manager, x-request-id.
    """
    found: dict[str, list[str]] = {}
    binary: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name not in TRACE_HEADERS and name not in extra:
            continue
        if isinstance(value, bytes):
            if name.endswith("-bin") and value:
                binary.append((name, value))
                continue
            value = value.decode("latin-1")
        value = value.strip(" \t")
        if value and not name.endswith("-bin") and _sendable(name, value):
            found.setdefault(name, []).append(value)
    if "," in ",".join(found.get("traceparent", ())):  # WSGI joins lines by commas itself
        del found["traceparent"]
        found.pop("tracestate", None)
    if REQUEST_ID not in found:
        found[REQUEST_ID] = [new_id()]
    pairs = tuple(_joined(found, extra))
    return Carried(pairs, (*pairs, *binary))


def _joined(found: Mapping[str, list[str]], extra: Collection[str]) -> Iterator[tuple[str, str]]:
    for name, values in found.items():
        if name in _LISTS:
            yield name, ",".join(values)
        elif name in TRACE_HEADERS:
            yield name, values[0]
        else:
            yield from ((name, value) for value in values)


_told: set[str] = set()  # added to by any thread; at worst something is told twice


def _sendable(name: str, value: str) -> bool:
    """Whether gRPC sends the value: printable ASCII (gRPC over HTTP/2, "ASCII-Value")."""
    if value.isascii() and value.isprintable():
        return True
    if name not in _told:
        _told.add(name)
        _log.warning(
            "header %s is not carried to outgoing calls: its value is not printable ASCII", name
        )
    return False


def extra_names(environ: Mapping[str, str]) -> frozenset[str]:
    """The header names that `MESHSDK_PROPAGATE` adds, in lower case.

    Raises:
        ConfigurationError: a name that is no header name, or that cannot belong to a next hop.
    """
    names = {part.strip().lower() for part in environ.get(VARIABLE, "").split(",")} - {""}
    for name in sorted(names):
        if not _TOKEN.fullmatch(name):
            raise ConfigurationError(
                f"{VARIABLE}: {name!r} is not a header name; "
                "give names separated by commas, for example end-user,x-tenant"
            )
        if name in _NEVER or name.startswith(("grpc-", "proxy-")):
            raise ConfigurationError(
                f"{VARIABLE}: {name} belongs to one hop and cannot be carried; remove it"
            )
    return frozenset(names)
