"""Which endpoint of a cluster takes the next attempt.

A `ClusterView` is what a call sees of a cluster: frozen configuration, the endpoints that may be
used now, and a picker over them. `EndpointState` is what changes per call; it belongs to the
endpoint and outlives views. Semantics: Envoy "Supported load balancers".
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from meshsdk.errors import NoHealthyUpstream
from meshsdk.model import Assignment, Balancing, Cluster, ClusterKind, Endpoint

Random = Callable[[], float]


class EndpointState:
    """One endpoint of one cluster and the attempts on it that are under way.

    Any thread may `acquire` and `release`: each is one C call on a list whose length is the
    count. A lock around an integer would cost five times as much, on every call. `endpoint` is
    replaced by the xDS thread when its weight or metadata change; `cluster`, which says how to
    connect, when that changes.
    """

    __slots__ = ("__weakref__", "_marks", "cluster", "endpoint", "release", "target")

    release: Callable[[], None]
    """End one attempt: exactly once per pick, in a `finally`."""

    def __init__(self, endpoint: Endpoint, cluster: Cluster) -> None:
        self.endpoint = endpoint
        self.cluster = cluster
        self.target = endpoint.target
        self._marks: list[None] = []
        self.release = self._marks.pop

    @property
    def active(self) -> int:
        """Attempts under way."""
        return len(self._marks)

    def acquire(self) -> None:
        self._marks.append(None)

    def __repr__(self) -> str:
        return f"<EndpointState {self.target} active={self.active}>"


Picker = Callable[[Random], EndpointState]


@dataclass(frozen=True, slots=True, eq=False)
class ClusterView:
    """A cluster as one call sees it; replaced when cluster or endpoints change, never changed.

    Attributes:
        endpoints: those that may be picked now (highest priority that has a usable one).
    """

    cluster: Cluster
    endpoints: tuple[EndpointState, ...]
    choose: Picker
    """Choose without taking: for tests and explanations. Calls use `pick`."""

    @property
    def passthrough(self) -> bool:
        """Nothing is known of where to: the caller may go where it was going, unchanged."""
        return self.cluster.kind is ClusterKind.ORIGINAL_DST and not self.endpoints

    def pick(self, random: Random) -> EndpointState:
        """Choose an endpoint and count an attempt on it.

        Raises:
            NoHealthyUpstream: the cluster has no endpoint that may be used.
        """
        state = self.choose(random)
        state._marks.append(None)
        return state


class ClusterPool:
    """The endpoint states of all clusters. Only the xDS thread calls it."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._states: dict[str, dict[str, EndpointState]] = {}
        self._views: dict[str, tuple[Any, ClusterView]] = {}

    def view(
        self,
        cluster: Cluster,
        assignment: Assignment | None,
        members: tuple[ClusterView, ...] = (),
    ) -> ClusterView:
        """The view for this configuration; the same object while nothing changed.

        Args:
            members: of an AGGREGATE, the views that it is made of in the order of priority.
        """
        made_of = cluster, assignment, members
        known = self._views.get(cluster.key)
        if known and known[0] == made_of:
            return known[1]
        if cluster.kind is ClusterKind.AGGREGATE:
            view = _aggregate(cluster, members)
            self._views[cluster.key] = made_of, view
            return view
        usable = _usable(assignment if assignment is not None else cluster.assignment)
        old = self._states.get(cluster.key, {})
        states: dict[str, EndpointState] = {}
        for endpoint in usable:
            state = old.get(endpoint.target) or EndpointState(endpoint, cluster)
            state.endpoint, state.cluster = endpoint, cluster
            states[endpoint.target] = state
        self._states[cluster.key] = states
        used = tuple(states.values())
        view = ClusterView(cluster, used, _picker(cluster, used, self._random()))
        self._views[cluster.key] = made_of, view
        return view

    def retain(self, keys: Iterable[str]) -> None:
        """Forget every cluster whose `Cluster.key` is not named."""
        keep = set(keys)
        for name in self._views.keys() - keep:
            del self._views[name]
            self._states.pop(name, None)


def _aggregate(cluster: Cluster, members: tuple[ClusterView, ...]) -> ClusterView:
    """The first member that has a usable endpoint, by its own policy."""
    for member in members:
        if member.endpoints:
            return ClusterView(cluster, member.endpoints, member.choose)
    return ClusterView(cluster, (), _nothing(cluster.name))


def _usable(assignment: Assignment | None) -> list[Endpoint]:
    """Endpoints of the first priority that has one which may be used."""
    if assignment is None:
        return []
    by_priority: dict[int, list[Endpoint]] = {}
    for locality in assignment.localities:
        usable = [endpoint for endpoint in locality.endpoints if endpoint.health.usable]
        by_priority.setdefault(locality.priority, []).extend(usable)
    return next((by_priority[p] for p in sorted(by_priority) if by_priority[p]), [])


def _picker(cluster: Cluster, states: tuple[EndpointState, ...], start: float) -> Picker:
    if not states:
        return _nothing(cluster.name)
    if len(states) == 1:
        only = states[0]
        return lambda random: only
    equal = len({state.endpoint.weight for state in states}) == 1
    if cluster.balancing is Balancing.RANDOM:
        return _random(states)
    if cluster.balancing is Balancing.LEAST_REQUEST:
        if equal:
            return _least_request(states, cluster.choice_count)
        return _Scheduler(states, start, by_load=True).pick
    return _round_robin(states, start) if equal else _Scheduler(states, start).pick


def _nothing(cluster: str) -> Picker:
    def pick(random: Random) -> EndpointState:
        raise NoHealthyUpstream(f"cluster {cluster} has no usable endpoint", cluster=cluster)

    return pick


def _random(states: tuple[EndpointState, ...]) -> Picker:
    """Uniform, without weights, as Envoy's RANDOM."""
    count = len(states)
    return lambda random: states[int(random() * count)]


def _round_robin(states: tuple[EndpointState, ...], start: float) -> Picker:
    count = len(states)
    # next() on itertools.count is one C call: no lock is needed, no number is given twice.
    ticket = itertools.count(int(start * count)).__next__
    return lambda random: states[ticket() % count]


def _least_request(states: tuple[EndpointState, ...], choices: int) -> Picker:
    count = len(states)

    def pick(random: Random) -> EndpointState:
        best = states[int(random() * count)]
        for _ in range(choices - 1):
            other = states[int(random() * count)]
            if other.active < best.active:
                best = other
        return best

    return pick


class _Scheduler:
    """Earliest deadline first: the next turn of a host comes 1/weight later.

    Envoy's scheduler for unequal weights; with `by_load` the weight is divided by the number of
    active attempts plus one (LEAST_REQUEST with active_request_bias 1). Any thread may pick; the
    heap is guarded by `_lock`.
    """

    __slots__ = ("_by_load", "_heap", "_lock", "_now", "_order")

    def __init__(
        self, states: tuple[EndpointState, ...], start: float, *, by_load: bool = False
    ) -> None:
        self._by_load = by_load
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._now = 0.0
        self._heap = [(1 / s.endpoint.weight, next(self._order), s) for s in states]
        heapq.heapify(self._heap)
        # Processes that start together must not all begin at the same host.
        for _ in range(int(start * len(states))):
            self._turn()

    def pick(self, random: Random) -> EndpointState:
        with self._lock:
            return self._turn()

    def _turn(self) -> EndpointState:
        self._now, _, state = self._heap[0]
        weight = state.endpoint.weight / (state.active + 1 if self._by_load else 1)
        heapq.heapreplace(self._heap, (self._now + 1 / weight, next(self._order), state))
        return state
