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


_NO_EXCHANGE = Exchange()


class Context:
    """One filling-in.

    Args:
        response: headers of the response; None while there is none.
        status: of the response; 0 while there is none.
        endpoint: that answered; None while none was chosen.
        body: of a direct response, for LOCAL_REPLY_BODY.
    """

    __slots__ = ("body", "endpoint", "exchange", "request", "response", "status")

    def __init__(
        self,
        request: RequestLike,
        exchange: Exchange = _NO_EXCHANGE,
        *,
        response: Headers | None = None,
        status: int = 0,
        endpoint: EndpointLike | None = None,
        body: str = "",
    ) -> None:
        self.request = request
        self.exchange = exchange
        self.response = response
        self.status = status
        self.endpoint = endpoint
        self.body = body
