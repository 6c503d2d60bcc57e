"""ClusterLoadAssignment → `model.Assignment`, by the rules of gRFC A27 and A61."""

from __future__ import annotations

from typing import Any, Final

from envoy.config.endpoint.v3 import endpoint_pb2

from meshsdk.model import Assignment, Drop, Endpoint, Health, Locality, LocalityEndpoints
from meshsdk.xds.decode.common import Bad, Notes, each, entry, filter_metadata, sub
from meshsdk.xds.resources import ENDPOINT, Decoder

_MAX_WEIGHT: Final = 2**32 - 1
_HEALTH: Final = {
    0: Health.UNKNOWN,
    1: Health.HEALTHY,
    2: Health.UNHEALTHY,
    3: Health.DRAINING,
    4: Health.TIMEOUT,
    5: Health.DEGRADED,
}
_EMPTY: Final[dict[str, Any]] = {}
_NO_NOTES: Final[Notes] = []

Address = tuple[str, int]
"""Host and port; path and 0 for a Unix socket."""


def _decode(message: Any, notes: Notes) -> Assignment:
    name = message.cluster_name
    return entry("ClusterLoadAssignment", name, _eds, message, notes)


DECODER: Final = Decoder(
    ENDPOINT,
    "ClusterLoadAssignment",
    False,
    endpoint_pb2.ClusterLoadAssignment.FromString,
    "cluster_name",
    _decode,
)


def _eds(message: Any, notes: Notes) -> Assignment:
    return assignment(message, notes, weightless_used=False)


def assignment(message: Any, notes: Notes, *, weightless_used: bool) -> Assignment:
    """Decode a ClusterLoadAssignment.

    Args:
        weightless_used: whether a locality without `load_balancing_weight` counts: it does in the
            inline assignment of a STATIC or DNS cluster, as in Envoy (but gets nothing where
            localities are weighted); in EDS it is not used, as in every gRPC client, and a note
            says so.
    """
    localities: list[LocalityEndpoints] = []
    taken: set[Address] = set()
    for index, item in enumerate(message.endpoints):
        weight = item.load_balancing_weight.value
        if weight or weightless_used:
            localities.append(_locality(index, item, weight, taken))
        elif item.lb_endpoints:
            notes.append(
                f"endpoints[{index}].load_balancing_weight: is missing or 0, the "
                f"{len(item.lb_endpoints)} endpoints of the locality are not used"
            )
    _check(localities)
    policy = message.policy
    over = 140
    if policy.HasField("overprovisioning_factor"):
        over = policy.overprovisioning_factor.value
        if not over:
            raise Bad("policy.overprovisioning_factor", "must not be 0")
    drops = each("policy.drop_overloads", policy.drop_overloads, _drop, notes)
    return Assignment(
        message.cluster_name,
        tuple(localities),
        over,
        tuple(drops),
        policy.weighted_priority_health,
    )


def _drop(message: Any, notes: Notes) -> Drop:
    share = message.drop_percentage
    if share.denominator not in (0, 1, 2):
        raise Bad("drop_percentage.denominator", f"{share.denominator} is not known")
    per_million = share.numerator * (10_000, 100, 1)[share.denominator]
    return Drop(message.category, min(1_000_000, per_million))


def _locality(index: int, item: Any, weight: int, taken: set[Address]) -> LocalityEndpoints:
    def decode(item: Any, notes: Notes) -> Endpoint:
        return _endpoint(item, taken)

    try:
        if item.WhichOneof("lb_config") == "leds_cluster_locality_config":
            raise Bad("leds_cluster_locality_config", "is not supported; use lb_endpoints")
        endpoints = each("lb_endpoints", item.lb_endpoints, decode, [])
    except Bad as bad:
        raise Bad.of(bad.under(f"endpoints[{index}]")) from None
    place = item.locality
    locality = Locality(place.region, place.zone, place.sub_zone)
    return LocalityEndpoints(tuple(endpoints), locality, item.priority, weight)


def _endpoint(item: Any, taken: set[Address]) -> Endpoint:
    if not item.HasField("endpoint"):
        raise Bad("endpoint", "is needed (endpoint_name is not supported)")
    weight = item.load_balancing_weight.value
    if not weight:
        if item.HasField("load_balancing_weight"):
            raise Bad("load_balancing_weight", "must not be 0")
        weight = 1
    endpoint = item.endpoint
    socket = endpoint.address.socket_address
    address = socket.address, socket.port_value
    if not address[0] or not 0 < address[1] < 65536:
        address = sub("endpoint.address", socket_address, endpoint.address, _NO_NOTES)
    _take(address, taken)
    for extra in endpoint.additional_addresses:
        # Not used for connecting, but one address may not stand for two endpoints (gRFC A61).
        _take(sub("additional_addresses", socket_address, extra.address, _NO_NOTES), taken)
    health = _HEALTH.get(item.health_status)
    if health is None:
        raise Bad("health_status", f"{item.health_status} is not known")
    metadata = filter_metadata(item.metadata) if item.HasField("metadata") else _EMPTY
    return Endpoint(address[0], address[1], weight, health, endpoint.hostname, metadata)


def _take(address: Address, taken: set[Address]) -> None:
    if address in taken:
        raise Bad("endpoint.address", f"{Endpoint(*address).target} comes twice")
    taken.add(address)


def socket_address(address: Any, notes: Notes) -> Address:
    """Host and port of an `envoy.config.core.v3.Address`; path and 0 for a Unix socket."""
    socket = address.socket_address
    host, port = socket.address, socket.port_value
    if host and 0 < port < 65536:
        return host, port
    which = address.WhichOneof("address")
    if which == "pipe":
        if not address.pipe.path:
            raise Bad("pipe.path", "must not be empty")
        return address.pipe.path, 0
    if which != "socket_address":
        raise Bad("", f"{which or 'nothing'} is not supported; use socket_address or pipe")
    if not host:
        raise Bad("socket_address.address", "must not be empty")
    raise Bad("socket_address.port_value", f"is {port}, must be from 1 to 65535")


def _check(localities: list[LocalityEndpoints]) -> None:
    """Rules that hold for the whole: priorities, localities, weights."""
    priorities: dict[int, int] = {}
    places: set[tuple[int, Locality]] = set()
    for item in localities:
        priorities[item.priority] = priorities.get(item.priority, 0) + item.weight
        places.add((item.priority, item.locality))
        if sum([endpoint.weight for endpoint in item.endpoints]) > _MAX_WEIGHT:
            raise Bad("endpoints", "the weights in a locality sum to more than 2^32-1")
    if priorities and max(priorities) != len(priorities) - 1:
        text = ", ".join(map(str, sorted(priorities)))
        raise Bad("endpoints", f"priorities must count from 0 without a gap, not {text}")
    if len(places) != len(localities):
        raise Bad("endpoints", "a locality comes twice in one priority")
    for priority, weight in priorities.items():
        if weight > _MAX_WEIGHT:
            raise Bad("endpoints", f"the weights of priority {priority} sum to more than 2^32-1")
