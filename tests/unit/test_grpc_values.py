"""gRPC's view of targets, metadata and replies."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from meshsdk import errors
from meshsdk._grpc import values
from meshsdk._grpc.codecs import codecs_of
from meshsdk._grpc.connectivity import aggregate
from meshsdk.call import Reply
from tests.support.proto import echo_pb2


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        ("reviews:9080", "reviews:9080"),
        ("reviews", "reviews"),
        ("dns:reviews:9080", "reviews:9080"),
        ("dns:///reviews:9080", "reviews:9080"),
        ("dns://8.8.8.8/reviews:9080", None),
        ("[::1]:9080", "[::1]:9080"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("ipv4:127.0.0.1:80", None),
        ("ipv6:[::1]:80", None),
        ("unix:/tmp/x", None),
        ("unix:///tmp/x", None),
        ("unix-abstract:x", None),
        ("xds:///reviews:9080", None),
        ("", None),
    ],
)
def test_authority_of(target: str, authority: str | None) -> None:
    assert values.authority_of(target) == authority


@pytest.mark.parametrize(
    ("authority", "host"), [("a:80", "a"), ("a", "a"), ("[::1]:80", "::1"), ("a.b.c:1", "a.b.c")]
)
def test_host_of(authority: str, host: str) -> None:
    assert values.host_of(authority) == host


def test_traces_do_not_replace_what_the_caller_set() -> None:
    traces = (("traceparent", "t"), ("x-request-id", "r"))
    assert values.with_traces(None, traces) == traces
    mine = [("x-request-id", "mine"), ("x-request-id", "twice")]
    assert values.with_traces(mine, traces) == (*mine, ("traceparent", "t"))


def test_metadata_as_headers() -> None:
    metadata = (("A", "1"), ("b-bin", b"\x00\xff"), ("c", b"text"))
    assert values.headers_of(metadata) == [("a", "1"), ("b-bin", "AP8="), ("c", "text")]
    assert values.headers_of(None) == []


@pytest.mark.parametrize("metadata", [5, ("x",), ((1, 2),), (("a", "b", "c"),)])
def test_metadata_that_grpc_will_refuse_matches_nothing(metadata: Any) -> None:
    assert values.headers_of(metadata) == []


def test_headers_as_metadata() -> None:
    headers = [(":path", "/"), ("host", "h"), ("a-bin", "AP8="), ("b-bin", b"\x01"), ("c", "d")]
    sent = (("a-bin", b"\x00\xff"), ("b-bin", b"\x01"), ("c", "d"))
    assert values.sendable(headers) == sent
    assert values.sendable([("a-bin", "not base64!")]) == (("a-bin", b"not base64!"),)


def test_replies() -> None:
    failure = values.replied(Reply.of(errors.NoHealthyUpstream("none")))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert failure.details == "no healthy upstream"
    assert isinstance(failure.cause, errors.NoHealthyUpstream)
    redirect = values.replied(Reply(301, (("location", "x"), ("content-type", "text/plain"))))
    assert redirect.code is grpc.StatusCode.UNKNOWN
    assert redirect.details == ""
    assert redirect.debug == "UNKNOWN: (the mesh answered with HTTP status 301)"
    assert redirect.trailing == (("location", "x"),)
    lost = values.replied(Reply.of(errors.NoRoute("no route for GET /")))
    assert (lost.code, lost.details) == (grpc.StatusCode.UNIMPLEMENTED, "")
    assert lost.debug == "UNIMPLEMENTED: (no route for GET /)"
    assert values.replied(Reply(200, grpc_code=0)).code is grpc.StatusCode.UNKNOWN
    assert values.replied(Reply(500, grpc_code=99)).code is grpc.StatusCode.UNKNOWN


READY, CONNECTING, IDLE, FAILURE = (
    getattr(grpc.ChannelConnectivity, name)
    for name in ("READY", "CONNECTING", "IDLE", "TRANSIENT_FAILURE")
)


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ([FAILURE, IDLE, CONNECTING, READY], READY),
        ([FAILURE, IDLE, CONNECTING], CONNECTING),
        ([FAILURE, IDLE], IDLE),
        ([FAILURE, FAILURE], FAILURE),
        ([], IDLE),
    ],
)
def test_aggregate(states: Any, state: Any) -> None:
    assert aggregate(states) is state


def test_serializers_of_an_unknown_continuation_come_from_the_protobuf_registry() -> None:
    serialize, parse = codecs_of(lambda details, request: None, "/meshtest.Echo/Unary")
    raw = serialize(echo_pb2.EchoRequest(text="x"))
    assert echo_pb2.EchoRequest.FromString(raw).text == "x"
    assert isinstance(parse(b""), echo_pb2.EchoReply)


def test_serializers_that_cannot_be_seen() -> None:
    with pytest.raises(TypeError, match=r"use Mesh\.channel"):
        codecs_of(lambda details, request: None, "/nowhere.Service/Method")
