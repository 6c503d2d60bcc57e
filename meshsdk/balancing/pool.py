"""The view of a cluster that a call sees, and the pool that makes views of configuration."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from meshsdk.balancing import pickers
from meshsdk.balancing.endpoint import EndpointState, LoadWeight
from meshsdk.balancing.hashing import Tables, any_key, xx_hash
from meshsdk.balancing.health import loads
from meshsdk.balancing.layers import (
    Choice,
    Group,
    Layer,
    Sequencer,
    Terms,
    anyone,
    degraded,
    healthy,
)
from meshsdk.balancing.pickers import Clock, Picker, Random, States
from meshsdk.balancing.subsets import SubsetViews
from meshsdk.errors import DropOverload, UnconditionalDropOverload
from meshsdk.model import Assignment, Balancing, Cluster, ClusterKind, Drop, Locality

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class ClusterView:
    """A cluster as one call sees it; replaced when cluster or endpoints change, never changed.

    Attributes:
        endpoints: those that calls may go to now, by priority.
        drops: calls that are to be answered instead of sent; see `dropped`.
    """

    cluster: Cluster
    endpoints: States
    choose: Picker
    """Choose without taking: for tests and explanations. Calls use `pick`.

    Takes random numbers and, optionally, the key of the call (64 bits, of the route's hash
    policy); a cluster that balances by key draws one where there is none.
    """
    drops: tuple[Drop, ...] = ()
    _layers: tuple[Layer, ...] = ()
    _terms: Terms | None = None
    _sequence: Sequencer | None = None
    _subsets: SubsetViews[ClusterView] | None = None

    @property
    def passthrough(self) -> bool:
        """Nothing is known of where to: the caller may go where it was going, unchanged."""
        cluster = self.cluster
        protected = cluster.tls is not None or cluster.sockets
        return cluster.kind is ClusterKind.ORIGINAL_DST and not (self.endpoints or protected)

    def pick(self, random: Random, key: int | None = None) -> EndpointState:
        """Choose an endpoint and count an attempt on it.

        Args:
            key: what a cluster with RING_HASH or MAGLEV chooses by; None draws one.

        Raises:
            NoHealthyUpstream: the cluster has no endpoint that may be used.
        """
        state = self.choose(random, key)
        state._marks.append(None)
        return state

    def pick_up(
        self, random: Random, key: int | None, is_down: Callable[[EndpointState], bool]
    ) -> EndpointState:
        """Choose an endpoint that is not known to be down, and count an attempt on it.

        Where all are down it is the one that was chosen: its connection says what is wrong.

        Raises:
            NoHealthyUpstream: as `pick`.
        """
        state = self.choose(random, key)
        if is_down(state):
            others = self.sequence(random, key)
            state = next((other for other in others if not is_down(other)), state)
        state._marks.append(None)
        return state

    def sequence(self, random: Random, key: int | None = None) -> Iterator[EndpointState]:
        """Every endpoint once, in the order to try them when those before cannot be reached.

        With RING_HASH along the ring from the place of the key, with MAGLEV along the table, with
        PICK_FIRST as they are listed, else from anywhere on.
        """
        if self._sequence is not None:
            return self._sequence(any_key(random) if key is None else key)
        endpoints = self.endpoints
        first = self.cluster.balancing is Balancing.PICK_FIRST
        start = 0 if first else int(random() * len(endpoints))
        return iter((*endpoints[start:], *endpoints[:start]))

    def subset(self, match: Mapping[str, Any] | None) -> ClusterView:
        """The view for a route that asks for endpoints with this metadata.

        Args:
            match: `envoy.lb` of the route's `metadata_match`, with that of the weighted cluster.
        """
        return self if self._subsets is None else self._subsets.find(match)

    def dropped(self, random: Random) -> DropOverload | None:
        """The answer to a call that is to be dropped (`drop_overloads` of EDS), else None."""
        for drop in self.drops:
            if random() * _MILLION < drop.per_million:
                name = self.cluster.name
                text = f"cluster {name} drops {drop.per_million} of a million calls"
                every = drop.per_million == _MILLION
                error = UnconditionalDropOverload if every else DropOverload
                return error(f"{text}: {drop.category}", cluster=name)
        return None


class ClusterPool:
    """The endpoint states of all clusters. Only the xDS thread calls it.

    Args:
        random: uniform numbers in [0, 1).
        clock: seconds, never going back; asked by pickers that weigh by age or by load reports.
            Without it no time passes: what is new stays new.
        here: the locality of this process, for zone aware routing and the order of localities.
        callers: how many processes like this one there are by locality, if that is known.
    """

    def __init__(
        self,
        random: Random,
        clock: Clock = lambda: 0.0,
        here: Locality = Locality(),  # noqa: B008  frozen
        callers: Mapping[Locality, int] | None = None,
    ) -> None:
        self._random = random
        self._clock = clock
        self._here = here
        self._callers = callers
        self._seed = int(random() * (1 << 32))
        self._states: dict[str, dict[str, EndpointState]] = {}
        self._views: dict[str, tuple[Cluster, Assignment | None, Any, ClusterView]] = {}
        self._tables: dict[str, Tables] = {}

    def view(
        self,
        cluster: Cluster,
        assignment: Assignment | None,
        members: tuple[ClusterView, ...] = (),
    ) -> ClusterView:
        """The view for this configuration; the same object while nothing changed.

        Args:
            members: of an AGGREGATE, the views of its clusters in order.
        """
        known = self._views.get(cluster.key)
        if known and known[0] == cluster and known[1] == assignment and known[2] == members:
            return known[3]
        if cluster.kind is ClusterKind.AGGREGATE:
            view = self._aggregate(cluster, members)
        elif cluster.kind is ClusterKind.DYNAMIC and not (assignment and assignment.localities):
            view = ClusterView(cluster, (), pickers.unresolved(cluster.name, cluster.place))
        else:
            view = self._leaf(cluster, assignment if assignment is not None else cluster.assignment)
        self._views[cluster.key] = (cluster, assignment, members, view)
        return view

    def retain(self, keys: Iterable[str]) -> None:
        """Forget every cluster whose `Cluster.key` is not named."""
        for name in self._views.keys() - set(keys):
            del self._views[name]
            self._states.pop(name, None)
            self._tables.pop(name, None)

    # --- leaves ---

    def _leaf(self, cluster: Cluster, assignment: Assignment | None) -> ClusterView:
        layers, states = self._layers(cluster, assignment)
        self._states[cluster.key] = states
        known = self._tables.get(cluster.key, {})
        terms = Terms(
            cluster,
            self._random,
            self._clock,
            self._here,
            self._callers,
            cluster.lb.locality_weighted,
            tuple(states.values()) if cluster.lb.hash_balance_factor else (),
            known,
            {},
        )
        drops = assignment.drops if assignment else ()
        subsets = cluster.lb.subsets
        make = _with_subsets if subsets is not None and subsets.selectors else _view
        view = make(terms, layers, drops)
        if terms.used or known:
            known.clear()  # the view holds the terms, and needs none of the old tables
            self._tables[cluster.key] = terms.used
        return view

    def _layers(
        self, cluster: Cluster, assignment: Assignment | None
    ) -> tuple[tuple[Layer, ...], dict[str, EndpointState]]:
        """The endpoints by priority, with the states that they had before."""
        old = self._states.get(cluster.key, {})
        states: dict[str, EndpointState] = {}
        groups: list[list[Group]] = [[]]
        if assignment is not None and cluster.lb.subset_size:
            assignment = _some_of(assignment, cluster.lb.subset_size, self._seed)
        for item in assignment.localities if assignment else ():
            members = []
            for endpoint in item.endpoints:
                target = endpoint.target
                state = states.get(target) or old.get(target) or EndpointState(endpoint, cluster)
                state.endpoint, state.cluster = endpoint, cluster
                states[target] = state
                members.append(state)
            while len(groups) <= item.priority:
                groups.append([])
            groups[item.priority].append(Group(item.locality, item.weight, tuple(members)))
        if cluster.lb.slow_start is not None:
            _note_age(states.values(), self._clock())
        if cluster.balancing is Balancing.CLIENT_SIDE_WEIGHTED_ROUND_ROBIN:
            _note_load(states.values(), cluster)
        over = assignment.overprovisioning if assignment else 140
        by_weight = assignment is not None and assignment.weighted_priority_health
        return tuple([Layer(group, over, by_weight) for group in groups]), states

    # --- aggregates ---

    def _aggregate(self, cluster: Cluster, members: tuple[ClusterView, ...]) -> ClusterView:
        """The priorities of the members, one after another, each with its own policy.

        A member decides alone whether a priority of it panics, and one that balances by key
        chooses among its own priorities again. Priorities without endpoints are left out.
        Source: Envoy `extensions/clusters/aggregate`.
        """
        parts = [
            (member, index, layer.availability)
            for member in members
            for index, layer in enumerate(member._layers)
            if layer.hosts
        ]
        if not parts:
            return ClusterView(cluster, (), pickers.nothing(cluster.name))
        found = loads([each for _, _, each in parts], cluster.lb.panic_threshold)
        choice = _shared(
            [
                (percent, _of_member(*parts[index][:2], kind))
                for kind, percents in ((healthy, found.healthy), (degraded, found.degraded))
                for index, percent in enumerate(percents)
                if percent
            ]
        )
        layers = tuple(layer for member in members for layer in member._layers)
        return ClusterView(cluster, choice.states, choice.pick, (), layers, None, choice.sequence)


def _of_member(member: ClusterView, index: int, usable: Callable[[EndpointState], bool]) -> Choice:
    terms = member._terms
    if terms is None or terms.cluster.balancing.hashes:
        return Choice(member.choose, member.endpoints, member._sequence)
    shares = loads(
        [layer.availability for layer in member._layers], terms.cluster.lb.panic_threshold
    )
    return member._layers[index].choice(usable, shares.panic[index], terms)


def _some_of(assignment: Assignment, size: int, seed: int) -> Assignment:
    """The endpoints whose names hash lowest: others in each process, and the same ones as long as
    they are there (rendezvous hashing, gRFC A68)."""
    targets = {endpoint.target for item in assignment.localities for endpoint in item.endpoints}
    ranked = sorted(targets, key=lambda target: xx_hash(target.encode(), seed))
    kept = set(ranked[:size])
    localities = [
        dataclasses.replace(
            item, endpoints=tuple(each for each in item.endpoints if each.target in kept)
        )
        for item in assignment.localities
    ]
    return dataclasses.replace(assignment, localities=tuple(localities))


def _note_age(states: Iterable[EndpointState], now: float) -> None:
    for state in states:
        if state.healthy_since is None and state.endpoint.health.healthy:
            state.healthy_since = now


def _note_load(states: Iterable[EndpointState], cluster: Cluster) -> None:
    for state in states:
        if state.load is None:
            state.load = LoadWeight(cluster.lb.load_reports)
        state.load.how = cluster.lb.load_reports


# --- views -----------------------------------------------------------------------------------


def _view(terms: Terms, layers: tuple[Layer, ...], drops: tuple[Drop, ...]) -> ClusterView:
    cluster = terms.cluster
    hosts = layers[0].hosts
    if len(layers) == 1 and hosts and all(map(healthy, hosts)):
        choice = layers[0].choice(anyone, False, terms)
    else:
        found = loads([layer.availability for layer in layers], cluster.lb.panic_threshold)
        choice = _shared(
            [
                (percent, layers[index].choice(kind, found.panic[index], terms))
                for kind, percents in ((healthy, found.healthy), (degraded, found.degraded))
                for index, percent in enumerate(percents)
                if percent
            ]
            or [(100, layers[0].choice(healthy, False, terms))]
        )
    return ClusterView(cluster, choice.states, choice.pick, drops, layers, terms, choice.sequence)


def _shared(shares: list[tuple[int, Choice]]) -> Choice:
    """Choices that share all calls by percent; the key of a call decides, where it has one."""
    if len(shares) == 1:
        return shares[0][1]
    bounds = list(accumulate(percent for percent, _ in shares))
    picks = [choice.pick for _, choice in shares]
    states = tuple(dict.fromkeys(s for _, choice in shares for s in choice.states))
    last = len(picks) - 1

    def pick(random: Random, key: int | None = None) -> EndpointState:
        percent = int(random() * 100) if key is None else key % 100
        return picks[min(last, bisect_right(bounds, percent))](random, key)

    def sequence(key: int) -> Iterator[EndpointState]:
        chosen = shares[min(last, bisect_right(bounds, key % 100))][1]
        first = chosen.sequence(key) if chosen.sequence else iter(chosen.states)
        return iter(dict.fromkeys([*first, *states]))

    by_key = any(choice.sequence for _, choice in shares)
    return Choice(pick, states, sequence if by_key else None)


def _with_subsets(terms: Terms, layers: tuple[Layer, ...], drops: tuple[Drop, ...]) -> ClusterView:
    """The view of a cluster whose routes may ask for subsets; without asking, the fallback."""
    config = terms.cluster.lb.subsets
    assert config is not None
    weighted = terms.locality_weighted and config.locality_weight_aware
    inner = dataclasses.replace(terms, locality_weighted=weighted)

    def make(chosen: tuple[Layer, ...], single: bool) -> ClusterView:
        if single:
            one = next((state for layer in chosen for state in layer.hosts), None)
            if one is not None:
                return ClusterView(terms.cluster, (one,), pickers.always(one), drops)
        return _view(inner, chosen or (Layer((), 140, False),), drops)

    subsets = SubsetViews(config, layers, make, lambda view: bool(view.endpoints))
    plain = subsets.find(None)
    return dataclasses.replace(plain, _layers=layers, _terms=terms, _subsets=subsets)
