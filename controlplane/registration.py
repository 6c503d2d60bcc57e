"""Workload registration: processes that say what they serve on their ADS stream.

As istiod does for machines outside Kubernetes: a node that names a WorkloadGroup
(`AUTO_REGISTER_GROUP`) becomes a WorkloadEntry made from the group's template, for as long as its
stream lives and a grace period after that. Ours: the node may say its ports (`MESHSDK_PORTS`) and
its health (`MESHSDK_HEALTH`), and take leave by a HealthInformation request with code CANCELLED.

Several processes may serve one address and port (the workers of a gunicorn): each holds a lease,
the entry lives while one does. Everything here is pure: times are arguments, nothing is written.
"""

from __future__ import annotations

import difflib
import ipaddress
import itertools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.model.entries import WorkloadEntrySpec, WorkloadGroupSpec
from controlplane.model.registry import Health
from controlplane.model.resource import Origin, Resource
from controlplane.translate.node import Node

log = logging.getLogger("controlplane.registration")

GRACE = 10.0
"""Seconds that an entry stays after its last stream broke."""

RESTART_GRACE = 150.0
"""Seconds that entries from before a restart stay: the longest reconnect back-off of clients."""

GROUP_ANNOTATION = "istio.io/autoRegistrationGroup"
_ORDER = (Health.HEALTHY, Health.UNHEALTHY, Health.DRAINING)

GroupKey = tuple[str, str]
"""(namespace, name) of a WorkloadGroup."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a process says it is."""

    group: str
    namespace: str
    address: str
    ports: tuple[tuple[str, int], ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    locality: str = ""
    network: str = ""
    service_account: str = ""
    node: str = ""

    @property
    def key(self) -> tuple[str, str, str, tuple[tuple[str, int], ...]]:
        """Processes with equal keys are one workload."""
        return (self.namespace, self.group, self.address, self.ports)

    @property
    def group_key(self) -> GroupKey:
        return (self.namespace, self.group)

    @property
    def name(self) -> str:
        """Name of its WorkloadEntry."""
        numbers = sorted({number for _, number in self.ports})
        parts = (self.group, self.address.replace(":", "-"), *map(str, numbers))
        return "-".join(parts).lower()


@dataclass(slots=True)
class _Lease:
    claim: Claim
    health: Health = Health.HEALTHY
    expires_at: float | None = None
    """None while the stream lives."""
    restored: bool = False
    """From an earlier life: its process has not come back yet."""


class NoAddress(Exception):
    """A node wants to be registered and does not say where, or says what is no port."""


def claim_of(node: Node) -> Claim | None:
    """What a node claims; None when it does not want to be registered.

    Raises:
        NoAddress: the node id carries no IP address, or MESHSDK_PORTS is wrong.
    """
    metadata = node.metadata
    group = metadata.get("AUTO_REGISTER_GROUP")
    if not isinstance(group, str) or not group:
        return None
    try:
        ipaddress.ip_address(node.ip)
    except ValueError:
        raise NoAddress(
            f"node {node.id!r} names WorkloadGroup {group} and carries no IP address; its id "
            "must look like sidecar~10.0.0.1~name.namespace~namespace.svc.cluster.local"
        ) from None
    ports = metadata.get("MESHSDK_PORTS")
    try:
        numbers = _ports(ports) if isinstance(ports, Mapping) else ()
    except ValueError as error:
        raise NoAddress(f"node {node.id!r} is not registered: MESHSDK_PORTS.{error}") from None
    network = metadata.get("NETWORK", "")
    return Claim(
        group=group,
        namespace=node.namespace,
        address=node.ip,
        ports=numbers,
        labels=tuple(sorted(node.labels.items())),
        locality=str(node.locality),
        network=network if isinstance(network, str) else "",
        service_account=node.service_account,
        node=node.id,
    )


def _ports(ports: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    for name, number in ports.items():
        valid = isinstance(number, int | float) and not isinstance(number, bool)
        if not valid or not 0 < number < 65536 or number != int(number):
            raise ValueError(f"{name}: {number!r} is not a port, 1 to 65535")
    return tuple(sorted((str(name), int(number)) for name, number in ports.items()))


def health_of(node: Node) -> Health:
    """The health that a node's metadata tells; healthy when it tells none."""
    try:
        return Health(str(node.metadata.get("MESHSDK_HEALTH", "HEALTHY")))
    except ValueError:
        return Health.UNHEALTHY


class Registrations:
    """All leases. Touched only by the event loop of the xDS server.

    Args:
        grace: seconds between the loss of a stream and the end of its lease.

    Every method that may change what is registered returns whether it did.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
        self._leases: dict[int, _Lease] = {}
        self._lost_numbers = itertools.count(-1, -1)
        self._made: dict[tuple[Claim, Health, int], Resource] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def opened(self, stream: int, claim: Claim | None, health: Health) -> bool:
        """A stream makes a claim, or another one than before, or none any more."""
        lease = self._leases.get(stream)
        if claim is None:
            return self.deregister(stream)
        if lease is not None and lease.claim == claim:
            changed, lease.health = lease.health is not health, health
            return changed
        self._leases.pop(stream, None)
        self._take_over(claim)
        self._leases[stream] = _Lease(claim, health)
        return True

    def _take_over(self, claim: Claim) -> None:
        """Ends the leases that this claim replaces.

        A lease of the same workload that waits for its process to come back has found it. Of two
        different workloads at one address and port only the newer can be the one that listens.
        """
        same = [
            (lease.claim.node != claim.node, number)
            for number, lease in self._leases.items()
            if lease.expires_at is not None and lease.claim.key == claim.key
        ]
        if same:
            del self._leases[min(same)[1]]
        numbers = {number for _, number in claim.ports}
        for number, lease in list(self._leases.items()):
            other = lease.claim
            if other.address != claim.address or other.key == claim.key:
                continue
            if other.network != claim.network:
                continue
            if not numbers & {port for _, port in other.ports}:
                continue
            if lease.expires_at is None:
                if other.group_key == claim.group_key:
                    continue  # another port beside the shared one: both may serve
                log.warning(
                    "%s of WorkloadGroup %s/%s is now registered by %s for %s/%s: the older "
                    "registration ends; two workloads cannot share an address and a port",
                    claim.address, *other.group_key, claim.node, *claim.group_key,
                )  # fmt: skip
            del self._leases[number]

    def health(self, stream: int, health: Health) -> bool:
        """A stream reports its health."""
        lease = self._leases.get(stream)
        if lease is None or lease.health is health:
            return False
        lease.health = health
        claim = lease.claim
        log.info("%s is %s", claim.name, health.value)
        return True

    def deregister(self, stream: int) -> bool:
        """A process takes its leave."""
        lease = self._leases.pop(stream, None)
        if lease is not None:
            log.info("%s deregisters", lease.claim.name)
        return lease is not None

    def closed(self, stream: int, now: float) -> bool:
        """A stream is gone: at once when its process was draining, else after the grace."""
        lease = self._leases.get(stream)
        if lease is None:
            return False
        if lease.health is Health.DRAINING:
            return self.deregister(stream)
        del self._leases[stream]
        lease.expires_at = now + self._grace
        self._leases[next(self._lost_numbers)] = lease
        return False

    def expire(self, now: float) -> bool:
        """Ends the leases whose grace is over."""
        over = [n for n, lease in self._leases.items() if _is_over(lease, now)]
        for number in over:
            claim = self._leases.pop(number).claim
            log.info("%s is gone: its stream broke and it did not come back", claim.name)
        return bool(over)

    def next_expiry(self) -> float | None:
        """When `expire` has something to do."""
        times = [lease.expires_at for lease in self._leases.values()]
        return min((time for time in times if time is not None), default=None)

    def restored(self) -> list[tuple[int, Claim]]:
        """The leases from an earlier life whose processes have not come back, by number."""
        return [(n, lease.claim) for n, lease in self._leases.items() if lease.restored]

    def drop(self, number: int) -> bool:
        """Ends a lease whose process turned out to be gone."""
        lease = self._leases.pop(number, None)
        if lease is not None:
            log.info("%s is gone: nothing listens there any more", lease.claim.name)
        return lease is not None

    # --- what comes out ----------------------------------------------------------------------

    def entries(self, groups: Mapping[GroupKey, Resource]) -> list[Resource]:
        """The WorkloadEntries of all claims whose WorkloadGroup exists."""
        health: dict[Any, Health] = {}
        claims: dict[Any, Claim] = {}
        for lease in self._leases.values():
            key = lease.claim.key
            claims[key] = lease.claim
            health[key] = min(health.get(key, lease.health), lease.health, key=_ORDER.index)
        found: dict[tuple[Claim, Health, int], Resource] = {}
        for key in sorted(claims):
            claim = claims[key]
            group = groups.get(claim.group_key)
            if group is None or not isinstance(group.typed, WorkloadGroupSpec):
                continue
            signature = (claim, health[key], id(group))
            found[signature] = self._made.get(signature) or _entry(claim, group, health[key])
        self._made = found
        return list(found.values())

    def dump(self) -> list[dict[str, Any]]:
        """All claims as plain data, for `restore`."""
        return [
            {
                "group": lease.claim.group,
                "namespace": lease.claim.namespace,
                "address": lease.claim.address,
                "ports": dict(lease.claim.ports),
                "labels": dict(lease.claim.labels),
                "locality": lease.claim.locality,
                "network": lease.claim.network,
                "service_account": lease.claim.service_account,
                "node": lease.claim.node,
                "health": lease.health.value,
            }
            for lease in self._leases.values()
        ]

    def restore(
        self, saved: Iterable[Mapping[str, Any]], now: float, grace: float = RESTART_GRACE
    ) -> None:
        """Takes up the claims of an earlier life; their processes have `grace` to come back.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the data is not what `dump` wrote.
        """
        for item in saved:
            claim = Claim(
                group=item["group"],
                namespace=item["namespace"],
                address=item["address"],
                ports=_ports(item["ports"]),
                labels=tuple(sorted(item["labels"].items())),
                locality=item["locality"],
                network=item["network"],
                service_account=item["service_account"],
                node=item["node"],
            )
            lease = _Lease(claim, Health(item["health"]), now + grace, restored=True)
            self._leases[next(self._lost_numbers)] = lease


def _is_over(lease: _Lease, now: float) -> bool:
    return lease.expires_at is not None and lease.expires_at <= now


def _entry(claim: Claim, group: Resource, health: Health) -> Resource:
    """A WorkloadEntry from the template of its group (Istio autoregistration)."""
    spec: WorkloadGroupSpec = group.typed
    template = spec.template
    labels = {**template.labels, **spec.metadata.labels, **dict(claim.labels)}
    entry = WorkloadEntrySpec(
        address=claim.address,
        ports={**template.ports, **dict(claim.ports)},
        labels=labels,
        network=claim.network or template.network,
        locality=claim.locality or template.locality,
        weight=template.weight,
        service_account=template.service_account or claim.service_account,
    )
    healthy = health is Health.HEALTHY
    condition = {
        "type": "Healthy",
        "status": "True" if healthy else "False",
        "reason": health.value.capitalize(),
    }
    plain = {
        "address": entry.address,
        "ports": entry.ports,
        "labels": labels,
        "network": entry.network,
        "locality": entry.locality,
        "weight": entry.weight,
        "serviceAccount": entry.service_account,
    }
    annotations = {**spec.metadata.annotations, GROUP_ANNOTATION: group.name}
    return Resource(
        kind="WorkloadEntry",
        api_version="networking.istio.io/v1",
        name=claim.name,
        namespace=claim.namespace,
        labels=labels,
        annotations=annotations,
        spec={key: value for key, value in plain.items() if value},
        status={"conditions": [condition]},
        origin=Origin(f"registered by {claim.node}"),
        typed=entry,
    )


def missing_group(claim: Claim, groups: Mapping[GroupKey, Resource]) -> str:
    """What is wrong with a claim's WorkloadGroup, and what may be meant; empty when it exists."""
    if claim.group_key in groups:
        return ""
    text = (
        f"{claim.address} is not registered: there is no WorkloadGroup {claim.group} "
        f"in namespace {claim.namespace}"
    )
    elsewhere = [namespace for namespace, name in sorted(groups) if name == claim.group]
    if elsewhere:
        return f"{text}; there is one in namespace {elsewhere[0]} (set the workload's namespace)"
    here = [name for namespace, name in groups if namespace == claim.namespace]
    close = difflib.get_close_matches(claim.group, here, n=1)
    if close:
        return f"{text}; did you mean {close[0]}?"
    known = ", ".join(sorted(here)) or "none"
    return f"{text}; WorkloadGroups there: {known}"
