"""Scope: the world as one variant of nodes sees it, while one resource is made.

It remembers what was looked at, so that a change rebuilds only the resources that it touches, and
what could not be said to the node, for `proxy-status`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from controlplane.model.policy import DestinationRuleConfig, TrafficPolicy, with_default
from controlplane.model.traffic import Destination, VirtualServiceConfig
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
        """The parts of a name, or of the server name that stands for it
        (`outbound_.port_.subset_.host`); None when it is not of this form."""
        parts = text.split("|") if "|" in text else text.split("_.", 3)
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

    __slots__ = ("hosts", "imports", "labels", "left_out", "missed", "notes", "variant", "world")

    def __init__(self, world: World, variant: Variant) -> None:
        self.world = world
        self.variant = variant
        self.labels: Mapping[str, str] = dict(variant.labels)
        self.imports = world.imports(variant.namespace, self.labels) if world.sidecars else None
        """What the Sidecar for these callers lets them see; None: everything exported to them."""
        self.hosts: set[str] = set()
        self.notes: list[str] = []
        self.left_out: list[str] = []
        """Rules that these callers never get, and why: for who asks what was looked at."""
        self.missed = False
        """Some host was looked for and not found: it may come under another of its names."""

    @property
    def dialect(self) -> Dialect:
        return self.variant.dialect

    @property
    def namespace(self) -> str:
        return self.variant.namespace

    @property
    def locality(self) -> Locality:
        """Where these callers run; empty when no rule asks."""
        labels = self.labels
        return Locality(*(labels.get(key, "") for key in (REGION, ZONE, SUBZONE)))

    @property
    def allow_any(self) -> bool:
        """Whether calls to hosts outside the registry go out (C6, C9)."""
        if self.imports is not None and self.imports.outbound is not None:
            return self.imports.outbound.mode == "ALLOW_ANY"
        return self.world.mesh.outbound_policy != "REGISTRY_ONLY"

    @property
    def egress_proxy(self) -> Destination | None:
        """Where such calls go instead of to where they were going."""
        outbound = self.imports.outbound if self.imports is not None else None
        return outbound.egress_proxy if outbound is not None else None

    def note(self, text: str) -> None:
        """Something that this node cannot be told as configured."""
        if text not in self.notes:
            self.notes.append(text)

    def find(self, host: str, port: int) -> Service | None:
        """The service that a call to this port means by any name that it answers to."""
        self.hosts.add(host)
        if self.imports is None:
            service = self.world.find_service(host, self.namespace, port)
        else:
            listener = self.imports.at(port)
            service = listener.names.find(host, port) if listener else None
        if service is None:
            self.missed = True
        else:
            self.hosts.add(service.hostname)
        return service

    def called(self, hostname: str, port: int) -> Service | None:
        """The service of a qualified host, if these callers may call it on this port."""
        self.hosts.add(hostname)
        if self.imports is None:
            return self.world.service(hostname, self.namespace)
        listener = self.imports.at(port)
        return listener.services.get(hostname) if listener else None

    def service(self, hostname: str) -> Service | None:
        """The service of a qualified host name, as something that rules may lead to."""
        self.hosts.add(hostname)
        if self.imports is not None:
            return self.imports.services.get(hostname)
        return self.world.service(hostname, self.namespace)

    def services_called(self, port: int) -> Iterable[Service]:
        """All services that these callers may call on a port."""
        if self.imports is None:
            return self.world.visible_services(self.namespace)
        listener = self.imports.at(port)
        return listener.services.values() if listener else ()

    def places(self) -> Iterator[tuple[Service, int]]:
        """Every service and port that these callers may call."""
        if self.imports is None:
            for service in self.world.visible_services(self.namespace):
                self.hosts.add(service.hostname)
                for port in self.concrete(service).ports:
                    yield service, port.number
            return
        for listener in self.imports.listeners:
            for service in listener.services.values():
                self.hosts.add(service.hostname)
                for port in self.concrete(service).ports:
                    if self.imports.at(port.number) is listener:
                        yield service, port.number

    def reachable(self) -> Iterable[Service]:
        """Every service that these callers may be sent to."""
        if self.imports is None:
            return self.world.visible_services(self.namespace)
        return self.imports.services.values()

    def concrete(self, service: Service) -> Service:
        """The service that rules and endpoints are taken from: an alias followed (S4)."""
        target = self.world.alias_target(service, self.namespace)
        if target is None:
            return service
        self.hosts.add(target.hostname)
        return target

    def rules(self, hostname: str, port: int) -> tuple[VirtualServiceConfig, ...]:
        """The VirtualServices for a host, for calls of these callers to a port, in their order.

        The first that says anything of the port rules; there is no merging (H11).
        """
        self.hosts.add(hostname)
        if self.imports is not None:
            listener = self.imports.at(port)
            return listener.rules_for(hostname) if listener else ()
        return self.world.virtual_services_for(self.namespace, hostname)

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
