"""The book of a client's connections: limits, stacks, queues. No socket, no clock to wait for."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshsdk._httpx.connections import Connections, Waiter
from meshsdk.balancing import EndpointState
from meshsdk.model import Cluster, Endpoint

A, B = (EndpointState(Endpoint("10.0.0.1", port), Cluster("c")) for port in (1, 2))


class Line:
    """What the book needs of a connection."""

    def __init__(self, key: Any, endpoint: EndpointState) -> None:
        self.key = key
        self.target = endpoint.target
        self.idle_since = 0.0
        self.used = True


class Bell:
    rung = 0

    def set(self) -> None:
        self.rung += 1


def book(**options: Any) -> Any:
    options = {"limit": 3, "keep": 3, "expiry": None, **options}
    return Connections(Line, Bell, **options)  # type: ignore[arg-type]


def test_last_used_is_used_next() -> None:
    connections = book()
    first, second = (connections.take(A.target, A) for _ in range(2))
    connections.give_back(first, reusable=True)
    connections.give_back(second, reusable=True)
    assert connections.take(A.target, A) is second
    assert connections.take(A.target, A) is first
    assert connections.counts == (2, 0, 0)


def test_fresh_leaves_idle_ones_alone() -> None:
    connections = book()
    kept = connections.take(A.target, A)
    connections.give_back(kept, reusable=True)
    assert connections.take(A.target, A, fresh=True) is not kept
    assert connections.counts == (1, 1, 0)


def test_the_oldest_idle_one_makes_room() -> None:
    connections = book(limit=2)
    old, new = (connections.take(A.target, A) for _ in range(2))
    connections.give_back(old, reusable=True)
    connections.give_back(new, reusable=True)
    assert connections.take(B.target, B).target == B.target
    assert list(connections.doomed) == [old]
    assert connections.counts == (1, 1, 0)


def test_keep_limits_idle_ones() -> None:
    connections = book(keep=1)
    lines = [connections.take(A.target, A) for _ in range(3)]
    for line in lines:
        connections.give_back(line, reusable=True)
    assert list(connections.doomed) == lines[:2]
    assert connections.counts == (0, 1, 0)


def test_expired_idle_ones_go_with_the_next_one() -> None:
    connections = book(expiry=5.0)
    old, new = connections.take(A.target, A), connections.take(B.target, B)
    connections.give_back(old, reusable=True)
    old.idle_since -= 6
    connections.give_back(new, reusable=True)
    assert list(connections.doomed) == [old]


def test_queue_is_served_in_order_with_the_connection_that_fits() -> None:
    connections = book(limit=1)
    line = connections.take(A.target, A)
    first, second = connections.take(A.target, A), connections.take(B.target, B)
    assert isinstance(first, Waiter)
    assert isinstance(second, Waiter)
    connections.give_back(line, reusable=True)
    assert (first.granted, first.event.rung, second.granted) == (line, 1, None)
    assert connections.withdraw(first) is line
    connections.give_back(line, reusable=True)
    assert second.granted is not None
    assert second.granted.target == B.target
    assert list(connections.doomed) == [line]


def test_withdrawn_waiter_gets_nothing() -> None:
    connections = book(limit=1)
    line = connections.take(A.target, A)
    waiter = connections.take(A.target, A)
    assert connections.withdraw(waiter) is None
    connections.give_back(line, reusable=False)
    assert connections.counts == (0, 0, 0)


def test_retired_targets() -> None:
    connections = book()
    idle, busy, other = (connections.take(e.target, e) for e in (A, A, B))
    connections.give_back(idle, reusable=True)
    connections.retire(frozenset({B.target}))
    assert list(connections.doomed) == [idle]
    connections.give_back(busy, reusable=True)
    connections.give_back(other, reusable=True)
    assert list(connections.doomed) == [idle, busy]
    assert connections.counts == (0, 1, 0)


def test_clear_names_everything_and_frees_the_queue() -> None:
    connections = book(limit=1)
    line = connections.take(A.target, A)
    waiter = connections.take(A.target, A)
    assert connections.clear() == [line]
    assert waiter.granted is not None
    connections.give_back(line, reusable=True)  # late: it counts no more
    assert connections.counts == (1, 0, 0)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 4))
def test_nothing_is_lost_and_no_limit_is_passed(seed: int, limit: int, keep: int) -> None:
    """Any order of events: open connections stay within the limit, and are found at the end."""
    draw = random.Random(seed)
    connections = book(limit=limit, keep=keep)
    made: list[Line] = []
    make = connections._make
    connections._make = lambda *how: made.append(make(*how)) or made[-1]
    busy: list[Any] = []
    queue: list[Waiter] = []
    closed: list[Any] = []
    for _ in range(60):
        event = draw.random()
        if event < 0.45:
            endpoint = draw.choice((A, B))
            got = connections.take(endpoint.target, endpoint, fresh=draw.random() < 0.1)
            (queue if isinstance(got, Waiter) else busy).append(got)
        elif event < 0.85 and busy:
            line = busy.pop(draw.randrange(len(busy)))
            reusable = draw.random() < 0.7
            connections.give_back(line, reusable=reusable)
            if not reusable:
                closed.append(line)
        elif event < 0.95 and queue:
            granted = connections.withdraw(queue.pop(draw.randrange(len(queue))))
            if granted is not None:
                busy.append(granted)
        else:
            connections.retire(frozenset(draw.sample([A.target, B.target], draw.randrange(3))))
        closed += [connections.doomed.popleft() for _ in range(len(connections.doomed))]
        active, idle, waiting = connections.counts
        assert active + idle <= limit
        assert idle <= keep
        assert not waiting or active == limit
    for waiter in queue:
        granted = connections.withdraw(waiter)
        if granted is not None:
            busy.append(granted)
    rest = connections.clear()
    assert set(rest) >= set(busy)
    assert sorted(map(id, closed + rest)) == sorted(map(id, made))
