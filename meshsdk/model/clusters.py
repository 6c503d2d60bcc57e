"""Clusters and endpoints: what CDS and EDS say, as frozen values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from meshsdk.model.balancing import Balancing, LbConfig
from meshsdk.model.upstream import DEFAULT_DNS, Dns, SocketMatch, UpstreamTls


class ClusterKind(enum.Enum):
    EDS = "EDS"
    STATIC = "STATIC"
    STRICT_DNS = "STRICT_DNS"
    LOGICAL_DNS = "LOGICAL_DNS"
    ORIGINAL_DST = "ORIGINAL_DST"
    """Send to where the caller was going anyway (PassthroughCluster)."""
    DYNAMIC = "DYNAMIC"
    """Look up the host that the call names (`envoy.clusters.dynamic_forward_proxy`)."""
    AGGREGATE = "AGGREGATE"
    """The priorities of other clusters, one after the other (`envoy.clusters.aggregate`)."""


@dataclass(frozen=True, slots=True)
class Locality:
    region: str = ""
    zone: str = ""
    sub_zone: str = ""


class Health(enum.Enum):
    UNKNOWN = "UNKNOWN"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    TIMEOUT = "TIMEOUT"
    DEGRADED = "DEGRADED"

    def __init__(self, name: str) -> None:
        self.healthy = name in ("UNKNOWN", "HEALTHY")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of a cluster.

    Attributes:
        address: IP address or host name, or the path of a Unix socket when `port` is 0.
        metadata: `filter_metadata` as plain nested mappings (`istio.workload`,
            `envoy.transport_socket_match.tlsMode`).
    """

    address: str
    port: int
    weight: int = 1
    health: Health = Health.UNKNOWN
    hostname: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def target(self) -> str:
        """`ip:port`, `[ipv6]:port` or `unix:path`: the key of the endpoint everywhere."""
        if not self.port:
            return f"unix:{self.address}"
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


@dataclass(frozen=True, slots=True)
class LocalityEndpoints:
    endpoints: tuple[Endpoint, ...]
    locality: Locality = Locality()
    priority: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Drop:
    """Calls that are to be answered 503 to lower the load; one category of them."""

    category: str
    per_million: int


@dataclass(frozen=True, slots=True)
class Assignment:
    """ClusterLoadAssignment: the endpoints of a cluster, by locality.

    Attributes:
        overprovisioning: percent; 140 means that a priority takes all its calls down to 72 % of
            healthy endpoints.
        drops: looked at one after another, each for the calls that the one before left.
        weighted_priority_health: the health of a priority is that of its weights, not its count.
    """

    name: str
    localities: tuple[LocalityEndpoints, ...] = ()
    overprovisioning: int = 140
    drops: tuple[Drop, ...] = ()
    weighted_priority_health: bool = False


DEFAULT_LB: Final = LbConfig()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as CDS describes it; `assignment` inline for STATIC and the DNS kinds.

    Attributes:
        dns: how names are resolved, for the DNS kinds and DYNAMIC.
        members: of an AGGREGATE, the clusters in the order of their priorities.
        original_dst_header: of an ORIGINAL_DST, the request header that may name another
            destination (`ip:port`); empty for none.
        place: of an ORIGINAL_DST and a DYNAMIC, the `host:port` that the endpoints stand for: such
            a cluster is another one for each host that is called.
        tls: TLS towards every endpoint that no entry of `sockets` matches; None is plain text.
    """

    name: str
    kind: ClusterKind = ClusterKind.EDS
    eds_name: str = ""
    balancing: Balancing = Balancing.ROUND_ROBIN
    lb: LbConfig = DEFAULT_LB
    connect_timeout: float = 5.0
    assignment: Assignment | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    dns: Dns = DEFAULT_DNS
    members: tuple[str, ...] = ()
    original_dst_header: str = ""
    place: str = ""
    tls: UpstreamTls | None = None
    sockets: tuple[SocketMatch, ...] = ()

    @property
    def key(self) -> str:
        """What tells clusters apart that share a name."""
        return f"{self.name} {self.place}" if self.place else self.name

    def tls_to(self, endpoint: Endpoint) -> UpstreamTls | None:
        """TLS towards one endpoint, None for plain text: the first match wins.

        Source: Envoy `Cluster.transport_socket_matches`.
        """
        if not self.sockets:
            return self.tls
        labels = endpoint.metadata.get("envoy.transport_socket_match") or {}
        for candidate in self.sockets:
            if candidate.match.items() <= labels.items():
                return candidate.tls
        return self.tls
