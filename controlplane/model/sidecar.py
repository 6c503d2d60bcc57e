"""Sidecar resources: which services and rules callers import (C1 to C9). Pure.

Source: Istio pilot/pkg/model/sidecar.go, push_context.go getSidecarScope.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.model.entries import LabelSelector
from controlplane.model.hosts import is_wildcard, matches, most_specific, subset_of
from controlplane.model.meshconfig import MeshConfig
from controlplane.model.names import Names
from controlplane.model.policy import ConnectionPool
from controlplane.model.registry import Service
from controlplane.model.resource import Resource
from controlplane.model.traffic import Destination, Spec, VirtualServiceConfig
from controlplane.model.workloads import contains


class ListenerPort(Spec, frozen=True):
    number: int = 0
    protocol: str = ""
    name: str = ""
    target_port: int = 0


class EgressListener(Spec, frozen=True):
    port: ListenerPort | None = None
    bind: str = ""
    capture_mode: str = "DEFAULT"
    hosts: tuple[str, ...] = ()


class OutboundPolicy(Spec, frozen=True):
    mode: str = "REGISTRY_ONLY"
    """REGISTRY_ONLY or ALLOW_ANY."""
    egress_proxy: Destination | None = None


class SidecarSpec(Spec, frozen=True):
    workload_selector: LabelSelector | None = None
    egress: tuple[EgressListener, ...] = ()
    ingress: tuple[dict[str, Any], ...] = ()
    outbound_traffic_policy: OutboundPolicy | None = None
    inbound_connection_pool: ConnectionPool | None = None

    @property
    def labels(self) -> Mapping[str, str]:
        return self.workload_selector.labels if self.workload_selector else {}


_EVERYTHING = EgressListener(hosts=("*/*",))


class Sidecars:
    """All Sidecar resources. Immutable once built."""

    def __init__(self, resources: Iterable[Resource], mesh: MeshConfig) -> None:
        self._root = mesh.root_namespace
        self._by_namespace: dict[str, list[Resource]] = defaultdict(list)
        for resource in sorted(resources, key=lambda resource: resource.age_key):
            self._by_namespace[resource.namespace].append(resource)

    def __bool__(self) -> bool:
        return bool(self._by_namespace)

    def find(self, namespace: str, labels: Mapping[str, str]) -> Resource | None:
        """The one for a workload (C1): by its labels, else its namespace's, else the mesh's."""
        own = self._by_namespace.get(namespace, ())
        for resource in own:
            spec: SidecarSpec = resource.typed
            if spec.labels and contains(labels, spec.labels):
                return resource
        rest = (*own, *self._by_namespace.get(self._root, ()))
        return next((resource for resource in rest if not resource.typed.labels), None)


Rules = tuple[VirtualServiceConfig, ...]
HostRules = tuple[Mapping[str, Rules], Mapping[str, Rules]]
"""VirtualServices of gateway `mesh` by exact host and by wildcard."""


def host_rules(rules: Iterable[VirtualServiceConfig]) -> HostRules:
    """The rules of each host in their order."""
    exact: dict[str, Rules] = {}
    wildcard: dict[str, Rules] = {}
    for rule in rules:
        if rule.for_mesh:
            for host in rule.hosts:
                known = wildcard if is_wildcard(host) else exact
                known[host] = (*known.get(host, ()), rule)
    return exact, wildcard


class Listener:
    """What is imported for calls to one port, or (port 0) to every port without its own."""

    __slots__ = ("_rules", "names", "port", "rules", "services")

    def __init__(
        self,
        port: int,
        services: Mapping[str, Service],
        rules: Rules,
        namespace: str,
        domain: str,
    ) -> None:
        self.port = port
        self.services = services
        self.rules = rules
        self.names = Names(namespace, domain, services.get, services.values)
        self._rules = host_rules(rules)

    def rules_for(self, hostname: str) -> Rules:
        """The VirtualServices for a host, in their order."""
        return most_specific(hostname, *self._rules) or ()


@dataclass(frozen=True, slots=True, eq=False)
class Imports:
    """What one Sidecar lets its workloads see."""

    origin: str
    listeners: tuple[Listener, ...]
    services: Mapping[str, Service]
    """All imported services, and those that imported rules lead to (C5)."""
    outbound: OutboundPolicy | None

    def at(self, port: int) -> Listener | None:
        """The listener of a port (C4)."""
        for listener in self.listeners:
            if listener.port in (0, port):
                return listener
        return None


def imports(
    sidecar: Resource,
    namespace: str,
    domain: str,
    services: Iterable[Service],
    rules: Iterable[VirtualServiceConfig],
    lookup: Callable[[str], Service | None],
) -> Imports:
    """Applies a Sidecar to what callers in `namespace` could see without it.

    Args:
        services: every visible service; of several with one host the preferred one first.
        rules: the visible VirtualServices in their order.
        lookup: the visible service of a host.
    """
    spec: SidecarSpec = sidecar.typed
    offered, ruling = list(services), [rule for rule in rules if rule.for_mesh]
    listeners = []
    for egress in spec.egress or (_EVERYTHING,):
        if egress.port is not None and not egress.port.number:
            continue  # a Unix socket: nobody calls it by host and port
        wanted = _Hosts(egress.hosts, namespace)
        listeners.append(
            Listener(
                egress.port.number if egress.port else 0,
                _imported(offered, wanted, egress),
                tuple(rule for rule in ruling if wanted.has_rule(rule)),
                namespace,
                domain,
            )
        )
    # A listener for all the rest comes last whatever its place in the document.
    listeners.sort(key=lambda listener: listener.port == 0)
    found = _all_services(listeners, lookup)
    return Imports(str(sidecar), tuple(listeners), found, spec.outbound_traffic_policy)


def _imported(
    offered: Iterable[Service], wanted: _Hosts, egress: EgressListener
) -> dict[str, Service]:
    found: dict[str, Service] = {}
    for service in offered:
        if service.hostname in found or not wanted.has_service(service):
            continue
        if egress.port is not None and egress.port.protocol.upper() != "HTTP_PROXY":
            port = service.port(egress.port.number)
            if port is None:
                continue
            service = dataclasses.replace(service, ports=(port,))
        found[service.hostname] = service
    return found


def _all_services(
    listeners: Iterable[Listener], lookup: Callable[[str], Service | None]
) -> dict[str, Service]:
    found: dict[str, Service] = {}
    for listener in listeners:
        for service in listener.services.values():
            known = found.get(service.hostname)
            if known is None:
                found[service.hostname] = service
            elif known.namespace == service.namespace:
                numbers = {port.number for port in known.ports}
                more = tuple(port for port in service.ports if port.number not in numbers)
                found[service.hostname] = dataclasses.replace(known, ports=known.ports + more)
    for service in list(found.values()):
        target = lookup(service.external_name) if service.external_name else None
        if target is not None:
            _add_led(found, target, 0)
    for listener in listeners:
        for rule in listener.rules:
            for destination in _destinations(rule):
                led = lookup(destination.host)
                if led is not None:
                    _add_led(found, led, destination.port_number)
    return found


def _add_led(found: dict[str, Service], led: Service, number: int) -> None:
    """A service that a rule leads to comes with the port that the rule names, or with all."""
    port = led.port(number) if number else None
    known = found.get(led.hostname)
    if known is None:
        found[led.hostname] = dataclasses.replace(led, ports=(port,)) if port else led
    elif known.namespace == led.namespace:
        have = {one.number for one in known.ports}
        more = tuple(one for one in ((port,) if port else led.ports) if one.number not in have)
        if more:
            found[led.hostname] = dataclasses.replace(known, ports=known.ports + more)


def _destinations(rule: VirtualServiceConfig) -> Iterator[Destination]:
    for http in rule.http:
        yield from (item.destination for item in http.route)
        yield from (mirror.destination for mirror in http.mirrors)
        if http.mirror is not None:
            yield http.mirror
    for tls in rule.tls:
        yield from (item.destination for item in tls.route)
    for tcp in rule.tcp:
        yield from (item.destination for item in tcp.route)


class _Hosts:
    """The hosts of an egress listener: `namespace/name`, `~` before a namespace excludes (C3)."""

    def __init__(self, hosts: Iterable[str], namespace: str) -> None:
        self._wanted: list[tuple[str, str]] = []
        self._unwanted: list[tuple[str, str]] = []
        for host in hosts:
            owner, _, name = host.partition("/")
            excluded = owner.startswith("~")
            owner = owner.removeprefix("~") or "*"
            pair = (namespace if owner == "." else owner, name.lower())
            (self._unwanted if excluded else self._wanted).append(pair)

    def has_service(self, service: Service) -> bool:
        return any(self._within(service, self._wanted)) and not any(
            self._within(service, self._unwanted)
        )

    @staticmethod
    def _within(service: Service, pairs: Iterable[tuple[str, str]]) -> Iterator[bool]:
        for owner, name in pairs:
            yield owner in ("*", service.namespace) and subset_of(service.hostname, name)

    def has_rule(self, rule: VirtualServiceConfig) -> bool:
        """Whether some host of it meets an imported one: it may be wider or narrower (C5)."""
        return any(
            owner in ("*", rule.namespace) and matches(name, host)
            for host in rule.hosts
            for owner, name in self._wanted
            if not self._excludes(rule, host)
        )

    def _excludes(self, rule: VirtualServiceConfig, host: str) -> bool:
        return any(
            owner in ("*", rule.namespace) and subset_of(host, name)
            for owner, name in self._unwanted
        )
