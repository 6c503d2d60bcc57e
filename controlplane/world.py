"""World: all configuration and the service registry at one moment, immutable, with its indexes.

Everything that translates or analyses reads a World and nothing else. A change builds a new one;
the reference to the current one is swapped by whoever serves it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from controlplane.model import envoyfilter
from controlplane.model.destination import DestinationRules
from controlplane.model.discovery import ServiceKey, discover, service_key
from controlplane.model.enforcement import enforcement
from controlplane.model.hosts import is_wildcard, most_specific, subset_of
from controlplane.model.meshconfig import MeshConfig
from controlplane.model.meshmerge import mesh_config
from controlplane.model.names import Names
from controlplane.model.policy import DestinationRuleConfig, Subset, TrafficPolicy
from controlplane.model.registry import (
    Endpoint,
    Health,
    Locality,
    Protocol,
    Resolution,
    Service,
    ServicePort,
    Workload,
)
from controlplane.model.resource import (
    MISSING_TIME,
    ConfigError,
    Finding,
    Level,
    Origin,
    Resource,
    ResourceRef,
    unique,
)
from controlplane.model.sidecar import HostRules, Imports, Sidecars, host_rules, imports
from controlplane.model.traffic import VirtualServiceConfig
from controlplane.model.virtual import virtual_services
from controlplane.model.workloads import contains

__all__ = [
    "Affected",
    "ConfigError",
    "DestinationRuleConfig",
    "Endpoint",
    "Finding",
    "Health",
    "Level",
    "Locality",
    "MeshConfig",
    "Origin",
    "Protocol",
    "Resolution",
    "Resource",
    "ResourceRef",
    "Service",
    "ServicePort",
    "Subset",
    "TrafficPolicy",
    "VirtualServiceConfig",
    "Workload",
    "World",
    "diff",
]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Made by `World.build`; never changed."""

    mesh: MeshConfig
    resources: tuple[Resource, ...]
    services: tuple[Service, ...]
    """All services of all namespaces, in a stable order."""
    workloads: tuple[Workload, ...]
    findings: tuple[Finding, ...]
    unenforced: tuple[Finding, ...]
    """Security policies that exist and are not enforced: `serve` refuses to start with them."""
    all_virtual_services: tuple[VirtualServiceConfig, ...]
    """Every VirtualService with hosts, oldest first, whoever sees it."""
    destination_rules: DestinationRules
    sidecars: Sidecars
    envoy_filters: tuple[Resource, ...]
    """In the order in which they are applied."""
    _endpoints: Mapping[ServiceKey, Mapping[int, tuple[Endpoint, ...]]]
    _by_host: Mapping[str, tuple[Service, ...]]
    # Views of one namespace, filled on first use. Any thread may: equal values replace each other.
    _rules: dict[str, tuple[VirtualServiceConfig, ...]] = field(default_factory=dict)
    _hosts: dict[str, HostRules] = field(default_factory=dict)
    _visible: dict[str, tuple[Service, ...]] = field(default_factory=dict)
    _names: dict[str, Names] = field(default_factory=dict)
    _imports: dict[tuple[str, str, str], Imports] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        resources: Iterable[Resource],
        registered: Iterable[Resource] = (),
        *,
        domain: str = "cluster.local",
        analyze: bool = True,
    ) -> World:
        """Joins documents into one consistent picture. Pure; never raises for bad configuration.

        Args:
            resources: parsed documents; of several with one identity the first counts.
            registered: WorkloadEntry documents of workloads that registered by themselves.
            domain: DNS suffix of Kubernetes names.
            analyze: also look for rules that match nothing.
        """
        kept, duplicates = unique((*resources, *registered))
        mesh, findings = mesh_config(kept, domain)
        registry = discover(kept, mesh)
        rules, delegate_findings = virtual_services(_of_kind(kept, "VirtualService"), mesh)
        by_host: dict[str, list[Service]] = defaultdict(list)
        for service in registry.services:
            by_host[service.hostname].append(service)
        notices, unenforced = enforcement(kept)
        world = cls(
            mesh=mesh,
            resources=kept,
            services=tuple(registry.services),
            workloads=tuple(registry.workloads),
            findings=(*duplicates, *findings, *delegate_findings, *notices),
            unenforced=tuple(unenforced),
            all_virtual_services=rules,
            destination_rules=DestinationRules(_of_kind(kept, "DestinationRule"), mesh),
            sidecars=Sidecars(_of_kind(kept, "Sidecar"), mesh),
            envoy_filters=envoyfilter.order(_of_kind(kept, "EnvoyFilter"), mesh.root_namespace),
            _endpoints={
                key: {port: tuple(endpoints) for port, endpoints in ports.items()}
                for key, ports in registry.endpoints.items()
            },
            _by_host={host: tuple(services) for host, services in by_host.items()},
        )
        if not analyze:
            return world
        # Analyzers read finished worlds, so they are imported by the one place that runs them.
        from controlplane.analysis import analyze_world

        found = (*world.findings, *analyze_world(world))
        return replace(world, findings=found)

    def resource(self, kind: str, namespace: str, name: str) -> Resource | None:
        """One document by identity (any API group that has the kind)."""
        for resource in self.resources:
            if (resource.kind, resource.namespace, resource.name) == (kind, namespace, name):
                return resource
        return None

    # --- services ----------------------------------------------------------------------------

    def service(self, hostname: str, namespace: str) -> Service | None:
        """The service that a caller in `namespace` means by this exact, qualified host (S11).

        Own namespace first, then a visible Kubernetes Service, then the oldest visible
        ServiceEntry.
        """
        return next(iter(self._candidates(hostname, namespace)), None)

    def _candidates(self, hostname: str, namespace: str) -> list[Service]:
        """The visible services of one host, the preferred one first."""
        found = [
            service for service in self._by_host.get(hostname, ()) if service.visible_to(namespace)
        ]
        if len(found) < 2:
            return found

        def preference(service: Service) -> tuple[bool, bool, datetime, str, str]:
            created = service.created.replace(tzinfo=None) if service.created else MISSING_TIME
            foreign = service.namespace != namespace
            from_entry = service.source != "kubernetes"
            return (foreign, from_entry, created, service.name, service.namespace)

        return sorted(found, key=preference)

    def services_with_host(self, hostname: str) -> tuple[Service, ...]:
        """Every service of this exact host, in whatever namespace, visible or not."""
        return self._by_host.get(hostname, ())

    def find_service(self, host: str, namespace: str, port: int = 0) -> Service | None:
        """The service that a caller means by any name it answers to."""
        names = self._names.get(namespace)
        if names is None:
            names = self._names[namespace] = Names(
                namespace,
                self.mesh.domain,
                lambda hostname: self.service(hostname, namespace),
                lambda: self.visible_services(namespace),
            )
        return names.find(host, port)

    def imports(self, namespace: str, labels: Mapping[str, str]) -> Imports | None:
        """What a Sidecar lets these callers see; None: no Sidecar is for them."""
        sidecar = self.sidecars.find(namespace, labels)
        if sidecar is None:
            return None
        key = (namespace, sidecar.namespace, sidecar.name)
        if (known := self._imports.get(key)) is None:
            offered = (
                service for host in self._by_host for service in self._candidates(host, namespace)
            )
            known = self._imports[key] = imports(
                sidecar,
                namespace,
                self.mesh.domain,
                offered,
                self.virtual_services(namespace),
                lambda hostname: self.service(hostname, namespace),
            )
        return known

    def visible_services(self, namespace: str) -> tuple[Service, ...]:
        """What callers in `namespace` see: one service per host (S11), ordered by host."""
        if (known := self._visible.get(namespace)) is not None:
            return known
        found = (self.service(host, namespace) for host in self._by_host)
        visible = tuple(service for service in found if service is not None)
        self._visible[namespace] = visible
        return visible

    def alias_target(self, service: Service, namespace: str) -> Service | None:
        """The service behind an ExternalName alias (S4), the service itself when it is none.

        None: the alias points outside the registry (`external_name` is a DNS name to connect to).
        """
        seen: set[str] = set()
        current: Service | None = service
        while current is not None and current.resolution is Resolution.ALIAS:
            if current.hostname in seen:
                return None
            seen.add(current.hostname)
            current = self.service(current.external_name, namespace)
        return current

    def endpoints(self, service: Service, port: ServicePort) -> tuple[Endpoint, ...]:
        """All endpoints of one port, unhealthy ones too (S5); none for resolution NONE, ALIAS."""
        return self._endpoints.get(service_key(service), {}).get(port.number, ())

    def services_of(
        self, namespace: str, labels: Mapping[str, str], address: str = ""
    ) -> tuple[Service, ...]:
        """The services a workload answers for, by selector or by its address as an endpoint."""
        found = []
        for service in self.services:
            if service.namespace != namespace:
                continue
            selected = bool(service.selector) and contains(labels, service.selector)
            if selected or (address and self._has_address(service, address)):
                found.append(service)
        return tuple(found)

    def _has_address(self, service: Service, address: str) -> bool:
        ports = self._endpoints.get(service_key(service), {})
        return any(
            endpoint.address == address for endpoints in ports.values() for endpoint in endpoints
        )

    # --- rules -------------------------------------------------------------------------------

    def virtual_services(self, namespace: str) -> tuple[VirtualServiceConfig, ...]:
        """Every VirtualService with hosts that callers in `namespace` see, in order (H10)."""
        if (known := self._rules.get(namespace)) is not None:
            return known
        ranked: list[tuple[int, VirtualServiceConfig]] = []
        for rule in self.all_virtual_services:
            if not rule.visible_to(namespace):
                continue
            rank = 2 if "*" in rule.export_to else 0 if rule.namespace == namespace else 1
            ranked.append((rank, rule))
        ordered = tuple(rule for _, rule in sorted(ranked, key=lambda item: item[0]))
        self._rules[namespace] = ordered
        return ordered

    def virtual_service_for(self, namespace: str, hostname: str) -> VirtualServiceConfig | None:
        """The first of the VirtualServices for a host."""
        return next(iter(self.virtual_services_for(namespace, hostname)), None)

    def virtual_services_for(
        self, namespace: str, hostname: str
    ) -> tuple[VirtualServiceConfig, ...]:
        """The VirtualServices of gateway `mesh` for this host and callers in `namespace`.

        Those of the exact host in the order H10, else those of the most specific wildcard (H14).
        """
        hosts = self._hosts.get(namespace)
        if hosts is None:
            hosts = self._hosts[namespace] = host_rules(self.virtual_services(namespace))
        return most_specific(hostname, *hosts) or ()

    def destination_rule(
        self, caller_namespace: str, service: Service, labels: Mapping[str, str] | None = None
    ) -> DestinationRuleConfig | None:
        """The DestinationRule for calls from a namespace or a workload with `labels` (D1 to D5)."""
        return self.destination_rules.find(
            caller_namespace, service.hostname, service.namespace, labels
        )


def _of_kind(resources: Iterable[Resource], kind: str) -> list[Resource]:
    return [res for res in resources if res.kind == kind and res.typed is not None]


@dataclass(frozen=True, slots=True)
class Affected:
    """What a change touches. `everything` is set when it cannot be narrowed (mesh config)."""

    hosts: frozenset[str] = frozenset()
    """Hosts of services whose ports, rules or policies differ: listeners, routes, clusters."""
    endpoints: frozenset[str] = frozenset()
    """Hosts of which only the endpoints differ."""
    everything: bool = False

    def __bool__(self) -> bool:
        return self.everything or bool(self.hosts or self.endpoints)


def diff(old: World, new: World) -> Affected:
    """What changed between two worlds, for pushing only what is affected.

    A host that a rule names counts whether or not a service has it; a wildcard is also spelled out
    into the services below it.
    """
    if old.mesh.raw != new.mesh.raw or old.mesh.domain != new.mesh.domain:
        return Affected(everything=True)
    if _scopes(old) != _scopes(new):
        return Affected(everything=True)
    changed = _changed(_service_facts(old), _service_facts(new))
    changed |= _changed(_rule_facts(old), _rule_facts(new))
    wildcards = [host for host in changed if is_wildcard(host)]
    if wildcards:
        known = old._by_host.keys() | new._by_host.keys()
        changed |= {host for host in known for wide in wildcards if subset_of(host, wide)}
    touched = {
        key[0]
        for key in old._endpoints.keys() | new._endpoints.keys()
        if old._endpoints.get(key) != new._endpoints.get(key)
    }
    return Affected(frozenset(changed), frozenset(touched - changed))


def _scopes(world: World) -> Mapping[ResourceRef, object]:
    """What decides for whole workloads or patches what others said."""
    return {
        resource.ref: (resource.spec, resource.created)
        for resource in world.resources
        if resource.kind in ("Sidecar", "EnvoyFilter")
    }


def _changed(old: Mapping[str, object], new: Mapping[str, object]) -> set[str]:
    return {host for host in old.keys() | new.keys() if old.get(host) != new.get(host)}


def _service_facts(world: World) -> Mapping[str, object]:
    return world._by_host


def _rule_facts(world: World) -> Mapping[str, object]:
    facts: dict[str, list[object]] = defaultdict(list)
    for rule in world.all_virtual_services:
        fact = (rule.name, rule.namespace, rule.spec, rule.export_to)
        for host in rule.hosts:
            facts[host].append(fact)
    for policy in world.destination_rules.all():
        facts[policy.host].append(
            (
                policy.namespace,
                policy.traffic_policy,
                policy.subsets,
                policy.export_to,
                policy.selector,
            )
        )
    return facts
