"""Listeners and routes: what LDS and RDS say, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meshsdk.matching import (
    CookieMatch,
    Fraction,
    HeaderMatch,
    MetadataMatch,
    PathMatch,
    QueryMatch,
)
from meshsdk.model.accesslogs import AccessLog
from meshsdk.model.actions import Action, ForwardAction
from meshsdk.model.filters import (
    NO_FILTERS,
    CorsPolicy,
    Fault,
    FilterChain,
    LocalRateLimit,
    RequireTls,
)
from meshsdk.model.headers import NO_MUTATIONS, HeaderMutations
from meshsdk.model.index import DomainIndex, RouteIndex
from meshsdk.model.trees import MatchTree


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """The conditions of a route; all must hold.

    Attributes:
        runtime_key: names `fraction`, for tools that choose by it.
        presented, validated: what is asked of the certificate of whoever calls. A call that an
            application makes comes without one.
        impossible: asks for filter state, which no call of this SDK has.
    """

    path: PathMatch
    headers: tuple[HeaderMatch, ...] = ()
    queries: tuple[QueryMatch, ...] = ()
    fraction: Fraction | None = None
    grpc_only: bool = False
    cookies: tuple[CookieMatch, ...] = ()
    metadata: tuple[MetadataMatch, ...] = ()
    presented: bool | None = None
    validated: bool | None = None
    impossible: bool = False
    runtime_key: str = ""

    @property
    def unconditional(self) -> bool:
        """Whether the path alone decides."""
        return not (
            self.headers
            or self.queries
            or self.fraction is not None
            or self.grpc_only
            or self.cookies
            or self.metadata
            or self.presented
            or self.validated
            or self.impossible
        )


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        cors: the policies that apply, the most specific one first.
    """

    name: str
    match: RouteMatch
    action: Action
    mutations: HeaderMutations = NO_MUTATIONS
    fault: Fault | None = None
    cors: tuple[CorsPolicy, ...] = ()
    local_rate_limit: LocalRateLimit | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class VirtualCluster:
    """A name for some of the calls of a virtual host, for statistics."""

    name: str
    headers: tuple[HeaderMatch, ...]


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """The routes of some domains: in order, or found by a `tree`.

    Attributes:
        attempt_count, attempt_count_in_response: whether x-envoy-attempt-count is set; enforced by
            the resilience layer.
    """

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    mutations: HeaderMutations = NO_MUTATIONS
    fault: Fault | None = None
    tree: MatchTree | None = None
    require_tls: RequireTls = RequireTls.NONE
    virtual_clusters: tuple[VirtualCluster, ...] = ()
    attempt_count: bool = False
    attempt_count_in_response: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    index: RouteIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", RouteIndex(self.routes))

    @property
    def all_routes(self) -> tuple[Route, ...]:
        """Every route that a call may get here."""
        return self.routes if self.tree is None else (*self.routes, *self.tree.routes())


@dataclass(frozen=True, slots=True)
class RouteConfiguration:
    """The virtual hosts of a listener.

    Attributes:
        ignore_port: virtual hosts are found by the host alone
            (Envoy `ignore_port_in_host_matching`).
        host_header: the request header by which virtual hosts are found; empty: the authority.
        ignore_path_parameters: paths are compared up to their first semicolon.
    """

    name: str
    virtual_hosts: tuple[VirtualHost, ...]
    mutations: HeaderMutations = NO_MUTATIONS
    most_specific_mutations_win: bool = False
    ignore_port: bool = False
    host_header: str = ""
    ignore_path_parameters: bool = False
    _domains: DomainIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_domains", DomainIndex(self.virtual_hosts))

    def virtual_host(self, authority: str) -> VirtualHost | None:
        """The virtual host of an authority (`host` or `host:port`), None when none matches."""
        if self.ignore_port:
            host, colon, port = authority.rpartition(":")
            if colon and port.isdecimal() and (":" not in host or host.endswith("]")):
                authority = host
        found: VirtualHost | None = self._domains.find(authority)
        return found

    @property
    def cluster_names(self) -> frozenset[str]:
        """Every cluster that a route of this configuration may choose, copies included."""
        actions = [
            route.action
            for host in self.virtual_hosts
            for route in host.all_routes
            if isinstance(route.action, ForwardAction)
        ]
        chosen = {weighted.cluster for action in actions for weighted in action.clusters}
        copied = {mirror.cluster for action in actions for mirror in action.mirrors}
        return frozenset(chosen | copied) - {""}


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
    filters: FilterChain = NO_FILTERS
    access_logs: tuple[AccessLog, ...] = ()
