"""The lines that calls leave in an access log, compared with those of real Envoy.

The same HttpConnectionManager stands in an Envoy and in a mesh; the same requests go through both.
What cannot be equal (times, ports of connections) is compared by its kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from envoy.config.listener.v3 import listener_pb2
from google.protobuf import json_format

import meshsdk.httpx
from meshsdk.balancing import ClusterPool
from meshsdk.grpc import MeshChannel
from meshsdk.grpc_aio import MeshAioChannel
from meshsdk.model import Assignment, Cluster, Endpoint, ListenerView, LocalityEndpoints
from meshsdk.xds.decode import DECODERS
from tests.support.ads import wait_until
from tests.support.echo_grpc import EchoRequest, EchoServer, EchoStub
from tests.support.envoy import FAULT, Envoy, http_listener, static_cluster, typed
from tests.support.resources import LDS
from tests.support.static_mesh import StaticMesh

OPERATORS = (
    "START_TIME", "REQ(:METHOD)", "REQ(:PATH)", "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)", "REQ(X-MINE)",
    "REQ(:AUTHORITY)", "REQ(:SCHEME)", "PROTOCOL", "RESPONSE_CODE", "RESPONSE_FLAGS",
    "RESPONSE_FLAGS_LONG", "RESPONSE_CODE_DETAILS", "CONNECTION_TERMINATION_DETAILS",
    "UPSTREAM_TRANSPORT_FAILURE_REASON", "BYTES_RECEIVED", "BYTES_SENT", "DURATION",
    "RESPONSE_DURATION", "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)", "RESP(:STATUS)", "RESP(X-UP)",
    "RESP(CONTENT-TYPE)", "RESP(CONTENT-LENGTH)", "UPSTREAM_HOST", "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW", "ROUTE_NAME", "GRPC_STATUS", "GRPC_STATUS(NUMBER)",
    "GRPC_STATUS(SNAKE_STRING)", "GRPC_STATUS_NUMBER", "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "TRAILER(X-TRAILING)", "RESP(X-SERVER)",
    "REQUESTED_SERVER_NAME", "UPSTREAM_PROTOCOL", "UPSTREAM_REMOTE_PORT",
    "UPSTREAM_HOSTS_ATTEMPTED", "ACCESS_LOG_TYPE",
)  # fmt: skip
TIMES = {"START_TIME", "DURATION", "RESPONSE_DURATION", "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)"}
DOCUMENT = {
    **{operator: f"%{operator}%" for operator in OPERATORS},
    "nested": {
        "list": ["%PROTOCOL%", 3, True, None, 1.5],
        "two": "%RESPONSE_CODE%x%REQ(none)%",
        "cut": "%REQ(:PATH):3%",
        "percent": "100%% of %REQ(:METHOD)%",
        "none": {"a": "%REQ(none)%"},
    },
}
METHODS = ("Unary", "Down", "Up", "Both")
FILTERS: dict[str, Any] = {
    "errors": {"status_code_filter": {"comparison": {
        "op": "GE", "value": {"default_value": 400, "runtime_key": "none"}}}},
    "slow": {"duration_filter": {"comparison": {
        "op": "GE", "value": {"default_value": 150, "runtime_key": "none"}}}},
    "flagged": {"response_flag_filter": {}},
    "found": {"response_flag_filter": {"flags": ["NR", "DI"]}},
    "mine": {"header_filter": {"header": {"name": "x-mine", "present_match": True}}},
    "unknown": {"grpc_status_filter": {"statuses": ["UNKNOWN"]}},
    "known": {"grpc_status_filter": {"statuses": ["UNKNOWN"], "exclude": True}},
    "both": {"and_filter": {"filters": [
        {"response_flag_filter": {}},
        {"status_code_filter": {"comparison": {
            "op": "EQ", "value": {"default_value": 503, "runtime_key": "none"}}}}]}},
    "either": {"or_filter": {"filters": [
        {"response_flag_filter": {"flags": ["UT"]}},
        {"header_filter": {"header": {"name": "x-mine", "string_match": {"exact": "1"}}}}]}},
    "never": {"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 0}}},
    "always": {"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 100}}},
    "no-health": {"not_health_check_filter": {}},
    "ends": {"log_type_filter": {"types": ["DownstreamEnd"]}},
    "no-ends": {"log_type_filter": {"types": ["DownstreamEnd"], "exclude": True}},
}  # fmt: skip
SHORT = "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %RESPONSE_CODE% %REQ(none)%\n"


def fault(**what: Any) -> dict[str, Any]:
    share = {"percentage": {"numerator": 100}}
    made = {kind: {**value, **share} for kind, value in what.items()}
    return {"typed_per_filter_config": {"envoy.filters.http.fault": typed(FAULT, **made)}}


def to(cluster: str, **action: Any) -> dict[str, Any]:
    return {"route": {"cluster": cluster, **action}}


WAIT = {"fixed_delay": "0.05s"}
ROUTES: dict[str, dict[str, Any]] = {
    "direct": {"direct_response": {"status": 202, "body": {"inline_string": "hi"}}},
    "redirect": {"redirect": {"path_redirect": "/new"}},
    "empty": to("empty"),
    "dead": to("dead"),
    "missing": to("missing"),
    "abort": {**to("up"), **fault(abort={"http_status": 418})},
    "delay": {**to("up"), **fault(delay=WAIT)},
    "both": {**to("up"), **fault(delay=WAIT, abort={"http_status": 503})},
    "slow": to("up", timeout="0.2s"),
    "written": {
        **to("up", prefix_rewrite="/rewritten", host_rewrite_literal="other"),
        "request_headers_to_add": [{"header": {"key": "x-mine", "value": "added"}}],
        "response_headers_to_add": [{"header": {"key": "x-up", "value": "more"}}],
    },
    "ok": to("up"),
}
REQUESTS: list[tuple[str, str, dict[str, str], bytes]] = [
    ("GET", "/ok?q=1", {}, b""),
    ("POST", "/ok", {"x-mine": "1"}, b"x" * 1000),
    ("HEAD", "/ok", {}, b""),
    ("GET", "/ok/nothing", {}, b""),
    ("GET", "/ok/chunks", {"x-mine": 'a "quoted" one'}, b""),
    ("GET", "/ok/missing", {}, b""),
    *(("GET", f"/{name}", {}, b"") for name in ("direct", "redirect", "empty", "dead", "missing")),
    ("HEAD", "/direct", {}, b""),
    ("GET", "/abort", {}, b""),
    ("GET", "/delay", {}, b""),
    ("GET", "/both", {}, b""),
    ("GET", "/slow/wait", {}, b""),
    ("GET", "/written/x?y=1", {}, b""),
    ("GET", "/nowhere", {}, b""),
]


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.endswith("/wait"):
            time.sleep(0.5)
        status = {"nothing": 204, "missing": 404}.get(self.path.rpartition("/")[2], 200)
        self.send_response(status)
        self.send_header("x-up", "here")
        if self.path.endswith("/chunks"):
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
            return
        if status != 204:
            self.send_header("content-length", "5")
        self.end_headers()
        if status != 204 and self.command != "HEAD":
            with contextlib.suppress(OSError):  # nobody waits for the slow ones
                self.wfile.write(b"hello")

    do_GET = do_POST = do_HEAD = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def dead() -> Iterator[int]:
    """A port that refuses: bound, and not listened on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def file_log(path: Path, name: str, *, only: Any = None, **fields: Any) -> dict[str, Any]:
    kind = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
    log: dict[str, Any] = {
        "name": "envoy.access_loggers.file",
        "typed_config": typed(kind, path=str(path / name), **fields),
    }
    return log if only is None else {**log, "filter": only}


def logs(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    spare = {"a": "%REQ(x-mine)%", "b": {"c": "%REQ(none)%"}, "d": ["%REQ(none)%", "x"],
             "e": "%REQ(none)%-", "f": None, "g": ["%REQ(none)%"], "h": {}, "i": []}  # fmt: skip
    short = {"text_format_source": {"inline_string": SHORT}}
    return [
        file_log(folder, "json", log_format={"json_format": DOCUMENT}),
        file_log(folder, "spare", log_format={"json_format": spare, "omit_empty_values": True}),
        file_log(folder, "plain"),
        file_log(folder, "short", log_format={"text_format": SHORT, "omit_empty_values": True}),
        *(file_log(folder, name, only=only, log_format=short) for name, only in FILTERS.items()),
    ]


def manager(folder: Path, *, by_header: bool = False) -> dict[str, Any]:
    """A listener; every file of the log has one line for each call that it is for."""

    def match(name: str) -> dict[str, Any]:
        header = {"name": "x-route", "string_match": {"exact": name}}
        return {"prefix": "/", "headers": [header]} if by_header else {"prefix": f"/{name}"}

    routes = [{"name": f"to-{name}", "match": match(name), **what} for name, what in ROUTES.items()]
    host = {"name": "v", "domains": ["*"], "routes": routes}
    made = http_listener({"name": "rc", "virtual_hosts": [host], "validate_clusters": False})
    config = made["filter_chains"][0]["filters"][0]["typed_config"]
    config["access_log"] = logs(folder)
    del config["http_filters"][1]["typed_config"]["suppress_envoy_headers"]
    return made


def lines(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().splitlines() for path in sorted(folder.iterdir())}


def written(folder: Path, expected: dict[str, list[str]]) -> dict[str, list[str]]:
    """The lines of each file, when as many are there as are expected."""

    def are_there() -> bool:
        found = lines(folder)
        return all(len(found.get(name, ())) >= len(those) for name, those in expected.items())

    wait_until(are_there, what=f"every line in {folder}")
    return lines(folder)


def masked(name: str, line: str) -> Any:
    """A line, what is a matter of time replaced by its kind."""
    if name == "json":
        found = json.loads(line)
        assert list(found) == sorted(found)
        for operator in TIMES:
            value = found[operator]
            found[operator] = re.sub(r"\d", "0", value) if operator == "START_TIME" else type(value)
        return _masked_call(found) if found["PROTOCOL"] == "HTTP/2" else found
    if name == "plain":
        line = re.sub(r"^\[[^]]*Z\]", "[time]", line)
        took = re.search(r"\" (\d+ \S+ \d+ \d+) \d+ (\d+|-) \"", line)
        assert took, line
        kind = "-" if took[2] == "-" else "milliseconds"
        return f"{line[: took.start()]} {took[1]} {kind} {line[took.end() :]}"
    return line


def _masked_call(found: dict[str, Any]) -> dict[str, Any]:
    """What depends on how fast the messages of a stream pass, and on what Envoy adds to them."""
    found["BYTES_SENT"] = found["BYTES_SENT"] > 0  # the server answers with Envoy's own headers
    if found["ROUTE_NAME"] in ("to-dead", "to-both"):
        del found["BYTES_RECEIVED"]
    if found["REQ(:PATH)"].endswith(("/Up", "/Both")):
        del found["RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)"]
    return found


def compare(theirs: dict[str, list[str]], ours: dict[str, list[str]]) -> None:
    for name, expected in theirs.items():
        found = [masked(name, line) for line in ours.get(name, [])]
        theirs_now = [masked(name, line) for line in expected]
        for at, (one, other) in enumerate(zip(theirs_now, found, strict=False)):
            assert other == one, (name, at)
        assert len(found) == len(expected), name


def mesh_of(listener: dict[str, Any], ports: dict[str, list[int]]) -> StaticMesh:
    config = listener["filter_chains"][0]["filters"][0]["typed_config"]
    message = json_format.ParseDict(
        {"name": "case.test:80", "api_listener": {"api_listener": config}}, listener_pb2.Listener()
    )
    decoded = DECODERS[LDS].decode(message, notes := [])
    assert notes == []
    pool = ClusterPool(lambda: 0.0)
    clusters = {}
    for name, found in ports.items():
        group = LocalityEndpoints(tuple(Endpoint("127.0.0.1", port) for port in found))
        clusters[name] = pool.view(Cluster(name), Assignment(name, (group,)))
    mesh = StaticMesh()
    view = ListenerView(
        decoded.name, decoded.route_config, clusters, decoded.fault,
        filters=decoded.filters, access_logs=decoded.access_logs,
    )  # fmt: skip
    mesh.publish({decoded.name: view})
    return mesh


def ask_sync(mesh: Any) -> None:
    with httpx.Client(transport=meshsdk.httpx.transport(mesh), timeout=10) as client:
        for method, path, headers, body in REQUESTS:
            client.request(method, f"http://case.test{path}", headers=headers, content=body)


def ask_async(mesh: Any) -> None:
    async def ask() -> None:
        transport = meshsdk.httpx.async_transport(mesh)
        async with httpx.AsyncClient(transport=transport, timeout=10) as client:
            for method, path, headers, body in REQUESTS:
                await client.request(
                    method, f"http://case.test{path}", headers=headers, content=body
                )

    asyncio.run(ask())


def test_http_lines_are_envoys(upstream: int, dead: int, tmp_path: Path) -> None:
    ports = {"up": [upstream], "empty": [], "dead": [dead]}
    clusters = [static_cluster(name, found) for name, found in ports.items()]
    with (
        Envoy([manager(tmp_path / "envoy")], clusters) as envoy,
        httpx.Client(trust_env=False, timeout=10) as client,
    ):
        for method, path, headers, body in REQUESTS:
            url = f"http://127.0.0.1:{envoy.port()}{path}"
            client.request(method, url, headers={**headers, "host": "case.test"}, content=body)
    theirs = lines(tmp_path / "envoy")
    assert len(theirs["json"]) == len(REQUESTS)
    for name, ask in (("sync", ask_sync), ("async", ask_async)):
        ask(mesh_of(manager(tmp_path / name), ports))
        compare(theirs, written(tmp_path / name, theirs))


# --- gRPC --------------------------------------------------------------------------------------

# (route, method, the caller's own limit, request)
CALLS: list[tuple[str, str, float, dict[str, Any]]] = [
    *(("ok", method, 10.0, {"text": "hello", "count": 3}) for method in METHODS),
    *(("ok", method, 10.0, {"code": 5, "details": "nope", "count": 2}) for method in METHODS),
    *(
        (route, method, 10.0, {"count": 1})
        for route in ("direct", "redirect", "empty", "dead", "missing", "abort", "delay", "both",
                      "nowhere")
        for method in METHODS
    ),
    *(("slow", method, 10.0, {"delay": 0.5, "count": 1}) for method in METHODS),
]  # fmt: skip


def call_all(channel: Any, *, futures: bool = False) -> None:
    stub = EchoStub(channel)
    for route, method, limit, fields in CALLS:
        request = EchoRequest(**fields)
        argument = iter([request]) if method in ("Up", "Both") else request
        how = {"timeout": limit, "metadata": (("x-route", route), ("x-mine", "1"))}
        call = getattr(stub, method)
        with contextlib.suppress(grpc.RpcError):
            if method in ("Down", "Both"):
                list(call(argument, **how))
            elif futures:
                call.future(argument, **how).result()
            else:
                call(argument, **how)


async def call_all_aio(mesh: Any) -> None:
    async with MeshAioChannel(mesh, "case.test:80") as channel:
        stub = EchoStub(channel)
        for route, method, limit, fields in CALLS:
            request = EchoRequest(**fields)
            argument = iter([request]) if method in ("Up", "Both") else request
            metadata = (("x-route", route), ("x-mine", "1"))
            call = getattr(stub, method)(argument, timeout=limit, metadata=metadata)
            with contextlib.suppress(grpc.RpcError):
                if method in ("Down", "Both"):
                    async for _ in call:
                        pass
                else:
                    await call


def test_grpc_lines_are_envoys(dead: int, tmp_path: Path) -> None:
    with EchoServer() as server:
        ports = {"up": [server.port], "empty": [], "dead": [dead]}
        clusters = [static_cluster(name, at, http2=True) for name, at in ports.items()]
        options = [("grpc.default_authority", "case.test:80")]
        with (
            Envoy([manager(tmp_path / "envoy", by_header=True)], clusters) as envoy,
            grpc.insecure_channel(f"127.0.0.1:{envoy.port()}", options) as channel,
        ):
            call_all(channel)
        theirs = lines(tmp_path / "envoy")
        assert len(theirs["json"]) == len(CALLS)
        del theirs["plain"]  # the core's own words as user-agent are not for us to know
        for kind in ("blocking", "futures", "aio"):
            mesh = mesh_of(manager(tmp_path / kind, by_header=True), ports)
            if kind == "aio":
                asyncio.run(call_all_aio(mesh))
            else:
                with MeshChannel(mesh, "case.test:80") as channel:
                    call_all(channel, futures=kind == "futures")
            compare(theirs, written(tmp_path / kind, theirs))
