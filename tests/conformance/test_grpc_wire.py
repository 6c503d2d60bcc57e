"""grpc-go's own tables of what goes over the wire, asked of our channels and servers.

Where grpc-go words a status in its own way only the code counts: our words are those of gRPC's C
core, which also has the last word on every header here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import json_format
from xds.data.orca.v3 import orca_load_report_pb2

from meshsdk._grpc.values import CODES
from meshsdk.grpc import MeshChannel
from meshsdk.grpc_server import ServerInterceptor
from meshsdk.xds.decode.orca import REPORT_BIN, load_report, load_report_of_headers
from meshsdk.xds.document import message_of
from tests.support import http2
from tests.support.cases import Case, each_case
from tests.support.grpc_clients import NAME, mesh_of
from tests.support.http2 import Http2Server

TOPIC = "envoy/grpc_go_wire"
METHOD = "/test.Wire/Call"
ACCEPTED = [(":status", "200"), ("content-type", "application/grpc")]
_SECONDS = 10.0


class End(NamedTuple):
    code: grpc.StatusCode
    details: str
    messages: list[bytes]


def end(target: str, *metadata: tuple[str, str]) -> End:
    """How a call on a channel of the mesh ends."""
    with MeshChannel(mesh_of("mesh", target), NAME) as channel:
        call: Any = channel.unary_stream(METHOD)(b"x", timeout=_SECONDS, metadata=metadata)
        messages: list[bytes] = []
        with contextlib.suppress(grpc.RpcError):
            messages.extend(call)
        return End(call.code(), call.details(), messages)


def answered(answer: Callable[[int], bytes]) -> End:
    with Http2Server(answer) as server:
        return end(server.target)


def fields_of(case: Case) -> list[tuple[str, str]]:
    """The case's header fields; HTTP/2 has pseudo headers first."""
    fields = [(each["Name"], each["Value"]) for each in case["metaHeaderFrame"]["Fields"] or ()]
    return sorted(fields, key=lambda pair: not pair[0].startswith(":"))


# --- what a server answers -------------------------------------------------------------------


def only_in(words: dict[str, str]) -> Callable[[Case], str | None]:
    return lambda case: words.get(case["id"].partition("/")[2])


HEADERS_OF_GRPCIO = {
    "invalid_grpc_status/2": "UNKNOWN for a malformed grpc-status: grpcio says INTERNAL",
    "invalid_content_type/3": "INTERNAL for an answer without :status: grpcio says UNKNOWN",
    "http2_frame_size_exceeds/6": (
        "INTERNAL for headers over the limit: grpcio says RESOURCE_EXHAUSTED"
    ),
    "ignore_http_status_for_grpc/8": (
        "success of a gRPC answer with HTTP status 504: grpcio says UNAVAILABLE"
    ),
}


@each_case(TOPIC, "client_decode_header", awaits=only_in(HEADERS_OF_GRPCIO))
def test_headers_of_an_answer(case: Case) -> None:
    fields = fields_of(case)
    if case["metaHeaderFrame"]["Truncated"]:
        fields = [*ACCEPTED, ("x-long", "x" * 70_000)]
    wanted = CODES[case["wantStatus"]["s"]["json"].get("code", 0)]
    if wanted is grpc.StatusCode.OK:
        found = answered(
            lambda stream: (
                http2.headers(stream, fields, end=False)
                + http2.message(stream, b"m")
                + http2.headers(stream, [("grpc-status", "0")], end=True)
            )
        )
        assert found == End(wanted, "", [b"m"])
        return
    alone = answered(lambda stream: http2.headers(stream, fields, end=True))
    with_body = answered(
        lambda stream: (
            http2.headers(stream, fields, end=False)
            + http2.frame(http2.DATA, http2.END_STREAM, stream, b"hello")
        )
    )
    assert (alone.code, alone.messages) == (wanted, [])
    assert (with_body.code, with_body.messages) == (wanted, [])


TRAILERS_OF_GRPCIO = {
    "missing_grpc_status_in_grpc_mode/3": (
        "UNKNOWN for :status xxxx without grpc-status: grpcio says INTERNAL"
    ),
}


@each_case(TOPIC, "client_decode_trailer", awaits=only_in(TRAILERS_OF_GRPCIO))
def test_trailers_of_an_answer(case: Case) -> None:
    wanted = case["wantEndStreamStatus"]["s"]["json"]
    found = answered(
        lambda stream: (
            http2.headers(stream, ACCEPTED, end=False)
            + http2.message(stream, b"m")
            + http2.headers(stream, fields_of(case), end=True)
        )
    )
    assert found.code is CODES[wanted.get("code", 0)]
    assert found.messages == [b"m"]
    if "message" in wanted:  # what is sent as grpc-message, not in grpc-go's own words
        assert found.details == wanted["message"]


@each_case(TOPIC, "grpc_message_percent")
def test_status_messages(case: Case, server: Served) -> None:
    assert end(server.target, ("x-abort", urllib.parse.quote(case["orig"]))) == End(
        grpc.StatusCode.NOT_FOUND, case["want"], []
    )
    for sent in (case["orig"], urllib.parse.quote(case["orig"], safe=" ")):
        fields = [*ACCEPTED, ("grpc-status", "5"), ("grpc-message", sent)]
        found = answered(lambda stream, fields=fields: http2.headers(stream, fields, end=True))  # type: ignore[misc]
        assert found == End(grpc.StatusCode.NOT_FOUND, case["want"], []), sent


# --- what a client sends ---------------------------------------------------------------------


class Served(grpc.GenericRpcHandler):
    """A gRPC server behind the mesh's interceptor, that fails with the words of `x-abort`."""

    def __init__(self) -> None:
        self.calls = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(2), (self,), (ServerInterceptor(),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.target = f"127.0.0.1:{self.port}"
        self._server.start()

    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_stream_rpc_method_handler(self._answer)

    def _answer(self, request: bytes, context: Any) -> Iterator[bytes]:
        self.calls += 1
        words = dict(context.invocation_metadata()).get("x-abort")
        if words is not None:
            context.abort(grpc.StatusCode.NOT_FOUND, urllib.parse.unquote(words))
        yield b"m"

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def server() -> Iterator[Served]:
    made = Served()
    yield made
    made.stop()


def status_of(frames: list[http2.Frame]) -> int:
    """The gRPC status of what a server sent back.

    A stream reset with INTERNAL_ERROR is INTERNAL (gRPC over HTTP/2, "Errors").
    """
    last = frames[-1]
    if last.kind == http2.RST_STREAM:
        assert int.from_bytes(last.payload) == 2, "INTERNAL_ERROR"
        return 13
    assert last.kind == http2.HEADERS
    return int(dict(http2.literals(last.payload))["grpc-status"])


@each_case(TOPIC, "http_status_to_grpc")
def test_requests_that_no_client_should_send(case: Case, server: Served) -> None:
    """The call ends with the case's gRPC status before it gets to the application.

    grpc-go puts an HTTP status besides; the C core answers 200 whatever the gRPC status is, as
    gRPC over HTTP/2 asks for.
    """
    fields = [(header["name"], value) for header in case["headers"] for value in header["values"]]
    body = http2.message(1, b"x")[9:]
    with_path = [(name, METHOD if name == ":path" else value) for name, value in fields]
    for each in (fields, with_path):  # the path alone is not what is wrong
        assert status_of(http2.ask(server.port, each, body)) == int(case["grpcStatusWant"])
    assert server.calls == 0
    good = [*ASKED, (":scheme", "http"), ("te", "trailers"), ("content-type", "application/grpc")]
    assert status_of(http2.ask(server.port, sorted(good), body)) == 0
    assert server.calls == 1


ASKED = [(":method", "POST"), (":path", METHOD), (":authority", "localhost")]


def sent(*metadata: tuple[str, str]) -> list[tuple[str, str]]:
    """The headers, as text, of a call with this metadata."""

    def answer(stream: int) -> bytes:
        return http2.headers(stream, [*ACCEPTED, ("grpc-status", "0")], end=True)

    with Http2Server(answer) as server:
        found = end(server.target, *metadata)
        if found.code is not grpc.StatusCode.OK:
            assert (found.code, found.details, server.blocks) == REFUSED
            return []
        (block,) = server.blocks
        return [pair for pair in http2.literals(block) if pair[0] != "grpc-timeout"]


REFUSED = (grpc.StatusCode.INTERNAL, "Invalid metadata", [])


def sent_by_grpcio(case: Case) -> str | None:
    if case["want"] and case["h"].startswith("grpc-"):
        return "names of gRPC's own kept from the application: grpcio sends them"
    return None


@each_case(TOPIC, "reserved_headers", awaits=sent_by_grpcio)
def test_names_that_are_not_the_applications(case: Case) -> None:
    own = (case["h"], "of the application")
    if case["want"]:
        assert sent(own) == sent()
    elif case["h"]:
        assert sent(own) == [*sent(), own]
    else:  # no header at all: the caller is told
        assert sent(own) == []


# --- content ---------------------------------------------------------------------------------

_NANOSECONDS = 10**9
_GO_LONGEST, _GO_SHORTEST = 2**63 - 1, -(2**63)
REFUSED_BY_ENVOY = {"TestDuration_MarshalUnmarshal/case#3/2"}


def nanoseconds_of(text: str) -> int:
    """A Go duration of hours, minutes and seconds."""
    rest, total = text.removeprefix("-"), 0
    for unit, seconds in (("h", 3600), ("m", 60), ("s", 1)):
        if unit in rest and not rest.endswith("ms"):
            number, _, rest = rest.partition(unit)
            whole, _, fraction = number.partition(".")
            total += (int(whole) * _NANOSECONDS + int(fraction.ljust(9, "0") or 0)) * seconds
    return -total if text.startswith("-") else total


@each_case(
    TOPIC,
    "duration_json",
    awaits=lambda case: (
        "a duration that begins with its point: Envoy refuses it, and proto-JSON with it"
        if case["id"] in REFUSED_BY_ENVOY
        else None
    ),
)
def test_durations(case: Case) -> None:
    document = {"timeout": json.loads(case["json"])}
    if case["unmarshalErr"]:
        with pytest.raises(ValueError, match=r"RouteAction: .*timeout"):
            message_of(document, "envoy.config.route.v3.RouteAction")
        return
    read = message_of(document, "envoy.config.route.v3.RouteAction").timeout
    exact = read.seconds * _NANOSECONDS + read.nanos
    # Go's own durations end at 292 years.
    assert max(_GO_SHORTEST, min(_GO_LONGEST, exact)) == nanoseconds_of(case["td"])


@each_case(TOPIC, "orca_to_load_report")
def test_load_reports(case: Case) -> None:
    if case["want"] is None:
        assert case["md"] == {}
        assert load_report_of_headers(case["md"].get) is None
        return
    assert list(case["md"]) == [REPORT_BIN]
    # The bytes of the metadata did not survive as text; they are those of the wanted message.
    content = base64.b64decode(case["want"]["pb_b64"])
    report = load_report(content)
    wanted = json_format.ParseDict(case["want"]["json"], orca_load_report_pb2.OrcaLoadReport())
    assert report is not None
    assert report == load_report_of_headers({REPORT_BIN: case["want"]["pb_b64"]}.get)
    assert report.cpu_utilization == wanted.cpu_utilization
    assert report.mem_utilization == wanted.mem_utilization
    assert report.request_cost == dict(wanted.request_cost)
    assert report.utilization == dict(wanted.utilization)
