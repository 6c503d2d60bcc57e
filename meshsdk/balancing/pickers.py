"""Who of a list of endpoints takes the next attempt: the policies that look at no key.

A picker is called on every attempt, by any thread. Those over endpoints of equal weight hold no
lock; a schedule is guarded by one, held for arithmetic only. Sources: Envoy "Supported load
balancers"; gRFC A58 for weights of load reports.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from meshsdk.balancing.endpoint import EndpointState
from meshsdk.errors import DnsFailure, NoHealthyUpstream
from meshsdk.model import LbConfig, LoadReports, SlowStart

Random = Callable[[], float]
Clock = Callable[[], float]
Picker = Callable[..., EndpointState]
"""Called with a source of random numbers and, optionally, the key of the call."""

States = tuple[EndpointState, ...]
T = TypeVar("T")


def unresolved(cluster: str, place: str) -> Picker:
    def pick(random: Random, key: int | None = None) -> EndpointState:
        raise DnsFailure(f"{place} has no address", cluster=cluster)

    return pick


def nothing(cluster: str) -> Picker:
    def pick(random: Random, key: int | None = None) -> EndpointState:
        raise NoHealthyUpstream(f"cluster {cluster} has no usable endpoint", cluster=cluster)

    return pick


def always(state: EndpointState) -> Picker:
    return lambda random, key=None: state


def random_one(states: States) -> Picker:
    """Uniform, without weights, as Envoy's RANDOM."""
    count = len(states)
    return lambda random, key=None: states[int(random() * count)]


def round_robin(states: States, start: float) -> Picker:
    count = len(states)
    # next() on itertools.count is one C call: no lock is needed, no number is given twice.
    ticket = itertools.count(int(start * count)).__next__
    return lambda random, key=None: states[ticket() % count]


def least_request(states: States, choices: int) -> Picker:
    """The least loaded of some drawn ones; the first of equals."""
    count = len(states)

    def pick(random: Random, key: int | None = None) -> EndpointState:
        best = states[int(random() * count)]
        for _ in range(choices - 1):
            other = states[int(random() * count)]
            if len(other._marks) < len(best._marks):
                best = other
        return best

    return pick


def least_of_all(states: States) -> Picker:
    """The least loaded of all, one of the equals at random (`selection_method: FULL_SCAN`)."""

    def pick(random: Random, key: int | None = None) -> EndpointState:
        counts = [len(state._marks) for state in states]
        least = min(counts)
        tied = [state for state, count in zip(states, counts, strict=True) if count == least]
        return tied[int(random() * len(tied))]

    return pick


# --- weights ---------------------------------------------------------------------------------


class Schedule(Generic[T]):
    """Earliest deadline first: the next turn of an entry comes 1/weight later.

    The weight is asked for at each turn, so that it may follow load and time. Any thread may call
    `next`; the heap is guarded by `_lock`.
    """

    __slots__ = ("_heap", "_lock", "_order", "_weight")

    def __init__(self, entries: Sequence[T], weight: Callable[[T], float], start: float) -> None:
        self._weight = weight
        self._lock = threading.Lock()
        weights = [weight(entry) for entry in entries]
        # Processes that start together must not all begin at the same entry: the schedule begins
        # somewhere in the turn of the lightest one, and then among those whose turn it is.
        now = start / min(weights)
        self._heap = [
            ((int(now * each) + 1) / each, index, entry)
            for index, (each, entry) in enumerate(zip(weights, entries, strict=True))
        ]
        self._order = itertools.count(len(weights))
        heapq.heapify(self._heap)
        for _ in range(int(start * 997 % 1 * len(weights))):
            self._turn()

    def next(self) -> T:
        with self._lock:
            return self._turn()

    def _turn(self) -> T:
        now, _, entry = self._heap[0]
        turn = now + 1 / self._weight(entry), next(self._order), entry
        heapq.heapreplace(self._heap, turn)
        return entry


def scheduled(states: States, weight: Callable[[EndpointState], float], start: float) -> Picker:
    turn = Schedule(states, weight, start).next
    return lambda random, key=None: turn()


def static_weight(state: EndpointState) -> float:
    return state.endpoint.weight


def weight_by_load(bias: float) -> Callable[[EndpointState], float]:
    """Weight by active attempts, as LEAST_REQUEST does with weights that differ."""
    if bias == 1.0:
        return lambda state: state.endpoint.weight / (len(state._marks) + 1)
    if bias == 0.0:
        return static_weight
    return lambda state: state.endpoint.weight / (len(state._marks) + 1) ** bias


def growing(
    weight: Callable[[EndpointState], float], slow: SlowStart, clock: Clock
) -> Callable[[EndpointState], float]:
    """Less weight while an endpoint is new (Envoy "Slow start mode")."""
    window = slow.window
    least = slow.min_weight_percent / 100
    power = 1 / slow.aggression

    def grown(state: EndpointState) -> float:
        full = weight(state)
        since = state.healthy_since
        age = window if since is None else clock() - since
        if age >= window:
            return full
        part = max(0.001, age) / window
        # Even 0 % has to take part, or its first turn would never come.
        return full * max(part if power == 1 else part**power, least, 1e-6)

    return grown


def by_weight(
    states: States, config: LbConfig, start: float, clock: Clock, *, by_load: bool
) -> Picker | None:
    """A schedule, where the weights differ or some endpoint is new; else None."""
    slow = config.slow_start
    new = slow is not None and any(
        s.healthy_since is not None and clock() - s.healthy_since <= slow.window for s in states
    )
    first = states[0].endpoint.weight
    if not new and all(state.endpoint.weight == first for state in states):
        return None
    weight = weight_by_load(config.active_request_bias) if by_load else static_weight
    if slow is not None and new:
        weight = growing(weight, slow, clock)
    return scheduled(states, weight, start)


# --- weights of load reports -----------------------------------------------------------------

_MOST = 0xFFFF
_OFFSET = _MOST // 2
_MAX_RATIO, _MIN_RATIO = 10.0, 0.01


def strides(weights: Sequence[float]) -> list[int] | None:
    """Weights as parts of 65535; None where fewer than two are known, and all are as good.

    One that is not known (0) gets the mean; none gets more than ten times the mean, nor less than
    a hundredth of it.
    """
    known = [weight for weight in weights if weight > 0]
    if len(known) < 2:
        return None
    mean = sum(known) / len(known)
    most = min(max(known), _MAX_RATIO * mean)
    middle = round(mean / most * _MOST)
    least = max(1, round(middle * _MIN_RATIO))
    return [max(least, round(min(w, most) / most * _MOST)) if w > 0 else middle for w in weights]


def stride_picker(states: States, parts: Sequence[int], ticket: Callable[[], int]) -> Picker:
    """A turn for each endpoint in each round, of which it takes its part; without a lock.

    Source: gRFC A58 "static stride scheduler".
    """
    count = len(states)

    def pick(random: Random, key: int | None = None) -> EndpointState:
        while True:
            turn, index = divmod(ticket(), count)
            part = parts[index]
            if (part * turn + index * _OFFSET) % _MOST >= _MOST - part:
                return states[index]

    return pick


class LoadRoundRobin:
    """Round robin by the weights that endpoints report; weighed anew every update period.

    Any thread may pick. `_lock` is held by the one that weighs; the others go on as before.
    """

    __slots__ = ("_clock", "_due", "_how", "_lock", "_pick", "_states", "_ticket")

    def __init__(self, states: States, how: LoadReports, start: float, clock: Clock) -> None:
        self._states = states
        self._how = how
        self._clock = clock
        self._ticket = itertools.count(int(start * _MOST)).__next__
        self._lock = threading.Lock()
        self._weigh(clock())

    def _weigh(self, now: float) -> None:
        self._due = now + self._how.weight_update_period
        parts = strides([state.load.at(now)[0] if state.load else 0.0 for state in self._states])
        if parts is None:
            states, count, ticket = self._states, len(self._states), self._ticket
            self._pick: Picker = lambda random, key=None: states[ticket() % count]
        else:
            self._pick = stride_picker(self._states, parts, self._ticket)

    def pick(self, random: Random, key: int | None = None) -> EndpointState:
        now = self._clock()
        if now >= self._due and self._lock.acquire(blocking=False):
            try:
                self._weigh(now)
            finally:
                self._lock.release()
        return self._pick(random)
