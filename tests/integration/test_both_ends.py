"""YAML to routed call without a socket: the SDK against the server, both ends asserted."""

from __future__ import annotations

import random
from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.translate.node import Node
from controlplane.translate.resources import CDS, EDS, LDS, RDS
from controlplane.xds.push import Hub
from controlplane.xds.server import _plain
from meshsdk.call import Forward, Passthrough, Reply, decide
from meshsdk.model import Snapshot
from meshsdk.routing import Request
from meshsdk.xds.configuration import Configuration
from meshsdk.xds.naming import ByName
from tests.support.controlplane import make_world, service, workload

BASE = (
    service("reviews", "http:9080")
    + workload("one", "127.0.0.11", "reviews", version="v1")
    + workload("two", "127.0.0.12", "reviews", version="v2")
)
SUBSETS = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
"""


def rules(subset: str, namespace: str = "default") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews, namespace: {namespace}}}
spec:
  hosts: [reviews]
  http:
  - route: [{{destination: {{host: reviews, subset: {subset}}}}}]
---
"""


REGISTRY_ONLY = """
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |-
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
---
"""
NAME = "reviews.default.svc.cluster.local:9080"


class Pair:
    """One client and the server, joined by lists of messages."""

    def __init__(self, *texts: str) -> None:
        self.hub = Hub(make_world(*texts))
        self.node = base_pb2.Node(
            id="sidecar~127.0.0.1~app.default~default.svc.cluster.local",
            user_agent_name="meshsdk",
        )
        self.now = 0.0
        self.received: list[str] = []
        naming = ByName("default", "cluster.local", "xds.istio.io/grpc/lds/inbound/%s")
        self.configuration = Configuration(self.node, naming, 100, Snapshot())
        self.connect()

    def connect(self) -> None:
        self.client = self.hub.connect(Node.from_proto(self.node))
        self.send(self.configuration.machine.connected(self.now))

    def disconnect(self) -> None:
        self.hub.disconnect(self.client)
        self.configuration.machine.disconnected(self.now, "gone")

    def send(self, requests: list[Any]) -> None:
        for request in requests:
            self.hub.receive(self.client, _plain(request), self.now)

    def want(self, *names: str) -> None:
        self.send(self.configuration.want(names, self.now))

    def step(self) -> bool:
        """One response from the server to the client and the client's requests back."""
        data = self.hub.next(self.client, self.now)
        if data is None:
            return False
        response = discovery_pb2.DiscoveryResponse.FromString(data)
        self.received.append(response.type_url)
        self.send(self.configuration.received(response, self.now))
        return True

    def settle(self) -> int:
        for count in range(100):
            if not self.step():
                return count
        raise AssertionError("it never comes to rest")

    def wait_out(self) -> None:
        """Let the does-not-exist timer pass: what an answer left out without proof is given up."""
        self.now += 20.0
        self.send(self.configuration.tick(self.now))
        self.settle()

    def publish(self, *texts: str) -> None:
        self.hub.publish(make_world(*texts))

    def call(self, authority: str = "reviews:9080", name: str = NAME) -> Any:
        view = self.configuration.snapshot().view(name)
        assert view is not None, "the client does not know yet"
        return decide(view, Request("GET", "/", authority=authority), random.random)

    def target(self) -> str:
        decision = self.call()
        assert isinstance(decision, Forward), decision
        picked = decision.pick(random.random)
        picked.release()
        return picked.target


def test_a_call_is_routed_by_the_yaml() -> None:
    pair = Pair(BASE, SUBSETS, rules("v2"))
    pair.want(NAME)
    pair.settle()
    assert {pair.target() for _ in range(10)} == {"127.0.0.12:9080"}
    (status,) = pair.hub.status()
    assert {kind["status"] for kind in status["types"].values()} == {"SYNCED"}


def test_a_change_of_route_goes_to_the_new_cluster_without_a_gap() -> None:
    pair = Pair(BASE, SUBSETS, rules("v1"))
    pair.want(NAME)
    pair.settle()
    pair.publish(BASE, SUBSETS, rules("v2"))
    while pair.step():
        assert pair.target() in ("127.0.0.11:9080", "127.0.0.12:9080")
    assert pair.target() == "127.0.0.12:9080"


def test_what_does_not_concern_a_client_is_not_sent() -> None:
    pair = Pair(BASE)
    pair.want(NAME)
    pair.settle()
    pair.publish(BASE, service("other", "http:80"))
    assert pair.settle() == 0
    moved = BASE + workload("three", "127.0.0.13", "reviews")
    pair.publish(moved, service("other", "http:80"))
    pair.received.clear()
    pair.settle()
    assert pair.received == [EDS]


def test_all_names_lead_to_the_service() -> None:
    pair = Pair(BASE)
    names = [f"reviews{rest}:9080" for rest in (".default", ".default.svc")]
    pair.want(NAME, *names)
    pair.settle()
    for name in names:
        assert isinstance(pair.call(name, name), Forward)


def test_hosts_outside_the_registry_are_answered_in_one_round_trip() -> None:
    pair = Pair(BASE)
    pair.want("api.example.com:443")
    pair.settle()
    decision = pair.call("api.example.com", "api.example.com:443")
    assert isinstance(decision, Passthrough)
    pair.publish(BASE, REGISTRY_ONLY)
    pair.settle()
    decision = pair.call("api.example.com", "api.example.com:443")
    assert isinstance(decision, Reply)
    assert decision.status == 502


def test_a_host_that_becomes_a_service_is_no_longer_passed_through() -> None:
    pair = Pair()
    pair.want("reviews.default:9080")
    pair.settle()
    assert isinstance(pair.call("reviews.default:9080", "reviews.default:9080"), Passthrough)
    pair.publish(BASE)
    pair.settle()
    assert isinstance(pair.call("reviews.default:9080", "reviews.default:9080"), Forward)
    pair.publish()
    pair.settle()
    assert isinstance(pair.call("reviews.default:9080", "reviews.default:9080"), Passthrough)


def test_an_unknown_subset_is_503_at_once() -> None:
    pair = Pair(BASE, rules("v9"))
    pair.want(NAME)
    pair.settle()
    decision = pair.call()
    assert isinstance(decision, Reply)
    assert (decision.status, decision.flag) == (503, "NC")


def test_an_authority_that_is_not_the_service_goes_where_an_unknown_host_goes() -> None:
    pair = Pair(BASE)
    pair.want(NAME)
    pair.settle()
    assert isinstance(pair.call("somebody-else"), Passthrough)


def test_a_client_that_comes_back_to_a_restarted_server_is_sent_nothing() -> None:
    pair = Pair(BASE, SUBSETS, rules("v1"))
    pair.want(NAME)
    pair.settle()
    pair.disconnect()
    pair.hub = Hub(make_world(BASE, SUBSETS, rules("v1")))
    pair.received.clear()
    pair.connect()
    pair.settle()
    assert pair.received == []
    pair.publish(BASE, SUBSETS, rules("v2"))
    pair.settle()
    assert pair.target() == "127.0.0.12:9080"


def test_a_label_that_a_rule_looks_at_gives_the_client_its_own_routes() -> None:
    by_label = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - match: [{sourceLabels: {app: tester}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route: [{destination: {host: reviews, subset: v1}}]
---
"""
    pair = Pair(BASE, SUBSETS, rules("v1"))
    pair.hub.update_node(
        pair.client, Node.make(pair.node.id, {"LABELS": {"app": "tester"}}, user_agent="meshsdk")
    )
    pair.want(NAME)
    pair.settle()
    pair.publish(BASE, SUBSETS, by_label)
    pair.settle()
    assert pair.target() == "127.0.0.12:9080"
    pair.publish(BASE, SUBSETS, rules("v1"))
    pair.settle()
    assert pair.target() == "127.0.0.11:9080"


def test_the_index_forgets_clients_that_are_gone() -> None:
    pair = Pair(BASE, SUBSETS, rules("v1"))
    pair.want(NAME, "unknown.example:80")
    pair.settle()
    pair.disconnect()
    assert not pair.hub._watchers
    assert not pair.hub.renderer._entries
    assert not pair.hub.renderer._by_host


def test_a_rejection_is_reported_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    pair = Pair(BASE)
    pair.want(NAME)
    data = pair.hub.next(pair.client, 0.0)
    assert data is not None
    response = discovery_pb2.DiscoveryResponse.FromString(data)
    request = discovery_pb2.DiscoveryRequest(
        type_url=LDS, response_nonce=response.nonce, resource_names=[NAME]
    )
    request.error_detail.message = "Listener x: api_listener: no"
    pair.send([request])
    (status,) = pair.hub.status()
    assert status["types"]["LDS"]["status"] == "NACKED"
    assert status["types"]["LDS"]["error"] == "Listener x: api_listener: no"
    assert "rejected LDS" in caplog.text


WORLDS = [
    (),
    (BASE,),
    (BASE, SUBSETS),
    (BASE, SUBSETS, rules("v1")),
    (BASE, SUBSETS, rules("v2")),
    (BASE, rules("v1")),
    (BASE, REGISTRY_ONLY),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(range(len(WORLDS))), st.integers(0, 6)), max_size=8))
def test_after_any_changes_a_client_is_where_a_fresh_one_would_be(
    steps: list[tuple[int, int]],
) -> None:
    last: tuple[str, ...] = (BASE,)
    pair = Pair(*last)
    names = (NAME, "api.example.com:80")
    pair.want(*names)
    for world, moves in steps:
        last = WORLDS[world]
        pair.publish(*last)
        for _ in range(moves):
            pair.step()
    pair.settle()
    pair.wait_out()
    fresh = Pair(*last)
    fresh.want(*names)
    fresh.settle()
    for name in names:
        old, new = (p.configuration.snapshot().view(name) for p in (pair, fresh))
        assert old is not None
        assert new is not None
        assert old.route_config == new.route_config
        assert set(old.clusters) == set(new.clusters)
        for cluster in old.clusters:
            assert [e.target for e in old.clusters[cluster].endpoints] == [
                e.target for e in new.clusters[cluster].endpoints
            ]
    assert {RDS, CDS} <= pair.client.subscription.types.keys() or not last
