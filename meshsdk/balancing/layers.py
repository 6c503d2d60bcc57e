"""The endpoints of one priority, and the picker over those of them that may be used.

What Envoy calls a host set: endpoints by locality, each healthy, degraded or neither. Sources:
Envoy `load_balancer_impl.cc`, `thread_aware_lb_impl.cc`, `upstream_impl.cc`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from meshsdk.balancing import hashing, pickers
from meshsdk.balancing.endpoint import EndpointState
from meshsdk.balancing.health import Availability, locality_weight, zone_shares
from meshsdk.balancing.pickers import Clock, Picker, Random, States
from meshsdk.model import Balancing, Cluster, Health, Locality, ZoneAware

Sequencer = Callable[[int], Iterator[EndpointState]]


@dataclass(frozen=True, slots=True)
class Choice:
    """A picker, the endpoints that it picks from, and for a key the order to try them in."""

    pick: Picker
    states: States
    sequence: Sequencer | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What the pickers of one view are built with.

    Attributes:
        here: the locality of this process. callers: processes like it by locality, if known.
        known: tables of the view before; `used` those of this one.
        everybody: all endpoints of the cluster.
    """

    cluster: Cluster
    random: Random
    clock: Clock
    here: Locality
    callers: Mapping[Locality, int] | None
    locality_weighted: bool
    everybody: States
    known: hashing.Tables
    used: hashing.Tables

    def nothing(self) -> Choice:
        return Choice(pickers.nothing(self.cluster.name), ())


@dataclass(frozen=True, slots=True)
class Group:
    """The endpoints of one locality in one priority."""

    place: Locality
    weight: int
    states: States


def healthy(state: EndpointState) -> bool:
    return state.endpoint.health.healthy


def degraded(state: EndpointState) -> bool:
    return state.endpoint.health is Health.DEGRADED


def anyone(state: EndpointState) -> bool:
    return True


class Layer:
    """The endpoints of one priority.

    Attributes:
        groups: in the order of the assignment; `places` merges and orders them.
        by_weight: health is that of weights (`weighted_priority_health`).
    """

    __slots__ = ("by_weight", "groups", "hosts", "overprovisioning")

    def __init__(self, groups: Sequence[Group], overprovisioning: int, by_weight: bool) -> None:
        self.groups = groups
        self.overprovisioning = overprovisioning
        self.by_weight = by_weight
        self.hosts: States = (
            groups[0].states
            if len(groups) == 1
            else tuple([state for group in groups for state in group.states])
        )

    @property
    def availability(self) -> Availability:
        able, weak, gone = (
            [state.endpoint for state in self.hosts if is_one(state)]
            for is_one in (healthy, degraded, _excluded)
        )
        counts = len(able), len(weak), len(gone)
        if self.by_weight:
            weights = [sum([e.weight for e in each]) for each in (able, weak, gone)]
            total = sum([state.endpoint.weight for state in self.hosts])
        else:
            weights, total = list(counts), len(self.hosts)
        return Availability(
            len(self.hosts),
            *counts,
            healthy_weight=weights[0],
            degraded_weight=weights[1],
            total_weight=total - weights[2],
            overprovisioning=self.overprovisioning,
        )

    def having(self, groups: Iterable[Group]) -> Layer:
        """The same priority with other endpoints."""
        return Layer(tuple(groups), self.overprovisioning, self.by_weight)

    def places(self, here: Locality) -> list[Group]:
        """Groups by locality: the caller's own first, then by name, as Envoy orders them."""
        merged: dict[Locality, Group] = {}
        for group in self.groups:
            before = merged.get(group.place)
            states = (*before.states, *group.states) if before else group.states
            merged[group.place] = Group(group.place, group.weight, states)
        return sorted(
            merged.values(),
            key=lambda g: (g.place != here, g.place.region, g.place.zone, g.place.sub_zone),
        )

    # --- choices ---

    def choice(self, usable: Callable[[EndpointState], bool], panic: bool, terms: Terms) -> Choice:
        """The picker over the usable endpoints, or over all of them in panic."""
        zones = terms.cluster.lb.zone_aware
        if terms.cluster.balancing.hashes:
            return self._by_key(anyone if panic else healthy, terms)
        if panic:
            if zones and zones.fail_traffic_on_panic:
                return terms.nothing()
            return _policy(self.hosts, terms)
        if terms.locality_weighted:
            found = self._by_locality(usable, terms)
            if found is not None:
                return found
        elif zones and zones.routing_enabled and len(self.groups) > 1:
            found = self._by_zone(usable, zones, terms)
            if found is not None:
                return found
        return _policy(self._those(usable), terms)

    def _those(self, usable: Callable[[EndpointState], bool]) -> States:
        return self.hosts if usable is anyone else tuple(filter(usable, self.hosts))

    def _by_locality(self, usable: Callable[[EndpointState], bool], terms: Terms) -> Choice | None:
        """Localities in turn by weight; None where none has one."""
        entries: list[tuple[float, Choice]] = []
        for group in self.places(terms.here):
            able = tuple(filter(usable, group.states))
            excluded = sum(map(_excluded, group.states))
            total, factor = len(group.states), self.overprovisioning
            weight = locality_weight(group.weight, total, len(able), excluded, factor)
            if weight > 0:
                entries.append((weight, _policy(able, terms)))
        if not entries:
            return None
        if len(entries) == 1:
            return entries[0][1]
        schedule = pickers.Schedule(entries, lambda entry: entry[0], terms.random())
        turn = schedule.next

        def pick(random: Random, key: int | None = None) -> EndpointState:
            return turn()[1].pick(random, key)

        return Choice(pick, tuple([state for _, choice in entries for state in choice.states]))

    def _by_zone(
        self, usable: Callable[[EndpointState], bool], zones: ZoneAware, terms: Terms
    ) -> Choice | None:
        """The caller's locality first; None where that is not to be done."""
        places = self.places(terms.here)
        able = {group.place: tuple(filter(healthy, group.states)) for group in places}
        known = terms.callers
        forced = zones.force_local_zone
        if len(places) < 2 or sum(map(len, able.values())) < zones.min_cluster_size:
            return None
        if known is not None and (not known.get(terms.here) or (len(known) < 2 and forced is None)):
            return None
        counts = {
            place: sum(s.endpoint.weight for s in states) if zones.by_weight else len(states)
            for place, states in able.items()
        }
        force = forced is not None and len(able.get(terms.here, ())) >= forced
        shares = zone_shares(terms.here, counts, known, force)
        choices = [_policy(tuple(filter(usable, group.states)), terms) for group in places]
        picks = [choice.pick for choice in choices]
        rest = _policy(self._those(usable), terms)
        enabled, stays, residual = zones.routing_enabled / 100, shares.local, shares.residual

        def pick(random: Random, key: int | None = None) -> EndpointState:
            if enabled < 1 and random() >= enabled:
                return rest.pick(random, key)
            if stays == 10_000 or (stays and random() * 10_000 < stays):
                return picks[0](random, key)
            if not residual[-1]:
                return picks[int(random() * len(picks))](random, key)
            return picks[bisect_right(residual, int(random() * residual[-1]))](random, key)

        return Choice(pick, rest.states)

    def _by_key(self, usable: Callable[[EndpointState], bool], terms: Terms) -> Choice:
        """Ring or Maglev table over the usable endpoints."""
        config = terms.cluster.lb
        states, weights = self._weighed(usable, terms)
        if not states:
            return terms.nothing()
        if len(states) == 1 and config.maximum_ring_size:
            return Choice(pickers.always(states[0]), states)
        named = config.use_hostname_for_hashing
        keys = [hashing.hash_key(state.endpoint, named) for state in states]
        weighed = tuple(zip(keys, weights, strict=True))
        table = hashing.table_of(terms.cluster.balancing, config, weighed, terms.known, terms.used)
        if not table.owners:
            return terms.nothing()
        bound = config.hash_balance_factor
        if bound:
            pick = hashing.by_key_bounded(states, weights, table, bound, terms.everybody)
        else:
            pick = hashing.by_key(states, table)

        def sequence(key: int) -> Iterator[EndpointState]:
            # A small ring may have no place for some endpoints: they come last.
            first = [states[index] for index in table.sequence(key)]
            return iter(dict.fromkeys([*first, *states]))

        return Choice(pick, states, sequence)

    def _weighed(
        self, usable: Callable[[EndpointState], bool], terms: Terms
    ) -> tuple[States, list[float]]:
        """The usable endpoints with their part of the whole weight."""
        shares = [(1.0, self.hosts)]
        if terms.locality_weighted:
            places = self.places(terms.here)
            total = sum(group.weight for group in places)
            shares = [(group.weight / total, group.states) for group in places if group.weight]
        states: list[EndpointState] = []
        weights: list[float] = []
        for share, hosts in shares:
            able = list(filter(usable, hosts))
            total = sum([state.endpoint.weight for state in able])
            states += able
            # In this order of operations Envoy's numbers come out to the last bit.
            weights += [state.endpoint.weight * share / total for state in able]
        return tuple(states), weights


def _excluded(state: EndpointState) -> bool:
    return state.endpoint.health is Health.DRAINING


def _policy(states: States, terms: Terms) -> Choice:
    """The policy of the cluster over these endpoints."""
    if not states:
        return terms.nothing()
    return Choice(_picker(states, terms), states)


def _picker(states: States, terms: Terms) -> Picker:
    cluster, start, clock = terms.cluster, terms.random(), terms.clock
    if len(states) == 1:
        return pickers.always(states[0])
    config = cluster.lb
    balancing = cluster.balancing
    if balancing is Balancing.RANDOM:
        return pickers.random_one(states)
    if balancing is Balancing.PICK_FIRST:
        index = int(start * len(states)) if config.shuffle_address_list else 0
        return pickers.always(states[index])
    if balancing is Balancing.CLIENT_SIDE_WEIGHTED_ROUND_ROBIN:
        return pickers.LoadRoundRobin(states, config.load_reports, start, clock).pick
    least = balancing is Balancing.LEAST_REQUEST
    weighted = pickers.by_weight(states, config, start, clock, by_load=least)
    if weighted is not None:
        return weighted
    if not least:
        return pickers.round_robin(states, start)
    if config.full_scan:
        return pickers.least_of_all(states)
    return pickers.least_request(states, config.choice_count)
