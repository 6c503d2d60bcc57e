"""Pods, WorkloadEntries and lists of addresses: who answers for a service (semantics A4). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from controlplane.model.entries import WorkloadEntrySpec
from controlplane.model.kubernetes import KubeEndpoints, KubePod, KubeSlice
from controlplane.model.registry import Endpoint, Health, Locality, ServicePort, Workload
from controlplane.model.resource import Resource

TLS_MODE_LABEL = "security.istio.io/tlsMode"
LOCALITY_LABEL = "istio-locality"


class Selector:
    """Finds the workloads of a namespace that carry a set of labels, without looking at all."""

    def __init__(self, workloads: Iterable[Workload]) -> None:
        self._by_pair: dict[tuple[str, str, str], list[Workload]] = defaultdict(list)
        for workload in workloads:
            for key, value in workload.labels.items():
                self._by_pair[workload.namespace, key, value].append(workload)

    def select(self, namespace: str, labels: Mapping[str, str]) -> list[Workload]:
        """Workloads whose labels contain all of `labels`; none for an empty selector."""
        if not labels:
            return []
        buckets = [self._by_pair.get((namespace, *pair), []) for pair in labels.items()]
        smallest = min(buckets, key=len)
        return [workload for workload in smallest if contains(workload.labels, labels)]


def contains(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether `labels` is a superset of `wanted`."""
    return all(labels.get(key) == value for key, value in wanted.items())


def pod_workload(resource: Resource, nodes: Mapping[str, Locality]) -> Workload | None:
    """A Pod as a workload; None when it has no address, is done, or is going."""
    pod: KubePod = resource.typed
    if not pod.status.pod_ip or pod.status.phase in ("Succeeded", "Failed"):
        return None
    if resource.metadata.get("deletionTimestamp"):
        return None
    conditions = {condition.type: condition.status for condition in pod.status.conditions}
    ready = conditions.get("Ready", "True") == "True"
    named = {
        port.name: port.container_port
        for container in pod.spec.containers
        for port in container.ports
        if port.name
    }
    return Workload(
        name=resource.name,
        namespace=resource.namespace,
        address=pod.status.pod_ip,
        labels=resource.labels,
        ports=named,
        locality=labelled_locality(resource.labels) or nodes.get(pod.spec.node_name, Locality()),
        service_account=pod.spec.service_account_name or "default",
        network=resource.labels.get("topology.istio.io/network", ""),
        health=Health.HEALTHY if ready else Health.UNHEALTHY,
        kind="Pod",
        node=pod.spec.node_name,
        hostname=pod.spec.hostname,
        subdomain=pod.spec.subdomain,
    )


def entry_workload(resource: Resource) -> Workload:
    """A WorkloadEntry as a workload."""
    spec: WorkloadEntrySpec = resource.typed
    labels = {**resource.labels, **spec.labels}
    conditions = resource.status.get("conditions") or ()
    health = Health.HEALTHY
    for condition in conditions:
        if condition.get("type") == "Healthy" and condition.get("status") == "False":
            draining = condition.get("reason") == "Draining"
            health = Health.DRAINING if draining else Health.UNHEALTHY
    return Workload(
        name=resource.name,
        namespace=resource.namespace,
        address=spec.address,
        labels=labels,
        ports=spec.ports,
        locality=Locality.parse(spec.locality)
        if spec.locality
        else labelled_locality(labels) or Locality(),
        weight=spec.weight,
        service_account=spec.service_account,
        network=spec.network,
        health=health,
        kind="WorkloadEntry",
    )


def labelled_locality(labels: Mapping[str, str]) -> Locality | None:
    """The locality that the label `istio-locality` says (L1)."""
    text = labels.get(LOCALITY_LABEL)
    return Locality.parse(text if "/" in text else text.replace(".", "/")) if text else None


def workload_port(workload: Workload, port: ServicePort) -> int | None:
    """The port of a workload behind a service port; None when the workload does not have it."""
    if workload.kind == "WorkloadEntry":
        if not workload.address:
            return None  # behind the gateway of another network
        if workload.address.startswith("unix://"):
            return 0
        if (number := workload.ports.get(port.name)) is not None:
            return number
        target = port.target_port
        if isinstance(target, str):
            return workload.ports.get(target, port.number)
        return target or port.number
    if isinstance(port.target_port, str):
        return workload.ports.get(port.target_port)
    return port.target_port or port.number


def workload_endpoint(workload: Workload, port: int) -> Endpoint:
    """A workload as an endpoint on one of its ports."""
    return Endpoint(
        address=workload.address,
        port=port,
        labels=workload.labels,
        locality=workload.locality,
        weight=workload.weight or 1,
        service_account=workload.service_account,
        workload=workload.name,
        namespace=workload.namespace,
        health=workload.health,
        tls_mode=workload.labels.get(TLS_MODE_LABEL, ""),
        network=workload.network,
        node=workload.node,
    )


@dataclass(frozen=True, slots=True)
class Address:
    """One address and port of Endpoints or an EndpointSlice."""

    address: str
    port_name: str
    port: int
    ready: bool
    pod: str
    node: str
    zone: str


def slice_addresses(slices: Iterable[Resource]) -> Iterator[Address]:
    """All addresses of the slices of one service, terminating ones left out (S5)."""
    seen = set()
    for resource in sorted(slices, key=lambda item: item.name):
        spec: KubeSlice = resource.typed
        if spec.address_type == "FQDN":
            continue
        for endpoint in spec.endpoints:
            if endpoint.conditions.terminating:
                continue
            target = endpoint.target_ref
            for port in spec.ports:
                for address in endpoint.addresses[:1]:
                    if (address, port.name, port.port) in seen:
                        continue
                    seen.add((address, port.name, port.port))
                    yield Address(
                        address,
                        port.name,
                        port.port,
                        endpoint.conditions.ready is not False,
                        target.name if target and target.kind == "Pod" else "",
                        endpoint.node_name,
                        endpoint.zone,
                    )


def list_addresses(resource: Resource) -> Iterator[Address]:
    """All addresses of one Endpoints document."""
    spec: KubeEndpoints = resource.typed
    for subset in spec.subsets:
        for ready, addresses in ((True, subset.addresses), (False, subset.not_ready_addresses)):
            for address in addresses:
                target = address.target_ref
                pod = target.name if target and target.kind == "Pod" else ""
                for port in subset.ports:
                    yield Address(
                        address.ip, port.name, port.port, ready, pod, address.node_name, ""
                    )
