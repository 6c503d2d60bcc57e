"""Cluster → `model.Cluster`.

What the SDK lacks here is treated by what would happen without it:

- TLS towards the endpoints that cannot be done as it says rejects the cluster (`upstream`).
- Ring hash and Maglev fall back to round robin with a note: calls reach the same endpoints, only
  stickiness is lost.
- Cluster types that are not known reject the cluster: nobody knows where its calls would go.

Sources: Envoy `config/cluster/v3/cluster.proto`; gRFC A27, A37, A48, A50, A52.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.wrr_locality.v3 import wrr_locality_pb2

from meshsdk.model import Assignment, Balancing, Cluster, ClusterKind
from meshsdk.xds.decode.common import (
    Bad,
    Notes,
    each,
    entry,
    filter_metadata,
    optional_seconds,
    sub,
    type_name,
    unpack,
)
from meshsdk.xds.decode.eds import assignment
from meshsdk.xds.decode.upstream import kind_of, transport
from meshsdk.xds.resources import CLUSTER, Decoder

_DEFAULT_CONNECT_TIMEOUT: Final = 5.0
_DEFAULT_CHOICES: Final = 2


def _decode(message: Any, notes: Notes) -> Cluster:
    return entry("Cluster", message.name, _cluster, message, notes)


DECODER: Final = Decoder(CLUSTER, "Cluster", True, cluster_pb2.Cluster.FromString, "name", _decode)

_PROVIDED: Final = (ClusterKind.ORIGINAL_DST, ClusterKind.DYNAMIC, ClusterKind.AGGREGATE)


def _cluster(message: Any, notes: Notes) -> Cluster:
    kind, of_kind = kind_of(message, notes)
    if message.HasField("outlier_detection"):
        sub("outlier_detection", _check_outlier_detection, message.outlier_detection, notes)
    if message.HasField("lb_subset_config"):
        notes.append("lb_subset_config: is not supported, all endpoints are used")
    balancing, choices = _balancing(message, notes)
    provided = balancing is Balancing.CLUSTER_PROVIDED
    # gRPC's control planes name a policy for an aggregate too; each member has its own (gRFC A37).
    if (kind in _PROVIDED) != provided and kind is not ClusterKind.AGGREGATE:
        raise Bad("lb_policy", f"{balancing.value} does not fit a cluster of type {kind.value}")
    how = transport(message, notes)
    if how:
        raise Bad("transport_socket", "TLS is not supported; without it calls would go unprotected")
    connect_timeout = optional_seconds(message, "connect_timeout")
    return Cluster(
        message.name,
        kind,
        _eds_name(message) if kind is ClusterKind.EDS else "",
        balancing,
        choices,
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


# --- load balancing --------------------------------------------------------------------------

_Policy = tuple[Balancing, int]
_ROUND_ROBIN: Final = (Balancing.ROUND_ROBIN, _DEFAULT_CHOICES)

_ENUM: Final = {
    0: _ROUND_ROBIN,
    3: (Balancing.RANDOM, _DEFAULT_CHOICES),
    6: (Balancing.CLUSTER_PROVIDED, _DEFAULT_CHOICES),
}
_FALLBACKS: Final = {2: "RING_HASH", 5: "MAGLEV"}


def _balancing(message: Any, notes: Notes) -> _Policy:
    """The policy; `load_balancing_policy` stands before `lb_policy` (gRFC A52)."""
    if message.HasField("load_balancing_policy"):
        policy = message.load_balancing_policy
        return sub("load_balancing_policy", _first_supported, policy, notes)
    number = message.lb_policy
    if number == 1:
        config = message.least_request_lb_config
        return sub("least_request_lb_config", _least_request, config, notes)
    if number in _FALLBACKS:
        notes.append(f"lb_policy: {_FALLBACKS[number]} is not supported, ROUND_ROBIN is used")
        return _ROUND_ROBIN
    if number not in _ENUM:
        raise Bad("lb_policy", f"{number} is not known")
    return _ENUM[number]


def _least_request(message: Any, notes: Notes) -> _Policy:
    if not message.HasField("choice_count"):
        return Balancing.LEAST_REQUEST, _DEFAULT_CHOICES
    count = message.choice_count.value
    if count < 2:
        raise Bad("choice_count", f"is {count}, must be at least 2")
    return Balancing.LEAST_REQUEST, count


_PREFIX: Final = "envoy.extensions.load_balancing_policies."
_TYPED: Final[dict[str, Balancing]] = {
    f"{_PREFIX}round_robin.v3.RoundRobin": Balancing.ROUND_ROBIN,
    f"{_PREFIX}random.v3.Random": Balancing.RANDOM,
    f"{_PREFIX}cluster_provided.v3.ClusterProvided": Balancing.CLUSTER_PROVIDED,
}
# Known policies that are not implemented: used as round robin when no other one of the list is.
_SIMILAR: Final = (
    f"{_PREFIX}ring_hash.v3.RingHash",
    f"{_PREFIX}maglev.v3.Maglev",
    f"{_PREFIX}client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
    f"{_PREFIX}pick_first.v3.PickFirst",
)
_MAX_DEPTH: Final = 16


def _first_supported(message: Any, notes: Notes, depth: int = 1) -> _Policy:
    """The first policy of the list that this SDK has, by type."""
    if depth > _MAX_DEPTH:
        raise Bad("policies", f"are nested deeper than {_MAX_DEPTH}")

    def decode(item: Any, notes: Notes) -> _Policy | str:
        where = "typed_extension_config.typed_config"
        return sub(where, _typed_policy(depth), item.typed_extension_config.typed_config, notes)

    found = each("policies", message.policies, decode, notes)
    for policy in found:
        if not isinstance(policy, str):
            return policy
    similar = next((name for name in found if name in _SIMILAR), None)
    if similar is None:
        names = ", ".join(map(str, found)) or "the list is empty"
        raise Bad("policies", f"none is supported: {names}")
    notes.append(
        f"policies: {str(similar).rpartition('.')[2]} is not supported, RoundRobin is used"
    )
    return _ROUND_ROBIN


def _typed_policy(depth: int) -> Callable[[Any, Notes], _Policy | str]:
    """Reads one `typed_config`: a policy, or the name of a type that this SDK has not."""

    def decode(container: Any, notes: Notes) -> _Policy | str:
        kind = type_name(container)
        if kind == f"{_PREFIX}least_request.v3.LeastRequest":
            return _least_request(unpack(container, least_request_pb2.LeastRequest), notes)
        if kind == f"{_PREFIX}wrr_locality.v3.WrrLocality":
            child = unpack(container, wrr_locality_pb2.WrrLocality).endpoint_picking_policy
            return _first_supported(child, notes, depth + 1)
        found = _TYPED.get(kind)
        return kind if found is None else (found, _DEFAULT_CHOICES)

    return decode
