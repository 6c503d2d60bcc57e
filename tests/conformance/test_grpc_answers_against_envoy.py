"""What a gRPC caller sees when the mesh itself ends a call, asked of real Envoy.

The same routes, in Envoy's own form, stand in an Envoy before the servers and in a channel of the
mesh; the same calls through both have to end with the same code and the same details.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format

from meshsdk.balancing import ClusterPool
from meshsdk.model import Assignment, Cluster, Endpoint, ListenerView, LocalityEndpoints
from meshsdk.xds.decode import DECODERS
from tests.support.ads import wait_until
from tests.support.echo_grpc import EchoRequest, EchoServer, EchoStub
from tests.support.envoy import FAULT, Envoy, http_listener, static_cluster, typed
from tests.support.grpc_clients import Client, attempts
from tests.support.resources import RDS

LIMIT = 0.3
LONG = 1.0
DEAD_PORT = 1


def to(cluster: str, **action: Any) -> dict[str, Any]:
    return {"route": {"cluster": cluster, "timeout": "0s", **action}}


def aborted(**abort: Any) -> dict[str, Any]:
    fault = typed(FAULT, abort={**abort, "percentage": {"numerator": 100}})
    return {**to("late"), "typed_per_filter_config": {"envoy.filters.http.fault": fault}}


def answer(status: int, body: str = "") -> dict[str, Any]:
    inline = {"body": {"inline_string": body}} if body else {}
    return {"direct_response": {"status": status, **inline}}


ROUTES: dict[str, dict[str, Any] | None] = {
    "late": to("late", timeout=f"{LIMIT}s"),
    "early": to("early", timeout=f"{LIMIT}s"),
    "unlimited": to("late"),
    "capped": to("late", max_stream_duration={"grpc_timeout_header_max": f"{LIMIT}s"}),
    "uncapped": to("late", max_stream_duration={"grpc_timeout_header_max": "0s"}),
    "capped-by-the-old-field": to("late", timeout=f"{LIMIT}s", max_grpc_timeout=f"{LIMIT}s"),
    "no-route": None,
    "no-cluster": to("missing"),
    "no-endpoint": to("empty"),
    "dead": to("dead"),
    "answer-200": answer(200, "hello"),
    "answer-200-empty": answer(200),
    "answer-403": answer(403),
    "answer-404": answer(404, "nothing here"),
    "answer-429": answer(429),
    "answer-502": answer(502),
    "redirect": {"redirect": {"host_redirect": "other.example"}},
    "abort-503": aborted(http_status=503),
    "abort-418": aborted(http_status=418),
    "abort-grpc": aborted(grpc_status=10),
}
# Envoy passes these limits on to the server, which counts down as well: either may be first to say
# that the time is up, Envoy in its own words.
COUNTED_TWICE = {
    "capped": (grpc.StatusCode.DEADLINE_EXCEEDED, "downstream duration timeout"),
    "uncapped": (grpc.StatusCode.DEADLINE_EXCEEDED, "downstream duration timeout"),
    "capped-by-the-old-field": (grpc.StatusCode.UNAVAILABLE, "upstream request timeout"),
}
METHODS = ("Unary", "Down", "Up", "Both")
SLOW: dict[str, Any] = {"count": 1, "delay": LONG}
SAYS_SO: dict[str, Any] = {"count": 1, "code": 4, "details": "Deadline Exceeded"}

# (route, method, the caller's own limit, request)
CALLS: list[tuple[str, str, float | None, dict[str, Any]]] = [
    *[(route, method, own, SLOW)
      for route in ("late", "early") for method in METHODS for own in (10.0, None, LIMIT / 2)],
    *[(route, method, 10.0, SAYS_SO) for route in ("late", "early") for method in METHODS],
    ("late", "Down", 10.0, {"count": 50, "delay": LIMIT / 10}),
    *[("unlimited", method, own, SLOW) for method in METHODS for own in (10.0, LIMIT)],
    *[("capped", method, own, SLOW) for method in METHODS for own in (10.0, None, LIMIT / 2)],
    *[("uncapped", "Unary", own, SLOW) for own in (10.0, None, LIMIT / 2)],
    *[("capped-by-the-old-field", method, 10.0, SLOW) for method in METHODS],
    *[(route, method, 10.0, {}) for route in list(ROUTES)[6:] for method in METHODS],
]  # fmt: skip


def host(name: str, route: dict[str, Any] | None) -> dict[str, Any]:
    routes = [] if route is None else [{"match": {"prefix": "/"}, **route}]
    return {"name": name, "domains": [f"{name}:80"], "routes": routes}


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, list[int]]]:
    with EchoServer("late", early=False) as late, EchoServer("early") as early:
        yield {"late": [late.port], "early": [early.port], "empty": [], "dead": [DEAD_PORT]}


@pytest.fixture(scope="module")
def envoy(ports: dict[str, list[int]]) -> Iterator[Envoy]:
    hosts = [host(name, route) for name, route in ROUTES.items()]
    listener = http_listener({"name": "rc", "virtual_hosts": hosts, "validate_clusters": False})
    clusters = [static_cluster(name, at, http2=True) for name, at in ports.items()]
    with Envoy([listener], clusters) as running:
        yield running


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    made = Client(request.param)
    yield made
    made.close()
    wait_until(lambda: attempts(made.mesh.snapshot) == 0, what="every attempt ended")


def view_of(name: str, ports: dict[str, list[int]]) -> ListenerView:
    config = {"name": "rc", "virtual_hosts": [host(name, ROUTES[name])]}
    message = json_format.ParseDict(config, route_pb2.RouteConfiguration())
    pool = ClusterPool(lambda: 0.0)
    clusters = {}
    for cluster, at in ports.items():
        group = LocalityEndpoints(tuple(Endpoint("127.0.0.1", port) for port in at))
        clusters[cluster] = pool.view(Cluster(cluster), Assignment(cluster, (group,)))
    return ListenerView(f"{name}:80", DECODERS[RDS].decode(message, []), clusters)


def end_through(channel: Any, method: str, request: Any, own: float | None) -> Any:
    """(code, details) on a channel of grpc."""
    call = getattr(EchoStub(channel), method)
    argument = iter([request]) if method in ("Up", "Both") else request
    if method in ("Unary", "Up"):
        call = call.future(argument, timeout=own)
    else:
        call = call(argument, timeout=own)
        with contextlib.suppress(grpc.RpcError):
            list(call)
    return call.code(), call.details()


async def aio_end_through(channel: Any, method: str, request: Any, own: float | None) -> Any:
    argument = iter([request]) if method in ("Up", "Both") else request
    call = getattr(EchoStub(channel), method)(argument, timeout=own)
    with contextlib.suppress(grpc.aio.AioRpcError):
        if method in ("Unary", "Up"):
            await call
        else:
            async for _ in call:
                pass
    return await call.code(), await call.details()


@pytest.mark.parametrize("name", ROUTES)
def test_every_end_is_envoys(
    client: Client, envoy: Envoy, ports: dict[str, list[int]], name: str
) -> None:
    target = f"{name}:80"
    client.mesh.publish({target: view_of(name, ports)})
    client.open(target)
    calls = [call for call in CALLS if call[0] == name]
    assert calls
    theirs: list[Any] = []
    options = [("grpc.default_authority", target)]
    with grpc.insecure_channel(f"127.0.0.1:{envoy.port()}", options) as channel:
        together = [
            threading.Thread(
                target=lambda at=at, call=call: theirs.append(
                    (at, end_through(channel, call[1], EchoRequest(**call[3]), call[2]))
                )
            )
            for at, call in enumerate(calls)
        ]
        for thread in together:
            thread.start()
        for thread in together:
            thread.join()
    ends = dict(theirs)
    for at, (_, method, own, request) in enumerate(calls):
        for connected in (False, True):
            ours = _ours(client, method, EchoRequest(**request), own)
            where = f"{name} {method} timeout={own} {request} {connected=}"
            both = {ours, _comparable(ends[at])}
            if name in COUNTED_TWICE and ours == COUNTED_TWICE[name]:
                both.discard(_OUT_OF_TIME)
            elif name in COUNTED_TWICE and ours == _OUT_OF_TIME:
                both.discard(COUNTED_TWICE[name])
            assert len(both) == 1, (where, both)


_OUT_OF_TIME = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")


def _ours(client: Client, method: str, request: Any, own: float | None) -> Any:
    if client.kind == "sync":
        return _comparable(end_through(client.channel, method, request, own))
    return _comparable(client.run(aio_end_through(client.channel, method, request, own)))


def _comparable(end: tuple[Any, str]) -> tuple[Any, str]:
    """grpcio words its own deadline differently once a response has begun."""
    code, details = end
    return code, details.replace("Stream removed (Deadline Exceeded)", "Deadline Exceeded")


def test_the_route_timeout_starts_with_the_end_of_the_request(
    client: Client, envoy: Envoy, ports: dict[str, list[int]]
) -> None:
    """In both: four messages, together longer than the route allows."""

    def slowly() -> Iterator[Any]:
        for _ in range(4):
            yield EchoRequest(text="x")
            threading.Event().wait(LIMIT / 2)

    async def slowly_async() -> Any:
        for request in [EchoRequest(text="x")] * 4:
            yield request
            await asyncio.sleep(LIMIT / 2)

    options = [("grpc.default_authority", "late:80")]
    with grpc.insecure_channel(f"127.0.0.1:{envoy.port()}", options) as channel:
        assert EchoStub(channel).Up(slowly(), timeout=10).text == "x,x,x,x"
        assert len(list(EchoStub(channel).Both(slowly(), timeout=10))) == 4
    client.mesh.publish({"late:80": view_of("late", ports)})
    client.open("late:80")
    for method, count in (("Up", 1), ("Both", 4)):
        requests = slowly() if client.kind == "sync" else slowly_async()
        code, replies, _ = client.outcome(method, requests, timeout=10)
        assert (code, len(replies)) == (grpc.StatusCode.OK, count)
