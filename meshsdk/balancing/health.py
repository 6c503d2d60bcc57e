"""How the health of endpoints shares calls among priorities and localities.

All of it is Envoy's arithmetic (`load_balancer_impl.cc`, `locality_wrr.cc`), integers included:
"Priority levels", "Degraded endpoints", "Panic threshold", "Locality weighted load balancing" and
"Zone aware routing" of its documentation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from meshsdk.model import Locality


@dataclass(frozen=True, slots=True)
class Availability:
    """The endpoints of one priority, counted.

    Attributes:
        excluded: those that count neither as there nor as missing (draining).
        healthy_weight, degraded_weight, total_weight: what health is measured by; the counts
            unless `weighted_priority_health` is set. The total is without excluded ones.
    """

    hosts: int
    healthy: int
    degraded: int
    excluded: int
    healthy_weight: int
    degraded_weight: int
    total_weight: int
    overprovisioning: int = 140

    @property
    def health(self) -> int:
        return self._share(self.healthy_weight)

    @property
    def degradation(self) -> int:
        return self._share(self.degraded_weight)

    def _share(self, weight: int) -> int:
        if self.hosts == self.excluded:
            return 0
        return min(100, self.overprovisioning * weight // self.total_weight)

    def panics(self, threshold: int) -> bool:
        counted = self.hosts - self.excluded
        usable = 100.0 * (self.healthy + self.degraded) / counted if counted else 0.0
        return usable < threshold


@dataclass(frozen=True, slots=True)
class Loads:
    """Percent of all calls by priority: to healthy endpoints, to degraded ones.

    Attributes:
        panic: the priorities that use all their endpoints, healthy or not.
    """

    healthy: tuple[int, ...]
    degraded: tuple[int, ...]
    panic: tuple[bool, ...]


def loads(priorities: Sequence[Availability], panic_threshold: int) -> Loads:
    """How calls are shared among priorities.

    Args:
        panic_threshold: percent of usable endpoints below which a priority panics, unless the
            priorities together can take everything.
    """
    health = [item.health for item in priorities]
    degradation = [item.degradation for item in priorities]
    total = min(100, sum(health) + sum(degradation))
    healthy, degraded = _by_health(health, degradation, total)
    calm = Loads(tuple(healthy), tuple(degraded), (False,) * len(healthy))
    if total == 100:
        return calm
    if not total and not panic_threshold:
        # Somebody has to answer for it that nothing is there.
        return Loads((100, *calm.healthy[1:]), calm.degraded, calm.panic)
    panic = tuple(item.panics(panic_threshold) for item in priorities)
    if all(panic):
        return Loads(_by_count([item.hosts for item in priorities]), (0,) * len(panic), panic)
    return Loads(calm.healthy, calm.degraded, panic)


def _by_health(
    health: Sequence[int], degradation: Sequence[int], total: int
) -> tuple[list[int], list[int]]:
    """As much as it can take to each priority in turn, then to degraded endpoints."""
    left = 100
    shared: list[list[int]] = []
    for able in (health, degradation):
        shares = []
        for percent in able:
            share = min(left, percent * 100 // total) if total else 0
            shares.append(share)
            left -= share
        shared.append(shares)
    if left and total:  # of rounding
        shares, able = (shared[0], health) if any(health) else (shared[1], degradation)
        shares[next(i for i, percent in enumerate(able) if percent)] += left
    return shared[0], shared[1]


def _by_count(hosts: Sequence[int]) -> tuple[int, ...]:
    total = sum(hosts)
    if not total:
        return (100, *(0 for _ in hosts[1:]))
    shares = [100 * count // total for count in hosts]
    shares[next(i for i, count in enumerate(hosts) if count)] += 100 - sum(shares)
    return tuple(shares)


def locality_weight(
    weight: int, hosts: int, usable: int, excluded: int, overprovisioning: int
) -> float:
    """The weight of a locality of which only `usable` endpoints can be used."""
    counted = hosts - excluded
    if counted <= 0:
        return 0.0
    return weight * min(1.0, overprovisioning / 100 * (usable / counted))


@dataclass(frozen=True, slots=True)
class ZoneShares:
    """Where calls go that prefer the caller's locality.

    Attributes:
        local: of 10000 calls, those that stay in the caller's locality.
        residual: for the others, running sums of the capacity that each locality has left.
    """

    local: int
    residual: tuple[int, ...] = ()


def zone_shares(
    here: Locality,
    hosts: Mapping[Locality, int],
    callers: Mapping[Locality, int] | None,
    force_local: bool,
) -> ZoneShares:
    """How much stays in the caller's locality, and how the rest is shared.

    Args:
        here: the locality of this process.
        hosts: healthy endpoints (or their weights) by locality, in the order of the answer.
        callers: processes like this one by locality. None takes them to be spread as the
            endpoints are, so that everything stays local: a client knows nobody of its kind.
        force_local: stay local whatever the balance.
    """
    there = sum(hosts.values())
    if not hosts.get(here) or not there:
        local_able, local_asked = 0, 0
    elif callers is None or force_local:
        return ZoneShares(10_000)
    else:
        local_able = 10_000 * hosts[here] // there
        local_asked = _share(callers, here)
        if local_able >= local_asked:
            return ZoneShares(10_000)
    left = [
        0 if place == here else max(0, 10_000 * count // there - _share(callers or {}, place))
        for place, count in hosts.items()
    ]
    stays = local_able * 10_000 // local_asked if local_asked else 0
    return ZoneShares(stays, tuple(accumulate(left)))


def _share(counts: Mapping[Locality, int], place: Locality) -> int:
    total = sum(counts.values())
    return 10_000 * counts.get(place, 0) // total if total else 0
