"""ClusterLoadAssignments from the endpoints of a service; shared by every dialect."""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3 import address_pb2, base_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2 as ec
from envoy.config.endpoint.v3 import endpoint_pb2

from controlplane.model.registry import Endpoint, Health
from controlplane.translate.localities import Setting, groups
from controlplane.translate.node import Dialect
from controlplane.translate.scope import Scope

_UNIX = "unix://"
_CANONICAL_NAME = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_CANONICAL_REVISION = (
    "service.istio.io/canonical-revision",
    "app.kubernetes.io/version",
    "version",
)
_HEALTH = {
    Health.HEALTHY: health_check_pb2.HealthStatus.HEALTHY,
    Health.UNHEALTHY: health_check_pb2.HealthStatus.UNHEALTHY,
    Health.DRAINING: health_check_pb2.HealthStatus.DRAINING,
}


def assignment(
    name: str, endpoints: Iterable[Endpoint], setting: Setting, scope: Scope
) -> endpoint_pb2.ClusterLoadAssignment:
    """All endpoints, grouped by locality and priority.

    Of several entries for one address the first counts: clients refuse duplicates.
    """
    kept: dict[tuple[str, int], Endpoint] = {}
    for endpoint in endpoints:
        if scope.dialect is Dialect.GRPC and endpoint.address.startswith(_UNIX):
            scope.note("endpoints on Unix sockets are left out for gRPC's own client")
        else:
            kept.setdefault((endpoint.address, endpoint.port), endpoint)
    out = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    for group in groups(kept.values(), setting, scope):
        locality = group.locality
        written = out.endpoints.add(priority=group.priority)
        written.locality.CopyFrom(
            base_pb2.Locality(region=locality.region, zone=locality.zone, sub_zone=locality.subzone)
        )
        written.lb_endpoints.extend(map(_lb_endpoint, group.endpoints))
        written.load_balancing_weight.value = group.weight
    return out


def _lb_endpoint(endpoint: Endpoint) -> ec.LbEndpoint:
    out = ec.LbEndpoint(
        endpoint=ec.Endpoint(address=_address(endpoint)), health_status=_HEALTH[endpoint.health]
    )
    out.load_balancing_weight.value = max(1, endpoint.weight)
    metadata = out.metadata.filter_metadata
    metadata["istio"].update({"workload": _workload(endpoint)})
    if endpoint.tls_mode:
        metadata["envoy.transport_socket_match"].update({"tlsMode": endpoint.tls_mode})
    return out


def _address(endpoint: Endpoint) -> address_pb2.Address:
    if endpoint.address.startswith(_UNIX):
        path = endpoint.address.removeprefix(_UNIX)
        return address_pb2.Address(pipe=address_pb2.Pipe(path=path))
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=endpoint.address, port_value=endpoint.port)
    )


def _workload(endpoint: Endpoint) -> str:
    """`name;namespace;canonical name;revision;cluster` (Istio AppendLbEndpointMetadata)."""
    labels = endpoint.labels
    canonical = next((labels[key] for key in _CANONICAL_NAME if key in labels), endpoint.workload)
    revision = next((labels[key] for key in _CANONICAL_REVISION if key in labels), "latest")
    if revision == "latest":
        revision = ""
    return ";".join((endpoint.workload, endpoint.namespace, canonical, revision, "Kubernetes"))
