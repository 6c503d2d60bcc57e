"""The service registry: services, their ports and the endpoints that answer for them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from controlplane.model.resource import NOWHERE, Origin

EMPTY: Mapping[str, str] = {}


class Protocol(enum.Enum):
    """What is spoken on a port; the values are Istio's names."""

    HTTP = "HTTP"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    GRPC_WEB = "GRPC-Web"
    HTTPS = "HTTPS"
    HTTP_PROXY = "HTTP_PROXY"
    TLS = "TLS"
    TCP = "TCP"
    UDP = "UDP"
    MONGO = "Mongo"
    REDIS = "Redis"
    MYSQL = "MySQL"
    UNSUPPORTED = "UnsupportedProtocol"
    """Not declared: sniffed by a proxy that can."""

    @property
    def is_http(self) -> bool:
        """L7 rules apply to it (HTTP in the clear)."""
        return self in _HTTP

    @property
    def is_http2(self) -> bool:
        return self in _HTTP2

    @property
    def is_opaque(self) -> bool:
        """Passed on as bytes: declared, and not HTTP in the clear."""
        return not self.is_http and self is not Protocol.UNSUPPORTED

    @property
    def is_tls(self) -> bool:
        return self in (Protocol.HTTPS, Protocol.TLS)


_HTTP = frozenset(
    {Protocol.HTTP, Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB, Protocol.HTTP_PROXY}
)
_HTTP2 = frozenset({Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB})


class Resolution(enum.Enum):
    """How a client finds the endpoints of a service."""

    CLIENT_SIDE = "CLIENT_SIDE"
    """By the endpoints that the control plane sends (EDS)."""
    DNS = "DNS"
    """Strict DNS: all addresses of the name are endpoints."""
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"
    """Logical DNS: one address at a time."""
    DYNAMIC_DNS = "DYNAMIC_DNS"
    NONE = "NONE"
    """The original destination of the call (passthrough)."""
    ALIAS = "ALIAS"
    """Another name for `Service.external_name` (ExternalName)."""


class Health(enum.Enum):
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"


@dataclass(frozen=True, slots=True)
class Locality:
    region: str = ""
    zone: str = ""
    subzone: str = ""

    @classmethod
    def parse(cls, text: str) -> Locality:
        """Reads `region/zone/subzone`; missing parts are empty."""
        parts = (*text.split("/"), "", "")
        return cls(*parts[:3])

    def __str__(self) -> str:
        return "/".join((self.region, self.zone, self.subzone)).rstrip("/")


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str
    number: int
    protocol: Protocol
    target_port: int | str = 0
    """Port number, or port name of the workload; 0: same as `number`."""


@dataclass(frozen=True, slots=True)
class Service:
    """One host of the mesh, from a Kubernetes Service or a ServiceEntry."""

    hostname: str
    """Lower case, fully qualified for Kubernetes Services; may be `*.suffix` for a ServiceEntry."""
    name: str
    namespace: str
    ports: tuple[ServicePort, ...] = ()
    addresses: tuple[str, ...] = ()
    """VIPs or CIDRs under which it is called."""
    selector: Mapping[str, str] = field(default_factory=dict)
    resolution: Resolution = Resolution.CLIENT_SIDE
    external: bool = False
    """MESH_EXTERNAL: outside the mesh, never mTLS on its own account."""
    headless: bool = False
    external_name: str = ""
    export_to: frozenset[str] = frozenset("*")
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    created: datetime | None = None
    origin: Origin = field(default=NOWHERE, compare=False)
    source: str = "kubernetes"
    """`kubernetes` or `serviceentry`."""
    subject_alt_names: tuple[str, ...] = ()
    publish_not_ready: bool = False
    traffic_distribution: str = ""
    resource: str = ""
    """The document it came from, for messages: `Service default/reviews`."""

    def port(self, number: int) -> ServicePort | None:
        return next((port for port in self.ports if port.number == number), None)

    def port_named(self, name: str) -> ServicePort | None:
        return next((port for port in self.ports if port.name == name), None)

    def visible_to(self, namespace: str) -> bool:
        """H9: exportTo has `*`, or `.` and it is the service's namespace, or that namespace."""
        return exported_to(self.export_to, self.namespace, namespace)


def exported_to(export_to: frozenset[str], own: str, namespace: str) -> bool:
    """Whether something in namespace `own` with this exportTo is visible in `namespace`."""
    if "~" in export_to:
        return False
    return "*" in export_to or namespace in export_to or ("." in export_to and own == namespace)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that answers for one port of a service."""

    address: str
    """IP address, DNS name (resolution DNS), or `unix:///path`."""
    port: int
    """The port to connect to, 0 for a Unix socket."""
    labels: Mapping[str, str] = field(default_factory=dict)
    locality: Locality = Locality()
    weight: int = 1
    service_account: str = ""
    workload: str = ""
    namespace: str = ""
    health: Health = Health.HEALTHY
    tls_mode: str = ""
    """`istio` when the workload takes mTLS of the mesh, else empty."""
    network: str = ""
    node: str = ""
    """The machine that it runs on."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One running instance: a Pod or a WorkloadEntry."""

    name: str
    namespace: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    locality: Locality = Locality()
    weight: int = 0
    service_account: str = ""
    network: str = ""
    health: Health = Health.HEALTHY
    kind: str = "Pod"
    """`Pod` or `WorkloadEntry`."""
    node: str = ""
    """The machine that it runs on."""
    terminating: bool = False
    hostname: str = ""
    subdomain: str = ""
