"""What the control plane is told about this process: the node, and its health."""

from __future__ import annotations

import functools
from importlib import metadata

from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from meshsdk.registration import Workload, WorkloadHealth
from meshsdk.settings import Settings

HEALTH_INFORMATION = "type.googleapis.com/istio.v1.HealthInformation"
_CANCELLED = 1
_INTERNAL = 13


def node_message(settings: Settings, workload: Workload | None) -> base_pb2.Node:
    """The node of `settings`, serving `workload`."""
    if workload is not None and workload.address:
        settings = settings.at(workload.address)
    facts = settings.node_metadata()
    if workload is None:
        facts.pop("AUTO_REGISTER_GROUP", None)  # only who serves something may be registered
    else:
        facts |= workload.metadata(settings.auto_register_group)
        if workload.labels:
            facts["LABELS"] = {**facts.get("LABELS", {}), **workload.labels}
    node = base_pb2.Node(
        id=settings.node_id,
        cluster=settings.cluster,
        locality=base_pb2.Locality(
            region=settings.locality.region,
            zone=settings.locality.zone,
            sub_zone=settings.locality.sub_zone,
        ),
        user_agent_name="meshsdk",
        user_agent_version=_version(),
        client_features=[
            "envoy.lb.does_not_support_overprovisioning",
            "xds.config.resource-in-sotw",
        ],
    )
    node.metadata.update(facts)
    return node


def health_request(
    node: base_pb2.Node, workload: Workload | None
) -> discovery_pb2.DiscoveryRequest:
    """Health as istiod's agent reports it, and the whole node again as its ports may be new.

    No workload means deregistration: CANCELLED, "deregister".
    """
    request = discovery_pb2.DiscoveryRequest(type_url=HEALTH_INFORMATION, node=node)
    if workload is None:
        request.error_detail.code = _CANCELLED
        request.error_detail.message = "deregister"
    elif workload.health is not WorkloadHealth.HEALTHY:
        request.error_detail.code = _INTERNAL
        request.error_detail.message = workload.health.value.lower()
    return request


@functools.cache
def _version() -> str:
    try:
        return metadata.version("meshsdk")
    except metadata.PackageNotFoundError:
        return "0"
