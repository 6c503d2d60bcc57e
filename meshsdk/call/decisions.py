"""What a decision says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from meshsdk import routing
from meshsdk.balancing import ClusterView, EndpointState
from meshsdk.errors import CallError
from meshsdk.formats import Exchange
from meshsdk.model import HeaderChange, Route
from meshsdk.routing import Headers, Random, Request


@dataclass(frozen=True, slots=True)
class Passthrough:
    """Send the request unchanged to where the caller was going."""

    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """The mesh answers itself; nothing was sent.

    Attributes:
        grpc_code: number of the gRPC status that a gRPC caller sees; `grpc_message` its text, as
            in Envoy the body.
        error: why, where the answer is an error; None for redirects and direct responses.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    flag: str = "-"
    grpc_code: int = 2
    grpc_message: str = ""
    delay: float = 0.0
    error: CallError | None = None
    route: str = ""

    @classmethod
    def of(cls, error: CallError, delay: float = 0.0) -> Reply:
        """The answer that Envoy gives for this error."""
        body = error.body.encode()
        headers = (("content-type", "text/plain"),) if body else ()
        return cls(
            status=error.http_status,
            headers=headers,
            body=body,
            flag=error.flag,
            grpc_code=error.grpc_code,
            grpc_message=error.body,
            delay=delay,
            error=error,
            route=error.route,
        )

    def having(self, headers: tuple[tuple[str, str], ...]) -> Reply:
        """The same answer with these headers in place of any of their names."""
        return replace(self, headers=tuple(_put(list(self.headers), headers))) if headers else self


NO_REQUEST = Request("GET", "/", authority="")
NO_EXCHANGE = Exchange()


@dataclass(frozen=True, slots=True, eq=False)
class Mirror:
    """A copy of the call to send to another cluster: its answer is thrown away, and whatever
    becomes of it, the call itself neither waits for it nor fails with it.

    Attributes:
        authority: host of the copy, with `-shadow` where the policy adds it.
        path: with query, as the call itself is sent.
        trace_sampled: None: as the call itself.
    """

    cluster: ClusterView
    authority: str
    path: str
    trace_sampled: bool | None = None
    key: int | None = None
    changes: tuple[HeaderChange, ...] = ()
    _endpoint_host: str = field(default="", repr=False)  # which only the call itself says
    _request: Request = field(default=NO_REQUEST, repr=False)

    def pick(self, random: Random) -> EndpointState:
        """As `Forward.pick`."""
        return _pick(self.cluster, random, self.key)

    def request_headers(self, headers: Headers) -> list[tuple[str, str]]:
        """The headers of the copy, from those with which the call itself is sent."""
        if self._endpoint_host:
            headers = routing.without_forwarded_host(headers, self._endpoint_host)
        if not self.changes:
            return list(headers)
        sent = self._request.having(headers, path=self.path, authority=self.authority)
        return routing.apply_changes(headers, self.changes, sent)


def _pick(cluster: ClusterView, random: Random, key: int | None) -> EndpointState:
    return cluster.pick(random) if key is None else cluster.pick(random, key)


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """Send the call to an endpoint of `cluster`.

    Attributes:
        timeout: seconds for the whole call by the route; None is no limit.
        max_grpc_timeout: upper limit for the caller's own gRPC deadline; None is no limit.
        path: with query, after rewriting.
        authority: after host rewriting; where `host_of_endpoint` says so, `authority_at` an
            endpoint counts instead.
        changes_request, changes_response: False means that the header functions change nothing.
        key: for consistent hashing, 64 bits; None: the route has no policy that gave one.
        set_cookies: `set-cookie` values that the response gets.
        mirrors: copies to send.
    """

    route: Route
    cluster: ClusterView
    path: str
    authority: str
    timeout: float | None = None
    max_grpc_timeout: float | None = None
    delay: float = 0.0
    path_rewritten: bool = False
    host_rewritten: bool = False
    changes_request: bool = False
    changes_response: bool = False
    key: int | None = None
    set_cookies: tuple[str, ...] = ()
    mirrors: tuple[Mirror, ...] = ()
    host_of_endpoint: bool = False
    _forwarded_host: str = field(default="", repr=False)
    _cors: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    _request: Request = field(default=NO_REQUEST, repr=False)
    _request_levels: routing.Levels = field(default=(), repr=False)
    _response_levels: routing.Levels = field(default=(), repr=False)
    _exchange: Exchange = field(default=NO_EXCHANGE, repr=False)

    @property
    def alike(self) -> bool:
        """Whether every call that goes this way gets the same changes."""
        return not self.changes_request and routing.is_constant(self._response_levels)

    def pick(self, random: Random) -> EndpointState:
        """Choose an endpoint and count an attempt on it; `release()` it in a `finally`.

        Raises:
            NoHealthyUpstream: the cluster has no endpoint that may be used.
        """
        return _pick(self.cluster, random, self.key)

    def authority_at(self, endpoint: EndpointState) -> str:
        """The authority of the request at this endpoint."""
        return (self.host_of_endpoint and endpoint.endpoint.hostname) or self.authority

    def request_headers(self, headers: Headers) -> list[tuple[str, str]]:
        """The headers to send: the caller's after the mutations of the route."""
        found = routing.mutate(
            headers, self._request_levels, self._request, of_request=True, exchange=self._exchange
        )
        if self._forwarded_host:
            return routing.forwarded_host(found, self._forwarded_host)
        return found

    def response_headers(
        self, headers: Headers, *, status: int = 200, endpoint: EndpointState | None = None
    ) -> list[tuple[str, str]]:
        """The headers to hand to the caller; operators in them see the request as it was sent.

        Args:
            status, endpoint: of the response, of which operators may speak.
        """
        found = self._mutated(headers, status, endpoint)
        found += [("set-cookie", cookie) for cookie in self.set_cookies]
        return _put(found, self._cors)

    def _mutated(
        self, headers: Headers, status: int, endpoint: EndpointState | None
    ) -> list[tuple[str, str]]:
        asked = self._request
        authority = self.authority if endpoint is None else self.authority_at(endpoint)
        sent = asked.having(
            self.request_headers(asked.headers), path=self.path, authority=authority
        )
        return routing.mutate(
            headers,
            self._response_levels,
            sent,
            of_request=False,
            exchange=self._exchange,
            status=status,
            endpoint=None if endpoint is None else endpoint.endpoint,
        )

    def reply(self, error: CallError) -> Reply:
        """The answer to a call that failed after it was decided (UH, UF, UT)."""
        answer = Reply.of(error)
        if not self.changes_response:
            return answer
        headers = self._mutated(answer.headers, answer.status, None)
        return replace(answer, headers=tuple(_put(headers, self._cors)))


def _put(
    headers: list[tuple[str, str]], over: tuple[tuple[str, str], ...]
) -> list[tuple[str, str]]:
    if not over:
        return headers
    names = {name for name, _ in over}
    return [*(pair for pair in headers if pair[0].lower() not in names), *over]


Decision = Forward | Reply | Passthrough

PASSTHROUGH = Passthrough()


def described(
    route: Route, cluster: str, view: Any, host: Any, virtual_cluster: str = ""
) -> Exchange:
    """What operators may say of the way that a call takes."""
    found = view.clusters.get(cluster)
    configured = found.cluster if found is not None else None
    return Exchange(
        route=route.name,
        virtual_cluster=virtual_cluster,
        cluster="" if found is None else cluster,
        cluster_metadata={} if configured is None else configured.metadata,
        route_metadata=route.metadata,
        host_metadata=host.metadata,
        caller=view.caller,
        details="" if cluster else "direct_response",
    )
