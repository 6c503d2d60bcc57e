"""Who is registered, as streams come, go, report their health and come back."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.model.parse import load_text
from controlplane.model.registry import Health
from controlplane.model.resource import Resource
from controlplane.registration import (
    GRACE,
    GROUP_ANNOTATION,
    RESTART_GRACE,
    Claim,
    NoAddress,
    Registrations,
    claim_of,
    health_of,
    missing_group,
)
from controlplane.translate.node import Node

GROUP = """
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: reviews, namespace: default}
spec:
  metadata:
    labels: {app: reviews, version: v0}
    annotations: {team: books}
  template:
    ports: {admin: 8000}
    labels: {tier: back}
    serviceAccount: bookinfo-reviews
    network: here
    locality: east/zone-1
    weight: 3
"""


def groups(*texts: str) -> dict[tuple[str, str], Resource]:
    found = [resource for text in (texts or (GROUP,)) for resource in load_text(text)]
    return {(resource.namespace, resource.name): resource for resource in found}


def node(ip: str = "127.0.0.11", name: str = "one", **metadata: Any) -> Node:
    facts = {
        "AUTO_REGISTER_GROUP": "reviews",
        "MESHSDK_PORTS": {"http": 9080},
        "LABELS": {"version": "v1"},
        **metadata,
    }
    node_id = f"sidecar~{ip}~{name}.default~default.svc.cluster.local"
    return Node.make(node_id, facts, user_agent="meshsdk")


def claim(**changes: Any) -> Claim:
    made = claim_of(node(**changes))
    assert made is not None
    return made


@pytest.fixture
def registry() -> Registrations:
    return Registrations()


def names(registry: Registrations, *texts: str) -> list[str]:
    return [resource.name for resource in registry.entries(groups(*texts))]


def test_the_entry_is_made_from_the_template_and_the_node(registry: Registrations) -> None:
    assert registry.opened(1, claim(), Health.HEALTHY)
    (entry,) = registry.entries(groups())
    assert entry.kind == "WorkloadEntry"
    assert (entry.namespace, entry.name) == ("default", "reviews-127.0.0.11-9080")
    assert entry.typed.address == "127.0.0.11"
    assert entry.typed.ports == {"admin": 8000, "http": 9080}
    assert entry.typed.labels == {"tier": "back", "app": "reviews", "version": "v1"}
    assert entry.typed.service_account == "bookinfo-reviews"
    assert (entry.typed.network, entry.typed.locality, entry.typed.weight) == (
        "here",
        "east/zone-1",
        3,
    )
    assert entry.annotations == {"team": "books", GROUP_ANNOTATION: "reviews"}
    assert entry.status["conditions"][0]["status"] == "True"


def test_what_the_node_says_of_its_place_wins() -> None:
    registry = Registrations()
    facts = {"NETWORK": "there"}
    made = Node.make(
        node().id, {**node().metadata, **facts}, locality=type(node().locality)("west", "z2")
    )
    own = claim_of(made)
    registry.opened(1, own, Health.HEALTHY)
    (entry,) = registry.entries(groups())
    assert (entry.typed.network, entry.typed.locality) == ("there", "west/z2")


def test_entries_are_the_same_objects_while_nothing_changes(registry: Registrations) -> None:
    known = groups()
    registry.opened(1, claim(), Health.HEALTHY)
    assert registry.entries(known)[0] is registry.entries(known)[0]


def test_an_entry_outlives_its_stream_by_the_grace(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.HEALTHY)
    assert not registry.closed(1, now=100.0)
    assert names(registry)
    assert registry.next_expiry() == 100.0 + GRACE
    assert not registry.expire(100.0 + GRACE - 0.01)
    assert registry.expire(100.0 + GRACE)
    assert not names(registry)


def test_who_comes_back_within_the_grace_never_left(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.HEALTHY)
    registry.closed(1, now=100.0)
    registry.opened(2, claim(), Health.HEALTHY)
    assert registry.next_expiry() is None
    assert not registry.expire(1000.0)
    assert names(registry)


def test_taking_leave_is_immediate(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.HEALTHY)
    assert registry.deregister(1)
    assert not names(registry)
    assert not registry.closed(1, now=0.0)


def test_a_draining_process_is_gone_with_its_stream(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.DRAINING)
    assert registry.closed(1, now=0.0)
    assert not names(registry)


def test_workers_of_one_server_are_one_entry_until_the_last_is_gone(
    registry: Registrations,
) -> None:
    for stream in (1, 2, 3):
        registry.opened(stream, claim(), Health.HEALTHY)
    assert names(registry) == ["reviews-127.0.0.11-9080"]
    registry.deregister(1)
    registry.closed(2, now=0.0)
    registry.expire(GRACE)
    assert names(registry)
    registry.deregister(3)
    assert not names(registry)


def test_one_healthy_worker_is_enough(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.HEALTHY)
    registry.opened(2, claim(), Health.HEALTHY)
    registry.health(1, Health.DRAINING)
    assert registry.entries(groups())[0].status["conditions"][0]["status"] == "True"
    registry.health(2, Health.UNHEALTHY)
    condition = registry.entries(groups())[0].status["conditions"][0]
    assert (condition["status"], condition["reason"]) == ("False", "Unhealthy")


def test_ports_that_come_later_replace_the_claim(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.HEALTHY)
    later = claim(MESHSDK_PORTS={"http": 9080, "grpc": 9081})
    assert registry.opened(1, later, Health.HEALTHY)
    assert names(registry) == ["reviews-127.0.0.11-9080-9081"]
    assert not registry.opened(1, later, Health.HEALTHY)


def test_a_node_that_claims_nothing_any_more_is_gone(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.HEALTHY)
    assert registry.opened(1, None, Health.HEALTHY)
    assert not names(registry)


def test_an_address_changes_hands(
    registry: Registrations, caplog: pytest.LogCaptureFixture
) -> None:
    other = GROUP.replace("name: reviews,", "name: ratings,")
    ratings = claim(AUTO_REGISTER_GROUP="ratings")
    registry.opened(1, claim(), Health.HEALTHY)
    registry.closed(1, now=0.0)
    registry.opened(2, ratings, Health.HEALTHY)
    assert names(registry, GROUP, other) == ["ratings-127.0.0.11-9080"]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    registry.opened(3, claim(), Health.HEALTHY)
    assert names(registry, GROUP, other) == ["reviews-127.0.0.11-9080"]
    assert "cannot share an address and a port" in caplog.text


def test_two_workloads_at_one_address_with_other_ports(registry: Registrations) -> None:
    other = GROUP.replace("name: reviews,", "name: ratings,")
    registry.opened(1, claim(), Health.HEALTHY)
    registry.opened(
        2, claim(AUTO_REGISTER_GROUP="ratings", MESHSDK_PORTS={"http": 9081}), Health.HEALTHY
    )
    assert len(names(registry, GROUP, other)) == 2


def test_a_group_that_comes_later_is_filled(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.HEALTHY)
    assert registry.entries({}) == []
    assert names(registry)


@pytest.mark.parametrize(
    ("known", "hint"),
    [
        ([("default", "reviewz")], "did you mean reviewz?"),
        ([("prod", "reviews")], "there is one in namespace prod"),
        ([("default", "x")], "WorkloadGroups there: x"),
        ([], "WorkloadGroups there: none"),
    ],
)
def test_a_missing_group_is_said_with_what_may_be_meant(
    known: list[tuple[str, str]], hint: str
) -> None:
    problem = missing_group(claim(), dict.fromkeys(known, groups()["default", "reviews"]))
    assert problem.startswith("127.0.0.11 is not registered: there is no WorkloadGroup reviews")
    assert hint in problem


def test_a_node_without_an_address_cannot_register() -> None:
    with pytest.raises(NoAddress, match="carries no IP address"):
        claim_of(node(ip="unknown"))


def test_a_node_without_a_group_does_not_register() -> None:
    assert claim_of(node(AUTO_REGISTER_GROUP="")) is None


def test_health_of_the_metadata() -> None:
    assert health_of(node()) is Health.HEALTHY
    assert health_of(node(MESHSDK_HEALTH="DRAINING")) is Health.DRAINING
    assert health_of(node(MESHSDK_HEALTH="nonsense")) is Health.UNHEALTHY


def test_a_restart_keeps_the_registered(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.HEALTHY)
    registry.opened(2, claim(ip="127.0.0.12", name="two"), Health.UNHEALTHY)
    again = Registrations()
    again.restore(registry.dump(), now=0.0)
    assert names(again) == names(registry)
    assert again.opened(1, claim(), Health.HEALTHY)
    assert [c.address for _, c in again.restored()] == ["127.0.0.12"]
    assert again.expire(RESTART_GRACE)
    assert names(again) == ["reviews-127.0.0.11-9080"]


def test_what_is_gone_after_a_restart_can_be_dropped(registry: Registrations) -> None:
    registry.opened(1, claim(), Health.HEALTHY)
    again = Registrations()
    again.restore(registry.dump(), now=0.0)
    ((number, _),) = again.restored()
    assert again.drop(number)
    assert not names(again)


STREAMS = st.integers(0, 3)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), STREAMS, st.sampled_from(["127.0.0.11", "127.0.0.12"])),
        st.tuples(st.just("close"), STREAMS, st.just("")),
        st.tuples(st.just("leave"), STREAMS, st.just("")),
        st.tuples(st.just("wait"), st.integers(1, 12), st.just("")),
    ),
    max_size=30,
)


@given(EVENTS)
def test_every_live_stream_is_registered_and_nothing_stays_for_ever(
    events: list[tuple[str, int, str]],
) -> None:
    registry = Registrations()
    live: dict[int, str] = {}
    now = 0.0
    for kind, number, address in events:
        if kind == "open":
            live[number] = address
            registry.opened(number, claim(ip=address), Health.HEALTHY)
        elif kind == "close":
            live.pop(number, None)
            registry.closed(number, now)
        elif kind == "leave":
            live.pop(number, None)
            registry.deregister(number)
        else:
            now += number
            registry.expire(now)
        served = {entry.typed.address for entry in registry.entries(groups())}
        assert set(live.values()) <= served
    registry.expire(now + GRACE)
    served = {entry.typed.address for entry in registry.entries(groups())}
    assert served == set(live.values())
    assert len(registry) == len(live)
