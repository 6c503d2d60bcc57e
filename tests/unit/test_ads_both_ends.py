"""The SDK's ADS machine and the control plane's subscription, wired together in memory.

Requests and responses wait in queues and cross each other; the world changes meanwhile; the
stream breaks. Whatever happened, in the end both ends agree on what exists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from controlplane.xds.subscription import Request, Resource, Response, Subscription, Sync, Verdict
from meshsdk.xds.decode import DECODERS
from meshsdk.xds.resources import CLUSTER, ENDPOINT, ResourceState, Status
from meshsdk.xds.stream import AdsMachine
from tests.support.resources import cluster, endpoints

NAMES = ("a", "b", "c")
BUILD: dict[str, Callable[[str, int], Message]] = {
    CLUSTER: lambda name, content: cluster(name, connect_timeout=content),
    ENDPOINT: lambda name, content: endpoints(name, [("10.0.0.1", content)]),
}


def read(request: Any) -> Request:
    error = request.error_detail.message if request.HasField("error_detail") else None
    names = tuple(request.resource_names)
    return Request(request.type_url, names, request.version_info, request.response_nonce, error)


def write(response: Response) -> Any:
    made = discovery_pb2.DiscoveryResponse(
        type_url=response.type_url, version_info=response.version, nonce=response.nonce
    )
    for resource in response.resources:
        made.resources.add(type_url=response.type_url, value=resource.body)
    for name in response.missing:
        error = made.resource_errors.add()
        error.resource_name.name = name
        error.error_detail.code = 5
    return made


class BothEnds(RuleBasedStateMachine):
    deny = True

    def __init__(self) -> None:
        super().__init__()
        self.world: dict[tuple[str, str], int] = {}
        self.generation = 0
        self.now = 0.0
        self.client = AdsMachine(base_pb2.Node(id="n"), DECODERS)
        self.open()

    def open(self) -> None:
        self.server = Subscription(deny=self.deny)
        self.up: list[Any] = list(self.client.connected(self.now))
        self.down: list[Any] = []

    def lookup(self, url: str, name: str) -> Resource | None:
        content = self.world.get((url, name))
        if content is None:
            return None
        body = BUILD[url](name, content).SerializeToString()
        return Resource(name, hash((url, name, content)) & (2**64 - 1), body)

    def listing(self, url: str) -> list[str]:
        raise AssertionError("this client never asks for everything")

    @rule(url=st.sampled_from([CLUSTER, ENDPOINT]), names=st.sets(st.sampled_from(NAMES)))
    def subscribe(self, url: str, names: set[str]) -> None:
        self.up += self.client.subscribe(url, names, self.now)

    @rule(
        url=st.sampled_from([CLUSTER, ENDPOINT]),
        name=st.sampled_from(NAMES),
        content=st.sampled_from([None, 1, 2]),
    )
    def change(self, url: str, name: str, content: int | None) -> None:
        self.generation += 1
        if content is None:
            self.world.pop((url, name), None)
        else:
            self.world[url, name] = content
        self.server.touch(url, [name])

    @precondition(lambda self: self.up)
    @rule()
    def server_reads(self) -> None:
        verdict = self.server.receive(read(self.up.pop(0)), self.lookup, self.listing, self.now)
        assert verdict is not Verdict.NACK

    @rule()
    def server_sends(self) -> None:
        response = self.server.next(self.lookup, self.generation, self.now)
        if response is not None:
            self.down.append(write(response))

    @precondition(lambda self: self.down)
    @rule()
    def client_reads(self) -> None:
        result = self.client.received(self.down.pop(0), self.now)
        assert result.rejected == ()
        self.up += result.requests

    @precondition(lambda self: self.generation % 5 == 4)
    @rule()
    def reconnect(self) -> None:
        self.client.disconnected(self.now, "reset")
        self.open()

    def settle(self) -> None:
        """Let both ends talk until neither has anything to say."""
        for _ in range(100):
            if self.up:
                self.server_reads()
            elif self.down:
                self.client_reads()
            else:
                self.server_sends()
                if not self.down:
                    break
        assert self.up == self.down == []

    def teardown(self) -> None:
        self.settle()
        self.client.tick(self.now + 15.0)
        for state in self.client.resources():
            self.check(state)
        assert self.client.deadline() is None
        for url, state in self.server.types.items():
            if self.client.subscribed(url):
                assert state.sync in (Sync.SYNCED, Sync.NOT_SENT)

    def check(self, state: ResourceState) -> None:
        content = self.world.get((state.type_url, state.name))
        if content is not None:
            assert state.status is Status.ACKED, state
            assert state.raw == BUILD[state.type_url](state.name, content).SerializeToString()
        elif state.type_url == CLUSTER:
            assert state.status is Status.DOES_NOT_EXIST
        else:
            # Endpoints that are gone are not spoken of: they go with their cluster.
            assert state.status in (Status.ACKED, Status.DOES_NOT_EXIST)


class BothEndsWithoutDenial(BothEnds):
    deny = False


@pytest.mark.parametrize("kind", [BothEnds, BothEndsWithoutDenial])
def test_both_ends_agree(kind: type[BothEnds]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        kind, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )


@pytest.mark.parametrize("url", [CLUSTER, ENDPOINT])
def test_what_was_dropped_and_is_wanted_again_comes_after_a_reconnect(url: str) -> None:
    ends = BothEnds()
    ends.change(url, "a", 1)
    ends.change(url, "b", 1)
    ends.subscribe(url, {"a", "b"})
    ends.settle()
    ends.subscribe(url, {"a"})
    ends.subscribe(url, {"a", "b"})
    # The server may know the version of a and b; the client has b no longer.
    ends.reconnect()
    ends.teardown()
