"""Where calls go first: priorities and weights of the localities of a cluster (L1 to L5). Pure.

Source: Istio networking/core/loadbalancer/loadbalancer.go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from envoy.config.cluster.v3 import cluster_pb2 as cl

from controlplane.model.policy import (
    Distribute,
    Failover,
    LoadBalancer,
    LocalityLb,
    TrafficPolicy,
    ZoneAwareLb,
)
from controlplane.translate.node import HOSTNAME, NETWORK, REGION, SUBZONE, ZONE, Dialect
from controlplane.translate.scope import Scope
from controlplane.world import Endpoint, Locality, Service

_SAME_ZONE = (NETWORK, REGION, ZONE)
_SAME_NODE = (*_SAME_ZONE, SUBZONE, HOSTNAME)
_DISTRIBUTIONS = {
    "PreferClose": _SAME_ZONE,
    "PreferSameZone": _SAME_ZONE,
    "PreferSameNode": _SAME_NODE,
}
_STEPS = 5
"""One more than the worst priority that a region, zone and subzone can give."""


class Setting(NamedTuple):
    """What is in force for one cluster."""

    locality: LocalityLb | None
    zone_aware: ZoneAwareLb | None
    failover: bool
    """Whether priorities count: the cluster ejects hosts, or the service asks for it (L3)."""


def setting_of(policy: TrafficPolicy, service: Service, scope: Scope) -> Setting:
    """DestinationRule, else the service's trafficDistribution, else the mesh (L5)."""
    balancer = policy.load_balancer or LoadBalancer()
    ejects = policy.outlier_detection is not None
    if (own := balancer.locality_lb_setting) is not None:
        return Setting(own if own.enabled is not False else None, None, ejects)
    if (zones := balancer.zone_aware_lb_setting) is not None:
        return _zone_aware(zones, ejects)
    if (labels := _DISTRIBUTIONS.get(service.traffic_distribution)) is not None:
        return Setting(LocalityLb(failover_priority=labels), None, failover=True)
    mesh = scope.world.mesh
    if mesh.zone_aware_lb is not None and mesh.zone_aware_lb.enabled is not False:
        return _zone_aware(mesh.zone_aware_lb, ejects)
    return Setting(
        mesh.locality_lb if mesh.locality_lb.enabled is not False else None, None, ejects
    )


def _zone_aware(zones: ZoneAwareLb, ejects: bool) -> Setting:
    if zones.enabled is False:
        return Setting(None, None, ejects)
    failover = LocalityLb(failover=zones.failover, failover_priority=zones.failover_priority)
    return Setting(failover, zones, ejects)


def spread(out: cl.Cluster, setting: Setting, scope: Scope) -> None:
    """Tells a cluster whether the weights of localities count."""
    if scope.dialect is Dialect.GRPC:
        return  # there they always do
    if out.HasField("load_balancing_policy"):
        # WrrLocality weighs localities by itself; Envoy refuses a cluster that says both.
        if setting.zone_aware is not None:
            scope.note("zoneAwareLbSetting does not go with backendUtilization: left out")
        return
    config = out.common_lb_config
    if setting.zone_aware is not None:
        config.zone_aware_lb_config.SetInParent()
        if setting.zone_aware.min_cluster_size is not None:
            config.zone_aware_lb_config.min_cluster_size.value = setting.zone_aware.min_cluster_size
        return
    wanted = setting.locality
    if wanted is None:
        return
    if wanted.distribute or (setting.failover and (wanted.failover or wanted.failover_priority)):
        config.locality_weighted_lb_config.SetInParent()


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints of one locality and priority."""

    locality: Locality
    endpoints: tuple[Endpoint, ...]
    weight: int
    priority: int = 0


def groups(endpoints: Iterable[Endpoint], setting: Setting, scope: Scope) -> list[Group]:
    """The endpoints by locality, weighed and ranked as these callers are to use them."""
    by_locality: dict[Locality, list[Endpoint]] = {}
    for endpoint in endpoints:
        by_locality.setdefault(endpoint.locality, []).append(endpoint)
    found = [_group(locality, by_locality[locality]) for locality in sorted(by_locality, key=str)]
    wanted = setting.locality
    if wanted is None:
        return found
    if wanted.distribute:
        return _distributed(found, wanted.distribute, scope.locality)
    if not setting.failover:
        return found
    if wanted.failover_priority:
        found = _by_labels(found, wanted.failover_priority, scope.labels)
        if not wanted.failover:
            return found
    return _by_locality(found, wanted.failover, scope.locality)


def _group(locality: Locality, endpoints: Iterable[Endpoint]) -> Group:
    chosen = tuple(sorted(endpoints, key=lambda e: (e.address, e.port)))
    return Group(locality, chosen, sum(max(1, endpoint.weight) for endpoint in chosen))


def locality_matches(locality: Locality, rule: str) -> bool:
    """Whether a place is within `region/zone/subzone`, whose last part may be `*`."""
    parts = rule.split("/")
    for wanted, own in zip(parts, (locality.region, locality.zone, locality.subzone), strict=False):
        if wanted == "*":
            return True
        if wanted != own:
            return False
    return True


def _distributed(found: list[Group], rules: Iterable[Distribute], own: Locality) -> list[Group]:
    """The weights of the first rule for where the callers are; what it leaves out gets nothing."""
    rule = next((rule for rule in rules if locality_matches(own, rule.from_)), None)
    if rule is None:
        return found
    weights: dict[int, int] = {}
    for place in sorted(
        rule.to, key=lambda text: (-len(text.split("/")), text.endswith("*"), text)
    ):
        inside = [
            index
            for index, group in enumerate(found)
            if index not in weights and locality_matches(group.locality, place)
        ]
        total = sum(found[index].weight for index in inside)
        for index in inside:
            weights[index] = math.ceil(found[index].weight * rule.to[place] / total)
    return [replace(found[index], weight=w) for index, w in sorted(weights.items()) if w]


def _by_locality(found: list[Group], rules: Iterable[Failover], own: Locality) -> list[Group]:
    """Priorities by how near a locality is (L2), below those that labels gave already."""
    to = next((rule.to for rule in rules if rule.from_ == own.region), None)
    ranked = []
    for group in found:
        rank = _distance(own, group.locality)
        if rank == 3 and to is not None and group.locality.region != to:
            rank = 4
        ranked.append(replace(group, priority=group.priority * _STEPS + rank))
    return _compact(ranked)


def _distance(own: Locality, other: Locality) -> int:
    if own.region != other.region:
        return 3
    if own.zone != other.zone:
        return 2
    return 0 if own.subzone == other.subzone else 1


def _by_labels(
    found: list[Group], priorities: tuple[str, ...], own: Mapping[str, str]
) -> list[Group]:
    """Priorities by how many labels of the list, from its start, an endpoint shares with us."""
    wanted = []
    for entry in priorities:
        label, equals, value = entry.partition("=")
        wanted.append((label, value if equals else own.get(label, "")))
    split: list[Group] = []
    for group in found:
        ranks: dict[int, list[Endpoint]] = {}
        for endpoint in group.endpoints:
            labels = _augmented(endpoint)
            shared = 0
            for label, value in wanted:
                if labels.get(label, "") != value:
                    break
                shared += 1
            ranks.setdefault(len(wanted) - shared, []).append(endpoint)
        split += [
            replace(_group(group.locality, ranks[rank]), priority=rank) for rank in sorted(ranks)
        ]
    return _compact(split)


def _augmented(endpoint: Endpoint) -> Mapping[str, str]:
    """The labels of an endpoint and where it is, as labels."""
    place = endpoint.locality
    known = {
        REGION: place.region,
        ZONE: place.zone,
        SUBZONE: place.subzone,
        NETWORK: endpoint.network,
        HOSTNAME: endpoint.node,
    }
    return {**endpoint.labels, **{key: value for key, value in known.items() if value}}


def _compact(found: list[Group]) -> list[Group]:
    """Priorities from 0 on without gaps, the first ones first."""
    order = {priority: index for index, priority in enumerate(sorted({g.priority for g in found}))}
    renumbered = [replace(group, priority=order[group.priority]) for group in found]
    return sorted(renumbered, key=lambda group: group.priority)
