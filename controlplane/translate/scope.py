"""Scope: the world as one variant of nodes sees it, while one resource is made.

It remembers what was looked at, so that a change rebuilds only the resources that it touches, and
what could not be said to the node, for `proxy-status`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from controlplane.model.policy import DestinationRuleConfig, TrafficPolicy, with_default
from controlplane.model.traffic import VirtualServiceConfig
from controlplane.translate.node import REGION, SUBZONE, ZONE, Dialect, Variant
from controlplane.world import (
    Endpoint,
    Locality,
    Protocol,
    Resolution,
    Service,
    ServicePort,
    World,
)

PASSTHROUGH = "PassthroughCluster"
BLACK_HOLE = "BlackHoleCluster"


class ClusterName(NamedTuple):
    """`outbound|port|subset|host` (H17)."""

    port: int
    subset: str
    host: str

    def __str__(self) -> str:
        return f"outbound|{self.port}|{self.subset}|{self.host}"

    @classmethod
    def parse(cls, text: str) -> ClusterName | None:
        """The parts of a name; None when it is not of this form."""
        parts = text.split("|")
        if len(parts) != 4 or parts[0] != "outbound" or not _is_port(parts[1]) or not parts[3]:
            return None
        return cls(int(parts[1]), parts[2], parts[3])


def split_authority(name: str) -> tuple[str, int] | None:
    """Host and port of `host:port` or `[ipv6]:port`; None when it is not of this form."""
    host, _, port = name.rpartition(":")
    if not host or not _is_port(port):
        return None
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host.lower(), int(port)


def port_of(service: Service, number: int) -> ServicePort | None:
    """A port of a service. An alias of a name outside the mesh may leave its ports open."""
    if service.resolution is Resolution.ALIAS and not service.ports:
        return ServicePort("", number, Protocol.UNSUPPORTED)
    return service.port(number)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text) < 65536


class Scope:
    """One look at the world. Not shared between threads, not kept."""

    __slots__ = ("hosts", "missed", "notes", "variant", "world")

    def __init__(self, world: World, variant: Variant) -> None:
        self.world = world
        self.variant = variant
        self.hosts: set[str] = set()
        self.notes: list[str] = []
        self.missed = False
        """Some host was looked for and not found: it may come under another of its names."""

    @property
    def dialect(self) -> Dialect:
        return self.variant.dialect

    @property
    def namespace(self) -> str:
        return self.variant.namespace

    @property
    def labels(self) -> Mapping[str, str]:
        return dict(self.variant.labels)

    @property
    def locality(self) -> Locality:
        """Where these callers run; empty when no rule asks."""
        labels = self.labels
        return Locality(*(labels.get(key, "") for key in (REGION, ZONE, SUBZONE)))

    @property
    def allow_any(self) -> bool:
        return self.world.mesh.outbound_policy != "REGISTRY_ONLY"

    def note(self, text: str) -> None:
        """Something that this node cannot be told as configured."""
        if text not in self.notes:
            self.notes.append(text)

    def find(self, host: str) -> Service | None:
        """The service behind any name it answers to."""
        self.hosts.add(host)
        service = self.world.find_service(host, self.namespace)
        if service is None:
            self.missed = True
        else:
            self.hosts.add(service.hostname)
        return service

    def service(self, hostname: str) -> Service | None:
        """The service of a qualified host name."""
        self.hosts.add(hostname)
        return self.world.service(hostname, self.namespace)

    def concrete(self, service: Service) -> Service:
        """The service that rules and endpoints are taken from: an alias followed (S4)."""
        target = self.world.alias_target(service, self.namespace)
        if target is None:
            return service
        self.hosts.add(target.hostname)
        return target

    def rules(self, hostname: str) -> VirtualServiceConfig | None:
        """The VirtualService that rules a host for these callers."""
        self.hosts.add(hostname)
        return self.world.virtual_service_for(self.namespace, hostname)

    def destination_rule(self, service: Service) -> DestinationRuleConfig | None:
        self.hosts.add(service.hostname)
        return self.world.destination_rule(self.namespace, service, self.labels)

    def policy(self, service: Service, port: int, subset: str = "") -> TrafficPolicy:
        """The traffic policy in force for one cluster (D6)."""
        rule = self.destination_rule(service)
        policy = rule.policy(port, subset) if rule else TrafficPolicy()
        return with_default(policy, self.world.mesh.default_traffic_policy)

    def endpoints(self, service: Service, port: ServicePort, subset: str) -> list[Endpoint] | None:
        """The endpoints of a cluster; None when there is no such subset."""
        found = self.world.endpoints(service, port)
        if not subset:
            return list(found)
        rule = self.destination_rule(service)
        chosen = rule.subset(subset) if rule else None
        if chosen is None:
            return None
        wanted = chosen.labels.items()
        return [endpoint for endpoint in found if wanted <= endpoint.labels.items()]
