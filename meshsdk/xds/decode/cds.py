"""Cluster → `model.Cluster`.

What the SDK lacks here is treated by what would happen without it:

- TLS towards the endpoints that cannot be done as it says rejects the cluster (`upstream`).
- Cluster types and load balancers that are not known reject the cluster: nobody knows where its
  calls would go.

Sources: Envoy `config/cluster/v3/cluster.proto`; gRFC A27, A37, A48, A50, A52.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2

from meshsdk.model import Assignment, Balancing, Cluster, ClusterKind
from meshsdk.xds.decode.balancing import load_balancing
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    entry,
    filter_metadata,
    optional_seconds,
    sub,
)
from meshsdk.xds.decode.eds import assignment
from meshsdk.xds.decode.upstream import kind_of, transport
from meshsdk.xds.resources import CLUSTER, Decoder

_DEFAULT_CONNECT_TIMEOUT: Final = 5.0


def _decode(message: Any, notes: Notes) -> Cluster:
    return entry("Cluster", message.name, _cluster, message, notes)


DECODER: Final = Decoder(CLUSTER, "Cluster", True, cluster_pb2.Cluster.FromString, "name", _decode)

_PROVIDED: Final = (ClusterKind.ORIGINAL_DST, ClusterKind.DYNAMIC, ClusterKind.AGGREGATE)


def _cluster(message: Any, notes: Notes) -> Cluster:
    kind, of_kind = kind_of(message, notes)
    if message.HasField("outlier_detection"):
        sub("outlier_detection", _check_outlier_detection, message.outlier_detection, notes)
    balancing, lb = load_balancing(message, notes)
    provided = balancing is Balancing.CLUSTER_PROVIDED
    # gRPC's control planes name a policy for an aggregate too; each member has its own (gRFC A37).
    if (kind in _PROVIDED) != provided and kind is not ClusterKind.AGGREGATE:
        raise Bad("lb_policy", f"{balancing.value} does not fit a cluster of type {kind.value}")
    how = transport(message, notes)
    connect_timeout = optional_seconds(message, "connect_timeout")
    return Cluster(
        message.name,
        kind,
        _eds_name(message) if kind is ClusterKind.EDS else "",
        balancing,
        lb,
        connect_timeout or _DEFAULT_CONNECT_TIMEOUT,
        _inline_assignment(message, kind, notes),
        filter_metadata(message.metadata) if message.HasField("metadata") else {},
        **of_kind,
        **how,
    )


# --- endpoints -------------------------------------------------------------------------------


def _eds_name(message: Any) -> str:
    source = message.eds_cluster_config
    if source.eds_config.WhichOneof("config_source_specifier") not in ("ads", "self"):
        raise Bad("eds_cluster_config.eds_config", "must be ads or self")
    name: str = source.service_name
    if not name and message.name.startswith("xdstp:"):
        raise Bad("eds_cluster_config.service_name", "is needed by a cluster with an xdstp name")
    return name or message.name


def _inline_assignment(message: Any, kind: ClusterKind, notes: Notes) -> Assignment | None:
    """`load_assignment`: where STATIC and DNS clusters have their endpoints."""
    if kind is ClusterKind.EDS or kind in _PROVIDED:
        return None

    def decode(message: Any, notes: Notes) -> Assignment:
        return assignment(message, notes, weightless_used=True)

    if not message.HasField("load_assignment"):
        raise Bad("load_assignment", f"is needed by a cluster of type {kind.value}")
    found = sub("load_assignment", decode, message.load_assignment, notes)
    if kind is ClusterKind.LOGICAL_DNS and [len(item.endpoints) for item in found.localities] != [
        1
    ]:
        raise Bad("load_assignment.endpoints", "LOGICAL_DNS needs one locality with one endpoint")
    return found


def _check_outlier_detection(message: Any, notes: Notes) -> None:
    """The values that gRFC A50 rejects. Ejection itself belongs to the resilience layer."""
    for name in ("interval", "base_ejection_time", "max_ejection_time"):
        optional_seconds(message, name)
    for name in (
        "max_ejection_percent",
        "enforcing_success_rate",
        "failure_percentage_threshold",
        "enforcing_failure_percentage",
    ):
        if getattr(message, name).value > 100:
            raise Bad(name, f"is {getattr(message, name).value}, must be at most 100")
