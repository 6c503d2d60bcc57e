"""Documents → services and endpoints (semantics A4). Pure.

Kubernetes Services get their endpoints from EndpointSlices, else from Endpoints, else (there is no
endpoint controller behind a directory of files) from the Pods that they select; and from the
WorkloadEntries that they select. ServiceEntries bring or select theirs.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from controlplane.model.entries import ServiceEntrySpec
from controlplane.model.kubernetes import KubeServiceSpec
from controlplane.model.meshconfig import MeshConfig
from controlplane.model.ports import parse_protocol, port_protocol
from controlplane.model.registry import (
    Endpoint,
    Health,
    Locality,
    Resolution,
    Service,
    ServicePort,
    Workload,
)
from controlplane.model.resource import Resource
from controlplane.model.workloads import (
    Address,
    Selector,
    entry_workload,
    list_addresses,
    pod_workload,
    slice_addresses,
    workload_endpoint,
    workload_port,
)

EXPORT_ANNOTATION = "networking.istio.io/exportTo"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
TRAFFIC_ANNOTATION = "networking.istio.io/traffic-distribution"

PortEndpoints = dict[int, list[Endpoint]]
ServiceKey = tuple[str, str, str]
"""Host, namespace, source."""


@dataclass(slots=True)
class Registry:
    """All services, their endpoints by port number, and all workloads."""

    services: list[Service] = field(default_factory=list)
    endpoints: dict[ServiceKey, PortEndpoints] = field(default_factory=dict)
    workloads: list[Workload] = field(default_factory=list)


def discover(resources: Iterable[Resource], mesh: MeshConfig) -> Registry:
    """Builds the registry from documents of any kind."""
    by_kind: dict[str, list[Resource]] = defaultdict(list)
    for resource in resources:
        if resource.typed is not None or resource.kind == "Node":
            by_kind[resource.kind].append(resource)
    return _Discovery(by_kind, mesh).run()


class _Discovery:
    def __init__(self, by_kind: Mapping[str, list[Resource]], mesh: MeshConfig) -> None:
        self.by_kind = by_kind
        self.mesh = mesh
        self.registry = Registry()
        self.nodes = {
            node.name: Locality(
                node.labels.get("topology.kubernetes.io/region", ""),
                node.labels.get("topology.kubernetes.io/zone", ""),
                node.labels.get("topology.istio.io/subzone", ""),
            )
            for node in by_kind.get("Node", ())
        }
        pods = [pod_workload(resource, self.nodes) for resource in by_kind.get("Pod", ())]
        self.pods = [pod for pod in pods if pod is not None]
        self.entries = [entry_workload(resource) for resource in by_kind.get("WorkloadEntry", ())]
        self.pod_selector = Selector(self.pods)
        self.entry_selector = Selector(self.entries)
        self.pods_by_name = {(pod.namespace, pod.name): pod for pod in self.pods}
        self.pods_by_address = {(pod.namespace, pod.address): pod for pod in self.pods}
        self.slices: dict[tuple[str, str], list[Resource]] = defaultdict(list)
        for resource in by_kind.get("EndpointSlice", ()):
            name = resource.labels.get(SERVICE_NAME_LABEL, "")
            self.slices[resource.namespace, name].append(resource)
        self.lists = {(res.namespace, res.name): res for res in by_kind.get("Endpoints", ())}

    def run(self) -> Registry:
        self.registry.workloads = [*self.pods, *self.entries]
        for resource in self.by_kind.get("Service", ()):
            self._kubernetes_service(resource)
        entries: dict[tuple[str, str], Service] = {}
        for resource in sorted(self.by_kind.get("ServiceEntry", ()), key=lambda r: r.age_key):
            self._service_entry(resource, entries)
        self.registry.services += entries.values()
        self.registry.services.sort(
            key=lambda service: (service.hostname, service.namespace, service.source)
        )
        return self.registry

    # --- Kubernetes Services -----------------------------------------------------------------

    def _kubernetes_service(self, resource: Resource) -> None:
        spec: KubeServiceSpec = resource.typed
        service = kubernetes_service(resource, self.mesh)
        self.registry.services.append(service)
        if service.resolution is Resolution.ALIAS:
            return
        found: PortEndpoints = {}
        key = (resource.namespace, resource.name)
        if slices := self.slices.get(key):
            sources = slice_addresses(slices)
        elif key in self.lists:
            sources = list_addresses(self.lists[key])
        else:
            sources = iter(())
            pods = self.pod_selector.select(resource.namespace, spec.selector)
            self._add_workloads(found, service, pods)
        self._add_addresses(found, service, sources)
        entries = self.entry_selector.select(resource.namespace, spec.selector)
        self._add_workloads(found, service, entries)
        self.registry.endpoints[service_key(service)] = found

    def _add_workloads(
        self, found: PortEndpoints, service: Service, workloads: Iterable[Workload]
    ) -> None:
        for port in service.ports:
            for workload in workloads:
                number = workload_port(workload, port)
                if number is not None:
                    endpoint = workload_endpoint(workload, number)
                    if service.publish_not_ready and endpoint.health is Health.UNHEALTHY:
                        endpoint = dataclasses.replace(endpoint, health=Health.HEALTHY)
                    found.setdefault(port.number, []).append(endpoint)

    def _add_addresses(
        self, found: PortEndpoints, service: Service, sources: Iterable[Address]
    ) -> None:
        by_name = {port.name: port for port in service.ports}
        for source in sources:
            port = by_name.get(source.port_name)
            if port is None and len(service.ports) == 1 and not source.port_name:
                port = service.ports[0]
            if port is None:
                continue
            pod = self.pods_by_name.get((service.namespace, source.pod)) if source.pod else None
            pod = pod or self.pods_by_address.get((service.namespace, source.address))
            unhealthy = not source.ready and not service.publish_not_ready
            health = Health.UNHEALTHY if unhealthy else Health.HEALTHY
            number = source.port or port.number
            if pod is not None:
                endpoint = workload_endpoint(pod, number)
                endpoint = dataclasses.replace(endpoint, address=source.address, health=health)
            else:
                endpoint = Endpoint(
                    address=source.address,
                    port=number,
                    locality=self.nodes.get(source.node) or Locality("", source.zone),
                    namespace=service.namespace,
                    workload=source.pod,
                    health=health,
                    node=source.node,
                )
            found.setdefault(port.number, []).append(endpoint)

    # --- ServiceEntries ----------------------------------------------------------------------

    def _service_entry(self, resource: Resource, known: dict[tuple[str, str], Service]) -> None:
        spec: ServiceEntrySpec = resource.typed
        selected: list[Workload] = []
        if spec.workload_selector is not None:
            labels = spec.workload_selector.labels
            selected = self.entry_selector.select(resource.namespace, labels)
            selected += self.pod_selector.select(resource.namespace, labels)
        for service in entry_services(resource, self.mesh):
            key = (service.hostname, service.namespace)
            if (other := known.get(key)) is not None:
                if not _goes_together(other, service):
                    continue  # the older one counts
                known[key] = _merge_entries(other, service)
            else:
                known[key] = service
            endpoints = self.registry.endpoints.setdefault(service_key(service), {})
            self._add_workloads(endpoints, service, selected)
            for port in service.ports:
                found = list(_inline_endpoints(spec, service, port))
                if found:
                    endpoints.setdefault(port.number, []).extend(found)


def service_key(service: Service) -> ServiceKey:
    """What endpoints are kept under."""
    return (service.hostname, service.namespace, service.source)


# --- services ----------------------------------------------------------------------------------


def kubernetes_service(resource: Resource, mesh: MeshConfig) -> Service:
    """A Service document as a service of the mesh (its endpoints aside)."""
    spec: KubeServiceSpec = resource.typed
    alias = spec.type == "ExternalName" and bool(spec.external_name)
    addresses = [*(spec.cluster_ips or ([spec.cluster_ip] if spec.cluster_ip else []))]
    annotation = resource.annotations.get(EXPORT_ANNOTATION, "")
    export_to = frozenset(part.strip() for part in annotation.split(",") if part.strip())
    return Service(
        hostname=f"{resource.name}.{resource.namespace}.svc.{mesh.domain}",
        name=resource.name,
        namespace=resource.namespace,
        ports=tuple(
            ServicePort(
                name=port.name,
                number=port.port,
                protocol=port_protocol(port.port, port.name, port.protocol, port.app_protocol),
                target_port=port.target_port,
            )
            for port in spec.ports
        ),
        addresses=tuple(address for address in addresses if address and address != "None"),
        selector=spec.selector,
        resolution=Resolution.ALIAS if alias else Resolution.CLIENT_SIDE,
        external=alias,
        headless="None" in addresses,
        external_name=spec.external_name.lower().rstrip(".") if alias else "",
        export_to=export_to or mesh.default_service_export_to,
        labels=resource.labels,
        annotations=resource.annotations,
        created=resource.created,
        origin=resource.origin,
        source="kubernetes",
        publish_not_ready=spec.publish_not_ready_addresses,
        traffic_distribution=spec.traffic_distribution
        or resource.annotations.get(TRAFFIC_ANNOTATION, ""),
        resource=str(resource),
    )


def entry_services(resource: Resource, mesh: MeshConfig) -> Iterator[Service]:
    """A ServiceEntry as services of the mesh, one for each of its hosts."""
    spec: ServiceEntrySpec = resource.typed
    resolution = spec.resolution
    for host in spec.hosts:
        yield Service(
            hostname=host.lower(),
            name=resource.name,
            namespace=resource.namespace,
            ports=tuple(
                ServicePort(
                    name=port.name,
                    number=port.number,
                    protocol=parse_protocol(port.protocol)
                    if port.protocol
                    else port_protocol(port.number, port.name),
                    target_port=port.target_port,
                )
                for port in spec.ports
            ),
            addresses=spec.addresses,
            selector=spec.workload_selector.labels if spec.workload_selector else {},
            resolution=Resolution.CLIENT_SIDE if resolution == "STATIC" else Resolution(resolution),
            external=spec.location == "MESH_EXTERNAL",
            export_to=frozenset(spec.export_to) or mesh.default_service_export_to,
            labels=resource.labels,
            annotations=resource.annotations,
            created=resource.created,
            origin=resource.origin,
            source="serviceentry",
            subject_alt_names=spec.subject_alt_names,
            resource=str(resource),
        )


def _goes_together(first: Service, second: Service) -> bool:
    return first.resolution is second.resolution and first.external == second.external


def _merge_entries(first: Service, second: Service) -> Service:
    """Two ServiceEntries of one namespace for one host: the ports of both (S11), oldest first."""
    known = {port.number for port in first.ports}
    extra = tuple(port for port in second.ports if port.number not in known)
    return dataclasses.replace(
        first,
        ports=first.ports + extra,
        addresses=tuple(dict.fromkeys(first.addresses + second.addresses)),
    )


# --- endpoints ----------------------------------------------------------------------------------


def _inline_endpoints(
    spec: ServiceEntrySpec, service: Service, port: ServicePort
) -> Iterator[Endpoint]:
    for entry in spec.endpoints:
        workload = Workload(
            name="",
            namespace=service.namespace,
            address=entry.address,
            labels=entry.labels,
            ports=entry.ports,
            locality=Locality.parse(entry.locality),
            weight=entry.weight,
            service_account=entry.service_account,
            network=entry.network,
            kind="WorkloadEntry",
        )
        number = workload_port(workload, port)
        if number is not None:
            yield workload_endpoint(workload, number)
    by_name = service.resolution in (Resolution.DNS, Resolution.DNS_ROUND_ROBIN)
    if by_name and not spec.endpoints and spec.workload_selector is None:
        target = port.target_port
        yield Endpoint(
            address=service.hostname,
            port=target if isinstance(target, int) and target else port.number,
            namespace=service.namespace,
        )
