"""Listeners and routes: what LDS and RDS say, as frozen values."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from meshsdk.matching import Fraction, HeaderMatch, PathMatch, QueryMatch

# --- headers ---------------------------------------------------------------------------------


class AppendAction(enum.Enum):
    """Envoy `HeaderValueOption.HeaderAppendAction`."""

    APPEND_OR_ADD = "APPEND_IF_EXISTS_OR_ADD"
    ADD_IF_ABSENT = "ADD_IF_ABSENT"
    OVERWRITE_OR_ADD = "OVERWRITE_IF_EXISTS_OR_ADD"
    OVERWRITE = "OVERWRITE_IF_EXISTS"


@dataclass(frozen=True, slots=True)
class HeaderOption:
    name: str
    """Lower case."""
    value: str
    action: AppendAction = AppendAction.APPEND_OR_ADD
    keep_empty: bool = False


@dataclass(frozen=True, slots=True)
class HeaderMutations:
    """Changes of one level (weighted cluster, route, virtual host or route configuration)."""

    request_set: tuple[HeaderOption, ...] = ()
    request_remove: tuple[str, ...] = ()
    response_set: tuple[HeaderOption, ...] = ()
    response_remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.request_set or self.request_remove or self.response_set or self.response_remove
        )


# --- route -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RouteMatch:
    path: PathMatch
    headers: tuple[HeaderMatch, ...] = ()
    queries: tuple[QueryMatch, ...] = ()
    fraction: Fraction | None = None
    grpc_only: bool = False


@dataclass(frozen=True, slots=True)
class RegexRewrite:
    pattern: str
    substitution: str


@dataclass(frozen=True, slots=True)
class WeightedCluster:
    cluster: str
    weight: int
    mutations: HeaderMutations = HeaderMutations()
    host_rewrite: str | None = None
    """Where the route itself has none."""
    fault: Fault | None = None
    """Stands before those of route, virtual host and filter."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Kept as configured; enforced by the resilience layer."""

    retry_on: tuple[str, ...]
    num_retries: int = 1
    per_try_timeout: float | None = None
    retriable_status_codes: tuple[int, ...] = ()
    base_interval: float = 0.025
    max_interval: float = 0.25


@dataclass(frozen=True, slots=True)
class ForwardAction:
    """Send the call to one of `clusters` (one entry: no draw).

    Attributes:
        timeout: route timeout for the whole call; None is no timeout (Envoy `timeout: 0s`).
        max_grpc_timeout: upper limit for the caller's own gRPC deadline
            (`max_stream_duration.grpc_timeout_header_max`); None is no limit.
    """

    clusters: tuple[WeightedCluster, ...]
    timeout: float | None = None
    max_grpc_timeout: float | None = None
    retry: RetryPolicy | None = None
    prefix_rewrite: str | None = None
    regex_rewrite: RegexRewrite | None = None
    host_rewrite: str | None = None


@dataclass(frozen=True, slots=True)
class RedirectAction:
    """Answer with a redirect. Source: Envoy `RedirectAction`."""

    status: int = 301
    scheme: str | None = None
    https: bool = False
    host: str | None = None
    port: int | None = None
    path: str | None = None
    prefix_rewrite: str | None = None
    regex_rewrite: RegexRewrite | None = None
    strip_query: bool = False


@dataclass(frozen=True, slots=True)
class DirectResponseAction:
    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class UnsupportedAction:
    """A route whose action this SDK does not know: matching it fails the call, never misroutes."""

    problem: str


Action = ForwardAction | RedirectAction | DirectResponseAction | UnsupportedAction


@dataclass(frozen=True, slots=True)
class FaultDelay:
    """`seconds` None: the caller chooses by x-envoy-fault-delay-request."""

    seconds: float | None
    fraction: Fraction


@dataclass(frozen=True, slots=True)
class FaultAbort:
    """Neither status given: the caller chooses by x-envoy-fault-abort-request."""

    fraction: Fraction
    http_status: int | None = None
    grpc_status: int | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """Envoy `HTTPFault`: applies to calls whose headers match and, if given, to one cluster."""

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None
    headers: tuple[HeaderMatch, ...] = ()
    upstream_cluster: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    match: RouteMatch
    action: Action
    mutations: HeaderMutations = HeaderMutations()
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class VirtualHost:
    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    mutations: HeaderMutations = HeaderMutations()
    fault: Fault | None = None


class DomainIndex:
    """Virtual hosts by domain: exact, then longest `*suffix`, then longest `prefix*`, then `*`.

    Names are compared in lower case; a wildcard stands for at least one character.
    Source: Envoy `VirtualHost.domains`.
    """

    __slots__ = ("_any", "_exact", "_prefixes", "_suffixes")

    def __init__(self, hosts: tuple[VirtualHost, ...]) -> None:
        pairs = [(domain.lower(), host) for host in hosts for domain in host.domains]
        pairs.reverse()  # of equal domains the first one stays
        self._any = dict(pairs).get("*")
        self._exact = {d: h for d, h in pairs if "*" not in d}
        suffixes = {d[1:]: h for d, h in pairs if d.startswith("*") and d != "*"}
        prefixes = {d[:-1]: h for d, h in pairs if d.endswith("*") and d != "*"}
        self._suffixes = sorted(suffixes.items(), key=lambda item: -len(item[0]))
        self._prefixes = sorted(prefixes.items(), key=lambda item: -len(item[0]))

    def find(self, authority: str) -> VirtualHost | None:
        name = authority.lower()
        found = self._exact.get(name)
        if found is not None:
            return found
        for suffix, host in self._suffixes:
            if len(name) > len(suffix) and name.endswith(suffix):
                return host
        for prefix, host in self._prefixes:
            if len(name) > len(prefix) and name.startswith(prefix):
                return host
        return self._any


@dataclass(frozen=True, slots=True)
class RouteConfiguration:
    name: str
    virtual_hosts: tuple[VirtualHost, ...]
    mutations: HeaderMutations = HeaderMutations()
    most_specific_mutations_win: bool = False
    ignore_port: bool = False
    """Virtual hosts are found by the host alone (Envoy `ignore_port_in_host_matching`)."""
    _domains: DomainIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_domains", DomainIndex(self.virtual_hosts))

    def virtual_host(self, authority: str) -> VirtualHost | None:
        """The virtual host of an authority (`host` or `host:port`), None when none matches."""
        if self.ignore_port:
            host, colon, port = authority.rpartition(":")
            if colon and port.isdecimal():
                authority = host
        return self._domains.find(authority)

    @property
    def cluster_names(self) -> frozenset[str]:
        """Every cluster that a route of this configuration may choose."""
        return frozenset(
            weighted.cluster
            for host in self.virtual_hosts
            for route in host.routes
            if isinstance(route.action, ForwardAction)
            for weighted in route.action.clusters
        )


# --- listener --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listener:
    """A client listener (`api_listener`), or a server listener with `address`.

    Exactly one of `route_config` (inline) and `route_config_name` (by RDS) is given for a client
    listener; a server listener may have neither.
    """

    name: str
    route_config: RouteConfiguration | None = None
    route_config_name: str = ""
    max_stream_duration: float | None = None
    fault: Fault | None = None
    """Fault of the HTTP filter itself: used where route and virtual host have none."""
    address: str = ""
    """`ip:port` of a server listener, empty for a client listener."""
