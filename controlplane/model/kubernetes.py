"""The kinds of Kubernetes' core that the registry is made of, as frozen types.

Service, Endpoints and EndpointSlice are known whole, so that a mistyped field is found; of Pods and
Nodes only what the mesh reads. Source: Kubernetes API v1, discovery.k8s.io/v1.
"""

# ruff: noqa: RUF012 - msgspec makes a fresh copy of an empty default
from __future__ import annotations

from typing import Any

import msgspec

from controlplane.model.traffic import Spec


class Strict(Spec, frozen=True, forbid_unknown_fields=True):
    """Base of kinds that are known whole."""


class KubePort(Strict, frozen=True):
    port: int
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = None
    target_port: int | str = 0
    node_port: int = 0


class KubeServiceSpec(Strict, frozen=True):
    ports: tuple[KubePort, ...] = ()
    selector: dict[str, str] = {}
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] = msgspec.field(default=(), name="clusterIPs")
    external_ips: tuple[str, ...] = msgspec.field(default=(), name="externalIPs")
    external_name: str = ""
    publish_not_ready_addresses: bool = False
    traffic_distribution: str = ""
    allocate_load_balancer_node_ports: bool | None = None
    external_traffic_policy: str = ""
    health_check_node_port: int = 0
    internal_traffic_policy: str = ""
    ip_families: tuple[str, ...] = ()
    ip_family_policy: str = ""
    load_balancer_class: str = ""
    load_balancer_ip: str = msgspec.field(default="", name="loadBalancerIP")
    load_balancer_source_ranges: tuple[str, ...] = ()
    session_affinity: str = ""
    session_affinity_config: dict[str, Any] = {}
    topology_keys: tuple[str, ...] = ()


class ObjectReference(Spec, frozen=True):
    kind: str = ""
    name: str = ""
    namespace: str = ""


class KubeAddress(Strict, frozen=True):
    ip: str
    hostname: str = ""
    node_name: str = ""
    target_ref: ObjectReference | None = None


class EndpointPort(Strict, frozen=True):
    port: int = 0
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = None


class KubeSubset(Strict, frozen=True):
    addresses: tuple[KubeAddress, ...] = ()
    not_ready_addresses: tuple[KubeAddress, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class KubeEndpoints(Spec, frozen=True):
    subsets: tuple[KubeSubset, ...] = ()


class SliceConditions(Strict, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(Strict, frozen=True):
    addresses: tuple[str, ...] = ()
    conditions: SliceConditions = SliceConditions()
    hostname: str = ""
    target_ref: ObjectReference | None = None
    node_name: str = ""
    zone: str = ""
    hints: dict[str, Any] = {}
    deprecated_topology: dict[str, str] = {}
    topology: dict[str, str] = {}


class KubeSlice(Spec, frozen=True):
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()


class ContainerPort(Spec, frozen=True):
    container_port: int = 0
    name: str = ""
    protocol: str = "TCP"


class Container(Spec, frozen=True):
    ports: tuple[ContainerPort, ...] = ()


class PodSpec(Spec, frozen=True):
    containers: tuple[Container, ...] = ()
    service_account_name: str = ""
    node_name: str = ""
    hostname: str = ""
    subdomain: str = ""


class PodCondition(Spec, frozen=True):
    type: str = ""
    status: str = ""


class PodIP(Spec, frozen=True):
    ip: str = ""


class PodStatus(Spec, frozen=True):
    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] = msgspec.field(default=(), name="podIPs")
    conditions: tuple[PodCondition, ...] = ()


class KubePod(Spec, frozen=True):
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class KubeConfigMap(Spec, frozen=True):
    data: dict[str, str] = {}
