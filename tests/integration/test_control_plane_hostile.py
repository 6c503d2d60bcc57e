"""Clients that are broken or mean harm: they get an answer, others get no trouble."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from controlplane.registrar import Registrar
from controlplane.registration import Registrations
from controlplane.translate.resources import CDS, LDS
from tests.support.ads import wait_until
from tests.support.adsclient import AdsClient
from tests.support.controlplane import SDK_NODE, ServedWorld, service

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
NAME = "reviews.default.svc.cluster.local:9080"


@pytest.fixture(scope="module")
def served() -> Iterator[ServedWorld]:
    def registrar(_hub: Any) -> Registrar:
        return Registrar(Registrations(), dict, lambda: None)

    with ServedWorld(service("reviews", "http:9080"), observer=registrar) as world:
        yield world


def request(node: str = SDK_NODE, **metadata: Any) -> bytes:
    message = discovery_pb2.DiscoveryRequest(type_url=LDS, resource_names=[NAME])
    message.node.metadata.update(metadata)
    message.node.id = node
    message.node.user_agent_name = "meshsdk"
    return message.SerializeToString()


def refusal(served: ServedWorld, *requests: bytes) -> tuple[grpc.StatusCode, str]:
    """How the server ends a stream on which these bytes are sent."""
    with grpc.insecure_channel(served.address) as channel:
        call: Any = channel.stream_stream(METHOD)(iter(requests), timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    error: Any = caught.value
    return error.code(), error.details()


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ([b"\xff\xff\xff\xff"], "not a DiscoveryRequest"),
        ([b""], "must carry node.id"),
        ([request(), b"\xff\xff\xff\xff"], "not a DiscoveryRequest"),
        ([request("a\n2026-01-01 error all is lost")], "printable characters"),
        ([request("x" * 100_000)], "at most 1024"),
        ([request(), request("a\nb")], "printable characters"),
        ([request(LABELS=float("inf"))], "node.metadata: Fail to serialize Infinity"),
    ],
)
def test_what_means_nothing_is_said_to_its_sender_and_traced_nowhere(
    served: ServedWorld, requests: Sequence[bytes], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    code, details = refusal(served, *requests)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in details
    assert not [record for record in caplog.records if record.exc_info]
    with AdsClient(served.address) as other:
        other.subscribe(LDS, NAME)
        other.wait(lambda: other.responses)


def test_a_client_that_goes_while_it_is_written_to_is_no_error(
    served: ServedWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(20):
        client = AdsClient(served.address)
        client.subscribe(LDS, *(f"host-{number}:80" for number in range(300)))
        wait_until(lambda: served.run(lambda: len(served.hub.clients)))
        client.kill()
    wait_until(lambda: served.run(lambda: not served.hub.clients))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_types_that_nobody_serves_are_passed_over(served: ServedWorld) -> None:
    with AdsClient(served.address) as client:
        client.subscribe("type.googleapis.com/not.a.Type", "x")
        client.subscribe("", "x")
        client.subscribe(LDS, NAME)
        client.wait(lambda: client.responses)
        assert [response.type_url for response in client.responses] == [LDS]


def test_a_node_without_an_id_in_a_later_request_changes_nothing(served: ServedWorld) -> None:
    with AdsClient(served.address) as client:
        client.subscribe(LDS, NAME)
        client.wait(lambda: client.responses)
        empty = discovery_pb2.DiscoveryRequest(type_url=CDS, resource_names=["PassthroughCluster"])
        empty.node.SetInParent()
        client.send(empty)
        client.wait(lambda: (CDS, "PassthroughCluster") in client.content)


def test_the_reason_of_a_rejection_is_one_line(served: ServedWorld) -> None:
    with AdsClient(served.address, acknowledge=False) as client:
        client.subscribe(LDS, NAME)
        client.wait(lambda: client.responses)
        detail = status_pb2.Status(code=3, message="no\n2026-01-01 error   all is lost\n")
        client.send(
            discovery_pb2.DiscoveryRequest(
                type_url=LDS,
                resource_names=[NAME],
                response_nonce=client.responses[-1].nonce,
                error_detail=detail,
            )
        )

        def error() -> str | None:
            return served.status()[0]["types"]["LDS"].get("error")

        wait_until(error)
        assert error() == "no 2026-01-01 error all is lost"


@pytest.mark.parametrize("number", [None, "9080", 0, 65536, -1, 90.5, True])
def test_a_port_that_is_none_is_said_and_does_not_break_the_stream(
    served: ServedWorld, number: Any, caplog: pytest.LogCaptureFixture
) -> None:
    node = f"sidecar~10.0.0.9~p{number}.default~default.svc.cluster.local"
    ports = {"http": number}
    with AdsClient(served.address, node, AUTO_REGISTER_GROUP="g", MESHSDK_PORTS=ports) as client:
        client.subscribe(LDS, NAME)
        client.wait(lambda: LDS in {response.type_url for response in client.responses})
    (line,) = [r.getMessage() for r in caplog.records if node in r.getMessage()]
    assert "is not registered: MESHSDK_PORTS.http: " in line
    assert "is not a port, 1 to 65535" in line
