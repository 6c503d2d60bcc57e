"""What operators may look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Caller:
    """The calling process, as operators and hash policies may speak of it.

    Attributes:
        address: IP address from which its calls come; empty when unknown.
        hostname: name of its host.
        environment: its environment variables.
        channel: a random 64-bit number that stands for the process where gRPC asks for its channel.
    """

    address: str = ""
    hostname: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    channel: int | None = None


CALLER = Caller()


class RequestLike(Protocol):
    """A request, as operators see it."""

    @property
    def path(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def query(self) -> str: ...
    @property
    def grpc(self) -> bool: ...
    @property
    def start(self) -> float | None: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    def values(self, name: str) -> Sequence[str]: ...


class EndpointLike(Protocol):
    """An endpoint, as operators see it."""

    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def hostname(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a route adds to a request: constant for all calls that take the same way."""

    route: str = ""
    virtual_cluster: str = ""
    cluster: str = ""
    observable_cluster: str = ""
    cluster_metadata: Mapping[str, Any] = field(default_factory=dict)
    route_metadata: Mapping[str, Any] = field(default_factory=dict)
    host_metadata: Mapping[str, Any] = field(default_factory=dict)
    caller: Caller = CALLER
    details: str = ""
    """Envoy's RESPONSE_CODE_DETAILS, where the mesh answers itself."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended: what only an access log knows.

    Attributes:
        duration: of the whole call, in seconds.
        response_duration: until the response began, in seconds; None: it never did.
        received, sent: bytes of the bodies of request and response.
        flags: Envoy's short names of what went wrong, in Envoy's order.
        details: Envoy's RESPONSE_CODE_DETAILS.
        failure: why there was no connection to the endpoint.
        attempts: how often an endpoint was asked for.
        connected: whether the last of them was reached.
        grpc: number of the gRPC status; None where there is none.
    """

    duration: float
    response_duration: float | None = None
    received: int = 0
    sent: int = 0
    flags: tuple[str, ...] = ()
    details: str = ""
    failure: str = ""
    trailers: Headers = ()
    attempts: int = 0
    connected: bool = False
    grpc: int | None = None


_NO_EXCHANGE = Exchange()


class Context:
    """One filling-in.

    Args:
        response: headers of the response; None while there is none.
        status: of the response; 0 while there is none.
        endpoint: that answered; None while none was chosen.
        body: of a direct response, for LOCAL_REPLY_BODY.
        ended: how the call ended; None while it goes on.
    """

    __slots__ = ("body", "ended", "endpoint", "exchange", "request", "response", "status")

    def __init__(
        self,
        request: RequestLike,
        exchange: Exchange = _NO_EXCHANGE,
        *,
        response: Headers | None = None,
        status: int = 0,
        endpoint: EndpointLike | None = None,
        body: str = "",
        ended: Ended | None = None,
    ) -> None:
        self.request = request
        self.exchange = exchange
        self.response = response
        self.status = status
        self.endpoint = endpoint
        self.body = body
        self.ended = ended
